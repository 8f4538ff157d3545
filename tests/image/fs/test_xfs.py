"""XFS as Linux itself fills it (make_linux_xfs.py), and with what Linux would never write."""

import lzma
import struct

import pytest

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.fs.contract import open_file_system
from tests.image.fs.made import part
from tests.image.fs.make_linux_xfs import DIRECTORIES, SPARSE, TARGET, tree

# struct xfs_dinode of version 5, struct xfs_dsb; of the whole tests' image.
_INODE, _NUMBER, _FORMAT, _SIZE, _COUNT, _FORK = 512, 152, 5, 56, 76, 176
_LOG_START, _LOG_BLOCKS, _BLOCK = 48, 96, 1024
_LOCAL, _EXTENTS, _BTREE = 1, 2, 3
_RECORD = b"\xfe\xed\xba\xbe"


@pytest.fixture(scope="module")
def image():
    return lzma.decompress(TARGET.read_bytes())


@pytest.fixture(scope="module")
def files(image):
    return open_file_system(part(image))


def inode(image, key):
    """Return where an inode lies."""
    for at in range(0, len(image), _INODE):
        if image[at : at + 2] == b"IN" and image[at + _NUMBER : at + _NUMBER + 8] == struct.pack(
            ">Q", key
        ):
            return at
    raise AssertionError(f"no inode {key}")


def test_what_linux_has_made_is_read(files):
    wanted, seen = tree(), {}
    assert (files.label, files.warnings) == ("linux", [])
    for path, node in files.walk():
        content = b""
        if node.is_file:
            content = files.read(path)
        elif node.is_link:
            content = files.readlink(path).encode()
        seen[path] = node.mode & 0o170000, content
    assert set(seen) == set(wanted)
    for path, found in seen.items():
        assert found == wanted[path], path
    assert files.stat("/small").key == files.stat("/again").key


def test_all_forms_are_tried_here(image, files):
    def form(path):
        return image[inode(image, files.stat(path).key) + _FORMAT]

    assert form("/short") == _LOCAL
    assert {form(f"/{name}") for name in DIRECTORIES if name != "short"} == {_EXTENTS}
    assert form("/mixed") == form(f"/{SPARSE}") == _BTREE
    # A block that is the directory, one of its leaf, leaves below a node.
    assert all(image.count(magic) for magic in (b"XDB3", b"\x3d\xf1", b"\x3d\xff", b"\x3e\xbe"))


def log_of(image):
    """Return where the log's blocks lie, of which the first record's header is in the first one."""
    (start,) = struct.unpack_from(">Q", image, _LOG_START)
    (length,) = struct.unpack_from(">I", image, _LOG_BLOCKS)
    shift = image[124]
    (blocks,) = struct.unpack_from(">I", image, 84)
    at = ((start >> shift) * blocks + (start & (1 << shift) - 1)) * _BLOCK
    return range(at, at + length * _BLOCK, 512)


def test_one_that_was_not_shut_down_in_order_is_told(image):
    """The last record says that it was; without it the log would be replayed."""
    places = log_of(image)
    headers = [at for at in places if image[at : at + 4] == _RECORD]
    last = max(headers, key=lambda at: struct.unpack_from(">Q", image, at + 16))
    assert image[last + 512 + 9] & 0x20
    for where, what in ((last + 512 + 9, 0), (last + 43, 2), (last, 0)):
        changed = bytearray(image)
        changed[where] = what
        (warning,) = open_file_system(part(changed)).warnings
        assert "log has not been replayed" in warning
    # A log that lies nowhere costs the warning, and not the files.
    changed = bytearray(image)
    struct.pack_into(">I", changed, _LOG_BLOCKS, 0xFFFFFF)
    broken = open_file_system(part(changed))
    assert "log has not been replayed" in broken.warnings[0]
    assert broken.read("/small") == b"small\n"


def test_hostile_directories_end(image, files):
    """A directory of 4 EiB in extents of 2 GiB each has no end when each block is looked at."""
    at = inode(image, files.stat("/leaf").key)
    changed = bytearray(image)
    struct.pack_into(">Q", changed, at + _SIZE, 1 << 62)
    (count,) = struct.unpack_from(">I", image, at + _COUNT)
    for n in range(count):
        place = at + _FORK + 16 * n
        high, low = struct.unpack_from(">QQ", changed, place)
        struct.pack_into(">QQ", changed, place, high, low | 0x1FFFFF)
    broken = open_file_system(part(changed))
    with pytest.raises(FileSystemError, match=r"a directory of more than|damaged"):
        broken.listing("/leaf")
    # Holes without an end cost nothing.
    changed = bytearray(image)
    struct.pack_into(">Q", changed, at + _SIZE, 1 << 62)
    struct.pack_into(">I", changed, at + _COUNT, 0)
    assert open_file_system(part(changed)).listing("/leaf") == []


def test_hostile_trees_of_extents(image, files):
    at = inode(image, files.stat(f"/{SPARSE}").key) + _FORK
    level, count = struct.unpack_from(">HH", image, at)
    most = (_INODE - _FORK - 4) // 16
    assert level and count
    (first,) = struct.unpack_from(">Q", image, at + 4 + 8 * most)
    for words in ((level, 2, first, first), (level + 1, 1, first), (99, 1, first), (0, 1, first)):
        changed = bytearray(image)
        struct.pack_into(">HH", changed, at, *words[:2])
        for n, block in enumerate(words[2:]):
            struct.pack_into(">Q", changed, at + 4 + 8 * most + 8 * n, block)
        with pytest.raises(FileSystemError, match="tree of extents"):
            open_file_system(part(changed)).read(f"/{SPARSE}")


def test_a_directory_that_holds_itself(image, files):
    """A walk comes to an end, and a path is as long as it is."""
    folder, changed = files.stat("/short"), bytearray(image)
    at = inode(image, files.stat("/").key) + _FORK
    name = image.index(b"short", at, at + 400)
    # Its inode is behind the name, and one byte for its kind.
    struct.pack_into(">I", changed, name + 6, files.stat("/").key)
    broken = open_file_system(part(changed))
    assert broken.stat("/short/short/short/small").key == files.stat("/small").key
    assert len([path for path, _ in broken.walk()]) < 2 * len(tree()) + 100
    assert folder.key
    with pytest.raises(NotFoundError):
        broken.stat("/short" * 500 + "/none")
