"""How stencils' code is cut, patched and called on x86-64."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.jit import tables
from ringzero.jit.compile.llvm import Library, compile_object
from ringzero.jit.compile.module import Module
from ringzero.jit.host import x86_64 as host
from ringzero.jit.host.elf import R_32S, R_PLT32, Function, Relocation, read_functions

pytestmark = pytest.mark.engine


def stencil(code, *places):
    return Function("s0", bytes.fromhex(code), tuple(Relocation(*place) for place in places))


def test_the_last_jump_to_the_next_stencil_is_cut_off():
    found = host.trimmed(stencil("90 e9 00000000", (2, R_PLT32, "NEXT", -4)))
    assert found == (b"\x90", [])


def test_a_jump_elsewhere_stays():
    code, holes = host.trimmed(stencil("90 e9 00000000", (2, R_PLT32, "TARGET", -4)))
    assert code == bytes.fromhex("90 e9 00000000")
    assert holes == [(2, tables.RELATIVE_32, tables.TARGET, -4)]


def test_a_conditional_jump_to_the_next_stencil_is_turned_round():
    """je NEXT; jmp TARGET becomes jne TARGET, which falls through."""
    code, holes = host.trimmed(
        stencil("0f84 00000000 e9 00000000", (2, R_PLT32, "NEXT", -4), (7, R_PLT32, "TARGET", -4))
    )
    assert code == bytes.fromhex("0f85 00000000")
    assert holes == [(2, tables.RELATIVE_32, tables.TARGET, -4)]


def test_bytes_that_only_look_like_a_conditional_jump_stay():
    """Here 0F 84 are the end of another instruction's immediate, and the hole is not behind it."""
    text = "b8 00000f84 e9 00000000"
    code, holes = host.trimmed(stencil(text, (1, R_32S, "HI", 0), (6, R_PLT32, "TARGET", -4)))
    assert code == bytes.fromhex(text)
    assert len(holes) == 2


def test_a_constant_in_memory_makes_no_stencil():
    assert host.trimmed(stencil("90 e9 00000000", (2, R_PLT32, ".LCPI0_0", -4))) is None


@pytest.fixture(scope="module")
def native():
    module = Module("patching")
    module.require(host.fill)
    library = Library([compile_object(module.text())], [host.fill.name])
    kinds = (ctypes.c_uint64, ctypes.c_uint8, ctypes.c_uint64)
    fill = ctypes.CFUNCTYPE(None, *kinds)(library.address(host.fill.name))
    fill.library = library  # which holds the code
    return fill


WIDTHS = {
    tables.ABSOLUTE_8: 1, tables.ABSOLUTE_16: 2, tables.ABSOLUTE_32: 4, tables.ABSOLUTE_64: 8,
    tables.RELATIVE_32: 4,
}  # fmt: skip


@given(st.sampled_from(list(WIDTHS)), st.integers(0, (1 << 64) - 1))
def test_a_hole_is_filled_and_nothing_beside_it(native, kind, value):
    memory = ctypes.create_string_buffer(b"\xa5" * 24, 24)
    site = ctypes.addressof(memory) + 8
    native(site, kind, value)
    expected = value - site if kind == tables.RELATIVE_32 else value
    size = WIDTHS[kind]
    filled = (expected & (1 << 8 * size) - 1).to_bytes(size, "little")
    assert memory.raw == b"\xa5" * 8 + filled + b"\xa5" * (16 - size)


@pytest.mark.parametrize("number", range(len(host.ARGUMENT_REGISTERS)))
def test_arguments_are_where_the_convention_says(number):
    """LLVM puts a constant for one argument of a tail call into that register, and no other."""
    capstone = pytest.importorskip("capstone")
    count = len(host.ARGUMENT_REGISTERS)
    parameters = ", ".join(f"i64 %a{n}" for n in range(count))
    given = ", ".join("i64 4660" if n == number else f"i64 %a{n}" for n in range(count))
    ir = (
        f"declare {host.CONVENTION} void @NEXT({parameters})\n"
        f"define {host.CONVENTION} void @s0({parameters}) nounwind {{\n"
        f" musttail call {host.CONVENTION} void @NEXT({given})\n ret void\n}}\n"
    )
    (function,) = read_functions(compile_object(ir, level=1, relocation="static"))
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.detail = True
    move, jump = engine.disasm(function.code, 0)
    assert jump.mnemonic == "jmp"
    assert move.operands[1].imm == 4660
    register = move.reg_name(move.operands[0].reg)
    names = {"eax": "rax", "ecx": "rcx", "edx": "rdx", "esi": "rsi", "edi": "rdi"}
    assert names.get(register, register.removesuffix("d")) == host.ARGUMENT_REGISTERS[number]
