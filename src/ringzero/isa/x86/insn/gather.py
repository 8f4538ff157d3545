"""Gathers: elements at indices from a vector (AVX2; Intel SDM vol. 2C, VGATHERDPS and the like).

Elements that are loaded lose their bit in the mask, so an instruction that faulted midway
goes on where it was.
"""

from __future__ import annotations

import functools
from typing import Any

from ringzero.isa.x86.cpu import UD, Cpu
from ringzero.isa.x86.insn.lanes import LENGTHS, enter_vex
from ringzero.isa.x86.insn.sse_operands import constant
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import address_of, i32, i64, load, select, staged, store, u32, u64

_enter = functools.partial(enter_vex, __name__)

_XMM, _UPPER = Cpu.offset_of("xmm"), Cpu.offset_of("ymm_high")


@staged
def _element(cpu: Any, register: Any, offset: Any) -> Any:
    """Return the host address of the byte at `offset` of a YMM register."""
    half = select(offset < 16, u64(_XMM), u64(_UPPER))
    return address_of(cpu) + half + (register << 4) + (offset & 15)


@staged
def _gather(m: Operation, kind: Any, index_kind: Any, lanes: int) -> None:
    """Gather elements of `kind` by signed indices of `index_kind`."""
    cpu = m.cpu
    insn = m.insn
    target, mask = m.register_number(0), m.register_number(2)
    indices = u64(insn.imm2)
    if target == mask or target == indices or mask == indices:
        m.fault(UD)
    base = m.address(1, 0)
    count = lanes * 16 // max(kind.size, index_kind.size)
    number = u64(0)
    while number < count:
        bit = load(kind, _element(cpu, mask, number * kind.size)) >> (kind.bits - 1)
        if bit != 0:
            raw = load(index_kind, _element(cpu, indices, number * index_kind.size))
            where = base + (u64(i64(raw)) << insn.scale)
            if insn.address_size == 2:
                where = where & 0xFFFFFFFF
            store(kind, _element(cpu, target, number * kind.size), m.load(kind, where))
        store(kind, _element(cpu, mask, number * kind.size), kind(0))
        number += 1
    # What no element reaches is cleared.
    if count * kind.size < 16:
        store(u64, _element(cpu, target, u64(8)), u64(0))
        store(u64, _element(cpu, mask, u64(8)), u64(0))
    if count * kind.size < 32:
        cpu.ymm_high[target] = constant(0)
        cpu.ymm_high[mask] = constant(0)


def _semantic(kind: Any, index_kind: Any, lanes: int) -> Any:
    def semantic(m: Operation) -> None:
        _gather(m, kind, index_kind, lanes)

    return semantic


for _length, _lanes, _size in LENGTHS:
    for _opcode, _index_kind, _letter in ((0x90, i32, "d"), (0x91, i64, "q")):
        for _width, _kind, _float in ((0, u32, "ps"), (1, u64, "pd")):
            for _mnemonic, _code in (
                (f"vpgather{_letter}{'dq'[_width]}", _opcode),
                (f"vgather{_letter}{_float}", _opcode + 2),
            ):
                _enter(
                    _mnemonic,
                    f"VEX.{_length}.66.0F38.W{_width} {_code:02X} /r:m",
                    f"V{_size} M H{_size}",
                    _semantic(_kind, _index_kind, _lanes),
                    vsib=True,
                )
