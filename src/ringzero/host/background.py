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


class Prepared:
    """A process of ours that waits for its standard input."""

    def __init__(self, number: int, pipe: int) -> None:
        self._number = number
        self._pipe = pipe

    def begin(self, data: bytes) -> None:
        """Have it work on `data`, which fits into a pipe (64 KiB)."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, data)
        self.abandon()

    def abandon(self) -> None:
        """Have it end, where it has not begun."""
        os.close(self._pipe)
        # Where we go on for long, it leaves nothing behind. At the interpreter's end there is no
        # thread to be had, and no need for one.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def _reap(self) -> None:
        # In a copy of this process it is nobody's child.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._number, 0)


def prepare(module: str, words: Sequence[str], environment: Mapping[str, str]) -> Prepared | None:
    """Start `main` of a module, which reads standard input first; None where none can be had.

    It is in a session of its own, has none of our open files, says nothing, and outlives us. It
    ends where its input is empty.
    """
    source, pipe = os.pipe2(os.O_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
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
        os.close(pipe)
        return None
    finally:
        os.close(source)
        os.close(nothing)
    return Prepared(number, pipe)


def _inherited() -> list[int]:
    """Return the descriptors beyond the first three that a child would have."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            number = int(path.name)
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found
