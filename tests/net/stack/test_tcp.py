"""TCP by itself: against another of its kind over a bad cable, and against made segments."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from ringzero.core.frames import Frame, plain
from ringzero.net.stack import ip
from ringzero.net.stack.ip import Path
from ringzero.net.stack.tcp.connection import SYN_RECEIVED
from ringzero.net.stack.tcp.segment import parse, parse_frame, parse_options
from ringzero.net.stack.tcp.table import MAX_HALF_OPEN, Tcp
from tests.net.stack.world import GUEST4, HEAD, OUT, Router

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")
MAC_A, MAC_B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
A, B = b"\x0a\0\0\1", b"\x0a\0\0\2"
GUEST6 = "fd72:7a00:0:2::15"


class End:
    """One of two hosts: its TCP, and an endpoint that sends what it is to and keeps what comes."""

    def __init__(self, pair, mac, peer_mac, address, peer, number):
        self.out = pair.cable(self)
        self.path = Path(peer_mac + mac + b"\x08\0", address, peer, 1500)
        self.tcp = Tcp(self.out.append, self.opener, lambda: number)
        self.pieces = ip.Reassembler()
        self.connection = None
        self.to_send, self.got = b"", b""
        self.over = self.is_lost = False
        # How much the endpoint takes at once; the rest waits in the connection's inbox.
        self.appetite = 1 << 30

    def opener(self, connection):
        self.connection, connection.endpoint = connection, self
        connection.accept()

    def opened(self):
        self.room()

    def room(self):
        connection = self.connection
        while self.to_send and connection.room > 0:
            count = min(connection.room, 5000)
            connection.send(self.to_send[:count])
            self.to_send = self.to_send[count:]
        if not self.to_send:
            connection.finish()

    def receive(self, buffers, size):
        data = b"".join(buffers)[: self.appetite]
        self.got += data
        return len(data)

    def eat(self):
        connection = self.connection
        if connection is not None and connection.inbox:
            data = b"".join(connection.inbox)[: self.appetite]
            self.got += data
            connection.consume(len(data))

    def ended(self):
        self.over = True

    def lost(self):
        self.is_lost = True

    def hear(self, data):
        packet = ip.parse(Frame(data), self.pieces, self.tcp.now)
        if packet is not None and packet.protocol == ip.TCP:
            self.tcp.receive(packet, self.path)


class Pair:
    """Two hosts and the cables between them; the time is the test's."""

    def __init__(self, numbers=(1000, 0xFFFFFF00)):
        self.now = 0.0
        self.cables = {}
        self.a = End(self, MAC_A, MAC_B, A, B, numbers[0])
        self.b = End(self, MAC_B, MAC_A, B, A, numbers[1])

    def cable(self, end):
        return self.cables.setdefault(end, [])

    def connect(self):
        self.a.connection = self.a.tcp.connect(self.a.path, 1, 80, self.a)

    def step(self, choose):
        """Move what is on the cables; `choose` says what becomes of each frame."""
        moved = False
        for source, target in ((self.a, self.b), (self.b, self.a)):
            source.tcp.flush()
            waiting = [data for frame in source.out for data in plain(frame)]
            source.out.clear()
            kept = []
            for data in waiting:
                moved = True
                fate = choose()
                if fate == "lose":
                    continue
                if fate == "late":
                    kept.append(data)
                    continue
                target.hear(data)
                if fate == "double":
                    target.hear(data)
            for data in kept:
                target.hear(data)
            target.eat()
        return moved

    def pass_time(self):
        """Go on to when something is due."""
        due = [t for t in (self.a.tcp.deadline(), self.b.tcp.deadline()) if t is not None]
        self.now = max(self.now, min(due, default=self.now) + 0.0001)
        for end in (self.a, self.b):
            end.tcp.now = self.now
            end.tcp.expire()

    @property
    def done(self):
        return (self.a.over and self.b.over) or self.a.is_lost or self.b.is_lost


FATES = st.lists(st.sampled_from(["pass"] * 6 + ["lose", "late", "double"]), max_size=60)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(FATES, st.integers(0, 200_000), st.integers(0, 200_000), st.sampled_from([1 << 30, 3000]))
def test_two_ends_over_a_bad_cable(fates, first, second, appetite):
    pair = Pair()
    pair.a.to_send = bytes(n * 31 & 255 for n in range(first))
    pair.b.to_send = bytes(n * 17 & 255 for n in range(second))
    sent = pair.a.to_send, pair.b.to_send
    pair.a.appetite = pair.b.appetite = appetite
    pair.connect()
    fate = itertools.chain(fates, itertools.repeat("pass"))
    for _ in range(3000):
        if not pair.step(lambda: next(fate)):
            if pair.done:
                break
            pair.pass_time()
    assert pair.done and not pair.a.is_lost and not pair.b.is_lost
    assert (pair.b.got, pair.a.got) == sent
    assert pair.now < 120
    for _ in range(20):
        pair.pass_time()
        pair.step(lambda: "pass")
    assert not pair.a.tcp.connections and not pair.b.tcp.connections, "both have forgotten"
    assert not pair.a.tcp.owing and not pair.a.tcp.delayed


def test_a_peer_that_is_gone_is_given_up():
    pair = Pair()
    pair.a.to_send = bytes(100)
    pair.connect()
    pair.step(lambda: "pass")
    for _ in range(60):
        pair.step(lambda: "lose")
        pair.pass_time()
        if pair.a.is_lost:
            break
    assert pair.a.is_lost and 100 < pair.now < 1000


@pytest.fixture
def router():
    return Router()


def syn(port=80, **fields):
    return HEAD / OUT / TCP(sport=4000, dport=port, flags="S", seq=100, **fields)


def open_connection(router, options=(("MSS", 1460), ("WScale", 7), ("SAckOK", b""))):
    assert router.send(syn(options=list(options))) == []
    (connection,) = router.world.opened
    connection.accept()
    (answer,) = router.take()
    assert answer[TCP].flags == "SA" and answer[TCP].ack == 101
    segment = HEAD / OUT / TCP(sport=4000, dport=80, flags="A", seq=101, ack=answer[TCP].seq + 1)
    assert router.send(segment) == []
    return connection, answer[TCP].seq + 1


def segment(sequence, ack, flags="A", data=b"", **fields):
    head = TCP(sport=4000, dport=80, flags=flags, seq=sequence, ack=ack, **fields)
    return HEAD / OUT / head / data


def test_options_of_an_answer(router):
    router.send(syn(options=[("MSS", 1000), ("WScale", 3), ("SAckOK", b"")]))
    (connection,) = router.world.opened
    connection.accept()
    (answer,) = router.take()
    options = dict(o for o in answer[TCP].options if len(o) == 2)
    assert options["MSS"] == 1460 and "WScale" in options and "SAckOK" in options
    assert connection.mss == 1000
    second = Router()
    second.send(syn())
    second.world.opened[0].accept()
    (answer,) = second.take()
    assert dict(o for o in answer[TCP].options if len(o) == 2) == {"MSS": 1460}, "not asked for"
    assert second.world.opened[0].mss == 536


def test_checksums_are_looked_at_and_made(router):
    (connection, ack) = open_connection(router)
    damaged = bytearray(bytes(segment(101, ack, data=b"hello")))
    damaged[-1] ^= 1
    router.gateway.receive(Frame(bytes(damaged)))
    assert connection.endpoint.data == b""
    connection.send(b"some bytes")
    (frame,) = router.take()
    again = Ether(bytes(frame))
    value = again[TCP].chksum
    del again[TCP].chksum, again[IP].chksum
    assert Ether(bytes(again))[TCP].chksum == value


def test_what_comes_early_is_told_of(router):
    connection, ack = open_connection(router)
    (answer,) = router.send(segment(105, ack, data=b"late"))
    sack = dict(o for o in answer[TCP].options if len(o) == 2)["SAck"]
    assert answer[TCP].ack == 101 and sack == (105, 109)
    (answer,) = router.send(segment(101, ack, data=b"this"))
    assert answer[TCP].ack == 109 and connection.endpoint.data == b"thislate"


def test_what_is_missing_finds_room_behind_whatever_came_early(router):
    connection, ack = open_connection(router)
    for number in range(1, 400):
        router.send(segment(101 + 4 * number, ack, data=b"late"))
    (answer,) = router.send(segment(101, ack, data=b"this"))
    assert answer[TCP].ack > 105 and connection.endpoint.data.startswith(b"thislatelate")
    for number in range(1, 400):
        router.send(segment(101 + 4 * number, ack, data=b"late"))
    assert connection.endpoint.data == b"this" + 399 * b"late"


def test_an_acknowledgement_waits_for_what_may_carry_it(router):
    connection, ack = open_connection(router)
    assert router.send(segment(101, ack, data=b"question")) == []
    connection.send(b"answer")
    (answer,) = router.take()
    assert answer[TCP].ack == 109
    assert router.send(segment(109, ack + 6, data=b"more")) == []
    (answer,) = router.wait(0.02)
    assert answer[TCP].ack == 113 and not len(answer[TCP].payload)


def test_three_duplicates_are_a_loss(router):
    connection, ack = open_connection(router)
    for _ in range(5):
        connection.send(bytes(1460))
    first = router.take()[0]
    for count in range(4):
        # The first one tells of another window.
        again = router.send(segment(101, ack, window=64240))
        assert bool(again) == (count == 3)
    assert again[0][TCP].seq == first[TCP].seq == ack


def test_resets_that_nobody_sent(router):
    connection, ack = open_connection(router)
    (answer,) = router.send(segment(150, ack, "R"))
    assert answer[TCP].flags == "A", "RFC 5961: not at the exact number"
    assert router.send(segment(101 + (1 << 25), ack, "R")) == []
    assert not connection.endpoint.is_lost
    (answer,) = router.send(segment(101, ack, "S"))
    assert answer[TCP].flags == "A"
    router.send(segment(101, ack, "R"))
    assert connection.endpoint.is_lost and not router.gateway.tcp.connections


def test_a_segment_of_no_connection(router):
    (answer,) = router.send(segment(500, 77, data=b"lost"))
    assert answer[TCP].flags == "R" and answer[TCP].seq == 77
    assert router.send(segment(500, 77, "R")) == []
    (answer,) = router.send(segment(500, 0, "F"))
    assert answer[TCP].flags == "RA" and answer[TCP].ack == 501


def test_a_closed_window_is_asked_after(router):
    connection, ack = open_connection(router)
    router.send(segment(101, ack, window=0))
    connection.send(bytes(3000))
    assert router.take() == []
    (probe,) = router.wait(2)
    assert len(probe[TCP].payload) == 1
    router.send(segment(101, ack + 1, window=64240))
    assert connection.unsent_size == 0


def test_a_silent_guest_is_asked_and_given_up(router):
    connection, ack = open_connection(router)
    (probe,) = router.wait(7201)
    assert probe[TCP].flags == "A" and probe[TCP].seq == ack - 1
    assert router.send(segment(101, ack)) == []
    (probe,) = router.wait(7201)
    for _ in range(9):
        router.wait(76)
    assert connection.endpoint.is_lost and not router.gateway.tcp.connections


def test_a_smaller_mtu_on_the_way(router):
    connection, _ = open_connection(router)
    connection.send(bytes(1460))
    (frame,) = router.take()
    # The guest itself says so: it may be a router for others.
    quoted = bytes(frame[IP])[:28]
    error = IP(src="192.0.2.1", dst="10.0.2.2") / ICMP(type=3, code=4, nexthopmtu=1000) / quoted
    router.send(HEAD / error)
    assert connection.mss == 1460, "not from an address that is not on this link"
    error[IP].src = GUEST4
    del error[IP].chksum
    again = router.send(HEAD / error)
    assert connection.mss == 960 and {len(f[TCP].payload) for f in again} <= {960, 500}
    for mtu in (0, 1, 68, 100000):
        error[ICMP].nexthopmtu = mtu & 0xFFFF
        del error[ICMP].chksum, error[IP].chksum
        router.send(HEAD / error)
    assert connection.mss >= 88


def test_ten_thousand_half_open_connections_cost_little_and_end(router):
    made = bytes(HEAD / OUT / TCP(flags="S", seq=1))
    for number in range(10_000):
        data = made[:34] + (1024 + number).to_bytes(2, "big") + made[36:]
        router.gateway.receive(Frame(data, (), 34, 16))
        if number % 2:
            router.world.opened[-1].accept()
        router.frames.clear()
    half_open = router.gateway.tcp.half_open
    assert len(half_open) <= MAX_HALF_OPEN and len(router.gateway.tcp.connections) <= 1024
    for _ in range(40):
        router.wait(10)
    assert not [c for c in router.gateway.tcp.connections.values() if c.state == SYN_RECEIVED]
    assert len(router.gateway.tcp._timers) <= 2 * MAX_HALF_OPEN


@given(st.binary(max_size=40))
def test_any_options(options):
    found = parse_options(options)
    assert all(len(value) <= 253 for value in found.values())


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(-5000, 5000),
            st.integers(-5000, 5000),
            st.sampled_from(["A", "PA", "FA", "R", "SA", "S", "", "FSRPA"]),
            st.integers(0, 1600),
            st.sampled_from([0, 1, 100, 65535]),
        ),
        max_size=12,
    )
)
def test_any_segments(segments):
    """Whatever a guest says, nothing is delivered but what it sent, in order and once."""
    router = Router()
    connection, ack = open_connection(router)
    stream = bytes(n * 7 & 255 for n in range(20000))
    connection.send(bytes(20000))
    for sequence, ackno, flags, size, window in segments:
        start = max(sequence, 0)
        data = stream[start : start + size] if sequence >= 0 else b""
        made = segment(
            101 + sequence & 0xFFFFFFFF, ack + ackno & 0xFFFFFFFF, flags, data, window=window
        )
        router.send(made)
    got = connection.endpoint.data
    assert got == stream[: len(got)]
    assert connection.inbox_size == sum(map(len, connection.inbox))
    assert connection.flight_size == sum(len(s.data) for s in connection._sender.flight)
    for _ in range(30):
        router.wait(100)


def _packet(six, options, payload, mangle):
    ours = IPv6(src=GUEST6, dst="2001:db8::1") if six else OUT
    made = HEAD / ours / TCP(sport=4000, dport=80, flags="PA", seq=7, ack=9, options=options)
    data = bytearray(bytes(made / payload))
    for place, value in mangle:
        data[place % len(data)] = value
    return bytes(data)


@given(
    st.booleans(),
    st.sampled_from([[], [("NOP", None)] * 4, [("SAck", (1, 2))]]),
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=3),
    st.integers(0, 3),
    st.integers(54, 200),
)
def test_the_short_way_sees_what_the_long_one_does(six, options, payload, mangle, more, split):
    data = _packet(six, options, payload, mangle) + bytes(more)
    frame = Frame(data[:split], (memoryview(data)[split:],) if data[split:] else (), 34, 16)
    short = parse_frame(frame)
    if short is None:
        return
    packet = ip.parse(frame, ip.Reassembler(), 0.0)
    assert packet is not None and packet.protocol == ip.TCP
    long = parse(packet)
    fields = [name for name in long.__slots__ if name != "buffers"]
    assert all(getattr(short, name) == getattr(long, name) for name in fields)
    assert b"".join(short.buffers) == b"".join(long.buffers)
    key = packet.source + packet.destination + packet.head[packet.at : packet.at + 4]
    assert ip.flow_key(frame.head) == key


def test_the_short_way_is_the_usual_one():
    for six in (False, True):
        segment = parse_frame(Frame(_packet(six, [], b"payload", []), (), 34, 16))
        assert segment is not None and segment.buffers == [b"payload"] and segment.sequence == 7
