"""All connections: those of nobody, and those that are half open."""

import pytest
from scapy.layers.inet import TCP

from ringzero.core.frames import Frame
from ringzero.net.stack.tcp.connection import SYN_RECEIVED
from ringzero.net.stack.tcp.table import MAX_HALF_OPEN
from tests.net.stack.tcp.peers import segment
from tests.net.stack.world import HEAD, OUT

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")


def test_a_segment_of_no_connection(router):
    (answer,) = router.send(segment(500, 77, data=b"lost"))
    assert answer[TCP].flags == "R" and answer[TCP].seq == 77
    assert router.send(segment(500, 77, "R")) == []
    (answer,) = router.send(segment(500, 0, "F"))
    assert answer[TCP].flags == "RA" and answer[TCP].ack == 501


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
