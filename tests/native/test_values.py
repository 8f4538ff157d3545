"""What operators on values ask of the builder, without a compiler: one that writes it down."""

import operator

import pytest

from ringzero.native import (
    Struct,
    boolean,
    field,
    fill_memory,
    i32,
    load,
    native,
    pointer,
    popcount,
    select,
    sign,
    staged,
    store,
    u8,
    u16,
    u32,
    u64,
)
from ringzero.native.functions import NATIVE_FUNCTIONS
from ringzero.native.generation import as_value, building, convert
from ringzero.native.values import Value, set_field


class Recorder:
    """A `native.values.Builder` that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def _value(self, kind, *what):
        self.asked.append(what)
        return Value(kind, f"%{len(self.asked)}")

    def constant(self, kind, value):
        return Value(kind, str(value))

    def binary(self, name, left, right):
        return self._value(left.kind, name, left.ref, right.ref)

    def compare(self, name, left, right):
        return self._value(boolean, name, left.ref, right.ref)

    def convert(self, kind, value):
        return self._value(kind, "convert", repr(kind), value.ref)

    def offset(self, base, offset):
        return self._value(base.kind, "offset", base.ref, getattr(offset, "ref", offset))

    def load(self, kind, base, offset):
        return self._value(kind, "load", base.ref, getattr(offset, "ref", offset))

    def store(self, kind, base, offset, value):
        self.asked.append(("store", base.ref, getattr(offset, "ref", offset), value.ref))

    def select(self, condition, yes, no):
        return self._value(yes.kind, "select", condition.ref, yes.ref, no.ref)

    def intrinsic(self, name, kind, arguments):
        return self._value(kind, name, *(a.ref for a in arguments))

    def bulk(self, name, to, what, count):
        self.asked.append((name, to.ref, what.ref, count.ref))

    def call(self, function, arguments):
        return self._value(function.signature()[1], "call", function.name, *arguments)

    def inline(self, function, args, kwargs):
        return function.function(*args, **kwargs)


@pytest.fixture
def recorder():
    with building(Recorder()) as _, building(found := Recorder()):
        yield found


a, b, narrow = Value(u64, "%a"), Value(u64, "%b"), Value(u32, "%c")


class Pair(Struct):
    first = field(u64)
    items = field(u16, 4)


class Nested(Struct):
    byte = field(u8)
    pair = field(Pair)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul"),
        (operator.floordiv, "div"), (operator.mod, "rem"), (operator.and_, "and"),
        (operator.or_, "or"), (operator.xor, "xor"), (operator.lshift, "shl"),
        (operator.rshift, "shr"), (operator.lt, "lt"), (operator.le, "le"), (operator.gt, "gt"),
        (operator.ge, "ge"), (operator.eq, "eq"), (operator.ne, "ne"),
    ],
)  # fmt: skip
def test_operators(recorder, function, name):
    assert function(a, b).kind == (boolean if name in ("lt", "le", "gt", "ge", "eq", "ne") else u64)
    function(a, 3)
    assert recorder.asked == [(name, "%a", "%b"), (name, "%a", "3")]


def test_an_int_on_the_left_takes_the_type_of_the_other_side(recorder):
    assert (5 - narrow).kind == u32
    assert recorder.asked == [("sub", "5", "%c")]


def test_negation_and_complement_are_of_the_own_width(recorder):
    _ = -narrow, ~narrow, ~Value(boolean, "%t")
    assert recorder.asked == [
        ("sub", "0", "%c"), ("xor", "%c", str(0xFFFFFFFF)), ("xor", "%t", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize("function", [operator.add, operator.eq, operator.lt, operator.and_])
def test_types_do_not_mix(recorder, function):
    with pytest.raises(TypeError, match="mixed types: u64 and u32"):
        function(a, narrow)


def test_a_shift_count_is_converted(recorder):
    _ = a << narrow
    assert recorder.asked == [("convert", "u64", "%c"), ("shl", "%a", "%1")]


def test_a_value_has_no_truth_and_no_hash(recorder):
    with pytest.raises(TypeError, match="no truth"):
        bool(a == b)
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)


def test_conversion_to_the_own_type_is_nothing(recorder):
    assert convert(u64, a) is a
    assert convert(i32, 7).ref == "7"
    assert recorder.asked == []
    with pytest.raises(TypeError, match="expected u32, found u64"):
        as_value(a, u32)
    with pytest.raises(TypeError, match="no native value"):
        as_value("text", u32)


def test_members(recorder):
    nested = Value(Nested, "%n")
    assert nested.byte.kind == u8
    assert nested.pair.first.kind == u64
    assert nested.pair.items[3].kind == u16
    at = Nested.offset_of("pair")
    assert recorder.asked == [
        ("load", "%n", 0), ("offset", "%n", at), ("load", "%2", 0),
        ("offset", "%n", at), ("load", "%4", Pair.offset_of("items", 3)),
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no member 'third'"):
        _ = nested.third


def test_array_indices(recorder):
    pair = Value(Pair, "%p")
    for index in (-1, 4):
        with pytest.raises(IndexError, match=r"items\[" + str(index)):
            _ = pair.items[index]
    pair.items[a] = 9
    assert recorder.asked == [("mul", "%a", "2"), ("add", "%1", "8"), ("store", "%p", "%2", "9")]


def test_set_field(recorder):
    set_field(Value(Pair, "%p"), "first", 1)
    assert recorder.asked == [("store", "%p", 0, "1")]
    with pytest.raises(TypeError, match="items is an array"):
        set_field(Value(Pair, "%p"), "items", 1)


def test_operations_without_an_operator(recorder):
    load(u16, a, 6)
    store(u8, a, 1)
    popcount(narrow)
    pointer(Pair, a)
    fill_memory(a, 0, narrow)
    assert recorder.asked == [
        ("load", "%a", 6), ("store", "%a", 0, "1"), ("ctpop", "%c"), ("convert", repr(Pair), "%a"),
        ("convert", "u64", "%c"), ("memset", "%a", "0", "%5"),
    ]  # fmt: skip


def test_select_of_what_is_known_is_made_at_once(recorder):
    assert select(True, a, b) is a
    assert select(False, a, b) is b
    assert recorder.asked == []
    assert select(a == b, 1, narrow).kind == u32


def test_sign_is_a_comparison_of_the_signed_value(recorder):
    assert sign(narrow).kind == boolean
    assert recorder.asked == [("convert", "i32", "%c"), ("lt", "%1", "0")]


def test_functions(recorder):
    @native
    def callee(x: u64, y: Pair) -> u32:
        return u32(x)

    @staged
    def twice(x):
        return x + x

    NATIVE_FUNCTIONS.remove(callee)  # it is nobody else's
    assert callee.signature() == ([u64, Pair], u32)
    assert callee.name == "test_values.test_functions.<locals>.callee"
    assert callee(a, b).kind == u32
    assert twice(a).kind == u64
    assert [what[0] for what in recorder.asked] == ["call", "add"]


def test_outside_of_generation_there_is_no_builder():
    with pytest.raises(RuntimeError, match=r"generated by ringzero\.jit"):
        _ = a + b
