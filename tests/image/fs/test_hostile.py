"""File systems that contain themselves, or claim to have no end: a clear error, and soon."""

import re
import struct
import time
import tracemalloc

import pytest

from ringzero.errors import FileSystemError
from ringzero.image.fs.contract import open_file_system
from ringzero.image.fs.kinds import squashfs as squashfs_kind
from tests.image.fs.made import Image, btrfs, ext, fat, part, run

pytestmark = pytest.mark.peer
# Seconds of CPU time; each takes a fraction of one.
_SOON = 10


@pytest.fixture(autouse=True)
def soon():
    began = time.process_time()
    yield
    assert time.process_time() - began < _SOON


def tree(tmp_path, files):
    top = tmp_path / "tree"
    top.mkdir()
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return top


# ---- FAT ------------------------------------------------------------------------


@pytest.fixture(params=[12, 16, 32])
def chained(tmp_path, request):
    """Return an image with a file and a directory of some clusters, and what sets a link."""
    bits = request.param
    size = {12: 1 << 20, 16: 16 << 20, 32: 40 << 20}[bits]
    path = tmp_path / "image"
    files = {"file": b"x" * 20_000} | {f"folder/entry-{n:050}": b"" for n in range(60)}
    fat("-F", str(bits), "-s", "1", size=size)(tree(tmp_path, files), path)
    data = bytearray(path.read_bytes())
    sector, reserved = struct.unpack_from("<HxH", data, 11)

    def link(cluster, to):
        at = sector * reserved
        if bits == 12:
            at += cluster + cluster // 2
            pair = int.from_bytes(data[at : at + 2], "little")
            pair = pair & 0xF | to << 4 if cluster & 1 else pair & 0xF000 | to
            data[at : at + 2] = pair.to_bytes(2, "little")
        else:
            at += cluster * bits // 8
            data[at : at + bits // 8] = to.to_bytes(bits // 8, "little")

    return data, link


@pytest.mark.parametrize("back", [0, 3])
def test_a_fat_chain_that_leads_back(chained, back):
    data, link = chained
    whole = open_file_system(part(data))
    assert len(whole.listing("/folder")) == 60
    for path in ("/file", "/folder"):
        first = whole.stat(path).key.cluster
        link(first + 3, first + back)
    broken = open_file_system(part(data))
    with pytest.raises(FileSystemError, match="chain of clusters that contains itself"):
        broken.read("/file")
    with pytest.raises(FileSystemError, match="chain of clusters that contains itself"):
        broken.listing("/folder")


def test_the_table_of_a_large_fat_is_not_read_whole(tmp_path):
    """One of a terabyte has 512 MiB of links."""
    path = tmp_path / "image"
    fat("-F", "32", "-s", "16", size=600 << 20)(tree(tmp_path, {"file": b""}), path)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
        for at, value in ((32, (1 << 31) - 1), (36, 1 << 20)):
            file.seek(at)
            file.write(struct.pack("<I", value))
    tracemalloc.start()
    try:
        assert open_file_system(part(Image(path))).listing("/") == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


# ---- ext ------------------------------------------------------------------------


def debugfs(path, command):
    return run("debugfs", "-w", "-R", command, path).decode()


@pytest.mark.parametrize("block", ["1024", "65536"])
def test_an_ext_directory_without_an_end(tmp_path, block):
    path = tmp_path / "image"
    files = {"folder/a": b"", "folder/b": b"", "small": b"small"}
    ext("-t", "ext4", "-O", "^has_journal", "-b", block, size=64 << 20)(tree(tmp_path, files), path)
    assert open_file_system(part(Image(path))).listing("/folder") == ["a", "b"]
    debugfs(path, f"set_inode_field /folder size {1 << 60}")
    # Holes behind its block: they list nothing, and are as many as one likes.
    assert open_file_system(part(Image(path))).listing("/folder") == ["a", "b"]
    assert open_file_system(part(Image(path))).read("/small") == b"small"


def node(level, *below, count=None):
    """Return a block of an ext4 extent tree, whose entries lead to the blocks `below`."""
    head = struct.pack("<HHHHI", 0xF30A, len(below) if count is None else count, 340, level, 0)
    return head + b"".join(struct.pack("<IIHH", n, block, 0, 0) for n, block in enumerate(below))


@pytest.mark.parametrize(
    ("inner", "fault"),
    [
        (lambda own: node(1, own), "contains itself"),
        (lambda own: node(4, own), "contains itself"),
        (lambda own: node(9, own), "of no valid form"),
        (lambda own: node(0, count=60_000), "too many entries"),
    ],
)
def test_an_ext_extent_tree_that_contains_itself(tmp_path, inner, fault):
    """Its blocks are those of a file: anybody can write them."""
    path = tmp_path / "image"
    make = ext("-t", "ext4", "-O", "^has_journal", "-b", "4096", size=16 << 20)
    make(tree(tmp_path, {"file": b"x" * 4096, "other": b"y" * 4096}), path)
    own = int(re.search(r"\(0\):(\d+)", debugfs(path, "stat /file"))[1])
    block, offset = re.search(
        r"located at block (\d+), offset (0x[0-9a-f]+)", debugfs(path, "imap /other")
    ).groups()
    data = bytearray(path.read_bytes())
    content = inner(own)
    data[own * 4096 : own * 4096 + len(content)] = content
    area = int(block) * 4096 + int(offset, 16) + 40
    root = node(5, own)
    data[area : area + len(root)] = root
    with pytest.raises(FileSystemError, match=fault):
        open_file_system(part(data)).read("/other")


def test_an_ext2_block_map_that_contains_itself(tmp_path):
    path = tmp_path / "image"
    make = ext("-t", "ext2", "-b", "1024", size=16 << 20)
    make(tree(tmp_path, {"file": b"x" * 1024, "other": b"y" * 400_000}), path)
    own = int(re.search(r"\(0\):(\d+)", debugfs(path, "stat /file"))[1])
    for field, value in (("size", 1 << 31), ("block[IND]", own), ("block[DIND]", own),
                         ("block[TIND]", own)):  # fmt: skip
        debugfs(path, f"set_inode_field /other {field} {value}")
    data = bytearray(path.read_bytes())
    data[own * 1024 : (own + 1) * 1024] = struct.pack("<I", own) * 256
    with pytest.raises(FileSystemError, match="a block map that contains itself"):
        open_file_system(part(data)).read("/other", 0, 4096)


# ---- btrfs ----------------------------------------------------------------------


@pytest.fixture
def inner_nodes(tmp_path):
    """Return a btrfs, and where the inner nodes of its trees of files lie."""
    path = tmp_path / "image"
    files = {f"folder/entry-{n:04}": b"%d" % n for n in range(600)}
    btrfs("--nodesize", "4096", "--mixed")(tree(tmp_path, files), path)
    data = bytearray(path.read_bytes())
    own = data[65536 + 32 : 65536 + 48]
    found = [
        at
        for at in range(0, len(data), 4096)
        if data[at + 32 : at + 48] == own and data[at + 100] and data[at + 88] == 5
    ]
    assert found
    return data, found


def test_a_btrfs_tree_that_contains_itself(inner_nodes):
    data, nodes = inner_nodes
    assert len(open_file_system(part(data)).listing("/folder")) == 600
    for at in nodes:
        (count,) = struct.unpack_from("<I", data, at + 96)
        first = data[at + 101 + 17 : at + 101 + 25]
        for n in range(count):
            place = at + 101 + 33 * n + 17
            data[place : place + 8] = first
    # mkfs.btrfs takes over the host's numbers of inodes: what is looked for may lie in one leaf.
    with pytest.raises(FileSystemError, match=r"a tree that contains itself|inode \d+ is missing"):
        open_file_system(part(data)).listing("/folder")


def test_a_btrfs_node_below_itself(inner_nodes):
    data, nodes = inner_nodes
    for at in nodes:
        place = at + 101 + 17
        data[place : place + 8] = data[at + 48 : at + 56]
    with pytest.raises(FileSystemError, match=r"a tree (that contains itself|of no valid form)"):
        open_file_system(part(data)).listing("/folder")


def test_btrfs_keys_that_do_not_ascend(inner_nodes):
    """What looks for one of them would read the whole tree."""
    data, nodes = inner_nodes
    for at in nodes:
        (count,) = struct.unpack_from("<I", data, at + 96)
        for n in range(count):
            data[at + 101 + 33 * n : at + 101 + 33 * n + 17] = bytes(17)
    with pytest.raises(FileSystemError, match="keys do not ascend"):
        open_file_system(part(data)).listing("/folder")


# ---- SquashFS -------------------------------------------------------------------


def test_xz_that_wants_gigabytes_is_refused(tmp_path, monkeypatch):
    """A dictionary's size is what its header says."""
    monkeypatch.setattr(squashfs_kind, "_MAX_MEMORY", 1 << 16)
    path = tmp_path / "image"
    run("mksquashfs", tree(tmp_path, {"file": b"x" * 300_000}), path, "-quiet", "-no-progress",
        "-comp", "xz")  # fmt: skip
    with pytest.raises(FileSystemError, match="emory usage limit"):
        open_file_system(part(Image(path))).read("/file")
