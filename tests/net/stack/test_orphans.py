"""Connections that a copy of a machine does not have: as a cable sees them, and how they end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ringzero.core.frames import Frame, plain
from ringzero.net.stack import orphans

GUEST, PEER, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:02", bytes.fromhex("020000000003")
MACS = [bytes.fromhex(GUEST.replace(":", ""))]
WAYS = [(IP, "10.0.0.1", "10.0.0.2"), (IPv6, "fd00::1", "fd00::2")]


def segment(way, sequence, ack=0, flags="A", data=b"", *, back=False):
    """Return a segment of the guest's, from port 1000 to 80, or back."""
    kind, guest, peer = way
    ends = (PEER, GUEST, peer, guest, 80, 1000) if back else (GUEST, PEER, guest, peer, 1000, 80)
    head = Ether(src=ends[0], dst=ends[1]) / kind(src=ends[2], dst=ends[3])
    tcp = TCP(sport=ends[4], dport=ends[5], seq=sequence, ack=ack, flags=flags)
    return Frame(bytes(head / tcp / Raw(data)))


def said(frame):
    (data,) = plain(frame)
    packet = Ether(data)
    tcp = packet[TCP]
    assert bytes(Ether(bytes(packet)))[-18:] == data[-18:]
    found = tcp.sport, tcp.dport, str(tcp.flags), tcp.seq, tcp.ack
    del tcp.chksum
    assert bytes(packet) == data, "the checksum"
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("moves", "sequence", "ack"),
    [
        # The guest has heard of nobody yet.
        ([(False, 100, 0, "S", b"")], 0, 101),
        ([(False, 100, 0, "S", b""), (True, 500, 101, "SA", b"")], 501, 101),
        # What came is not acknowledged yet.
        ([(False, 101, 501, "A", b"ab"), (True, 501, 103, "PA", b"xyz")], 504, 103),
        # The peer asks whether the guest is there, by what it has had.
        ([(False, 101, 501, "A", b""), (True, 500, 101, "A", b"")], 501, 101),
        ([(False, 101, 501, "A", b""), (True, 501, 101, "FA", b"x")], 503, 101),
        ([(False, 101, 2, "A", b""), (True, 0xFFFFFFFE, 101, "A", b"abcd")], 2, 101),
    ],
)
def test_where_the_two_are(way, moves, sequence, ack):
    passing = orphans.Passing()
    for back, *fields in moves:
        frame = segment(way, *fields, back=back)
        (passing.received if back else passing.sent)(frame)
    packed = passing.packed()
    (reset,) = orphans.resets(packed, ROUTER, MACS)
    assert said(reset) == (80, 1000, "RA", sequence, ack)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_over_is_forgotten_and_there_is_an_end_of_it(way):
    passing = orphans.Passing()
    passing.sent(segment(way, 1, 1))
    passing.received(segment(way, 1, 1, back=True))
    passing.sent(segment(way, 1, 1, flags="RA"))
    passing.received(segment(way, 1, 1, flags="R", back=True))
    assert passing.packed() == ()
    for port in range(orphans.MAX_PASSING * 2):
        data = bytearray(segment(way, 1, 1).head)
        data[-20:-18] = port.to_bytes(2, "big")
        passing.sent(Frame(bytes(data)))
    assert len(passing.packed()) == orphans.MAX_PASSING


@pytest.mark.parametrize("way", WAYS)
def test_a_guest_that_goes_on_is_told(way):
    passing = orphans.Passing()
    passing.sent(segment(way, 100, 500))
    known = orphans.keys(passing.packed())
    answer = orphans.objection(segment(way, 100, 490, data=b"ab"), known, b"none")
    assert said(answer) == (80, 1000, "RA", 490, 102)
    answer = orphans.objection(segment(way, 7, flags="S"), known, b"none")
    assert said(answer) == (80, 1000, "RA", 0, 8)
    own = next(iter(known))[:4]
    for frame, address in (
        (segment(way, 1, 1, flags="R"), b"none"),
        (segment(way, 1, 1, back=True), b"none"),
        (segment(way, 1, 1), own),
    ):
        assert orphans.objection(frame, known, address) is None


@given(st.binary(max_size=100), st.integers(0, 1), st.lists(st.integers(0, 99), max_size=3))
def test_any_bytes(data, six, places):
    whole = bytearray(segment(WAYS[six], 1, 1).head + data)
    for place in places:
        whole[place % len(whole)] ^= 0xFF
    for frame in (Frame(data), Frame(bytes(whole))):
        passing = orphans.Passing()
        passing.sent(frame)
        passing.received(frame)
        packed = passing.packed()
        for reset in orphans.resets(packed, ROUTER, MACS):
            assert len(plain(reset)) == 1
        orphans.objection(frame, orphans.keys(packed), b"none")
    assert list(orphans.resets([data], ROUTER, [])) == []
