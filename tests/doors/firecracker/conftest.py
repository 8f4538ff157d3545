import json

import pytest

from ringzero.doors.firecracker.configuration import Configuration
from ringzero.doors.firecracker.instance import Instance
from ringzero.doors.firecracker.logs import Log
from ringzero.doors.firecracker.metadata import Metadata
from ringzero.doors.firecracker.metrics import Metrics
from ringzero.doors.firecracker.service import Service
from tests.doors.firecracker import microvm, recorded
from tests.engine.fake import FakeEngine

LIMIT = 1000


class Asked:
    """The API without a socket: `ask` returns (status, JSON)."""

    def __init__(self, place):
        self.log, self.metrics = Log("m1"), Metrics("m1")
        self.log.configure({"log_path": str(place / "log")})
        self.console = bytearray()
        self.instance = Instance(
            "m1",
            Configuration("user"),
            self.log,
            self.metrics,
            Metadata(LIMIT),
            console=self,
            ended=lambda end: None,
        )
        self.service = Service(self.instance, self.log, self.metrics, LIMIT)

    def configure(self, fields):
        pass

    def write(self, data):
        self.console += data

    def raw(self, method, path, data=b""):
        return self.service.answer(method, path, data)

    def ask(self, method, path, body=None):
        response = self.raw(method, path, b"" if body is None else json.dumps(body).encode())
        assert response.type == "application/json"
        return response.status, json.loads(response.content) if response.content else None

    def put(self, path, **body):
        assert self.ask("PUT", path, body) == (204, None)

    def fault(self, method, path, body=None):
        """Return the sentence with which something is refused."""
        status, answer = self.ask(method, path, body)
        assert status in (400, 413)
        assert list(answer) == ["fault_message"]
        return answer["fault_message"]


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The API of a machine without a processor."""
    from ringzero.engine import select

    monkeypatch.setattr(select, "choose", lambda name, architecture: FakeEngine())
    asked = Asked(tmp_path)
    yield asked
    asked.instance.close()
    asked.service.close()
    asked.log.close()


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """A program for clients, whose exchanges are held against the public API at the end."""
    notebook = tmp_path / "exchanges"
    monkeypatch.setenv("RECORD", str(notebook))
    yield recorded.program(tmp_path)
    assert recorded.check(notebook)


@pytest.fixture(scope="session")
def guest(tmp_path_factory):
    return microvm.guest(tmp_path_factory.mktemp("microvm"))
