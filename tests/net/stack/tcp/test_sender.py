"""What is sent: again where it is lost, in a window that closes, in smaller pieces."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from tests.net.stack.tcp.peers import open_connection, segment
from tests.net.stack.world import GUEST4, HEAD

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")


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


def test_a_closed_window_is_asked_after(router):
    connection, ack = open_connection(router)
    router.send(segment(101, ack, window=0))
    connection.send(bytes(3000))
    assert router.take() == []
    (probe,) = router.wait(2)
    assert len(probe[TCP].payload) == 1
    router.send(segment(101, ack + 1, window=64240))
    assert connection.unsent_size == 0


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
