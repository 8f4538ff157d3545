"""The cable over a socket: framing, links that come and go, peers that misbehave."""

import contextlib
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.config.devices.net import NetConfig
from ringzero.config.machine import MachineConfig
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError, ConflictError, NotFoundError
from ringzero.net.contract import NETWORKS
from ringzero.net.networks.none import NoNetwork
from ringzero.net.networks.socket import LENGTH, MAX_FRAME, OUTBOX_SIZE, Decoder, SocketNetwork

FRAME = bytes(range(100))
WAIT = 10


class Port:
    def __init__(self):
        self.frames = []
        self.links = []
        self.limit = None
        self.outgoing = []

    @property
    def up(self):
        return bool(self.links) and self.links[-1]

    def deliver(self, frames):
        room = len(frames) if self.limit is None else self.limit - len(self.frames)
        self.frames += [frame.data() for frame in list(frames)[:room]]
        return min(room, len(frames))

    def fetch(self, handle, limit, *, coalesce=False):
        while self.outgoing:
            handle(Frame(self.outgoing.pop(0)))
        return False

    def settle(self):
        pass

    def set_link(self, up):
        self.links.append(up)


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)


@pytest.fixture
def make(tmp_path):
    with contextlib.ExitStack() as closing:

        def build(listen=False, path=tmp_path / "s", kept=True):
            network = SocketNetwork(NetConfig("socket", str(path), listen))
            network.port = Port()
            if kept:
                closing.callback(network.close)
            network.start()
            return network

        yield build


def send(network, frame):
    network.port.outgoing.append(frame)
    network.wake()


def framed(*frames):
    return b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


def test_two_ends(make):
    first, second = make(listen=True), make()
    until(lambda: first.port.up and second.port.up)
    send(first, FRAME)
    send(second, FRAME[:60])
    send(second, FRAME)
    until(lambda: second.port.frames == [FRAME])
    until(lambda: first.port.frames == [FRAME[:60], FRAME])


def test_whoever_comes_first_and_comes_again(make):
    second = make()
    send(second, FRAME)
    assert second.dropped == 1 and not second.port.up
    first = make(listen=True, kept=False)
    until(lambda: second.port.up)
    first.close()
    until(lambda: not second.port.up)
    first = make(listen=True)
    until(lambda: second.port.up and first.port.up)
    send(second, FRAME)
    until(lambda: first.port.frames == [FRAME])


def test_one_peer_at_a_time(make):
    first, second = make(listen=True), make()
    until(lambda: first.port.up and second.port.up)
    with socket.socket(socket.AF_UNIX) as third:
        third.connect(str(first._path))
        assert third.recv(10) == b""
    assert first.port.up


def test_who_is_refused_has_no_link(make):
    first, second = make(listen=True), make(kept=False)
    until(lambda: first.port.up and second.port.up)
    third = make()
    time.sleep(0.3)
    assert True not in third.port.links
    second.close()
    until(lambda: third.port.up)


def test_a_path_that_is_taken(make):
    make(listen=True)
    with pytest.raises(ConflictError):
        make(listen=True)


def peer(network):
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(WAIT)
    link.connect(str(network._path))
    return link


@pytest.mark.parametrize("junk", [b"\0\0\0\0", b"\xff" * 8, LENGTH.pack(MAX_FRAME + 1)])
def test_a_peer_that_speaks_otherwise_is_cut_off(make, junk):
    network = make(listen=True)
    with peer(network) as link:
        link.sendall(framed(FRAME) + junk)
        assert link.recv(10) == b""
    with peer(network) as link:
        link.sendall(framed(FRAME))
        until(lambda: network.port.frames[-1:] == [FRAME])


def test_a_peer_that_does_not_read_costs_frames_not_memory(make):
    network = make(listen=True)
    with peer(network):
        until(lambda: network.port.up)
        for _ in range(3000):
            send(network, bytes(1514))
        assert network.dropped and len(network._outbox) <= OUTBOX_SIZE + 4


def test_a_slow_reader_gets_whole_frames(make):
    network = make(listen=True)
    with peer(network) as link:
        until(lambda: network.port.up)
        for number in range(400):
            send(network, bytes([number & 255]) * 1500)
        decoder, frames = Decoder(), []
        while len(frames) < 400:
            frames += decoder.feed(link.recv(3333))
        assert [frame[0] for frame in frames] == [n & 255 for n in range(400)]


def test_a_port_without_room_is_waited_for(make):
    network = make(listen=True)
    network.port.limit = 2
    with peer(network) as link:
        link.sendall(framed(*[FRAME] * 5))
        until(lambda: len(network.port.frames) == 2)
        network.port.limit = None
        network.wake()
        until(lambda: len(network.port.frames) == 5)


@given(frames=st.lists(st.binary(min_size=1, max_size=50)), cuts=st.lists(st.integers(1, 20)))
def test_any_cut_gives_the_same_frames(frames, cuts):
    data, decoder, found = framed(*frames), Decoder(), []
    for cut in cuts:
        found += decoder.feed(data[:cut])
        data = data[cut:]
    assert found + decoder.feed(data) == frames


def test_registry():
    assert NETWORKS.names() == ["bridge", "none", "passt", "socket", "tap", "user"]
    assert NETWORKS.get("none") is NoNetwork
    with pytest.raises(NotFoundError, match="wifi"):
        NETWORKS.get("wifi")
    with pytest.raises(ConfigError):
        NoNetwork(NetConfig("none", "x"))
    with pytest.raises(ConfigError):
        SocketNetwork(NetConfig("socket"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", NetConfig()),
        ("socket=/tmp/a,b", NetConfig("socket", "/tmp/a,b")),
        (
            "socket=/tmp/c,listen,mac=52:54:00:AB:cd:00,mtu=9000",
            NetConfig("socket", "/tmp/c", True, "52:54:00:ab:cd:00", 9000),
        ),
    ],
)
def test_descriptions(text, expected):
    config = MachineConfig.create(net=text).nets[0]
    assert config == expected


@pytest.mark.parametrize(
    "text",
    ["", "socket=", "none,fast", "none,mac=01:00:00:00:00:00", "none,mac=02:00", "none,mtu=9001",
     "none,mtu=67", "no/such", "socket=" + "x" * 200],
)  # fmt: skip
def test_descriptions_that_are_none(text):
    with pytest.raises(ConfigError):
        MachineConfig.create(net=text)


@pytest.mark.parametrize("network", ["user", "lan", "tap=x"])
def test_several_pairs_of_queues(network):
    config = NetConfig.parse(f"{network},queues=2,mtu=1400")
    assert (config.queues, config.mtu, config.faults()) == (2, 1400, [])
    for wrong in (0, 17):
        with pytest.raises(ConfigError, match="has 1 to 16 pairs of queues"):
            MachineConfig.create(net=f"{network},queues={wrong}")
