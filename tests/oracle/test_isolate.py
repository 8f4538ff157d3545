"""A crashing, hanging or failing executor costs one case, or says why."""

import os
import signal
import time

import pytest

from tests.oracle.isolate import Isolated
from tests.oracle.model import BP, CRASHED, Case, Outcome, State

GOOD, BAD = Case(b"\x90", State.build()), Case(b"\xf4", State.build())


class Fragile:
    """Ends with #BP, but does `harm` at a HLT."""

    name = "fragile"

    def __init__(self, harm):
        self.harm = harm

    def run(self, cases):
        for case in cases:
            if case.code == BAD.code:
                self.harm()
        return [Outcome(case.state, BP) for case in cases]


@pytest.mark.parametrize(
    "harm",
    [lambda: os._exit(3), lambda: signal.raise_signal(signal.SIGSEGV), lambda: time.sleep(60)],
    ids=["exits", "segfaults", "hangs"],
)
def test_one_bad_case_costs_only_itself(harm):
    with Isolated(lambda: Fragile(harm), "fragile", patience=0.2) as executor:
        outcomes = executor.run([GOOD, BAD, GOOD, GOOD, BAD])
    assert [o.vector for o in outcomes] == [BP, CRASHED, BP, BP, CRASHED]


def test_exceptions_come_through():
    def refuse():
        raise ValueError("no such thing")

    with (
        Isolated(lambda: Fragile(refuse), "fragile") as executor,
        pytest.raises(ValueError, match="no such thing"),
    ):
        executor.run([GOOD, BAD])
    with Isolated(refuse, "fragile") as executor, pytest.raises(ValueError, match="no such thing"):
        executor.run([GOOD])


def test_a_slow_start_is_waited_for():
    def slow():
        time.sleep(0.5)
        return Fragile(refuse)

    def refuse():
        raise AssertionError

    with Isolated(slow, "slow", patience=0.1) as executor:
        assert executor.run([GOOD])[0].vector == BP
