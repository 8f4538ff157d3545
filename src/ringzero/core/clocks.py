"""Two clocks read as one: a guest's counter, and the host's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", int, float)

# A look at both that took no longer is good: a twenty-thousandth of a second, which a thread that
# keeps its CPU needs a tenth of.
_SHORT = 20_000
# Looks, of which the shortest counts where none is short: a busy host takes the CPU away for
# milliseconds, but rarely so often in succession.
_LOOKS = 16


def read_together(
    counter: Callable[[], int], counter_hz: int, now: Callable[[], T]
) -> tuple[int, T]:
    """Return what a counter of `counter_hz` hertz and `now` show at the same moment."""
    shortest, found = -1, None
    for _ in range(_LOOKS):
        before, time, after = counter(), now(), counter()
        if found is None or after - before < shortest:
            shortest, found = after - before, ((before + after) // 2, time)
        if shortest * _SHORT <= counter_hz:
            break
    assert found is not None
    return found
