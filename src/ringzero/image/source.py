"""Bytes at offsets: what partitions and file systems are read from.

A `Disk` (`ringzero.disk`) is a source, and so is a part of one. Reads outside it raise
FileSystemError: offsets come from the bytes that are read.
"""

from __future__ import annotations

from typing import Protocol

from ringzero.errors import FileSystemError


class Source(Protocol):
    """A row of `size` bytes that can be read at any offset."""

    @property
    def size(self) -> int:
        """The length in bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        ...


class Part:
    """The `size` bytes from `start` on of another source, by a name for messages."""

    def __init__(self, whole: Source, start: int, size: int, name: str = "the disk") -> None:
        if not 0 <= start <= start + size <= whole.size:
            raise FileSystemError(
                f"{name} lies outside its disk (bytes {start} to {start + size} of {whole.size})"
            )
        self._whole = whole
        self._start = start
        self.size = size
        self.name = name

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises FileSystemError outside the part."""
        if not 0 <= offset <= offset + length <= self.size:
            raise FileSystemError(
                f"{self.name} is damaged: it names bytes {offset} to {offset + length}, "
                f"and has {self.size}"
            )
        return self._whole.read(self._start + offset, length)
