"""`python -m ringzero.jit.compile_unit NAME DIRECTORY`: compile one unit of the engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ringzero.jit.build import NO_ROOM
from ringzero.jit.units import compile_unit
from ringzero.jit.x86.assembly import compile_share


def main(name: str, directory: str) -> None:
    """Write NAME.o and NAME.places into the directory."""
    target = Path(directory)
    if name.startswith("stencils"):
        share = compile_share(int(name.removeprefix("stencils")))
        (target / f"{name}.json").write_text(json.dumps(share))
        return
    unit = compile_unit(name)
    (target / f"{name}.o").write_bytes(unit.code)
    (target / f"{name}.places").write_text(json.dumps(unit.places))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except OSError as fault:
        print(fault.strerror or fault, file=sys.stderr)
        sys.exit(NO_ROOM)
