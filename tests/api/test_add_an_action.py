"""docs/add-an-action.md, step by step: a declaration, a handler and a verb are all it takes."""

import json
from typing import Annotated

import pytest

from ringzero.api.action import Scope, action, declared
from ringzero.api.machine import MachineActions
from ringzero.api.table import ACTIONS
from ringzero.api.values import Status
from ringzero.cli import main as cli
from ringzero.cli.action_verb import MachineVerb
from ringzero.cli.verb import VERBS
from ringzero.control.host import claims, directory
from ringzero.control.host.client import RemoteMachine
from ringzero.control.host.records import StatusRecord, save
from ringzero.control.machine.server import Server
from ringzero.errors import ConflictError
from tests.api.test_action import operation
from tests.control.conftest import root
from tests.control.fake import config

__all__ = ["root"]


# api/machine.py
class WithWave(MachineActions):
    @action(states=(Status.RUNNING,))
    def wave(
        self,
        times: Annotated[int, "how often"] = 1,
        loud: Annotated[bool, "so that others hear it"] = False,
    ) -> list[str]:
        """Wave to the machine; return what it answered."""


# control/machine/actions.py
def wave(keeper, times, loud):
    return [keeper.name.upper() if loud else keeper.name] * times


class Client(RemoteMachine, WithWave):
    pass


class Owner:
    def __init__(self, name):
        self.name = name
        self.status = Status.RUNNING


@pytest.fixture
def owner(root, monkeypatch):
    monkeypatch.setitem(ACTIONS, "wave", declared(WithWave)["wave"])

    # cli/verbs/wave.py
    class Wave(MachineVerb):
        action = "wave"
        examples = "  ringzero wave --times 3 web\n"

    monkeypatch.setitem(VERBS._items, "wave", Wave)
    claim = claims.create("web", config())
    owner = Owner("web")
    save(StatusRecord("running", 0.0), claim.directory.file("status.json"))
    server = Server(claim.directory, owner, {"wave": wave})
    server.start()
    yield owner
    server.close(ConflictError("over"))
    claim.discard()


def test_client(owner):
    client = Client(directory.find("web"))
    assert client.wave() == ["web"]
    assert client.wave(2, loud=True) == ["WEB", "WEB"]
    owner.status = Status.PAUSED
    with pytest.raises(ConflictError, match="is paused; 'wave' needs one that is running"):
        client.wave()


def test_verb(owner, capsys):
    assert cli.main(["wave", "web"]) == 0
    assert capsys.readouterr().out == "web\n"
    assert cli.main(["wave", "--times", "2", "--loud", "--json", "web"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "web", "result": ["WEB", "WEB"]}]
    assert cli.main(["wave", "--help"]) == 0
    text = capsys.readouterr().out
    assert "how often (default: 1)" in text
    assert "Wave to the machine; return what it answered." in text


def test_door():
    described = operation(declared(WithWave)["wave"])
    assert described["requestBody"]["properties"]["times"]["type"] == "integer"
    assert declared(WithWave)["wave"].scope is Scope.MACHINE
