"""Registers as gdb sees them, in a state with known values."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import InvalidValueError
from ringzero.isa.x86.debugtarget import TARGET
from ringzero.isa.x86.state import CpuState, Segment, flat_segment
from ringzero.records import replace

WITH_AVX = replace(CpuState(), xsave=CpuState().xsave + bytes(256))


@pytest.mark.parametrize("state", [CpuState(), WITH_AVX])
def test_the_description_names_the_registers_in_their_order(state):
    described = ElementTree.fromstring(TARGET.describe(state))
    registers = [(r.get("name"), int(r.get("bitsize"))) for r in described.iter("reg")]
    assert registers == [(r.name, r.bits) for r in TARGET.registers(state)]
    # The numbers that gdb has for the core, whatever a description says (amd64-tdep).
    assert [name for name, _ in registers[:4]] == ["rax", "rbx", "rcx", "rdx"]
    assert registers[16] == ("rip", 64) and registers[17] == ("eflags", 32)
    assert ("ymm0h" in dict(registers)) is (state is WITH_AVX)
    types = {t.get("id") for kind in ("flags", "union", "vector") for t in described.iter(kind)}
    builtin = {"int", "int64", "uint128", "i387_ext", "code_ptr", "data_ptr"}
    assert {r.get("type") for r in described.iter("reg")} <= types | builtin


@given(st.data())
def test_what_is_written_is_read(data):
    state = WITH_AVX
    writable = [
        r for r in TARGET.registers(state)
        if r.name not in (
            "cs", "ss", "ds", "es", "fs", "gs", "fstat", "ftag", "fiseg", "fioff", "foseg",
            "fooff", "fop",
        )
    ]  # fmt: skip
    values = {}
    for _ in range(data.draw(st.integers(1, 4))):
        register = data.draw(st.sampled_from(writable))
        width = 16 if register.name == "fctrl" else register.bits
        values[register.name] = data.draw(st.integers(0, (1 << width) - 1))
        state = TARGET.write(state, register.name, values[register.name])
    for register in writable:
        wanted = values.get(register.name, TARGET.read(WITH_AVX, register.name))
        assert TARGET.read(state, register.name) == wanted, register.name


def test_initial_components_are_not_what_lies_in_the_area():
    rubbish = bytearray(CpuState().xsave)
    rubbish[32:42] = b"\xaa" * 10
    rubbish[160:176] = b"\xbb" * 16
    rubbish[512:520] = bytes(8)
    state = replace(CpuState(), xsave=bytes(rubbish))
    assert TARGET.read(state, "st0") == TARGET.read(state, "xmm0") == 0
    assert TARGET.read(state, "fctrl") == 0x37F and TARGET.read(state, "ftag") == 0xFFFF
    changed = TARGET.write(state, "xmm1", 7)
    assert TARGET.read(changed, "xmm0") == 0 and TARGET.read(changed, "xmm1") == 7


def test_tags_tell_zero_special_and_empty():
    area = bytearray(CpuState().xsave)
    # TOP is 5: ST(0) is R5, which holds 1.0, ST(1) is R6, a zero, ST(2) is R7, an infinity.
    area[3] = 5 << 3
    area[4] = 0b1110_0000
    area[32:42] = (0x3FFF << 64 | 1 << 63).to_bytes(10, "little")
    area[64:74] = (0x7FFF << 64 | 1 << 63).to_bytes(10, "little")
    area[512] = 1
    state = replace(CpuState(), xsave=bytes(area))
    assert TARGET.read(state, "ftag") == 0b10_01_00_11_11_11_11_11


def test_a_selector_cannot_be_changed():
    with pytest.raises(InvalidValueError):
        TARGET.write(CpuState(), "cs", 0x1234)
    assert TARGET.write(CpuState(), "cs", 0xF000) == CpuState()


def test_the_next_instruction_is_at_a_linear_address():
    assert TARGET.where(CpuState()) == 0xFFFF_FFF0
    long = replace(CpuState(), cs=flat_segment(8, code=True), rip=0xFFFF_8000_0000_0000)
    assert TARGET.where(long) == 0xFFFF_8000_0000_0000
    assert TARGET.where(replace(CpuState(), cs=Segment(8, 0x1000, 0xFFFF, 0x9B))) == 0x10FF0
