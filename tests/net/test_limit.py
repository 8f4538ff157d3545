"""Rate limits: what passes in which time, and nothing that is lost."""

import threading
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.core.buckets import Bucket, Tokens
from ringzero.core.frames import GSO_TCP4, Frame
from ringzero.errors import InvalidValueError
from ringzero.net.limit import LimitedPort, Limits, packets_of


class Port:
    def __init__(self, frames=()):
        self.waiting = deque(frames)
        self.got = []

    def fetch(self, handle, limit, *, coalesce=False):
        for _ in range(min(limit, len(self.waiting))):
            handle(self.waiting.popleft())
        return bool(self.waiting)

    def deliver(self, frames):
        self.got += frames
        return len(frames)

    def settle(self):
        pass

    def set_link(self, up):
        pass


@given(
    st.integers(1, 5000),
    st.floats(0.01, 10),
    st.integers(0, 5000),
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 0.5)), min_size=1, max_size=60),
)
def test_no_more_than_the_rate(size, refill, burst, wishes):
    tokens = Tokens(Bucket(size, refill, burst), 0.0)
    now = passed = 0
    for count, pause in wishes:
        now += pause
        wait = tokens.wait(now)
        while wait:
            now += wait + 1e-6
            again = tokens.wait(now)
            # Who has to wait for longer than an hour asks after each.
            assert again == 0 or wait == 3600, "it is said how long to wait"
            wait = again
        tokens.take(count)
        passed += count
        # One frame may overdraw.
        assert passed <= size + burst + now * size / refill + count + 1


@pytest.mark.parametrize("bucket", [Bucket(0, 1), Bucket(1, 0), Bucket(1, 1, -1)])
def test_rates_that_are_none(bucket):
    with pytest.raises(InvalidValueError):
        LimitedPort(Port(), lambda: None, sent=Limits(bytes=bucket))


def test_packets_of_a_frame():
    assert packets_of(Frame(bytes(60))) == 1
    assert packets_of(Frame(bytes(54), [bytes(14600)], 34, 16, GSO_TCP4, 1460)) == 11


def test_without_limits_nothing_is_in_between():
    inner = Port([Frame(bytes(60))] * 5)
    port = LimitedPort(inner, lambda: None)
    got = []
    assert port.fetch(got.append, 3) and len(got) == 3
    assert port.deliver(deque([Frame(b"x")] * 4)) == 4
    port.close()


def test_what_is_over_the_limit_waits():
    now = [0.0]
    inner = Port([Frame(bytes(100))] * 50)
    port = LimitedPort(
        inner,
        lambda: None,
        sent=Limits(packets=Bucket(10, 1.0)),
        received=Limits(bytes=Bucket(1000, 1.0)),
        clock=lambda: now[0],
    )
    got = []
    assert not port.fetch(got.append, 64) and len(got) == 10
    assert not port.fetch(got.append, 64) and len(got) == 10
    now[0] += 0.5
    port.fetch(got.append, 64)
    assert len(got) == 15 and len(inner.waiting) == 35
    outbox = deque([Frame(bytes(100))] * 50)
    assert port.deliver(outbox) == 10 and port.deliver(outbox) == 0
    now[0] += 0.3
    assert port.deliver(outbox) == 3 and len(inner.got) == 13
    port.close()


def test_the_network_is_woken_when_there_is_room():
    woken = threading.Event()
    port = LimitedPort(Port(), woken.set, received=Limits(packets=Bucket(10, 0.2)))
    began = time.monotonic()
    sent = 0
    while sent < 20:
        taken = port.deliver([Frame(b"x")] * (20 - sent))
        sent += taken
        if sent < 20:
            assert woken.wait(10)
            woken.clear()
    assert time.monotonic() - began >= 0.15
    port.close()


def test_limits_may_change_while_frames_pass():
    woken = []
    port = Port()
    limited = LimitedPort(port, lambda: woken.append(1), clock=lambda: 0.0)
    frames = [Frame(bytes(60))] * 5
    assert limited.deliver(frames) == 5
    limited.limit(Limits(), Limits(packets=Bucket(2, 1.0)))
    assert limited.deliver(frames) == 2
    # Whoever waits hears that it may try again.
    assert woken
    limited.limit(Limits(), Limits())
    assert limited.deliver(frames) == 5
    limited.close()


def test_nobody_waits_for_longer_than_a_thread_can():
    tokens = Tokens(Bucket(1, 2.0**63 / 1000), 0.0)
    tokens.take(1 << 30)
    assert 0 < tokens.wait(0.0) <= 3600
