"""Every kind of file system gives back the tree that its own tools put in; wrong bytes are told."""

import contextlib
import lzma
import os
import random
import time

import pytest

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.fs import erofspack
from ringzero.image.fs.contract import FILE_SYSTEMS, open_file_system
from tests.image.fs.made import (
    Image,
    add_links,
    btrfs,
    erofs,
    ext,
    fat,
    make_tree,
    part,
    same,
    squashfs,
    xfs,
)
from tests.image.fs.make_packed_btrfs import COMPRESSIONS, CONTENT, TARGET
from tests.image.fs.make_packed_erofs import PACKINGS, SHARED, SHARING, content_of
from tests.image.fs.make_packed_erofs import target as erofs_target

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
MAKERS = {
    "ext4": ext("-t", "ext4"),
    "ext4-1k": ext("-t", "ext4", "-b", "1024"),
    "ext4-32bit": ext("-t", "ext4", "-O", "^64bit,^metadata_csum"),
    "ext4-meta_bg": ext("-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"),
    "ext4-inline": ext("-t", "ext4", "-O", "inline_data", "-I", "256"),
    "ext3": ext("-t", "ext3"),
    "ext2-1k": ext("-t", "ext2", "-b", "1024"),
    "fat-32": fat("-F", "32", "-s", "1", size=40 << 20),
    "fat-16": fat("-F", "16", size=16 << 20),
    "fat-12": fat("-F", "12", "-s", "8"),
    "xfs": xfs(),
    "xfs-v4": xfs("-m", "crc=0"),
    "xfs-1k": xfs("-b", "size=1024"),
    "erofs": erofs(),
    "erofs-chunks": erofs("--chunksize=65536"),
    "erofs-lz4": erofs("-zlz4"),
    "erofs-big": erofs("-zlz4hc", "-C65536"),
    "erofs-tails": erofs("-zlz4hc", "-C65536", "-Eztailpacking"),
    "erofs-old": erofs("-zlz4", "-Elegacy-compress"),
    "squashfs": squashfs("-comp", "gzip"),
    "squashfs-xz": squashfs("-comp", "xz"),
    "squashfs-zstd": squashfs("-comp", "zstd"),
    "squashfs-lz4": squashfs("-comp", "lz4", "-b", "16384"),
    "squashfs-lzo": squashfs("-comp", "lzo"),
    "squashfs-plain": squashfs("-noI", "-noD", "-noF"),
    "btrfs": btrfs(),
    "btrfs-4k": btrfs("--nodesize", "4096", "--mixed"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return add_links(make_tree(tmp_path_factory.mktemp("made") / "tree"))


@pytest.fixture(scope="module")
def images(tree, tmp_path_factory):
    """Return the image of each name, made when it is first asked for."""
    folder, found = tmp_path_factory.mktemp("images"), {}

    def image(name):
        if name not in found:
            found[name] = folder / name
            MAKERS[name](tree, found[name])
        return found[name]

    return image


@pytest.mark.peer
@pytest.mark.parametrize("name", MAKERS)
def test_the_tree_comes_back(images, tree, name):
    files = open_file_system(part(Image(images(name))))
    assert files is not None
    plain = name.startswith("fat")
    same(files, tree, links=not plain, modes=not plain and name[:3] != "xfs")
    if not name.startswith(("erofs", "squashfs")):
        assert files.label.lower() == "made"
    assert files.warnings == []
    with pytest.raises(FileSystemError, match="more than"):
        files.read_file("/large", limit=1000)
    with pytest.raises(NotFoundError, match="no directory"):
        files.listing("/small")
    with pytest.raises(NotFoundError, match="there is no"):
        files.read("/small/below")
    if plain:
        assert files.read("/SMALL") == b"hello\n"
        return
    with pytest.raises(NotFoundError, match="too many levels"):
        files.read("/loop")
    with pytest.raises(NotFoundError, match="there is no /dangling"):
        files.read("/dangling")


@pytest.mark.peer
def test_a_packing_of_erofs_that_is_not_read_is_told(tmp_path):
    """None is known with that number, to which one in a file's header is changed."""
    number = 9
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"packs well " * 9000)
    erofs("-zlz4hc", "-C65536")(tmp_path / "tree", tmp_path / "image")
    node = open_file_system(part(Image(tmp_path / "image"))).stat("/f")
    # h_algorithmtype of z_erofs_map_header, which is aligned to eight bytes behind the inode.
    place = -(-node.detail.tail // 8) * 8 + 6
    changed = open_file_system(part(Image(tmp_path / "image", {place: number | number << 4})))
    with pytest.raises(FileSystemError, match="does not know: 9") as told:
        changed.read("/f")
    assert "mkfs.erofs -zlz4hc" in told.value.hint


@pytest.mark.peer
@pytest.mark.parametrize("name", MAKERS)
def test_fuzz_wrong_bytes_are_told_and_end(images, name):
    """Damaged copies: nothing but our own errors, and soon."""
    path = images(name)
    random_ = random.Random(name)
    # Where there is something: zeros in the middle of a file change nothing.
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(4 << 20)
    used = [at for at in range(0, len(first), 512) if any(first[at : at + 512])][:600]
    for _ in range(5 * FUZZ):
        changes = {}
        for _ in range(random_.choice((1, 3, 30, 200))):
            at = random_.choice(used) + random_.randrange(512)
            changes[at] = random_.choice((0, 0xFF, random_.randrange(256)))
        read_all(Image(path, changes))
    for end in (0, 511, 1024, 1500, 5000, size // 3):
        read_all(Image(path, size=end))


def read_all(data):
    try:
        files = open_file_system(part(data))
    except FileSystemError:
        return
    if files is None:
        return
    count, end = 0, time.process_time() + 0.5
    try:
        for path, node in files.walk("/"):
            count += 1
            if node.is_file:
                # A wrong size may be anything.
                files.read(path, 0, 2_000_000)
            elif node.is_link:
                files.readlink(path)
            # Damaged directories may hold one another; each alone has a bound.
            if count > 800 or time.process_time() > end:
                break
    except (FileSystemError, NotFoundError):
        pass


def test_random_bytes_are_no_file_system():
    for seed in range(20):
        assert open_file_system(part(random.Random(seed).randbytes(70_000))) is None
    assert open_file_system(part(b"")) is None


def test_every_kind_is_tried_here():
    assert {name.partition("-")[0].rstrip("234") for name in MAKERS} >= set(FILE_SYSTEMS.names())


@pytest.mark.peer
def test_a_journal_that_was_not_replayed_is_told(images, tmp_path):
    data = bytearray(images("ext4").read_bytes())
    data[1024 + 96] |= 0x4
    files = open_file_system(part(data))
    assert "journal has not been replayed" in files.warnings[0]


@pytest.mark.peer
def test_features_that_are_not_read_are_named(images):
    data = bytearray(images("ext4").read_bytes())
    data[1024 + 96] |= 0x1
    with pytest.raises(FileSystemError, match="compression"):
        open_file_system(part(data))


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_what_linux_packs_in_btrfs(how):
    files = open_file_system(part(lzma.decompress(TARGET.read_bytes())))
    assert files.label == "packed"
    for name, (_, content) in CONTENT.items():
        path = f"/{how}/{name}"
        assert files.read(path) == content, path
        for offset, length in ((1, 5), (4095, 2), (131_071, 3), (190_000, 99_999)):
            assert files.read(path, offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("name", [*PACKINGS, *SHARING])
def test_what_mkfs_packs_in_erofs(name):
    files = open_file_system(part(lzma.decompress(erofs_target(name).read_bytes())))
    packed = content_of(name)
    assert {path for path, node in files.walk("/") if node.is_file} == {f"/{n}" for n in packed}
    for file, content in packed.items():
        path = f"/{file}"
        assert files.read(path) == content, path
        for offset, length in ((1, 5), (4095, 2), (8999, 5200), (190_000, 99_999)):
            assert files.read(path, offset, length) == content[offset : offset + length]


@pytest.mark.parametrize("name", [*PACKINGS, *SHARING])
def test_fuzz_packed_bytes_of_erofs(name):
    damage(lzma.decompress(erofs_target(name).read_bytes()), name, content_of(name))


def test_fragments_are_unpacked_once(monkeypatch):
    """Small files that lie side by side in a piece of the file of fragments."""
    files = open_file_system(part(lzma.decompress(erofs_target("fragments").read_bytes())))
    unpacked = []
    real = erofspack.unpack
    monkeypatch.setattr(erofspack, "unpack", lambda *a: unpacked.append(a) or real(*a))
    for _ in range(3):
        assert files.read("/inline") == SHARED["inline"]
    assert len(unpacked) == 1


def test_fragments_that_lie_nowhere_are_told():
    whole = bytearray(lzma.decompress(erofs_target("fragments").read_bytes()))
    node = open_file_system(part(bytes(whole))).stat("/inline")
    place = -(-node.detail.tail // 8) * 8
    whole[place : place + 8] = (1 << 63 | 1 << 40).to_bytes(8, "little")
    with pytest.raises(FileSystemError, match="a fragment that lies nowhere"):
        open_file_system(part(bytes(whole))).read("/inline")


@pytest.mark.parametrize("how", COMPRESSIONS)
def test_fuzz_packed_bytes_of_btrfs(how):
    whole = lzma.decompress(TARGET.read_bytes())
    damage(whole, how, [f"{how}/{name}" for name in CONTENT])


def damage(whole, seed, names):
    """Read the files called `names` with other bytes in the image: our own errors, and soon."""
    used = [at for at in range(0, len(whole), 512) if any(whole[at : at + 512])]
    random_ = random.Random(seed)
    for _ in range(5 * FUZZ):
        data = bytearray(whole)
        for _ in range(random_.choice((3, 30, 200))):
            data[random_.choice(used) + random_.randrange(512)] = random_.randrange(256)
        try:
            files = open_file_system(part(data))
        except FileSystemError:
            continue
        for name in names if files else ():
            with contextlib.suppress(FileSystemError, NotFoundError):
                # A wrong size may be anything.
                files.read(f"/{name}", 0, 2_000_000)
