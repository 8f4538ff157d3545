"""Standard output as results go there: what cannot be written is an error, not a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from ringzero.errors import OutputError

_STDOUT = 1


class _Raw(io.RawIOBase):
    """A descriptor whose failing writes raise OutputError."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            _await_room(self._descriptor)
            return self.write(data)
        except OSError as fault:
            raise output_error(fault) from fault


def write(descriptor: int, data: bytes) -> None:
    """Write all of `data` to one of our standard streams. Raises OutputError.

    Where there is nothing to write, a stream that is closed or full is told all the same.
    """
    try:
        write_all(descriptor, data)
    except OSError as fault:
        raise output_error(fault) from fault


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, however long its reader takes. Raises OSError."""
    view = memoryview(data)
    while True:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            _await_room(descriptor)
        if not view:
            return


def output_error(fault: OSError) -> OutputError:
    """Return the error for a write to standard output that failed."""
    return OutputError(f"cannot write the output: {fault.strerror or fault}", errno=fault.errno)


def guard() -> None:
    """Have failing writes to standard output raise OutputError, in a process of ours."""
    raw, encoding = _Raw(_STDOUT), sys.stdout.encoding
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        # Names of files come out as they are; what another encoding lacks is shown as its number.
        errors="surrogateescape" if encoding.lower() == "utf-8" else "backslashreplace",
        line_buffering=raw.isatty(),
    )


def abandon() -> None:
    """Drop what could not be written, so that the interpreter does not try again at its end."""
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, _STDOUT)
        os.close(nothing)


def _await_room(descriptor: int) -> None:
    """Wait until somebody has read from a pipe that does not block and is full."""
    import select

    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()
