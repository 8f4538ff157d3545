"""A connection as a whole: two ends over a bad cable; resets, keep-alive, any segments."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from tests.net.stack.tcp.peers import Pair, open_connection, segment
from tests.net.stack.world import Router

# What the stack fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")
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


def test_a_silent_guest_is_asked_and_given_up(router):
    connection, ack = open_connection(router)
    (probe,) = router.wait(7201)
    assert probe[TCP].flags == "A" and probe[TCP].seq == ack - 1
    assert router.send(segment(101, ack)) == []
    (probe,) = router.wait(7201)
    for _ in range(9):
        router.wait(76)
    assert connection.endpoint.is_lost and not router.gateway.tcp.connections


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
