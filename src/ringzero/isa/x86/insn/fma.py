"""FMA: a product and a sum, rounded once, by the host's own instructions.

Intel SDM vol. 1, 14.5, and vol. 2C. Where the guest has unmasked overflow or underflow, the
precision flag beside it tells of the host's own, masked rounding (see precision.py).
"""

from __future__ import annotations

import functools
from typing import Any

from ringzero.isa.x86.insn import mxcsr
from ringzero.isa.x86.insn.lanes import LENGTHS, enter_vex, read_lane, write_vector
from ringzero.isa.x86.insn.sse_operands import vector
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, v128

_enter = functools.partial(enter_vex, __name__)

# Low half of the opcode of packed forms; those of one number follow, where there are any.
_PACKED = {"fmaddsub": 6, "fmsubadd": 7, "fmadd": 8, "fmsub": 0xA, "fnmadd": 0xC, "fnmsub": 0xE}
_SCALAR = ("fmadd", "fmsub", "fnmadd", "fnmsub")
# Which operands are multiplied and which is added: high half of the opcode.
_ORDERS = {"132": 0x90, "213": 0xA0, "231": 0xB0}


def _packed(mnemonic: str, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        results = []
        sources = []
        for lane in range(lanes):
            third = read_lane(m, 2, lane, lanes)
            sources.append((read_lane(m, 0, lane, lanes), read_lane(m, 1, lane, lanes), third))
        mxcsr.begin(m)
        for first, second, third in sources:
            asm = f"{mnemonic} $3, $2, $0"
            results.append(host_asm(v128, asm, "=x,0,x,x", first, second, third))
        mxcsr.end(m)
        write_vector(m, results, False)

    return semantic


def _scalar(mnemonic: str) -> Any:
    def semantic(m: Operation) -> None:
        third = vector(m.read(2))
        first, second = m.read(0), m.read(1)
        mxcsr.begin(m)
        asm = f"{mnemonic} $3, $2, $0"
        result = host_asm(v128, asm, "=x,0,x,x", first, second, third)
        mxcsr.end(m)
        write_vector(m, [result], False)

    return semantic


def _enter_order(name: str, order: str, width: int, suffix: str) -> None:
    opcode = _ORDERS[order] + _PACKED[name]
    mnemonic = f"v{name}{order}p{suffix}"
    for length, lanes, size in LENGTHS:
        code = f"VEX.{length}.66.0F38.W{width} {opcode:02X} /r"
        operands = f"V{size} H{size} W{size}"
        _enter(mnemonic, code, operands, _packed(mnemonic, lanes), fast=True, needs="fma")
    if name in _SCALAR:
        mnemonic = f"v{name}{order}s{suffix}"
        code = f"VEX.LIG.66.0F38.W{width} {opcode + 1:02X} /r"
        operands = f"Vx Hx W{'dq'[width]}"
        _enter(mnemonic, code, operands, _scalar(mnemonic), fast=True, needs="fma")


for _name in _PACKED:
    for _order in _ORDERS:
        for _width, _suffix in enumerate("sd"):
            _enter_order(_name, _order, _width, _suffix)
