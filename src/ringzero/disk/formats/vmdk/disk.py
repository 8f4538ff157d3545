"""The VMDK disk: extents in a row under one descriptor."""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from ringzero.disk.batch import Checked
from ringzero.disk.contract import (
    PARENT_OPTION,
    SECTOR,
    CheckReport,
    Disk,
    DiskInfo,
    Extent,
    Options,
    Repair,
    Run,
    Sample,
    Surroundings,
)
from ringzero.disk.filenames import host_paths
from ringzero.disk.formats.vmdk.check import inspect
from ringzero.disk.formats.vmdk.create import CREATE_OPTIONS, fresh_cid, lay_out
from ringzero.disk.formats.vmdk.descriptor import (
    MAX_BYTES,
    NO_PARENT,
    Descriptor,
    is_descriptor,
    quotable,
    with_cid,
)
from ringzero.disk.formats.vmdk.extents import FlatExtent, Part, SparseExtent, ZeroExtent
from ringzero.disk.formats.vmdk.header import MAGIC, Header
from ringzero.disk.formats.vmdk.openextents import ExtentOpener
from ringzero.disk.formats.vmdk.resize import resize
from ringzero.disk.formats.vmdk.stream import StreamWriter
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import Views, cut, total
from ringzero.errors import (
    DiskFormatError,
    DiskReadOnlyError,
    DiskUnsupportedError,
    InvalidValueError,
)

# Other sparse formats that VMware has, named by their first bytes.
_OTHERS = {b"COWD": "vmfsSparse", b"\xbe\xba\xfe\xca": "seSparse"}


class _Slice(Part):
    """A part of the parent, for an extent that does not begin at the start of the disk."""

    read_only = True

    def __init__(self, whole: Disk, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self.path = None
        self._size = max(0, min(size, whole.size - start))

    @property
    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return 0

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        return self.whole._runs(self.start + offset, length)

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        for extent in self.whole._status(self.start + offset, length, depth, layers):
            yield extent._replace(offset=extent.offset - self.start)

    def _read(self, offset: int, views: Views) -> None:
        self.whole._read(self.start + offset, views)

    def _write(self, offset: int, views: Views) -> None:
        raise self._read_only_error()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        raise self._read_only_error()

    def _discard(self, offset: int, length: int) -> None:
        raise self._read_only_error()

    def _flush(self) -> None:
        """Nothing is ever written."""

    def _close(self) -> None:
        """The parent is closed by the disk."""


@FORMATS.register("vmdk")
class VmdkDisk(Disk):
    """An open VMDK image. See the package for its rooms."""

    format = "vmdk"
    can_have_backing = True
    create_options = CREATE_OPTIONS
    open_options = (PARENT_OPTION,)

    def __init__(
        self,
        storage: Storage,
        around: Surroundings,
        descriptor: Descriptor,
        place: tuple[int, int],
        parts: list[FlatExtent | ZeroExtent | SparseExtent],
    ) -> None:
        self.storage = storage
        self.path = around.path
        self.read_only = around.read_only
        self.descriptor = descriptor
        self.parts = parts
        self.around = around
        # Where the descriptor is in `storage`: offset and room, in bytes.
        self.place = place
        self._starts: list[int] = []
        self._size = 0
        self._lay_in_a_row()
        self._begun = threading.Event()
        self._beginning = threading.Lock()
        self._stream: StreamWriter | None = None
        if descriptor.parent_cid != NO_PARENT:
            self._open_parent(descriptor)
        if not self.read_only:
            self._open_stream()

    def _open_parent(self, descriptor: Descriptor) -> None:
        wanted, name = descriptor.parent_cid, descriptor.parent_name
        given = self.around.options[PARENT_OPTION.name]
        self.backing_name, self.backing_format = given or name or f"{{{wanted:08x}}}", "vmdk"
        self.backing = self.around.open_parent(
            host_paths(descriptor.spellings(name), beside=True) if name else [],
            "vmdk",
            lambda disk: isinstance(disk, VmdkDisk) and disk.descriptor.cid == wanted,
            given=given,
        )
        self._lend_backing()

    def _lend_backing(self) -> None:
        """Let the extents see their part of the parent."""
        for start, part in zip(self._starts, self.parts, strict=True):
            if isinstance(part, SparseExtent):
                part.backing_name = self.backing_name
                if self.backing is not None:
                    part.backing = _Slice(self.backing, start, part.size)

    def _open_stream(self) -> None:
        part = self.parts[0]
        if not isinstance(part, SparseExtent) or not part.header.compressed:
            return
        if len(self.parts) > 1 or any(part.directory):
            raise DiskReadOnlyError(
                f"{self.storage.name} is stream-optimized and cannot be changed",
                hint="open it read-only, put an overlay on it, or convert it",
                path=self.path,
            )
        self._stream = StreamWriter(self.storage, part.header)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        head = sample.head
        return 100 if head[:4] in (MAGIC, *_OTHERS) or is_descriptor(head) else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        head = storage.read(0, SECTOR)
        if head[:4] in _OTHERS:
            raise DiskUnsupportedError(
                f"{storage.name}: VMDK {_OTHERS[head[:4]]} extents", path=storage.name
            )
        if head[:4] == MAGIC:
            header = Header.read(storage)
            if not header.descriptor_offset or not header.descriptor_size:
                raise DiskUnsupportedError(
                    f"{storage.name} is one extent of a disk",
                    hint="open the descriptor file of the disk",
                    path=storage.name,
                )
            place = header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR
        else:
            header = None
            place = 0, storage.size
        if place[1] > MAX_BYTES:
            raise DiskFormatError(f"{storage.name}: the descriptor is too long", path=storage.name)
        descriptor = Descriptor.parse(storage.read(*place), storage.name)
        if not descriptor.extents:
            raise DiskFormatError(f"{storage.name}: it has no extents", path=storage.name)
        parts: list[FlatExtent | ZeroExtent | SparseExtent] = []
        try:
            opener = ExtentOpener(storage, header, sum(place), descriptor, around)
            parts += map(opener.open, descriptor.extents)
            return cls(storage, around, descriptor, place, parts)
        except BaseException:
            for part in parts:
                # The storage itself stays the caller's.
                if getattr(part, "storage", storage) is not storage:
                    part.close()
            raise

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        parent = None
        if backing is not None:
            parent = backing[0], parent_cid(around, *backing)
        lay_out(storage, size, options, around, parent)

    # ---- what it is -------------------------------------------------------

    @property
    def size(self) -> int:
        return self._size

    @property
    def cluster_size(self) -> int | None:
        sizes = [part.cluster_size for part in self.parts if isinstance(part, SparseExtent)]
        return max(sizes) if sizes else None

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        room = start = 0
        for part in self.parts:
            end = start + part.size
            inside = [
                (max(offset, start) - start, min(offset + length, end) - max(offset, start))
                for offset, length in ranges
                if offset < end and offset + length > start
            ]
            room += self._stream.room_for(inside) if self._stream else part.room_for(inside)
            start = end
        return room

    def sparse_files(self) -> Sequence[Storage]:
        return [part.storage for part in self.parts if isinstance(part, SparseExtent)]

    @property
    def compression(self) -> StreamWriter | None:
        return self._stream

    def info(self) -> DiskInfo:
        descriptor = self.descriptor
        files = {self.storage}.union(
            part.storage for part in self.parts if not isinstance(part, ZeroExtent)
        )
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=sum(file.allocated() for file in files),
            cluster_size=self.cluster_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            compressed=any(
                isinstance(part, SparseExtent) and part.header.compressed for part in self.parts
            ),
            specific={
                "cid": descriptor.cid,
                "parent-cid": descriptor.parent_cid,
                "create-type": descriptor.create_type,
                "extents": [
                    self._describe(part, line.kind)
                    for part, line in zip(self.parts, descriptor.extents, strict=False)
                    if isinstance(part, FlatExtent | SparseExtent)
                ],
            },
        )

    def _describe(self, part: FlatExtent | SparseExtent, kind: str) -> dict[str, Any]:
        """Return what QEMU tells of an extent (VmdkExtentInfo)."""
        inside = part.storage is self.storage and isinstance(part, SparseExtent)
        facts: dict[str, Any] = {
            "virtual-size": part.size,
            "filename": part.storage.name,
            "format": "" if inside else kind,
        }
        if isinstance(part, SparseExtent):
            facts["cluster-size"] = part.cluster_size
            if part.header.compressed:
                facts["compressed"] = True
        return facts

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        """Look for grains and tables that lead nowhere or share space, and for stale copies."""
        if self.read_only and repair is not Repair.NOTHING:
            raise self._read_only_error()
        self.flush()
        report = CheckReport()
        for part in self.parts:
            if isinstance(part, SparseExtent):
                inspect(part, repair, report)
        if report.errors_fixed:
            self.begin()
            self.storage.flush()
        return report

    def _change_backing(self, name: str | None, format: str | None) -> None:
        descriptor = self.descriptor
        if name is None:
            descriptor.parent_cid, descriptor.parent_name = NO_PARENT, None
        else:
            if any(not isinstance(part, SparseExtent) for part in self.parts):
                raise DiskUnsupportedError("a flat VMDK image has no backing file")
            descriptor.parent_cid = parent_cid(self.around, name, format or "vmdk")
            descriptor.parent_name = quotable(name)
        self.write_descriptor(descriptor.to_bytes())
        self.storage.flush()
        self.backing_name, self.backing_format = name, "vmdk" if name else None

    def write_descriptor(self, data: bytes) -> None:
        """Write the text that describes the disk where it was. Not flushed."""
        offset, room = self.place
        if offset == 0:
            self.storage.write(0, data)
            self.storage.truncate(len(data))
            self.place = 0, len(data)
            return
        if len(data) > room:
            raise DiskUnsupportedError("there is no room for so long a name in the descriptor")
        self.storage.write(offset, data.ljust(room, b"\0"))

    def _resize(self, size: int) -> None:
        if self._stream is not None:
            raise DiskUnsupportedError(
                "a stream-optimized image cannot be resized", hint="convert it to another size"
            )
        resize(self, size)

    def add_parts(self, parts: Sequence[FlatExtent | SparseExtent]) -> None:
        """Put further extents behind the others, which may have changed their sizes."""
        self.parts += parts
        self._lay_in_a_row()
        self._lend_backing()

    def drop_parts(self, count: int) -> None:
        """Let go of all extents but the first `count`."""
        gone = self.parts[count:]
        self._size = sum(part.size for part in self.parts[:count])
        del self._starts[count:]
        del self.parts[count:]
        for part in gone:
            part.close()

    def _lay_in_a_row(self) -> None:
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] + part.size)
        self._size = starts.pop()
        self._starts = starts

    def make_empty(self) -> None:
        if self.read_only:
            raise self._read_only_error()
        for part in self.parts:
            if not isinstance(part, SparseExtent):
                raise DiskUnsupportedError("a flat VMDK image cannot be emptied")
        self.begin()
        for part in self.parts:
            assert isinstance(part, SparseExtent)
            part.forget_all()
        self._flush()

    # ---- one after the other ----------------------------------------------

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Disk, int, int]]:
        """Yield (extent, offset in it, length) for a range."""
        number = bisect.bisect_right(self._starts, offset) - 1
        while length:
            part = self.parts[number]
            inside = offset - self._starts[number]
            piece = min(length, part.size - inside)
            if piece:
                yield part, inside, piece
            offset, length, number = offset + piece, length - piece, number + 1

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        for part, inside, piece in self._pieces(offset, length):
            yield from part._runs(inside, piece)

    def _read(self, offset: int, views: Views) -> None:
        if self._stream is not None:
            self._stream.finish()
        if len(self.parts) == 1:
            self.parts[0]._read(offset, views)
            return
        done = 0
        for part, inside, piece in self._pieces(offset, total(views)):
            part._read(inside, cut(views, done, piece))
            done += piece

    def _read_ready(self, requests: Sequence[Checked]) -> list[Checked]:
        if len(self.parts) > 1 or self._stream is not None:
            return list(requests)
        return self.parts[0]._read_ready(requests)

    def _announce(self, offset: int, length: int) -> None:
        for part, inside, piece in self._pieces(offset, length):
            part._announce(inside, piece)

    def _write(self, offset: int, views: Views) -> None:
        self.begin()
        if len(self.parts) == 1:
            self._writable(self.parts[0])._write(offset, views)
            return
        done = 0
        for part, inside, piece in self._pieces(offset, total(views)):
            self._writable(part)._write(inside, cut(views, done, piece))
            done += piece

    def _writable(self, part: Disk) -> Disk:
        if part.read_only:
            raise DiskReadOnlyError(
                f"{self.path}: this part of the disk is marked RDONLY", path=self.path
            )
        if self._stream is not None:
            raise DiskUnsupportedError(
                "a stream-optimized image is only written by converting to it",
                hint="use another subformat for a disk that changes",
            )
        return part

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.begin()
        for part, inside, piece in self._pieces(offset, length):
            self._writable(part)._write_zeroes(inside, piece, unmap)

    def _discard(self, offset: int, length: int) -> None:
        if self._stream is None:
            self.begin()
            for part, inside, piece in self._pieces(offset, length):
                if not part.read_only:
                    part._discard(inside, piece)

    @property
    def copy_on_read(self) -> bool:
        """Whether what is read from the parent is kept in this layer."""
        return any(part.copy_on_read for part in self.parts)

    @copy_on_read.setter
    def copy_on_read(self, value: bool) -> None:
        for part in self.parts:
            part.copy_on_read = value
        if value:
            self.begin()

    def begin(self) -> None:
        """Give the image a new content id before its first change of this session."""
        if self._begun.is_set():
            return
        with self._beginning:
            if not self._begun.is_set():
                cid = fresh_cid()
                raw = with_cid(self.storage.read(*self.place), cid)
                self.storage.write(self.place[0], raw[: self.place[1]])
                self.descriptor.cid = cid
                self._begun.set()

    def _flush(self) -> None:
        if self._stream is not None:
            self._stream.finish()
            self.storage.flush()
            return
        for part in self.parts:
            part._flush()
        self.storage.flush()

    def _close(self) -> None:
        try:
            if self._stream is not None:
                self._stream.finish()
        finally:
            with contextlib.ExitStack() as stack:
                stack.callback(self.storage.close)
                for part in self.parts:
                    stack.callback(part._close)


def parent_cid(around: Surroundings, name: str, format: str) -> int:
    """Return the content id of an image that is to become a parent."""
    if format != "vmdk":
        raise InvalidValueError(
            f"the parent of a VMDK image is a VMDK image, not {format}",
            hint="use qcow2 for an overlay over another format",
        )
    with around.look_at(name, format) as parent:
        assert isinstance(parent, VmdkDisk)
        return parent.descriptor.cid
