"""The event loop: turns on other threads, timers, and who is woken."""

import os
import socket
import threading
import time

import pytest

from ringzero.net.proxy.loop import READ, EventLoop

WAIT = 10


class Rig:
    """A loop whose rounds are noted, with the threads that had them."""

    def __init__(self):
        self.rounds = []
        self.next = None
        self.happened = threading.Event()
        self.loop = EventLoop("test", lambda now: None, self._round)
        self.hold = None

    def _round(self):
        self.rounds.append(threading.current_thread().name)
        self.happened.set()
        if self.hold is not None:
            self.hold.wait(WAIT)
        return self.next

    def settled(self):
        """Wait until the thread sleeps."""
        deadline = time.monotonic() + WAIT
        while not self.loop._sleeping or self.loop._turn.locked():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def wait_round(self):
        assert self.happened.wait(WAIT)
        self.happened.clear()


@pytest.fixture
def rig():
    rig = Rig()
    rig.loop.start()
    rig.loop.wake()
    rig.wait_round()
    rig.settled()
    yield rig
    if rig.hold is not None:
        rig.hold.set()
    rig.loop.close()
    assert not rig.loop._thread.is_alive()


def test_a_turn_on_the_callers_thread(rig):
    rig.rounds.clear()
    assert rig.loop.take_turn()
    assert rig.rounds == [threading.current_thread().name]


def test_no_turn_while_the_loop_works(rig):
    rig.hold = threading.Event()
    rig.happened.clear()
    rig.loop.wake()
    rig.wait_round()
    assert not rig.loop.take_turn()
    rig.loop.wake()
    rig.hold.set()
    rig.wait_round()
    assert rig.rounds[-1] == "test", "it has the round that was asked for"


def test_a_turn_that_brings_something_forward_wakes_the_loop(rig):
    rig.happened.clear()
    rig.next = time.monotonic() + 0.05
    rig.rounds.clear()
    assert rig.loop.take_turn()
    rig.next = None
    deadline = time.monotonic() + WAIT
    while "test" not in rig.rounds:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_descriptors_timers_and_calls(rig):
    ours, theirs = socket.socketpair()
    seen = []
    with ours, theirs:
        rig.loop.call(lambda: rig.loop.watch(ours, READ, lambda _: seen.append(ours.recv(10))))
        rig.loop.call(lambda: rig.loop.at(rig.loop.now + 0.01, lambda: seen.append("timer")))
        rig.loop.call(lambda: rig.loop.at(rig.loop.now + 0.01, lambda: seen.append("no")).cancel())
        theirs.send(b"hello")
        deadline = time.monotonic() + WAIT
        while len(seen) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert sorted(map(str, seen)) == ["b'hello'", "timer"]
        rig.loop.call(lambda: rig.loop.forget(ours))
        rig.settled()


def test_a_closed_loop_has_no_turns_and_gives_back_what_it_held():
    before = len(os.listdir("/proc/self/fd"))
    rig = Rig()
    rig.loop.start()
    rig.loop.close()
    rig.loop.close()
    rig.loop.wake()
    assert not rig.loop.take_turn()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_called_before_the_start_is_done_when_it_returns():
    rig, done = Rig(), []

    def call():
        done.append(("call", threading.current_thread()))
        rig.loop.at(rig.loop.now, lambda: done.append(("due", threading.current_thread())))
        rig.loop.at(rig.loop.now + 3600, lambda: done.append(("later", None)))

    rig.loop.call(call)
    try:
        rig.loop.start()
        own = threading.current_thread()
        assert done == [("call", own), ("due", own)]
        assert rig.rounds[0] == own.name
    finally:
        rig.loop.close()
