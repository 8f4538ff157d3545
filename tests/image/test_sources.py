import pytest

from ringzero.errors import HostError, InvalidValueError
from ringzero.image.sources import debian_sources


@pytest.fixture
def etc(tmp_path, monkeypatch):
    monkeypatch.delenv("RINGZERO_MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-pgdg
Components: main contrib
Signed-By: /usr/share/keyrings/x.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb
URIs: https://vendor.example/apt
Suites: stable
Components: vendor
"""


def test_deb822(etc):
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    main, security = debian_sources(etc=etc)
    assert main.uris == ("http://mirror.example/debian",)
    assert main.suites == ("bookworm", "bookworm-updates")
    assert dict(main.options) == {"Signed-By": "/usr/share/keyrings/x.gpg"}
    assert security.suites == ("bookworm-security",)
    assert "BEGIN PGP" in security.render()
    assert "Components: main\n" in main.render()


def test_one_line_format(etc):
    (etc / "sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main non-free\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb https://vendor.example/apt cloud main # nodistro\n"
    )
    (source,) = debian_sources(etc=etc)
    assert source.suites == ("bookworm",)
    assert dict(source.options) == {"Signed-By": "/k.gpg"}


def test_another_suite_comes_from_the_same_archive(etc):
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    *usual, source = debian_sources("trixie", etc=etc)
    assert usual == debian_sources(etc=etc)
    assert (source.uris, source.suites) == (("http://mirror.example/debian",), ("trixie",))


def test_no_debian_here(etc):
    (etc / "sources.list").write_text("deb http://ubuntu.example/ubuntu noble main\n")
    with pytest.raises(HostError) as caught:
        debian_sources(etc=etc)
    assert "RINGZERO_MIRROR" in caught.value.hint


def test_mirror_setting(etc, monkeypatch):
    monkeypatch.setenv("RINGZERO_MIRROR", "http://other.example/debian")
    assert debian_sources(etc=etc)[0].suites == ("bookworm",)
    monkeypatch.setenv("RINGZERO_MIRROR", "file:/srv/debian trixie trixie-updates")
    assert debian_sources(etc=etc)[0].suites == ("trixie", "trixie-updates")
    assert debian_sources("sid", etc=etc)[0].suites == ("trixie", "trixie-updates", "sid")
    monkeypatch.setenv("RINGZERO_MIRROR", "not a url")
    with pytest.raises(InvalidValueError):
        debian_sources(etc=etc)
