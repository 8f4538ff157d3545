"""Times with units, as Go writes them."""

import pytest

from ringzero.errors import InvalidValueError
from ringzero.units import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0), ("0s", 0), (".5s", 0.5),
     ("2h45m", 9900), ("250us", 0.00025), ("10ns", 1e-8)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "-5s", "s", "1 m", "1d", "5S", "1m30", "1s\n", "\u0661s"]
)
def test_what_is_no_duration(text):
    with pytest.raises(InvalidValueError, match="is no time"):
        parse_duration(text)
