"""A machine's socket: what streams is sent in large pieces, and who waits is woken."""

import os
import socket
import sys
import threading
import time

import pytest

from ringzero.api.protocol import (
    MAX_DATA,
    STDERR,
    STDIN,
    STDOUT,
    Data,
    Decoder,
    Message,
    encode_data,
)
from ringzero.api.table import get
from ringzero.api.values import Status
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.session import Session
from ringzero.control.machine import server
from ringzero.control.machine.server import HIGH, LOW, Call, Connection
from ringzero.errors import ControlError, RingzeroError

# Longer than anything here takes, in seconds.
PATIENCE = 20.0


@pytest.fixture
def ends():
    """A call, and its client's socket."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    call = Call(Connection(ours, None, "web", {}))
    yield call, theirs
    call.close()
    ours.close()
    theirs.close()


def frames(link):
    """Yield the frames that come, until the end."""
    decoder = Decoder()
    while data := link.recv(1 << 16):
        yield from decoder.feed(data)


def test_small_writes_become_large_frames_in_order(ends):
    call, link = ends
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    pieces = [(STDERR if n % 100 == 99 else STDOUT, os.urandom(100)) for n in range(4000)]
    for stream, data in pieces:
        assert call.write(stream, data)
    call.finish(7)
    *content, end = frames(link)
    assert end == Message({"result": 7})
    assert all(isinstance(frame, Data) and len(frame.content) <= MAX_DATA for frame in content)
    for stream in (STDOUT, STDERR):
        sent = b"".join(data for kind, data in pieces if kind == stream)
        assert b"".join(f.content for f in content if f.stream == stream) == sent
    # Between two outputs' turns, a hundred pieces at most are together.
    assert len(content) < len(pieces) // 10


def test_a_slow_client_is_felt_and_relieved(ends):
    call, link = ends
    pressed = []
    call.on_pressure = pressed.append
    while not pressed:
        assert call.write(STDOUT, bytes(1 << 16))
    assert pressed == [True]
    received = 0
    while received < HIGH - LOW:
        received += len(link.recv(1 << 16))
    link.settimeout(PATIENCE)
    while len(pressed) < 2:
        assert link.recv(1 << 16)
    assert pressed == [True, False]


def test_who_waits_for_room_is_woken(ends):
    call, _ = ends
    room = threading.Event()

    def make_room():
        time.sleep(0.05)
        call.wake()  # and there is none yet
        time.sleep(0.05)
        room.set()
        call.wake()

    threading.Thread(target=make_room).start()
    used = time.process_time()
    call.wait_until(room.is_set)
    assert room.is_set()
    assert time.process_time() - used < 0.05


@pytest.mark.parametrize("how", ["finish", "leave"])
def test_who_waits_for_room_hears_of_the_end(ends, how):
    call, link = ends
    end = (lambda: call.finish(None)) if how == "finish" else link.close
    threading.Timer(0.05, end).start()
    waiting = threading.Thread(target=call.wait_until, args=(lambda: False,))
    waiting.start()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    call.wake()


def test_what_comes_and_goes_at_once_is_whole(ends):
    """One thread reads, now in the middle of a frame and now not, while the other sends."""
    call, link = ends
    # Sends that have to wait often.
    call._connection._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    piece, count = os.urandom(8192), 2000

    def echo():
        for frame in call.frames():
            while not call.write(STDOUT, frame.content):
                time.sleep(0.001)

    def feed():
        whole = encode_data(STDIN, piece)
        for _ in range(count):
            link.sendall(whole[:100])
            link.sendall(whole[100:])

    for work in (echo, feed):
        threading.Thread(target=work, daemon=True).start()
    size, decoder = 0, Decoder()
    while size < count * len(piece):
        data = link.recv(1 << 16)
        assert data, f"ended after {size} bytes"
        size += sum(len(frame.content) for frame in decoder.feed(data))
    call.finish(None)


def test_who_stops_in_the_middle_of_a_frame_is_left(ends, monkeypatch):
    call, link = ends
    monkeypatch.setattr(server, "PATIENCE", 0.1)
    link.sendall(encode_data(STDIN, b"whole") + encode_data(STDIN, b"half")[:-1])
    frames = call.frames()
    assert next(frames).content == b"whole"
    with pytest.raises(TimeoutError):
        next(frames)


class Someone:
    """An owner of a server; `faults` are those that its threads ended with."""

    status = Status.RUNNING

    def __init__(self):
        self.faults = []
        self.told = threading.Event()

    def on_fault(self, fault):
        self.faults.append(fault)
        self.told.set()


def broken(*_arguments, **_named):
    raise LookupError("it is broken")


@pytest.fixture
def served(tmp_path):
    """A server in a machine's directory, and its owner."""
    directory = MachineDirectory(tmp_path / "web")
    directory.path.mkdir()
    owner = Someone()
    made = server.Server(directory, owner, {})
    made.start()
    yield made, owner, directory
    made.close(ControlError("over"))


def answer(directory):
    """Return what a client is told that asks for something."""
    with pytest.raises(RingzeroError) as caught, Session(directory) as session:
        session.call(get("pause"), {})
    return str(caught.value)


def test_a_fault_while_a_client_is_admitted_is_its_own(served, monkeypatch):
    _, owner, directory = served
    with monkeypatch.context() as patch:
        patch.setattr(server, "_is_ours", broken)
        assert "LookupError: it is broken" in answer(directory)
    assert "knows no action" in answer(directory), "others are served"
    assert not owner.faults


def test_a_fault_of_a_clients_thread_is_told_to_it(served, monkeypatch):
    _, owner, directory = served
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "frames", broken)
        assert "LookupError: it is broken" in answer(directory)
    assert "knows no action" in answer(directory)
    assert not owner.faults


def test_a_fault_of_the_thread_that_accepts_is_the_machines(served, monkeypatch):
    _, owner, directory = served
    monkeypatch.setattr(server.Server, "_admit", lambda self, link: sys.exit("it is broken"))
    with pytest.raises(ControlError):
        Session(directory, 0.5)
    assert owner.told.wait(PATIENCE)
    assert [str(fault) for fault in owner.faults] == ["it is broken"]


def test_a_fault_of_the_thread_that_sends_ends_the_conversation(ends):
    call, link = ends
    pressed = []

    def on_pressure(pressing):
        pressed.append(pressing)
        if not pressing:
            broken()

    call.on_pressure = on_pressure
    while not pressed:
        assert call.write(STDOUT, bytes(100_000))
    *_, end = frames(link)
    assert "LookupError: it is broken" in end.content["error"]["message"]
    assert not call.write(STDOUT, b"more")
