"""AVX and AVX2 moves: those of SSE, broadcasts, permutations, halves, masked loads and stores.

Intel SDM vol. 2, under each name.
"""

from __future__ import annotations

import functools
from typing import Any

from ringzero.isa.x86.cpu import MODE_64
from ringzero.isa.x86.insn.avx_integer import finish_test, folded
from ringzero.isa.x86.insn.lanes import (
    LENGTHS,
    Shape,
    Twins,
    by_lanes,
    enter_twins,
    enter_vex,
    host_lanes,
    names,
    operands_named,
    read_lane,
    write_vector,
)
from ringzero.isa.x86.insn.sse_integer import dword_control
from ringzero.isa.x86.insn.sse_operands import (
    Semantic,
    combine,
    constant,
    high,
    imm8,
    low,
    pair,
    vector,
)
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, select, staged, u32, u64, u128, v128

_enter = functools.partial(enter_vex, __name__)

_ALIGNED = names("movaps movapd movdqa movntps movntpd movntdq movntdqa")
_BOTH = _ALIGNED | names("movups movupd movdqu lddqu movsldup movshdup movddup")

enter_twins(
    __name__,
    "sse_move",
    Twins(
        unary=_BOTH
        | names("movd movq movmskps movmskpd pmovmskb maskmovdqu")
        | frozenset(f"pmov{s}x{k}" for s in "sz" for k in ("bw", "bd", "bq", "wd", "wq", "dq")),
        both=_BOTH,
        aligned=_ALIGNED,
        left_out=names("movnti movss movsd movlps movlpd movhps movhpd"),
    ),
)


def _copy(m: Operation) -> None:
    m.write(0, m.read(1))


def _load_high(m: Operation) -> None:
    half = m.read(1)
    m.write(0, pair(low(m.read(0)), half))


def _store_high(m: Operation) -> None:
    m.write(0, high(m.read(1)))


def _load_scalar(m: Operation) -> None:
    m.write(0, vector(m.read(1)))


def _move(mnemonic: str, encoding: str, operands: str, semantic: Semantic, twin: str = "") -> None:
    """Enter a move by its SSE twin's semantics; `twin`: the twin's operands where it has less."""
    shape = Shape(1 if twin else 0, 1, operands_named(twin or operands), operands_named(operands))
    _enter(mnemonic, encoding, operands, by_lanes(semantic, shape), fast=True)


for _mnemonic, _prefix, _s in (("vmovss", "F3", "d"), ("vmovsd", "F2", "q")):
    _code = f"VEX.LIG.{_prefix}.0F.WIG"
    _move(_mnemonic, f"{_code} 10 /r:r", f"Vx H{_s} U{_s}", _copy, f"V{_s} U{_s}")
    _move(_mnemonic, f"{_code} 11 /r:r", f"Ux H{_s} V{_s}", _copy, f"U{_s} V{_s}")
    _move(_mnemonic, f"{_code} 10 /r:m", f"Vx M{_s}", _load_scalar)
    _move(_mnemonic, f"{_code} 11 /r:m", f"M{_s} V{_s}", _copy)
for _suffix, _prefix in (("s", ""), ("d", ".66")):
    _code = f"VEX.128{_prefix}.0F.WIG"
    _move(f"vmovlp{_suffix}", f"{_code} 12 /r:m", "Vx Hq Mq", _copy, "Vq Mq")
    _move(f"vmovlp{_suffix}", f"{_code} 13 /r:m", "Mq Vq", _copy)
    _move(f"vmovhp{_suffix}", f"{_code} 16 /r:m", "Vx Hx Mq", _load_high, "Vx Mq")
    _move(f"vmovhp{_suffix}", f"{_code} 17 /r:m", "Mq Vx", _store_high)


# --- upper halves ----------------------------------------------------------


@staged
def _clear_upper(m: Operation, whole: bool) -> None:
    cpu = m.cpu
    zero = constant(0)
    for number in range(16):
        if number < 8 or cpu.mode == MODE_64:
            cpu.ymm_high[number] = zero
            if whole:
                cpu.xmm[number] = zero


def _vzeroupper(m: Operation) -> None:
    _clear_upper(m, False)


def _vzeroall(m: Operation) -> None:
    _clear_upper(m, True)


_enter("vzeroupper", "VEX.128.0F.WIG 77", "", _vzeroupper, fast=True)
_enter("vzeroall", "VEX.256.0F.WIG 77", "", _vzeroall, fast=True)


# --- broadcasts, halves ------------------------------------------------------


@staged
def _spread(value: Any) -> Any:
    """Return a v128 whose lanes of the width of `value` all hold it."""
    bits = value.kind.bits
    if bits == 64:
        return pair(value, value)
    doubled = u64(value) * ((1 << 64) // ((1 << bits) - 1))
    return pair(doubled, doubled)


def _broadcast(lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        value = _spread(m.read(1))
        write_vector(m, [value] * lanes, False)

    return semantic


def _broadcast_half(m: Operation) -> None:
    value = m.read(1)
    m.write_halves(0, value, value)


for _length, _lanes, _size in LENGTHS:
    for _mnemonic, _opcode, _s in (
        *(("vpbroadcastb", 0x78, "b"), ("vpbroadcastw", 0x79, "w"), ("vpbroadcastd", 0x58, "d")),
        *(("vpbroadcastq", 0x59, "q"), ("vbroadcastss", 0x18, "d"), ("vbroadcastsd", 0x19, "q")),
    ):
        if _mnemonic != "vbroadcastsd" or _lanes == 2:
            _code = f"VEX.{_length}.66.0F38.W0 {_opcode:02X} /r"
            _enter(_mnemonic, _code, f"V{_size} W{_s}", _broadcast(_lanes), fast=True)
for _mnemonic, _opcode in (("vbroadcastf128", 0x1A), ("vbroadcasti128", 0x5A)):
    _code = f"VEX.256.66.0F38.W0 {_opcode:02X} /r:m"
    _enter(_mnemonic, _code, "Vqq Mx", _broadcast_half, fast=True)


def _insert_half(m: Operation) -> None:
    value = m.read(2)
    first, second = m.read_half(1, 0), m.read_half(1, 1)
    upper = (imm8(m, 3) & 1) != 0
    m.write_halves(0, select(upper, first, value), select(upper, value, second))


def _extract_half(m: Operation) -> None:
    first, second = m.read_half(1, 0), m.read_half(1, 1)
    write_vector(m, [select((imm8(m, 2) & 1) != 0, second, first)], False)


@staged
def _pick_half(control: Any, halves: list[Any]) -> Any:
    """Return the half that bits 1:0 of `control` choose, or 0 with bit 3."""
    first = select((control & 1) != 0, halves[1], halves[0])
    second = select((control & 1) != 0, halves[3], halves[2])
    chosen = select((control & 2) != 0, second, first)
    return select((control & 8) != 0, constant(0), chosen)


def _permute_halves(m: Operation) -> None:
    halves = [m.read_half(n >> 1, n & 1) for n in range(2, 6)]
    imm = imm8(m, 3)
    m.write_halves(0, _pick_half(imm, halves), _pick_half(imm >> 4, halves))


for _kind, _permute, _insert, _extract in (("f", 0x06, 0x18, 0x19), ("i", 0x46, 0x38, 0x39)):
    _code = "VEX.256.66.0F3A.W0"
    _enter(
        *(f"vperm2{_kind}128", f"{_code} {_permute:02X} /r", "Vqq Hqq Wqq Ib"),
        _permute_halves,
        fast=True,
    )
    _enter(
        *(f"vinsert{_kind}128", f"{_code} {_insert:02X} /r", "Vqq Hqq Wx Ib"),
        _insert_half,
        fast=True,
    )
    _enter(
        *(f"vextract{_kind}128", f"{_code} {_extract:02X} /r", "Wx Vqq Ib"),
        _extract_half,
        fast=True,
    )


# --- permutations ------------------------------------------------------------


def _permute_singles(lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        control = dword_control(imm8(m, 2))
        results = []
        for lane in range(lanes):
            results.append(combine("pshufb", read_lane(m, 1, lane, lanes), control))
        write_vector(m, results, False)

    return semantic


def _permute_doubles(lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        imm = imm8(m, 2)
        results = []
        for lane in range(lanes):
            value = read_lane(m, 1, lane, lanes)
            picked = [
                select((imm & bit << 2 * lane) != 0, high(value), low(value)) for bit in (1, 2)
            ]
            results.append(pair(picked[0], picked[1]))
        write_vector(m, results, False)

    return semantic


for _length, _lanes, _size in LENGTHS:
    for _s, _immediate, _variable, _semantic in (
        ("s", 0x04, 0x0C, _permute_singles(_lanes)),
        ("d", 0x05, 0x0D, _permute_doubles(_lanes)),
    ):
        _name = "vpermilp" + _s
        _code = f"VEX.{_length}.66"
        _enter(
            *(_name, f"{_code}.0F3A.W0 {_immediate:02X} /r", f"V{_size} W{_size} Ib"),
            _semantic,
            fast=True,
        )
        _enter(
            *(_name, f"{_code}.0F38.W0 {_variable:02X} /r", f"V{_size} H{_size} W{_size}"),
            host_lanes(_name, _lanes),
            fast=True,
            needs="avx",
        )


def _permute_across(m: Operation) -> None:
    """VPERMD, VPERMPS: bits 2:0 of an index name one of eight doublewords."""
    halves = [m.read_half(2, half) for half in (0, 1)]
    results = []
    for half in range(2):
        index = m.read_half(1, half)
        asm = "vpermilps $2, $1, $0"
        picks = [host_asm(v128, asm, "=x,x,x", value, index) for value in halves]
        # Bit 2 of an index, which says which half it is, becomes the sign.
        sign = host_asm(v128, "vpslld $$29, $1, $0", "=x,x", index)
        asm = "vblendvps $3, $2, $1, $0"
        results.append(host_asm(v128, asm, "=x,x,x,x", picks[0], picks[1], sign))
    write_vector(m, results, False)


_enter(
    *("vpermd", "VEX.256.66.0F38.W0 36 /r", "Vqq Hqq Wqq"), _permute_across, fast=True, needs="avx"
)
_enter(
    *("vpermps", "VEX.256.66.0F38.W0 16 /r", "Vqq Hqq Wqq"),
    _permute_across,
    fast=True,
    needs="avx",
)


@staged
def _pick_quadword(control: Any, words: list[Any]) -> Any:
    first = select((control & 1) != 0, words[1], words[0])
    second = select((control & 1) != 0, words[3], words[2])
    return select((control & 2) != 0, second, first)


def _permute_quadwords(m: Operation) -> None:
    """VPERMQ, VPERMPD: each quadword is one of the four."""
    first, second = m.read_half(1, 0), m.read_half(1, 1)
    words = [low(first), high(first), low(second), high(second)]
    imm = imm8(m, 2)
    picked = [_pick_quadword(imm >> 2 * n, words) for n in range(4)]
    m.write_halves(0, pair(picked[0], picked[1]), pair(picked[2], picked[3]))


_enter("vpermq", "VEX.256.66.0F3A.W1 00 /r", "Vqq Wqq Ib", _permute_quadwords, fast=True)
_enter("vpermpd", "VEX.256.66.0F3A.W1 01 /r", "Vqq Wqq Ib", _permute_quadwords, fast=True)


# --- masks -----------------------------------------------------------------


def _sign_mask(mnemonic: str, bits: int) -> Any:
    def semantic(m: Operation) -> None:
        parts = [
            host_asm(u32, f"{mnemonic} $1, $0", "=r,x", m.read_half(1, half)) for half in (0, 1)
        ]
        m.write(0, parts[0] | (parts[1] << bits))

    return semantic


_enter("vmovmskps", "VEX.256.0F.WIG 50 /r:r", "Gd Uqq", _sign_mask("movmskps", 4), fast=True)
_enter("vmovmskpd", "VEX.256.66.0F.WIG 50 /r:r", "Gd Uqq", _sign_mask("movmskpd", 2), fast=True)
_enter("vpmovmskb", "VEX.256.66.0F.WIG D7 /r:r", "Gd Uqq", _sign_mask("pmovmskb", 16), fast=True)

# The sign bits of the lanes.
_SIGNS = {"ps": 0x80000000_80000000_80000000_80000000, "pd": 0x8000000000000000_8000000000000000}


def _test_signs(suffix: str, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        signs = constant(_SIGNS[suffix])
        if lanes == 2:
            both, only = folded(m, signs)
            finish_test(m, both, only)
        else:
            second = m.read(1) & signs
            both = m.read(0) & second
            finish_test(m, both, second ^ both)

    return semantic


for _length, _lanes, _size in LENGTHS:
    for _suffix, _opcode in (("ps", 0x0E), ("pd", 0x0F)):
        _enter(
            f"vtest{_suffix}",
            f"VEX.{_length}.66.0F38.W0 {_opcode:02X} /r",
            f"V{_size} W{_size}",
            _test_signs(_suffix, _lanes),
            fast=True,
        )


# --- masked loads and stores -------------------------------------------------


@staged
def _load_masked(m: Operation, kind: Any, lanes: int) -> None:
    """Load the elements whose sign bit is set in operand 1; the others are 0, and never fault."""
    bits = kind.bits
    address = m.address(2, 0)
    results = []
    for lane in range(lanes):
        rest = u128(read_lane(m, 1, lane, lanes))
        value = u128(0)
        index = u64(0)
        while index < 128 // bits:
            if (rest >> (bits - 1)) & 1 != 0:
                where = address + u64(lane * 16) + index * (bits // 8)
                value = value | (u128(m.load(kind, where)) << (u128(index) * bits))
            rest = rest >> bits
            index += 1
        results.append(v128(value))
    write_vector(m, results, False)


@staged
def _store_masked(m: Operation, kind: Any, lanes: int) -> None:
    """Store the elements of operand 2 whose sign bit is set in operand 1."""
    bits = kind.bits
    address = m.address(0, 0)
    for lane in range(lanes):
        mask = u128(read_lane(m, 1, lane, lanes))
        rest = u128(read_lane(m, 2, lane, lanes))
        index = u64(0)
        while index < 128 // bits:
            if (mask >> (bits - 1)) & 1 != 0:
                m.store(kind, address + u64(lane * 16) + index * (bits // 8), kind(rest))
            mask = mask >> bits
            rest = rest >> bits
            index += 1


def _masked_load(kind: Any, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        _load_masked(m, kind, lanes)

    return semantic


def _masked_store(kind: Any, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        _store_masked(m, kind, lanes)

    return semantic


for _length, _lanes, _size in LENGTHS:
    for _mnemonic, _width, _load, _store, _bits in (
        *(("vmaskmovps", 0, 0x2C, 0x2E, u32), ("vmaskmovpd", 0, 0x2D, 0x2F, u64)),
        *(("vpmaskmovd", 0, 0x8C, 0x8E, u32), ("vpmaskmovq", 1, 0x8C, 0x8E, u64)),
    ):
        _code = f"VEX.{_length}.66.0F38.W{_width}"
        _enter(
            *(_mnemonic, f"{_code} {_load:02X} /r:m", f"V{_size} H{_size} M"),
            _masked_load(_bits, _lanes),
        )
        _enter(
            *(_mnemonic, f"{_code} {_store:02X} /r:m", f"M H{_size} V{_size}"),
            _masked_store(_bits, _lanes),
        )
