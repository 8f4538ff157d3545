"""The thread that settles copies at rest: whom it calls, and when it is there."""

import os
import threading
import time
import weakref

import pytest

from ringzero.vm import resting


class Machine:
    def __init__(self):
        self.settled = threading.Event()
        self.thread = None

    def settle(self):
        self.thread = threading.current_thread()
        self.settled.set()


@pytest.fixture
def settler(monkeypatch):
    monkeypatch.setattr(resting, "_settler", resting._Settler())
    monkeypatch.setattr(resting, "_PATIENCE", 0.2)


def test_each_is_settled_by_one_thread_of_its_own(settler):
    machines = [Machine() for _ in range(5)]
    for machine in machines:
        resting.settle_soon(weakref.ref(machine))
    assert all(machine.settled.wait(10) for machine in machines)
    (thread,) = {machine.thread for machine in machines}
    assert thread is not threading.current_thread()


def test_one_that_is_gone_is_passed_over(settler):
    gone, here = Machine(), Machine()
    resting.settle_soon(weakref.ref(gone))
    del gone
    resting.settle_soon(weakref.ref(here))
    assert here.settled.wait(10)


def test_a_machine_is_not_kept(settler):
    machine = Machine()
    resting.settle_soon(weakref.ref(machine))
    assert machine.settled.wait(10)
    found = weakref.ref(machine)
    del machine
    end = time.monotonic() + 10
    while found() is not None:
        assert time.monotonic() < end, "the thread keeps it"
        time.sleep(0.01)


def test_the_thread_ends_for_want_of_work_and_begins_again(settler):
    first, second = Machine(), Machine()
    resting.settle_soon(weakref.ref(first))
    assert first.settled.wait(10)
    first.thread.join(10)
    assert not first.thread.is_alive()
    resting.settle_soon(weakref.ref(second))
    assert second.settled.wait(10)


def test_a_forked_process_has_a_thread_of_its_own(settler):
    before = Machine()
    resting.settle_soon(weakref.ref(before))
    assert before.settled.wait(10)
    child = os.fork()
    if child == 0:
        machine = Machine()
        resting.settle_soon(weakref.ref(machine))
        os._exit(0 if machine.settled.wait(10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
