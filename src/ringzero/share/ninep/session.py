"""What a 9p server knows of its guest: its fids, and what they lead to.

A fid costs the guest a number and nothing else, so there is a most of them.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ringzero.share.contract import Attributes, Entry, File, Node, Tree
from ringzero.share.locking import LockTable
from ringzero.share.ninep import wire
from ringzero.share.server import ShareServer

# Linux has one for each name in its cache, and one for each open file.
MAX_FIDS = 1 << 20
_64, _32 = (1 << 64) - 1, (1 << 32) - 1
_QID_KINDS = {stat.S_IFDIR: wire.QID_DIRECTORY, stat.S_IFLNK: wire.QID_LINK}
# Whoever takes a lock: a process of a guest, and the guest's name.
Owner = tuple[int, bytes]


class Held:
    """A node that fids lead to, `fids` of them, or the directories and files beneath it."""

    __slots__ = ("above", "fids", "locks", "node")

    def __init__(self, node: Node, above: Held | None) -> None:
        self.node = node
        # Held as long: what is found again by its path needs all of that.
        self.above = above
        self.fids = 0
        self.locks: LockTable[Owner] = LockTable()


class Attribute:
    """An extended attribute on its way: read from `data`, or written into it up to `size`."""

    __slots__ = ("data", "flags", "name", "size", "written")

    def __init__(self, name: bytes, data: bytes, size: int, flags: int, *, written: bool) -> None:
        self.name = name
        self.data = bytearray(data)
        self.size = size
        self.flags = flags
        self.written = written


class Fid:
    """What the guest calls by a number: a node, and what it has open of it.

    `users` are threads that move its data; it closes after the last of them. `flags` is None
    until it is open.
    """

    __slots__ = ("attribute", "closing", "entries", "file", "flags", "held", "uid", "users")

    def __init__(self, held: Held, uid: int) -> None:
        self.held = held
        self.uid = uid
        self.file: File | None = None
        self.flags: int | None = None
        # What a directory held when the guest began to read it.
        self.entries: list[Entry] = []
        self.attribute: Attribute | None = None
        self.users = 0
        self.closing = False

    @property
    def node(self) -> Node:
        return self.held.node


class Session:
    """The guest's side of one server: its fids, and what TVERSION has settled (`size`)."""

    def __init__(self, server: ShareServer) -> None:
        self.roots = server.roots
        self.lock = server.lock
        self.size = 0
        self.fids: dict[int, Fid] = {}
        # Requests that are not answered yet: they wait for a lock, or are at work elsewhere.
        self.pending: set[int] = set()
        # Those of them that the guest does not want any more.
        self.flushed: set[int] = set()
        self._held: dict[Node, Held] = {}

    def reset(self) -> None:
        """Forget everything that the guest holds."""
        for number in list(self.fids):
            self.clunk(number)
        self.pending.clear()
        self.flushed.clear()
        self.size = 0

    # ---- fids -------------------------------------------------------------

    def fid(self, number: int) -> Fid:
        """Return what the guest calls so; raises EBADF."""
        found = self.fids.get(number)
        if found is None:
            raise OSError(errno.EBADF, "no such fid")
        return found

    def check_free(self, number: int) -> None:
        """Raise OSError unless a fid may get this number."""
        if number in self.fids or number == wire.NO_FID:
            raise OSError(errno.EBADF, "a fid that is in use")
        if len(self.fids) >= MAX_FIDS:
            raise OSError(errno.ENFILE, "too many fids")

    def add(self, number: int, held: Held, uid: int) -> Fid:
        """Have a fid that leads to `held`."""
        fid = self.fids[number] = Fid(held, uid)
        held.fids += 1
        return fid

    def lead(self, fid: Fid, held: Held) -> None:
        """Have a fid lead to something else from now on."""
        held.fids += 1
        before, fid.held = fid.held, held
        self.leave(before)

    def clunk(self, number: int) -> Fid:
        """Forget a fid; returns it. Raises EBADF."""
        fid = self.fid(number)
        del self.fids[number]
        self.shut(fid)
        self.leave(fid.held)
        return fid

    @staticmethod
    def shut(fid: Fid) -> None:
        """Close what a fid has open, once nobody moves its data."""
        fid.closing = True
        if fid.file is not None and not fid.users:
            fid.file.close()

    @contextmanager
    def using(self, fid: Fid) -> Iterator[File]:
        """Keep a file open for a `with` block, which does not hold the lock."""
        with self.lock:
            file = fid.file
            if file is None or fid.closing:
                raise OSError(errno.EBADF, "not open")
            fid.users += 1
        try:
            yield file
        finally:
            with self.lock:
                fid.users -= 1
                if fid.closing and not fid.users:
                    file.close()

    # ---- nodes ------------------------------------------------------------

    def hold(self, node: Node, above: Held | None) -> Held:
        """Return what fids lead to for a node; `leave` it, unless one does from now on."""
        held = self._held.get(node)
        if held is None:
            held = self._held[node] = Held(node, above)
            if above is not None:
                above.fids += 1
        return held

    def leave(self, held: Held, count: int = 1) -> None:
        """Have so many fids fewer lead to what is held; 0 for one that none has led to yet."""
        held.fids -= count
        while held.fids <= 0:
            if self._held.get(held.node) is held:
                del self._held[held.node]
                held.locks.clear()
                held.node.tree.forget(held.node)
            above, held.above = held.above, None
            if above is None:
                return
            held = above
            held.fids -= 1

    def drop(self, tree: Tree) -> None:
        """Let go of everything of a share that is taken away; the guest gets EBADF for it."""
        for number, fid in list(self.fids.items()):
            if fid.node.tree is tree:
                self.clunk(number)

    # ---- what the guest sees of them --------------------------------------

    def path_of(self, tree: Tree, number: int, device: int) -> int:
        """Return a qid's path, which is the inode number in the guest: apart for each share."""
        share = self.roots.number_of(tree)
        apart = device * 0x9E3779B1 ^ (0 if share is None else share + 1) * 0x85EBCA6B
        return (number ^ (apart & 0xFFFF) << 48) & _64

    def qid(self, tree: Tree, found: Attributes) -> bytes:
        """Return the qid of what has these attributes."""
        kind = _QID_KINDS.get(stat.S_IFMT(found.mode), wire.QID_FILE)
        version = (found.mtime ^ found.size) & _32
        return wire.QID.pack(kind, version, self.path_of(tree, found.ino, found.device))
