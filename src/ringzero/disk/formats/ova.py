"""OVA, and any other tar archive that holds a disk image ("Open Virtualization Format", section 6).

The image is read where it lies in the archive; what it is, its own content says.
"""

from __future__ import annotations

import io
from typing import cast

from ringzero.disk.contract import Disk, Option, Sample, Surroundings
from ringzero.disk.readonly import ReadOnlyDisk
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage, Window
from ringzero.errors import (
    DiskFormatError,
    DiskReadOnlyError,
    DiskUnsupportedError,
    InvalidValueError,
)

# "ustar" in the header of the first member (POSIX, "ustar Interchange Format").
_MAGIC, _MAGIC_AT = b"ustar", 257
_SUM = slice(148, 156)
_ENDS = (".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".qed", ".hds", ".img", ".raw")
_PACKED = tuple(end + more for end in _ENDS for more in (".gz", ".xz", ".bz2", ".zst"))
# Real ones have a handful; a hostile one could keep us busy for hours.
_MAX_MEMBERS = 10_000


@FORMATS.register("ova")
class OvaDisk(ReadOnlyDisk):
    """What leads to the disk in an archive; `open` returns that disk, of whatever format it is."""

    format = "ova"
    open_options = (Option("member", str, None, "which of the archive's files is the disk"),)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        # Less than an image whose first sectors happen to look so.
        return 50 if _is_header(sample.head[:512]) else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Disk:  # type: ignore[override]
        if not around.read_only:
            raise DiskReadOnlyError(
                f"{storage.name}: disks inside an archive are only read",
                hint="take it out with `ringzero disk convert`",
                path=storage.name,
            )
        return around.open_inside(_find(storage, around.options["member"]))


def _is_header(block: bytes) -> bool:
    """Whether a block is the header of an archive's member, by its magic or its checksum."""
    if block[_MAGIC_AT:].startswith(_MAGIC):
        return True
    digits = block[_SUM].strip(b" \0")
    if len(block) < 512 or not block[0] or not digits or digits.strip(b"01234567"):
        return False
    # The sum is of a header with blanks in its place; magic came later than archives.
    return sum(block) - sum(block[_SUM]) + 8 * 0x20 == int(digits, 8)


def _find(storage: Storage, wanted: str | None) -> Storage:
    """Return the part of an archive that is its disk; DiskFormatError, DiskUnsupportedError."""
    files = _members(storage)
    if wanted is None:
        disks = [name for name in files if name.lower().endswith((*_ENDS, *_PACKED))]
        if len(disks) != 1:
            raise DiskUnsupportedError(
                f"{storage.name} is an archive with {len(disks) or 'no'} disk images"
                + (f": {', '.join(disks[:8])}" if disks else ""),
                hint="say which file it is: `--open member=NAME` (options={'member': NAME}); or "
                "format=raw (`-f raw`) to take its bytes as they are",
                path=storage.name,
            )
        wanted = disks[0]
    if wanted not in files:
        raise InvalidValueError(
            f"{storage.name} holds no file {wanted!r}", hint=f"it holds: {', '.join(files)[:400]}"
        )
    start, size = files[wanted]
    part = Window(storage, start, size)
    part.name = f"{storage.name}:{wanted}"
    return part


def _members(storage: Storage) -> dict[str, tuple[int, int]]:
    """Return (offset, size) in bytes of the plain files in an archive, by name."""
    # Every search for a format loads this module, and few find an archive.
    import tarfile

    found: dict[str, tuple[int, int]] = {}
    try:
        reader = cast("io.BufferedReader", io.BufferedReader(_File(storage)))
        with tarfile.open(fileobj=reader, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise DiskUnsupportedError(f"{storage.name} has too many files")
                inside = member.offset_data + member.size <= storage.size
                if member.isreg() and not member.issparse() and inside:
                    found[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError) as fault:
        raise DiskFormatError(
            f"{storage.name}: the archive is damaged: {fault}", path=storage.name
        ) from fault
    return found


class _File(io.RawIOBase):
    """A storage as a file for reading."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._storage.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._storage.size - self._at))
        self._storage.read_into(self._at, [memoryview(buffer)[:length]])
        self._at += length
        return length
