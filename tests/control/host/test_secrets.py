import pytest

from ringzero.control.host import claims, secrets
from ringzero.errors import HostError, MissingFileError
from tests.control.fake import config

pytestmark = pytest.mark.usefixtures("root")


def command_of(command, sources):
    claim = claims.create("web", config(), command=command, secrets=sources)
    try:
        return secrets.command_of(claim.directory.machine())
    finally:
        claim.discard()


def test_values_come_where_their_names_stand(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"a b\r\n")
    monkeypatch.setenv("HERE", "c=d")
    sources = {"A": {"file": str(tmp_path / "file")}, "B": {"env": "HERE"}}
    assert secrets.words(sources) == ["A=", "B="]
    found = command_of(("env", *secrets.words(sources), "echo", "A="), sources)
    assert found == ("env", "A=a b", "B=c=d", "echo", "A=")
    found = command_of((*secrets.words(sources, "--env="), "--", "echo"), sources)
    assert found == ("--env=A=a b", "--env=B=c=d", "--", "echo")
    assert command_of(("echo",), {}) == ("echo",)


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(HostError, match="no variable NOWHERE is set"):
        command_of(("env", "A="), {"A": {"env": "NOWHERE"}})
    with pytest.raises(MissingFileError, match="does not exist"):
        command_of(("env", "A="), {"A": {"file": str(tmp_path / "none")}})
    for data in (b"a\0b", bytes(1 << 17)):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(HostError, match="no text"):
            command_of(("env", "A="), {"A": {"file": str(tmp_path / "bad")}})
    with pytest.raises(HostError, match="read the secret A"):
        command_of(("env", "A="), {"A": {"file": str(tmp_path)}})
