"""EROFS on disk: superblock, inodes, directory entries, extended attributes; no I/O.

fs/erofs/erofs_fs.h of Linux 6.1 and Documentation/filesystems/erofs.rst. All numbers are
little-endian; blocks have 4096 bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence

from ringzero.disk.crc32c import crc32c
from ringzero.image.filetypes import FILE_TYPES

BLOCK = 4096
SUPER_OFFSET = 1024
_MAGIC = 0xE0F5_E1E2
_BLOCK_BITS = 12
# feature_compat: the superblock has a checksum; times of inodes are modification times.
_CHECKSUM, _MTIME = 0x1, 0x2
# struct erofs_super_block
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
# struct erofs_inode_extended
_INODE = struct.Struct("<HHHHQIIIIQII16x")
INODE_SIZE = _INODE.size
# An inode's number (nid) is its place in units of this.
SLOT = 32
_EXTENDED = 1
# i_format, bits 1 to 3: content in whole blocks, or its last part behind the inode.
PLAIN, INLINE = 0, 2
# A file's last part up to this is kept beside its inode: read with it, at no cost of its own.
_INLINE_FILE = 1024
# struct erofs_dirent
_ENTRY = struct.Struct("<QHBB")
# struct erofs_xattr_ibody_header, without shared attributes
_XATTR_HEADER = struct.Struct("<IB7x")
_XATTR_ENTRY = struct.Struct("<BBH")
# Index and prefix; the whole name of an ACL is its prefix.
_XATTR_PREFIXES = (
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
)
_MAX_XATTR_NAME, _MAX_XATTR_VALUE = 0xFF, 0xFFFF
# i_xattr_icount counts units of 4 bytes in 16 bits.
MAX_XATTRS = 4 * 0xFFFF


def superblock(
    root: int, inodes: int, blocks: int, meta_block: int, uuid: bytes, label: bytes
) -> bytes:
    """Return the first block of an image. `root` is the root's nid, below 65,536."""
    packed = _SUPER.pack(
        _MAGIC, 0, _CHECKSUM | _MTIME, _BLOCK_BITS, 0, root, inodes, 0, 0, blocks, meta_block, 0,
        uuid, label, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    whole = bytearray(BLOCK)
    whole[SUPER_OFFSET : SUPER_OFFSET + len(packed)] = packed
    # The kernel's crc32c does not invert its result.
    checksum = crc32c(whole[SUPER_OFFSET:]) ^ 0xFFFF_FFFF
    struct.pack_into("<I", whole, SUPER_OFFSET + 4, checksum)
    return bytes(whole)


def inode(
    layout: int,
    mode: int,
    size: int,
    where: int,
    number: int,
    owner: tuple[int, int],
    mtime: int,
    links: int,
    xattr_size: int,
) -> bytes:
    """Return an extended inode; `where` is its first block, or a device's number.

    `mtime` is in nanoseconds; seconds are unsigned on disk, and the kernel takes them as signed.
    """
    seconds, nanoseconds = divmod(mtime, 1_000_000_000)
    count = (xattr_size - _XATTR_HEADER.size) // 4 + 1 if xattr_size else 0
    return _INODE.pack(
        _EXTENDED | layout << 1, count, mode, 0, size, where, number, *owner,
        seconds & 0xFFFF_FFFF_FFFF_FFFF, nanoseconds, links,
    )  # fmt: skip


def tail_size(size: int, xattr_size: int, *, file: bool) -> int:
    """Return how many of the last of `size` bytes stand behind their inode; `file`: a regular one.

    An inode, its attributes and what stands behind them fit into one block.
    """
    rest = size % BLOCK
    fits = INODE_SIZE + xattr_size + rest <= BLOCK
    return rest if fits and (rest <= _INLINE_FILE or not file) else 0


def device_number(major: int, minor: int) -> int:
    """Return a device's number as the kernel packs it (new_encode_dev)."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def xattrs(attributes: dict[bytes, bytes]) -> bytes:
    """Return extended attributes as they stand behind an inode; kinds it cannot hold are left."""
    entries = b""
    for name, value in sorted(attributes.items()):
        kind = _xattr_kind(name)
        if kind is None:
            continue
        index, rest = kind
        if len(rest) > _MAX_XATTR_NAME or len(value) > _MAX_XATTR_VALUE:
            continue
        entry = _XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        entry += bytes(-len(entry) % 4)
        if _XATTR_HEADER.size + len(entries) + len(entry) > MAX_XATTRS:
            break
        entries += entry
    return _XATTR_HEADER.pack(0, 0) + entries if entries else b""


def _xattr_kind(name: bytes) -> tuple[int, bytes] | None:
    """Return the index of a name's prefix and the rest, or None: there is no place for it."""
    for index, prefix in _XATTR_PREFIXES:
        rest = name.removeprefix(prefix)
        if rest != name and prefix.endswith(b".") == bool(rest):
            return index, rest
    return None


def directory(entries: Sequence[tuple[bytes, int, int]]) -> bytes:
    """Return a directory's content: (name, nid, mode), sorted by name, "." and ".." among them.

    Each block has its own entries, and their names behind them; only the last may be short.
    """
    blocks = []
    for group in _blocks(entries):
        at = _ENTRY.size * len(group)
        head, names = b"", b""
        for name, nid, mode in group:
            head += _ENTRY.pack(nid, at + len(names), FILE_TYPES[stat.S_IFMT(mode)], 0)
            names += name
        blocks.append(head + names)
    return b"".join(block.ljust(BLOCK, b"\0") for block in blocks[:-1]) + blocks[-1]


def directory_size(names: Sequence[bytes]) -> int:
    """Return the length of `directory` for entries of these names."""
    sizes = [
        sum(_ENTRY.size + len(name) for name, _, _ in group)
        for group in _blocks([(name, 0, 0) for name in names])
    ]
    return BLOCK * (len(sizes) - 1) + sizes[-1]


def _blocks(entries: Sequence[tuple[bytes, int, int]]) -> list[list[tuple[bytes, int, int]]]:
    found: list[list[tuple[bytes, int, int]]] = [[]]
    room = BLOCK
    for entry in entries:
        size = _ENTRY.size + len(entry[0])
        if size > room:
            found.append([])
            room = BLOCK
        found[-1].append(entry)
        room -= size
    return found
