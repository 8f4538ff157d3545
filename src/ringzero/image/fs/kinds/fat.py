"""FAT12, FAT16 and FAT32 with long names (Microsoft, "FAT: General Overview of On-Disk Format").

A node's key is where its directory entry lies; names are compared without regard to case.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

from ringzero.image.fs.contract import (
    FILE_SYSTEMS,
    MAX_EXTENTS,
    Extent,
    ExtentFileSystem,
    Node,
    peek,
)
from ringzero.image.source import Part
from ringzero.records import record

_ENTRY_SIZE = 32
_READ_ONLY, _VOLUME, _DIRECTORY, _LONG = 0x01, 0x08, 0x10, 0x0F
_LAST_LONG = 0x40
_MAX_LONG = 20
_FREE, _KANJI = 0xE5, 0x05
# How many clusters make which kind; from each number on the links are wider.
_FAT12_END, _FAT16_END = 4085, 65525
# A directory has at most 65,536 entries.
_MAX_DIRECTORY = 65536 * _ENTRY_SIZE
# The table of FAT32 may have 1 GiB: pieces of it are read. That of FAT12 lies in one.
_PIECE = 1 << 14


@record
class _Key:
    """The first cluster (0: the root of FAT12 and FAT16), what it is, its size."""

    cluster: int
    directory: bool
    size: int


@FILE_SYSTEMS.register("fat")
class Fat(ExtentFileSystem):
    name = "FAT"

    @classmethod
    def probe(cls, source: Part) -> bool:
        sector = peek(source, 0, 512)
        if len(sector) < 512 or sector[510:512] != b"\x55\xaa" or sector[0] not in (0xEB, 0xE9):
            return False
        size, cluster, reserved, copies = struct.unpack_from("<HBHB", sector, 11)
        return (
            size in (512, 1024, 2048, 4096)
            and cluster.bit_count() == 1
            and reserved > 0
            and copies in (1, 2)
            and (sector[54:57] == b"FAT" or sector[82:85] == b"FAT")
        )

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        boot = source.read(0, 512)
        sector, per_cluster, reserved, copies, roots, total16, _, fat16 = struct.unpack_from(
            "<HBHBHHBH", boot, 11
        )
        total32, fat32, _, _, root = struct.unpack_from("<IIHHI", boot, 32)
        self._cluster = sector * per_cluster
        fat = (fat16 or fat32) * sector
        self._root_start = reserved * sector + copies * fat
        self._root_size = roots * _ENTRY_SIZE
        root_sectors = -(-self._root_size // sector)
        self._data = self._root_start + root_sectors * sector
        total = (total16 or total32) * sector
        self._clusters = max(0, total - self._data) // self._cluster
        self._bits = 32
        if self._clusters < _FAT16_END and fat16:
            self._bits = 12 if self._clusters < _FAT12_END else 16
        self._root_cluster = root if self._bits == 32 else 0
        if not self._clusters or not fat:
            raise self.damaged("no clusters")
        self._table_start, self._table_size = reserved * sector, fat
        self._piece, self._piece_start = b"", 0
        extended = 38 if self._bits != 32 else 66
        if boot[extended] in (0x28, 0x29):
            serial = int.from_bytes(boot[extended + 1 : extended + 5], "little")
            self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
            text = boot[extended + 5 : extended + 16].decode("cp437").rstrip()
            self.label = "" if text == "NO NAME" else text
        for data in self._raw_entries(self.root()):
            if data[11] & _LONG != _LONG and data[11] & _VOLUME and data[0] != _FREE:
                self.label = data[:11].decode("cp437").rstrip()
                break

    def folded(self, name: bytes) -> bytes:
        text = name.decode("utf-8", "surrogateescape").rstrip(". ").casefold()
        return text.encode("utf-8", "surrogateescape")

    def root(self) -> Node:
        return self.node(_Key(self._root_cluster, True, 0))

    def node(self, key: _Key) -> Node:
        mode = stat.S_IFDIR | 0o755 if key.directory else stat.S_IFREG | 0o644
        return Node(key, mode, key.size)

    def extents(self, node: Node) -> list[Extent]:
        key: _Key = node.key
        if key.directory and not key.cluster:
            return [Extent(0, self._root_size, self._root_start)]
        found: list[Extent] = []
        cluster, offset, limit = key.cluster, 0, _MAX_DIRECTORY if key.directory else key.size
        # A file longer than the file system has a loop in its chain, or a wrong size.
        if limit > self._clusters * self._cluster and not key.directory:
            raise self.damaged(f"a file of {limit} bytes")
        # A bit for each, because a file may have millions.
        seen = bytearray(self._clusters // 8 + 1)
        while 2 <= cluster < self._clusters + 2 and offset < limit:
            byte, bit = (cluster - 2) // 8, 1 << (cluster - 2) % 8
            if seen[byte] & bit:
                raise self.damaged("a chain of clusters that contains itself")
            seen[byte] |= bit
            start = self._data + (cluster - 2) * self._cluster
            if found and start == found[-1].end:
                found[-1] = found[-1]._replace(length=found[-1].length + self._cluster)
            elif len(found) >= MAX_EXTENTS:
                raise self.damaged("a file in too many pieces")
            else:
                found.append(Extent(offset, self._cluster, start))
            offset += self._cluster
            cluster = self._next(cluster)
        if not key.directory and offset < limit:
            raise self.damaged("a file whose chain of clusters ends before it does")
        return found

    def _next(self, cluster: int) -> int:
        """Return the cluster behind another one in a chain."""
        if self._bits == 12:
            pair = self._link(cluster + cluster // 2, 2)
            return pair >> 4 if cluster & 1 else pair & 0xFFF
        width = self._bits // 8
        return self._link(cluster * width, width) & 0x0FFF_FFFF

    def _link(self, at: int, width: int) -> int:
        """Return `width` bytes of the table; 0, which ends a chain, where it has no more."""
        if at + width > self._table_size:
            return 0
        start = at - at % _PIECE
        if not self._piece or start != self._piece_start:
            length = min(_PIECE, self._table_size - start)
            self._piece = self.source.read(self._table_start + start, length)
            self._piece_start = start
        return int.from_bytes(self._piece[at - start : at - start + width], "little")

    def _raw_entries(self, directory: Node) -> Iterator[bytes]:
        for extent in self.extents(directory):
            assert extent.start is not None
            data = self.source.read(extent.start, extent.length)
            for at in range(0, len(data) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
                if data[at] == 0:
                    return
                yield data[at : at + _ENTRY_SIZE]

    def entries(self, directory: Node) -> Iterator[tuple[bytes, _Key]]:
        long: list[bytes] = []
        checksum = expected = 0
        for entry in self._raw_entries(directory):
            if entry[0] == _FREE:
                long = []
            elif entry[11] & 0x3F == _LONG:
                order = entry[0] & 0x3F
                if entry[0] & _LAST_LONG:
                    long, expected, checksum = [], order, entry[13]
                if order != expected or entry[13] != checksum or not 0 < order <= _MAX_LONG:
                    long, expected = [], -1
                    continue
                long.insert(0, entry[1:11] + entry[14:26] + entry[28:32])
                expected -= 1
            elif not entry[11] & _VOLUME:
                name = _short_name(entry)
                if long and expected == 0 and checksum == _checksum(entry[:11]):
                    text = b"".join(long).decode("utf-16-le", "surrogatepass")
                    name = text.partition("\0")[0].encode("utf-8", "surrogatepass")
                long = []
                high, low = struct.unpack_from("<H4xH", entry, 20)
                cluster = (high << 16 if self._bits == 32 else 0) | low
                is_directory = bool(entry[11] & _DIRECTORY)
                size = 0 if is_directory else struct.unpack_from("<I", entry, 28)[0]
                if is_directory and not cluster:
                    # ".." of a directory in the root.
                    cluster = self._root_cluster
                yield name, _Key(cluster, is_directory, size)


def _short_name(entry: bytes) -> bytes:
    first = bytes((_FREE,)) if entry[0] == _KANJI else entry[:1]
    base = (first + entry[1:8]).decode("cp437").rstrip()
    kind = entry[8:11].decode("cp437").rstrip()
    # Windows NT keeps lower case of a short name in two bits.
    base = base.lower() if entry[12] & 0x08 else base
    kind = kind.lower() if entry[12] & 0x10 else kind
    return (f"{base}.{kind}" if kind else base).encode()


def _checksum(name: bytes) -> int:
    total = 0
    for byte in name:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total
