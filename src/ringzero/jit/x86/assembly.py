"""Compiles a share of the stencils, and puts all shares together into the translator's tables."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from ringzero.errors import EngineError
from ringzero.isa.x86.table.decoder import SLOTS
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit import tables
from ringzero.jit.compile.llvm import cached_object
from ringzero.jit.compile.module import Module
from ringzero.jit.host.elf import (
    R_8,
    R_16,
    R_32,
    R_32S,
    R_64,
    R_PC32,
    R_PLT32,
    Function,
    read_functions,
)
from ringzero.jit.tables import Hole, LoweringEntry, Stencil
from ringzero.jit.x86.catalogue import (
    END_CONDITIONAL,
    END_JUMP,
    WEIGHTS,
    Catalogue,
    Lowering,
    cc_ops,
    define_glue,
    define_key,
    glue,
)
from ringzero.jit.x86.operands import Generated

# Shares of the catalogue that are compiled on their own.
SHARES = 8
_KINDS = {
    R_PC32: tables.RELATIVE_32,
    R_PLT32: tables.RELATIVE_32,
    R_32: tables.ABSOLUTE_32,
    R_32S: tables.ABSOLUTE_32,
    R_64: tables.ABSOLUTE_64,
    R_8: tables.ABSOLUTE_8,
    R_16: tables.ABSOLUTE_16,
}
_JMP_REL32 = 0xE9
_JCC_REL32 = 0x80


def trimmed(function: Function) -> tuple[bytes, list[tuple[int, int, int, int]]] | None:
    """Return a stencil's code without its last jump to NEXT, and its holes.

    None when it has a relocation that is no hole (a constant in memory).
    """
    code = bytearray(function.code)
    holes = []
    for place in function.relocations:
        if place.symbol not in tables.HOLES or place.kind not in _KINDS:
            return None
        holes.append(
            (place.offset, _KINDS[place.kind], tables.HOLES.index(place.symbol), place.addend)
        )
    if holes and holes[-1][0] == len(code) - 4 and code[-5] == _JMP_REL32:
        last = holes[-1]
        if last[2] == tables.NEXT:
            del code[-5:]
            holes.pop()
        elif (
            len(holes) > 1
            and holes[-2][2] == tables.NEXT
            and holes[-2][0] == len(code) - 9
            and code[-11] == 0x0F
            and code[-10] & 0xF0 == _JCC_REL32
        ):
            # "jcc NEXT; jmp X" becomes "jncc X" that falls through.
            code[-10] ^= 1
            holes[-2:] = [(len(code) - 9, *last[1:])]
            del code[-5:]
    return bytes(code), holes


def compile_share(share: int) -> dict[str, Any]:
    """Generate and compile one share; returns what `assemble` wants, as plain data."""
    catalogue = Catalogue()
    module = Module(f"stencils{share}")
    module.define(WEIGHTS)
    module.define('!1 = !{!"branch_weights", i32 1, i32 1000}')
    facts: dict[int, Any] = {}
    for number in range(share, len(catalogue.keys), SHARES):
        generated = define_key(module, number, catalogue.keys[number])
        if generated is not None:
            facts[number] = _facts(generated)
    first_glue = len(catalogue.keys) * 2
    for number, body in enumerate(glue().values()):
        if number % SHARES == share:
            define_glue(module, first_glue + number, body)
    functions = read_functions(cached_object(module.text(), level=1, relocation="static"))
    stencils = {}
    for function in functions:
        found = trimmed(function)
        if found is not None:
            stencils[int(function.name[1:])] = (found[0].hex(), found[1])
    return {"facts": facts, "stencils": stencils}


def _facts(generated: Generated) -> list[Any]:
    live, dead = generated.flags, generated.dead
    return [
        tables.UNKNOWN_CC if live.result is None else live.result,
        live.defines,
        live.changes,
        live.needs_carry,
        dead.needs_carry,
        live.needs_status,
        dead.needs_status,
        generated.slow,
    ]


def assemble(work: Path) -> None:
    """Write the translator's tables from all shares, which lie in `work` as JSON."""
    catalogue = Catalogue()
    facts: dict[int, list[Any]] = {}
    stencils: dict[int, tuple[str, list[list[int]]]] = {}
    for share in range(SHARES):
        data = json.loads((work / f"stencils{share}.json").read_text())
        facts |= {int(n): f for n, f in data["facts"].items()}
        stencils |= {int(n): tuple(s) for n, s in data["stencils"].items()}
    names = list(glue())
    count = len(catalogue.keys) * 2 + len(names)
    _write_stencils(work, stencils, count)
    usable = {n for n in facts if n * 2 in stencils}
    _write_lowerings(work, catalogue, facts, usable)
    first = len(catalogue.keys) * 2
    missing = [n for i, n in enumerate(names) if first + i not in stencils]
    if missing:
        raise EngineError("glue stencils are missing", missing=missing[:5])
    _write_glue(work, {name: first + i for i, name in enumerate(names)})


def _write_stencils(work: Path, stencils: dict[int, Any], count: int) -> None:
    blob = bytearray()
    records = bytearray(Stencil.size * count)
    holes = bytearray()
    for number, (text, places) in sorted(stencils.items()):
        code = bytes.fromhex(text)
        _put(records, number * Stencil.size, Stencil, "code", len(blob))
        _put(records, number * Stencil.size, Stencil, "length", len(code))
        _put(records, number * Stencil.size, Stencil, "holes", len(places))
        _put(records, number * Stencil.size, Stencil, "first_hole", len(holes) // Hole.size)
        for offset, kind, what, addend in places:
            record = bytearray(Hole.size)
            for name, value in (
                ("offset", offset), ("how", kind), ("what", what), ("addend", addend),
            ):  # fmt: skip
                _put(record, 0, Hole, name, value)
            holes += record
        blob += code
    # The translator copies in steps of 16 bytes, beyond the end.
    blob += bytes(16)
    (work / "blob.bin").write_bytes(blob)
    (work / "stencils.bin").write_bytes(records)
    (work / "holes.bin").write_bytes(holes)


def _put(buffer: bytearray, at: int, struct: Any, name: str, value: int, index: int = 0) -> None:
    member = struct.fields[name]
    size = member.kind.size
    where = at + struct.offset_of(name, index)
    buffer[where : where + size] = (value & member.kind.mask).to_bytes(size, "little")


def _operand_code(lowering: Lowering, n: int) -> int:
    operand = lowering.form.operands[n]
    by_reg = operand.letter in "GVP"
    if n in lowering.vectors:
        return tables.OPERAND_XMM_REG if by_reg else tables.OPERAND_XMM_RM
    if n in lowering.digits:
        code = tables.OPERAND_REG if by_reg else tables.OPERAND_RM
        return code | (tables.OPERAND_BYTE if operand.bits(lowering.size) == 8 else 0)
    if operand.letter == "M" or (lowering.memory and operand.is_modrm_rm):
        return tables.OPERAND_MEMORY
    return tables.OPERAND_NONE


def _write_lowerings(
    work: Path, catalogue: Catalogue, facts: dict[int, list[Any]], usable: set[int]
) -> None:
    keys = array("I")
    entries = bytearray(LoweringEntry.size)
    # The translator looks up every form, those without a lowering included.
    index = array("H", bytes(2 * SLOTS * len(all_forms())))
    number = 0
    for lowering in catalogue.lowerings:
        base = len(keys)
        direct = lowering.end in (END_JUMP, END_CONDITIONAL)
        good = [k for k in lowering.keys if k in usable]
        condition = lowering.form.attributes.get("condition", tables.NO_CONDITION)
        if not direct and not good:
            continue
        if condition != tables.NO_CONDITION and lowering.memory:
            continue  # the temporary cannot hold an address and a condition
        keys.extend(k if k in usable else tables.NO_STENCIL for k in lowering.keys)
        entry = bytearray(LoweringEntry.size)
        _put(entry, 0, LoweringEntry, "base", base)
        _put(entry, 0, LoweringEntry, "end", lowering.end)
        _put(entry, 0, LoweringEntry, "condition", condition)
        _put(entry, 0, LoweringEntry, "result", tables.UNKNOWN_CC)
        if not direct:
            _describe(entry, lowering, facts[good[0]])
        number += 1
        entries += entry
        for slot in _slots(lowering):
            index[lowering.form.index * SLOTS + slot] = number
    (work / "keys.bin").write_bytes(keys.tobytes())
    (work / "lowerings.bin").write_bytes(entries)
    (work / "lowering_index.bin").write_bytes(index.tobytes())


def _describe(entry: bytearray, lowering: Lowering, fact: list[Any]) -> None:
    result, defines, changes, carry_live, carry_dead, status_live, status_dead, slow = fact
    flags = (
        tables.DEFINES * bool(defines)
        | tables.CHANGES * bool(changes)
        | tables.CARRY_LIVE * bool(carry_live)
        | tables.CARRY_DEAD * bool(carry_dead)
        | tables.STATUS_LIVE * bool(status_live)
        | tables.STATUS_DEAD * bool(status_dead)
        | tables.TOUCHES_MEMORY * bool(slow or _has_address(lowering))
        | tables.NO_SEGMENT * (lowering.form.mnemonic == "lea")
    )
    _put(entry, 0, LoweringEntry, "flags", flags)
    _put(entry, 0, LoweringEntry, "result", result)
    immediate = tables.IMMEDIATE_NONE
    if lowering.immediate >= 0:
        immediate = tables.IMMEDIATE_PLAIN
        if lowering.shift:
            wide = lowering.size == 64
            immediate = tables.IMMEDIATE_SHIFT_64 if wide else tables.IMMEDIATE_SHIFT_32
    _put(entry, 0, LoweringEntry, "immediate", immediate)
    for n, operand in enumerate(lowering.form.operands):
        code = _operand_code(lowering, n)
        _put(entry, 0, LoweringEntry, "operands", code, n)
        if code == tables.OPERAND_MEMORY and operand.letter != "M":
            _put(entry, 0, LoweringEntry, "span", operand.bits(lowering.size) // 8 - 1)


def _has_address(lowering: Lowering) -> bool:
    return any(
        _operand_code(lowering, n) == tables.OPERAND_MEMORY
        for n in range(len(lowering.form.operands))
    )


def _slots(lowering: Lowering) -> list[int]:
    """Return the decoder slots (operand size, memory, no LOCK) that a lowering serves."""
    if lowering.form.sized:
        return [{16: 0, 32: 1, 64: 2}[lowering.size] * 4 + lowering.memory * 2]
    return [n * 4 + lowering.memory * 2 for n in range(3)]


def _write_glue(work: Path, numbers: dict[str, int]) -> None:
    buffer = bytearray(tables.Glue.size)

    def put(member: str, name: str, index: int = 0) -> None:
        _put(buffer, 0, tables.Glue, member, numbers[name], index)

    for base in range(9):
        put("ea_base", f"ea.b{base}", base)
        put("movabs", f"movabs.{base}", base)
        for scale in range(4):
            put("ea_index", f"ea.i{base}.s{scale}", base * 4 + scale)
            for i in range(9):
                put("ea_base_index", f"ea.b{base}.i{i}.s{scale}", (base * 9 + i) * 4 + scale)
    for op in cc_ops():
        put("carry", f"carry.{op}", op)
        put("status", f"status.{op}", op)
        for code in range(16):
            put("condition", f"cond.{code}.{op}", code * 44 + op)
            put("jcc", f"jcc.{code}.{op}", code * 44 + op)
    for member, name in (
        ("ea_disp", "ea.disp"), ("ea_rip", "ea.rip"), ("ea_segment", "ea.segment"),
        ("ea_segment32", "ea.segment32"),
        ("ea_mask32", "ea.mask32"), ("status_any", "status.any"), ("head", "head"),
        ("refund", "refund"), ("leave", "leave"), ("leave_linked", "leave.linked"),
        ("slow", "slow"), ("generic", "generic"), ("goto", "goto"),
        ("dispatch64", "dispatch64"), ("dispatch32", "dispatch32"),
        ("target", "target"), ("target32", "target32"),
    ):  # fmt: skip
        put(member, name)
    (work / "glue.bin").write_bytes(buffer)
