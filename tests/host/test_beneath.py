"""Paths that lead out of a directory, with openat2 and without."""

import errno
import os
import threading

import pytest

from ringzero.host import beneath


@pytest.fixture(params=["openat2", "steps"])
def opening(request):
    if request.param == "steps":
        return beneath.open_by_steps
    if not beneath.has_openat2():
        pytest.skip("no openat2 here")
    return beneath.open_beneath


@pytest.fixture
def root(tmp_path):
    shared = tmp_path / "shared"
    (shared / "a" / "b").mkdir(parents=True)
    (shared / "a" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (shared / "out").symlink_to(tmp_path)
    (shared / "in").symlink_to("a")
    fd = os.open(shared, os.O_PATH)
    yield fd
    os.close(fd)


def test_what_lies_beneath_is_opened(opening, root):
    for path in (b"a/file", b"a//./file"):
        fd = opening(root, path, os.O_RDONLY)
        assert os.read(fd, 100) == b"inside"
        os.close(fd)
    fd = opening(root, b".", os.O_PATH)
    assert os.path.samestat(os.fstat(fd), os.fstat(root))
    os.close(fd)
    # The link itself may be had, and says where it leads.
    fd = opening(root, b"out", os.O_PATH)
    assert os.readlink(b"", dir_fd=fd).startswith(b"/")
    os.close(fd)


@pytest.mark.parametrize(
    "path", [b"..", b"../secret", b"a/../../secret", b"out/secret", b"in/file", b"out/../x"]
)
def test_what_does_not_is_refused(opening, root, path):
    with pytest.raises(OSError) as caught:
        os.close(opening(root, path, os.O_RDONLY))
    assert caught.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR)


def test_a_directory_that_becomes_a_link_and_back(opening, root, tmp_path):
    """Whoever swaps them all the time never has us read what lies outside."""
    shared = tmp_path / "shared"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    (shared / "link").symlink_to(outside)
    over = threading.Event()

    def swap():
        place = os.open(shared, os.O_PATH)
        while not over.is_set():
            beneath.rename(place, b"a", place, b"link", beneath.RENAME_EXCHANGE)
        os.close(place)

    thread = threading.Thread(target=swap)
    thread.start()
    read = 0
    try:
        for _ in range(2000):
            try:
                fd = opening(root, b"a/file", os.O_RDONLY)
            except OSError:
                continue
            assert os.read(fd, 100) == b"inside"
            os.close(fd)
            read += 1
    finally:
        over.set()
        thread.join()
    assert read


def test_descriptors_are_closed_whatever_happens(opening, root):
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"a/none", b"none/x", b"a/file/x", b"..", b"a/b/../../.."):
        with pytest.raises(OSError):
            opening(root, path, os.O_RDONLY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_space_is_allocated_and_names_are_exchanged(root, tmp_path):
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    beneath.fallocate(fd, 0, 0, 8192)
    assert os.fstat(fd).st_size == 8192
    with pytest.raises(OSError):
        beneath.fallocate(fd, 0, 0, 0)
    beneath.syncfs(fd)
    os.close(fd)
    place = os.open(tmp_path, os.O_PATH)
    beneath.rename(place, b"x", place, b"secret", beneath.RENAME_EXCHANGE)
    assert (tmp_path / "x").read_text() == "outside"
    with pytest.raises(FileExistsError):
        beneath.rename(place, b"x", place, b"secret", beneath.RENAME_NOREPLACE)
    os.close(place)
