"""Debian packages without apt: against an archive made here, and against apt itself."""

import functools
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringzero.errors import HostError, MissingToolError, NotFoundError
from ringzero.image import micro, sources
from ringzero.image.debian import mirror, signature
from ringzero.image.debian.index import Index
from ringzero.image.debian.mirror import Mirror
from ringzero.image.debian.versions import compare, relations
from ringzero.image.sources import Source
from tests.image.archive import Archive, control


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An archive behind HTTP, trusted without a signature."""
    made = Archive(tmp_path / "archive")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=made.root)
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.uri = f"http://127.0.0.1:{server.server_port}"
    source = Source((made.uri,), (made.suite,), (("Trusted", "yes"),))
    monkeypatch.setattr(mirror, "mirror_sources", lambda suite=None: [source])
    monkeypatch.setattr(mirror, "_PAUSE", 0.01)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def filled(served):
    served.add(control("leaf", "2:1.0+x-1"), {"usr/bin/leaf": b"leaf"})
    served.add(control("middle", depends="leaf (>= 2:1.0), other | nothing"), {})
    served.add(control("other", architecture="all"), {})
    served.add(control("top", depends="middle"), {})
    served.add(control("broken", depends="absent-package"), {})
    return served.publish()


def test_resolves_downloads_and_keeps(filled, cache):
    own = Mirror()
    packages = own.resolve(["top"])
    assert {p.name for p in packages} == {"top", "middle", "leaf", "other"}
    paths = own.download(packages)
    assert {path.name for path in paths} >= {"leaf_2%3a1.0+x-1_amd64.deb"}
    shutil.rmtree(filled.root / "pool")
    again = Mirror()
    assert again.download(again.resolve(["top"])) == paths


def test_without_dependencies_and_by_version(filled, cache):
    assert [p.name for p in Mirror().resolve(["top"], dependencies=False)] == ["top"]
    assert Mirror().depends("middle") == ["leaf", "other"]
    assert Mirror().resolve(["leaf=2:1.0+x-1"])[0].version == "2:1.0+x-1"
    for name in ("none", "leaf=1", ""):
        with pytest.raises(NotFoundError):
            Mirror().resolve([name])
    with pytest.raises(HostError, match="absent-package"):
        Mirror().resolve(["broken"])


def test_what_is_tampered_with_is_refused(filled, cache):
    own = Mirror()
    packages = own.resolve(["leaf"])
    (package,) = (filled.root / "pool").glob("leaf_*")
    package.write_bytes(package.read_bytes()[:-1] + b"!")
    with pytest.raises(HostError, match="hash sum"):
        own.download(packages)
    assert not list((cache / "debs").glob("*.deb"))


def test_a_list_that_is_not_the_released_one(filled, cache):
    path = filled.root / "dists" / filled.suite / "main" / "binary-amd64" / "Packages"
    path.write_bytes(path.read_bytes().replace(b"leaf", b"leak"))
    with pytest.raises(HostError, match="hash sum"):
        Mirror().resolve(["top"])


def test_another_release_and_one_that_has_ended(filled, cache):
    path = filled.root / "dists" / filled.suite / "Release"
    text = path.read_text()
    path.write_text(
        text.replace("Suite: test", "Suite: x").replace("Codename: test", "Codename: y")
    )
    with pytest.raises(HostError, match="is the release 'y'"):
        Mirror().refresh()
    path.write_text(text.replace("SHA256:", "Valid-Until: Thu, 01 Jan 2015 00:00:00 UTC\nSHA256:"))
    with pytest.raises(HostError, match="valid until"):
        Mirror().refresh()


def test_nobody_is_there(cache, monkeypatch):
    source = Source(("http://127.0.0.1:1",), ("test",), (("Trusted", "yes"),))
    monkeypatch.setattr(mirror, "mirror_sources", lambda suite=None: [source])
    with pytest.raises(HostError, match="refused"):
        Mirror().refresh()


def test_the_default_guest_without_apt(served, cache, monkeypatch, tmp_path):
    """With a PATH that has no apt-get, the image is made all the same, and is the same."""
    served.with_guest().publish()
    monkeypatch.setenv("PATH", str(tmp_path))
    image = micro.ensure()
    assert [p.split("=")[0] for p in image.packages] == ["linux-image-6.6.6-test", "busybox-static"]


# ---- signatures -----------------------------------------------------------------


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """Sign texts by a key made here; `signer.keys` is its public half."""
    if shutil.which("gpg") is None:
        pytest.skip("needs gpg")
    home = tmp_path_factory.mktemp("gpg")
    command = ["gpg", "--homedir", str(home), "--batch", "--passphrase", "", "--pinentry-mode",
               "loopback"]  # fmt: skip
    subprocess.run([*command, "--quick-generate-key", "test@example.org", "rsa2048", "sign"],
                   check=True, capture_output=True)  # fmt: skip

    # Keys of 2020, of which one has expired.
    then = "--faked-system-time=20200101T000000"
    for who, until in (("old", "1d"), ("lasting", "never")):
        subprocess.run([*command, then, "--quick-generate-key", f"{who}@example.org", "rsa2048",
                        "sign", until], check=True, capture_output=True)  # fmt: skip

    def sign(text, *options):
        who = options or ("-u", "test@example.org")
        return subprocess.run([*command, *who, "--clearsign"], input=text.encode(), check=True,
                              capture_output=True).stdout  # fmt: skip

    sign.keys = home / "keys.asc"
    exported = subprocess.run([*command, "--armor", "--export"], check=True, capture_output=True)
    sign.keys.write_bytes(exported.stdout)
    sign.old = {
        "key": [then, "-u", "old@example.org"],
        "signature": [then, "-u", "lasting@example.org", "--default-sig-expire", "1d"],
    }
    yield sign
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@pytest.fixture(params=["gpgv", "pysequoia"])
def by(request, monkeypatch):
    """Check signatures by one of the two."""
    if request.param == "gpgv":
        if shutil.which("gpgv") is None:
            pytest.skip("needs gpgv")
    else:
        pytest.importorskip("pysequoia")
        monkeypatch.setattr(signature, "_by_gpgv", lambda signed, keys: None)


def test_a_good_signature(signer, by):
    assert signature.verified(signer("Suite: test\n"), signer.keys).strip() == "Suite: test"


def test_bad_signatures(signer, by):
    signed = signer("Suite: test\n")
    for wrong in (signed.replace(b"test", b"best"), b"Suite: test\n", b"", signed[:100]):
        with pytest.raises(HostError):
            signature.verified(wrong, signer.keys)
    with pytest.raises(HostError):
        signature.verified(signed)


@pytest.mark.parametrize("what", ["key", "signature"])
def test_what_has_expired_is_refused(signer, by, what):
    signed = signer("Suite: test\n", *signer.old[what])
    with pytest.raises(HostError, match="signature of Debian's archive is not good"):
        signature.verified(signed, signer.keys)


def test_nothing_to_check_with(signer, monkeypatch):
    for name in ("_by_gpgv", "_by_sequoia"):
        monkeypatch.setattr(signature, name, lambda signed, keys: None)
    with pytest.raises(MissingToolError, match="cannot be checked") as told:
        signature.verified(signer("x"), signer.keys)
    assert "gpgv" in told.value.hint


# ---- versions, lists --------------------------------------------------------------

VERSIONS = ("1.0", "1.0-1", "1.0-1+b1", "1:0.1", "1.0~rc1", "1.0+dfsg", "1.0.1", "1.00", "2", "10",
            "1.0-1~bpo12+1", "1a", "1.a", "1~~", "1~~a", "1~", "1")  # fmt: skip


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_versions_are_in_dpkgs_order():
    for one in VERSIONS:
        for two in VERSIONS:
            order = compare(one, two)
            told = "lt" if order < 0 else "eq" if order == 0 else "gt"
            done = subprocess.run(["dpkg", "--compare-versions", one, told, two])
            assert done.returncode == 0, (one, told, two)


def test_relations():
    ((one,), (two, three)) = relations("a (>= 1:2), b [amd64] | c:any <!nocheck>")
    assert (one.name, one.operator, one.version) == ("a", ">=", "1:2")
    assert (two.name, three.name) == ("b", "c")
    with pytest.raises(HostError):
        relations("a (?? 1)")


def test_the_newest_version_and_the_preferred_release():
    def stanza(version):
        return control("a", version) + f"Filename: x\nSize: 1\nSHA256: {'0' * 64}\n\n"

    index = Index()
    index.add(stanza("1.0") + stanza("1.10") + stanza("1.9"), "base")
    assert index.candidate("a").version == "1.10"
    index.add(stanza("0.5"), "other", preferred=True)
    assert index.candidate("a").version == "0.5"
    assert index.find("a=1.9").base == "base"


@pytest.mark.boot
def test_debians_own_archive_gives_what_apt_gives(tmp_path, monkeypatch):
    """Optional: the machine's own mirror, with Debian's signatures."""
    found = [s for text in sources._machine_files(sources.ETC) for s in sources._parse(text)]
    plain = [s for s in found if s.uris and s.uris[0].startswith("http")]
    if shutil.which("apt-get") is None or not plain:
        pytest.skip("no Debian mirror is known here")
    from ringzero.image.packages import Apt

    monkeypatch.setattr(mirror, "mirror_sources", lambda suite=None: plain)
    try:
        own = Mirror(cache=tmp_path).resolve(["busybox-static"])
        theirs = Apt(cache=tmp_path).resolve(["busybox-static"])
    except HostError as fault:
        pytest.skip(fault.message)
    assert own == theirs
