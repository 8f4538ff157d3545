"""What a guest sees of a shared folder, and what it cannot do, by whichever protocol it asks."""

import errno
import os
import stat
import time

import pytest

from tests.share.fuse import client as fuse
from tests.share.ninep import client as ninep

CLIENTS = {"fuse": fuse.client_of, "9p": ninep.client_of}


@pytest.fixture
def folder(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret").write_text("outside")
    return shared


@pytest.fixture(params=CLIENTS)
def client_of(request):
    """Return what makes a client of a folder; its servers are closed at the end."""
    made = []

    def make(path, **options):
        made.append(CLIENTS[request.param](path, **options))
        return made[-1]

    yield make
    for client in made:
        client.server.close()
        assert client.server.faults == 0, repr(client.server.fault)


@pytest.fixture
def client(client_of, folder):
    return client_of(folder)


def refusal(action, *arguments, **named):
    with pytest.raises(OSError) as caught:
        action(*arguments, **named)
    return caught.value.errno


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# ---- files ----------------------------------------------------------------


def test_contents_both_ways(client, folder):
    (folder / "a").write_bytes(bytes(range(256)) * 1000)
    node, found = client.lookup(client.root, "a")
    assert found.size == 256_000
    handle = client.open(node)
    assert client.read(node, handle, 255, 5) == bytes([255, 0, 1, 2, 3])
    assert client.read(node, handle, 255_998, 100) == bytes([254, 255])
    assert client.read(node, handle, 10**9, 100) == b""
    assert client.write(node, handle, 256_000, b"end") == 3
    assert (folder / "a").stat().st_size == 256_003
    node, handle = client.create(client.root, "b")
    client.write(node, handle, 5, b"x" * 100_000)
    client.sync(node, handle)
    client.release(node, handle)
    assert (folder / "b").read_bytes() == bytes(5) + b"x" * 100_000


def test_an_open_file_outlives_its_name(client, folder):
    node, handle = client.create(client.root, "a")
    client.write(node, handle, 0, b"still here")
    client.unlink(client.root, "a")
    assert client.read(node, handle, 0, 100) == b"still here"
    assert client.stat(node).links == 0
    assert client.truncate(node, 5).size == 5
    assert os.listdir(folder) == []


def test_names(client, folder):
    node, handle = client.create(client.root, "a")
    client.release(node, handle)
    directory, found = client.mkdir(client.root, "d", 0o750)
    assert stat.S_ISDIR(found.mode)
    assert stat.S_IMODE(found.mode) == 0o750
    assert client.link(node, directory, "hard")[1].links == 2
    client.rename(client.root, "a", directory, "b")
    assert sorted(os.listdir(folder / "d")) == ["b", "hard"]
    client.symlink(client.root, "s", "d/b")
    assert client.readlink(client.lookup(client.root, "s")[0]) == b"d/b"
    client.rename(directory, "b", client.root, "f")
    assert refusal(client.rmdir, client.root, "d") == errno.ENOTEMPTY
    assert refusal(client.rmdir, client.root, "s") == errno.ENOTDIR
    assert refusal(client.unlink, client.root, "d") == errno.EISDIR
    assert refusal(client.link, directory, client.root, "x") == errno.EPERM
    assert refusal(client.mkdir, client.root, "d") == errno.EEXIST
    assert refusal(client.create, client.root, "f", os.O_RDWR | os.O_EXCL) == errno.EEXIST


def test_append_and_truncate(client, folder):
    (folder / "a").write_text("one")
    node = client.walk("a")
    handle = client.open(node, os.O_WRONLY | os.O_APPEND)
    (folder / "a").write_text("host was here")
    client.write(node, handle, 3, b"!")
    assert (folder / "a").read_text() == "host was here!"
    client.open(node, os.O_WRONLY | os.O_TRUNC)
    assert (folder / "a").read_text() == ""


def test_times(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    client.set_mtime(node, 1234567)
    assert (folder / "a").stat().st_mtime == 1234567
    before = time.time()
    client.touch(node)
    assert (folder / "a").stat().st_mtime >= before - 1
    assert client.set_mtime(node, (1 << 64) - 5).mtime == (1 << 64) - 5


# ---- directories ----------------------------------------------------------


def test_listing(client, folder):
    for number in range(300):
        (folder / f"file {number}").touch()
    (folder / "d").mkdir()
    (folder / "s").symlink_to("d")
    found = client.listdir(client.root)
    assert set(found) == {".", "..", *os.listdir(folder)}
    assert found["d"] == (client.lookup(client.root, "d")[1].ino, 4)
    assert found["s"][1] == 10


def test_a_large_directory(client, folder):
    for number in range(5000):
        os.close(os.open(folder / str(number), os.O_CREAT))
    assert len(client.listdir(client.root)) == 5002


def test_another_file_of_the_same_name_is_found(client, folder):
    (folder / "a").write_text("old")
    _, old = client.lookup(client.root, "a")
    (folder / "new").write_text("new")
    (folder / "new").rename(folder / "a")
    other, found = client.lookup(client.root, "a")
    assert other
    assert found.ino != old.ino
    assert client.read(other, client.open(other), 0, 10) == b"new"


# ---- owners ---------------------------------------------------------------


def test_set_id_bits_and_devices_stay_off_the_host(client, client_of, folder):
    node, _ = client.create(client.root, "a", mode=0o4755)
    assert client.stat(node).mode == stat.S_IFREG | 0o4755
    assert (folder / "a").stat().st_mode & 0o7000 == 0
    assert client.chmod(node, 0o6711).mode == stat.S_IFREG | 0o6711
    assert (folder / "a").stat().st_mode & 0o7000 == 0
    assert client.chown(node, 5, 5).mode == stat.S_IFREG | 0o711
    for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        name = str(kind)
        made, found = client.mknod(client.root, name, kind | 0o600, 0x105)
        assert (found.mode, found.rdev) == (kind | 0o600, 0x105)
        assert stat.S_ISREG((folder / name).lstat().st_mode)
        assert refusal(client.open, made) == errno.ENXIO
        # Another server finds it so.
        other = client_of(folder)
        assert other.lookup(other.root, name)[1].mode == kind | 0o600


def test_what_the_host_has_is_not_opened_but_as_a_file(client, folder):
    os.mkfifo(folder / "fifo")
    node, found = client.lookup(client.root, "fifo")
    assert stat.S_ISFIFO(found.mode)
    assert refusal(client.open, node, os.O_RDONLY) == errno.ENXIO
    # Who creates what is there already gets no further.
    assert refusal(client.create, client.root, "fifo") == errno.ENXIO


def test_groups_are_inherited_from_a_directory_that_says_so(client):
    directory, _ = client.mkdir(client.root, "d")
    client.chown(directory, 0, 77)
    client.chmod(directory, 0o2775)
    node, _ = client.create(directory, "a")
    assert client.stat(node).gid == 77
    _, found = client.mkdir(directory, "e")
    assert (found.gid, found.mode & 0o7000) == (77, 0o2000)


def test_attributes(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    client.setxattr(node, "user.mine", b"1")
    assert os.getxattr(folder / "a", "user.mine") == b"1"
    client.setxattr(node, "security.capability", b"2")
    client.setxattr(node, "trusted.overlay.opaque", b"y")
    assert client.listxattr(node) == {"user.mine", "security.capability", "trusted.overlay.opaque"}
    assert client.getxattr(node, "security.capability") == b"2"
    assert "security.capability" not in os.listxattr(folder / "a")
    assert refusal(client.setxattr, node, "user.mine", b"x", os.XATTR_CREATE) == errno.EEXIST
    assert refusal(client.setxattr, node, "user.ringzero.stat", b"1") == errno.EPERM
    assert refusal(client.setxattr, node, "system.posix_acl_access", b"1") == errno.ENOTSUP
    assert refusal(client.getxattr, node, "user.none") == errno.ENODATA
    client.setxattr(node, "user.long", b"x" * 500)
    assert client.getxattr(node, "user.long") == b"x" * 500
    client.removexattr(node, "user.mine")
    assert "user.mine" not in client.listxattr(node)


# ---- nothing leads out ----------------------------------------------------


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../secret", "", "/etc/passwd", "x" * 256])
def test_names_that_are_none(client, name):
    number = errno.ENAMETOOLONG if len(name) > 255 else errno.EINVAL
    assert refusal(client.lookup, client.root, name) == number
    assert refusal(client.create, client.root, name) == number
    assert refusal(client.mkdir, client.root, name) == number
    assert refusal(client.unlink, client.root, name) == number


def test_links_are_not_followed(client, folder, tmp_path):
    (folder / "out").symlink_to(tmp_path)
    (folder / "file").symlink_to(tmp_path / "secret")
    out, found = client.lookup(client.root, "out")
    assert stat.S_ISLNK(found.mode)
    assert refusal(client.lookup, out, "secret") == errno.ENOTDIR
    assert refusal(client.create, out, "x") == errno.ENOTDIR
    file = client.walk("file")
    assert refusal(client.open, file) == errno.ENXIO
    assert refusal(client.create, client.root, "file") == errno.ENXIO
    assert refusal(client.truncate, file, 0) == errno.EINVAL
    assert client.chmod(file, 0o777)
    client.set_mtime(file, 5)
    assert (tmp_path / "secret").stat().st_mtime != 5
    assert (tmp_path / "secret").read_text() == "outside"


def test_a_directory_swapped_for_a_link_is_not_followed(client, folder, tmp_path):
    (folder / "d").mkdir()
    node = client.walk("d")
    (folder / "d").rmdir()
    (folder / "d").symlink_to(tmp_path)
    assert refusal(client.lookup, node, "secret") == errno.ENOENT
    assert refusal(client.create, node, "x") == errno.ENOENT


def test_what_was_moved_out_is_refused(client, folder, tmp_path):
    (folder / "d").mkdir()
    (folder / "d" / "a").touch()
    directory = client.walk("d")
    file, _ = client.lookup(directory, "a")
    (folder / "d").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "new").write_text("no")
    assert refusal(client.lookup, directory, "new") == errno.ESTALE
    assert refusal(client.create, directory, "x") == errno.ESTALE
    assert refusal(client.open, file) == errno.ESTALE
    assert refusal(client.stat, file) == errno.ESTALE


def test_the_folder_itself_may_move(client, folder, tmp_path):
    (folder / "a").touch()
    node = client.walk("a")
    folder.rename(tmp_path / "moved")
    assert client.stat(node).size == 0
    assert client.open(node)


def test_a_read_only_share(client_of, folder):
    (folder / "a").write_text("x")
    (folder / "d").mkdir()
    client = client_of(folder, read_only=True)
    node, root = client.walk("a"), client.root
    before = sorted(os.listdir(folder))
    read_only = errno.EROFS
    handle = client.open(node, os.O_RDONLY)
    assert client.read(node, handle, 0, 5) == b"x"
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        assert refusal(client.open, node, flags) == read_only
    for action, *arguments in (
        (client.write, node, handle, 0, b"y"),
        (client.create, root, "b"),
        (client.mkdir, root, "b"),
        (client.mknod, root, "b", stat.S_IFREG),
        (client.symlink, root, "b", "a"),
        (client.link, node, root, "b"),
        (client.unlink, root, "a"),
        (client.rmdir, root, "d"),
        (client.rename, root, "a", root, "b"),
        (client.chmod, node, 0),
        (client.truncate, node, 0),
        (client.setxattr, node, "user.a", b""),
    ):
        assert refusal(action, *arguments) == read_only
    assert sorted(os.listdir(folder)) == before


def test_the_shares_themselves_cannot_be_changed(client):
    shares = client.shares
    assert refusal(client.create, shares, "x") == errno.EROFS
    assert refusal(client.unlink, shares, "0") == errno.EROFS
    assert refusal(client.rename, client.root, "a", shares, "b") == errno.EXDEV
    assert client.readlink(client.lookup(shares, "0.at")[0]) == b"/m"
    assert set(client.listdir(shares)) == {".", "..", "0", "0.at"}


def test_a_single_file_is_shared(client_of, tmp_path):
    (tmp_path / "a").write_text("one")
    client = client_of(tmp_path / "a")
    handle = client.open(client.root)
    client.write(client.root, handle, 0, b"two")
    assert (tmp_path / "a").read_text() == "two"
    assert refusal(client.lookup, client.root, "x") == errno.ENOTDIR


# ---- bounds, state --------------------------------------------------------


def test_more_nodes_than_descriptors(client_of, folder):
    for number in range(200):
        (folder / f"d{number}").mkdir()
        (folder / f"d{number}" / "a").write_text(str(number))
    client = client_of(folder, limit=16)
    nodes = [client.walk(f"d{number}/a") for number in range(200)]
    before = descriptors()
    for number, node in enumerate(nodes):
        handle = client.open(node)
        assert client.read(node, handle, 0, 10) == str(number).encode()
        client.release(node, handle)
    assert descriptors() <= before + 2
    # A name that leads elsewhere now is not taken for the same.
    (folder / "d5").rename(folder / "other")
    (folder / "d5").mkdir()
    (folder / "d5" / "a").write_text("another")
    for node in nodes[100:]:
        client.stat(node)
    assert refusal(client.stat, nodes[5]) == errno.ESTALE
    # Renames by the guest are followed.
    client.rename(client.root, "d7", client.root, "seven")
    for node in nodes[100:]:
        client.stat(node)
    assert client.stat(nodes[7]).size == 1
    # A file that the guest holds outlives its name, held or not.
    client.unlink(client.walk("d9"), "a")
    for node in nodes[100:]:
        client.stat(node)
    assert client.stat(nodes[9]).links == 0


def test_what_is_forgotten_is_given_back(client, folder):
    (folder / "d").mkdir()
    (folder / "d" / "a").touch()
    before = descriptors()
    directory = client.walk("d")
    node, _ = client.lookup(directory, "a")
    assert descriptors() == before + 2
    client.forget(node)
    assert descriptors() == before + 1
    client.forget(directory)
    # By 9p the directory is held for a while: tests/share/ninep/test_server.py.
    assert descriptors() <= before + client.holds


def test_a_copy_goes_on_with_what_the_guest_holds(client, client_of, folder):
    (folder / "d").mkdir()
    (folder / "d" / "a").write_text("hello")
    (folder / "gone").touch()
    directory, gone = client.walk("d"), client.walk("gone")
    node, _ = client.lookup(directory, "a")
    handle = client.open(node)
    place, _ = client.lookup(client.shares, "0.at")
    unlinked, lost = client.create(client.root, "unlinked")
    client.unlink(client.root, "unlinked")
    (folder / "gone").unlink()
    copy = client_of(folder)
    copy.server.restore(client.server.save())
    assert copy.read(node, handle, 0, 10) == b"hello"
    assert copy.lookup(directory, "a")[1].size == 5
    assert refusal(copy.stat, gone) in (errno.ESTALE, errno.EBADF)
    assert refusal(copy.read, unlinked, lost, 0, 1) == errno.EBADF
    assert copy.create(copy.root, "new")[0] not in (node, directory, gone, unlinked, place)
    assert copy.server.save() == copy.server.save()


def test_a_share_that_is_taken_away(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    handle = client.open(node)
    client.server.remove(0)
    assert refusal(client.stat, node) in (errno.ESTALE, errno.EBADF)
    assert refusal(client.read, node, handle, 0, 1) == errno.EBADF
    assert refusal(client.lookup, client.shares, "0") == errno.ENOENT


def test_a_guest_that_begins_anew_holds_nothing(client, folder):
    (folder / "a").touch()
    before = descriptors()
    client.open(client.walk("a"))
    client.server.reset()
    assert descriptors() <= before


def test_two_guests(client, client_of, folder):
    two = client_of(folder)
    node, handle = client.create(client.root, "a")
    client.write(node, handle, 0, b"one")
    other = two.walk("a")
    assert two.read(other, two.open(other), 0, 10) == b"one"
