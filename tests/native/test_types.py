"""The types of the native language: widths, and the layout of structs."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.native import Struct, field, i8, i64, signed, u8, u16, u32, u64, u128, unsigned, v128
from ringzero.native.types import StructType

C_TYPES = {u8: ctypes.c_uint8, u16: ctypes.c_uint16, u32: ctypes.c_uint32, u64: ctypes.c_uint64}


def test_a_type_is_its_width_and_sign():
    assert unsigned(32) == u32
    assert signed(8) == i8
    assert i64 != u64
    assert [kind.size for kind in (u8, u16, u32, u64, u128, v128)] == [1, 2, 4, 8, 16, 16]
    assert unsigned(80).size == 10
    assert unsigned(9).size == 2
    assert u16.mask == 0xFFFF
    assert (repr(u16), repr(i8), repr(v128)) == ("u16", "i8", "v128")


@given(st.lists(st.tuples(st.sampled_from(list(C_TYPES)), st.none() | st.integers(1, 5)),
                min_size=1, max_size=12))  # fmt: skip
def test_structs_are_laid_out_as_c_does(members):
    space = {f"m{n}": field(kind, count) for n, (kind, count) in enumerate(members)}
    ours = StructType("Ours", (Struct,), space)
    fields = [
        (f"m{n}", C_TYPES[kind] * count if count else C_TYPES[kind])
        for n, (kind, count) in enumerate(members)
    ]
    theirs = type("Theirs", (ctypes.Structure,), {"_fields_": fields})
    for n, (kind, count) in enumerate(members):
        assert ours.offset_of(f"m{n}") == getattr(theirs, f"m{n}").offset
        if count:
            last = getattr(theirs, f"m{n}").offset + (count - 1) * kind.size
            assert ours.offset_of(f"m{n}", count - 1) == last
    # Structs lie one behind the other at multiples of 16, so that vectors in them are aligned.
    assert ours.size == -(-ctypes.sizeof(theirs) // 16) * 16 or ours.size == ctypes.sizeof(theirs)


def test_a_struct_in_a_struct_is_aligned_for_vectors():
    class Inner(Struct):
        word = field(u64)

    class Outer(Struct):
        byte = field(u8)
        inner = field(Inner, 2)

    assert Outer.offset_of("inner") == 16
    assert Outer.offset_of("inner", 1) == 16 + Inner.size


@pytest.mark.parametrize("name", ["kind", "ref"])
def test_a_member_cannot_have_the_name_of_an_attribute_of_values(name):
    with pytest.raises(TypeError, match=f"Wrong.{name}"):
        StructType("Wrong", (Struct,), {name: field(u8)})
