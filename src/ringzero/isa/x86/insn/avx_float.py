"""AVX floating point: the SSE instructions with three operands and two lanes; comparisons, F16C.

Intel SDM vol. 2, under each name; vol. 1, chapter 14.
"""

from __future__ import annotations

import functools
from typing import Any

from ringzero.isa.x86.insn import mxcsr, precision, sse_float
from ringzero.isa.x86.insn.lanes import (
    LENGTHS,
    Twins,
    enter_twins,
    enter_vex,
    names,
    read_lane,
    write_vector,
)
from ringzero.isa.x86.insn.sse_integer import lane_mask
from ringzero.isa.x86.insn.sse_operands import constant, imm8, low, pair, transform, vector
from ringzero.isa.x86.table.forms import FORMS
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, native, staged, u8, u64, u128, v128

_enter = functools.partial(enter_vex, __name__)

# Conversions between sizes have an operand of 256 and one of 128 bits.
_RESIZING = names("cvtps2pd cvtdq2pd cvtpd2ps cvtpd2dq cvttpd2dq")
_UNARY = _RESIZING | names(
    "sqrtps sqrtpd rsqrtps rcpps cvtdq2ps cvtps2dq cvttps2dq roundps roundpd"
    " ucomiss ucomisd comiss comisd cvttss2si cvtss2si cvttsd2si cvtsd2si"
)
_PACKED = frozenset(
    f.mnemonic
    for f in FORMS
    if f.function.__module__ == sse_float.__name__ and f.operands[0].size == "x"
)
_COMPARISONS = names("cmpps cmppd cmpss cmpsd")

enter_twins(
    __name__,
    "sse_float",
    Twins(
        unary=_UNARY,
        both=_PACKED - _RESIZING - {"dppd", "dpps"},
        together=_PACKED - {"rsqrtps", "rcpps"},
        left_out=_COMPARISONS,
    ),
)


# --- comparisons -------------------------------------------------------------


def _make_comparison(suffix: str) -> Any:
    def compare(first: v128, second: v128, predicate: u8) -> v128:
        for number in range(32):
            if (predicate & 31) == number:
                asm = f"vcmp{suffix} $${number}, $2, $1, $0"
                return host_asm(v128, asm, "=x,x,x", first, second)
        return first

    compare.__name__ = compare.__qualname__ = f"compare_{suffix}"
    return native(inline="never")(compare)


_COMPARE = {suffix: _make_comparison(suffix) for suffix in ("ps", "pd", "ss", "sd")}


def _compare(suffix: str, lanes: int) -> Any:
    comparison = _COMPARE[suffix]

    def semantic(m: Operation) -> None:
        pairs = []
        for lane in range(lanes):
            second = read_lane(m, 2, lane, lanes)
            pairs.append((read_lane(m, 1, lane, lanes), second))
        mxcsr.begin(m)
        predicate = imm8(m, 3)
        results = [comparison(first, second, predicate) for first, second in pairs]
        mxcsr.end(m)
        write_vector(m, results, False)

    return semantic


def _compare_scalar(suffix: str) -> Any:
    comparison = _COMPARE[suffix]

    def semantic(m: Operation) -> None:
        second = m.read(2)
        first = m.read(1)
        mxcsr.begin(m)
        # The rest of the first operand stays.
        result = comparison(first, vector(second), imm8(m, 3))
        mxcsr.end(m)
        write_vector(m, [result], False)

    return semantic


for _length, _lanes, _size in LENGTHS:
    for _suffix, _prefix in (("ps", ""), ("pd", ".66")):
        _code = f"VEX.{_length}{_prefix}.0F.WIG C2 /r"
        _operands = f"V{_size} H{_size} W{_size} Ib"
        _enter("vcmp" + _suffix, _code, _operands, _compare(_suffix, _lanes), needs="avx")
for _suffix, _prefix, _s in (("ss", "F3", "d"), ("sd", "F2", "q")):
    _code = f"VEX.LIG.{_prefix}.0F.WIG C2 /r"
    _operands = f"Vx Hx W{_s} Ib"
    _enter("vcmp" + _suffix, _code, _operands, _compare_scalar(_suffix), needs="avx")


# --- dot products of two lanes ---------------------------------------------------


def _dot_products(m: Operation) -> None:
    # As of one lane, but each step raises what is unmasked of both together.
    pairs = []
    for lane in range(2):
        second = read_lane(m, 2, lane, 2)
        pairs.append((read_lane(m, 1, lane, 2), second))
    imm = imm8(m, 3)
    used, kept = lane_mask(imm >> 4, 32), lane_mask(imm & 15, 32)
    pairs = [(first & used, second & used) for first, second in pairs]
    sse_float.sum_by_steps(m, "s", pairs)
    mxcsr.begin(m)
    asm = "dpps $$0xff, $2, $0"
    results = [host_asm(v128, asm, "=x,0,x", first, second) & kept for first, second in pairs]
    mxcsr.end(m)
    write_vector(m, results, False)


_enter("vdpps", "VEX.256.66.0F3A.WIG 40 /r", "Vqq Hqq Wqq Ib", _dot_products, needs="avx")


# --- conversions between sizes -------------------------------------------------


def _widen(mnemonic: str) -> Any:
    def semantic(m: Operation) -> None:
        value = u128(m.read(1))
        mxcsr.begin(m)
        first = transform(mnemonic, v128(value))
        second = transform(mnemonic, v128(value >> 64))
        mxcsr.end(m)
        m.write_halves(0, first, second)

    return semantic


@staged
def _settled(m: Operation, mnemonic: str, source: Any) -> Any:
    result = transform(mnemonic, source)
    if m.checked and mnemonic in precision.STEPS:
        cpu = m.cpu
        if mxcsr.any_unmasked(cpu):
            precision.settle(cpu, precision.STEPS[mnemonic], source, constant(0))
    return low(result)


def _narrow(mnemonic: str) -> Any:
    def semantic(m: Operation) -> None:
        first, second = m.read_half(1, 0), m.read_half(1, 1)
        mxcsr.begin(m)
        first_half = _settled(m, mnemonic, first)
        result = pair(first_half, _settled(m, mnemonic, second))
        mxcsr.end(m)
        write_vector(m, [result], False)

    return semantic


for _mnemonic, _code in (("cvtps2pd", "0F.WIG 5A"), ("cvtdq2pd", "F3.0F.WIG E6")):
    _enter("v" + _mnemonic, f"VEX.256.{_code} /r", "Vqq Wx", _widen(_mnemonic), fast=True)
for _mnemonic, _code in (
    *(("cvtpd2ps", "66.0F.WIG 5A"), ("cvttpd2dq", "66.0F.WIG E6"), ("cvtpd2dq", "F2.0F.WIG E6")),
):
    _enter("v" + _mnemonic, f"VEX.256.{_code} /r", "Vx Wqq", _narrow(_mnemonic), fast=True)


# --- half precision (F16C) -----------------------------------------------------


@staged
def _from_halves(value: Any) -> Any:
    return host_asm(v128, "vcvtph2ps $1, $0", "=x,x", value)


def _vcvtph2ps(m: Operation) -> None:
    value = m.read(1)
    mxcsr.begin(m)
    result = _from_halves(vector(value))
    mxcsr.end(m)
    write_vector(m, [result], False)


def _vcvtph2ps_wide(m: Operation) -> None:
    value = u128(m.read(1))
    mxcsr.begin(m)
    first = _from_halves(v128(value))
    second = _from_halves(v128(value >> 64))
    mxcsr.end(m)
    m.write_halves(0, first, second)


@native(inline="never")
def to_halves(value: v128, control: u8) -> u64:
    """Return four singles in half precision, rounded as VCVTPS2PH does with immediate `control`."""
    for number in range(8):
        if (control & 7) == number:
            asm = f"vcvtps2ph $${number}, $1, $0"
            return low(host_asm(v128, asm, "=x,x", value))
    return u64(0)


def _vcvtps2ph(m: Operation) -> None:
    if m.is_memory(0):
        m.read(0)  # faults before MXCSR changes
    value = m.read(1)
    mxcsr.begin(m)
    result = to_halves(value, imm8(m, 2))
    mxcsr.end(m)
    if m.is_memory(0):
        m.write(0, result)
    else:
        write_vector(m, [vector(result)], False)


def _vcvtps2ph_wide(m: Operation) -> None:
    if m.is_memory(0):
        m.read(0)
    first, second = m.read_half(1, 0), m.read_half(1, 1)
    mxcsr.begin(m)
    control = imm8(m, 2)
    first_half = to_halves(first, control)
    result = pair(first_half, to_halves(second, control))
    mxcsr.end(m)
    write_vector(m, [result], False)


for _length, _operands, _semantic in (
    ("128", "Vx Wq", _vcvtph2ps),
    ("256", "Vqq Wx", _vcvtph2ps_wide),
):
    _code = f"VEX.{_length}.66.0F38.W0 13 /r"
    _enter("vcvtph2ps", _code, _operands, _semantic, fast=True, needs="f16c")
for _length, _operands, _semantic in (
    ("128", "Wq Vx Ib", _vcvtps2ph),
    ("256", "Wx Vqq Ib", _vcvtps2ph_wide),
):
    _code = f"VEX.{_length}.66.0F3A.W0 1D /r"
    _enter("vcvtps2ph", _code, _operands, _semantic, rmw=True, needs="f16c")
