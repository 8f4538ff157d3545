"""What bodies may hold, and the sentences that say what is wrong."""

import json

import pytest

from ringzero.doors.firecracker import bodies
from ringzero.doors.firecracker.bodies import Body, BodyError

SMALL = Body(
    {"count": bodies.whole(8)},
    {"kind": bodies.one_of("A", "B"), "on": bodies.flag, "names": bodies.each(bodies.text)},
)


def test_a_body():
    data = b'{"count": 3, "kind": "B", "on": null, "names": ["x"]}'
    assert SMALL.read(data) == {"count": 3, "kind": "B", "names": ["x"]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{}", "missing field `count`"),
        ('{"count": null}', "invalid type: null, expected u8"),
        ('{"count": "3"}', 'invalid type: string "3", expected u8'),
        ('{"count": true}', "invalid type: boolean `true`, expected u8"),
        ('{"count": 1.5}', "invalid type: floating point `1.5`, expected u8"),
        ('{"count": 256}', "invalid value: integer `256`, expected u8"),
        ('{"count": -1}', "invalid value: integer `-1`, expected u8"),
        ('{"count": 1, "kind": "C"}', "unknown variant `C`, expected `A` or `B`"),
        ('{"count": 1, "on": 1}', "invalid type: integer `1`, expected a boolean"),
        ('{"count": 1, "names": "x"}', 'invalid type: string "x", expected a sequence'),
        (
            '{"count": 1, "other": 1}',
            "unknown field `other`, expected one of `count`, `kind`, `on`, `names`",
        ),
        ("[]", "invalid type: sequence, expected an object"),
        ('{"count": NaN}', "no JSON has NaN"),
        ("[" * 200 + "]" * 200, "recursion limit exceeded"),
        ("[" * 100_000, "recursion limit exceeded"),
        ('{"count": ' + "9" * 5000 + "}", None),
        ('{"count"', None),
        ("\xff", None),
    ],
)
def test_what_is_wrong(data, reason):
    with pytest.raises(BodyError) as caught:
        SMALL.read(data.encode("latin-1"))
    assert reason in (None, caught.value.message)


@pytest.mark.parametrize("address", ["06:00:ac:10:00:02", "06:00:AC:10:00:02"])
def test_mac_addresses(address):
    assert bodies.mac(address) == "06:00:ac:10:00:02"
    with pytest.raises(BodyError):
        bodies.mac(address[:-1])


def test_levels_of_the_log():
    assert [bodies.level(name) for name in ("Warning", "ERROR", "info")] == [
        "warn",
        "error",
        "info",
    ]
    with pytest.raises(BodyError, match="Invalid LevelFilter"):
        bodies.level("loud")


def test_whatever_comes_is_json_or_an_error():
    for value in (None, 0, "x", [], {"a": [1]}):
        assert bodies.parse(json.dumps(value).encode()) == value
