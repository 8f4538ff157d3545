"""The FUSE server over a directory of the host: what a guest sees, and what it cannot do."""

import errno
import fcntl
import os
import stat
import struct
import time

import pytest

from ringzero.share.fuse import wire
from tests.share.fuse.client import client_of

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


def test_times_in_the_guest_s_own_words(client, folder):
    (folder / "a").touch()
    before = time.time()
    bits = wire.SET_MTIME | wire.SET_MTIME_NOW | wire.SET_ATIME | wire.SET_ATIME_NOW
    client.set(client.walk("a"), bits)
    assert (folder / "a").stat().st_mtime >= before - 1


def test_renames_with_flags(client, folder):
    (folder / "a").touch()
    (folder / "s").symlink_to("a")
    root = client.root
    assert refusal(client.rename, root, "s", root, "a", RENAME_NOREPLACE) == errno.EEXIST
    client.rename(root, "s", root, "a", RENAME_EXCHANGE)
    assert (folder / "a").is_symlink()
    assert (folder / "s").is_file()


def test_a_file_without_a_name(client, folder):
    def make(flags):
        body = wire.CREATE.pack(flags, 0o4640, 0, 0) + client.name("/")
        answer = client.call(wire.TMPFILE_OP, client.root, body)
        size = wire.ENTRY.size + wire.ATTRIBUTES.size
        return client.entry(answer), wire.OPEN_OUT.unpack(answer[size:])[0]

    (node, found), handle = make(os.O_RDWR)
    assert (found.links, found.mode) == (0, stat.S_IFREG | 0o4640)
    client.write(node, handle, 0, b"nameless")
    assert os.listdir(folder) == []
    assert client.link(node, client.root, "a")[1].links == 1
    client.release(node, handle)
    assert (folder / "a").read_bytes() == b"nameless"
    assert client.walk("a") == node
    (node, _), handle = make(os.O_WRONLY | os.O_EXCL)
    assert refusal(client.link, node, client.root, "b") == errno.ENOENT
    assert refusal(make, os.O_RDONLY) == errno.EINVAL


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


def test_a_file_that_was_replaced_is_looked_up_again(client, folder):
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


def test_a_write_takes_set_id_bits_away(client):
    node, handle = client.create(client.root, "a", mode=0o6711)
    client.write(node, handle, 0, b"x", wire.WRITE_KILL)
    assert client.stat(node).mode == stat.S_IFREG | 0o711


def test_attributes_and_their_sizes(client, folder):
    (folder / "a").touch()
    node = client.walk("a")
    client.setxattr(node, "user.mine", b"1")
    assert client.getxattr(node, "user.mine", 0) == wire.GETXATTR.pack(1, 0)
    client.setxattr(node, "user.long", b"x" * 500)
    assert refusal(client.getxattr, node, "user.long", 10) == errno.ERANGE


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


# ---- bounds ---------------------------------------------------------------


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
