"""Changes of directories, told by the kernel (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from ringzero.errors import HostError
from ringzero.records import record

# <sys/inotify.h>
MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
OVERFLOW = 0x4000
IGNORED = 0x8000
_ONLY_DIRECTORIES = 0x01000000
_NO_LINKS = 0x02000000
# struct inotify_event without its name: wd, mask, cookie, length of the name.
_EVENT = struct.Struct("@iIII")
# Room for some hundred events; the kernel keeps what does not fit.
_READ = 64 * 1024


@record
class Change:
    """`mask` says what happened to `name` in the directory of the watch `number`.

    The two changes that a rename is have the same `cookie`.
    """

    number: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """An inotify instance; its descriptor polls readable when there are changes."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            raise HostError(
                f"cannot watch for changes: {os.strerror(ctypes.get_errno())}",
                hint="the limit is in /proc/sys/fs/inotify/max_user_instances",
            )

    def add(self, path: Path, mask: int) -> int:
        """Watch a directory; return the watch's number. Raises OSError."""
        flags = mask | _ONLY_DIRECTORIES | _NO_LINKS
        number: int = self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), flags)
        if number < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
        return number

    def remove(self, number: int) -> None:
        """Watch a directory no more; one that is gone is no fault."""
        self._libc.inotify_rm_watch(self.descriptor, number)

    def read(self) -> Iterator[Change]:
        """Yield the changes that have come; does not wait."""
        try:
            data = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            yield Change(number, mask, cookie, os.fsdecode(name))

    def close(self) -> None:
        """End it."""
        os.close(self.descriptor)
