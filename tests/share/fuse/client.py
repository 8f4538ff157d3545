"""A FUSE client for tests: what Linux would send, and answers taken apart."""

from __future__ import annotations

import errno
import os
import struct

from ringzero.share.backends.host import HostTree
from ringzero.share.fuse import wire
from ringzero.share.fuse.server import FuseServer

OFFERED = 0x7BFFFFFB
ROOM = 1 << 17


class Client:
    """Speaks with a server whose share 0 is `tree`; `root` is that share's node."""

    # How many directories that it forgets are still held, of one.
    holds = 0

    def __init__(self, tree, *, minor=38, flags=OFFERED, server=None, uid=0, gid=0):
        self.server = server or FuseServer()
        if server is None:
            self.server.add(0, tree, "/m")
        self.uid, self.gid = uid, gid
        self._unique = 0
        if server is None or not self.server.session.minor:
            self.call(wire.INIT_OP, 0, struct.pack("<IIII48x", 7, minor, 1 << 17, flags))
        # The directory in which the shares are.
        self.shares = 1
        self.root = self.lookup(self.shares, "0")[0]

    def raw(self, readable: list[bytes], room: int = ROOM):
        """Return (error, body) of an answer, (None, b"") where there is none, or "wait"."""
        views = [memoryview(bytearray(data)) for data in readable]
        # Uneven pieces, as pages are where a header stands before them.
        answer = bytearray(room)
        pieces = [memoryview(answer)[:16], memoryview(answer)[16:100], memoryview(answer)[100:]]
        size = self.server.serve(views, pieces)
        if size is None:
            return "wait", b""
        if not size:
            return None, b""
        length, error, _ = wire.OUT_HEADER.unpack_from(answer)
        assert length == size <= room
        return -error, bytes(answer[16:length])

    def try_call(self, opcode, node, body=b"", data=b"", room=ROOM):
        """Return (error, body)."""
        self._unique += 2
        length = 40 + len(body) + len(data)
        header = wire.IN_HEADER.pack(
            length, opcode, self._unique, node, self.uid, self.gid, 7, 0, 0
        )
        return self.raw([header + body, data] if data else [header + body], room)

    def call(self, opcode, node, body=b"", data=b"", room=ROOM):
        """Return the answer's body; raises OSError."""
        error, answer = self.try_call(opcode, node, body, data, room)
        if error:
            raise OSError(error, os.strerror(error))
        return answer

    # ---- names ------------------------------------------------------------

    @staticmethod
    def name(text):
        return os.fsencode(text) + b"\0"

    @staticmethod
    def entry(answer):
        fields = wire.ENTRY.unpack_from(answer)
        return fields[0], stat_of(answer[wire.ENTRY.size :])

    def lookup(self, parent, name):
        return self.entry(self.call(wire.LOOKUP_OP, parent, self.name(name)))

    def walk(self, path):
        node = self.root
        for name in filter(None, path.split("/")):
            node, _ = self.lookup(node, name)
        return node

    def forget(self, node, count=1):
        self.call(wire.FORGET_OP, node, wire.NUMBER.pack(count))

    def stat(self, node):
        answer = self.call(wire.GETATTR_OP, node, wire.GETATTR.pack(0, 0, 0))
        return stat_of(answer[wire.ATTRIBUTES_VALID.size :])

    def set(self, node, valid, *, size=0, atime=0, mtime=0, mode=0, uid=0, gid=0):
        body = wire.SETATTR.pack(
            valid, 0, 0, size, 0, atime, mtime, 0, 0, 0, 0, mode, 0, uid, gid, 0
        )
        return stat_of(self.call(wire.SETATTR_OP, node, body)[wire.ATTRIBUTES_VALID.size :])

    def chmod(self, node, mode):
        return self.set(node, wire.SET_MODE, mode=mode)

    def chown(self, node, uid, gid):
        return self.set(node, wire.SET_UID | wire.SET_GID, uid=uid, gid=gid)

    def truncate(self, node, size):
        return self.set(node, wire.SET_SIZE, size=size)

    def set_mtime(self, node, seconds):
        return self.set(node, wire.SET_MTIME, mtime=seconds)

    def touch(self, node):
        return self.set(node, wire.SET_MTIME | wire.SET_MTIME_NOW)

    def mkdir(self, parent, name, mode=0o755):
        return self.entry(
            self.call(wire.MKDIR_OP, parent, wire.MKDIR.pack(mode, 0) + self.name(name))
        )

    def mknod(self, parent, name, mode, rdev=0):
        body = wire.MKNOD.pack(mode, rdev, 0, 0) + self.name(name)
        return self.entry(self.call(wire.MKNOD_OP, parent, body))

    def symlink(self, parent, name, target):
        return self.entry(self.call(wire.SYMLINK_OP, parent, self.name(name) + self.name(target)))

    def readlink(self, node):
        return self.call(wire.READLINK_OP, node)

    def link(self, node, parent, name):
        return self.entry(self.call(wire.LINK_OP, parent, wire.NUMBER.pack(node) + self.name(name)))

    def unlink(self, parent, name):
        self.call(wire.UNLINK_OP, parent, self.name(name))

    def rmdir(self, parent, name):
        self.call(wire.RMDIR_OP, parent, self.name(name))

    def rename(self, parent, name, new_parent, new_name, flags=0):
        body = wire.RENAME2.pack(new_parent, flags, 0) + self.name(name) + self.name(new_name)
        self.call(wire.RENAME2_OP, parent, body)

    # ---- files ------------------------------------------------------------

    def create(self, parent, name, flags=os.O_RDWR, mode=0o644):
        body = wire.CREATE.pack(flags, mode, 0, 0) + self.name(name)
        answer = self.call(wire.CREATE_OP, parent, body)
        size = wire.ENTRY.size + wire.ATTRIBUTES.size
        return self.entry(answer)[0], wire.OPEN_OUT.unpack(answer[size:])[0]

    def open(self, node, flags=os.O_RDWR):
        """As Linux does: after ESTALE it looks again, and comes back."""
        for last in (False, True):
            error, answer = self.try_call(wire.OPEN_OP, node, wire.OPEN.pack(flags, 0))
            if error != errno.ESTALE or last:
                break
        if error:
            raise OSError(error, os.strerror(error))
        return wire.OPEN_OUT.unpack(answer)[0]

    def read(self, node, handle, offset, size):
        return self.call(
            wire.READ_OP, node, wire.TRANSFER.pack(handle, offset, size, 0, 0, 0, 0), room=size + 16
        )

    def write(self, node, handle, offset, data, write_flags=0):
        body = wire.TRANSFER.pack(handle, offset, len(data), write_flags, 0, 0, 0)
        return wire.WRITE_OUT.unpack(self.call(wire.WRITE_OP, node, body, data))[0]

    def sync(self, node, handle):
        self.call(wire.FSYNC_OP, node, wire.FSYNC.pack(handle, 0, 0))

    def release(self, node, handle):
        self.call(wire.RELEASE_OP, node, wire.RELEASE.pack(handle, 0, 0, 0))

    def listdir(self, node, *, plus=False, size=4096):
        handle = wire.OPEN_OUT.unpack(
            self.call(wire.OPENDIR_OP, node, wire.OPEN.pack(os.O_RDONLY, 0))
        )[0]
        found, offset = {}, 0
        opcode = wire.READDIRPLUS_OP if plus else wire.READDIR_OP
        while True:
            body = wire.TRANSFER.pack(handle, offset, size, 0, 0, 0, 0)
            answer = self.call(opcode, node, body)
            if not answer:
                break
            at = 0
            while at < len(answer):
                if plus:
                    number, attributes = self.entry(answer[at:])
                    at += wire.ENTRY.size + wire.ATTRIBUTES.size
                ino, offset, length, kind = wire.DIRENT.unpack_from(answer, at)
                at += wire.DIRENT.size
                name = os.fsdecode(answer[at : at + length])
                at += (length + 7) & ~7
                assert name not in found
                found[name] = (number, attributes) if plus else (ino, kind)
        self.call(wire.RELEASEDIR_OP, node, wire.RELEASE.pack(handle, 0, 0, 0))
        return found

    def setxattr(self, node, name, value, flags=0):
        body = wire.SETXATTR_EXTENDED.pack(len(value), flags, 0, 0) + self.name(name) + value
        self.call(wire.SETXATTR_OP, node, body)

    def getxattr(self, node, name, size=4096):
        return self.call(wire.GETXATTR_OP, node, wire.GETXATTR.pack(size, 0) + self.name(name))

    def listxattr(self, node):
        answer = self.call(wire.LISTXATTR_OP, node, wire.GETXATTR.pack(4096, 0))
        return {os.fsdecode(name) for name in answer.split(b"\0") if name}

    def removexattr(self, node, name):
        self.call(wire.REMOVEXATTR_OP, node, self.name(name))

    def lock(self, opcode, node, handle, owner, kind, start=0, end=(1 << 63) - 1, flags=0):
        """Return (error, answer)."""
        body = wire.LOCK.pack(handle, owner, start, end, kind, 1, flags, 0)
        return self.try_call(opcode, node, body)


class Stat:
    """struct fuse_attr."""

    def __init__(self, data):
        (
            self.ino, self.size, self.blocks, self.atime, self.mtime, self.ctime, _, _, _,
            self.mode, self.links, self.uid, self.gid, self.rdev, self.block_size, self.flags,
        ) = wire.ATTRIBUTES.unpack_from(data)  # fmt: skip


def stat_of(data):
    return Stat(data)


def client_of(path, **options):
    """Return a client of a server that shares `path`."""
    return Client(HostTree(str(path), **options))
