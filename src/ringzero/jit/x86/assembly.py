"""Compiles a share of the stencils, and puts all shares together into the translator's tables."""

from __future__ import annotations

import functools
import json
from array import array
from pathlib import Path
from typing import Any

from ringzero.isa.x86.table.entry import SLOTS
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.assembly import (
    Compiled,
    compile_stencils,
    record,
    write_exits,
    write_stencils,
)
from ringzero.jit.compile.llvm import Target
from ringzero.jit.compile.module import Module
from ringzero.jit.host.x86_64 import condition_hole
from ringzero.jit.stencil import WEIGHTS
from ringzero.jit.x86 import tables
from ringzero.jit.x86.catalogue import Catalogue, Key, Lowering, define_fused, define_key
from ringzero.jit.x86.glue import define_glue, glue, members
from ringzero.jit.x86.operands import Generated
from ringzero.jit.x86.tables import END_CONDITIONAL, END_JUMP, LoweringEntry

# Shares of the catalogue that are compiled on their own, and of that of the extensions.
SHARES, EXTENSION_SHARES = 8, 2


_catalogue = functools.cache(Catalogue)


@functools.cache
def _extensions() -> Catalogue:
    """Return the catalogue of the extensions alone."""
    return Catalogue(all_forms(extended=True)[len(all_forms()) :])


def _extension_base() -> int:
    """Return the number of the extensions' first key: their stencils follow all others."""
    catalogue = _catalogue()
    stencils = (len(catalogue.keys) + len(catalogue.fused)) * 2 + len(glue())
    return -(-stencils // 2)


def key_of(number: int) -> Key:
    """Return the key that has a number in the translator's tables."""
    first = _extension_base()
    return _catalogue().keys[number] if number < first else _extensions().keys[number - first]


def compile_share(share: int, target: Target | None = None) -> dict[str, Any]:
    """Generate and compile one share; returns what `assemble` wants, as plain data."""
    catalogue = _catalogue()
    module = Module(f"stencils{share}")
    module.define(WEIGHTS)
    facts: dict[int, Any] = {}
    for number in range(share, len(catalogue.keys), SHARES):
        generated = define_key(module, number, catalogue.keys[number])
        if generated is not None:
            facts[number] = _facts(generated)
    first_glue = len(catalogue.keys) * 2
    for number, body in enumerate(glue().values()):
        if number % SHARES == share:
            define_glue(module, first_glue + number, body)
    first_fused = first_glue + len(glue())
    for rank, number in enumerate(catalogue.fused):
        if number in facts:
            define_fused(module, first_fused + rank * 2, catalogue.keys[number])
    return {"facts": facts, "stencils": compile_stencils(module, target)}


def compile_extension(share: int, target: Target | None = None) -> dict[str, Any]:
    """The same for a share of the extensions; keys and stencils are counted from 0."""
    catalogue = _extensions()
    module = Module(f"extensions{share}")
    module.define(WEIGHTS)
    facts: dict[int, Any] = {}
    for number in range(share, len(catalogue.keys), EXTENSION_SHARES):
        generated = define_key(module, number, catalogue.keys[number])
        if generated is not None:
            facts[number] = _facts(generated)
    return {"facts": facts, "stencils": compile_stencils(module, target)}


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
        generated.access,
        generated.displaces,
        generated.moves,
    ]


def assemble(work: Path) -> None:
    """Write the translator's tables from all shares, which lie in `work` as JSON."""
    catalogue = _catalogue()
    facts, stencils = _read_shares([work / f"stencils{n}.json" for n in range(SHARES)])
    first = len(catalogue.keys) * 2
    numbers = {name: first + n for n, name in enumerate(glue())}
    first_fused = first + len(numbers)
    write_stencils(work, stencils, first_fused + len(catalogue.fused) * 2)
    _write_fused(work, catalogue, first_fused, stencils)
    write_exits(work, numbers, stencils)
    (work / "glue.bin").write_bytes(record(tables.Glue, members(numbers.__getitem__)))
    usable = {n for n in facts if n * 2 in stencils}
    _write_lowerings(work, catalogue, facts, usable)


def complete(work: Path) -> None:
    """Add the extensions to the translator's tables in `work`, from their shares there."""
    catalogue = _extensions()
    found, compiled = _read_shares([work / f"extensions{n}.json" for n in range(EXTENSION_SHARES)])
    first = _extension_base()
    facts = {first + n: fact for n, fact in found.items()}
    stencils = {first * 2 + n: stencil for n, stencil in compiled.items()}
    count = first + len(catalogue.keys)
    write_stencils(work, stencils, count * 2, behind=True)
    fused = (work / "fused.bin").read_bytes()
    (work / "fused.bin").write_bytes(fused.ljust(4 * count, b"\0"))
    usable = {n for n in facts if n * 2 in stencils}
    _write_lowerings(work, catalogue, facts, usable, first)


def _read_shares(paths: list[Path]) -> tuple[dict[int, list[Any]], dict[int, Compiled]]:
    facts: dict[int, list[Any]] = {}
    stencils: dict[int, Compiled] = {}
    for path in paths:
        data = json.loads(path.read_text())
        facts |= {int(n): f for n, f in data["facts"].items()}
        stencils |= {int(n): tuple(s) for n, s in data["stencils"].items()}
    return facts, stencils


def _write_fused(
    work: Path, catalogue: Catalogue, first: int, stencils: dict[int, Compiled]
) -> None:
    """Write for each key the number of its first stencil that jumps, 0 where it has none."""
    numbers = array("I", bytes(4 * len(catalogue.keys)))
    for rank, key in enumerate(catalogue.fused):
        both = [stencils.get(first + rank * 2 + n) for n in range(2)]
        if all(found is not None and condition_hole(*found) is not None for found in both):
            numbers[key] = first + rank * 2
    (work / "fused.bin").write_bytes(numbers.tobytes())


def _operand_code(lowering: Lowering, n: int) -> int:
    operand = lowering.operands[n]
    by_reg = operand.letter in "GVP"
    if n == lowering.temporary:
        return tables.OPERAND_TEMPORARY
    if operand.letter in ("H", "B"):
        return tables.OPERAND_XMM_VVVV if n in lowering.vectors else tables.OPERAND_VVVV
    if n in lowering.vectors:
        return tables.OPERAND_XMM_REG if by_reg else tables.OPERAND_XMM_RM
    if n in lowering.digits:
        code = tables.OPERAND_REG if by_reg else tables.OPERAND_RM
        return code | (tables.OPERAND_BYTE if operand.bits(lowering.size) == 8 else 0)
    if operand.letter == "M" or (lowering.memory and operand.is_modrm_rm):
        return tables.OPERAND_MEMORY
    return tables.OPERAND_NONE


def _write_lowerings(
    work: Path,
    catalogue: Catalogue,
    facts: dict[int, list[Any]],
    usable: set[int],
    first: int = 0,
) -> None:
    """Write the lowerings of a catalogue whose keys are counted from `first` on.

    With a `first` behind those that are in `work`.
    """
    keys = array("I")
    entries = bytearray(LoweringEntry.size)
    index = array("H")
    if first:
        keys.frombytes((work / "keys.bin").read_bytes())
        entries[:] = (work / "lowerings.bin").read_bytes()
        index.frombytes((work / "lowering_index.bin").read_bytes())
    # The translator looks up every form, those without a lowering included.
    index.frombytes(bytes(2 * SLOTS * len(all_forms(extended=bool(first))) - 2 * len(index)))
    number = len(entries) // LoweringEntry.size - 1
    for lowering in catalogue.lowerings:
        base = len(keys)
        direct = lowering.end in (END_JUMP, END_CONDITIONAL)
        wanted = [first + key for key in lowering.keys]
        good = [k for k in wanted if k in usable]
        condition = lowering.form.attributes.get("condition", tables.NO_CONDITION)
        if not direct and not good:
            continue
        keys.extend(k | facts[k][-1] if k in usable else tables.NO_STENCIL for k in wanted)
        entry = {
            "base": base,
            "end": lowering.end,
            "condition": condition,
            "result": tables.UNKNOWN_CC,
        }
        if not direct:
            entry |= _described(lowering, facts[good[0]])
        number += 1
        entries += record(LoweringEntry, entry)
        for slot in _slots(lowering):
            index[lowering.form.index * SLOTS + slot] = number
    (work / "keys.bin").write_bytes(keys.tobytes())
    (work / "lowerings.bin").write_bytes(entries)
    (work / "lowering_index.bin").write_bytes(index.tobytes())


def _described(lowering: Lowering, fact: list[Any]) -> dict[str, Any]:
    """Return members of an entry: flags, operands, and how they are found."""
    (
        result, defines, changes, carry_live, carry_dead, status_live, status_dead, slow, access,
        displaces, _,
    ) = fact  # fmt: skip
    flags = (
        tables.DEFINES * bool(defines)
        | tables.CHANGES * bool(changes)
        | tables.CARRY_LIVE * bool(carry_live)
        | tables.CARRY_DEAD * bool(carry_dead)
        | tables.STATUS_LIVE * bool(status_live)
        | tables.STATUS_DEAD * bool(status_dead)
        | tables.TOUCHES_MEMORY * bool(slow or _has_address(lowering))
        | tables.NO_SEGMENT * (lowering.form.mnemonic == "lea")
        | tables.WIDE_MOVE * _is_wide_move(lowering)
        | tables.HIGH_BYTES * _takes_high_bytes(lowering)
        | tables.EXTENDS * (lowering.form.mnemonic in ("movzx", "movsx") and lowering.size >= 32)
        | tables.DISPLACES * displaces
        | tables.NEEDS_AVX * bool(lowering.form.attributes.get("avx"))
        | tables.SHADOWS * bool(lowering.form.attributes.get("shadows"))
    )
    immediate = tables.IMMEDIATE_NONE
    if lowering.immediate >= 0:
        immediate = tables.IMMEDIATE_PLAIN
        if lowering.shift:
            wide = lowering.size == 64
            immediate = tables.IMMEDIATE_SHIFT_64 if wide else tables.IMMEDIATE_SHIFT_32
    operands = lowering.operands
    codes = [_operand_code(lowering, n) for n in range(len(operands))]
    spans = [
        operand.bits(lowering.size) // 8 - 1
        for operand, code in zip(operands, codes, strict=True)
        if code == tables.OPERAND_MEMORY and operand.letter != "M"
    ]
    return {
        "flags": flags,
        "result": result,
        "immediate": immediate,
        "operands": codes,
        "span": spans[-1] if spans else 0,
        "access": access,
    }


def _has_address(lowering: Lowering) -> bool:
    return any(
        _operand_code(lowering, n) == tables.OPERAND_MEMORY for n in range(len(lowering.operands))
    )


def _is_wide_move(lowering: Lowering) -> bool:
    """Whether it is MOV of an immediate that may need 64 bits (B8+ with REX.W)."""
    letters = [operand.letter + operand.size for operand in lowering.operands]
    return lowering.form.mnemonic == "mov" and letters == ["Zv", "Iv"] and lowering.size == 64


# Their registers that no operand names could be those of AH, CH, DH or BH.
IMPLICIT = ("mul", "imul", "div", "idiv", "cmpxchg")


def _takes_high_bytes(lowering: Lowering) -> bool:
    """Whether a byte operand may be AH to BH: the stencil for AL to BL then runs on swapped bytes.

    Not with an operand in memory, because the interpreter, on the slow path, would see them
    swapped; nor with one that is always the same register.
    """
    fixed = any(operand.fixed not in ("", "1") for operand in lowering.operands)
    bytes_there = any(
        _operand_code(lowering, n) & tables.OPERAND_BYTE for n in range(len(lowering.operands))
    )
    return (
        bytes_there and not fixed and not _has_address(lowering)
        and lowering.form.mnemonic not in IMPLICIT
    )  # fmt: skip


def _slots(lowering: Lowering) -> list[int]:
    """Return the decoder slots (operand size, memory, LOCK) that a lowering serves."""
    ways = [lowering.memory * 2 + lowering.locked]
    if lowering.locked and lowering.form.attributes.get("atomic"):
        # Locked with the prefix and without it.
        ways.append(lowering.memory * 2)
    sizes = [{16: 0, 32: 1, 64: 2}[lowering.size]] if lowering.form.sized else range(3)
    return [n * 4 + way for n in sizes for way in ways]
