"""Every kind of file system gives back the tree that its own tools put in; wrong bytes are told."""

import random

import pytest

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.fs.contract import FILE_SYSTEMS, open_file_system
from tests.image.fs.made import add_links, ext, make_tree, part, same

MAKERS = {
    "ext4": ext("-t", "ext4"),
    "ext4-1k": ext("-t", "ext4", "-b", "1024"),
    "ext4-32bit": ext("-t", "ext4", "-O", "^64bit,^metadata_csum"),
    "ext4-meta_bg": ext("-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"),
    "ext4-inline": ext("-t", "ext4", "-O", "inline_data", "-I", "256"),
    "ext3": ext("-t", "ext3"),
    "ext2-1k": ext("-t", "ext2", "-b", "1024"),
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
        return found[name].read_bytes()

    return image


@pytest.mark.peer
@pytest.mark.parametrize("name", MAKERS)
def test_the_tree_comes_back(images, tree, name):
    files = open_file_system(part(images(name)))
    assert files is not None
    same(files, tree)
    assert files.label == "made"
    assert files.warnings == []
    with pytest.raises(NotFoundError, match="too many levels"):
        files.read("/loop")
    with pytest.raises(NotFoundError, match="there is no /dangling"):
        files.read("/dangling")
    with pytest.raises(NotFoundError, match="no directory"):
        files.listing("/small")
    with pytest.raises(NotFoundError, match="there is no"):
        files.read("/small/below")
    with pytest.raises(FileSystemError, match="more than"):
        files.read_file("/large", limit=1000)


@pytest.mark.peer
@pytest.mark.parametrize("name", MAKERS)
def test_wrong_bytes_are_told_and_end(images, name):
    """A few hundred damaged copies: nothing but our own errors, and soon."""
    whole = images(name)
    random_ = random.Random(name)
    # Where there is something: zeros in the middle of a file change nothing.
    used = [at for at in range(0, len(whole), 512) if any(whole[at : at + 512])][:400]
    for _ in range(12):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 3, 30))):
            at = random_.choice(used) + random_.randrange(512)
            data[at] = random_.choice((0, 0xFF, random_.randrange(256)))
        read_all(bytes(data))
    for end in (0, 511, 1024, 1500, 5000, len(whole) // 3):
        read_all(whole[:end])


def read_all(data):
    try:
        files = open_file_system(part(data))
    except FileSystemError:
        return
    if files is None:
        return
    count = 0
    try:
        for path, node in files.walk("/"):
            count += 1
            if node.is_file:
                # A wrong size may be anything.
                files.read(path, 0, 2_000_000)
            elif node.is_link:
                files.readlink(path)
            if count > 2000:
                break
    except (FileSystemError, NotFoundError):
        pass


def test_random_bytes_are_no_file_system():
    for seed in range(20):
        assert open_file_system(part(random.Random(seed).randbytes(70_000))) is None
    assert open_file_system(part(b"")) is None


def test_every_kind_is_tried_here():
    assert {maker.partition("-")[0].rstrip("234") for maker in (*MAKERS, "fat")} >= set(
        FILE_SYSTEMS.names()
    )


@pytest.mark.peer
def test_a_journal_that_was_not_replayed_is_told(images, tmp_path):
    data = bytearray(images("ext4"))
    data[1024 + 96] |= 0x4
    files = open_file_system(part(data))
    assert "journal has not been replayed" in files.warnings[0]


@pytest.mark.peer
def test_features_that_are_not_read_are_named(images):
    data = bytearray(images("ext4"))
    data[1024 + 96] |= 0x1
    with pytest.raises(FileSystemError, match="compression"):
        open_file_system(part(data))
