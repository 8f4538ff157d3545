"""Flows of UDP: what a guest sends arrives as it was sent, however it is put together."""

import errno
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame
from ringzero.net.networks.user import UserNetwork
from ringzero.net.stack import ip
from ringzero.net.stack import udp as datagrams
from tests.net.stack.world import GUEST4, HEAD

GUEST6 = "fd72:7a00:0:2::15"


class Sink:
    """Takes what the network delivers, and has nothing to fetch."""

    def __init__(self):
        self.frames = []

    def fetch(self, handle, limit, *, coalesce=False):
        return False

    def deliver(self, frames):
        self.frames += frames
        return len(frames)

    def settle(self):
        pass


@pytest.fixture(scope="module", params=[4, 6])
def rig(request):
    """A network whose loop does not run, a server, and what sends it a datagram of the guest's."""
    six = request.param == 6
    network = UserNetwork(NetConfig("user", mac="02:00:00:00:00:15"))
    network.port = Sink()
    family, host = (socket.AF_INET6, "::1") if six else (socket.AF_INET, "127.0.0.1")
    server = socket.socket(family, socket.SOCK_DGRAM)
    try:
        server.bind((host, 0))
    except OSError:
        pytest.skip("this host has no IPv6")
    server.settimeout(5)
    route = IPv6(src=GUEST6, dst="fd72:7a00:0:2::2") if six else IP(src=GUEST4, dst="10.0.2.2")
    head = HEAD / route / UDP(sport=4000, dport=server.getsockname()[1])

    def send(data, plain=False):
        made = bytes(head / data)
        start = 54 if six else 34
        network.gateway.receive(Frame(made) if plain else Frame(made, (), start, 6))

    yield network, server, send
    server.close()
    network.close()


SIZES = st.lists(st.sampled_from([0, 1, 100, 1400, 1400, 1400, 1472]), max_size=80)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES, st.booleans(), st.booleans())
def test_datagrams_arrive_as_they_were_sent(rig, sizes, plain, refused):
    network, server, send = rig
    sent = [bytes([n & 255]) * size for n, size in enumerate(sizes)]
    if refused:
        for flow in network.flows._flows.values():
            flow.whole = False
    for data in sent:
        send(data, plain)
    network.flows.flush()
    assert [server.recv(65536) for _ in sent] == sent
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    server.settimeout(5)


def test_many_leave_by_one_call(rig, monkeypatch):
    network, server, send = rig
    send(b"first")
    network.flows.flush()
    server.recv(100)
    (flow,) = network.flows._flows.values()
    flow.whole = True
    calls = []

    class Counted:
        def __init__(self, link):
            self.link = link

        def __getattr__(self, name):
            calls.append(name)
            return getattr(self.link, name)

    flow.link = Counted(flow.link)
    for _ in range(40):
        send(bytes(1400))
    network.flows.flush()
    flow.link = flow.link.link
    assert all(len(server.recv(65536)) == 1400 for _ in range(40))
    assert not flow.whole or calls == ["sendmsg"]


def test_a_host_that_cannot_cut_gets_them_one_by_one(rig):
    network, server, send = rig
    send(b"first")
    network.flows.flush()
    (flow,) = network.flows._flows.values()
    link = flow.link

    class Old:
        def sendmsg(self, *_):
            raise OSError(errno.EINVAL, "no such thing")

        def __getattr__(self, name):
            return getattr(link, name)

    flow.link, flow.whole = Old(), True
    for n in range(3):
        send(bytes([n]))
    network.flows.flush()
    flow.link = link
    assert not flow.whole
    assert [server.recv(100) for _ in range(4)] == [b"first", b"\0", b"\1", b"\2"]


@given(
    st.booleans(),
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=3),
    st.integers(0, 3),
    st.integers(42, 200),
)
def test_the_short_way_sees_what_the_long_one_does(six, payload, mangle, more, split):
    route = IPv6(src=GUEST6, dst="2001:db8::1") if six else IP(src=GUEST4, dst="192.0.2.1")
    data = bytearray(bytes(HEAD / route / UDP(sport=1, dport=2) / payload))
    for place, value in mangle:
        data[place % len(data)] = value
    data = bytes(data) + bytes(more)
    frame = Frame(data[:split], (memoryview(data)[split:],) if data[split:] else (), 34, 6)
    found = datagrams.payload_of(frame)
    if found is None:
        return
    packet = ip.parse(frame, ip.Reassembler(), 0.0)
    assert packet is not None and packet.protocol == ip.UDP
    assert datagrams.Datagram(packet).data() == found
