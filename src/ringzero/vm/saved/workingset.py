"""Which pages a machine touches first after a restore, to be read ahead the next time.

The first machine that goes on from a snapshot has them noted in a file beside the manifest:
MAGIC, then (start, end) of each run. It is a hint: nothing else depends on it, what is wrong with
it is ignored, and one that is missing is made again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from pathlib import Path

from ringzero.host.memory import HostMemory
from ringzero.units import KIB
from ringzero.vm.runloop import RunControl

FILE = "working-set"
MAGIC = b"RZWORK01"
_RUN = struct.Struct("<QQ")
# Reading a gap of this size costs less than another request.
_GAP = 128 * KIB
# More runs than a guest of many GiB has.
_MOST = 1 << 16
# How long a machine runs before it is looked at, in seconds: its first command has ended by then.
SETTLED = 1.0
# How long a restored machine may stand before it is started, in seconds, to be looked at at all.
_PATIENCE = 60.0


def prefetch(path: Path, fd: int, size: int) -> None:
    """Have the host read what the note at `path` names of the memory in `fd`; not waited for."""
    try:
        data = path.read_bytes()[: len(MAGIC) + _MOST * _RUN.size]
    except OSError:
        return
    if not data.startswith(MAGIC) or (len(data) - len(MAGIC)) % _RUN.size:
        return
    for start, end in _RUN.iter_unpack(data[len(MAGIC) :]):
        if start < end <= size:
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_WILLNEED)


def watch(control: RunControl, memory: HostMemory, path: Path) -> None:
    """Note at `path` what a machine that is about to start touches first; in the background."""

    def work() -> None:
        if control.entered.wait(_PATIENCE):
            time.sleep(SETTLED)
            note(memory, path)

    threading.Thread(target=work, name="working-set", daemon=True).start()


def note(memory: HostMemory, path: Path) -> None:
    """Write down which pages of `memory` are mapped by now, unless it was given back."""
    runs: list[tuple[int, int]] = []
    for start, end in memory.touched():
        if runs and start - runs[-1][1] <= _GAP:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((start, end))
    if memory.fd < 0 or not runs:
        return
    temporary = path.with_name(f".{FILE}-{os.urandom(4).hex()}")
    with contextlib.suppress(OSError):
        temporary.write_bytes(MAGIC + b"".join(_RUN.pack(*run) for run in runs[:_MOST]))
        temporary.replace(path)
