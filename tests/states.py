"""States made up for property tests: values of the same shape as a saved one, but other ones."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

# What a register or an index may hold: small, and around every width.
NUMBERS = st.one_of(
    st.integers(0, 255),
    st.sampled_from(
        [(1 << bits) + more for bits in (8, 16, 31, 32, 63, 64) for more in (-2, -1, 0)]
    ),
    st.integers(0, (1 << 64) - 1),
)


def alike(value: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of the type and the lengths of `value`; often `value` itself."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: alike(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return st.builds(type(value), **fields)
    if isinstance(value, tuple):
        return st.tuples(*(alike(item) for item in value))
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.one_of(st.just(value), NUMBERS)
    if isinstance(value, bytes):
        return st.one_of(st.just(value), st.binary(min_size=len(value), max_size=len(value)))
    return st.just(value)
