"""Headers and options of segments, read in the long way and the short one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6

from ringzero.core.frames import Frame
from ringzero.net.stack import ip
from ringzero.net.stack.tcp.segment import parse, parse_frame, parse_options
from tests.net.stack.tcp.peers import syn
from tests.net.stack.world import HEAD, OUT, Router

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")
GUEST6 = "fd72:7a00:0:2::15"


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


@given(st.binary(max_size=40))
def test_any_options(options):
    found = parse_options(options)
    assert all(len(value) <= 253 for value in found.values())


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
