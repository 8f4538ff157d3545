"""MMX: the 64-bit twins of the SSE integer instructions, and the moves between the two.

They run on the host's XMM registers (the host's x87 is left alone); MMX
register n is the low half of physical x87 register n. Intel SDM vol. 1,
chapter 9, and vol. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringzero.isa.x86.insn import mxcsr
from ringzero.isa.x86.insn.sse_integer import (
    ABSOLUTE_38,
    HORIZONTAL_38,
    INTERLEAVE_HIGH,
    INTERLEAVE_LOW,
    LANEWISE,
    LANEWISE_38,
    NARROWING,
    SHIFTS,
    byte_shift_right,
    word_control,
)
from ringzero.isa.x86.insn.sse_move import masked_store
from ringzero.isa.x86.insn.sse_operands import (
    check_pending,
    combine,
    enter,
    high,
    imm8,
    low,
    mmx_enter,
    mmx_write,
    pair,
    read_aligned,
    transform,
    vector,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, u8, u16, u32, u64, u128, v128

SDM = "Intel SDM vol. 2"


def _binary(mnemonic: str, form: str, compute: Callable[[Any, Any], Any]) -> None:
    """Enter an instruction whose result (u64) is `compute(first, second)`, both u64."""

    def semantic(m: Operation) -> None:
        check_pending(m)
        second = u64(m.read(1))
        mmx_write(m, 0, compute(m.read(0), second))

    enter(mnemonic, [form], semantic, SDM, mmx=True)


def _lanewise(mnemonic: str) -> Callable[[Any, Any], Any]:
    return lambda first, second: low(combine(mnemonic, vector(first), vector(second)))


def _joined(mnemonic: str) -> Callable[[Any, Any], Any]:
    """The host's instruction on both operands side by side; its low half is the result."""

    def compute(first: Any, second: Any) -> Any:
        both = pair(first, second)
        return low(combine(mnemonic, both, both))

    return compute


def _upper(mnemonic: str) -> Callable[[Any, Any], Any]:
    return lambda first, second: high(combine(mnemonic, vector(first), vector(second)))


def _shuffle_bytes(first: Any, second: Any) -> Any:
    return low(combine("pshufb", vector(first), vector(second & 0x8787_8787_8787_8787)))


for _mnemonic, _opcode in LANEWISE.items():
    _binary(_mnemonic, f"NP 0F {_opcode:02X} /r : Pq Qq", _lanewise(_mnemonic))
for _mnemonic, _opcode in LANEWISE_38.items():
    _binary(_mnemonic, f"NP 0F 38 {_opcode:02X} /r : Pq Qq", _lanewise(_mnemonic))
for _mnemonic, _opcode in NARROWING.items():
    _binary(_mnemonic, f"NP 0F {_opcode:02X} /r : Pq Qq", _joined(_mnemonic))
for _mnemonic, _opcode in HORIZONTAL_38.items():
    _binary(_mnemonic, f"NP 0F 38 {_opcode:02X} /r : Pq Qq", _joined(_mnemonic))
for _mnemonic, _opcode in INTERLEAVE_LOW.items():
    _low_of = _lanewise(_mnemonic)
    _binary(_mnemonic, f"NP 0F {_opcode:02X} /r : Pq Qd", _low_of)
for _mnemonic, _opcode in INTERLEAVE_HIGH.items():
    # The interleaving of the low halves has the wanted one in its own upper half.
    _low_name = _mnemonic.replace("punpckh", "punpckl")
    _binary(_mnemonic, f"NP 0F {_opcode:02X} /r : Pq Qq", _upper(_low_name))
for _mnemonic, (_opcode, _, _) in SHIFTS.items():
    _binary(_mnemonic, f"NP 0F {_opcode:02X} /r : Pq Qq", _lanewise(_mnemonic))
_binary("pshufb", "NP 0F 38 00 /r : Pq Qq", _shuffle_bytes)


def _absolute(mnemonic: str, opcode: int) -> None:
    def semantic(m: Operation) -> None:
        check_pending(m)
        mmx_write(m, 0, low(transform(mnemonic, vector(m.read(1)))))

    enter(mnemonic, [f"NP 0F 38 {opcode:02X} /r : Pq Qq"], semantic, SDM, mmx=True)


for _mnemonic, _opcode in ABSOLUTE_38.items():
    _absolute(_mnemonic, _opcode)


def _shift_immediate(mnemonic: str, group: int, digit: int) -> None:
    def semantic(m: Operation) -> None:
        check_pending(m)
        count = vector(imm8(m, 1))
        mmx_write(m, 0, low(combine(mnemonic, vector(m.read(0)), count)))

    enter(mnemonic, [f"NP 0F {group:02X} /{digit}:r : Nq Ib"], semantic, SDM, mmx=True)


for _mnemonic, (_, _group, _digit) in SHIFTS.items():
    _shift_immediate(_mnemonic, _group, _digit)


@instruction("NP 0F 70 /r : Pq Qq Ib", mmx=True)
def pshufw(m: Operation) -> None:
    "PSHUFW (Intel SDM vol. 2B)."
    check_pending(m)
    control = vector(word_control(imm8(m, 2), 0))
    mmx_write(m, 0, low(combine("pshufb", vector(m.read(1)), control)))


@instruction("NP 0F 3A 0F /r : Pq Qq Ib", name="palignr", mmx=True)
def palignr_mmx(m: Operation) -> None:
    "PALIGNR on MMX registers (Intel SDM vol. 2B)."
    check_pending(m)
    second = m.read(1)
    joined = u128(second) | (u128(m.read(0)) << 64)
    mmx_write(m, 0, u64(byte_shift_right(joined, imm8(m, 2))))


@instruction("NP 0F C4 /r:r : Pq Rd Ib", "NP 0F C4 /r:m : Pq Mw Ib", name="pinsrw", mmx=True)
def pinsrw_mmx(m: Operation) -> None:
    "PINSRW into an MMX register (Intel SDM vol. 2B)."
    check_pending(m)
    element = u64(u16(m.read(1)))
    shift = u64(imm8(m, 2) & 3) << 4
    mmx_write(m, 0, (m.read(0) & ~(u64(0xFFFF) << shift)) | (element << shift))


@instruction("NP 0F C5 /r:r : Gd Nq Ib", name="pextrw", mmx=True)
def pextrw_mmx(m: Operation) -> None:
    "PEXTRW from an MMX register (Intel SDM vol. 2B)."
    check_pending(m)
    element = u32(u16(m.read(1) >> (u64(imm8(m, 2) & 3) << 4)))
    mmx_enter(m)
    m.write(0, element)


@instruction("NP 0F D7 /r:r : Gd Nq", name="pmovmskb", mmx=True)
def pmovmskb_mmx(m: Operation) -> None:
    "PMOVMSKB of an MMX register (Intel SDM vol. 2B)."
    check_pending(m)
    bits = host_asm(u32, "pmovmskb $1, $0", "=r,x", vector(m.read(1)))
    mmx_enter(m)
    m.write(0, bits)


# --- moves -----------------------------------------------------------------


@instruction(
    "NP 0F 6E /r : Pq Ey", "NP 0F 6F /r : Pq Qq", "F2 0F D6 /r:r : Pq Uq", name="movq", mmx=True
)
def movq_to_mmx(m: Operation) -> None:
    "MOVD, MOVQ, MOVDQ2Q into an MMX register (Intel SDM vol. 2B)."
    check_pending(m)
    mmx_write(m, 0, u64(m.read(1)))


@instruction("NP 0F 7E /r : Ey Pq", name="movd", mmx=True)
def movd_from_mmx(m: Operation) -> None:
    "MOVD, MOVQ from an MMX register (Intel SDM vol. 2B)."
    check_pending(m)
    value = m.read(1)
    m.write(0, value if m.size == 64 else u32(value))
    mmx_enter(m)


@instruction("NP 0F 7F /r:m : Mq Pq", "NP 0F E7 /r:m : Mq Pq", name="movq", mmx=True)
def movq_store_mmx(m: Operation) -> None:
    "MOVQ, MOVNTQ to memory (Intel SDM vol. 2B)."
    check_pending(m)
    m.write(0, m.read(1))
    mmx_enter(m)


@instruction("NP 0F 7F /r:r : Nq Pq", name="movq", mmx=True)
def movq_between_mmx(m: Operation) -> None:
    "MOVQ between MMX registers (Intel SDM vol. 2B)."
    check_pending(m)
    mmx_write(m, 0, m.read(1))


@instruction("F3 0F D6 /r:r : Vx Nq", sse=True)
def movq2dq(m: Operation) -> None:
    "MOVQ2DQ (Intel SDM vol. 2B)."
    check_pending(m)
    value = m.read(1)
    mmx_enter(m)
    m.write(0, vector(value))


@instruction("NP 0F F7 /r:r : Pq Nq", mmx=True)
def maskmovq(m: Operation) -> None:
    "MASKMOVQ (Intel SDM vol. 2B)."
    check_pending(m)
    bits = host_asm(u32, "pmovmskb $1, $0", "=r,x", vector(m.read(1)))
    masked_store(m, vector(m.read(0)), bits, 8)
    mmx_enter(m)


@instruction("NP 0F 77", mmx=True)
def emms(m: Operation) -> None:
    "EMMS (Intel SDM vol. 2A): all registers empty; processors set TOP to 0 too."
    check_pending(m)
    m.cpu.ftop = u32(0)
    m.cpu.ftags = u8(0)


# --- conversions between MMX integers and SSE floating point ----------------
#
# The change to MMX state comes before #XM, as processors have it.


@instruction("NP 0F 2A /r : Vq Qq", sse=True)
def cvtpi2ps(m: Operation) -> None:
    "CVTPI2PS (Intel SDM vol. 2A): a source in memory leaves the x87 state alone."
    if not m.is_memory(1):
        check_pending(m)
    source = vector(m.read(1))
    mxcsr.begin(m)
    result = transform("cvtdq2ps", source)
    if not m.is_memory(1):
        mmx_enter(m)
    mxcsr.end(m)
    m.write(0, low(result))


@instruction("66 0F 2A /r : Vx Qq", sse=True)
def cvtpi2pd(m: Operation) -> None:
    "CVTPI2PD (Intel SDM vol. 2A): a source in memory leaves the x87 state alone."
    if not m.is_memory(1):
        check_pending(m)
    result = host_asm(v128, "cvtdq2pd $1, $0", "=x,x", m.read(1))
    if not m.is_memory(1):
        mmx_enter(m)
    m.write(0, result)


def _to_mmx(mnemonic: str, encoding: str, size: str, host: str) -> None:
    def semantic(m: Operation) -> None:
        check_pending(m)
        source = read_aligned(m, 1) if size == "x" else vector(m.read(1))
        mxcsr.begin(m)
        result = transform(host, source)
        mmx_enter(m)
        mxcsr.end(m)
        mmx_write(m, 0, low(result))

    enter(mnemonic, [f"{encoding} /r : Pq W{size}"], semantic, SDM, sse=True)


_to_mmx("cvttps2pi", "NP 0F 2C", "q", "cvttps2dq")
_to_mmx("cvtps2pi", "NP 0F 2D", "q", "cvtps2dq")
_to_mmx("cvttpd2pi", "66 0F 2C", "x", "cvttpd2dq")
_to_mmx("cvtpd2pi", "66 0F 2D", "x", "cvtpd2dq")
