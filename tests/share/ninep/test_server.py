"""The 9p server: what only this protocol has. The rest: tests/share/test_contract.py."""

import errno
import fcntl
import os
import struct

import pytest

from ringzero.share.ninep import session, wire
from ringzero.share.ninep.server import MAX_MESSAGE, NinepServer
from tests.share.ninep.client import Client, client_of


@pytest.fixture
def client(tmp_path):
    made = client_of(tmp_path)
    yield made
    made.server.close()


def test_versions(client, tmp_path):
    def ask(size, name):
        answer = client.call(wire.TVERSION, wire.U32.pack(size) + wire.string(name))
        return wire.U32.unpack_from(answer)[0], answer[6:]

    assert ask(1 << 20, wire.VERSION) == (MAX_MESSAGE, wire.VERSION)
    # A guest that begins anew holds nothing.
    assert client.server.session.fids == {}
    assert ask(8192, b"9P2000.u") == (8192, b"unknown")
    assert client.try_call(wire.STATFS, bytes(4))[0] == errno.EINVAL
    too_small = wire.U32.pack(4096) + wire.string(wire.VERSION)
    assert client.try_call(wire.TVERSION, too_small)[0] == errno.EINVAL


def test_a_walk_goes_as_far_as_there_are_names(client, tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    body = struct.pack("<IIH", client.root, 77, 3) + b"".join(map(client.name, ("d", "e", "x")))
    answer = client.call(wire.WALK, body)
    assert (wire.U16.unpack_from(answer)[0], len(answer)) == (2, 2 + 2 * wire.QID.size)
    assert client.try_call(wire.GETATTR, struct.pack("<IQ", 77, 0))[0] == errno.EBADF
    first = struct.pack("<IIH", client.root, 77, 1) + client.name("x")
    assert client.try_call(wire.WALK, first)[0] == errno.ENOENT
    taken = struct.pack("<IIH", client.root, client.shares, 0)
    assert client.try_call(wire.WALK, taken)[0] == errno.EBADF
    many = struct.pack("<IIH", client.root, 77, 17) + client.name("d") * 17
    assert client.try_call(wire.WALK, many)[0] == errno.EINVAL
    # Onto itself.
    fid = client.clone(client.root)
    client.call(wire.WALK, struct.pack("<IIH", fid, fid, 1) + client.name("d"))
    assert client.stat(fid).ino == client.lookup(client.root, "d")[1].ino


@pytest.fixture
def asked(client):
    """Return the fids' nodes for which the share was asked for attributes."""
    tree = client.server.roots.tree(0)
    found, plain = [], tree.attributes

    def attributes(node):
        found.append(node)
        return plain(node)

    tree.attributes = attributes
    return found


def test_what_a_walk_finds_counts_for_the_next_request(client, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(session, "_NEXT", 1000.0)
    (tmp_path / "a").write_bytes(b"1")
    fid = client.clone(client.root, "a")
    (tmp_path / "a").write_bytes(b"12")
    assert client.stat(fid).size == 1
    assert asked == []
    # Once.
    assert client.stat(fid).size == 2
    assert len(asked) == 1


def test_what_a_walk_finds_counts_for_nothing_else(client, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(session, "_NEXT", 1000.0)
    (tmp_path / "a").write_bytes(b"1")
    other = client.walk("a")
    fid = client.clone(client.root, "a")
    (tmp_path / "a").write_bytes(b"12")
    assert client.stat(other).size == 2
    assert client.stat(fid).size == 2
    # Nor after a change of the guest's own, or after a while.
    handle = client.open(other)
    fid = client.clone(client.root, "a")
    client.write(other, handle, 0, b"123")
    assert client.stat(fid).size == 3
    monkeypatch.setattr(session, "_NEXT", -1.0)
    fid = client.clone(client.root, "a")
    (tmp_path / "a").write_bytes(b"1234")
    assert client.stat(fid).size == 4


def test_directories_are_held_for_a_while(client, tmp_path):
    deep = [f"d{number}/{name}" for number in range(100) for name in ("e", "f")]
    for path in deep:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "a").touch()
    before = len(os.listdir("/proc/self/fd"))
    for path in deep:
        client.forget(client.walk(f"{path}/a"))
        # And what is above each of them.
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * session._RECENT
    # What is held is what is there.
    (tmp_path / "d99" / "f").rename(tmp_path / "g")
    assert client.try_call(wire.WALK, struct.pack("<IIH", client.walk("d99"), 7777, 1)
                           + client.name("f"))[0] == errno.ENOENT  # fmt: skip
    assert client.walk("g/a")
    client.unlink(client.walk("g"), "a")
    client.rmdir(client.root, "g")
    (tmp_path / "g").mkdir()
    assert client.listdir(client.walk("g")).keys() == {".", ".."}
    client.server.remove(0)
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.parametrize("cuts", [(), (7,), (3, 11), (23,), (7, 23, 24)])
def test_a_message_may_come_in_pieces(client, tmp_path, cuts):
    (tmp_path / "a").touch()
    handle = client.open(client.walk("a"))

    def send(kind, body):
        whole = wire.HEADER.pack(wire.HEADER.size + len(body), kind, 5) + body
        ends = [cut for cut in cuts if cut < len(whole)]
        pieces = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]
        error, answer = client.raw(pieces)
        assert error == 0
        return answer

    data = bytes(range(256)) * 100
    assert send(wire.WRITE, wire.TRANSFER.pack(handle, 1, len(data)) + data) == wire.U32.pack(25600)
    assert send(wire.READ, wire.TRANSFER.pack(handle, 2, 3))[4:] == bytes([1, 2, 3])
    name = "n" * 255
    body = wire.U32.pack(client.root) + client.name(name) + client.name("t" * 4095) + bytes(4)
    send(wire.SYMLINK, body)
    assert str((tmp_path / name).readlink()) == "t" * 4095
    assert (tmp_path / "a").read_bytes() == b"\0" + data


def test_inodes_of_two_shares_are_apart(tmp_path):
    from ringzero.share.backends.host import HostTree

    server = NinepServer()
    server.add(0, HostTree(str(tmp_path)), "/m")
    server.add(1, HostTree(str(tmp_path)), "/n")
    client = Client(server=server)
    assert client.lookup(client.shares, "0")[1].ino != client.lookup(client.shares, "1")[1].ino
    (tmp_path / "a").touch()
    here, there = client.walk("a"), client.lookup(client.shares, "1")[0]
    body = struct.pack("<II", there, here) + client.name("b")
    assert client.try_call(wire.LINK, body)[0] == errno.EXDEV
    server.close()


def test_who_makes_a_file_owns_it(tmp_path):
    client = client_of(tmp_path)
    fid = client._new()
    body = struct.pack("<II", fid, wire.NO_FID) + wire.string(b"") * 2 + wire.U32.pack(1000)
    client.call(wire.ATTACH, body)
    client.gid = 1001
    root = client.clone(fid, "0")
    node, handle = client.create(root, "a", mode=0o4755)
    found = client.stat(node)
    assert (found.uid, found.gid) == (1000, 1001)
    # No root: a write takes its set-user-id bit.
    client.write(node, handle, 0, b"x")
    assert client.stat(node).mode & 0o7777 == 0o755
    client.server.close()


def test_attributes_that_are_cut_off_or_too_long(client, tmp_path):
    (tmp_path / "a").touch()
    node = client.walk("a")
    fid = client.clone(node)
    head = wire.U32.pack(fid) + client.name("user.a")
    assert client.try_call(wire.XATTRCREATE, head + struct.pack("<QI", 65537, 0))[0] == errno.E2BIG
    assert client.try_call(wire.XATTRCREATE, head + struct.pack("<QI", 2, 4))[0] == errno.EINVAL
    client.call(wire.XATTRCREATE, head + struct.pack("<QI", 2, 0))
    with pytest.raises(OSError, match="No space"):
        client.write(node, fid, 0, b"123")
    client.write(node, fid, 0, b"1")
    with pytest.raises(OSError, match="Invalid"):
        client.forget(fid)
    assert client.listxattr(node) == set()
    # It is gone all the same.
    assert client.try_call(wire.CLUNK, wire.U32.pack(fid))[0] == errno.EBADF


def test_record_locks(client, tmp_path):
    (tmp_path / "a").touch()
    handle = client.open(client.walk("a"))
    other = client_of(tmp_path)
    theirs = other.open(other.walk("a"))
    write = fcntl.F_WRLCK
    assert client.lock(handle, write, 0, 10) == (0, b"\0")
    assert client.lock(handle, write, 5, 20, process=2) == (0, b"\1")
    assert other.lock(theirs, write) == (0, b"\1")
    assert other.lock(theirs, write, flags=wire.LOCK_WAIT)[0] == "wait"
    body = wire.GETLOCK_IN.pack(write, 0, 0, 1) + wire.string(b"guest")
    answer = other.call(wire.GETLOCK, wire.U32.pack(theirs) + body)
    assert wire.GETLOCK_IN.unpack_from(answer)[:3] == (write, 0, 10)
    with (tmp_path / "a").open("r+") as file, pytest.raises(OSError, match="unavailable"):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)
    assert client.lock(handle, fcntl.F_UNLCK) == (0, b"\0")
    assert other.lock(theirs, write, flags=wire.LOCK_WAIT) == (0, b"\0")
    other.server.close()


def test_what_waits_can_be_taken_back(client, tmp_path):
    (tmp_path / "a").touch()
    handle = client.open(client.walk("a"))
    client.lock(handle, fcntl.F_WRLCK)
    assert client.lock(handle, fcntl.F_WRLCK, process=2, flags=wire.LOCK_WAIT)[0] == "wait"
    waiting = client.tag
    # Its answer must not come after that to FLUSH.
    assert client.try_call(wire.FLUSH, wire.U16.pack(waiting))[0] == "wait"
    client.tag = waiting - 1
    assert client.lock(handle, fcntl.F_WRLCK, process=2, flags=wire.LOCK_WAIT) == (None, b"")
    assert client.try_call(wire.FLUSH, wire.U16.pack(waiting))[0] == 0
    # The number is free again.
    client.tag = waiting - 1
    assert client.lock(handle, fcntl.F_UNLCK) == (0, b"\0")


def test_what_is_at_work_elsewhere_is_answered_before_its_flush(client, tmp_path):
    (tmp_path / "a").touch()
    handle = client.open(client.walk("a"))
    header = wire.HEADER.pack(15, wire.FSYNC, 500)
    assert client.server.is_long(header)
    assert not client.server.is_long(wire.HEADER.pack(15, wire.WALK, 500))
    client.server.defer(header)
    assert client.try_call(wire.FLUSH, wire.U16.pack(500))[0] == "wait"
    client.tag = 499
    assert client.try_call(wire.FSYNC, struct.pack("<II", handle, 0)) == (None, b"")
    assert client.try_call(wire.FLUSH, wire.U16.pack(500))[0] == 0


def test_what_linux_does_not_need_is_refused_so_that_it_goes_the_other_way(client, tmp_path):
    (tmp_path / "a").touch()
    fid = client.walk("a")
    assert client.try_call(wire.REMOVE, wire.U32.pack(fid))[0] == errno.EOPNOTSUPP
    assert client.try_call(wire.GETATTR, struct.pack("<IQ", fid, 0))[0] == errno.EBADF
    assert client.try_call(wire.RENAME, bytes(8))[0] == errno.EOPNOTSUPP
    assert client.try_call(wire.AUTH, bytes(8))[0] == errno.ENOENT
    assert client.try_call(200)[0] == errno.EOPNOTSUPP


def test_statistics(client, tmp_path):
    found = wire.STATFS_OUT.unpack(client.call(wire.STATFS, wire.U32.pack(client.root)))
    host = os.statvfs(tmp_path)
    assert found[:3] == (wire.MAGIC, host.f_frsize, host.f_blocks)


def test_answers_that_find_no_room(client, tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    handle = client.open(client.walk("a"))
    body = wire.TRANSFER.pack(handle, 0, 100)
    assert client.try_call(wire.READ, body, room=50) == (0, wire.U32.pack(39) + bytes(39))
    assert client.try_call(wire.READ, body, room=10) == (None, b"")
    assert client.try_call(wire.STATFS, wire.U32.pack(client.root), room=20)[0] == errno.EIO
