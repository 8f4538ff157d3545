"""Whether SSE results outside the range of their format were exact: PE beside OE or UE unmasked.

The host's exceptions are masked, so it rounds such a result to one that fits and sets PE.
Where the guest has unmasked overflow or underflow, PE tells whether the result was rounded to
its precision, whatever its exponent (SDM vol. 1, sections 4.9.1.4 to 4.9.1.6). The registers
of the x87 have room for such exponents, and its precision control (section 8.1.5.2) rounds as
the format does: each lane is computed there again, for its precision exception alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.insn.mxcsr import (
    DENORMALS_ARE_ZEROES,
    FLAGS,
    PRECISION,
    read_host,
    write_host,
)
from ringzero.native import address_of, host_asm, native, staged, store, u16, u32, u128, v128

# Control words with all exceptions masked, and the precision of 24 and of 53 bits.
_CONTROL = {32: 0x007F, 64: 0x027F}
_DEFAULT_CONTROL = 0x037F
# Overflow and underflow; what is looked at before an operation.
_RANGE, _BEFORE = 0x18, 0x07
_EXPONENT = {32: 0x7F80_0000, 64: 0x7FF0_0000_0000_0000}
_SCRATCH = Cpu.offset_of("scratch", 0)
# Where the control words are kept, behind the two operands.
_WORDS = _SCRATCH + 32


@dataclass(frozen=True)
class Steps:
    """What an instruction computes: (operation, lane, lane) each.

    Lanes have `bits`; those of the second operand follow those of the first. Results are rounded
    to the precision of a format of `result` bits.
    """

    bits: int
    result: int
    operations: tuple[tuple[str, int, int], ...]


def _table() -> dict[str, Steps]:
    found: dict[str, Steps] = {}
    for suffix, bits in (("s", 32), ("d", 64)):
        count = 128 // bits
        for name in ("add", "sub", "mul", "div"):
            for kind, used in (("s", 1), ("p", count)):
                lanes = tuple((name, lane, count + lane) for lane in range(used))
                found[name + kind + suffix] = Steps(bits, bits, lanes)
        for name in ("add", "sub"):
            pairs = tuple((name, lane, lane + 1) for lane in range(0, 2 * count, 2))
            found[f"h{name}p{suffix}"] = Steps(bits, bits, pairs)
        signs = tuple((("sub", "add")[lane & 1], lane, count + lane) for lane in range(count))
        found[f"addsubp{suffix}"] = Steps(bits, bits, signs)
    # The second operand is zero.
    found["cvtsd2ss"] = Steps(64, 32, (("add", 0, 2),))
    found["cvtpd2ps"] = Steps(64, 32, (("add", 0, 2), ("add", 1, 3)))
    return found


STEPS = _table()


@staged
def settle(cpu: Cpu, steps: Steps, first: Any, second: Any) -> None:
    """Take PE out of the host's flags when only leaving the range has set it."""
    if _only_range(cpu) != 0 and _rounded(cpu, steps, first, second) == 0:
        write_host(cpu, read_host(cpu) & ~PRECISION)


@native(inline="never")
def _only_range(cpu: Cpu) -> u32:
    """Return 1 when an unmasked OE or UE is the cause of #XM, and no masked one has set PE."""
    raised = read_host(cpu) & FLAGS
    enabled = ~(cpu.mxcsr >> 7) & FLAGS
    before = raised & enabled & _BEFORE
    masked = raised & ~enabled & _RANGE
    return u32((raised & enabled & _RANGE != 0) & (before == 0) & (masked == 0))


@staged
def _rounded(cpu: Cpu, steps: Steps, first: Any, second: Any) -> Any:
    """Return PE of the x87 (u32, not 0 when up) after all `steps`."""
    slot = cpu.scratch.address()
    store(v128, slot, _operand(cpu, steps.bits, first))
    store(v128, slot, _operand(cpu, steps.bits, second), 16)
    store(u16, slot, u16(_CONTROL[steps.result]), 32)
    store(u16, slot, u16(_DEFAULT_CONTROL), 34)
    clobbers = "~{memory},~{flags},~{fpsr},~{dirflag}"
    status = host_asm(u32, _program(steps), "=&{eax},r," + clobbers, address_of(cpu))
    return status & PRECISION


def _program(steps: Steps) -> str:
    """Return the host's instructions for `steps`; $1 is the vCPU."""
    size = {32: "s", 64: "l"}[steps.bits]
    lines = ["fnclex", f"fldcw {_WORDS}($1)"]
    for name, left, right in steps.operations:
        first, second = (_SCRATCH + lane * steps.bits // 8 for lane in (left, right))
        lines += [f"fld{size} {first}($1)", f"f{name}{size} {second}($1)", "fstp %st(0)"]
    lines += ["xorl %eax, %eax", "fnstsw %ax", "fnclex", f"fldcw {_WORDS + 2}($1)"]
    return "\n".join(lines)


@staged
def _operand(cpu: Cpu, bits: int, value: Any) -> Any:
    """Return an operand as the operation takes it: with DAZ, denormal lanes are zero."""
    lanes = v128(u128(value))
    if (cpu.mxcsr & DENORMALS_ARE_ZEROES) != 0:
        mask = _EXPONENT[bits] * ((1 << 128) // ((1 << bits) - 1))
        compare = {32: "pcmpeqd", 64: "pcmpeqq"}[bits]
        zero = v128(u128(0))
        tiny = host_asm(v128, f"{compare} $2, $0", "=x,0,x", lanes & v128(u128(mask)), zero)
        lanes = lanes & (tiny ^ v128(u128((1 << 128) - 1)))
    return lanes
