"""Ports that lead to machines, by sockets of this process: turns, ends, waiting, draining."""

import contextlib
import socket
import threading
import time

import pytest

from ringzero.config.ports import Forward
from ringzero.deployment import balancer
from ringzero.deployment.balancer import Balancer
from ringzero.errors import ConflictError
from tests.deployment.conftest import until


class Backend:
    """Answers with its name, then with what it reads, until the other side's end."""

    def __init__(self, name):
        self.name, self.links = name, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.target = ("127.0.0.1", self.socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                link, _ = self.socket.accept()
                self.links.append(link)
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link):
        with contextlib.suppress(OSError), link:
            link.sendall(self.name)
            while data := link.recv(65536):
                link.sendall(data)

    def close(self):
        # A thread in accept(2) keeps the socket.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture
def made():
    with contextlib.ExitStack() as stack:
        found = Balancer()
        stack.callback(found.close)
        found.start()

        def backend(name):
            one = Backend(name)
            stack.callback(one.close)
            return one

        found.backend = backend
        found.port = found.listen("web", Forward(0, 80)).port
        yield found


def connect(port):
    return socket.create_connection(("127.0.0.1", port), 20)


def ask(port, data=b""):
    """Return all that is answered to all that is said."""
    with connect(port) as link:
        threading.Thread(target=_say, args=(link, data), daemon=True).start()
        got = b""
        while more := link.recv(65536):
            got += more
        return got


def _say(link, data):
    link.sendall(data)
    link.shutdown(socket.SHUT_WR)


def test_in_turn(made):
    one, two = made.backend(b"1"), made.backend(b"2")
    made.lead("web", [one.target, two.target])
    assert sorted(ask(made.port, b"x") for _ in range(6)) == [b"1x"] * 3 + [b"2x"] * 3
    until(lambda: made.counters()["web"]["open"] == 0)
    assert made.counters()["web"] == {"connections": 6, "open": 0, "waiting": 0, "lost": 0}


def test_much_passes_both_ways(made):
    one = made.backend(b"")
    made.lead("web", [one.target])
    data = bytes(range(256)) * 20_000
    assert ask(made.port, data) == data


def test_a_side_that_does_not_read_is_waited_for(made):
    with socket.create_server(("127.0.0.1", 0)) as server:
        made.lead("web", [server.getsockname()])
        with connect(made.port) as client:
            inner, _ = server.accept()
            client.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 64 << 20:
                    sent += client.send(bytes(1 << 20))
            # The kernel's buffers and ours, not all there is.
            assert sent < 64 << 20
            client.settimeout(20)
            with inner:
                inner.settimeout(20)
                got = 0
                while got < sent:
                    got += len(inner.recv(1 << 20))


def test_who_refuses_is_passed_over(made):
    one, gone = made.backend(b"1"), made.backend(b"2")
    gone.close()
    made.lead("web", [gone.target, one.target])
    assert [ask(made.port) for _ in range(4)] == [b"1"] * 4


def test_a_connection_waits_for_a_machine(made):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(made.port, b"x")))
    thread.start()
    until(lambda: made.counters()["web"]["waiting"])
    # A client that goes is forgotten.
    other = connect(made.port)
    until(lambda: made.counters()["web"]["waiting"] == 2)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    other.close()
    until(lambda: made.counters()["web"]["waiting"] == 1)
    made.lead("web", [made.backend(b"1").target])
    thread.join()
    assert answers == [b"1x"]


def test_and_not_for_ever(made, monkeypatch):
    monkeypatch.setattr(balancer, "WAIT", 0.05)
    with connect(made.port) as link, pytest.raises(ConnectionResetError):
        link.recv(1)


def test_draining(made):
    old, new = made.backend(b"1"), made.backend(b"2")
    made.lead("web", [old.target])
    link = connect(made.port)
    assert link.recv(1) == b"1"
    made.lead("web", [new.target])
    assert ask(made.port) == b"2"
    over = threading.Event()

    def drain():
        made.drain([old.target], 20)
        over.set()

    threading.Thread(target=drain).start()
    link.sendall(b"still")
    assert link.recv(5) == b"still"
    assert not over.wait(0.2)
    link.close()
    assert over.wait(20)
    # And no longer than that.
    made.lead("web", [old.target])
    with connect(made.port) as link:
        assert link.recv(1) == b"1"
        made.drain([old.target], 0.05)
        with pytest.raises(ConnectionResetError):
            link.recv(1)
    assert made.counters()["web"]["lost"] == 1


def test_a_machine_that_dies_is_told_to_the_client(made):
    with socket.create_server(("127.0.0.1", 0)) as server:
        made.lead("web", [server.getsockname()])
        with connect(made.port) as link:
            inner, _ = server.accept()
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            inner.close()
            with pytest.raises(ConnectionResetError):
                link.recv(1)
    until(lambda: made.counters()["web"]["open"] == 0)


def test_ports_that_are_taken_and_shut(made):
    with pytest.raises(ConflictError, match="is taken"):
        made.listen("other", Forward(made.port, 80))
    made.shut("web")
    with pytest.raises(ConnectionRefusedError):
        connect(made.port)
    assert made.listen("web", Forward(made.port, 80)).port == made.port


def test_nothing_spins(made):
    """Half-closed connections, and clients that wait, cost no CPU."""
    one = made.backend(b"1")
    with connect(made.port) as waiting:
        made.lead("web", [one.target])
        made.lead("web", [])
        with connect(made.port) as idle:
            idle.shutdown(socket.SHUT_WR)
            until(lambda: made.counters()["web"]["waiting"])
            began = time.process_time()
            time.sleep(0.3)
            assert time.process_time() - began < 0.2
            waiting.recv(1)
