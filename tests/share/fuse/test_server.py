"""The FUSE server over a directory of the host: what a guest sees, and what it cannot do."""

import errno
import fcntl
import os
import stat
import struct
import time

import pytest

from ringzero.share.fuse import wire
from tests.share.fuse.client import Client, client_of

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


@pytest.fixture
def folder(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "secret").write_text("outside")
    return shared


@pytest.fixture
def client(folder):
    made = client_of(folder)
    yield made
    made.server.close()


def refusal(action, *arguments, **named):
    with pytest.raises(OSError) as caught:
        action(*arguments, **named)
    return caught.value.errno


# ---- files ----------------------------------------------------------------


def test_contents_both_ways(client, folder):
    (folder / "a").write_bytes(bytes(range(256)) * 1000)
    node, found = client.lookup(client.root, "a")
    assert found.size == 256_000
    assert found.ino == (folder / "a").stat().st_ino
    handle = client.open(node)
    assert client.read(node, handle, 255, 5) == bytes([255, 0, 1, 2, 3])
    assert client.read(node, handle, 255_998, 100) == bytes([254, 255])
    assert client.read(node, handle, 10**9, 100) == b""
    assert client.write(node, handle, 256_000, b"end") == 3
    assert (folder / "a").stat().st_size == 256_003
    node, handle = client.create(client.root, "b")
    client.write(node, handle, 5, b"x" * 100_000)
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
    assert refusal(client.rename, client.root, "s", directory, "b", RENAME_NOREPLACE) == 17
    client.rename(client.root, "s", directory, "b", RENAME_EXCHANGE)
    assert (folder / "d" / "b").is_symlink()
    assert (folder / "s").is_file()
    assert refusal(client.rmdir, client.root, "d") == errno.ENOTEMPTY
    assert refusal(client.rmdir, client.root, "s") == errno.ENOTDIR
    assert refusal(client.unlink, client.root, "d") == errno.EISDIR
    assert refusal(client.link, directory, client.root, "x") == errno.EPERM


def test_holes_space_and_copies(client, folder):
    node, handle = client.create(client.root, "a")
    client.write(node, handle, 1 << 20, b"data")
    seek = wire.LSEEK.pack(handle, 0, os.SEEK_DATA, 0)
    assert wire.NUMBER.unpack(client.call(wire.LSEEK_OP, node, seek)) == (1 << 20,)
    body = wire.FALLOCATE.pack(handle, 0, 4096, 0, 0)
    client.call(wire.FALLOCATE_OP, node, body)
    assert (folder / "a").stat().st_blocks >= 16
    other, second = client.create(client.root, "b")
    body = wire.COPY_RANGE.pack(handle, 1 << 20, other, second, 0, 4, 0)
    assert wire.WRITE_OUT.unpack(client.call(wire.COPY_RANGE_OP, node, body))[0] == 4
    assert (folder / "b").read_bytes() == b"data"
    client.call(wire.FSYNC_OP, node, wire.FSYNC.pack(handle, 0, 0))
    client.call(wire.FSYNCDIR_OP, client.root, wire.FSYNC.pack(0, 0, 0))
    client.call(wire.SYNCFS_OP, client.root, bytes(8))
    assert refusal(client.call, wire.LSEEK_OP, node, wire.LSEEK.pack(handle, 0, 0, 0)) == 22


def test_append_and_truncate(client, folder):
    (folder / "a").write_text("one")
    node = client.walk("a")
    handle = client.open(node, os.O_WRONLY | os.O_APPEND)
    (folder / "a").write_text("host was here")
    client.write(node, handle, 3, b"!")
    assert (folder / "a").read_text() == "host was here!"
    client.open(node, os.O_WRONLY | os.O_TRUNC)
    assert (folder / "a").read_text() == ""


def test_who_only_writes_and_is_alone_goes_past_the_guest_s_cache(client, folder):
    (folder / "a").touch()
    node = client.walk("a")

    def opened(flags):
        answer = client.call(wire.OPEN_OP, node, wire.OPEN.pack(flags, 0))
        number, how, _ = wire.OPEN_OUT.unpack(answer)
        return number, bool(how & wire.OPENED_DIRECT)

    reader, direct = opened(os.O_RDWR)
    assert not direct
    writer, direct = opened(os.O_WRONLY)
    assert not direct
    client.release(node, reader)
    client.release(node, writer)
    assert opened(os.O_WRONLY)[1]


def test_times(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    client.set(node, wire.SET_MTIME, mtime=1234567)
    assert (folder / "a").stat().st_mtime == 1234567
    before = time.time()
    client.set(node, wire.SET_MTIME | wire.SET_MTIME_NOW | wire.SET_ATIME | wire.SET_ATIME_NOW)
    assert (folder / "a").stat().st_mtime >= before - 1
    assert client.set(node, wire.SET_MTIME, mtime=(1 << 64) - 5).mtime == (1 << 64) - 5


# ---- directories ----------------------------------------------------------


@pytest.mark.parametrize("plus", [False, True])
def test_listing(client, folder, plus):
    for number in range(300):
        (folder / f"file {number}").touch()
    (folder / "d").mkdir()
    (folder / "s").symlink_to("d")
    found = client.listdir(client.root, plus=plus)
    assert set(found) == {".", "..", *os.listdir(folder)}
    if plus:
        number, attributes = found["d"]
        assert client.stat(number).ino == attributes.ino == (folder / "d").stat().st_ino
    else:
        assert found["d"] == ((folder / "d").stat().st_ino, 4)
        assert found["s"][1] == 10


def test_a_listing_stays_as_it_was_while_names_come_and_go(client, folder):
    for number in range(100):
        (folder / str(number)).touch()
    answer = client.call(wire.OPENDIR_OP, client.root, wire.OPEN.pack(0, 0))
    handle = wire.OPEN_OUT.unpack(answer)[0]

    def names(offset):
        body = wire.TRANSFER.pack(handle, offset, 1000, 0, 0, 0, 0)
        answer, found, at = client.call(wire.READDIR_OP, client.root, body), [], 0
        while at < len(answer):
            _, following, length, _ = wire.DIRENT.unpack_from(answer, at)
            found.append((following, answer[at + 24 : at + 24 + length]))
            at += 24 + (length + 7 & ~7)
        return found

    first = names(0)
    for name in os.listdir(folder)[:50]:
        (folder / name).unlink()
    (folder / "new").touch()
    again = names(first[-1][0])
    assert not {name for _, name in first} & {name for _, name in again}
    assert names(first[3][0])[0] == first[4]


def test_a_large_directory(client, folder):
    for number in range(5000):
        os.close(os.open(folder / str(number), os.O_CREAT))
    assert len(client.listdir(client.root)) == 5002


# ---- what the host changes ------------------------------------------------


def test_a_file_that_the_host_changed_is_looked_up_again(client, folder):
    (folder / "a").write_text("one")
    node, _ = client.lookup(client.root, "a")
    opened = wire.OPEN.pack(os.O_RDONLY, 0)
    answer = client.call(wire.OPEN_OP, node, opened)
    assert wire.OPEN_OUT.unpack(answer)[1] == wire.OPENED_KEEP_CACHE
    (folder / "a").write_text("two and more")
    assert client.try_call(wire.OPEN_OP, node, opened)[0] == errno.ESTALE
    assert client.lookup(client.root, "a")[1].size == 12
    answer = client.call(wire.OPEN_OP, node, opened)
    assert wire.OPEN_OUT.unpack(answer)[1] == wire.OPENED_KEEP_CACHE
    # It is told once: what comes back without looking gets the file, and no cache.
    (folder / "a").write_text("three")
    assert client.try_call(wire.OPEN_OP, node, opened)[0] == errno.ESTALE
    assert wire.OPEN_OUT.unpack(client.call(wire.OPEN_OP, node, opened))[1] == 0


def test_another_file_of_the_same_name_is_found(client, folder):
    (folder / "a").write_text("old")
    node, _ = client.lookup(client.root, "a")
    (folder / "new").write_text("new")
    (folder / "new").rename(folder / "a")
    assert client.try_call(wire.OPEN_OP, node, wire.OPEN.pack(0, 0))[0] == errno.ESTALE
    other, _ = client.lookup(client.root, "a")
    assert other != node
    assert client.read(other, client.open(other), 0, 10) == b"new"


def test_the_guest_s_own_writes_ask_for_nothing(client):
    node, handle = client.create(client.root, "a")
    client.write(node, handle, 0, b"mine")
    assert client.try_call(wire.OPEN_OP, node, wire.OPEN.pack(0, 0))[0] == 0


# ---- owners ---------------------------------------------------------------


def test_set_id_bits_and_devices_stay_off_the_host(client, folder):
    node, handle = client.create(client.root, "a", mode=0o4755)
    assert client.stat(node).mode == stat.S_IFREG | 0o4755
    assert (folder / "a").stat().st_mode & 0o7000 == 0
    assert client.chmod(node, 0o6711).mode == stat.S_IFREG | 0o6711
    assert (folder / "a").stat().st_mode & 0o7000 == 0
    client.write(node, handle, 0, b"x", wire.WRITE_KILL)
    assert client.stat(node).mode == stat.S_IFREG | 0o711
    client.chmod(node, 0o4711)
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
        other.server.close()


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
    assert client.getxattr(node, "user.mine", 0) == wire.GETXATTR.pack(1, 0)
    assert refusal(client.setxattr, node, "user.mine", b"", os.XATTR_CREATE) == errno.EEXIST
    assert refusal(client.setxattr, node, "user.ringzero.stat", b"1") == errno.EPERM
    assert refusal(client.setxattr, node, "system.posix_acl_access", b"1") == errno.ENOTSUP
    assert refusal(client.getxattr, node, "user.none") == errno.ENODATA
    client.setxattr(node, "user.long", b"x" * 500)
    assert refusal(client.getxattr, node, "user.long", 10) == errno.ERANGE
    client.call(wire.REMOVEXATTR_OP, node, client.name("user.mine"))
    assert "user.mine" not in client.listxattr(node)


# ---- locks ----------------------------------------------------------------


def test_record_locks_of_two_guests_and_the_host(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    handle = client.open(node)
    other = client_of(folder)
    second = other.walk("a")
    theirs = other.open(second)
    lock = fcntl.F_WRLCK
    assert client.lock(wire.SETLK_OP, node, handle, 1, lock, 0, 9)[0] == 0
    assert client.lock(wire.SETLK_OP, node, handle, 2, lock, 5, 20)[0] == errno.EAGAIN
    assert other.lock(wire.SETLK_OP, second, theirs, 1, lock, 0, 0)[0] == errno.EAGAIN
    assert other.lock(wire.SETLKW_OP, second, theirs, 1, lock, 0, 0)[0] == "wait"
    answer = other.lock(wire.GETLK_OP, second, theirs, 1, lock)[1]
    assert wire.LOCK_OUT.unpack(answer)[:3] == (0, 9, lock)
    with (folder / "a").open("r+") as file, pytest.raises(OSError, match="unavailable"):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)
    assert client.lock(wire.SETLK_OP, node, handle, 2, lock, 10, 20)[0] == 0
    client.call(wire.FLUSH_OP, node, wire.FLUSH.pack(handle, 0, 0, 1))
    assert other.lock(wire.SETLKW_OP, second, theirs, 1, lock, 0, 0)[0] == 0
    other.server.close()


def test_whole_file_locks(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    one, two = client.open(node), client.open(node)
    assert client.lock(wire.SETLK_OP, node, one, 1, fcntl.F_WRLCK, flags=1)[0] == 0
    assert client.lock(wire.SETLK_OP, node, two, 2, fcntl.F_RDLCK, flags=1)[0] == errno.EAGAIN
    client.release(node, one)
    assert client.lock(wire.SETLK_OP, node, two, 2, fcntl.F_RDLCK, flags=1)[0] == 0


def test_who_waits_for_a_lock_can_be_interrupted(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    handle = client.open(node)
    client.lock(wire.SETLK_OP, node, handle, 1, fcntl.F_WRLCK)
    assert client.lock(wire.SETLKW_OP, node, handle, 2, fcntl.F_WRLCK)[0] == "wait"
    client.try_call(wire.INTERRUPT_OP, 0, wire.NUMBER.pack(client._unique))
    client._unique -= 4
    assert client.lock(wire.SETLKW_OP, node, handle, 2, fcntl.F_WRLCK)[0] == errno.EINTR


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
    assert refusal(client.listdir, out) == errno.ENOTDIR
    file = client.walk("file")
    assert refusal(client.open, file) == errno.ENXIO
    assert refusal(client.create, client.root, "file") == errno.ENXIO
    assert refusal(client.truncate, file, 0) == errno.EINVAL
    assert client.chmod(file, 0o777)
    client.set(file, wire.SET_MTIME, mtime=5)
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


def test_a_read_only_share(folder):
    (folder / "a").write_text("x")
    (folder / "d").mkdir()
    client = client_of(folder, read_only=True)
    node, root = client.walk("a"), client.root
    before = sorted(os.listdir(folder))
    read_only = errno.EROFS
    assert client.read(node, client.open(node, os.O_RDONLY), 0, 5) == b"x"
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        assert refusal(client.open, node, flags) == read_only
    for action, *arguments in (
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
    body = wire.TRANSFER.pack(client.open(node, os.O_RDONLY), 0, 1, 0, 0, 0, 0)
    assert refusal(client.call, wire.WRITE_OP, node, body, b"x") == read_only
    assert sorted(os.listdir(folder)) == before
    client.server.close()


def test_the_shares_themselves_cannot_be_changed(client, folder):
    assert refusal(client.create, 1, "x") == errno.EROFS
    assert refusal(client.unlink, 1, "0") == errno.EROFS
    assert refusal(client.rename, client.root, "a", 1, "b") == errno.EXDEV
    assert client.readlink(client.lookup(1, "0.at")[0]) == b"/m"
    assert set(client.listdir(1)) == {".", "..", "0", "0.at"}


def test_a_single_file_is_shared(tmp_path):
    (tmp_path / "a").write_text("one")
    client = client_of(tmp_path / "a")
    handle = client.open(client.root)
    client.write(client.root, handle, 0, b"two")
    assert (tmp_path / "a").read_text() == "two"
    assert refusal(client.lookup, client.root, "x") == errno.ENOTDIR
    client.server.close()


# ---- bounds ---------------------------------------------------------------


def test_more_nodes_than_descriptors(folder):
    for number in range(200):
        (folder / f"d{number}").mkdir()
        (folder / f"d{number}" / "a").write_text(str(number))
    client = client_of(folder, limit=16)
    nodes = [client.walk(f"d{number}/a") for number in range(200)]
    before = len(os.listdir("/proc/self/fd"))
    for number, node in enumerate(nodes):
        handle = client.open(node)
        assert client.read(node, handle, 0, 10) == str(number).encode()
        client.release(node, handle)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
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
    client.server.close()


def test_forgotten_nodes_are_given_back(client, folder):
    (folder / "a").touch()
    before = len(os.listdir("/proc/self/fd"))
    node = client.walk("a")
    client.walk("a")
    client.forget(node)
    assert client.stat(node)
    client.forget(node, 100)
    assert refusal(client.stat, node) == errno.ESTALE
    node = client.walk("a")
    body = wire.OPEN.pack(2, 0) + wire.FORGET_ONE.pack(node, 1) + wire.FORGET_ONE.pack(99, 1)
    client.call(wire.BATCH_FORGET_OP, 0, body)
    assert refusal(client.stat, node) == errno.ESTALE
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_guest_that_begins_anew_holds_nothing(client, folder):
    (folder / "a").touch()
    before = len(os.listdir("/proc/self/fd"))
    client.open(client.walk("a"))
    client.call(wire.INIT_OP, 0, struct.pack("<IIII48x", 7, 36, 0, 0))
    assert client.server.session.minor == 36
    assert len(os.listdir("/proc/self/fd")) <= before


def test_versions(folder):
    client = client_of(folder, limit=16)
    newer = client.call(wire.INIT_OP, 0, struct.pack("<IIII48x", 8, 1, 0, 0))
    assert struct.unpack_from("<II", newer) == (7, 38)
    older = struct.pack("<IIII", 7, 30, 0, 0)
    assert refusal(client.call, wire.INIT_OP, 0, older) == errno.EPROTO
    assert refusal(client.call, 99, 1) == errno.ENOSYS
    client.server.close()


# ---- state ----------------------------------------------------------------


def test_a_copy_goes_on_with_what_the_guest_holds(client, folder):
    (folder / "d").mkdir()
    (folder / "d" / "a").write_text("hello")
    (folder / "gone").touch()
    directory, gone = client.walk("d"), client.walk("gone")
    node, _ = client.lookup(directory, "a")
    handle = client.open(node)
    unlinked, lost = client.create(client.root, "unlinked")
    client.unlink(client.root, "unlinked")
    (folder / "gone").unlink()
    saved = client.server.save()
    copy = client_of(folder)
    copy.server.restore(saved)
    assert copy.read(node, handle, 0, 10) == b"hello"
    assert copy.lookup(directory, "a")[0] == node
    assert refusal(copy.stat, gone) == errno.ESTALE
    assert refusal(copy.read, unlinked, lost, 0, 1) == errno.EBADF
    assert copy.create(copy.root, "new")[0] not in (node, directory, gone, unlinked)
    assert copy.server.session.flags == client.server.session.flags
    copy.server.close()


def test_a_share_that_is_taken_away(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    handle = client.open(node)
    client.server.remove(0)
    assert refusal(client.stat, node) == errno.ESTALE
    assert refusal(client.read, node, handle, 0, 1) == errno.EBADF
    assert refusal(client.lookup, 1, "0") == errno.ENOENT


def test_two_clients_of_one_server_type(folder):
    one, two = client_of(folder), client_of(folder)
    node, handle = one.create(one.root, "a")
    one.write(node, handle, 0, b"one")
    other = two.walk("a")
    assert two.read(other, two.open(other), 0, 10) == b"one"
    assert isinstance(one, Client)
    one.server.close()
    two.server.close()
