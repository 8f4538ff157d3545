"""Two clocks as one: what a host that takes the CPU away in between does to them."""

import itertools

import pytest

from ringzero.core.clocks import read_together

HZ = 10**9


class Host:
    """Its clocks run together; `pauses` are taken before each look at either."""

    def __init__(self, pauses):
        self.now = 0
        self.pauses = iter(pauses)

    def look(self):
        self.now += next(self.pauses, 100)
        return self.now


@pytest.mark.parametrize("place", range(12))
def test_a_pause_between_the_looks_does_no_harm(place):
    host = Host([100] * place + [5_000_000])
    counter, now = read_together(host.look, HZ, host.look)
    assert abs(counter - now) <= 100


def test_of_pauses_only_the_shortest_counts():
    host = Host(itertools.cycle((100, 900_000, 100, 100, 70_000, 100)))
    counter, now = read_together(host.look, HZ, host.look)
    assert abs(counter - now) < 70_000


def test_who_keeps_the_cpu_looks_once():
    host = Host([])
    read_together(host.look, HZ, host.look)
    assert host.now == 300
