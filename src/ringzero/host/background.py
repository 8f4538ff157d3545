"""Processes of ours in the background: nobody's child for long, and in nobody's way."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What of our own environment such a process needs: the rest is none of its business.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
_PACKAGES = Path(__file__).parents[2]
# What such a process runs: `main` of a module. Its end is the end of all that it has.
PROGRAM = """\
import os, sys
from ringzero.host import bundle
bundle.install()
from importlib import import_module
code = import_module(sys.argv[1]).main(sys.argv[2:])
sys.stderr.flush()
os._exit(code)
"""


def start(module: str, words: Sequence[str], data: bytes, environment: Mapping[str, str]) -> bool:
    """Run `main` of a module with `data` as its standard input; False where none can be had.

    It is in a session of its own, has none of our open files, says nothing, and outlives us.
    """
    source = os.memfd_create("input", os.MFD_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(source, data)
        os.lseek(source, 0, os.SEEK_SET)
        streams = ((source, 0), (nothing, 1), (nothing, 2))
        files: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in streams]
        # Whoever reads what we write hears its end with ours.
        files += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited()]
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        paths = [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        # -P: the current directory is no place to import from.
        command = (sys.executable, "-P", "-c", PROGRAM, module, *words)
        number = os.posix_spawn(
            sys.executable, command, kept | dict(environment), file_actions=files, setsid=True
        )
    except OSError:
        return False
    finally:
        os.close(source)
        os.close(nothing)
    # Where we go on for long, it leaves nothing behind. At the interpreter's end there is no thread
    # to be had, and no need for one.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=os.waitpid, args=(number, 0), name="reaper", daemon=True).start()
    return True


def _inherited() -> list[int]:
    """Return the descriptors beyond the first three that a child would have."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            number = int(path.name)
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found
