"""The qcow2 header: fields, feature bits, extensions (QEMU docs/interop/qcow2.txt, "Header")."""

from __future__ import annotations

import struct

from ringzero.disk.formatnames import format_name, qemu_format_name
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.records import field, mutable_record

MAGIC = b"QFI\xfb"

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
V2_LENGTH = _V2.size  # 72
V3_LENGTH = 104
# With the compression type and its padding.
FULL_LENGTH = 112

DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2

LAZY_REFCOUNTS = 1 << 0

BITMAPS = 1 << 0
RAW_EXTERNAL = 1 << 1
KNOWN_AUTOCLEAR = BITMAPS | RAW_EXTERNAL

_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_FEATURE_NAMES = 0x6803F857
_EXT_BITMAPS = 0x23852875
_EXT_ENCRYPTION = 0x0537BE77
_EXT_DATA_FILE = 0x44415441

_FEATURE_NAME = struct.Struct(">BB46s")
_FEATURE_NAMES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)

COMPRESSIONS = ("zlib", "zstd")
ENCRYPTIONS = {1: "AES (legacy)", 2: "LUKS"}

# QEMU's own bounds (block/qcow2.h): an L1 table of 32 MiB, a refcount table
# of 8 MiB, 65536 snapshots. They keep a hostile header from taking memory.
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
# "The length must not exceed 1023 bytes."
MAX_BACKING_NAME = 1023

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21


@mutable_record
class BitmapsExtension:
    """Where the bitmap directory is ("Bitmaps extension")."""

    count: int
    directory_size: int
    directory_offset: int


@mutable_record
class Header:
    """All of the header cluster. Sizes and offsets in bytes, `l1_size` in entries."""

    version: int = 3
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = 0
    l1_size: int = 0
    l1_offset: int = 0
    reftable_offset: int = 0
    reftable_clusters: int = 0
    snapshot_count: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: str = "zlib"
    backing_name: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    bitmaps: BitmapsExtension | None = None
    # Extensions that are not known here, kept as they are.
    others: list[tuple[int, bytes]] = field(default_factory=list)
    # The image's own names for feature bits, to name what is refused.
    feature_names: bytes = b""

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        return 1 << self.refcount_order

    @property
    def extended(self) -> bool:
        """Whether L2 entries have 128 bits and clusters have 32 subclusters."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_bits(self) -> int:
        """The logarithm of the number of L2 entries in a table."""
        return self.cluster_bits - (4 if self.extended else 3)

    def l1_needed(self, size: int) -> int:
        """Return how many L1 entries a disk of `size` bytes takes."""
        return -(-size // (1 << (self.l2_bits + self.cluster_bits)))

    # ---- reading ----------------------------------------------------------

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Read and verify the header; DiskFormatError, DiskUnsupportedError."""
        head = storage.read(0, FULL_LENGTH)
        fields = _V2.unpack_from(head)
        version = fields[1]
        if fields[0] != MAGIC:
            raise DiskFormatError(f"{storage.name} is not a qcow2 image", path=storage.name)
        if version not in (2, 3):
            raise DiskUnsupportedError(
                f"{storage.name}: qcow2 version {version} is not known", path=storage.name
            )
        header = cls(
            version=version,
            cluster_bits=fields[4],
            size=fields[5],
            crypt_method=fields[6],
            l1_size=fields[7],
            l1_offset=fields[8],
            reftable_offset=fields[9],
            reftable_clusters=fields[10],
            snapshot_count=fields[11],
            snapshots_offset=fields[12],
        )
        length = V2_LENGTH
        if version == 3:
            length = header._read_version_3(head, storage)
        header._verify(storage)
        # Some writers count bytes; a guest has whole sectors, as in QEMU those that are full.
        header.size = header.size // 512 * 512
        header._read_extensions(storage, length, fields[2] or header.cluster_size)
        header._refuse_features(storage)
        if fields[2]:
            header._read_backing_name(storage, fields[2], fields[3])
        return header

    def _read_version_3(self, head: bytes, storage: Storage) -> int:
        (
            self.incompatible,
            self.compatible,
            self.autoclear,
            self.refcount_order,
            length,
        ) = _V3.unpack_from(head, V2_LENGTH)
        if length < V3_LENGTH or length % 8:
            raise _bad(storage, "header_length", length, "at least 104, a multiple of 8")
        number = head[V3_LENGTH] if length > V3_LENGTH else 0
        if self.incompatible & COMPRESSION_TYPE or number:
            if number >= len(COMPRESSIONS):
                raise DiskUnsupportedError(
                    f"{storage.name}: compression type {number} is not known", path=storage.name
                )
            if bool(self.incompatible & COMPRESSION_TYPE) != bool(number):
                raise _bad(storage, "compression_type", number, "0 without its feature bit")
            self.compression = COMPRESSIONS[number]
        return int(length)

    def _verify(self, storage: Storage) -> None:
        if not MIN_CLUSTER_BITS <= self.cluster_bits <= MAX_CLUSTER_BITS:
            raise _bad(storage, "cluster_bits", self.cluster_bits, "9 to 21")
        if self.refcount_order > 6:
            raise _bad(storage, "refcount_order", self.refcount_order, "0 to 6")
        if self.extended and self.cluster_bits < 14:
            raise _bad(storage, "cluster_bits", self.cluster_bits, "14 to 21 with extended L2")
        if self.size > 1 << 62:
            raise _bad(storage, "size", self.size, "less than 4 EiB")
        if self.l1_size * 8 > MAX_L1_BYTES:
            raise _bad(storage, "l1_size", self.l1_size, f"at most {MAX_L1_BYTES // 8}")
        if self.l1_size < self.l1_needed(self.size):
            raise _bad(storage, "l1_size", self.l1_size, f"at least {self.l1_needed(self.size)}")
        if self.reftable_clusters << self.cluster_bits > MAX_REFTABLE_BYTES:
            raise _bad(storage, "refcount_table_clusters", self.reftable_clusters, "8 MiB at most")
        if self.snapshot_count > MAX_SNAPSHOTS:
            raise _bad(storage, "nb_snapshots", self.snapshot_count, f"at most {MAX_SNAPSHOTS}")
        offsets = (
            ("l1_table_offset", self.l1_offset if self.l1_size else 0, self.l1_size * 8),
            ("refcount_table_offset", self.reftable_offset, 1),
            ("snapshots_offset", self.snapshots_offset if self.snapshot_count else 0, 0),
        )
        for name, offset, length in offsets:
            if offset % self.cluster_size or offset + length > storage.size:
                raise _bad(storage, name, offset, "an aligned offset in the file")

    def _read_extensions(self, storage: Storage, start: int, end: int) -> None:
        if not start <= end <= self.cluster_size:
            raise _bad(storage, "backing_file_offset", end, "inside the first cluster")
        area = storage.read(start, end - start)
        at = 0
        while at + 8 <= len(area):
            kind, length = struct.unpack_from(">II", area, at)
            at += 8
            if kind == _EXT_END:
                return
            if length > len(area) - at:
                raise _bad(storage, f"length of extension {kind:#x}", length, "inside the header")
            data = area[at : at + length]
            at += -(-length // 8) * 8
            self._take_extension(storage, kind, data)

    def _take_extension(self, storage: Storage, kind: int, data: bytes) -> None:
        if kind == _EXT_BACKING_FORMAT:
            self.backing_format = format_name(data.decode("utf-8", "replace"))
        elif kind == _EXT_DATA_FILE:
            self.data_file = data.decode("utf-8", "surrogateescape")
        elif kind == _EXT_BITMAPS:
            # Without the autoclear bit, a program that does not know bitmaps
            # has written to the image and they are no longer true.
            if self.autoclear & BITMAPS:
                if len(data) != 24:
                    raise _bad(storage, "length of the bitmaps extension", len(data), "24")
                count, _, size, offset = struct.unpack(">IIQQ", data)
                self.bitmaps = BitmapsExtension(count, size, offset)
        elif kind == _EXT_FEATURE_NAMES:
            self.feature_names = data
        else:
            self.others.append((kind, data))

    def _refuse_features(self, storage: Storage) -> None:
        unknown = self.incompatible & ~KNOWN_INCOMPATIBLE
        if unknown:
            names = {
                bit: name.rstrip(b"\0").decode("utf-8", "replace")
                for kind, bit, name in _FEATURE_NAME.iter_unpack(
                    self.feature_names[: len(self.feature_names) // 48 * 48]
                )
                if kind == 0
            }
            bits = [bit for bit in range(64) if unknown >> bit & 1]
            listed = ", ".join(names.get(bit, f"unknown feature bit {bit}") for bit in bits)
            raise DiskUnsupportedError(
                f"{storage.name} needs a feature that ringzero does not have: {listed}",
                hint="convert it with the program that made it",
                path=storage.name,
            )
        if self.crypt_method:
            name = ENCRYPTIONS.get(self.crypt_method, f"method {self.crypt_method}")
            raise DiskUnsupportedError(
                f"{storage.name} is encrypted with {name}, which ringzero does not read",
                hint="decrypt it with qemu-img convert",
                path=storage.name,
            )

    def _read_backing_name(self, storage: Storage, offset: int, length: int) -> None:
        if length > MAX_BACKING_NAME or offset + length > self.cluster_size:
            raise _bad(storage, "backing_file_size", length, "at most 1023, in the first cluster")
        name = storage.read(offset, length)
        self.backing_name = name.decode("utf-8", "surrogateescape") or None

    # ---- writing ----------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the header cluster; DiskFormatError when it does not fit."""
        extensions = self._extensions()
        length = V2_LENGTH if self.version == 2 else FULL_LENGTH
        name = (self.backing_name or "").encode("utf-8", "surrogateescape")
        name_offset = length + len(extensions) if name else 0
        fixed = _V2.pack(
            MAGIC,
            self.version,
            name_offset,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.snapshot_count,
            self.snapshots_offset,
        )
        if self.version == 3:
            fixed += _V3.pack(
                self.incompatible, self.compatible, self.autoclear, self.refcount_order, length
            )
            fixed += bytes([COMPRESSIONS.index(self.compression)]) + bytes(7)
        whole = fixed + extensions + name
        if len(whole) > self.cluster_size or len(name) > MAX_BACKING_NAME:
            raise DiskFormatError(
                "the backing file's name does not fit into the header",
                hint="use a shorter or relative name, or larger clusters",
            )
        return whole.ljust(self.cluster_size, b"\0")

    def _extensions(self) -> bytes:
        found: list[tuple[int, bytes]] = []
        if self.backing_name and self.backing_format:
            name = qemu_format_name(self.backing_format)
            found.append((_EXT_BACKING_FORMAT, name.encode()))
        if self.data_file:
            found.append((_EXT_DATA_FILE, self.data_file.encode("utf-8", "surrogateescape")))
        if self.version == 3:
            table = b"".join(
                _FEATURE_NAME.pack(kind, bit, name.encode()) for kind, bit, name in _FEATURE_NAMES
            )
            # The table is a courtesy; the smallest cluster has no room for it and a name.
            if self.cluster_size > 512:
                found.append((_EXT_FEATURE_NAMES, table))
        if self.bitmaps:
            bitmaps = self.bitmaps
            data = struct.pack(
                ">IIQQ", bitmaps.count, 0, bitmaps.directory_size, bitmaps.directory_offset
            )
            found.append((_EXT_BITMAPS, data))
        found += self.others
        packed = b"".join(
            struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")
            for kind, data in found
        )
        return packed + bytes(8)

    def write(self, storage: Storage) -> None:
        """Write the header cluster. All that changes while a disk is in use is in one sector."""
        storage.write(0, self.to_bytes())


def _bad(storage: Storage, name: str, seen: object, expected: str) -> DiskFormatError:
    return DiskFormatError(
        f"{storage.name}: {name} is {seen}, expected {expected}",
        path=storage.name,
        field=name,
        seen=seen,
        expected=expected,
    )
