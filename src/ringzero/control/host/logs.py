"""What machines said: their logs, which whoever writes them may rotate at any moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ringzero.api.action import Stream
from ringzero.api.protocol import STDOUT
from ringzero.control.host.directory import CONSOLE_LOG, VMM_LOG, MachineDirectory
from ringzero.control.host.handlers import handles
from ringzero.control.host.session import WayOut
from ringzero.errors import ControlError, InvalidValueError
from ringzero.host.files import open_regular

_CHUNK = 1 << 16


@handles("logs")
def logs(
    where: MachineDirectory, stream: Stream, follow: bool, lines: int | None, vmm: bool
) -> None:
    if lines is not None and lines < 0:
        raise InvalidValueError(f"{lines} lines make no sense")
    where.machine()
    way = WayOut()
    stream.begin(way)
    with Log(where.file(VMM_LOG if vmm else CONSOLE_LOG)) as log:
        if lines is None:
            for chunk in log.read():
                stream.data(STDOUT, chunk)
        else:
            said = b"".join(log.read()).splitlines(keepends=True)[-lines:] if lines else []
            for line in said:
                stream.data(STDOUT, line)
        if follow:
            _follow(where, stream, log, way)


def _follow(where: MachineDirectory, stream: Stream, log: Log, way: WayOut) -> None:
    """Send what comes until the machine has ended."""
    from ringzero.control.host.events import Changes

    with Changes(where) as changes:
        while not way.left:
            alive = where.alive
            for chunk in log.read():
                stream.data(STDOUT, chunk)
            if not alive:
                return
            changes.wait()
    raise ControlError(f"nobody reads the log of machine {where.name!r} any more")


class Log:
    """A log that its writer may rotate at any moment; to be closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old: list[int] = []
        for part in (path.with_name(path.name + ".1"), path):
            self._open(part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._old:
            os.close(self._old.pop())

    def read(self) -> Iterator[bytes]:
        """Yield everything that was written since the last time."""
        while self._old:
            descriptor = self._old[0]
            while chunk := os.read(descriptor, _CHUNK):
                yield chunk
            if len(self._old) > 1:
                os.close(self._old.pop(0))
            elif not self._rotated(descriptor):
                return

    def _rotated(self, descriptor: int) -> bool:
        """Open the next part where the writer has begun one."""
        try:
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                return False
        except OSError:
            return False
        return self._open(self._path)

    def _open(self, part: Path) -> bool:
        try:
            self._old.append(open_regular(part))
        except OSError:
            return False
        return True
