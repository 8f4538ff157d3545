"""What the guest's messages have in common, whichever protocol they are of. No I/O.

`Message` reads one and checks every length: what does not fit raises `WireError`. How a text
stands in it is the protocol's.
"""

from __future__ import annotations

import errno
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ringzero.core.views import limited
from ringzero.errors import DeviceError

# linux/limits.h and linux/xattr.h.
NAME_MAX, PATH_MAX, XATTR_SIZE_MAX = 255, 4096, 65536
NANOSECONDS = 1_000_000_000


class WireError(DeviceError):
    """A request of the guest's that is no message of its protocol."""

    kind = "file server message"


class NameTooLongError(WireError):
    """A name of more than 255 bytes, a link's text of more than 4095."""

    kind = "file server name"


class Message(ABC):
    """A request, or what stands behind its header, read from byte `at` on."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        """Return the fields of a structure; raises WireError where it is cut off."""
        at = self._at
        self._at = at + layout.size
        if self._at > len(self._data):
            raise WireError("a request is cut off", size=len(self._data), needed=self._at)
        return layout.unpack_from(self._data, at)

    def rest(self, size: int) -> bytes:
        """Return the next `size` bytes; raises WireError where there are fewer."""
        end = self._at + size
        if end > len(self._data):
            raise WireError("a request is cut off", size=len(self._data), needed=end)
        found = self._data[self._at : end]
        self._at = end
        return found

    @abstractmethod
    def text(self, limit: int) -> bytes:
        """Return a text of at most `limit` bytes; raises WireError, NameTooLongError."""

    def name(self) -> bytes:
        """Return a name within a directory; raises WireError for what is none."""
        name = self.text(NAME_MAX)
        if not name or name in (b".", b"..") or b"/" in name:
            raise WireError("what should be a name in a directory is none", name=repr(name[:40]))
        return name


def checked_length(text: bytes, limit: int) -> bytes:
    """Return `text`; raises NameTooLongError where it has more than `limit` bytes."""
    if len(text) > limit:
        raise NameTooLongError("a name is too long", size=len(text), limit=limit)
    return text


def payload(data: list[memoryview], size: int) -> list[memoryview]:
    """Return the `size` bytes that a write says it has; raises EINVAL where there are fewer."""
    there = sum(map(len, data))
    if there < size:
        raise OSError(errno.EINVAL, "less than it says")
    return limited(data, size) if there > size else data


def time_of(seconds: int, nanoseconds: int) -> int:
    """Return a time in nanoseconds; seconds before 1970 come as large numbers. Raises EINVAL."""
    if nanoseconds >= NANOSECONDS:
        raise OSError(errno.EINVAL, "no time")
    signed = seconds - (1 << 64) if seconds >> 63 else seconds
    return signed * NANOSECONDS + nanoseconds


def packed_times(times: Sequence[int]) -> list[int]:
    """Return seconds and nanoseconds, in turns, of times in nanoseconds: 64 bits unsigned."""
    return [part & (1 << 64) - 1 for time in times for part in divmod(time, NANOSECONDS)]
