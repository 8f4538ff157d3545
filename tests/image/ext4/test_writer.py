"""ext4 as it is written: e2fsck finds no fault, debugfs and our reader find what went in."""

import random
import stat
import struct
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError, InvalidValueError
from ringzero.image.ext4 import structures, writer
from ringzero.image.fs.contract import open_file_system
from ringzero.image.layers.tree import Node
from ringzero.units import MIB
from tests.image.fs.made import Image, part, tool

pytestmark = pytest.mark.peer
UUID = bytes(range(16))


def folder(children=None, mode=0o755, **more):
    node = Node(stat.S_IFDIR | mode, **more)
    node.children = children or {}
    return node


def regular(data=b"", mode=0o644, xattrs=None, **more):
    node = Node(stat.S_IFREG | mode, **more)
    node.size, node.tail, node.xattrs = len(data), data, xattrs or {}
    return node


def link(target):
    node = Node(stat.S_IFLNK | 0o777)
    node.size, node.target = len(target), target
    return node


def device(kind, number):
    node = Node(kind | 0o600)
    node.device = number
    return node


def write(root, path, size, content=lambda node: [node.tail], at=0):
    with path.open("wb") as file:
        file.truncate(at + size)
        writer.write(root, size, file, at=at, uuid=UUID, label="root", content=content)
    return path


def check(path):
    done = subprocess.run(
        [tool("e2fsck"), "-fn", path], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def debugfs(path, command):
    done = subprocess.run([tool("debugfs"), "-R", command, path], capture_output=True, text=True)
    return done.stdout


def opened(path):
    return open_file_system(part(Image(path)))


def test_all_kinds_of_files(tmp_path):
    both = regular(b"x" * 5000, mode=0o4755, uid=70000, gid=1 << 30, mtime=1700000000_123456789)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, 7, number)
        for tag, number in ((1, 0xFFFFFFFF), (2, 1000), (4, 0xFFFFFFFF), (0x10, 0xFFFFFFFF),
                            (0x20, 0xFFFFFFFF))
    )  # fmt: skip
    many = {f"user.name{n:02}".encode(): b"value" * n for n in range(20)}
    root = folder(
        {
            b"etc": folder({b"deep": folder({b"er": folder()}), b"again": both}, mode=0o700),
            b"first": both,
            b"empty": regular(),
            b"block": regular(b"b" * 4096),
            b"large": regular(bytes(range(256)) * 20000),
            b"old": regular(b"o", mtime=-1_500_000_000 * 10**9),
            b"late": regular(b"l", mtime=5_000_000_000 * 10**9),
            b"short": link(b"etc"),
            b"long": link(b"d/" * 100 + b"end"),
            b"exactly": link(b"e" * 60),
            b"just": link(b"j" * 59),
            b"null": device(stat.S_IFCHR, (1, 3)),
            b"big": device(stat.S_IFBLK, (259, 70000)),
            b"fifo": device(stat.S_IFIFO, (0, 0)),
            b"ping": regular(b"p", xattrs={b"security.capability": b"\1\0\0\2" + bytes(16)}),
            b"listed": regular(b"a", xattrs={b"system.posix_acl_access": acl}),
            b"described": regular(b"d", xattrs=many),
            "näme".encode(): regular(b"n"),
        }
    )
    path = write(root, tmp_path / "fs", 64 * MIB)
    assert "root: " in check(path)
    found = opened(path)
    assert (found.label, found.name) == ("root", "ext")
    assert found.read_file("/large", limit=1 << 24) == bytes(range(256)) * 20000
    assert found.readlink("/long") == "d/" * 100 + "end"
    assert [found.readlink(f"/{n}") for n in ("exactly", "just")] == ["e" * 60, "j" * 59]
    assert sorted(found.listing("/")) == sorted(
        [name.decode() for name in root.children]
    )  # with lost+found
    assert "lost+found" in found.listing("/")
    told = debugfs(path, "stat first")
    for text in ("Mode:  04755", "User: 70000", "Group: 1073741824", "Links: 2", "Size: 5000",
                 "mtime: 0x6553f100:1d6f3454", "Inode: "):  # fmt: skip
        assert text in told
    assert "Links: 3" in debugfs(path, "stat etc/deep")
    assert "Device major/minor number: 259:70000" in debugfs(path, "stat big")
    assert "Device major/minor number: 01:03" in debugfs(path, "stat null")
    assert "security.capability (20)" in debugfs(path, "ea_list ping")
    assert debugfs(path, "ea_list described").count("user.name") == 20
    assert 'user.name03 (15) = "valuevaluevalue"' in debugfs(path, "ea_list described")
    assert "system.posix_acl_access" in debugfs(path, "ea_list listed")
    assert debugfs(path, "stat late").count("2128") and debugfs(path, "stat old").count("1922")


def test_it_is_the_same_each_time_and_lies_where_it_should(tmp_path):
    roots = [folder({b"a": folder({b"b": regular(b"b")})}) for _ in range(2)]
    one, two = (write(r, tmp_path / str(n), 8 * MIB) for n, r in enumerate(roots))
    assert one.read_bytes() == two.read_bytes()
    moved = write(roots[0], tmp_path / "moved", 8 * MIB, at=3 * MIB)
    assert moved.read_bytes()[3 * MIB :] == one.read_bytes()


def test_many_files_in_one_directory(tmp_path):
    names = [b"%d-%s" % (n, b"x" * (n % 200)) for n in range(3000)]
    path = write(folder({b"d": folder({n: regular() for n in names})}), tmp_path / "fs", 32 * MIB)
    check(path)
    assert len(opened(path).listing("/d")) == 3000


def test_more_directories_than_links_can_count_are_told_as_one():
    for links, told in ((64_999, 64_999), (65_000, 1), (70_000, 1)):
        made = structures.inode(structures.Inode(stat.S_IFDIR, links=links), 1, bytes(60))
        assert struct.unpack_from("<H", made, 0x1A)[0] == told


def test_content_over_many_groups(tmp_path):
    """Beyond the four extents of an inode: a file of 560 MiB, most of it holes."""
    node = regular()
    node.size = 560 * MIB
    piece = b"block" * 100_000
    asked = []

    def content(which):
        if which is not node:
            return [which.tail]
        asked.append(which)
        return [bytes(28 * MIB)] * 19 + [bytes(28 * MIB - len(piece)), piece]

    size = writer.least_size(folder({b"f": node}))
    # Zeros are not written: the file stays sparse.
    path = write(folder({b"f": node}), tmp_path / "fs", size, content=content)
    assert len(asked) == 1
    found = opened(path)
    assert found.read("/f", 560 * MIB - len(piece), len(piece)) == piece
    assert path.stat().st_blocks * 512 < 100 * MIB
    check(path)


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(InvalidValueError, match="do not fit"):
        write(folder({b"f": regular(b"x" * (8 * MIB))}), tmp_path / "fs", 8 * MIB)
    with pytest.raises(InvalidValueError, match="cannot have"):
        write(folder(), tmp_path / "fs", 1000)
    huge = {b"user.a": bytes(5000)}
    with pytest.raises(GuestImageError, match="attributes of f are larger"):
        write(folder({b"f": regular(xattrs=huge)}), tmp_path / "fs", 16 * MIB)
    for content in ([b"too long"], [b""]):
        with pytest.raises(GuestImageError, match="a file of the image"):
            write(
                folder({b"f": regular(b"abc")}), tmp_path / "fs", 16 * MIB, lambda _, c=content: c
            )


def test_the_least_size_is_enough(tmp_path):
    dice = random.Random(4)
    for count in (0, 10, 3000):
        files = {b"%d" % n: regular(bytes(dice.randrange(30_000))) for n in range(count)}
        root = folder({b"d": folder(files)})
        check(write(root, tmp_path / "fs", writer.least_size(root)))


@pytest.mark.parametrize("blocks", [32768 * 3 + 10, 32768 * 2 + 700, 32768 * 26])
def test_odd_sizes(tmp_path, blocks):
    check(write(folder({b"a": regular(b"a")}), tmp_path / "fs", blocks * structures.BLOCK))


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.bc", b"trusted.x", b"security.y", b"other.z"]),
    st.binary(max_size=120),
    max_size=4,
)
FILES = st.builds(
    lambda data, xattrs, uid, time: regular(data, xattrs=xattrs, uid=uid, mtime=time),
    st.binary(max_size=300) | st.integers(0, 20_000).map(bytes),
    XATTRS,
    st.integers(0, (1 << 32) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
LINKS = st.binary(min_size=1, max_size=120).filter(lambda t: b"\0" not in t).map(link)
TREES = st.recursive(
    FILES | LINKS,
    lambda inner: st.dictionaries(NAMES, inner, max_size=6).map(folder),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, TREES, max_size=6))
def test_any_tree(tmp_path_factory, children):
    place = tmp_path_factory.mktemp("ext4")
    root = folder(children)
    path = write(root, place / "fs", 8 * MIB)
    check(path)
    found = opened(path)
    nodes = {name: found.node(key) for name, key in found.entries(found.root())}
    for name, node in children.items():
        if stat.S_ISREG(node.mode):
            assert found.content(nodes[name], 0, node.size) == node.tail
        elif node.children is None:
            assert found.content(nodes[name], 0, node.size) == node.target
    path.unlink()
