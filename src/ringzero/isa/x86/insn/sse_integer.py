"""SSE2 to SSE4 integer arithmetic, logic, shifts, shuffles on XMM registers; POPCNT, CRC32.

Intel SDM vol. 2; the grouping is that of vol. 1, sections 11.4.2 and 12.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS
from ringzero.isa.x86.insn.sse_operands import (
    combine,
    constant,
    enter,
    high,
    imm8,
    literal,
    low,
    pair,
    read_aligned,
    transform,
    vector,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, popcount, select, staged, u8, u16, u32, u64, u128, v128

SDM = "Intel SDM vol. 2"

# Two operands, all lanes alike: opcode in the 0F map (and under the same
# mnemonic for MMX without the 66 prefix).
LANEWISE = {
    "pcmpgtb": 0x64, "pcmpgtw": 0x65, "pcmpgtd": 0x66, "pcmpeqb": 0x74, "pcmpeqw": 0x75,
    "pcmpeqd": 0x76, "paddq": 0xD4, "pmullw": 0xD5, "psubusb": 0xD8, "psubusw": 0xD9,
    "pminub": 0xDA, "pand": 0xDB, "paddusb": 0xDC, "paddusw": 0xDD, "pmaxub": 0xDE,
    "pandn": 0xDF, "pavgb": 0xE0, "pavgw": 0xE3, "pmulhuw": 0xE4, "pmulhw": 0xE5,
    "psubsb": 0xE8, "psubsw": 0xE9, "pminsw": 0xEA, "por": 0xEB, "paddsb": 0xEC,
    "paddsw": 0xED, "pmaxsw": 0xEE, "pxor": 0xEF, "pmuludq": 0xF4, "pmaddwd": 0xF5,
    "psadbw": 0xF6, "psubb": 0xF8, "psubw": 0xF9, "psubd": 0xFA, "psubq": 0xFB,
    "paddb": 0xFC, "paddw": 0xFD, "paddd": 0xFE,
}  # fmt: skip
# The same in the 0F 38 map (SSSE3); also MMX.
LANEWISE_38 = {
    "pmaddubsw": 0x04, "psignb": 0x08, "psignw": 0x09, "psignd": 0x0A, "pmulhrsw": 0x0B,
}  # fmt: skip
# Both operands' neighbours go into one half each; MMX forms differ in what a half is.
NARROWING = {"packsswb": 0x63, "packuswb": 0x67, "packssdw": 0x6B}
HORIZONTAL_38 = {
    "phaddw": 0x01, "phaddd": 0x02, "phaddsw": 0x03, "phsubw": 0x05, "phsubd": 0x06,
    "phsubsw": 0x07,
}  # fmt: skip
INTERLEAVE_LOW = {"punpcklbw": 0x60, "punpcklwd": 0x61, "punpckldq": 0x62}
INTERLEAVE_HIGH = {"punpckhbw": 0x68, "punpckhwd": 0x69, "punpckhdq": 0x6A}
ABSOLUTE_38 = {"pabsb": 0x1C, "pabsw": 0x1D, "pabsd": 0x1E}
# Shifts by the low 64 bits of the second operand, and (opcode, ModRM digit) by an immediate.
SHIFTS = {
    "psrlw": (0xD1, 0x71, 2), "psrld": (0xD2, 0x72, 2), "psrlq": (0xD3, 0x73, 2),
    "psraw": (0xE1, 0x71, 4), "psrad": (0xE2, 0x72, 4),
    "psllw": (0xF1, 0x71, 6), "pslld": (0xF2, 0x72, 6), "psllq": (0xF3, 0x73, 6),
}  # fmt: skip

# XMM only: the rest of the two-operand instructions, by their bytes.
XMM_ONLY = {
    "punpcklqdq": "0F 6C", "punpckhqdq": "0F 6D",
    "packusdw": "0F 38 2B", "pmuldq": "0F 38 28", "pcmpeqq": "0F 38 29", "pcmpgtq": "0F 38 37",
    "pminsb": "0F 38 38", "pminsd": "0F 38 39", "pminuw": "0F 38 3A", "pminud": "0F 38 3B",
    "pmaxsb": "0F 38 3C", "pmaxsd": "0F 38 3D", "pmaxuw": "0F 38 3E", "pmaxud": "0F 38 3F",
    "pmulld": "0F 38 40", "pshufb": "0F 38 00",
}  # fmt: skip
# Bitwise logic of the floating-point types, with its prefix.
FLOAT_LOGIC = {
    "andps": "NP 0F 54", "andpd": "66 0F 54", "andnps": "NP 0F 55", "andnpd": "66 0F 55",
    "orps": "NP 0F 56", "orpd": "66 0F 56", "xorps": "NP 0F 57", "xorpd": "66 0F 57",
    "unpcklps": "NP 0F 14", "unpcklpd": "66 0F 14", "unpckhps": "NP 0F 15",
    "unpckhpd": "66 0F 15",
}  # fmt: skip


def _two_operands(mnemonic: str, encoding: str) -> None:
    def semantic(m: Operation) -> None:
        second = read_aligned(m, 1)
        m.write(0, combine(mnemonic, m.read(0), second))

    enter(mnemonic, [f"{encoding} /r : Vx Wx"], semantic, SDM, sse=True, fast=True)


for _table in (LANEWISE, NARROWING, INTERLEAVE_LOW, INTERLEAVE_HIGH):
    for _mnemonic, _opcode in _table.items():
        _two_operands(_mnemonic, f"66 0F {_opcode:02X}")
for _table in (LANEWISE_38, HORIZONTAL_38):
    for _mnemonic, _opcode in _table.items():
        _two_operands(_mnemonic, f"66 0F 38 {_opcode:02X}")
for _mnemonic, _bytes in XMM_ONLY.items():
    _two_operands(_mnemonic, f"66 {_bytes}")
for _mnemonic, _bytes in FLOAT_LOGIC.items():
    _two_operands(_mnemonic, _bytes)


def _one_operand(mnemonic: str, encoding: str) -> None:
    def semantic(m: Operation) -> None:
        m.write(0, transform(mnemonic, read_aligned(m, 1)))

    enter(mnemonic, [f"{encoding} /r : Vx Wx"], semantic, SDM, sse=True, fast=True)


for _mnemonic, _opcode in ABSOLUTE_38.items():
    _one_operand(_mnemonic, f"66 0F 38 {_opcode:02X}")
_one_operand("phminposuw", "66 0F 38 41")


# --- shifts ----------------------------------------------------------------


def _shift(mnemonic: str, opcode: int, group: int, digit: int) -> None:
    def by_register(m: Operation) -> None:
        count = read_aligned(m, 1)
        m.write(0, combine(mnemonic, m.read(0), count))

    def by_immediate(m: Operation) -> None:
        m.write(0, combine(mnemonic, m.read(0), vector(imm8(m, 1))))

    enter(mnemonic, [f"66 0F {opcode:02X} /r : Vx Wx"], by_register, SDM, sse=True, fast=True)
    form = f"66 0F {group:02X} /{digit}:r : Ux Ib"
    enter(mnemonic, [form], by_immediate, SDM, sse=True, fast=True)


for _mnemonic, (_opcode, _group, _digit) in SHIFTS.items():
    _shift(_mnemonic, _opcode, _group, _digit)


def byte_shift_right(value: Any, count: Any) -> Any:
    """Return a u128 shifted right by `count` (u8) bytes, 0 from 16 on."""
    bits = u128(count & 15) << 3
    return select(count < 16, value >> bits, u128(0))


@instruction("66 0F 73 /3:r : Ux Ib", sse=True, fast=True)
def psrldq(m: Operation) -> None:
    "PSRLDQ (Intel SDM vol. 2B)."
    m.write(0, v128(byte_shift_right(u128(m.read(0)), imm8(m, 1))))


@instruction("66 0F 73 /7:r : Ux Ib", sse=True, fast=True)
def pslldq(m: Operation) -> None:
    "PSLLDQ (Intel SDM vol. 2B)."
    count = imm8(m, 1)
    shifted = u128(m.read(0)) << (u128(count & 15) << 3)
    m.write(0, v128(select(count < 16, shifted, u128(0))))


@instruction("66 0F 3A 0F /r : Vx Wx Ib", sse=True, fast=True)
def palignr(m: Operation) -> None:
    "PALIGNR (Intel SDM vol. 2B)."
    second = u128(read_aligned(m, 1))
    first = u128(m.read(0))
    count = imm8(m, 2)
    bits = u128(count & 15) << 3
    # For a count of 0 the first operand is shifted by all of its 128 bits, in two steps.
    joined = (second >> bits) | ((first << 8) << (u128(120) - bits))
    result = select(count < 16, joined, byte_shift_right(first, count - 16))
    m.write(0, v128(result))


# --- shuffles by an immediate ----------------------------------------------
#
# The host's instructions need the immediate when code is generated; here it is
# known when the code runs. PSHUFB with a control made from it does the same.

# Byte offsets within a doubleword and within a word, for all lanes of a quadword.
_DWORD_BYTES = 0x03020100_03020100
_WORD_BYTES = 0x0100_0100_0100_0100


def dword_control(imm: Any) -> Any:
    """Return the PSHUFB control (v128) for doublewords chosen by the pairs of bits of `imm`."""
    order = u64(imm)
    first = (order & 3) | (((order >> 2) & 3) << 32)
    second = ((order >> 4) & 3) | (((order >> 6) & 3) << 32)
    return pair(first * 0x04040404 + _DWORD_BYTES, second * 0x04040404 + _DWORD_BYTES)


def word_control(imm: Any, base: int) -> Any:
    """Return a control quadword (u64) for words of the half that starts at byte `base`."""
    order = u64(imm)
    picks = (order & 3) | (((order >> 2) & 3) << 16)
    picks = picks | (((order >> 4) & 3) << 32) | (((order >> 6) & 3) << 48)
    return picks * 0x0202 + (_WORD_BYTES + base * 0x0101_0101_0101_0101)


@instruction("66 0F 70 /r : Vx Wx Ib", sse=True, fast=True)
def pshufd(m: Operation) -> None:
    "PSHUFD (Intel SDM vol. 2B)."
    m.write(0, combine("pshufb", read_aligned(m, 1), dword_control(imm8(m, 2))))


@instruction("F2 0F 70 /r : Vx Wx Ib", sse=True, fast=True)
def pshuflw(m: Operation) -> None:
    "PSHUFLW (Intel SDM vol. 2B)."
    control = pair(word_control(imm8(m, 2), 0), literal(0x0F0E0D0C0B0A0908))
    m.write(0, combine("pshufb", read_aligned(m, 1), control))


@instruction("F3 0F 70 /r : Vx Wx Ib", sse=True, fast=True)
def pshufhw(m: Operation) -> None:
    "PSHUFHW (Intel SDM vol. 2B)."
    control = pair(literal(0x0706050403020100), word_control(imm8(m, 2), 8))
    m.write(0, combine("pshufb", read_aligned(m, 1), control))


@instruction("NP 0F C6 /r : Vx Wx Ib", sse=True, fast=True)
def shufps(m: Operation) -> None:
    "SHUFPS (Intel SDM vol. 2B)."
    second = read_aligned(m, 1)
    control = dword_control(imm8(m, 2))
    first = combine("pshufb", m.read(0), control)
    second = combine("pshufb", second, control)
    m.write(0, pair(low(first), high(second)))


@instruction("66 0F C6 /r : Vx Wx Ib", sse=True, fast=True)
def shufpd(m: Operation) -> None:
    "SHUFPD (Intel SDM vol. 2B)."
    second = read_aligned(m, 1)
    first = m.read(0)
    imm = imm8(m, 2)
    m.write(
        0,
        pair(
            select((imm & 1) != 0, high(first), low(first)),
            select((imm & 2) != 0, high(second), low(second)),
        ),
    )


# --- blends ----------------------------------------------------------------


def lane_mask(imm: Any, bits: int) -> Any:
    """Return a v128 whose lanes of `bits` are ones where `imm` (u8) has a one, lane 0 first."""
    count = 128 // bits
    spread = (1 << 128) // ((1 << bits) - 1)
    lanes = u128(imm) * spread
    chosen = sum(1 << (lane * bits + lane) for lane in range(count))
    compare = {16: "pcmpeqw", 32: "pcmpeqd", 64: "pcmpeqq"}[bits]
    known = constant(chosen)
    return combine(compare, v128(lanes) & known, known)


def choose(mask: Any, yes: Any, no: Any) -> Any:
    """Return the bits of `yes` where `mask` has ones, else those of `no` (all v128)."""
    return no ^ ((no ^ yes) & mask)


def _blend_immediate(mnemonic: str, opcode: int, bits: int) -> None:
    def semantic(m: Operation) -> None:
        second = read_aligned(m, 1)
        m.write(0, choose(lane_mask(imm8(m, 2), bits), second, m.read(0)))

    form = f"66 0F 3A {opcode:02X} /r : Vx Wx Ib"
    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


_blend_immediate("blendps", 0x0C, 32)
_blend_immediate("blendpd", 0x0D, 64)
_blend_immediate("pblendw", 0x0E, 16)


def _blend_variable(mnemonic: str, opcode: int) -> None:
    def semantic(m: Operation) -> None:
        second = read_aligned(m, 1)
        asm = f"{mnemonic} %xmm0, $2, $0"
        mask = m.cpu.xmm[0]
        m.write(0, host_asm(v128, asm, "=x,0,x,{xmm0}", m.read(0), second, mask))

    form = f"66 0F 38 {opcode:02X} /r : Vx Wx"
    enter(mnemonic, [form], semantic, SDM, sse=True, fast=True)


_blend_variable("pblendvb", 0x10)
_blend_variable("blendvps", 0x14)
_blend_variable("blendvpd", 0x15)


# --- single elements -------------------------------------------------------


@staged
def insert_lane(m: Operation, element: Any, bits: int) -> None:
    """Replace the lane of operand 0 that the immediate (operand 2) names."""
    index = u128(imm8(m, 2) & (128 // bits - 1))
    shift = index * bits
    mask = u128((1 << bits) - 1) << shift
    old = u128(m.read(0))
    m.write(0, v128((old & ~mask) | (u128(element) << shift)))


@staged
def extract_lane(m: Operation, kind: Any) -> Any:
    """Return the lane of operand 1 that the immediate (operand 2) names."""
    bits = kind.bits
    index = u128(imm8(m, 2) & (128 // bits - 1))
    return kind(u128(m.read(1)) >> (index * bits))


@instruction("66 0F C4 /r:r : Vx Rd Ib", "66 0F C4 /r:m : Vx Mw Ib", sse=True, fast=True)
def pinsrw(m: Operation) -> None:
    "PINSRW (Intel SDM vol. 2B)."
    insert_lane(m, u16(m.read(1)), 16)


@instruction("66 0F 3A 20 /r:r : Vx Rd Ib", "66 0F 3A 20 /r:m : Vx Mb Ib", sse=True, fast=True)
def pinsrb(m: Operation) -> None:
    "PINSRB (Intel SDM vol. 2B)."
    insert_lane(m, u8(m.read(1)), 8)


@instruction("66 0F 3A 22 /r : Vx Ey Ib", sse=True, fast=True)
def pinsrd(m: Operation) -> None:
    "PINSRD, PINSRQ (Intel SDM vol. 2B)."
    element = m.read(1)
    insert_lane(m, element, element.kind.bits)


@instruction("66 0F C5 /r:r : Gd Ux Ib", sse=True, fast=True)
def pextrw(m: Operation) -> None:
    "PEXTRW to a general register (Intel SDM vol. 2B)."
    m.write(0, u32(extract_lane(m, u16)))


@instruction("66 0F 3A 15 /r:r : Rd Vx Ib", name="pextrw", sse=True, fast=True)
def pextrw_register(m: Operation) -> None:
    "PEXTRW, SSE4.1 encoding (Intel SDM vol. 2B)."
    m.write(0, u32(extract_lane(m, u16)))


@instruction("66 0F 3A 15 /r:m : Mw Vx Ib", name="pextrw", sse=True, fast=True)
def pextrw_memory(m: Operation) -> None:
    "PEXTRW to memory (Intel SDM vol. 2B)."
    m.write(0, extract_lane(m, u16))


@instruction("66 0F 3A 14 /r:r : Rd Vx Ib", sse=True, fast=True)
def pextrb(m: Operation) -> None:
    "PEXTRB to a general register (Intel SDM vol. 2B)."
    m.write(0, u32(extract_lane(m, u8)))


@instruction("66 0F 3A 14 /r:m : Mb Vx Ib", name="pextrb", sse=True, fast=True)
def pextrb_memory(m: Operation) -> None:
    "PEXTRB to memory (Intel SDM vol. 2B)."
    m.write(0, extract_lane(m, u8))


@instruction("66 0F 3A 16 /r : Ey Vx Ib", sse=True, fast=True)
def pextrd(m: Operation) -> None:
    "PEXTRD, PEXTRQ (Intel SDM vol. 2B)."
    m.write(0, extract_lane(m, u64 if m.size == 64 else u32))


@instruction("66 0F 3A 17 /r : Ed Vx Ib", sse=True, fast=True)
def extractps(m: Operation) -> None:
    "EXTRACTPS (Intel SDM vol. 2A)."
    m.write(0, extract_lane(m, u32))


@staged
def insert_single(m: Operation, element: Any) -> None:
    """Finish INSERTPS: put `element` (u32) in its lane, clear the lanes of the zero mask."""
    imm = imm8(m, 2)
    shift = u128((imm >> 4) & 3) << 5
    mask = u128(0xFFFFFFFF) << shift
    merged = (u128(m.read(0)) & ~mask) | (u128(element) << shift)
    cleared = lane_mask(imm & 15, 32)
    m.write(0, choose(cleared, constant(0), v128(merged)))


@instruction("66 0F 3A 21 /r:r : Vx Ux Ib", sse=True, fast=True)
def insertps(m: Operation) -> None:
    "INSERTPS from a register (Intel SDM vol. 2A)."
    insert_single(m, u32(u128(m.read(1)) >> (u128(imm8(m, 2) >> 6) << 5)))


@instruction("66 0F 3A 21 /r:m : Vx Md Ib", name="insertps", sse=True, fast=True)
def insertps_memory(m: Operation) -> None:
    "INSERTPS from memory (Intel SDM vol. 2A)."
    insert_single(m, m.read(1))


# --- sums of differences ---------------------------------------------------


@instruction("66 0F 3A 42 /r : Vx Wx Ib", sse=True)
def mpsadbw(m: Operation) -> None:
    "MPSADBW (Intel SDM vol. 2B)."
    second = read_aligned(m, 1)
    first = m.read(0)
    imm = imm8(m, 2)
    # Bring the 4 bytes of the second and the 11 of the first operand to offset 0.
    block = v128(u128(second) >> (u128(imm & 3) << 5))
    window = v128(u128(first) >> (u128((imm >> 2) & 1) << 5))
    m.write(0, host_asm(v128, "mpsadbw $$0, $2, $0", "=x,0,x", window, block))


# --- tests that set flags --------------------------------------------------


@instruction("66 0F 38 17 /r : Vx Wx", sse=True, fast=True)
def ptest(m: Operation) -> None:
    "PTEST (Intel SDM vol. 2B)."
    second = u128(read_aligned(m, 1))
    first = u128(m.read(0))
    zero = u64((first & second) == 0) << 6
    m.set_status(zero | u64((~first & second) == 0), ARITHMETIC_FLAGS)


@instruction("F3 0F B8 /r : Gv Ev", fast=True)
def popcnt(m: Operation) -> None:
    "POPCNT (Intel SDM vol. 2B)."
    value = m.read(1)
    m.write(0, popcount(value))
    m.set_status(u64(value == 0) << 6, ARITHMETIC_FLAGS)


_CRC_SUFFIX = {8: "b", 16: "w", 32: "l"}


@instruction("F2 0F 38 F0 /r : Gd Eb", "F2 0F 38 F1 /r : Gd Ev", fast=True)
def crc32(m: Operation) -> None:
    "CRC32 (Intel SDM vol. 2A)."
    value = m.read(1)
    if value.kind.bits == 64:
        result = host_asm(u64, "crc32q $2, $0", "=r,0,r", u64(m.read(0)), value)
        m.write(0, u32(result))
    else:
        asm = f"crc32{_CRC_SUFFIX[value.kind.bits]} $2, $0"
        m.write(0, host_asm(u32, asm, "=r,0,r", m.read(0), value))
