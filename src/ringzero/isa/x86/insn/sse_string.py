"""SSE4.2 string comparison: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

Intel SDM vol. 2B, chapter 4.1. The host's PCMPESTRM does the comparing: once
per element format and aggregation (bits 0 to 3 of the immediate), giving
IntRes1; polarity, output and flags are worked out here.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, OF, RAX, RCX, RDX, SF, ZF
from ringzero.isa.x86.insn.sse_operands import imm8, pair
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import (
    host_asm,
    leading_zeros,
    native,
    select,
    staged,
    trailing_zeros,
    u8,
    u32,
    u64,
    u128,
    v128,
)


@native(inline="never")
def compare_strings(
    first: v128, first_length: u64, second: v128, second_length: u64, imm: u8
) -> v128:
    """Return IntRes1 (a bit per element of `second`) for bits 0 to 3 of `imm`."""
    for control in range(16):
        if (imm & 15) == control:
            return host_asm(
                v128,
                f"pcmpestrm $${control:#x}, $3, $1",
                "={xmm0},x,{eax},x,{edx},~{flags}",
                first,
                u32(first_length),
                second,
                u32(second_length),
            )
    return first


@staged
def count_elements(imm: Any) -> Any:
    """Return the number of elements (u64): 16 bytes or 8 words."""
    return select((imm & 1) != 0, u64(8), u64(16))


@native
def implicit_length(value: v128, imm: u8) -> u64:
    """Return the number of elements before the first that is zero."""
    zero = v128(u128(0))
    if (imm & 1) != 0:
        words = host_asm(v128, "pcmpeqw $2, $0", "=x,0,x", value, zero)
        bits = host_asm(u32, "pmovmskb $1, $0", "=r,x", words)
        return u64(trailing_zeros(bits | 0x10000) >> 1)
    octets = host_asm(v128, "pcmpeqb $2, $0", "=x,0,x", value, zero)
    bits = host_asm(u32, "pmovmskb $1, $0", "=r,x", octets)
    return u64(trailing_zeros(bits | 0x10000))


@staged
def explicit_length(m: Operation, register: int, imm: Any) -> Any:
    """Return the length in EAX or EDX (RAX, RDX with REX.W): its absolute value, saturated."""
    count = count_elements(imm)
    if m.size == 64:
        value = m.get(register, u64)
        magnitude = select((value >> 63) != 0, -value, value)
    else:
        short = m.get(register, u32)
        magnitude = u64(select((short >> 31) != 0, -short, short))
    return select(magnitude > count, count, magnitude)


@staged
def finish(m: Operation, first_length: Any, second_length: Any, raw: Any, index: bool) -> None:
    """Apply polarity to IntRes1, write the output, set the flags."""
    imm = imm8(m, 2)
    count = count_elements(imm)
    ones = (u64(1) << count) - 1
    valid = (u64(1) << second_length) - 1
    negated = select((imm & 0x20) != 0, valid, ones)
    result = u64(u128(raw)) ^ select((imm & 0x10) != 0, negated, u64(0))
    if index:
        last = u64(63) - leading_zeros(result)
        found = select((imm & 0x40) != 0, last, trailing_zeros(result))
        m.set(RCX, u32(select(result == 0, count, found)))
    else:
        m.cpu.xmm[0] = select((imm & 0x40) != 0, expand(result, imm), pair(result, u64(0)))
    status = select(result != 0, u64(CF), u64(0))
    status = status | select(second_length < count, u64(ZF), u64(0))
    status = status | select(first_length < count, u64(SF), u64(0))
    m.set_status(status | select((result & 1) != 0, u64(OF), u64(0)), ARITHMETIC_FLAGS)


@staged
def expand(bits: Any, imm: Any) -> Any:
    """Return the v128 mask whose bytes or words are ones where `bits` has ones."""
    # 8 bits become 8 bytes: copy them to every byte, keep one each, spread it.
    single, top = 0x8040201008040201, 0x8080808080808080
    halves = []
    for shift in (0, 8):
        spread = (((bits >> shift) & 0xFF) * 0x0101010101010101) & single
        marks = ((spread + 0x7F7F7F7F7F7F7F7F) | spread) & top
        halves.append((marks >> 7) * 0xFF)
    octets = pair(halves[0], halves[1])
    words = host_asm(v128, "punpcklbw $0, $0", "=x,0", octets)
    return select((imm & 1) != 0, words, octets)


@staged
def explicit(m: Operation, index: bool) -> None:
    """PCMPESTRx: lengths in rAX and rDX."""
    second = m.read(1)
    first = m.read(0)
    imm = imm8(m, 2)
    first_length = explicit_length(m, RAX, imm)
    second_length = explicit_length(m, RDX, imm)
    raw = compare_strings(first, first_length, second, second_length, imm)
    finish(m, first_length, second_length, raw, index)


@staged
def implicit(m: Operation, index: bool) -> None:
    """PCMPISTRx: strings end at a zero element."""
    second = m.read(1)
    first = m.read(0)
    imm = imm8(m, 2)
    first_length = implicit_length(first, imm)
    second_length = implicit_length(second, imm)
    raw = compare_strings(first, first_length, second, second_length, imm)
    finish(m, first_length, second_length, raw, index)


@instruction("66 0F 3A 60 /r : Vx Wx Ib", sse=True, sized=True)
def pcmpestrm(m: Operation) -> None:
    "PCMPESTRM (Intel SDM vol. 2B)."
    explicit(m, False)


@instruction("66 0F 3A 61 /r : Vx Wx Ib", sse=True, sized=True)
def pcmpestri(m: Operation) -> None:
    "PCMPESTRI (Intel SDM vol. 2B)."
    explicit(m, True)


@instruction("66 0F 3A 62 /r : Vx Wx Ib", sse=True)
def pcmpistrm(m: Operation) -> None:
    "PCMPISTRM (Intel SDM vol. 2B)."
    implicit(m, False)


@instruction("66 0F 3A 63 /r : Vx Wx Ib", sse=True)
def pcmpistri(m: Operation) -> None:
    "PCMPISTRI (Intel SDM vol. 2B)."
    implicit(m, True)
