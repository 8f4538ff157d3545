"""VDI: dynamic, fixed, differencing (VirtualBox, "VDICore.h"; no specification is published).

Blocks of 1 MiB; a map of 32-bit block numbers; the header counts the blocks
that are in the file. Other writers put a new block at that count, so a block
that is in the file stays there: zeroes are punched into it.

A differencing image names its parent by two UUIDs and not by a file. Those
that ringzero makes have the name in their comment; for others the option
`parent` says it.
"""

from __future__ import annotations

import struct
import sys
import uuid
from array import array
from collections.abc import Iterator
from typing import Self
from uuid import UUID

from ringzero.disk.blockcheck import CheckedBlockDisk
from ringzero.disk.blocks import ABSENT, ZERO
from ringzero.disk.contract import (
    PARENT_OPTION,
    SECTOR,
    CheckReport,
    Disk,
    DiskInfo,
    Kind,
    Option,
    Options,
    Repair,
    Sample,
    Surroundings,
)
from ringzero.disk.filenames import host_paths
from ringzero.disk.gaps import Range
from ringzero.disk.paged import PagedTable
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.records import field, mutable_record
from ringzero.units import MIB

_SIGNATURE = 0xBEDA_107F
_TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
_VERSION = 0x0001_0001
# Text, signature, version; then the header proper, version 1.1 "plus".
_PREHEADER = struct.Struct("<64sII")
_HEADER = struct.Struct("<III256sII16xIQIIII16s16s16s16s")
_HEADER_AT = _PREHEADER.size
_HEADER_SIZE = 400
# Where the sector size of the legacy geometry is.
_SECTOR_SIZE_AT = _HEADER_AT + 12 + 256 + 8 + 12

_NORMAL, _FIXED, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_TYPES = {_NORMAL: "dynamic", _FIXED: "fixed", _UNDO: "undo", _DIFFERENCING: "differencing"}
_FREE, _ZEROED = 0xFFFF_FFFF, 0xFFFF_FFFE

_BLOCK = MIB
# VirtualBox makes others on request; larger ones would let an image ask for gigabytes.
_MAX_BLOCK = 256 * MIB
_PARENT_COMMENT = b"parent: "
_NIL = UUID(int=0)


@mutable_record
class Header:
    """The header, all in bytes. `modified` changes with every session that writes."""

    size: int
    kind: int = _NORMAL
    comment: bytes = b""
    map_offset: int = 0
    data_offset: int = 0
    block_size: int = _BLOCK
    extra: int = 0
    blocks: int = 0
    allocated: int = 0
    created: UUID = field(default_factory=uuid.uuid4)
    modified: UUID = field(default_factory=uuid.uuid4)
    parent: UUID = _NIL
    parent_modified: UUID = _NIL

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Read and check the header; DiskFormatError, DiskUnsupportedError."""
        data = storage.read(0, SECTOR)
        name = storage.name
        _, signature, version = _PREHEADER.unpack_from(data)
        if signature != _SIGNATURE:
            raise DiskFormatError(f"{name} is no VDI image", path=name)
        if version >> 16 != 1 or version & 0xFFFF < 1:
            raise DiskUnsupportedError(f"{name}: VDI version {version:#x} is not known", path=name)
        (_, kind, _, comment, map_offset, data_offset, _, size, block_size, extra, blocks,
         allocated, *raw) = _HEADER.unpack_from(data, _HEADER_AT)  # fmt: skip
        guids = [UUID(bytes_le=value) for value in raw]
        # VBoxManage makes disks of any number of bytes; the last sector is in the file whole.
        size = -(-size // SECTOR) * SECTOR
        header = cls(
            size, kind, comment.rstrip(b"\0"), map_offset, data_offset, block_size, extra,
            blocks, allocated, guids[0], guids[1], guids[2], guids[3],
        )  # fmt: skip
        header._check(name, storage.size)
        return header

    def _check(self, name: str, file_size: int) -> None:
        wrong = None
        if self.kind not in _TYPES:
            wrong = f"image type {self.kind}"
        elif self.block_size & (self.block_size - 1) or not SECTOR <= self.block_size <= _MAX_BLOCK:
            wrong = f"blocks of {self.block_size} bytes"
        elif self.extra % SECTOR or self.extra > self.block_size:
            wrong = f"{self.extra} extra bytes with a block"
        elif -(-self.size // self.block_size) > self.blocks:
            wrong = f"{self.blocks} blocks for {self.size} bytes"
        elif self.map_offset < SECTOR or self.map_offset + 4 * self.blocks > self.data_offset:
            wrong = "a block map over the header or the data"
        elif self.map_offset + 4 * self.blocks > file_size or self.data_offset % SECTOR:
            wrong = "a block map outside the file, or data that are not aligned"
        if wrong:
            raise DiskFormatError(f"{name}: {wrong} make no sense", path=name)

    def to_bytes(self) -> bytes:
        named = self.created, self.modified, self.parent, self.parent_modified
        guids = [guid.bytes_le for guid in named]
        data = _PREHEADER.pack(_TEXT, _SIGNATURE, _VERSION) + _HEADER.pack(
            _HEADER_SIZE, self.kind, 0, self.comment, self.map_offset, self.data_offset, 0,
            self.size, self.block_size, self.extra, self.blocks, self.allocated, *guids,
        )  # fmt: skip
        padded = bytearray(data.ljust(SECTOR, b"\0"))
        struct.pack_into("<I", padded, _SECTOR_SIZE_AT, SECTOR)
        return bytes(padded)


@FORMATS.register("vdi")
class VdiDisk(CheckedBlockDisk):
    """An open VDI image."""

    format = "vdi"
    can_have_backing = True
    create_options = (
        Option.flag("static", False, "all blocks are in the file from the start"),
        Option.choice("preallocation", ("off", "falloc", "full"), "off", "for static=on"),
    )
    open_options = (PARENT_OPTION,)

    def __init__(self, storage: Storage, header: Header, around: Surroundings) -> None:
        super().__init__(storage)
        self.header = header
        self.path = around.path
        self.read_only = around.read_only
        self.block_size = header.block_size
        self._around = around
        self._stride = header.block_size + header.extra
        self.block_lead = header.extra
        self.table = PagedTable(storage, header.map_offset, header.blocks, "I", big_endian=False)
        self._next: int | None = None
        self._header_dirty = False
        if header.kind == _DIFFERENCING:
            self._open_parent()

    def _open_parent(self) -> None:
        given, comment = self._around.options[PARENT_OPTION.name], self.header.comment
        name = ""
        if comment.startswith(_PARENT_COMMENT):
            name = comment.removeprefix(_PARENT_COMMENT).decode("utf-8", "surrogateescape")
        self.backing_name = given or name or f"{{{self.header.parent}}}"
        self.backing_format = "vdi"
        if not name and not given and self._around.with_backing:
            raise DiskUnsupportedError(
                f"{self.storage.name} does not say which file its parent {self.header.parent} is",
                hint="write it into the image with `ringzero disk rebase -u -b FILE`, "
                "or say it with the option parent=FILE (`--open parent=FILE`)",
                path=self.storage.name,
            )
        self.backing = self._around.open_parent(
            host_paths([name], beside=True), "vdi", self._is_parent, given=given
        )

    def _is_parent(self, disk: Disk) -> bool:
        header = self.header
        if not isinstance(disk, VdiDisk) or disk.header.created != header.parent:
            return False
        # VirtualBox leaves it empty when it does not know.
        return header.parent_modified in (_NIL, disk.header.modified)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        at = _PREHEADER.size - 8
        return 100 if sample.head[at : at + 4] == _SIGNATURE.to_bytes(4, "little") else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        return cls(storage, Header.read(storage), around)

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        blocks = -(-size // _BLOCK)
        header = Header(size, blocks=blocks, map_offset=MIB)
        if blocks >= _ZEROED or 4 * blocks >= 1 << 31:
            raise InvalidValueError(f"{size} bytes are too many for a VDI image")
        static = options["static"]
        if options["preallocation"] != "off" and not static:
            raise InvalidValueError("preallocation needs static=on")
        if backing is not None:
            if static:
                raise InvalidValueError("a static image has no backing file")
            header.kind = _DIFFERENCING
            _link(header, around, *backing)
        # Data on a boundary that SSDs and other hosts' file systems like.
        header.data_offset = -(-(header.map_offset + 4 * blocks) // MIB) * MIB
        storage.truncate(header.data_offset)
        for start in range(0, blocks, MIB):
            count = min(MIB, blocks - start)
            entries = range(start, start + count) if static else [_FREE] * count
            storage.write(header.map_offset + 4 * start, struct.pack(f"<{count}I", *entries))
        if static:
            header.kind, header.allocated = _FIXED, blocks
            storage.truncate(header.data_offset + blocks * _BLOCK)
            if options["preallocation"] == "full":
                Storage.write_zeroes(storage, header.data_offset, blocks * _BLOCK)
            elif options["preallocation"] == "falloc" and isinstance(storage, FileStorage):
                storage.preallocate(header.data_offset, blocks * _BLOCK)
        storage.write(0, header.to_bytes())

    # ---- what it is -------------------------------------------------------

    @property
    def size(self) -> int:
        return self.header.size

    def info(self) -> DiskInfo:
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=self.storage.allocated(),
            cluster_size=self.block_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            specific={"subformat": _TYPES[self.header.kind], "uuid": str(self.header.created)},
        )

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        report = super().check(repair)
        with self._alloc:
            wanted = self._highest()
            text = f"the header counts {self.header.allocated} blocks, but {wanted} are in use"
            if self.header.allocated < wanted:
                report.error(text, fixed=repair is Repair.ALL)
            elif self.header.allocated > wanted:
                surplus = self.header.allocated - wanted
                report.leak(text, surplus, fixed=repair is not Repair.NOTHING)
            if report.errors_fixed or report.leaks_fixed:
                self.header.allocated, self._next = wanted, wanted
                self._unused = None
                self._free.clear()
                self.storage.write(0, self.header.to_bytes())
                self.storage.flush()
        return report

    def _structures(self) -> Iterator[Range]:
        yield 0, self.header.data_offset

    def _block_start(self) -> int:
        return self.header.data_offset

    def _block_end(self) -> int:
        counted = max(self.header.allocated, self._highest())
        return min(self.header.data_offset + counted * self._stride, self.storage.size)

    def _highest(self) -> int:
        """Return one more than the highest block number in use."""
        return 1 + max((entry for entry in self.table if entry < _ZEROED), default=-1)

    def _change_backing(self, name: str | None, format: str | None) -> None:
        if name is None or self.header.kind != _DIFFERENCING:
            raise DiskUnsupportedError(
                "a VDI image cannot gain or lose its parent", hint="convert it instead"
            )
        with self._alloc:
            self._begin()
            _link(self.header, self._around, name, format or "vdi")
            self.storage.write(0, self.header.to_bytes())
            self.storage.flush()
        self.backing_name = name

    # ---- mapping ----------------------------------------------------------

    def _block(self, index: int) -> int:
        entry = self.table[index]
        if entry < _ZEROED:
            host = self.header.data_offset + entry * self._stride + self.header.extra
            if host >= self.storage.size:
                raise DiskFormatError(
                    f"{self.storage.name}: block {entry} is outside the file",
                    path=self.storage.name,
                    offset=host,
                )
            return host
        return ABSENT if entry == _FREE and self.backing_name is not None else ZERO

    def _set_block(self, index: int, host: int) -> None:
        if host < 0:
            self.table[index] = _ZEROED if self.backing_name is not None else _FREE
            return
        entry = (host - self.header.data_offset) // self._stride
        self.table[index] = entry
        self._next = max(self._next or 0, entry + 1)
        self.header.allocated = max(self.header.allocated, self._next)
        self._header_dirty = True

    def _new_block(self) -> int:
        if self._next is None:
            self._next = max(self.header.allocated, self._highest())
        header = self.header
        past = -(-max(0, self.storage.size - header.data_offset) // self._stride)
        # What is behind the counted blocks is nobody's, and may not be zero.
        if past > self._next:
            self.storage.truncate(header.data_offset + self._next * self._stride)
        return header.data_offset + self._next * self._stride + header.extra

    def _grant(self, index: int, count: int) -> tuple[int, int]:
        host, missing = super()._grant(index, count)
        return host, 1 if self.header.extra else missing

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        self._begin()
        for number in range(index, index + count):
            host = self._block(number)
            if host >= 0:
                self.storage.write_zeroes(host, self.block_size)
            elif host == ABSENT:
                self._set_block(number, ZERO)

    # ---- writing ----------------------------------------------------------

    def _begin_writing(self) -> None:
        self.header.modified = uuid.uuid4()
        self.storage.write(0, self.header.to_bytes())

    def _tables_dirty(self) -> bool:
        return self.table.dirty or self._header_dirty

    def _write_tables(self) -> None:
        # The count first: whoever comes after a crash must not use a block twice.
        if self._header_dirty:
            self.storage.write(0, self.header.to_bytes())
            self.storage.flush()
            self._header_dirty = False
        self.table.write_back()

    def _resize(self, size: int) -> None:
        header = self.header
        blocks = -(-size // self.block_size)
        if header.kind == _FIXED:
            raise DiskUnsupportedError(
                "a fixed VDI image cannot be resized", hint="convert it into a larger one"
            )
        if blocks >= _ZEROED or 4 * blocks >= 1 << 31:
            raise InvalidValueError(f"{size} bytes are too many for a VDI image")
        self._begin()
        old = self.size
        with self._gate.alone(), self._alloc:
            cut = range(blocks, -(-old // self.block_size))
            gone = [host for index in cut if (host := self._block(index)) >= 0]
            for index in cut:
                self.table[index] = _FREE
            self._write_back()
            self.storage.flush()
            if gone:
                header.allocated = self._highest()
                self._next, self._unused = None, None
                self._free.clear()
            if blocks > (header.data_offset - header.map_offset) // 4:
                self._move_map(blocks)
            elif blocks > header.blocks:
                fresh = blocks - header.blocks
                self.storage.write(header.map_offset + 4 * header.blocks, b"\xff" * (4 * fresh))
                self.storage.flush()
            header.size, header.blocks = size, blocks
            self.storage.write(0, header.to_bytes())
            self.storage.flush()
            self.table = PagedTable(self.storage, header.map_offset, blocks, "I", big_endian=False)
            for host in gone:
                self.storage.write_zeroes(host, self.block_size)
        self._zero_new(old, size)

    def _move_map(self, blocks: int) -> None:
        """Make room for a longer map, and prepare the header for it; the map is durable then.

        Data follow the map. So the first blocks move to the end, the new map takes their
        place, and all numbers are less by as many as there were.
        """
        header = self.header
        away = -(-4 * blocks // self._stride)
        by_number = {self.table[n]: n for n in range(header.blocks) if self.table[n] < away}
        for number in sorted(by_number):
            self._move_block(by_number[number])
        self._write_back()
        self.storage.flush()
        at = header.data_offset
        self.storage.reach(at + away * self._stride)
        for start in range(0, blocks, MIB):
            stop = min(start + MIB, blocks)
            known = range(start, max(start, min(stop, header.blocks)))
            part = array("I", [_shifted(self.table[n], away) for n in known])
            part.extend(array("I", [_FREE]) * (stop - start - len(part)))
            if sys.byteorder == "big":
                part.byteswap()
            self.storage.write(at + 4 * start, part.tobytes())
        self.storage.flush()
        header.map_offset, header.data_offset = at, at + away * self._stride
        header.allocated = max(0, header.allocated - away)
        self._next, self._unused = None, None
        self._free.clear()


def _shifted(entry: int, away: int) -> int:
    """Return the map entry of a block when `away` blocks before it are gone."""
    return entry - away if entry < _ZEROED else entry


def _link(header: Header, around: Surroundings, name: str, kind: str) -> None:
    """Enter the parent `name` in a header."""
    if kind != "vdi":
        raise InvalidValueError(
            f"the parent of a VDI image is a VDI image, not {kind}",
            hint="use qcow2 for an overlay over another format",
        )
    comment = _PARENT_COMMENT + name.encode("utf-8", "surrogateescape")
    if len(comment) > 255:
        raise InvalidValueError("the parent's name is too long for a VDI image")
    with around.look_at(name, kind) as parent:
        assert isinstance(parent, VdiDisk)
        header.parent = parent.header.created
        header.parent_modified = parent.header.modified
    header.comment = comment
