"""A fault of ours in one guest's flow ends that flow, is counted and told, and harms no other."""

import pytest
from scapy.layers.inet import TCP, UDP

from tests.net.stack.tcp.peers import open_connection, segment, syn
from tests.net.stack.world import HEAD, OUT, Router


@pytest.fixture
def router():
    return Router()


class Broken:
    """An endpoint in which everything goes wrong but being told."""

    def __init__(self):
        self.is_lost = False

    def lost(self):
        self.is_lost = True
        raise KeyError("again")

    def __getattr__(self, name):
        raise ZeroDivisionError(name)


def test_a_fault_ends_one_connection(router):
    connection, ack = open_connection(router)
    connection.endpoint = broken = Broken()
    with pytest.warns(RuntimeWarning, match="port 4000 .*ZeroDivisionError"):
        answers = router.send(segment(101, ack, data=b"x"))
    assert [answer[TCP].flags for answer in answers] == ["RA"]
    assert broken.is_lost and not router.gateway.tcp.connections
    assert router.gateway.faults.count == 1
    assert router.send(syn(81)) == [] and len(router.world.opened) == 2, "others go on"


def test_a_fault_at_an_opening_or_a_timer(router, monkeypatch):
    monkeypatch.setattr(router.world, "open", lambda connection: 1 // 0)
    with pytest.warns(RuntimeWarning):
        router.send(syn())
    assert not router.gateway.tcp.connections
    monkeypatch.undo()
    connection, _ = open_connection(router)
    connection.endpoint = Broken()
    connection.send(b"nobody hears this")
    with pytest.warns(RuntimeWarning):
        for _ in range(40):
            router.wait(30)
    assert not router.gateway.tcp.connections and router.gateway.faults.count == 2


def test_a_fault_at_a_frame_drops_it_and_a_guest_cannot_fill_the_log(router, monkeypatch, recwarn):
    monkeypatch.setattr(router.world, "datagram", lambda *_: 1 // 0)
    for _ in range(100):
        router.send(HEAD / OUT / UDP(sport=1, dport=2) / b"x")
    assert router.gateway.faults.count == 100 and 0 < len(recwarn) <= 8
