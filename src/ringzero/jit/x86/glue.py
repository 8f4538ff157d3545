"""Glue: stencils of x86 that are no instructions. Addresses, flags, conditional jumps, moves.

`glue()` has them all by name, with the exits that every guest has; `number_members` says
which member of `tables.Glue` tells the number of which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ringzero.isa.x86 import ccops
from ringzero.isa.x86 import flags as lazy
from ringzero.isa.x86.ccops import CC_OPS, CONDITIONS, cc_ops
from ringzero.isa.x86.cpu import RCX, Cpu
from ringzero.jit.compile.builder import FunctionBuilder
from ringzero.jit.compile.module import Module
from ringzero.jit.exits import exits
from ringzero.jit.stencil import LIKELY, Body, StencilWriter, define_stencil, plain
from ringzero.jit.x86.operands import FRAME
from ringzero.jit.x86.tables import (
    CLASSES,
    COUNTERS,
    HIGH_REGISTERS,
    PINNED_REGISTERS,
    SCALES,
    SLOT,
)
from ringzero.native import boolean, load, store, u16, u32, u64, unsigned
from ringzero.native.generation import as_value, convert
from ringzero.native.values import Value


def glue() -> dict[str, Body]:
    """Return every glue stencil by name, each as a function that writes its body."""
    return {**_addresses(), **_flags(), **_moves(), **exits()}


def define_glue(module: Module, number: int, body: Body) -> None:
    """Add one glue stencil, called s<number>, to a module."""

    def write(builder: FunctionBuilder) -> bool:
        body(StencilWriter(builder, FRAME))
        return True

    define_stencil(module, f"s{number}", FRAME, write)


def members(number: Callable[[str], int]) -> dict[str, list[int]]:
    """Return each member of tables.Glue, given what numbers the stencils have.

    What depends on registers is in the order of `place_of_...`; a cc_op that there is not
    has 0.
    """
    classes, scales = range(CLASSES), range(SCALES)

    def by_op(name: str) -> list[int]:
        known = {op: number(f"{name}.{op}") for op in cc_ops()}
        return [known.get(op, 0) for op in range(CC_OPS)]

    single = ("disp", "rip", "segment", "segment32", "mask32")
    return {
        **{f"ea_{name}": [number(f"ea.{name}")] for name in single},
        "ea_base": [number(f"ea.b{base}") for base in classes],
        "ea_base_index": [
            number(f"ea.b{base}.i{index}.s{scale}")
            for base in classes for index in classes for scale in scales
        ],
        "ea_index": [number(f"ea.i{index}.s{scale}") for index in classes for scale in scales],
        "carry": by_op("carry"),
        "status": by_op("status"),
        "condition": [n for code in range(CONDITIONS) for n in by_op(f"cond.{code}")],
        "jcc": [n for code in range(CONDITIONS) for n in by_op(f"jcc.{code}")],
        "jrcxz": [number(f"jrcxz.{log2}") for log2 in range(COUNTERS)],
        "carry_any": [number("carry.any")],
        "status_any": [number("status.any")],
        "movabs": [number(f"movabs.{register}") for register in classes],
        "store": [number("store")],
        "swap": [number(f"swap.{register}") for register in range(HIGH_REGISTERS)],
        "spill": [number("spill.0")],
        "fill": [number("fill.0")],
    }  # fmt: skip


# --- addresses ---------------------------------------------------------------


def _gpr(m: StencilWriter, number: int, hole: str) -> Any:
    if number < SLOT:
        return m.register(number)
    return load(u64, u64(m.cpu) + m.hole(hole))


def _based(base: int, m: StencilWriter) -> Any:
    return _gpr(m, base, "HB") + m.hole("HD")


def _indexed(index: int, scale: int, m: StencilWriter) -> Any:
    return (_gpr(m, index, "HX") << scale) + m.hole("HD")


def _both(base: int, index: int, scale: int, m: StencilWriter) -> Any:
    return _gpr(m, base, "HB") + (_gpr(m, index, "HX") << scale) + m.hole("HD")


def _segment32(m: StencilWriter) -> None:
    """Add the base of a 4 GiB segment to an operand that does not wrap in it."""
    builder = m.builder
    inside = builder.fresh("inside")
    builder.branch((m.temporary + m.hole("HD")) >> 32 == 0, inside, "slow", LIKELY)
    builder.start(inside)
    linear = m.temporary + load(u64, u64(m.cpu) + m.hole("HS"))
    result = convert(u64, u32(linear))
    m.tail("NEXT", m.arguments(result.ref))
    m.slow_exit()


def _addresses() -> dict[str, Body]:
    """Return what computes the address of an operand into the temporary."""
    bodies: dict[str, Body] = {}
    for base in range(CLASSES):
        bodies[f"ea.b{base}"] = plain(partial(_based, base))
        for index, scale in itertools.product(range(CLASSES), range(SCALES)):
            bodies[f"ea.b{base}.i{index}.s{scale}"] = plain(partial(_both, base, index, scale))
    for index, scale in itertools.product(range(CLASSES), range(SCALES)):
        bodies[f"ea.i{index}.s{scale}"] = plain(partial(_indexed, index, scale))
    bodies["ea.disp"] = plain(lambda m: m.hole("HD"))
    bodies["ea.rip"] = plain(lambda m: m.cpu.page_base + m.hole("HD"))
    bodies["ea.segment"] = plain(lambda m: m.temporary + load(u64, u64(m.cpu) + m.hole("HS")))
    bodies["ea.mask32"] = plain(lambda m: u64(u32(m.temporary)))
    bodies["ea.segment32"] = _segment32
    return bodies


# --- flags -------------------------------------------------------------------


def _flag_inputs(m: StencilWriter, cc_op: int) -> tuple[int, Any, Any, Any]:
    """Return kind, dst, src, aux of the last operation, known to be `cc_op`."""
    kind, log2 = divmod(cc_op, len(ccops.LOG2))
    T = unsigned(8 << log2)
    where = u64(m.cpu)
    dst, src, aux = (
        load(T, where + Cpu.offset_of(name)) for name in ("cc_dst", "cc_src", "cc_aux")
    )
    return kind, dst, src, aux


def _as_boolean(value: Any) -> Any:
    return value if isinstance(value, Value) else as_value(value, boolean)


def _condition(op: int, code: int, m: StencilWriter) -> Any:
    if op == ccops.STATUS:
        return _as_boolean(lazy.condition_of_status(code, m.cpu.cc_src))
    return _as_boolean(lazy.condition(code, *_flag_inputs(m, op)))


def _carry(op: int, m: StencilWriter) -> None:
    """Put CF into cc_aux."""
    if op == ccops.STATUS:
        value = m.cpu.cc_src & 1
    else:
        value = u64(_as_boolean(lazy.carry(*_flag_inputs(m, op))))
    m.put("cc_aux", value)


def _status(op: int, m: StencilWriter) -> None:
    """Put all flags into cc_src."""
    if op != ccops.STATUS:
        m.put("cc_src", lazy.status_of(*_flag_inputs(m, op)))
        m.put("cc_op", ccops.STATUS)


def _jump(op: int, code: int, m: StencilWriter) -> None:
    builder = m.builder
    taken, stays = builder.fresh("taken"), builder.fresh("stays")
    builder.branch(_condition(op, code, m), taken, stays)
    builder.start(taken)
    m.tail("TARGET", m.arguments())
    builder.start(stays)
    m.tail("NEXT", m.arguments())


def _jump_on_zero(log2: int, m: StencilWriter) -> None:
    """Jump when so many bytes of RCX are 0."""
    builder = m.builder
    taken, stays = builder.fresh("taken"), builder.fresh("stays")
    builder.branch(unsigned(16 << log2)(m.register(RCX)) == 0, taken, stays)
    builder.start(taken)
    m.tail("TARGET", m.arguments())
    builder.start(stays)
    m.tail("NEXT", m.arguments())


def _any_status(m: StencilWriter) -> None:
    m.builder.call_address(m.cpu.status_code, None, [m.cpu])
    m.tail("NEXT", m.arguments())


def _any_carry(m: StencilWriter) -> None:
    """Put CF into cc_aux, whatever operation was the last; at once after INC and DEC.

    A loop that counts so, and looks at no other flags, has no other in force.
    """
    builder = m.builder
    kept, other = builder.fresh("kept"), builder.fresh("other")
    counts = m.cpu.cc_op - ccops.INC * len(ccops.LOG2) < 2 * len(ccops.LOG2)
    builder.branch(counts, kept, other, LIKELY)
    builder.start(kept)
    m.put("cc_aux", m.cpu.cc_src)
    m.tail("NEXT", m.arguments())
    builder.start(other)
    builder.call_address(m.cpu.status_code, None, [m.cpu])
    m.put("cc_aux", m.cpu.cc_src & 1)
    m.tail("NEXT", m.arguments())


def _flags() -> dict[str, Body]:
    bodies: dict[str, Body] = {}
    for op in cc_ops():
        bodies[f"carry.{op}"] = plain(partial(_carry, op))
        bodies[f"status.{op}"] = plain(partial(_status, op))
        for code in range(CONDITIONS):
            bodies[f"cond.{code}.{op}"] = plain(partial(_condition, op, code))
            bodies[f"jcc.{code}.{op}"] = partial(_jump, op, code)
    for log2 in range(COUNTERS):
        bodies[f"jrcxz.{log2}"] = partial(_jump_on_zero, log2)
    bodies["carry.any"] = _any_carry
    bodies["status.any"] = _any_status
    return bodies


# --- moves -------------------------------------------------------------------


def _wide(number: int, m: StencilWriter) -> Any:
    """Put 64 bits into a register; those of a slot into the temporary, for `_store`.

    LLVM would take the two together for a store of an immediate, which has 32 bits.
    """
    value = m.wide_hole("HQ")
    if number == SLOT:
        return value
    m.set_register(number, value)
    return None


def _store(m: StencilWriter) -> None:
    """Store the temporary in a slot."""
    store(u64, u64(m.cpu) + m.hole("H0"), m.temporary)


def _swap(number: int, m: StencilWriter) -> None:
    """Exchange the two low bytes of a register; the temporary stays."""
    value = m.register(number)
    low = u16(value)
    turned = (low << 8) | (low >> 8)
    m.set_register(number, (value & ~0xFFFF) | u64(turned))
    m.tail("NEXT", m.arguments("%t"))


def _spill(number: int, m: StencilWriter) -> None:
    """Store a register in the vCPU's struct; the temporary stays."""
    store(u64, u64(m.cpu) + Cpu.offset_of("regs", number), m.register(number))
    m.tail("NEXT", m.arguments("%t"))


def _fill(number: int, m: StencilWriter) -> None:
    """Load a register from the vCPU's struct."""
    m.set_register(number, load(u64, u64(m.cpu) + Cpu.offset_of("regs", number)))
    m.tail("NEXT", m.arguments())


def _moves() -> dict[str, Body]:
    return {
        **{f"movabs.{number}": plain(partial(_wide, number)) for number in range(CLASSES)},
        "store": plain(_store),
        **{f"swap.{number}": partial(_swap, number) for number in range(HIGH_REGISTERS)},
        **{f"spill.{number}": partial(_spill, number) for number in range(PINNED_REGISTERS)},
        **{f"fill.{number}": partial(_fill, number) for number in range(PINNED_REGISTERS)},
    }
