"""What SSE and MMX semantics share: operands, host instructions on them, entry into a table.

Arithmetic is done by the host's own instruction (`native.host_asm`), which is
exact by construction: every x86-64-v2 host has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringzero.isa.x86.cpu import CR0_NE, MF, Cpu
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, staged, store, u8, u16, u32, u64, u128, v128

Semantic = Callable[[Operation], None]


def vector(value: Any) -> Any:
    """Return an integer of up to 128 bits as a v128, zero-extended."""
    return v128(u128(value))


def pair(low: Any, high: Any) -> Any:
    """Return the v128 of two u64 halves."""
    return v128(u128(low) | (u128(high) << 64))


def low(value: Any) -> Any:
    """Return the low u64 of a v128."""
    return u64(u128(value))


def high(value: Any) -> Any:
    """Return the high u64 of a v128."""
    return u64(u128(value) >> 64)


def literal(number: int) -> Any:
    """Return a u64 that is loaded as an immediate.

    LLVM would put vectors of constants into a pool beside the code, which
    stencils (copied without it) could not reach.
    """
    return host_asm(u64, f"movabsq $${number:#x}, $0", "=r")


def constant(number: int) -> Any:
    """Return a v128 with a known content."""
    if number == 0:
        return v128(u128(0))
    return pair(literal(number & (1 << 64) - 1), literal(number >> 64))


def imm8(m: Operation, n: int) -> Any:
    """Return immediate operand `n` as a u8."""
    return u8(m.read(n))


def read_aligned(m: Operation, n: int) -> Any:
    """Read the 128-bit operand `n`; in memory it must be aligned (SDM vol. 1, section 4.1.1)."""
    if m.is_memory(n):
        return m.load(v128, m.address(n, 16, 16), aligned=True)
    return m.read(n)


def write_aligned(m: Operation, n: int, value: Any) -> None:
    """Write the 128-bit operand `n`; in memory it must be aligned."""
    if m.is_memory(n):
        m.store(v128, m.address(n, 16, 16), value, aligned=True)
    else:
        m.write(n, value)


def combine(mnemonic: str, first: Any, second: Any) -> Any:
    """Return what the host's two-operand instruction makes of two v128."""
    return host_asm(v128, f"{mnemonic} $2, $0", "=x,0,x", first, second)


def transform(mnemonic: str, value: Any) -> Any:
    """Return what the host's one-operand instruction makes of a v128."""
    return host_asm(v128, f"{mnemonic} $1, $0", "=x,x", value)


# --- MMX -------------------------------------------------------------------


@staged
def check_pending(m: Operation) -> None:
    """Raise #MF when an unmasked x87 exception is pending (SDM vol. 1, section 8.7)."""
    cpu = m.cpu
    if (cpu.fsw & 0x80) != 0 and (cpu.cr0 & CR0_NE) != 0:
        m.fault(MF)


@staged
def mmx_enter(m: Operation) -> None:
    """Make the x87 state what MMX instructions leave: TOP 0, all tags valid.

    SDM vol. 1, section 9.5.1. Comes after everything that can fault.
    """
    cpu = m.cpu
    cpu.ftop = u32(0)
    cpu.ftags = u8(0xFF)


@staged
def mmx_write(m: Operation, n: int, value: Any) -> None:
    """Write MMX register operand `n` (u64): exponent and sign become ones."""
    mmx_enter(m)
    m.write(n, value)
    cpu: Cpu = m.cpu
    store(u16, cpu.fpr.address(m.register_number(n) & 7), u16(0xFFFF), 8)


# --- tables ----------------------------------------------------------------


def enter(
    mnemonic: str, forms: list[str], semantic: Semantic, section: str, **attributes: Any
) -> None:
    """Enter a generated semantic function under a mnemonic; `section` names its manual."""
    semantic.__name__ = mnemonic
    semantic.__qualname__ = mnemonic
    semantic.__doc__ = f"{mnemonic.upper()} ({section})."
    instruction(*forms, name=mnemonic, **attributes)(semantic)
