"""Engines for x86-64 guests whose CPU models go beyond x86-64-v2: that engine, and more units."""

from __future__ import annotations

import json
from pathlib import Path

from ringzero.jit.compile.llvm import Target
from ringzero.jit.guest import GUESTS, GuestCode
from ringzero.jit.x86 import assembly, units

_STENCILS = "extensions"


@GUESTS.register("x86_64_extended")
class ExtendedX86Code(GuestCode):
    """A unit is a module of instructions, or a share of the extensions' stencils."""

    objects = (*units.NAMES, *units.EXTENSION_NAMES)
    base = "x86_64"

    def units(self) -> list[str]:
        first, *rest = units.EXTENSION_NAMES
        return [first, *(f"{_STENCILS}{n}" for n in range(assembly.EXTENSION_SHARES)), *rest]

    def compile(self, unit: str, directory: Path, target: Target) -> None:
        """Write UNIT.o and UNIT.places, or the stencils UNIT.json."""
        if unit.startswith(_STENCILS):
            share = assembly.compile_extension(int(unit.removeprefix(_STENCILS)), target)
            (directory / f"{unit}.json").write_text(json.dumps(share))
            return
        units.write_unit(units.compile_unit(unit, target), directory)

    def assemble(self, directory: Path) -> None:
        units.write_tables(directory, extended=True)
        assembly.complete(directory)
        for share in range(assembly.EXTENSION_SHARES):
            (directory / f"{_STENCILS}{share}.json").unlink()
