"""What the formats share that map the disk in large blocks: VHDX, VHD and VDI.

A block is in the file whole, or nowhere. Where blocks have a bitmap, it says
which of a block's sectors this layer holds; the map of `MappedDisk` is then
one of sectors, and a write to a sector that is not held goes into the block
that is there already.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence

from ringzero.disk.batch import Checked
from ringzero.disk.contract import SECTOR, Extent, Kind, Run
from ringzero.disk.gaps import Range, copy_bytes, gaps
from ringzero.disk.mapped import SPOT_ABSENT, SPOT_ZERO, MappedDisk
from ringzero.disk.storage import Holes, Storage
from ringzero.disk.tables import units_of
from ringzero.errors import DiskFormatError

# What `_block` says of a block that is nowhere.
ZERO = SPOT_ZERO
ABSENT = SPOT_ABSENT

_KINDS = {ZERO: Kind.ZERO, ABSENT: Kind.ABSENT}

_ALL_ONES = re.compile(rb"\xff*")
_ALL_ZEROES = re.compile(rb"\x00*")


class BlockDisk(MappedDisk):
    """A layer that maps the disk in blocks of `block_size` bytes.

    `bitmapped` says whether blocks have bitmaps; it is known before the first request.
    """

    block_size: int
    bitmapped: bool = False
    # What one bit of a bitmap stands for, in bytes.
    sector_size: int = SECTOR
    # Whether the first sector of a bitmap's byte is its most significant bit.
    high_bit_first: bool = False
    # How many bytes before its data belong to a block: a bitmap, or what a format adds.
    block_lead: int = 0
    # Where a block may begin in the file.
    block_alignment: int = SECTOR

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        # Host offsets of blocks that no table in memory refers to any more:
        # since the tables were last written, before it, and free to use.
        self._forgotten: list[int] = []
        self._settling: list[int] = []
        self._free: list[int] = []
        # Space that was nobody's when this session needed the first block; not zeroed yet.
        self._unused: list[int] | None = None
        self._begun = False

    # ---- what a format implements -----------------------------------------

    @abstractmethod
    def _block(self, index: int) -> int:
        """Return the host offset of a block's bytes, or ZERO, or ABSENT; DiskFormatError.

        The offset has been checked: it is in the file and no structure of the format lies there.
        """

    @abstractmethod
    def _set_block(self, index: int, host: int) -> None:
        """Enter a block in the table: a host offset, ZERO or ABSENT."""

    @abstractmethod
    def _new_block(self) -> int:
        """Return the host offset of fresh space for the bytes of a block, at the file's end."""

    def _bits(self, index: int) -> bytearray | None:
        """Return the bitmap of a block that is in the file; None when all its sectors are held."""
        return None

    def _bits_changed(self, index: int) -> None:
        """Take note that the bitmap of a block has changed."""

    def _new_bits(self, index: int) -> None:
        """Begin an empty bitmap for a block that has just been entered."""

    def _cover(self, index: int) -> None:
        """Take note that a block is about to be written whole, whatever its bitmap says."""

    def _begin_writing(self) -> None:
        """Do what the format wants done before the first change of a session."""

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        end = self.storage.size
        to_alignment = -end % self.block_alignment
        missing = sum(self._block(index) < 0 for index in units_of(ranges, self.block_size))
        return to_alignment + missing * (self.block_lead + self.block_size) if missing else 0

    # ---- mapping ----------------------------------------------------------

    @property
    def cluster_size(self) -> int:
        return self.sector_size if self.bitmapped else self.block_size

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        size = self.block_size
        end = offset + length
        limit = -(-end // size)
        while offset < end:
            index = offset // size
            entry = self._block(index)
            bits = self._bits(index) if entry >= 0 and self.bitmapped else None
            if bits is not None:
                stop = min(end, (index + 1) * size)
                yield from self._sector_runs(bits, entry, offset - index * size, stop - offset)
                offset = stop
                continue
            after = index + 1
            expected = entry
            while after < limit:
                if expected >= 0:
                    expected += size
                if self._block(after) != expected or (expected >= 0 and self.bitmapped):
                    break
                after += 1
            run = min(after * size, end) - offset
            if entry >= 0:
                host = entry + offset - index * size
                yield Run(run, Kind.DATA, host, self.storage, writable=True)
            else:
                yield Run(run, _KINDS[entry])
            offset += run

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        # Of a block that is in the file, the host may have holes.
        holes = Holes(self.storage)
        for extent in super()._status(offset, length, depth, layers):
            host = extent.host
            if extent.kind is not Kind.DATA or extent.depth != depth or host is None:
                yield extent
                continue
            at = extent.offset
            for run, has_data in holes.extents(host, extent.length):
                kind = Kind.DATA if has_data else Kind.ZERO
                yield extent._replace(offset=at, length=run, kind=kind, host=host)
                at, host = at + run, host + run

    def _sector_runs(self, bits: bytearray, host: int, start: int, length: int) -> Iterator[Run]:
        """Yield the runs of one block between its bytes `start` and `start + length`."""
        missing = Kind.ABSENT if self.can_have_backing and self.backing_name else Kind.ZERO
        end = start + length
        size = self.sector_size
        while start < end:
            held, stop = bit_run(
                bits, start // size, -(-end // size), high_first=self.high_bit_first
            )
            run = min(stop * size, end) - start
            if held:
                yield Run(run, Kind.DATA, host + start, self.storage, writable=True)
            else:
                yield Run(run, missing)
            start += run

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        index, inside = divmod(offset, self.block_size)
        if inside + length > self.block_size:
            return None
        host = self._block(index)
        if host < 0:
            return None if writing else host
        if self.bitmapped:
            if writing and length == self.block_size:
                self._cover(index)
            if self._bits(index) is not None:
                return None
        return host + inside

    def _grant(self, index: int, count: int) -> tuple[int, int]:
        if not self.bitmapped:
            if self._has_free():
                return self._free.pop(), 1
            return self._new_block(), self._missing(index, count)
        number, inside = divmod(index * self.sector_size, self.block_size)
        room = min(count, (self.block_size - inside) // self.sector_size)
        host = self._block(number)
        if host < 0:
            host = self._free[-1] if self._has_free() else self._new_block()
        return host + inside, room

    def _has_free(self) -> bool:
        """Whether a block is free, after looking for space that earlier sessions have left."""
        if self._free:
            return True
        if self._unused is None:
            # The lowest is taken first.
            self._unused = list(self._find_unused())[::-1]
        if not self._unused:
            return False
        host = self._unused.pop()
        # Zero, as everything in `_free` is.
        self.storage.write_zeroes(host, self.block_size)
        self._free.append(host)
        return True

    def _find_unused(self) -> Iterator[int]:
        """Yield where whole blocks fit into space that nothing names."""
        unit = self.block_lead + self.block_size
        for start, end in self._gaps():
            first = -(-start // self.block_alignment) * self.block_alignment
            for at in range(first, end - unit + 1, unit):
                yield at + self.block_lead

    def _missing(self, index: int, count: int) -> int:
        """Return how many of `count` blocks from `index` on are nowhere, up to the first."""
        for number in range(1, count):
            if self._block(index + number) >= 0:
                return number
        return count

    def _link(self, index: int, count: int, host: int) -> None:
        if not self.bitmapped:
            for number in range(count):
                self._replace(index + number, host + number * self.block_size)
            return
        number, inside = divmod(index * self.sector_size, self.block_size)
        if self._block(number) < 0:
            start = host - inside
            if self._free and self._free[-1] == start:
                self._free.pop()
            # The block is in the file whole, whatever part of it was written.
            if self.storage.size < start + self.block_size:
                self.storage.truncate(start + self.block_size)
            was_zero = self._block(number) == ZERO
            self._set_block(number, start)
            self._new_bits(number)
            bits = self._bits(number)
            if bits is not None and was_zero and self.backing_name:
                # The rest of the block must go on hiding the backing file.
                bits[:] = b"\xff" * len(bits)
                self._bits_changed(number)
        bits = self._bits(number)
        if bits is not None:
            set_bits(bits, inside // self.sector_size, count, high_first=self.high_bit_first)
            self._bits_changed(number)

    def _replace(self, index: int, host: int) -> None:
        old = self._block(index)
        if old >= 0:
            self._forgotten.append(old)
        self._set_block(index, host)

    @property
    def unlink_size(self) -> int:
        return self.block_size

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        self._begin()
        for number in range(index, index + count):
            self._replace(number, ZERO)

    # ---- beginning, flushing, reusing -------------------------------------

    def _begin(self) -> None:
        if not self._begun:
            with self._alloc:
                if not self._begun:
                    self._begin_writing()
                    self._begun = True

    def _prepare(self, requests: Sequence[Checked]) -> None:
        if not self._begun:
            self._begin()

    def _has_forgotten(self) -> bool:
        return bool(self._settling)

    def _settle(self) -> None:
        """Call at the end of `_write_tables`: what was forgotten is so for good once durable."""
        self._settling += self._forgotten
        self._forgotten = []

    def _reclaim(self) -> None:
        for host in self._settling:
            # Zero, so that a later partial write need not fill the rest.
            self.storage.write_zeroes(host, self.block_size)
        self._free += self._settling
        self._settling = []

    def _grant_is_zero(self, host: int, length: int) -> bool:
        # Fresh space is past the end, free space has been zeroed; a block that
        # is there already holds anything.
        return not self.bitmapped or host >= self.storage.size

    # ---- checking ---------------------------------------------------------

    def _structures(self) -> Iterator[Range]:
        """Yield the (start, end) of everything in the file that is no block."""
        raise NotImplementedError

    def _block_end(self) -> int:
        """Return where the last block that is in the file may end."""
        return self.storage.size

    def _block_start(self) -> int | None:
        """Return from where on the file holds blocks; None: from the first one that is there."""
        return None

    def _gaps(self) -> Iterator[Range]:
        """Yield the space for blocks that nothing names."""
        unit = self.block_lead + self.block_size
        pending = (*self._forgotten, *self._settling, *self._free)
        starts = [host - self.block_lead for host in (*self._hosts(), *pending)]
        first = self._block_start()
        if first is None:
            first = min(starts, default=self._block_end())
        taken = [*((start, start + unit) for start in starts), *self._structures()]
        yield from gaps(taken, first, self._block_end())

    def _hosts(self) -> Iterator[int]:
        """Yield where blocks are; those that lead nowhere are left out."""
        for index in range(-(-self.size // self.block_size)):
            try:
                host = self._block(index)
            except DiskFormatError:
                continue
            if host >= 0:
                yield host

    def _give_up(self, index: int) -> None:
        """Take a block that leads nowhere out of the table."""
        self._set_block(index, ABSENT if self.backing_name is not None else ZERO)

    def _move_block(self, index: int) -> None:
        """Give a block a place of its own, and leave the old one to whoever shares it."""
        old = self._block(index)
        bits = self._bits(index) if self.bitmapped else None
        host = self._new_block()
        copy_bytes(self.storage, old, host, self.block_size)
        self.storage.reach(host + self.block_size)
        self._set_block(index, host)
        if self.bitmapped:
            self._new_bits(index)
            fresh = self._bits(index)
            if fresh is not None:
                fresh[:] = b"\xff" * len(fresh) if bits is None else bits
                self._bits_changed(index)


def bit_run(bits: bytearray, start: int, end: int, *, high_first: bool) -> tuple[bool, int]:
    """Return (the bit `start`, the first index from there to `end` where another value stands)."""
    held = _bit(bits, start, high_first)
    at = start + 1
    while at < end and at & 7:
        if _bit(bits, at, high_first) != held:
            return held, at
        at += 1
    if at < end:
        pattern = _ALL_ONES if held else _ALL_ZEROES
        found = pattern.match(bits, at >> 3, -(-end // 8))
        assert found is not None
        at = found.end() << 3
        while at < end and _bit(bits, at, high_first) == held:
            at += 1
    return held, min(at, end)


def set_bits(bits: bytearray, start: int, count: int, *, high_first: bool) -> None:
    """Set `count` bits from `start` on."""
    end = start + count
    while start < end and start & 7:
        bits[start >> 3] |= _mask(start, high_first)
        start += 1
    whole = (end - start) >> 3
    if whole > 0:
        bits[start >> 3 : (start >> 3) + whole] = b"\xff" * whole
        start += whole << 3
    while start < end:
        bits[start >> 3] |= _mask(start, high_first)
        start += 1


def _mask(index: int, high_first: bool) -> int:
    return 0x80 >> (index & 7) if high_first else 1 << (index & 7)


def _bit(bits: bytearray, index: int, high_first: bool) -> bool:
    return bool(bits[index >> 3] & _mask(index, high_first))
