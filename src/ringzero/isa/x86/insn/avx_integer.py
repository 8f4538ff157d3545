"""AVX and AVX2 on integers: the SSE instructions with three operands and two lanes, and their own.

Intel SDM vol. 2; what differs from SSE is in vol. 1, sections 14.1 and 14.6.
"""

from __future__ import annotations

import functools
from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS
from ringzero.isa.x86.insn import sse_integer, sse_string
from ringzero.isa.x86.insn.lanes import (
    LENGTHS,
    Twins,
    enter_twins,
    enter_vex,
    host_lanes,
    names,
    read_lane,
    write_vector,
)
from ringzero.isa.x86.insn.sse_integer import choose, lane_mask
from ringzero.isa.x86.insn.sse_operands import constant, imm8, transform
from ringzero.isa.x86.table.forms import FORMS
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, staged, u64, u128, v128

_enter = functools.partial(enter_vex, __name__)

_SHIFTS = frozenset(sse_integer.SHIFTS)
# Of these there are forms of 128 bits alone.
_SINGLE = names("phminposuw pinsrw pinsrb pinsrd pextrw pextrb pextrd extractps insertps ptest")
_LEFT_OUT = names("popcnt crc32 pblendvb blendvps blendvpd")
_ALL = frozenset(f.mnemonic for f in FORMS if f.function.__module__ == sse_integer.__name__)

enter_twins(
    __name__,
    "sse_integer",
    Twins(
        unary=frozenset(sse_integer.ABSOLUTE_38)
        | names("phminposuw pshufd pshuflw pshufhw pextrw pextrb pextrd extractps ptest"),
        both=_ALL - _SINGLE,
        narrow=_SHIFTS,
        by_width=names("pinsrd pextrd"),
        left_out=_LEFT_OUT,
        steps={"blendps": 4, "blendpd": 2, "shufpd": 2, "mpsadbw": 3},
    ),
)
enter_twins(
    __name__,
    "sse_string",
    Twins(unary=names("pcmpestri pcmpistri"), left_out=names("pcmpestrm pcmpistrm")),
)


def _string_mask(mnemonic: str, opcode: int, compare: Any) -> None:
    def semantic(m: Operation) -> None:
        compare(m, False)
        m.cpu.ymm_high[0] = constant(0)

    _enter(mnemonic, f"VEX.128.66.0F3A.WIG {opcode:02X} /r", "Vx Wx Ib", semantic, sized=True)


_string_mask("vpcmpestrm", 0x60, sse_string.explicit)
_string_mask("vpcmpistrm", 0x62, sse_string.implicit)


# --- tests -----------------------------------------------------------------


@staged
def folded(m: Operation, keep: Any) -> Any:
    """Return first AND second, and NOT first AND second, both halves of them joined by OR.

    `keep` has ones where bits count.
    """
    both = constant(0)
    only = constant(0)
    for half in range(2):
        second = m.read_half(1, half) & keep
        first = m.read_half(0, half)
        both = both | (first & second)
        only = only | (second ^ (first & second))
    return both, only


@staged
def finish_test(m: Operation, both: Any, only: Any) -> None:
    """Set ZF when `both` is 0, CF when `only` is."""
    zero = u64(u128(both) == 0) << 6
    m.set_status(zero | u64(u128(only) == 0), ARITHMETIC_FLAGS)


def _vptest(m: Operation) -> None:
    both, only = folded(m, constant((1 << 128) - 1))
    finish_test(m, both, only)


_enter("vptest", "VEX.256.66.0F38.WIG 17 /r", "Vqq Wqq", _vptest, fast=True)


# --- blends, shifts by a count for each lane ---------------------------------


def _blend_doublewords(lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        imm = imm8(m, 3)
        results = []
        for lane in range(lanes):
            first, second = read_lane(m, 1, lane, lanes), read_lane(m, 2, lane, lanes)
            results.append(choose(lane_mask(imm >> 4 * lane & 15, 32), second, first))
        write_vector(m, results, False)

    return semantic


def _blend_variable(mnemonic: str, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        results = []
        for lane in range(lanes):
            first, second = read_lane(m, 1, lane, lanes), read_lane(m, 2, lane, lanes)
            mask = read_lane(m, 3, lane, lanes)
            asm = f"{mnemonic} %xmm0, $2, $0"
            results.append(host_asm(v128, asm, "=x,0,x,{xmm0}", first, second, mask))
        write_vector(m, results, False)

    return semantic


for _length, _lanes, _size in LENGTHS:
    _enter(
        *("vpblendd", f"VEX.{_length}.66.0F3A.W0 02 /r", f"V{_size} H{_size} W{_size} Ib"),
        _blend_doublewords(_lanes),
        fast=True,
    )
    for _mnemonic, _opcode in {"pblendvb": 0x4C, "blendvps": 0x4A, "blendvpd": 0x4B}.items():
        _enter(
            "v" + _mnemonic,
            f"VEX.{_length}.66.0F3A.W0 {_opcode:02X} /r",
            f"V{_size} H{_size} W{_size} L{_size}",
            _blend_variable(_mnemonic, _lanes),
        )
    for _mnemonic, _width, _opcode in (
        *(("vpsrlvd", 0, 0x45), ("vpsrlvq", 1, 0x45), ("vpsravd", 0, 0x46)),
        *(("vpsllvd", 0, 0x47), ("vpsllvq", 1, 0x47)),
    ):
        _enter(
            _mnemonic,
            f"VEX.{_length}.66.0F38.W{_width} {_opcode:02X} /r",
            f"V{_size} H{_size} W{_size}",
            host_lanes(_mnemonic, _lanes),
            fast=True,
            needs="avx2",
        )


# --- lanes that become wider -------------------------------------------------


def _widen(mnemonic: str, source: int) -> Any:
    def semantic(m: Operation) -> None:
        value = m.read(1)
        whole = u128(value)
        low_half = transform(mnemonic, v128(whole))
        m.write_halves(0, low_half, transform(mnemonic, v128(whole >> source)))

    return semantic


# The end of the name, and the size of the source of 256 bits, in the order of the opcodes.
for _index, (_kind, _size, _bits) in enumerate(
    (("bw", "x", 64), ("bd", "q", 32), ("bq", "d", 16), ("wd", "x", 64), ("wq", "q", 32),
     ("dq", "x", 64))
):  # fmt: skip
    for _prefix, _first in (("pmovsx", 0x20), ("pmovzx", 0x30)):
        _enter(
            f"v{_prefix}{_kind}",
            f"VEX.256.66.0F38.WIG {_first + _index:02X} /r",
            f"Vqq W{_size}",
            _widen(_prefix + _kind, _bits),
            fast=True,
        )
