"""A 9p client for tests: what Linux would send, and answers taken apart.

Its methods are those of the FUSE client; a node is a fid, and so is an open file.
"""

from __future__ import annotations

import os
import struct

from ringzero.share.backends.host import HostTree
from ringzero.share.ninep import wire
from ringzero.share.ninep.server import NinepServer

ROOM = 1 << 16


class Client:
    """Speaks with a server whose share 0 is `tree`; `shares` is where the shares are."""

    # How many directories that it forgets are still held, of one.
    holds = 1

    def __init__(self, tree=None, *, server=None, uid=0, gid=0):
        self.server = server or NinepServer()
        if tree is not None:
            self.server.add(0, tree, "/m")
        self.uid, self.gid = uid, gid
        self._fids = 0
        self.tag = 0
        if not self.server.session.size:
            self.call(wire.TVERSION, wire.U32.pack(ROOM) + wire.string(wire.VERSION))
        self.shares = self._new()
        body = struct.pack("<II", self.shares, wire.NO_FID) + wire.string(b"") * 2
        self.call(wire.ATTACH, body + wire.U32.pack(uid))
        self.root = self.lookup(self.shares, "0")[0]

    def _new(self):
        # Not those of the client of a saved machine.
        self._fids = max(self._fids, *self.server.session.fids, 0) + 1
        return self._fids

    def raw(self, readable, room=ROOM):
        """Return (error, body) of an answer, (None, b"") where there is none, or "wait"."""
        answer = bytearray(room)
        # A header stands before its data, as Linux has them.
        pieces = [memoryview(answer)[:11], memoryview(answer)[11:100], memoryview(answer)[100:]]
        size = self.server.serve([memoryview(bytearray(data)) for data in readable], pieces)
        if size is None:
            return "wait", b""
        if not size:
            return None, b""
        length, kind, _ = wire.HEADER.unpack_from(answer)
        assert length == size <= room
        body = bytes(answer[wire.HEADER.size : length])
        if kind == wire.RLERROR:
            return wire.U32.unpack(body)[0], b""
        return 0, body

    def try_call(self, kind, body=b"", data=b"", room=ROOM):
        """Return (error, body)."""
        self.tag = (self.tag + 1) % wire.NO_TAG
        length = wire.HEADER.size + len(body) + len(data)
        head = wire.HEADER.pack(length, kind, self.tag) + body
        return self.raw([head, data] if data else [head], room)

    def call(self, kind, body=b"", data=b"", room=ROOM):
        """Return the answer's body; raises OSError."""
        error, answer = self.try_call(kind, body, data, room)
        if error:
            raise OSError(error, os.strerror(error))
        return answer

    @staticmethod
    def name(text):
        return wire.string(os.fsencode(text))

    # ---- names ------------------------------------------------------------

    def clone(self, fid, *names):
        new = self._new()
        body = struct.pack("<IIH", fid, new, len(names)) + b"".join(map(self.name, names))
        (count,) = wire.U16.unpack_from(self.call(wire.WALK, body))
        if count < len(names):
            raise FileNotFoundError(2, "on the way")
        return new

    def lookup(self, parent, name):
        node = self.clone(parent, name)
        return node, self.stat(node)

    def walk(self, path):
        """Look a path up as Linux does: name by name, and it asks for attributes each time."""
        node = self.clone(self.root)
        for name in filter(None, path.split("/")):
            above, (node, _) = node, self.lookup(node, name)
            self.forget(above)
        return node

    def forget(self, node):
        self.call(wire.CLUNK, wire.U32.pack(node))

    def stat(self, node):
        answer = self.call(wire.GETATTR, struct.pack("<IQ", node, wire.GETATTR_BASIC))
        return Stat(answer)

    def set(self, node, valid, *, mode=0, uid=0, gid=0, size=0, mtime=0):
        body = wire.SETATTR_IN.pack(valid, mode, uid, gid, size, 0, 0, mtime, 0)
        self.call(wire.SETATTR, wire.U32.pack(node) + body)
        return self.stat(node)

    def chmod(self, node, mode):
        return self.set(node, wire.SET_MODE, mode=mode)

    def chown(self, node, uid, gid):
        return self.set(node, wire.SET_UID | wire.SET_GID, uid=uid, gid=gid)

    def truncate(self, node, size):
        return self.set(node, wire.SET_SIZE, size=size)

    def set_mtime(self, node, seconds):
        return self.set(node, wire.SET_MTIME | wire.SET_MTIME_GIVEN, mtime=seconds)

    def touch(self, node):
        return self.set(node, wire.SET_MTIME | wire.SET_ATIME)

    def mkdir(self, parent, name, mode=0o755):
        body = wire.U32.pack(parent) + self.name(name) + struct.pack("<II", mode, self.gid)
        self.call(wire.MKDIR, body)
        return self.lookup(parent, name)

    def mknod(self, parent, name, mode, rdev=0):
        body = wire.U32.pack(parent) + self.name(name)
        numbers = (mode, os.major(rdev), os.minor(rdev), self.gid)
        self.call(wire.MKNOD, body + struct.pack("<4I", *numbers))
        return self.lookup(parent, name)

    def symlink(self, parent, name, target):
        body = wire.U32.pack(parent) + self.name(name) + self.name(target)
        self.call(wire.SYMLINK, body + wire.U32.pack(self.gid))
        return self.lookup(parent, name)

    def readlink(self, node):
        return self.call(wire.READLINK, wire.U32.pack(node))[2:]

    def link(self, node, parent, name):
        self.call(wire.LINK, struct.pack("<II", parent, node) + self.name(name))
        return self.lookup(parent, name)

    def unlink(self, parent, name, flags=0):
        body = wire.U32.pack(parent) + self.name(name) + wire.U32.pack(flags)
        self.call(wire.UNLINKAT, body)

    def rmdir(self, parent, name):
        self.unlink(parent, name, wire.UNLINK_DIRECTORY)

    def rename(self, parent, name, new_parent, new_name):
        body = wire.U32.pack(parent) + self.name(name)
        self.call(wire.RENAMEAT, body + wire.U32.pack(new_parent) + self.name(new_name))

    # ---- files ------------------------------------------------------------

    def create(self, parent, name, flags=os.O_RDWR, mode=0o644):
        handle = self.clone(parent)
        body = wire.U32.pack(handle) + self.name(name)
        self.call(wire.LCREATE, body + struct.pack("<3I", flags | os.O_CREAT, mode, self.gid))
        return self.clone(parent, name), handle

    def open(self, node, flags=os.O_RDWR):
        handle = self.clone(node)
        self.call(wire.LOPEN, struct.pack("<II", handle, flags))
        return handle

    def read(self, node, handle, offset, size):
        return self.call(wire.READ, wire.TRANSFER.pack(handle, offset, size))[4:]

    def write(self, node, handle, offset, data):
        done = 0
        while True:
            piece = data[done : done + 32768]
            body = wire.TRANSFER.pack(handle, offset + done, len(piece))
            done += wire.U32.unpack(self.call(wire.WRITE, body, piece))[0]
            if done >= len(data):
                return done

    def sync(self, node, handle):
        self.call(wire.FSYNC, struct.pack("<II", handle, 0))

    def release(self, node, handle):
        self.forget(handle)

    def listdir(self, node, size=4096):
        handle = self.open(node, os.O_RDONLY | os.O_DIRECTORY)
        found, offset = {}, 0
        while True:
            answer = self.call(wire.READDIR, wire.TRANSFER.pack(handle, offset, size))
            at = wire.U32.size
            assert wire.U32.unpack_from(answer)[0] == len(answer) - at
            if len(answer) == at:
                break
            while at < len(answer):
                _, _, path, offset, kind, length = wire.DIRENT.unpack_from(answer, at)
                at += wire.DIRENT.size
                name = os.fsdecode(answer[at : at + length])
                at += length
                assert name not in found
                found[name] = (path, kind)
        self.forget(handle)
        return found

    # ---- attributes -------------------------------------------------------

    def setxattr(self, node, name, value, flags=0):
        fid = self.clone(node)
        body = wire.U32.pack(fid) + self.name(name)
        self.call(wire.XATTRCREATE, body + struct.pack("<QI", len(value), flags))
        if value:
            self.write(node, fid, 0, value)
        self.forget(fid)

    def _attribute(self, node, name):
        fid = self._new()
        answer = self.call(wire.XATTRWALK, struct.pack("<II", node, fid) + self.name(name))
        size = wire.U64.unpack(answer)[0]
        value = self.read(node, fid, 0, size)
        assert len(value) == size
        self.forget(fid)
        return value

    def getxattr(self, node, name):
        return self._attribute(node, name)

    def listxattr(self, node):
        return {os.fsdecode(name) for name in self._attribute(node, "").split(b"\0") if name}

    def removexattr(self, node, name):
        self.setxattr(node, name, b"", os.XATTR_REPLACE)

    def lock(self, handle, kind, start=0, length=0, *, process=1, flags=0, client=b"guest"):
        """Return (error, answer)."""
        body = wire.LOCK_IN.pack(kind, flags, start, length, process) + wire.string(client)
        return self.try_call(wire.LOCK, wire.U32.pack(handle) + body)


class Stat:
    """What GETATTR tells."""

    def __init__(self, answer):
        (
            valid, _, _, self.ino, self.mode, self.uid, self.gid, self.links, self.rdev, self.size,
            self.block_size, self.blocks, self.atime, _, self.mtime, *_,
        ) = wire.GETATTR_OUT.unpack(answer)  # fmt: skip
        assert valid == wire.GETATTR_BASIC
        # Times before 1970 are large numbers in what is asked for, too.
        self.mtime %= 1 << 64


def client_of(path, **options):
    """Return a client of a server that shares `path`."""
    return Client(HostTree(str(path), **options))
