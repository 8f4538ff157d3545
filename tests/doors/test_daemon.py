"""The process itself: where it listens, how it begins and ends, who is let in."""

import contextlib
import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time

import pytest

from ringzero.doors import autostart, daemon
from ringzero.doors.contract import DOORS, Address, Door
from ringzero.doors.http import connection
from ringzero.doors.listeners import Certificate
from ringzero.errors import ConflictError, HostError, InvalidValueError
from tests.control.fake import start
from tests.doors.serving import Client, Served


def test_addresses():
    assert Address.parse("/run/x").path.as_posix() == "/run/x"
    assert Address.parse("./x").path.is_absolute()
    assert Address.parse(":8443") == Address(host="127.0.0.1", port=8443)
    assert Address.parse("[::1]:1") == Address(host="::1", port=1)
    assert str(Address.parse("[::1]:1")) == "[::1]:1"
    for wrong in ("", "x", ":", "a:b", "h:70000", "h:-1"):
        with pytest.raises(InvalidValueError):
            Address.parse(wrong)


@pytest.mark.parametrize("name", DOORS.names())
def test_every_door(name):
    door = DOORS.get(name)
    assert issubclass(door, Door)
    assert door.summary
    assert door.addresses()
    # What `ringzero serve --help` says of it, without loading it.
    from ringzero.cli.verbs import serve

    assert serve._DOORS[name]


def test_the_socket_is_the_users_own(served, tmp_path):
    mode = (tmp_path / "rest.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert served.told == [f"rest: {tmp_path / 'rest.sock'}"]


def test_one_at_a_time(served, tmp_path):
    with pytest.raises(ConflictError, match="runs already"):
        Served(served.where, rest=[str(tmp_path / "other")]).__enter__()
    with pytest.raises(ConflictError, match="somebody listens"):
        Served(tmp_path / "elsewhere", rest=[served.path]).__enter__()
    assert served.ask("GET", "/v1/machines") == (200, [])


def test_tcp_wants_tls(fakes, tmp_path):
    with pytest.raises(InvalidValueError, match="wants TLS"):
        Served(tmp_path / "serve", rest=["127.0.0.1:0"]).__enter__()
    wrong = tmp_path / "wrong.pem"
    with pytest.raises(HostError):
        Certificate(wrong, wrong).context()
    wrong.write_text("x")
    with pytest.raises(InvalidValueError, match="no certificate"):
        Certificate(wrong, wrong).context()


class Secure(Client):
    """The standard library's client over TLS."""

    def __init__(self, port, certificate):
        super().__init__("")
        self._port = port
        self._context = ssl.create_default_context(cafile=certificate.certificate)

    def connect(self):
        link = socket.create_connection(("127.0.0.1", self._port), 20)
        self.sock = self._context.wrap_socket(link, server_hostname="localhost")


def test_over_tcp_with_tls_and_a_token(fakes, root, tmp_path, certificate):
    from ringzero.doors.tokens import Tokens

    text = Tokens(tmp_path / "serve").create("laptop", reads=False)
    with Served(tmp_path / "serve", certificate, rest=["127.0.0.1:0"]) as served:
        port = int(served.path.rpartition(":")[2])
        client = Secure(port, certificate)
        assert client.ask("GET", "/v1/machines")[0] == 401
        assert client.ask("GET", "/v1/machines", Authorization=f"Bearer {text}")[1] == []
        client.close()
        # One who does not speak TLS, or says nothing, is nobody's trouble.
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"GET /v1/machines HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"HTTP" not in link.recv(1000)
        with socket.create_connection(("127.0.0.1", port)):
            client = Secure(port, certificate)
            assert client.ask("GET", "/v1/version")[0] == 401
            client.close()


def test_many_connections_come_and_go(served):
    start("web")
    before = len(os.listdir("/proc/self/fd"))
    idle = [served.connect() for _ in range(100)]
    for _ in range(3):
        clients = [Client(served.path) for _ in range(50)]
        for client in clients:
            assert client.ask("GET", "/v1/machines/web/ping")[1] == "running"
        for client in clients:
            client.close()
    for link in idle:
        link.close()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before + 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command(fakes, root, tmp_path):
    """Killed in the middle it leaves nothing in the way, and machines go on."""
    path = tmp_path / "s"
    environment = os.environ | {
        "RINGZERO_SERVE_DIR": str(tmp_path / "serve"),
        "RINGZERO_SERVE_SOCKET": str(path),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    start("web")
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 0)):
        process = subprocess.Popen(
            [sys.executable, "-m", "ringzero", "serve", "--libvirt", tmp_path / "lv"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            told = [process.stderr.readline() for _ in range(3)]
            assert told[0] == f"ringzero: rest: {path}\n"
            assert told[1:] == [
                f"ringzero: libvirt: {tmp_path}/lv\n", f"ringzero: libvirt: {tmp_path}/lv-ro\n",
            ]  # fmt: skip
            client = Client(str(path))
            assert client.ask("GET", "/v1/machines/web/ping")[1] == "running"
            process.send_signal(number)
            assert process.wait(20) == code
            assert process.stderr.read() == ""
            client.close()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
    assert not path.exists()


def test_machines_start_by_themselves_once_after_a_boot(fakes, root, tmp_path):
    from ringzero.config.tree import config_to_tree
    from ringzero.control.host import client
    from tests.control.fake import config

    host = client.host()
    for name, line in (("web", ""), ("bad", "bad"), ("db", "")):
        host.define(config_to_tree(config(line)), name=name)
    for name in ("web", "bad"):
        host.machine(name).describe(autostart=True)
    where = tmp_path / "serve"
    with Served(where, rest=[str(tmp_path / "s")]) as served:
        deadline = time.monotonic() + 20
        while len(served.told) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sorted(served.told[1:]) == ["bad does not start: not a kernel", "started web"]
        assert served.ask("GET", "/v1/machines/db")[1]["status"] == "defined"
    host.machine("web").stop()
    with Served(where, rest=[str(tmp_path / "s")]) as served:
        assert served.ask("GET", "/v1/machines/web")[1]["status"] == "ended"
    assert client.machine("web").inspect()["status"] == "ended"


def test_a_daemon_that_was_killed_while_it_started_machines_begins_anew(tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(host):
        raise KilledError

    monkeypatch.setattr(autostart, "start_all", killed)
    with pytest.raises(KilledError):
        autostart.start_once(None, tmp_path)
    monkeypatch.setattr(autostart, "start_all", lambda host: [("web", "")])
    assert autostart.start_once(None, tmp_path) == [("web", "")]
    assert autostart.start_once(None, tmp_path) == []


def test_one_who_reads_nothing_keeps_no_connection_open(served, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)
    monkeypatch.setattr(daemon, "_END", 0.2)
    with served.connect() as link:
        link.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
        poller = select.poll()
        # Nothing is read, and yet the other side is closed.
        poller.register(link, 0)
        assert poller.poll(20_000)


def test_there_are_no_more_connections_than_descriptors_allow(fakes, root, tmp_path, monkeypatch):
    monkeypatch.setattr(daemon, "_raise_limit", lambda: 6)
    with Served(tmp_path / "serve", rest=[str(tmp_path / "s")]) as served:
        clients = [Client(served.path) for _ in range(3)]
        for client in clients:
            assert client.ask("GET", "/v1/version")[0] == 200
        with served.connect() as link:
            assert link.recv(1) == b""
        clients[0].close()
        deadline = time.monotonic() + 20
        while True:
            with served.connect() as link, contextlib.suppress(ConnectionError):
                link.sendall(b"GET /v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
                if link.recv(1):
                    break
            assert time.monotonic() < deadline
        for client in clients:
            client.close()
