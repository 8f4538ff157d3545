"""Writes compiled stencils as the tables that translators read (jit.tables), for every guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ringzero.errors import EngineError
from ringzero.jit.compile.llvm import STRAIGHT, Target, cached_object
from ringzero.jit.compile.module import Module
from ringzero.jit.exits import members as exit_members
from ringzero.jit.host.elf import read_functions
from ringzero.jit.host.x86_64 import trimmed
from ringzero.jit.tables import Exits, Hole, Stencil
from ringzero.native.types import StructType

# Code in hexadecimal, and the holes in it: plain data, which goes from one process to another.
Compiled = tuple[str, list[Any]]


def compile_stencils(module: Module, target: Target | None = None) -> dict[int, Compiled]:
    """Compile a module of stencils called s<number>; without those that have constants."""
    stencils = {}
    code = cached_object(
        module.text(), level=1, relocation="static", passes=STRAIGHT, target=target
    )
    for function in read_functions(code):
        found = trimmed(function)
        if found is not None:
            stencils[int(function.name[1:])] = (found[0].hex(), found[1])
    return stencils


def record(struct: StructType, values: Mapping[str, int | Iterable[int]]) -> bytes:
    """Return a native struct with the given members, arrays as sequences; the others are 0."""
    buffer = bytearray(struct.size)
    for name, value in values.items():
        member = struct.fields[name]
        for n, number in enumerate([value] if isinstance(value, int) else value):
            size = int(member.kind.size)
            at = struct.offset_of(name, n)
            buffer[at : at + size] = (number & member.kind.mask).to_bytes(size, "little")
    return bytes(buffer)


def write_stencils(
    work: Path, stencils: Mapping[int, Compiled], count: int, *, behind: bool = False
) -> None:
    """Write the tables of `count` stencils, those that there are not with no code.

    `behind`: those with lower numbers are in `work` already.
    """
    blob, records, holes = bytearray(), bytearray(), bytearray()
    if behind:
        blob += (work / "blob.bin").read_bytes()
        records += (work / "stencils.bin").read_bytes()
        holes += (work / "holes.bin").read_bytes()
    records += bytes(Stencil.size * count - len(records))
    for number, (text, places) in sorted(stencils.items()):
        code = bytes.fromhex(text)
        records[number * Stencil.size : (number + 1) * Stencil.size] = record(
            Stencil,
            {
                "code": len(blob),
                "length": len(code),
                "holes": len(places),
                "first_hole": len(holes) // Hole.size,
            },
        )
        for offset, how, what, addend in places:
            holes += record(Hole, {"offset": offset, "how": how, "what": what, "addend": addend})
        blob += code
    # The translator copies in steps of 16 bytes, beyond the end.
    blob += bytes(16)
    (work / "blob.bin").write_bytes(blob)
    (work / "stencils.bin").write_bytes(records)
    (work / "holes.bin").write_bytes(holes)


def write_exits(work: Path, numbers: Mapping[str, int], stencils: Mapping[int, Compiled]) -> None:
    """Write the exits, by the numbers of stencils by name.

    Raises EngineError when one of `numbers` has no stencil.
    """
    missing = [name for name, number in numbers.items() if number not in stencils]
    if missing:
        raise EngineError("glue stencils are missing", missing=missing[:5])
    (work / "exits.bin").write_bytes(record(Exits, exit_members(numbers.__getitem__)))
