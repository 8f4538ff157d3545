"""Engines for x86-64 guests: handlers of instructions, the translator and its stencils."""

from __future__ import annotations

import json
from pathlib import Path

from ringzero.jit.compile.llvm import Target
from ringzero.jit.guest import GUESTS, GuestCode
from ringzero.jit.x86 import assembly, units

_STENCILS = "stencils"


@GUESTS.register("x86_64")
class X86Code(GuestCode):
    """A unit is a module of instructions, `core`, or a share of the stencils."""

    objects = units.NAMES

    def units(self) -> list[str]:
        first, *rest = self.objects
        return [first, *(f"{_STENCILS}{n}" for n in range(assembly.SHARES)), *rest]

    def compile(self, unit: str, directory: Path, target: Target) -> None:
        """Write UNIT.o and UNIT.places, or the stencils UNIT.json."""
        if unit.startswith(_STENCILS):
            share = assembly.compile_share(int(unit.removeprefix(_STENCILS)), target)
            (directory / f"{unit}.json").write_text(json.dumps(share))
            return
        units.write_unit(units.compile_unit(unit, target), directory)

    def assemble(self, directory: Path) -> None:
        units.write_tables(directory)
        assembly.assemble(directory)
        for share in range(assembly.SHARES):
            (directory / f"{_STENCILS}{share}.json").unlink()
