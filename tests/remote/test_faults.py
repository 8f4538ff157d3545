"""Servers that leave, say half, say nonsense or nothing; certificates; bytes of a stranger."""

import contextlib
import json
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.api.action import Stream
from ringzero.api.table import get
from ringzero.errors import (
    ControlError,
    HostError,
    InvalidValueError,
    NotFoundError,
    ProtocolError,
    RingzeroError,
    UnauthorizedError,
)
from ringzero.remote import Client, aio, endpoint, messages
from ringzero.remote.address import Address
from ringzero.remote.messages import Asked, Data, Exchange, Talk, Told
from tests.control.fake import Taker, start
from tests.doors.serving import Served
from tests.remote.conftest import attached

GOOD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
JUST = GOOD + b"content-length: 2\r\n\r\n[]"


class Stranger:
    """Answers the n-th connection with the n-th text, and leaves, or stays and says nothing."""

    def __init__(self, where, *answers, stays=False):
        self.path = str(where / "stranger.sock")
        self.asked = []
        self._answers = answers
        self._stays = stays
        self._left = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return Client(f"unix://{self.path}")

    def __exit__(self, *_):
        self._left.set()
        self._socket.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            for answer in self._answers:
                link = self._socket.accept()[0]
                with link:
                    self.asked.append(link.recv(65536))
                    link.sendall(answer)
                    if self._stays:
                        self._left.wait(30)


@pytest.mark.parametrize(
    "answer, kind, text",
    [
        (b"", ControlError, "ended before the answer"),
        (GOOD, ControlError, "ended before the answer"),
        (GOOD + b"content-length: 10\r\n\r\n[", ControlError, "ended within the answer"),
        (GOOD + b"transfer-encoding: chunked\r\n\r\n5\r\n[", ControlError, "ended within"),
        (b"220 mail.example.org ESMTP\r\n\r\n", ProtocolError, "no answer of HTTP"),
        (b"\0" * 100, ProtocolError, "no answer of HTTP"),
        (GOOD + b"content-length: 2\r\n\r\nno", ProtocolError, "no JSON"),
        (GOOD + b"content-length: 4\r\n\r\nnull", ProtocolError, "wrong type"),
        (GOOD + b"content-length: 3\r\n\r\n[1]", ProtocolError, "wrong type"),
        (b"HTTP/1.1 502 Bad\r\ncontent-length: 5\r\n\r\nproxy", ProtocolError, "status 502"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n[]", ProtocolError, "status 404"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, ProtocolError, "no answer of HTTP"),
    ],
)
def test_answers_that_are_none(tmp_path, answer, kind, text):
    with Stranger(tmp_path, answer) as host, pytest.raises(kind, match=text) as caught:
        host.snapshots()
    assert str(tmp_path) in caught.value.message or kind is ProtocolError


def test_a_server_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(aio, "WAY", 0.2)
    monkeypatch.setattr("ringzero.api.action.Action.answer_time", lambda *_: 0.1)
    with (
        Stranger(tmp_path, b"", stays=True) as host,
        pytest.raises(ControlError, match="not answered within"),
    ):
        host.machines()


def test_what_only_reads_is_asked_again(tmp_path):
    stranger = Stranger(tmp_path, JUST, JUST, JUST)
    with stranger as host:
        assert host.machines() == host.machines() == []
        # What changes something is sent once: whether it was done is not known.
        time.sleep(0.05)
        with pytest.raises(RingzeroError):
            host.begin("fork", machine="web")
    assert len(stranger.asked) == 3


@pytest.mark.parametrize(
    "answer, kind, text",
    [
        (b"", ControlError, "ended before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", RingzeroError, "status 200"),
        (
            b"HTTP/1.1 101 Yes\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
            ProtocolError,
            "WebSocket",
        ),
        (b"nonsense\r\n\r\n", ProtocolError, "WebSocket"),
    ],
)
def test_streams_that_do_not_begin(tmp_path, answer, kind, text):
    with Stranger(tmp_path, answer) as host, pytest.raises(kind, match=text):
        host.machine("web").exec(Stream(), ["true"])


def test_a_server_that_goes_away_in_the_middle(fakes, root, tmp_path):
    start("web")
    served = Served(tmp_path / "serve", rest=[str(tmp_path / "rest.sock")])
    with served, Client(f"unix://{served.path}") as host:
        taker = Taker()
        thread, faults = attached(host.machine("web"), taker)
        served.end()
        thread.join(20)
        assert not thread.is_alive()
        assert isinstance(faults[0], ControlError)
        taker.link.send(b"nobody hears it")
        taker.link.close()
        with pytest.raises(ControlError, match="serve"):
            host.machines()
    # And it may come again.
    with (
        Served(tmp_path / "serve", rest=[str(tmp_path / "rest.sock")]) as again,
        Client(f"unix://{again.path}") as host,
    ):
        assert host.machine("web").ping() == "running"


def test_a_kept_connection_that_the_server_ended(fakes, root, tmp_path, monkeypatch):
    from ringzero.doors.http import connection

    monkeypatch.setattr(connection, "_IDLE", 0.2)
    with (
        Served(tmp_path / "serve", rest=[str(tmp_path / "rest.sock")]) as served,
        Client(f"unix://{served.path}") as host,
    ):
        for _ in range(3):
            assert host.machines() == []
            time.sleep(0.4)
        with pytest.raises(NotFoundError):
            host.machine("nobody").start()


def test_certificates(fakes, root, tmp_path, certificate):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with Served(tmp_path / "serve", certificate, rest=["127.0.0.1:0"]) as served:
        url = f"https://{served.path}"
        with Client(url) as host, pytest.raises(HostError, match="not trusted") as caught:
            host.machines()
        assert "--cacert" in caught.value.hint
        with Client(url, authorities=certificate.certificate) as host:
            with pytest.raises(UnauthorizedError):
                host.machines()
            with pytest.raises(UnauthorizedError):
                host.machine("web").exec(Stream(), ["true"])
        with pytest.raises(InvalidValueError, match="has no certificate"):
            Client(url, authorities=wrong)
        with pytest.raises(HostError):
            Client(url, authorities=tmp_path / "none.pem")


def test_hosts_that_are_not_there(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"https://127.0.0.1:{port}", f"unix://{tmp_path}/none"):
        with Client(url) as host, pytest.raises(ControlError, match="cannot be spoken with") as e:
            host.machines()
        assert "ringzero serve" in e.value.hint
    # One who takes the connection and does not speak TLS.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(endpoint, "CONNECT", 0.3)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url) as host, pytest.raises(ControlError, match="does not answer"):
            host.machines()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ssh://ana@lab", Address("ssh", "lab", None, "ana")),
        ("ssh://[::1]:22/a%20b/ringzero", Address("ssh", "::1", 22, "", "/a b/ringzero")),
        ("https://lab", Address("https", "lab", 443)),
        ("https://[::1]:8443/", Address("https", "::1", 8443)),
        ("unix:///run/x.sock", Address("unix", path="/run/x.sock")),
    ],
)  # fmt: skip
def test_addresses(text, expected):
    assert Address.parse(text) == expected


@given(st.text(max_size=60))
def test_any_address(text):
    for before in ("", "ssh://", "https://", "unix://"):
        with contextlib.suppress(InvalidValueError):
            found = Address.parse(before + text)
            assert found.scheme != "ssh" or "-" not in (found.host[:1], found.user[:1])


def exchanged(*parts):
    exchange = Exchange("localhost", "token")
    exchange.request(Asked("GET", "/v1/machines"), {})
    for part in (*parts, b""):
        answer = exchange.feed(part)
        if answer is not None:
            return messages.read(answer)
    raise AssertionError("neither an answer nor an error")


@given(st.binary(max_size=300), st.sampled_from([b"", GOOD, GOOD + b"\r\n", JUST[:-3]]))
def test_any_bytes_are_an_answer_or_an_error(data, before):
    with contextlib.suppress(RingzeroError):
        exchanged(before, data)


@given(st.lists(st.binary(max_size=40), max_size=8), st.booleans())
def test_any_bytes_on_a_websocket_are_items_or_an_error(parts, accepts):
    talk = Talk("localhost", None)
    asked = talk.begin("/v1/events")
    if accepts:
        assert list(talk.feed(accepting(asked))) == []
        assert talk.open
    with contextlib.suppress(RingzeroError):
        for part in (*parts, b""):
            for item in talk.feed(part):
                assert isinstance(item, Data | Told)
        raise AssertionError("the end is an error, where nothing was said of it")


def accepting(asked):
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection

    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(asked)
    list(server.events())
    return server.send(AcceptConnection())


def test_requests():
    asked = messages.ask(get("machines"), None, {"status": "running"})
    assert asked == Asked("GET", "/v1/machines?status=running")
    asked = messages.ask(get("pause"), "a/../b?", {})
    assert (asked.method, asked.target) == ("POST", "/v1/machines/a%2F..%2Fb%3F/pause")
    target, first = messages.open_stream(get("console"), "web", {"watch": True, "line": "ü&"})
    assert (target, first) == ("/v1/machines/web/console?watch=true&line=%C3%BC%26", None)
    target, first = messages.open_stream(get("exec"), "web", {"words": ["ls"]})
    assert (target, json.loads(first)) == ("/v1/machines/web/exec", {"words": ["ls"]})
