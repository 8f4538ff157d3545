"""BMI1, BMI2, LZCNT, MOVBE, ADX: bits, shifts without flags, wide products, carry chains.

Intel SDM vol. 2, under each name. Of a VEX prefix they take VEX.W for the operand size.
Registers of those that compilers and C libraries use most are pinned in stencils.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, OF, RDX, SF, ZF
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import (
    byte_swap,
    host_asm,
    leading_zeros,
    select,
    sign,
    staged,
    trailing_zeros,
    u8,
    u64,
    unsigned,
)

# --- counts of zeros ---------------------------------------------------------


@staged
def _count(m: Operation, value: Any, found: Any) -> None:
    """Write a count; CF: the operand was 0, ZF: the count is."""
    m.write(0, found)
    carry = select(value == 0, u64(CF), u64(0))
    zero = select(found == 0, u64(ZF), u64(0))
    m.set_status(carry | zero, ARITHMETIC_FLAGS)


@instruction("F3 0F BD /r : Gv Ev", replaces=True, fast=True, spilled=True)
def lzcnt(m: Operation) -> None:
    """LZCNT: OF, SF, PF and AF, which are undefined, become 0."""
    value = m.read(1)
    _count(m, value, leading_zeros(value))


@instruction("F3 0F BC /r : Gv Ev", replaces=True, fast=True, spilled="m")
def tzcnt(m: Operation) -> None:
    """TZCNT."""
    value = m.read(1)
    _count(m, value, trailing_zeros(value))


# --- bits --------------------------------------------------------------------


@staged
def _result(m: Operation, value: Any, carry: Any) -> None:
    """Write a result; OF is 0, AF and PF, which are undefined, become 0, too."""
    m.write(0, value)
    flags = select(value == 0, u64(ZF), u64(0)) | select(sign(value), u64(SF), u64(0))
    m.set_status(flags | select(carry, u64(CF), u64(0)), ARITHMETIC_FLAGS)


@instruction("VEX.LZ.0F38 F2 /r : Gy By Ey", fast=True, spilled="m", temporary=1)
def andn(m: Operation) -> None:
    """ANDN: the first source is inverted."""
    value = m.read(2)
    result = ~m.read(1) & value
    m.write(0, result)
    flags = select(result == 0, u64(ZF), u64(0)) | select(sign(result), u64(SF), u64(0))
    m.set_status(flags, ARITHMETIC_FLAGS)


@instruction("VEX.LZ.0F38 F3 /1 : By Ey", fast=True, spilled="m")
def blsr(m: Operation) -> None:
    """BLSR: the lowest one becomes 0."""
    value = m.read(1)
    _result(m, value & (value - 1), value == 0)


@instruction("VEX.LZ.0F38 F3 /2 : By Ey", fast=True, spilled=True)
def blsmsk(m: Operation) -> None:
    """BLSMSK: ones up to the lowest one."""
    value = m.read(1)
    _result(m, value ^ (value - 1), value == 0)


@instruction("VEX.LZ.0F38 F3 /3 : By Ey", fast=True, spilled=True)
def blsi(m: Operation) -> None:
    """BLSI: the lowest one alone."""
    value = m.read(1)
    _result(m, value & -value, value != 0)


@instruction("VEX.LZ.0F38 F7 /r : Gy Ey By", fast=True, spilled=True)
def bextr(m: Operation) -> None:
    """BEXTR: bits from a start on (bits 7:0 of the control), as many as bits 15:8 say."""
    value = m.read(1)
    control = m.read(2)
    start, length = control & 0xFF, (control >> 8) & 0xFF
    shifted = select(start < m.size, value >> (start & (m.size - 1)), m.T(0))
    ones = (m.T(1) << (length & (m.size - 1))) - 1
    result = select(length < m.size, shifted & ones, shifted)
    m.write(0, result)
    m.set_status(select(result == 0, u64(ZF), u64(0)), ARITHMETIC_FLAGS)


@instruction("VEX.LZ.0F38 F5 /r : Gy Ey By", fast=True, spilled="m", temporary=2)
def bzhi(m: Operation) -> None:
    """BZHI: bits from a number on (bits 7:0 of the second source) become 0."""
    value = m.read(1)
    number = m.read(2) & 0xFF
    ones = (m.T(1) << (number & (m.size - 1))) - 1
    _result(m, select(number < m.size, value & ones, value), number >= m.size)


def _suffix(m: Operation) -> str:
    return "q" if m.size == 64 else "l"


@instruction("VEX.LZ.F2.0F38 F5 /r : Gy By Ey", fast=True, spilled=True, needs="bmi2")
def pdep(m: Operation) -> None:
    """PDEP, by the host's own: in other instructions it is a loop."""
    mask = m.read(2)
    asm = f"pdep{_suffix(m)} $2, $1, $0"
    m.write(0, host_asm(m.T, asm, "=r,r,r", m.read(1), mask))


@instruction("VEX.LZ.F3.0F38 F5 /r : Gy By Ey", fast=True, spilled=True, needs="bmi2")
def pext(m: Operation) -> None:
    """PEXT, by the host's own."""
    mask = m.read(2)
    asm = f"pext{_suffix(m)} $2, $1, $0"
    m.write(0, host_asm(m.T, asm, "=r,r,r", m.read(1), mask))


# --- shifts, products, sums -----------------------------------------------------


@staged
def _count_of(m: Operation) -> Any:
    return m.read(2) & (m.size - 1)


@instruction("VEX.LZ.F3.0F38 F7 /r : Gy Ey By", fast=True, spilled="m", temporary=2)
def sarx(m: Operation) -> None:
    """SARX."""
    value = m.S(m.read(1))
    m.write(0, m.T(value >> _count_of(m)))


@instruction("VEX.LZ.66.0F38 F7 /r : Gy Ey By", fast=True, spilled="m", temporary=2)
def shlx(m: Operation) -> None:
    """SHLX."""
    value = m.read(1)
    m.write(0, value << _count_of(m))


@instruction("VEX.LZ.F2.0F38 F7 /r : Gy Ey By", fast=True, spilled="m", temporary=2)
def shrx(m: Operation) -> None:
    """SHRX."""
    value = m.read(1)
    m.write(0, value >> _count_of(m))


@instruction("VEX.LZ.F2.0F3A F0 /r : Gy Ey Ib", fast=True, spilled="m")
def rorx(m: Operation) -> None:
    """RORX: the count is masked to 5 bits, 6 with 64-bit operands."""
    value = m.read(1)
    count = m.T(u8(m.read(2))) & (m.size - 1)
    m.write(0, (value >> count) | (value << (-count & (m.size - 1))))


@instruction("VEX.LZ.F2.0F38 F6 /r : Gy By Ey", fast=True, spilled=True)
def mulx(m: Operation) -> None:
    """MULX: rDX times the second source; the upper half wins where both go to one register."""
    wide = unsigned(m.size * 2)
    value = m.read(2)
    product = wide(value) * wide(m.get(RDX))
    m.write(1, m.T(product))
    m.write(0, m.T(product >> m.size))


@staged
def _add_with(m: Operation, flag: int) -> None:
    """Add with one flag as the carry, which is all that changes of the flags."""
    source = m.read(1)
    first = m.read(0)
    one, zero = first.kind(1), first.kind(0)
    carry = select((m.get_status() & flag) != 0, one, zero)
    partial = first + source
    total = partial + carry
    overflows = (partial < first) | (total < partial)
    m.write(0, total)
    m.set_status(select(overflows, u64(flag), u64(0)), flag)


@instruction("66 0F 38 F6 /r : Gy Ey", fast=True, spilled=True)
def adcx(m: Operation) -> None:
    """ADCX."""
    _add_with(m, CF)


@instruction("F3 0F 38 F6 /r : Gy Ey", fast=True, spilled=True)
def adox(m: Operation) -> None:
    """ADOX."""
    _add_with(m, OF)


# --- the other order of bytes ---------------------------------------------------


@instruction(
    *("NP 0F 38 F0 /r:m : Gv Mv", "66 0F 38 F0 /r:m : Gv Mv"),
    *("NP 0F 38 F1 /r:m : Mv Gv", "66 0F 38 F1 /r:m : Mv Gv"),
    fast=True,
    spilled=True,
    narrow66=True,
)
def movbe(m: Operation) -> None:
    """MOVBE."""
    m.write(0, byte_swap(m.read(1)))
