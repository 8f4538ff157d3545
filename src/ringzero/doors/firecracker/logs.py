"""The log: a line for each event, to standard output or to a file or named pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from ringzero.doors.firecracker import faults

_LEVELS = {"off": 0, "error": 1, "warn": 2, "info": 3, "debug": 4, "trace": 5}
_STDOUT = 1


def open_sink(path: str) -> int:
    """Return a descriptor that appends to a file, or writes to a named pipe without waiting.

    Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


class Log:
    """The log of the microVM `identifier`. Methods may be called from any thread."""

    def __init__(self, identifier: str) -> None:
        self._identifier = identifier
        self._descriptor = _STDOUT
        self._level = _LEVELS["info"]
        self._shows_level = self._shows_origin = False
        self._module = ""
        # Lines that could not be written.
        self.missed = 0

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Take where, what and how is logged, as PUT /logger has it. Raises ApiFault."""
        if "log_path" in fields:
            try:
                descriptor = open_sink(fields["log_path"])
            except OSError as fault:
                raise faults.ApiFault(
                    f"Logger error: Failed to open target file: {faults.os_error(fault)}"
                ) from fault
            if self._descriptor != _STDOUT:
                os.close(self._descriptor)
            self._descriptor = descriptor
        self._level = _LEVELS[fields.get("level", "info")]
        self._shows_level = fields.get("show_level", self._shows_level)
        self._shows_origin = fields.get("show_log_origin", self._shows_origin)
        self._module = fields.get("module", self._module)

    def error(self, text: str) -> None:
        """Log what went wrong."""
        self._write("error", text, sys._getframe(1))

    def warn(self, text: str) -> None:
        """Log what may be wrong."""
        self._write("warn", text, sys._getframe(1))

    def info(self, text: str) -> None:
        """Log what happens."""
        self._write("info", text, sys._getframe(1))

    def _write(self, level: str, text: str, frame: FrameType) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if _LEVELS[level] > self._level or not module.startswith(self._module):
            return
        now = time.time_ns()
        moment = time.localtime(now // 1_000_000_000)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{now % 1_000_000_000:09}"
        shown = f":{level.upper()}" if self._shows_level else ""
        if self._shows_origin:
            shown += f":{module.replace('.', '/')}.py:{frame.f_lineno}"
        thread = "main" if threading.current_thread() is threading.main_thread() else "fc_vmm"
        line = f"{stamp} [{self._identifier}:{thread}{shown}] {_one_line(text)}\n"
        try:
            os.write(self._descriptor, line.encode())
        except OSError:
            self.missed += 1

    def close(self) -> None:
        """Write nothing any more."""
        if self._descriptor != _STDOUT:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = _STDOUT


def _one_line(text: str) -> str:
    """Return a text in which nothing begins another line of the log."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
