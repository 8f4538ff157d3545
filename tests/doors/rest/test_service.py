"""Every action over HTTP, as a client sees it that is not ours."""

import contextlib
import json
import threading
import time

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from ringzero.api.action import Scope
from ringzero.api.table import ACTIONS
from ringzero.config.tree import config_to_tree
from ringzero.doors.contract import Address
from ringzero.doors.rest import service
from ringzero.image import stored
from tests.control.fake import config, start
from tests.doors.serving import Client, Served


@pytest.fixture
def client(served):
    client = Client(served.path)
    yield client
    client.close()


def good(answer):
    status, told, _ = answer
    assert status == 200, told
    return told


def test_the_life_of_a_machine(client, monkeypatch):
    monkeypatch.setattr(stored, "images", list)
    assert good(client.ask("GET", "/v1/version"))["api"] == "v1"
    assert good(client.ask("GET", "/v1/machines")) == []
    tree = json.loads(json.dumps(config_to_tree(config(nets=("user",))), default=str))
    assert good(client.ask("POST", "/v1/machines", {"config": tree, "name": "web"})) == "web"
    assert good(client.ask("GET", "/v1/machines/web"))["status"] == "defined"
    status, told, _ = client.ask("POST", "/v1/machines/web/pause")
    assert (status, told["error"]["kind"]) == (409, "conflict")
    assert good(client.ask("POST", "/v1/machines/web/start")) is None
    assert good(client.ask("GET", "/v1/machines/web/ping")) == "running"
    assert good(client.ask("POST", "/v1/machines/web/fork", {"count": 2})) == ["web-1", "web-2"]
    names = [m["name"] for m in good(client.ask("GET", "/v1/machines?status=running"))]
    assert names == ["web", "web-1", "web-2"]
    end = good(client.ask("POST", "/v1/machines/web/exec", {"words": ["sh", "-c", "exit 3"]}))
    assert end["status"] == 3
    assert good(client.ask("POST", "/v1/machines/web/stop"))["reason"] == "poweroff"
    assert good(client.ask("DELETE", "/v1/machines/web")) is None
    assert client.ask("DELETE", "/v1/machines/web")[0] == 404
    assert good(client.ask("DELETE", "/v1/machines/web-1?force=1")) is None
    assert good(client.ask("GET", "/v1/images")) == []


def test_what_is_wrong_is_told(client):
    for method, path, body, status in (
        ("GET", "/", None, 404),
        ("GET", "/v2/machines", None, 404),
        ("GET", "/v1/machines/nobody", None, 404),
        ("POST", "/v1/machines/../pause", None, 400),
        ("PATCH", "/v1/machines", None, 405),
        ("GET", "/v1/machines?status=running&status=ended", None, 400),
        ("GET", "/v1/machines?colour=red", None, 400),
        ("POST", "/v1/machines", b"{", 400),
        ("POST", "/v1/machines", b"[]", 400),
        ("POST", "/v1/machines", b"[" * 100_000, 400),
        ("POST", "/v1/machines", b'"' + b"a" * 2_000_000 + b'"', 413),
        ("POST", "/v1/machines", {"config": {"memory": "lots"}}, 400),
        ("POST", "/v1/machines", {}, 400),
        ("GET", "/v1/jobs/7", None, 404),
        ("DELETE", "/v1/jobs/7", None, 404),
        ("GET", "/v1/events?after=soon", None, 400),
        ("POST", "/v1/machines/nobody/exec", {"words": ["ls"], "input": 3}, 400),
    ):
        found, told, answer = client.ask(method, path, body)
        assert found == status, (method, path, told)
        assert told["error"]["message"]
        if status == 405:
            assert "GET" in answer.headers["allow"]
        if answer.will_close:
            client.close()


def test_volumes(client, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    pool = {"name": "p", "path": str(tmp_path / "p")}
    assert good(client.ask("POST", "/v1/storage-pools", pool))["volumes"] == 0
    at = "/v1/storage-pools/p/volumes"
    made = {"name": "a.img", "capacity": 4 << 20, "format": "raw"}
    assert good(client.ask("POST", at, made))["capacity"] == 4 << 20
    assert client.ask("POST", at, made)[0] == 409
    data = bytes(range(256)) * 4096
    assert good(client.ask("PUT", f"{at}/a.img/content?offset=512", data))["name"] == "a.img"
    assert good(client.ask("GET", f"{at}/a.img/content?offset=512&length={len(data)}")) == data
    status, told, _ = client.ask("PUT", f"{at}/a.img/content?length=3", b"1234")
    assert (status, told["error"]["kind"]) == (400, "invalid-value")
    client.close()
    assert client.ask("GET", f"{at}/b/content")[0] == 404
    assert client.ask("GET", f"{at}/..%2fx/content")[0] == 400
    assert good(client.ask("DELETE", f"{at}/a.img")) is None
    assert good(client.ask("GET", at)) == []
    assert good(client.ask("PATCH", "/v1/storage-pools/p", {"active": False}))["active"] is False
    assert client.ask("GET", at)[0] == 409
    assert good(client.ask("DELETE", "/v1/storage-pools/p")) is None
    assert client.ask("GET", at)[0] == 404


def test_a_job(client):
    start("web")
    status, job, answer = client.ask("POST", "/v1/machines/web/stop", {}, Prefer="respond-async")
    assert status == 202
    path = answer.headers["location"]
    done = good(client.ask("GET", f"{path}?wait=20"))
    assert (done["status"], done["result"]["reason"]) == ("done", "poweroff")
    assert [j["id"] for j in good(client.ask("GET", "/v1/jobs"))] == [job["id"]]
    status, job, _ = client.ask("POST", "/v1/machines/web/pause", {}, Prefer="respond-async")
    failed = good(client.ask("GET", f"/v1/jobs/{job['id']}?wait=20"))
    assert (failed["status"], failed["error"]["kind"]) == ("failed", "conflict")


def test_a_job_that_is_ended(client):
    start("web")
    _, job, _ = client.ask("GET", "/v1/machines/web/wait", None, Prefer="respond-async")
    assert good(client.ask("GET", f"/v1/jobs/{job['id']}?wait=0"))["status"] == "running"
    assert good(client.ask("DELETE", f"/v1/jobs/{job['id']}"))["status"] == "cancelled"
    assert good(client.ask("GET", "/v1/machines/web"))["status"] == "running"


class EventLines:
    """What a client that listens has heard."""

    def __init__(self, served, after=None, **headers):
        self.client = Client(served.path)
        query = "" if after is None else f"?after={after}"
        self.client.request("GET", f"/v1/events{query}", headers=headers)
        self.answer = self.client.getresponse()
        assert self.answer.status == 200
        assert self.answer.headers["content-type"] == "text/event-stream"

    def until(self, kind):
        found = []
        while not found or found[-1]["kind"] != kind:
            line = self.answer.readline()
            assert line, found
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        return found

    def close(self):
        self.client.close()


def test_events_for_many_and_for_one_who_comes_late(served):
    first, second = EventLines(served), EventLines(served)
    start("web")
    told = first.until("started")
    assert [event["kind"] for event in told] == ["created", "started"]
    assert second.until("started") == told
    served.ask("POST", "/v1/machines/web/kill")
    late = EventLines(served, after=told[0]["number"])
    heard = late.until("ended")
    assert next(event["kind"] for event in heard) == "started"
    assert heard[-1]["detail"]["exit"]["reason"] == "killed"
    again = EventLines(served, **{"Last-Event-ID": str(heard[-1]["number"] - 1)})
    assert again.until("ended") == heard[-1:]
    log = [json.loads(line) for line in (served.where / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in log][:2] == ["created", "started"]
    for each in (first, second, late, again):
        each.close()


class Socket:
    """A client's WebSocket."""

    def __init__(self, served, path, **headers):
        self.link = served.connect()
        self.ws = WSConnection(ConnectionType.CLIENT)
        extra = [(k.encode(), v.encode()) for k, v in headers.items()]
        self._write(Request(host="x", target=path, extra_headers=extra))
        self._waiting = []
        first = self.event()
        self.rejected = None
        if isinstance(first, RejectConnection):
            body = b""
            while isinstance(part := self.event(), RejectData):
                body += part.data
                if part.body_finished:
                    break
            self.rejected = (first.status_code, json.loads(body))
        else:
            assert isinstance(first, AcceptConnection)

    def _write(self, event):
        self.link.sendall(self.ws.send(event))

    def event(self):
        while not self._waiting:
            data = self.link.recv(65536)
            self.ws.receive_data(data or None)
            self._waiting += self.ws.events()
        return self._waiting.pop(0)

    def send(self, message):
        kind = TextMessage if isinstance(message, str) else BytesMessage
        self._write(kind(data=message))

    def talk(self):
        """Return all messages until the server closes, and the code."""
        found, whole = [], True
        while True:
            event = self.event()
            if isinstance(event, TextMessage | BytesMessage):
                if whole:
                    found.append(event.data)
                else:
                    found[-1] += event.data
                whole = event.message_finished
            elif isinstance(event, Ping):
                self._write(event.response())
            elif isinstance(event, CloseConnection):
                with contextlib.suppress(OSError):
                    self._write(event.response())
                self.link.close()
                return found, event.code


def test_a_command_over_a_websocket(served):
    start("web")
    socket = Socket(served, "/v1/machines/web/exec?words=cat&stdin=true")
    socket.send(b"\0hello")
    socket.send(b"\0")
    messages, code = socket.talk()
    assert code == 1000
    assert json.loads(messages[-1])["result"]["status"] in range(256)
    # The command in a first message.
    socket = Socket(served, "/v1/machines/web/exec")
    socket.send(json.dumps({"words": ["sh", "-c", "exit 3"]}))
    messages, code = socket.talk()
    assert (json.loads(messages[-1]), code) == ({"result": {"status": 3}}, 1000)


def test_websockets_that_are_refused(served):
    start("web")
    assert Socket(served, "/v1/machines/nobody/nothing").rejected[0] == 404
    assert Socket(served, "/v1/machines").rejected[0] == 400
    socket = Socket(served, "/v1/machines/nobody/exec?words=ls")
    messages, code = socket.talk()
    assert json.loads(messages[-1])["error"]["kind"] == "not-found"
    assert code == 1011
    for wrong in ("[]", "{", json.dumps({"words": "ls"}), b"\0abc"):
        socket = Socket(served, "/v1/machines/web/exec")
        socket.send(wrong)
        messages, code = socket.talk()
        assert json.loads(messages[-1])["error"]["kind"] == "invalid-value"


def test_the_console_over_a_websocket(served):
    start("web")
    socket = Socket(served, "/v1/machines/web/console")
    socket.send(b"\0typed\n")
    seen = b""
    while b"typed" not in seen:
        event = socket.event()
        if isinstance(event, BytesMessage):
            seen += event.data
    socket.link.close()
    # The conversation ends with its client.
    deadline = time.monotonic() + 10
    while any(t.name == "stream-console" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_only_reads_can_change_nothing(fakes, root, tmp_path):
    start("web")
    path = tmp_path / "read.sock"
    with Served(tmp_path / "serve", rest=[Address(path, reads=True)]) as served:
        for action in ACTIONS.values():
            at = f"/v1/{action.name}"
            if action.scope is Scope.MACHINE:
                at = f"/v1/machines/web/{action.name}"
            if not action.reads:
                status, told = served.ask("POST", at, {})
                assert (status, told["error"]["kind"]) == (403, "forbidden"), action.name
            if action.wants_stream and not action.reads:
                assert Socket(served, at).rejected[0] == 403
        status, told = served.ask("DELETE", "/v1/machines/web?force=true")
        assert status == 403
        assert served.ask("GET", "/v1/machines/web")[1]["status"] == "running"
        assert served.ask("DELETE", "/v1/jobs/1")[0] in (403, 404)


def test_without_a_token_over_tcp(fakes, root, tmp_path, monkeypatch):
    """As a door over TCP sees it: nobody is known by the connection."""
    from ringzero.doors.tokens import Tokens

    where = tmp_path / "serve"
    text = Tokens(where).create("laptop", reads=False)
    reader = Tokens(where).create("ci", reads=True)
    monkeypatch.setattr("ringzero.doors.daemon.caller_behind", lambda link, reads: STRANGER)
    original = service.Service.__init__

    def unknown(self, manager, caller, *streams):
        original(self, manager, None, *streams)

    monkeypatch.setattr(service.Service, "__init__", unknown)
    with Served(where, rest=[str(tmp_path / "s")]) as served:
        client = Client(served.path)
        for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {text}"}):
            status, told, answer = client.ask("GET", "/v1/machines", None, **header)
            assert (status, told["error"]["kind"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert Socket(served, "/v1/events", **header).rejected[0] == 401
        assert client.ask("GET", "/v1/machines", None, Authorization=f"Bearer {text}")[0] == 200
        assert client.ask("GET", "/v1/machines", None, Authorization=f"bearer {reader}")[0] == 200
        status, told, _ = client.ask(
            "POST", "/v1/machines", {"config": {}}, Authorization=f"Bearer {reader}"
        )
        assert status == 403
        client.close()


STRANGER = object()


def test_texts_that_are_none_are_told(client, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    start("web")
    half = "\ud800"
    for method, path, body in (
        ("POST", "/v1/machines/web/exec", {"words": ["cat"], "input": half}),
        ("POST", "/v1/storage-pools/default/volumes", {"name": half, "capacity": 512}),
        ("POST", "/v1/storage-pools", {"name": "p", "path": half}),
        ("POST", "/v1/storage-pools", {"name": "p", "path": "/a\0b"}),
        ("GET", "/v1/events?after=" + "9" * 5000, None),
    ):
        status, told, _ = client.ask(method, path, body)
        assert (status, told["error"]["kind"]) == (400, "invalid-value"), path


def test_no_number_of_seconds(client):
    start("web")
    _, job, _ = client.ask("GET", "/v1/machines/web/wait", None, Prefer="respond-async")
    for text in ("nan", "-nan", "soon", ""):
        assert client.ask("GET", f"/v1/jobs/{job['id']}?wait={text}")[0] == 400
    assert good(client.ask("GET", f"/v1/jobs/{job['id']}?wait=-inf"))["status"] == "running"
    good(client.ask("DELETE", f"/v1/jobs/{job['id']}"))


def hurry(served, target):
    """Ask for something, and leave."""
    with served.connect() as link:
        link.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())


def test_who_leaves_at_once_takes_no_place_of_others(served, monkeypatch):
    monkeypatch.setattr("ringzero.doors.events._LISTENERS", 3)
    monkeypatch.setattr("ringzero.doors.manager._CONVERSATIONS", 3)
    monkeypatch.setattr("ringzero.doors.http.connection._LOOK", 0.02)
    monkeypatch.setattr(service, "_HEARTBEAT", 0.05)
    start("web")
    for _ in range(20):
        hurry(served, "/v1/events")
        hurry(served, "/v1/machines/web/wait")
    deadline = time.monotonic() + 20
    while served.ask("POST", "/v1/machines/web/exec", {"words": ["sh", "-c", "exit 3"]})[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while any(thread.name == "stream-wait" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while True:
        with served.connect() as link:
            link.sendall(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n")
            if link.recv(12) == b"HTTP/1.1 200":
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_only_reads_sees_no_disk(fakes, root, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    path = tmp_path / "read.sock"
    with Served(tmp_path / "serve", rest=[Address(path, reads=True)]) as served:
        for at in ("/v1/storage-pools/default/volumes/a/content", "/v1/machines/web/archive"):
            assert served.ask("GET", at)[0] == 403
        assert served.ask("GET", "/v1/storage-pools/default/volumes")[0] == 200


def test_a_stranger_hears_nothing_of_the_hosts_files(fakes, root, tmp_path, monkeypatch):
    from ringzero.doors.tokens import Tokens

    text = Tokens(tmp_path / "serve").create("laptop", reads=False)
    (tmp_path / "serve/tokens.json").chmod(0o666)
    original = service.Service.__init__
    monkeypatch.setattr(
        service.Service, "__init__", lambda self, m, _, *more: original(self, m, None, *more)
    )
    with Served(tmp_path / "serve", rest=[str(tmp_path / "s")]) as served:
        status, told = served.ask("GET", "/v1/machines", Authorization=f"Bearer {text}")
    assert status == 401
    assert str(tmp_path) not in json.dumps(told)
