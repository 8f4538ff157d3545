"""A log of bounded size: one file, and the one before it."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

# A boot log with everything on has 100 KiB; a chatty service must not fill the user's disk.
LIMIT = 4 << 20
_CHUNK = 1 << 20


class LogFile:
    """Appends bytes to `path`; at `limit` bytes it becomes `path`.1 and a new one is begun.

    Faults of the disk are swallowed: a machine does not end because its log is full.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._descriptor = -1
        self._size = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Append `data`; from any thread."""
        with self._lock, contextlib.suppress(OSError):
            if self._descriptor < 0:
                return
            if self._size and self._size + len(data) > self._limit:
                self._turn()
            self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file; what is written afterwards is dropped."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def leave(self) -> None:
        """In a forked process: close the descriptor, whatever another thread was about."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _open(self) -> None:
        self._descriptor = -1
        # What an earlier process left there may be no file: it is neither followed nor waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._descriptor).st_size

    def _turn(self) -> None:
        self._path.replace(previous(self._path))
        os.close(self._descriptor)
        self._open()


class LentLog(LogFile):
    """The same with two files that are open: what is in `current` is moved on to `before`."""

    def __init__(self, current: int, before: int, limit: int = LIMIT) -> None:
        self._before = before
        self._lent = current
        super().__init__(Path(), limit)

    def _open(self) -> None:
        self._descriptor = self._lent
        self._size = os.fstat(self._lent).st_size

    def _turn(self) -> None:
        os.ftruncate(self._before, 0)
        at = 0
        while data := os.pread(self._lent, _CHUNK, at):
            at += os.pwrite(self._before, data, at)
        os.ftruncate(self._lent, 0)
        self._size = 0


def previous(path: Path) -> Path:
    """Return where the older part of a log is kept."""
    return path.with_name(path.name + ".1")
