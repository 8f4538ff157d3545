"""The native language: what its functions compute, and what it refuses and where."""

import ctypes
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.jit.compile.llvm import Library, compile_object
from ringzero.jit.compile.module import Module
from ringzero.jit.compile.staging import StagingError
from ringzero.native import (
    Struct,
    boolean,
    byte_swap,
    field,
    i8,
    i64,
    native,
    popcount,
    select,
    staged,
    trailing_zeros,
    u8,
    u16,
    u32,
    u64,
)
from ringzero.native.functions import NATIVE_FUNCTIONS

pytestmark = pytest.mark.engine
MASK = (1 << 64) - 1
words = st.integers(0, MASK)


class Box(Struct):
    small = field(u8)
    count = field(u32)
    items = field(u16, 5)
    total = field(u64)


@native
def wrap(a: u64, b: u64) -> u64:
    return (u64(u8(a) + u8(b)) << 32) | u64(u16(a) * u16(b))


@native
def signs(a: u64, b: u64) -> u64:
    return u64(i64(i8(a)) >> 2) ^ u64(select(i64(a) < i64(b), u32(1), u32(2)))


@staged
def clamp(value, low, high):
    if value < low:
        return low
    if value > high:
        return high
    return value


@native
def clamped(a: u64, b: u64) -> u64:
    return clamp(a, u64(10), b | 16) + clamp(b, u64(3), u64(9))


@native
def steps(a: u64, b: u64) -> u64:
    """Count and sum with `while`, `break`, `continue`, and a counted and an unrolled `for`."""
    total = u64(0)
    n = a & 0xFF
    while n != 0:
        n -= 1
        if n & 3 == 1:
            continue
        if n == b & 0x3F:
            break
        total += n
    for i in range(b & 15):
        total = total * 3 + i
    for item in (1, 10, 100):
        total += item
    return total


@native
def safe(a: u64, b: u64) -> boolean:
    return (b != 0 and a // b > 2) or not (a < b)


@native
def chosen(a: u64, b: u64) -> u64:
    return (a // b if b != 0 else 7) + (u64(1) if 0 < a <= 9 else 2)


@native
def boxed(box: Box, n: u64) -> u64:
    box.small = u8(n)
    box.count += 1
    box.items[2] = u16(n)
    box.items[n & 3] += 5
    box.total = u64(box.items[2]) + u64(box.small)
    return box.total


@native
def bits(a: u64, b: u64) -> u64:
    return (popcount(a) << 16) ^ trailing_zeros(b) ^ byte_swap(a)


FUNCTIONS = (wrap, signs, clamped, steps, safe, chosen, boxed, bits)


def link(functions):
    module = Module("test")
    for function in functions:
        module.require(function)
    return Library([compile_object(module.text())], [f.name for f in functions])


@pytest.fixture(scope="module")
def run():
    library = link(FUNCTIONS)

    def call(function, *arguments):
        result = ctypes.c_bool if function is safe else ctypes.c_uint64
        kinds = [ctypes.c_uint64] * len(arguments)
        return ctypes.CFUNCTYPE(result, *kinds)(library.address(function.name))(*arguments)

    call.library = library
    return call


@given(words, words)
def test_arithmetic_wraps(run, a, b):
    low = a * b & 0xFFFF
    assert run(wrap, a, b) == ((a + b & 0xFF) << 32) | low


def signed(value, width):
    value &= (1 << width) - 1
    return value - (1 << width) if value >> width - 1 else value


@given(words, words)
def test_signs(run, a, b):
    first = (signed(a, 8) >> 2) & MASK
    assert run(signs, a, b) == first ^ (1 if signed(a, 64) < signed(b, 64) else 2)


@given(words, words)
def test_early_return_from_inlined_functions(run, a, b):
    assert run(clamped, a, b) == (min(max(a, 10), b | 16) + min(max(b, 3), 9) & MASK)


@given(words, words)
def test_loops(run, a, b):
    total, n = 0, a & 0xFF
    while n:
        n -= 1
        if n & 3 == 1:
            continue
        if n == b & 0x3F:
            break
        total += n
    for i in range(b & 15):
        total = total * 3 + i
    assert run(steps, a, b) == total + 111 & MASK


@given(st.integers(0, 20) | words, st.integers(0, 5) | words)
def test_conditions(run, a, b):
    """A division by 0 would end the process: the right side is not run."""
    assert run(safe, a, b) is ((b != 0 and a // b > 2) or not a < b)
    assert run(chosen, a, b) == ((a // b if b else 7) + (1 if 0 < a <= 9 else 2)) & MASK


@given(words)
def test_structs(run, n):
    memory = ctypes.create_string_buffer(b"\xff" * Box.size, Box.size)
    result = run(boxed, ctypes.addressof(memory), n)
    items = [0xFFFF] * 5
    items[2] = n & 0xFFFF
    items[n & 3] = items[n & 3] + 5 & 0xFFFF
    total = items[2] + (n & 0xFF)
    assert result == total
    raw = memory.raw

    def member(name, size, index=0):
        at = Box.offset_of(name, index)
        return int.from_bytes(raw[at : at + size], "little")

    assert member("small", 1) == n & 0xFF
    assert member("count", 4) == 0
    assert [member("items", 2, k) for k in range(5)] == items
    assert member("total", 8) == total


@given(words, words)
def test_bit_operations(run, a, b):
    zeros = 64 if b == 0 else (b & -b).bit_length() - 1
    swapped = int.from_bytes(a.to_bytes(8, "little"), "big")
    assert run(bits, a, b) == (a.bit_count() << 16) ^ zeros ^ swapped


OPERATORS = (operator.add, operator.sub, operator.mul, operator.and_, operator.or_, operator.xor)
leaves = st.sampled_from(("a", "b")) | words
trees = st.recursive(leaves, lambda t: st.tuples(st.sampled_from(OPERATORS), t, t), max_leaves=12)


def evaluate(tree, a, b):
    """The value of a tree: of Values at generation time, of ints in the test."""
    if isinstance(tree, tuple):
        value = tree[0](evaluate(tree[1], a, b), evaluate(tree[2], a, b))
        return value & MASK if isinstance(value, int) else value
    return {"a": a, "b": b}.get(tree, tree)


@settings(max_examples=25, deadline=None)
@given(trees, words, words)
def test_random_expressions(tree, a, b):
    def compute(a: u64, b: u64) -> u64:
        return u64(evaluate(tree, a, b))

    function = native(compute)
    function.name = "compute"
    NATIVE_FUNCTIONS.remove(function)  # it is nobody else's
    library = link([function])
    kind = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    assert kind(library.address(function.name))(a, b) == evaluate(tree, a, b) & MASK


def mixed_types(a: u64) -> u64:
    return a + u32(a)


def late_value(a: u64) -> u64:
    n = 0
    if a != 0:
        n = 1
    return u64(n)


def past_the_end(box: Box) -> u64:
    return u64(box.items[5])


def unknown_member(box: Box) -> u64:
    return box.nothing


def not_in_the_language(a: u64) -> u64:
    return max(lambda: a)


@pytest.mark.parametrize(
    ("function", "line", "what"),
    [
        (mixed_types, 1, "mixed types: u64 and u32"),
        (late_value, 3, "generation-time variable"),
        (past_the_end, 1, r"items\[5\]"),
        (unknown_member, 1, "no member 'nothing'"),
        (not_in_the_language, 1, "Lambda is not in the native language"),
    ],
)
def test_errors_name_file_and_line(function, line, what):
    marked = native(function)
    NATIVE_FUNCTIONS.remove(marked)
    number = function.__code__.co_firstlineno + line
    with pytest.raises(StagingError, match=what) as caught:
        link([marked])
    assert f"{__file__}:{number}: in {function.__name__}" in str(caught.value)
