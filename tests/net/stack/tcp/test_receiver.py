"""What comes: in order or not, acknowledged soon enough."""

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from ringzero.core.frames import Frame
from tests.net.stack.tcp.peers import open_connection, segment

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")


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
