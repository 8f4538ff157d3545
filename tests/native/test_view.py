"""Views of native structs: what Python reads and writes lies where native code expects it."""

import ctypes

import pytest

from ringzero.isa.x86.cpu import Cpu
from ringzero.native.types import (
    Struct,
    boolean,
    field,
    i16,
    i64,
    u8,
    u16,
    u32,
    u64,
    u128,
    v128,
)
from ringzero.native.view import StructView, view_of


class Inner(Struct):
    small = field(u8)
    large = field(u64)


class Outer(Struct):
    flag = field(boolean)
    short = field(i16)
    word = field(u32)
    signed = field(i64)
    wide = field(u128)
    vector = field(v128, 3)
    inner = field(Inner)
    many = field(Inner, 2)
    numbers = field(u16, 5)


@pytest.fixture
def room():
    return (ctypes.c_uint8 * Outer.size)()


@pytest.fixture
def view(room):
    return view_of(Outer, ctypes.addressof(room))


def raw(room, offset, size):
    return int.from_bytes(bytes(room)[offset : offset + size], "little")


@pytest.mark.parametrize(
    ("name", "size", "value"),
    [
        ("flag", 1, 1),
        ("short", 2, 0x7FFE),
        ("word", 4, 0xFEDCBA98),
        ("signed", 8, 0x7EDCBA9876543210),
        ("wide", 16, 0xFEDCBA98765432100123456789ABCDEF),
    ],
)
def test_a_member_lies_at_its_offset(room, view, name, size, value):
    setattr(view, name, value)
    assert getattr(view, name) == value == raw(room, Outer.offset_of(name), size)
    assert sum(room) == sum(value.to_bytes(size, "little"))


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("word", 0x1_2345_6789, 0x2345_6789),
        ("word", -1, 0xFFFF_FFFF),
        ("short", 0x8000, -0x8000),
        ("signed", (1 << 64) - 1, -1),
        ("wide", -1, (1 << 128) - 1),
        ("wide", 1 << 128 | 5, 5),
    ],
)
def test_what_is_written_is_truncated(view, name, value, read):
    setattr(view, name, value)
    assert getattr(view, name) == read


def test_arrays(room, view):
    view.vector[2] = 7 << 64
    view.numbers[4] = 0x1_0003
    assert list(view.vector) == [0, 0, 7 << 64]
    assert raw(room, Outer.offset_of("vector", 2) + 8, 8) == 7
    assert list(view.numbers) == [0, 0, 0, 0, 3]
    assert raw(room, Outer.offset_of("numbers", 4), 2) == 3
    for array in (view.vector, view.numbers):
        with pytest.raises(IndexError):
            array[len(array)]
        with pytest.raises(IndexError):
            array[len(array)] = 1


def test_nested_structs_are_views(room, view):
    view.inner.large = 9
    view.many[1].large = 10
    at = Inner.offset_of("large")
    assert raw(room, Outer.offset_of("inner") + at, 8) == 9
    assert raw(room, Outer.offset_of("many", 1) + at, 8) == 10
    assert view.many[1].address == view.address + Outer.offset_of("many", 1)


def test_an_unknown_member_is_refused(view):
    with pytest.raises(AttributeError, match="else"):
        view.other_or_else  # noqa: B018
    with pytest.raises(AttributeError):
        view.other = 1


@pytest.mark.parametrize("name", ["inner", "many", "numbers"])
def test_nothing_whole_is_assigned(view, name):
    with pytest.raises((TypeError, AttributeError)):
        setattr(view, name, 1)


def test_each_member_of_a_vcpu_has_its_offset():
    kind = type(view_of(Cpu, ctypes.addressof((ctypes.c_uint8 * Cpu.size)())))
    assert issubclass(kind, StructView)
    assert ctypes.sizeof(kind) == Cpu.size
    for name, member in Cpu.fields.items():
        place = getattr(kind, f"_{name}" if member.kind in (u128, v128) else name)
        assert (place.offset, place.size) == (member.offset, member.size), name
