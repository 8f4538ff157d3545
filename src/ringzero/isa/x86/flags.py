"""Lazy arithmetic flags.

An instruction that sets all of OF SF ZF AF PF CF leaves behind what they can
be computed from: the kind and width of operation (`cc_op`), its result
(`cc_dst`) and up to two inputs (`cc_src`, `cc_aux`), zero-extended to 64 bits. Most are never
looked at. `cc_op` is `kind * 4 + log2(width in bytes)`; STATUS means that
`cc_src` holds the flags themselves, at their RFLAGS positions.

    kind    cc_dst   cc_src                         cc_aux
    STATUS  -        the flags                      -
    ADD     result   second operand                 -
    ADC     result   second operand                 carry in (0, 1)
    SUB     result   second operand                 -
    SBB     result   second operand                 borrow in (0, 1)
    LOGIC   result   -                              -
    INC     result   CF before (0, 1)               -
    DEC     result   CF before (0, 1)               -
    SHL     result   operand << (count - 1)         -
    SAR     result   operand >> (count - 1)         -      (SHR and SAR)
    MUL     result   1 when the upper half matters  -
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.ccops import (
    ADC,
    ADD,
    DEC,
    INC,
    KINDS,
    LOG2,
    LOGIC,
    MUL,
    SAR,
    SBB,
    SHL,
    STATUS,
    SUB,
)
from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, OF, PF, SF, ZF, Cpu
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.native import native, popcount, select, sign, signed, staged, u8, u64, unsigned


@staged
def carry(kind: int, dst: Any, src: Any, aux: Any) -> Any:
    """CF of an operation whose kind and width (that of dst) are known."""
    if kind == ADD:
        return dst < src
    if kind == ADC:
        return select(aux == 0, dst < src, dst <= src)
    if kind == SUB:
        return (dst + src) < src
    if kind == SBB:
        # first operand = dst + src + aux; borrow when it is less than src + aux
        first = dst + src + aux
        return select(aux == 0, first < src, first <= src)
    if kind in (INC, DEC, MUL):
        return src != 0
    if kind == SHL:
        return sign(src)
    if kind == SAR:
        return (src & 1) != 0
    return False


@staged
def overflow(kind: int, dst: Any, src: Any, aux: Any) -> Any:
    """OF of an operation whose kind and width are known."""
    bits = dst.kind.bits
    if kind in (ADD, ADC):
        first = dst - src if kind == ADD else dst - src - aux
        return sign((first ^ dst) & (src ^ dst))
    if kind in (SUB, SBB):
        first = dst + src if kind == SUB else dst + src + aux
        return sign((first ^ src) & (first ^ dst))
    if kind == INC:
        return dst == 1 << (bits - 1)
    if kind == DEC:
        return dst == (1 << (bits - 1)) - 1
    if kind in (SHL, SAR):
        return sign(dst ^ src)
    if kind == MUL:
        return src != 0
    return False


@staged
def adjust(kind: int, dst: Any, src: Any, aux: Any) -> Any:
    """AF of an operation whose kind and width are known."""
    if kind in (ADD, ADC, SUB, SBB):
        if kind == ADD:
            first = dst - src
        elif kind == ADC:
            first = dst - src - aux
        elif kind == SUB:
            first = dst + src
        else:
            first = dst + src + aux
        return ((first ^ src ^ dst) & 0x10) != 0
    if kind == INC:
        return (dst & 0xF) == 0
    if kind == DEC:
        return (dst & 0xF) == 0xF
    return False


@staged
def parity(dst: Any) -> Any:
    """PF: whether the low byte has an even number of ones."""
    return (popcount(u8(dst)) & 1) == 0


@staged
def condition(code: int, kind: int, dst: Any, src: Any, aux: Any) -> Any:
    """Return condition `code` (0-15) after an operation of known kind and width."""
    base = code >> 1
    negate = code & 1
    if base == 0:
        result = overflow(kind, dst, src, aux)
    elif base == 1:
        result = carry(kind, dst, src, aux)
    elif base == 2:
        result = dst == 0
    elif base == 3:
        if kind == SUB:
            result = (dst + src) <= src
        else:
            result = carry(kind, dst, src, aux) | (dst == 0)
    elif base == 4:
        result = sign(dst)
    elif base == 5:
        result = parity(dst)
    elif kind == SUB:
        S = signed(dst.kind.bits)
        first = S(dst + src)
        result = first < S(src) if base == 6 else first <= S(src)
    elif kind == LOGIC:
        S = signed(dst.kind.bits)
        result = sign(dst) if base == 6 else S(dst) <= 0
    else:
        less = sign(dst) ^ overflow(kind, dst, src, aux)
        result = less if base == 6 else less | (dst == 0)
    return ~result if negate and not isinstance(result, bool) else result ^ bool(negate)


@staged
def condition_of_status(code: int, status: Any) -> Any:
    """Return condition `code` (0-15) of flags at their RFLAGS positions."""
    base = code >> 1
    if base in (6, 7):
        less = ((status >> 7) ^ (status >> 11)) & 1
        result = less != 0
        if base == 7:
            result = result | ((status & ZF) != 0)
    else:
        mask = (OF, CF, ZF, CF | ZF, SF, PF)[base]
        result = (status & mask) != 0
    return ~result if code & 1 else result


@staged
def status_of(kind: int, dst: Any, src: Any, aux: Any) -> Any:
    """Return all six flags at their RFLAGS positions (u64)."""
    result = u64(carry(kind, dst, src, aux))
    result = result | (u64(parity(dst)) << 2)
    result = result | (u64(adjust(kind, dst, src, aux)) << 4)
    result = result | (u64(dst == 0) << 6)
    result = result | (u64(sign(dst)) << 7)
    return result | (u64(overflow(kind, dst, src, aux)) << 11)


@native(inline="never")
def compute_status(cpu: Cpu) -> u64:
    """Return the arithmetic flags of `cpu`, whatever operation set them last."""
    op = cpu.cc_op
    if op < 4:
        return cpu.cc_src & ARITHMETIC_FLAGS
    for kind in KINDS:
        for bits, log2 in LOG2.items():
            if op == kind * 4 + log2:
                T = unsigned(bits)
                return status_of(kind, T(cpu.cc_dst), T(cpu.cc_src), T(cpu.cc_aux))
    return cpu.cc_src & ARITHMETIC_FLAGS


@native(inline="never")
def materialize_status(cpu: Cpu) -> None:
    """Turn the lazy flags into STATUS form."""
    cpu.cc_src = compute_status(cpu)
    cpu.cc_op = STATUS


@native
def get_rflags(cpu: Cpu) -> u64:
    """Return the whole RFLAGS."""
    return cpu.rflags | compute_status(cpu) | 2


@native
def set_rflags(cpu: Cpu, value: u64, mask: u64) -> None:
    """Replace the bits of RFLAGS in `mask` (arithmetic ones too)."""
    all_flags = (get_rflags(cpu) & ~mask) | (value & mask)
    cpu.rflags = all_flags & ~u64(ARITHMETIC_FLAGS) | 2
    cpu.cc_src = all_flags & ARITHMETIC_FLAGS
    cpu.cc_op = STATUS
    select_tlb(cpu)
