"""`python -m ringzero.jit.compile_unit DIRECTORY TARGET`: compile units of the engine.

Their names come by standard input, a line each; each is said again when it is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ringzero.jit.compile.llvm import Target, target_named
from ringzero.jit.units import compile_unit
from ringzero.jit.workers import NO_ROOM
from ringzero.jit.x86.assembly import compile_share


def write_unit(name: str, directory: Path, target: Target) -> None:
    """Write NAME.o and NAME.places, or the stencils NAME.json, into the directory."""
    if name.startswith("stencils"):
        share = compile_share(int(name.removeprefix("stencils")), target)
        (directory / f"{name}.json").write_text(json.dumps(share))
        return
    unit = compile_unit(name, target)
    (directory / f"{name}.o").write_bytes(unit.code)
    (directory / f"{name}.places").write_text(json.dumps(unit.places))


def main(directory: str, target: str) -> None:
    """Compile what is asked for until nobody asks any more."""
    for line in sys.stdin:
        name = line.strip()
        write_unit(name, Path(directory), target_named(target))
        print(name, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except OSError as fault:
        print(fault.strerror or fault, file=sys.stderr)
        sys.exit(NO_ROOM)
