"""`python -m ringzero.jit.compile_unit GUEST DIRECTORY TARGET`: compile units of an engine.

Their names come by standard input, a line each; each is said again when it is done.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from ringzero.jit.compile.llvm import target_named
from ringzero.jit.guest import GUESTS
from ringzero.jit.workers import NO_ROOM


def main(guest: str, directory: str, target: str) -> None:
    """Compile what is asked for until nobody asks any more."""
    # A unit makes millions of objects and few circles; the process ends soon.
    gc.disable()
    code = GUESTS.get(guest)()
    for line in sys.stdin:
        name = line.strip()
        code.compile(name, Path(directory), target_named(target))
        print(name, flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as fault:
        print(fault.errno, file=sys.stderr)
        sys.exit(NO_ROOM)
