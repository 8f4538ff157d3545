"""Records behave as frozen dataclasses do."""

import copy
import dataclasses
import pickle

import pytest

from ringzero import records
from ringzero.records import record


@record
class Point:
    x: int
    y: int = 2
    tags: list = records.field(default_factory=list)

    @property
    def sum(self):
        return self.x + self.y


@record
class Named(Point):
    name: str = "p"


@dataclasses.dataclass(frozen=True)
class Reference:
    x: int
    y: int = 2
    tags: list = dataclasses.field(default_factory=list)


CALLS = [
    ((1,), {}), ((1, 3), {}), ((1, 3, [4]), {}), ((), {"x": 1}), ((1,), {"tags": [1], "y": 0}),
    ((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "named"), CALLS)
def test_construction_is_that_of_a_dataclass(values, named):
    try:
        expected = Reference(*values, **named)
    except TypeError:
        with pytest.raises(TypeError):
            Point(*values, **named)
        return
    made = Point(*values, **named)
    assert (made.x, made.y, made.tags) == (expected.x, expected.y, expected.tags)
    assert repr(made) == repr(expected).replace("Reference", "Point")


def test_equality_and_hash():
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert hash(Point(1, 2, ())) == hash(Point(1, 2, ()))
    with pytest.raises(TypeError):
        hash(Point(1))


def test_frozen():
    point = Point(1)
    with pytest.raises(AttributeError, match="x"):
        point.x = 2
    with pytest.raises(AttributeError):
        del point.y


def test_each_object_has_its_own_default():
    assert Point(1).tags is not Point(1).tags


def test_a_secret_is_not_shown():
    @record
    class Secret:
        name: str
        key: bytes = records.field(default_factory=lambda: b"s3cret", repr=False)

    assert repr(Secret("n")) == f"{Secret.__qualname__}(name='n')"
    assert Secret("n") != Secret("n", b"other")


def test_inheritance_and_replace():
    named = Named(1, name="q")
    assert (named.x, named.name, named.sum) == (1, "q", 3)
    assert records.replace(named, y=5) == Named(1, 5, [], "q")
    assert records.field_names(Named) == ("x", "y", "tags", "name")


def test_copies():
    point = Point(1, 2, [3])
    assert copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point


def test_the_standard_library_takes_a_record():
    @record
    class Fresh(Point):
        more: int = 1

    assert dataclasses.is_dataclass(Fresh)
    assert [field.name for field in dataclasses.fields(Fresh)] == ["x", "y", "tags", "more"]
    fresh = dataclasses.replace(Fresh(1), more=4)
    assert fresh == Fresh(1, more=4)
    assert dataclasses.asdict(fresh) == {"x": 1, "y": 2, "tags": [], "more": 4}
    with pytest.raises(AttributeError):
        fresh.x = 1


def test_a_positional_match():
    match Point(1, 7):
        case Point(x, y):
            assert (x, y) == (1, 7)
