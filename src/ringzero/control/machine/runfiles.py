"""What a machine's process writes while it runs: by name, or into what it was handed.

The process of a jailed machine's copy comes to no directory of its own: it has its files open.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from typing import Protocol

from ringzero.api.values import Value
from ringzero.control.host.directory import CONSOLE_LOG, MachineDirectory
from ringzero.control.host.records import save
from ringzero.control.machine.logfile import LentLog, LogFile
from ringzero.errors import HostError

# A record is padded to so many bytes: a reader sees the old one or the new one, in one page.
_ROOM = 512


class RunFiles(Protocol):
    """The files of one life of a machine."""

    # Bound to the machine's socket; None where that is still to be made.
    listener: socket.socket | None

    def log(self) -> LogFile:
        """Return the log of the guest's words."""
        ...

    def save(self, record: Value, name: str) -> None:
        """Replace a record, at once and whole. Raises HostError."""
        ...

    def leave(self) -> None:
        """In a forked process: close what is the original's."""
        ...


class NamedFiles:
    """Those in the machine's directory, which its own process comes to by their names."""

    listener: socket.socket | None = None

    def __init__(self, directory: MachineDirectory) -> None:
        self._directory = directory

    def log(self) -> LogFile:
        return LogFile(self._directory.file(CONSOLE_LOG))

    def save(self, record: Value, name: str) -> None:
        save(record, self._directory.file(name))

    def leave(self) -> None:
        """There is nothing open."""


class LentFiles:
    """Descriptors by the files' names, open to read and write."""

    listener: socket.socket | None

    def __init__(self, files: Mapping[str, int], listener: int) -> None:
        self._files = dict(files)
        self._lock = threading.Lock()
        self.listener = socket.socket(fileno=listener)

    def log(self) -> LogFile:
        return LentLog(self._files[CONSOLE_LOG], self._files[f"{CONSOLE_LOG}.1"])

    def save(self, record: Value, name: str) -> None:
        file, data = self._files[name], json.dumps(record.to_dict(), default=str).encode()
        try:
            with self._lock:
                length = max(_ROOM, os.fstat(file).st_size)
                os.pwrite(file, data.ljust(length - 1) + b"\n", 0)
        except OSError as fault:
            raise HostError(f"cannot write {name}: {fault.strerror}", errno=fault.errno) from fault
        # Who watches hears of files that are closed, renamed, or have another time.
        with contextlib.suppress(OSError):
            os.utime(file)

    def leave(self) -> None:
        # The log closes its own.
        for name, file in self._files.items():
            if name != CONSOLE_LOG:
                os.close(file)
