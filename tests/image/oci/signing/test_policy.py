"""The file that says which images must be signed."""

from pathlib import Path

import pytest

from ringzero.errors import HostError, InvalidValueError, SignatureError
from ringzero.image.oci.reference import parse
from ringzero.image.oci.signing import policy

TEXT = b"""
default = "refuse"
[[image]]
name = "h:5000/team/*"
keys = ["team.pub", "/etc/release.pub"]
[[image]]
name = "docker.io/library/*"
unsigned = true
"""


def test_the_first_rule_counts():
    found = policy.read(TEXT, Path("/p/images.toml"))
    keys = (Path("/p/team.pub"), Path("/etc/release.pub"))
    assert found.keys(parse("h:5000/team/a/b:1")) == keys
    assert found.keys(parse("debian:12")) == ()
    for name in ("h:5000/other", "user/app", "oci:/layout", "h:5000/teams/a"):
        with pytest.raises(SignatureError, match="lets no image"):
            found.keys(parse(name))
    assert policy.read(b"", Path("p")).keys(parse("any")) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "policy p"),
        (b"= 1", "policy p"),
        (b"defualt = 1", "no defualt"),
        (b'default = "never"', "accept or refuse"),
        (b"image = 1", "[[image]]"),
        (b"image = [1]", "[[image]]"),
        (b'[[image]]\nname = "a"', "needs keys"),
        (b'[[image]]\nname = ""\nkeys = ["k"]', "needs a name"),
        (b'[[image]]\nname = "a"\nkeys = "k"', "needs keys"),
        (b'[[image]]\nname = "a"\nkeys = [1]', "needs keys"),
        (b'[[image]]\nname = "a"\nkeys = ["k"]\nunsigned = true', "needs keys"),
        (b'[[image]]\nname = "a"\nkey = ["k"]', "[[image]] has"),
    ],
)
def test_faults_are_told(text, said):
    with pytest.raises(InvalidValueError) as told:
        policy.read(text, Path("p"))
    assert said in told.value.message


def test_where_it_lies(tmp_path, monkeypatch):
    name = parse("any:1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert policy.required(name) == ()
    (tmp_path / "ringzero").mkdir()
    (tmp_path / "ringzero/images.toml").write_text('default = "refuse"')
    with pytest.raises(SignatureError):
        policy.required(name)
    monkeypatch.setenv("RINGZERO_IMAGE_POLICY", str(tmp_path / "missing"))
    with pytest.raises(HostError, match="read the policy"):
        policy.required(name)
