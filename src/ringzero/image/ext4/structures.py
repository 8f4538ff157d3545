"""The structures of an ext4 file system as bytes; no I/O.

Names and offsets are those of the kernel's documentation (Documentation/filesystems/ext4), all
numbers little-endian. Checksums of metadata are a feature that is not used here.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping, Sequence

from ringzero.errors import GuestImageError
from ringzero.image.filetypes import FILE_TYPES
from ringzero.records import record

BLOCK = 4096
INODE_SIZE = 256
PER_GROUP = 8 * BLOCK  # blocks: what one block's bitmap has bits for
SUPERBLOCK_AT = 1024
ROOT_INODE, JOURNAL_INODE, FIRST_INODE = 2, 8, 11
DESCRIPTOR = struct.Struct("<IIIHHHHIHHHH")

_MAGIC = 0xEF53
# "Compatible", "incompatible" and "read-only compatible" feature sets of the superblock.
_HAS_JOURNAL, _EXT_ATTR, _DIR_INDEX = 0x4, 0x8, 0x20
_FILETYPE, _EXTENTS = 0x2, 0x40
_SPARSE_SUPER, _LARGE_FILE, _DIR_NLINK, _EXTRA_ISIZE = 0x1, 0x2, 0x20, 0x40
# "Default mount options": attributes of users, and ACLs.
_XATTR_USER, _ACL = 0x4, 0x8
# Bytes of an inode behind the first 128 that have a meaning: up to i_projid.
_EXTRA = 32
_OLD_INODE = 128
_EXTENTS_FLAG = 0x80000
_EXTENT_MAGIC, EXTENTS_IN_INODE = 0xF30A, 4
EXTENTS_IN_BLOCK = (BLOCK - 12) // 12
# Blocks of one extent: of longer ones the length says that they are not written yet.
MAX_EXTENT = 32768
FAST_LINK = 60  # bytes of i_block: a link that is shorter lies there
# More subdirectories are told as 1 (the feature dir_nlink).
_MAX_LINKS = 65000

_XATTR_MAGIC = 0xEA020000
_XATTR_ENTRY = struct.Struct("<BBHIII")
_XATTR_HEADER = 32
# "Attribute name indices": what a name begins with is a number.
_PREFIXES = (
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"system.", 7),
)
_ACLS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
# acl(5) as system calls have it, and as ext4 has it: only these entries have an id there.
_ACL_VERSION, _OWN_ACL_VERSION, _WITH_ID = 2, 1, (0x02, 0x08)

# A run of blocks: the first one, and how many.
Run = tuple[int, int]


@record
class Inode:
    """What an inode says but for its content: `mtime` is in nanoseconds, `links` its names."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    links: int = 1
    size: int = 0


@record
class Shape:
    """The size of a file system: blocks, inodes of each group, and blocks of its journal."""

    blocks: int
    inodes_per_group: int
    journal: int

    @property
    def groups(self) -> int:
        """How many groups of blocks there are."""
        return -(-self.blocks // PER_GROUP)

    @property
    def inodes(self) -> int:
        """How many inodes there are."""
        return self.groups * self.inodes_per_group

    @property
    def descriptor_blocks(self) -> int:
        """The blocks that the descriptors of all groups take."""
        return -(-self.groups * DESCRIPTOR.size // BLOCK)

    @property
    def table_blocks(self) -> int:
        """The blocks of a group's inodes."""
        return self.inodes_per_group * INODE_SIZE // BLOCK

    def heads(self, group: int) -> int:
        """Return how many blocks the copies of superblock and descriptors take in a group."""
        return 1 + self.descriptor_blocks if has_superblock(group) else 0

    def overhead(self, group: int) -> int:
        """Return how many blocks of a group hold no content: heads, two bitmaps, inodes."""
        return self.heads(group) + 2 + self.table_blocks

    def length(self, group: int) -> int:
        """Return how many blocks a group has."""
        return min(PER_GROUP, self.blocks - group * PER_GROUP)


def has_superblock(group: int) -> bool:
    """Whether a group begins with a copy of the superblock: 0, 1, powers of 3, 5, 7."""
    if group <= 1:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def superblock(
    shape: Shape,
    group: int,
    *,
    free_blocks: int,
    free_inodes: int,
    uuid: bytes,
    label: bytes,
    journal: bytes,
) -> bytes:
    """Return the superblock as it stands in a group.

    `journal` is the content of i_block of the journal's inode, of which there is a copy here.
    """
    data = bytearray(1024)
    struct.pack_into(
        "<IIIIIIIIIIIIIHHHHHHIIIIHHIHHIII16s16s",
        data,
        0,
        *(shape.inodes, shape.blocks, 0, free_blocks, free_inodes, 0),
        *(2, 2, PER_GROUP, PER_GROUP, shape.inodes_per_group),  # blocks of 1024 << 2
        *(0, 0, 0, 0xFFFF, _MAGIC, 1, 1, 0),  # no times; clean; go on after errors
        *(0, 0, 0, 1, 0, 0),  # of Linux; revision 1
        *(FIRST_INODE, INODE_SIZE, group),
        _HAS_JOURNAL | _EXT_ATTR | _DIR_INDEX,
        _FILETYPE | _EXTENTS,
        _SPARSE_SUPER | _LARGE_FILE | _DIR_NLINK | _EXTRA_ISIZE,
        uuid,
        label[:16],
    )
    struct.pack_into("<I", data, 0xE0, JOURNAL_INODE)
    # The hash of directories' names: a seed, half MD4, of signed characters.
    data[0xEC:0xFC] = uuid
    data[0xFC] = 1
    # s_jnl_backup_type: the journal's i_block and size are in s_jnl_blocks.
    data[0xFD] = 1
    struct.pack_into("<I", data, 0x100, _XATTR_USER | _ACL)
    struct.pack_into("<60sII", data, 0x10C, journal, 0, shape.journal * BLOCK)
    struct.pack_into("<HHI", data, 0x15C, _EXTRA, _EXTRA, 1)
    return bytes(data)


def journal_superblock(blocks: int, uuid: bytes) -> bytes:
    """Return the first block of an empty journal (journal.rst, "Super Block"); big-endian."""
    head = struct.pack(">IIIIIIIII", 0xC03B3998, 4, 0, BLOCK, blocks, 1, 1, 0, 0)
    # No features; its own UUID is that of the file system, its only user.
    head += bytes(12) + uuid + struct.pack(">I", 1)
    return head.ljust(256, b"\0") + uuid + bytes(BLOCK - 272)


def inode(about: Inode, blocks: int, area: bytes, xattrs: bytes = b"", acl: int = 0) -> bytes:
    """Return an inode.

    `blocks` is how many it has altogether, `area` the 60 bytes of i_block, `xattrs` what
    `inline_xattrs` returns, `acl` the block with attributes that did not fit there.
    """
    seconds, rest = divmod(about.mtime, 10**9)
    seconds = max(-(1 << 31), min(seconds, (1 << 34) - (1 << 31) - 1))
    # Two bits more of the seconds stand below the nanoseconds ("Inode Timestamps").
    extra = rest << 2 | (seconds + (1 << 31)) >> 32
    time = seconds & 0xFFFFFFFF
    links = about.links
    if stat.S_ISDIR(about.mode) and links >= _MAX_LINKS:
        links = 1
    kind = stat.S_IFMT(about.mode)
    extents = kind in (stat.S_IFREG, stat.S_IFDIR) or (
        kind == stat.S_IFLNK and about.size >= FAST_LINK
    )
    data = struct.pack(
        "<HHIIIIIHHIII60sIIII12x",
        *(about.mode & 0xFFFF, about.uid & 0xFFFF, about.size & 0xFFFFFFFF),
        *(time, time, time, 0, about.gid & 0xFFFF, min(links, 0xFFFF)),
        *(blocks * (BLOCK // 512), _EXTENTS_FLAG if extents else 0, 0),
        *(area, 0, acl, about.size >> 32, 0),
    )
    return _completed(bytearray(data), about, time, extra, xattrs)


def _completed(data: bytearray, about: Inode, time: int, extra: int, xattrs: bytes) -> bytes:
    # osd2 of Linux: the upper halves of the owners' numbers.
    struct.pack_into("<HH", data, 0x78, about.uid >> 16, about.gid >> 16)
    data += struct.pack("<HHIIIIIII", _EXTRA, 0, extra, extra, extra, time, extra, 0, 0)
    return bytes(data + xattrs).ljust(INODE_SIZE, b"\0")


def extents_area(runs: Sequence[Run], leaves: Sequence[int] = ()) -> bytes:
    """Return i_block of a file whose content lies in `runs` of blocks.

    Where there are more than EXTENTS_IN_INODE, `leaves` are the blocks with what `extent_leaves`
    returns.
    """
    if not leaves:
        return _extent_node(runs, EXTENTS_IN_INODE, 0).ljust(60, b"\0")
    head = struct.pack("<HHHHI", _EXTENT_MAGIC, len(leaves), EXTENTS_IN_INODE, 1, 0)
    logical, items = 0, b""
    for number, leaf in enumerate(leaves):
        items += struct.pack("<IIHH", logical, leaf, 0, 0)
        begin = number * EXTENTS_IN_BLOCK
        logical += sum(length for _, length in runs[begin : begin + EXTENTS_IN_BLOCK])
    return (head + items).ljust(60, b"\0")


def extent_leaves(runs: Sequence[Run]) -> list[bytes]:
    """Return the blocks that list the runs of a file; none where they fit into its inode."""
    if len(runs) <= EXTENTS_IN_INODE:
        return []
    found, logical = [], 0
    for begin in range(0, len(runs), EXTENTS_IN_BLOCK):
        part = runs[begin : begin + EXTENTS_IN_BLOCK]
        found.append(_extent_node(part, EXTENTS_IN_BLOCK, logical).ljust(BLOCK, b"\0"))
        logical += sum(length for _, length in part)
    return found


def _extent_node(runs: Sequence[Run], most: int, logical: int) -> bytes:
    data = struct.pack("<HHHHI", _EXTENT_MAGIC, len(runs), most, 0, 0)
    for start, length in runs:
        data += struct.pack("<IHHI", logical, length, 0, start)
        logical += length
    return data


def device_area(device: tuple[int, int]) -> bytes:
    """Return i_block of a device, by its major and minor number ("Special Files")."""
    major, minor = device
    if major < 256 and minor < 256:
        return struct.pack("<I", major << 8 | minor).ljust(60, b"\0")
    number = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
    return struct.pack("<II", 0, number & 0xFFFFFFFF).ljust(60, b"\0")


def directory(
    own: int, parent: int, entries: Sequence[tuple[bytes, int, int]], blocks: int = 1
) -> bytes:
    """Return a directory's content, in whole blocks, `blocks` of them at least.

    `entries` are name, inode and mode of each file ("Linear (Classic) Directories").
    """
    listed = [(b".", own, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR), *entries]
    made = list[bytearray]()
    last = 0
    for name, number, mode in listed:
        need = 8 + len(name) + -len(name) % 4
        if not made or len(made[-1]) + need > BLOCK:
            if made:
                _stretch(made[-1], last)
            made.append(bytearray())
        last = len(made[-1])
        head = struct.pack("<IHBB", number, need, len(name), FILE_TYPES[stat.S_IFMT(mode)])
        made[-1] += (head + name).ljust(need, b"\0")
    _stretch(made[-1], last)
    # A block without files has one entry that stands for nothing.
    empty = struct.pack("<IHBB", 0, BLOCK, 0, 0).ljust(BLOCK, b"\0")
    return b"".join(made) + empty * (blocks - len(made))


def _stretch(block: bytearray, last: int) -> None:
    """Have a block's last entry, at the offset `last`, reach to its end."""
    struct.pack_into("<H", block, last + 4, BLOCK - last)
    block += bytes(BLOCK - len(block))


# ---- extended attributes ("Extended Attributes") ------------------------------


def inline_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes | None:
    """Return attributes as they stand in an inode; None where they do not fit there."""
    if not xattrs:
        return b""
    room = INODE_SIZE - _OLD_INODE - _EXTRA
    items = _items(xattrs)
    made = _laid_out(items, room - 4, base=0, hashed=False)
    return None if made is None else struct.pack("<I", _XATTR_MAGIC) + made


def xattr_block(xattrs: Mapping[bytes, bytes], name: str) -> bytes:
    """Return the block with attributes. Raises GuestImageError where they do not fit there."""
    items = _items(xattrs)
    made = _laid_out(items, BLOCK - _XATTR_HEADER, base=_XATTR_HEADER, hashed=True)
    if made is None:
        raise GuestImageError(f"the attributes of {name} are larger than a file of ext4 may have")
    whole = 0
    for _, own, value in items:
        each = _hash(own, value)
        whole = (whole << 16 ^ whole >> 16 ^ each) & 0xFFFFFFFF
    head = struct.pack("<IIII", _XATTR_MAGIC, 1, 1, whole)
    return head.ljust(_XATTR_HEADER, b"\0") + made


def _items(xattrs: Mapping[bytes, bytes]) -> list[tuple[int, bytes, bytes]]:
    """Return (index of the name's beginning, rest of the name, value), in the block's order."""
    found = []
    for name, value in xattrs.items():
        if name in _ACLS:
            found.append((_ACLS[name], b"", _acl(value)))
            continue
        for prefix, index in _PREFIXES:
            if name.startswith(prefix) and len(name) > len(prefix):
                found.append((index, name[len(prefix) :], value))
                break
    return sorted(found, key=lambda item: (item[0], len(item[1]), item[1]))


def _laid_out(
    items: Sequence[tuple[int, bytes, bytes]], room: int, *, base: int, hashed: bool
) -> bytes | None:
    """Return entries from the beginning and values from the end of `room` bytes, or None."""
    entries, values = b"", b""
    for index, name, value in items:
        values = value + bytes(-len(value) % 4) + values
        if len(values) > room:
            return None
        at = base + room - len(values) if value else 0
        each = _hash(name, value) if hashed else 0
        entries += _XATTR_ENTRY.pack(len(name), index, at, 0, len(value), each)
        entries += name + bytes(-len(name) % 4)
    # Four bytes of zeros end the entries.
    if len(entries) + 4 + len(values) > room:
        return None
    return entries + bytes(room - len(entries) - len(values)) + values


def _hash(name: bytes, value: bytes) -> int:
    """Return the hash of an attribute in a block."""
    found = 0
    for byte in name:
        found = (found << 5 ^ found >> 27 ^ byte) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        found = (found << 16 ^ found >> 16 ^ word) & 0xFFFFFFFF
    return found


def _acl(value: bytes) -> bytes:
    """Return an ACL as ext4 keeps it; what makes no sense is kept as it is."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != struct.pack("<I", _ACL_VERSION):
        return value
    made = struct.pack("<I", _OWN_ACL_VERSION)
    for tag, rights, number in struct.iter_unpack("<HHI", value[4:]):
        made += struct.pack("<HH", tag, rights)
        made += struct.pack("<I", number) if tag in _WITH_ID else b""
    return made
