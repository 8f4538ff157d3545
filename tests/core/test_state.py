"""States as trees: what was written is read back, and what does not fit is named."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.core.state import from_tree, to_tree
from ringzero.errors import StateError
from ringzero.records import record


@record
class Inner:
    number: int
    data: bytes
    maybe: str | None


@dataclass(frozen=True)
class Outer:
    flag: bool
    share: float
    inner: Inner
    many: tuple[Inner, ...]
    pair: tuple[int, str]
    table: dict[int, int]
    list: list[bytes]


INNER = st.builds(Inner, st.integers(), st.binary(), st.none() | st.text())
OUTER = st.builds(
    Outer,
    st.booleans(),
    st.floats(allow_nan=False),
    INNER,
    st.lists(INNER, max_size=3).map(tuple),
    st.tuples(st.integers(), st.text()),
    st.dictionaries(st.integers(), st.integers(), max_size=3),
    st.lists(st.binary(), max_size=3),
)


@given(OUTER)
def test_round_trip(state):
    tree = json.loads(json.dumps(to_tree(state)))
    assert from_tree(Outer, tree) == state
    assert to_tree(from_tree(Outer, tree)) == tree


SAMPLE = Outer(True, 0.5, Inner(1, b"x", None), (Inner(2, b"", "y"),), (3, "z"), {4: 5}, [b"l"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON, st.data())
def test_nonsense_is_refused_or_fits(junk, data):
    tree = to_tree(SAMPLE)
    place, key = data.draw(
        st.sampled_from(
            [*((tree, name) for name in tree), *((tree["inner"], n) for n in tree["inner"]),
             (tree["many"], 0), (tree["pair"], 0), (tree["table"], "4"), (tree["list"], 0)]
        )
    )  # fmt: skip
    place[key] = junk
    try:
        again = from_tree(Outer, tree)
    except StateError:
        return
    # Text may spell the same bytes in another way, and no NaN equals another.
    assert repr(to_tree(again)) == repr(tree) or isinstance(junk, (dict, list, str))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["inner"].update(number="1"), "state.inner.number: expected <class 'int'>"),
        (lambda t: t["inner"].update(number=True), "state.inner.number: expected"),
        (lambda t: t["inner"].update(data="?"), "state.inner.data: not base64"),
        (lambda t: t["inner"].pop("data"), "state.inner: missing fields: data"),
        (lambda t: t.update(odd=1), "state: unknown fields: odd"),
        (lambda t: t.update(inner=[]), "state.inner: expected fields of Inner"),
        (lambda t: t["many"].append({}), r"state.many\[1\]: missing"),
        (lambda t: t["many"][0].update(maybe=7), r"state.many\[0\].maybe: expected"),
        (lambda t: t.update(pair=[1]), "state.pair: expected"),
        (lambda t: t.update(pair=[1, 2]), r"state.pair\[1\]: expected"),
        (lambda t: t.update(table={"x": 1}), "state.table: 'x' is no int"),
        (lambda t: t.update(table={"1": []}), r"state.table\[1\]: expected"),
        (lambda t: t.update(table=[]), "state.table: expected"),
        (lambda t: t.update(list=["x", 1]), r"state.list\[0\]: not base64"),
    ],
)
def test_faults_are_named(change, message):
    tree = to_tree(SAMPLE)
    change(tree)
    with pytest.raises(StateError, match=message):
        from_tree(Outer, tree)


def test_what_is_no_state():
    with pytest.raises(StateError, match="set"):
        to_tree({"a": {1}})


@record
class GrownInner:
    """Inner, some versions later: a field more, one renamed, one gone."""

    count: int
    data: bytes
    extra: tuple[int, ...] = (7,)

    @classmethod
    def upgrade(cls, old):
        if "number" in old:
            old["count"] = old.pop("number") + 1
        old.pop("maybe", None)
        return old


@dataclass(frozen=True)
class Grown:
    inner: GrownInner
    fresh: list[int] = field(default_factory=list)
    later: int = 5


@pytest.mark.parametrize(
    "state",
    [Inner(1, b"x", None), GrownInner(1, b"x"), GrownInner(1, b"x", (2, 3))],
    ids=["older", "today's", "whole"],
)
def test_a_state_that_grew_reads_its_older_forms(state):
    inner = to_tree(state)
    if type(state) is GrownInner and state.extra == (7,):
        del inner["extra"]
    count = 2 if type(state) is Inner else 1
    read = from_tree(Grown, {"inner": inner})
    assert read == Grown(GrownInner(count, b"x", getattr(state, "extra", (7,))))
    assert to_tree(read).keys() == {"inner", "fresh", "later"}
    assert from_tree(Grown, to_tree(read)) == read


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"inner": {"count": 1}}, "state.inner: missing fields: data"),
        ({"inner": {"number": 1, "data": "", "odd": 1}}, "state.inner: unknown fields: odd"),
        ({"inner": {"number": "1", "data": ""}}, "state.inner: no form of GrownInner"),
        ({"inner": {"odd": 2}}, "state.inner: unknown fields: odd; missing fields: count, data"),
        ({"later": 1}, "state: missing fields: inner"),
        ({"inner": {"count": 1, "data": ""}, "later": "1"}, "state.later: expected"),
    ],
)
def test_what_no_version_wrote_is_refused_by_name(tree, message):
    with pytest.raises(StateError, match=message):
        from_tree(Grown, tree)


@given(st.dictionaries(st.sampled_from(["number", "count", "data", "maybe", "odd"]), JSON))
def test_no_upgrade_lets_nonsense_out(tree):
    try:
        read = from_tree(GrownInner, tree)
    except StateError:
        return
    assert to_tree(read)["count"] == read.count
