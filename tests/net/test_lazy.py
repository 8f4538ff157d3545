"""A network that is loaded by the first frame that wants it."""

import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import HostError
from ringzero.net.contract import NETWORKS, Network
from ringzero.net.lazy import LazyNetwork, asks_nothing

GUEST = bytes.fromhex("020000000001")
ARP = b"\xff" * 6 + GUEST + b"\x08\x06" + bytes(24) + b"\x0a\0\2\2"
ANNOUNCEMENT = ARP[:28] + ARP[-4:] + ARP[32:]


def multicast6(source, next_header=58):
    header = b"\x60" + bytes(5) + bytes((next_header, 255)) + source + b"\xff\x02" + bytes(14)
    return b"\x33\x33\0\0\0\1" + GUEST + b"\x86\xdd" + header + bytes(24)


PROBE, REPORT = multicast6(bytes(16)), multicast6(b"\xfe\x80" + bytes(14), 0)
# Of ICMPv6, the first byte of what is behind the header is the type.
ADVERTISEMENT = multicast6(b"\xfe\x80" + bytes(14))[:54] + b"\x88" + bytes(23)
SOLICITATION = ADVERTISEMENT[:54] + b"\x87" + ADVERTISEMENT[55:]


class Port:
    """Has frames of a guest's."""

    def __init__(self):
        self.waiting = []
        self.up = False

    def fetch(self, handle, limit, *, coalesce=False):
        for _ in range(min(limit, len(self.waiting))):
            handle(Frame(self.waiting.pop(0)))
        return bool(self.waiting)

    def settle(self):
        pass

    def deliver(self, frames):
        return len(frames)

    def set_link(self, up):
        self.up = up


class Real(Network):
    made = ()

    def __init__(self, config):
        super().__init__(config)
        self.seen, self.started, self.closed = [], False, False
        Real.made = (*Real.made, self)

    def wake(self):
        while self.port.fetch(lambda frame: self.seen.append(frame.data()), 4):
            pass

    def start(self):
        self.started = True

    def close(self):
        self.closed = True

    def leave(self):
        self.closed = True

    def forward(self, forward):
        return forward

    def forwards(self):
        return [Forward(1, 2)]


@pytest.fixture
def lazy(monkeypatch):
    monkeypatch.setattr(Real, "made", ())
    monkeypatch.setattr(NETWORKS, "_items", {**NETWORKS._items, "real": Real})
    network = LazyNetwork(NetConfig("real"))
    network.port = Port()
    return network


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)


def test_what_asks_for_nothing_loads_nothing(lazy):
    lazy.start()
    assert lazy.port.up
    lazy.port.waiting += [PROBE, REPORT]
    lazy.wake()
    until(lambda: not lazy.port.waiting and not lazy._looking)
    assert not Real.made and lazy.forwards() == []
    lazy.close()


def test_the_first_frame_that_asks_is_not_lost(lazy):
    lazy.start()
    frames = [PROBE, ARP, REPORT, *([ARP] * 200)]
    lazy.port.waiting += frames
    lazy.wake()
    until(lambda: Real.made and len(Real.made[0].seen) == len(frames) - 1)
    (real,) = Real.made
    assert real.started and real.seen == frames[1:]
    lazy.port.waiting.append(ARP)
    lazy.wake()
    assert len(real.seen) == len(frames)
    lazy.close()
    assert real.closed


@pytest.mark.parametrize("fault", [HostError("no"), OSError(24, "Too many open files")])
def test_a_host_that_cannot(lazy, monkeypatch, fault):
    def none(*_):
        raise fault

    monkeypatch.setattr(NETWORKS, "_items", {**NETWORKS._items, "real": none})
    ended = []
    lazy.on_fault = ended.append
    lazy.start()
    lazy.port.waiting.append(ARP)
    lazy.wake()
    until(lambda: lazy.port.up is False)
    assert not ended
    lazy.close()


def test_a_forwarded_port_loads_it(lazy):
    assert lazy.forward(Forward(3, 4)) == Forward(3, 4)
    (real,) = Real.made
    assert not real.started and lazy.forwards() == [Forward(1, 2)]
    lazy.start()
    assert real.started
    lazy.leave()
    assert real.closed


@pytest.mark.parametrize(
    "frame",
    [
        *(b"", bytes(13), bytes(60), ARP, PROBE[:53], multicast6(b"\1" * 16)),
        *(SOLICITATION, ADVERTISEMENT[:54]),
    ],
)
def test_everything_else_asks(frame):
    assert not asks_nothing(frame)
    assert all(map(asks_nothing, (PROBE, REPORT, ANNOUNCEMENT, ADVERTISEMENT)))
