"""What a 9p server knows of its guest: its fids, and what they lead to.

A fid costs the guest a number and nothing else, so there is a most of them.
"""

from __future__ import annotations

import errno
import stat
import time
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
# How many directories without a fid are held on, with what is above them: Linux lets go of each
# with the last name that it has looked up in it, and looks it up again for the next one.
_RECENT = 64
# How long, in seconds, what WALK has found counts for the GETATTR that comes next.
_NEXT = 0.001
# Whoever takes a lock: a process of a guest, and the guest's name.
Owner = tuple[int, bytes]


class Held:
    """A node that fids lead to, `fids` of them, or the directories and files beneath it."""

    __slots__ = ("_locks", "above", "fids", "node")

    def __init__(self, node: Node, above: Held | None) -> None:
        self.node = node
        # Held as long: what is found again by its path needs all of that.
        self.above = above
        self.fids = 0
        # Made for the few that are locked.
        self._locks: LockTable[Owner] | None = None

    @property
    def locks(self) -> LockTable[Owner]:
        """The record locks of the guest on it."""
        if self._locks is None:
            self._locks = LockTable()
        return self._locks

    def let_go(self) -> None:
        """Hold the node no more: drop its locks."""
        if self._locks is not None:
            self._locks.clear()
        self.node.tree.forget(self.node)


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
        # Those of them without a fid: directories, the longest unused first.
        self._recent: dict[Held, None] = {}
        # What tells the inodes of a share's file system from those of others.
        self._apart: dict[tuple[Tree, int], int] = {}
        # The fid that the last request has made, what it leads to, and until when that counts.
        self._found: tuple[int, Attributes, float] | None = None

    def reset(self) -> None:
        """Forget everything that the guest holds."""
        for number in list(self.fids):
            self.clunk(number)
        while self._recent:
            self._let_go(next(iter(self._recent)))
        self.pending.clear()
        self.flushed.clear()
        self._apart.clear()
        self._found = None
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
        elif not held.fids:
            self._recent.pop(held, None)
        return held

    def leave(self, held: Held, count: int = 1) -> None:
        """Have so many fids fewer lead to what is held; 0 for one that none has led to yet."""
        held.fids -= count
        if held.fids:
            return
        self._recent[held] = None
        if held.node.kind != stat.S_IFDIR:
            self._let_go(held)
        while len(self._recent) > _RECENT:
            self._let_go(next(iter(self._recent)))

    def _let_go(self, held: Held) -> None:
        """Hold a node no more to which no fid leads."""
        del self._recent[held], self._held[held.node]
        held.let_go()
        above = held.above
        if above is not None:
            above.fids -= 1
            if not above.fids:
                self._recent[above] = None

    def drop(self, tree: Tree) -> None:
        """Let go of everything of a share that is taken away; the guest gets EBADF for it."""
        for number, fid in list(self.fids.items()):
            if fid.node.tree is tree:
                self.clunk(number)
        while found := [held for held in self._recent if held.node.tree is tree]:
            for held in found:
                self._let_go(held)
        self._apart.clear()

    # ---- what the guest sees of them --------------------------------------

    def keep(self, number: int, found: Attributes) -> None:
        """Have what WALK has found for the GETATTR that comes next: Linux always sends one.

        Both are of one look-up of the guest's, so it learns nothing older than that.
        """
        self._found = number, found, time.monotonic() + _NEXT

    def take_kept(self, number: int) -> Attributes | None:
        """Return what was kept for a fid, once, or None; any other request ends it, too."""
        kept, self._found = self._found, None
        if kept is None or kept[0] != number or time.monotonic() > kept[2]:
            return None
        return kept[1]

    def forget_kept(self) -> None:
        """Keep nothing: a request comes that may change it."""
        self._found = None

    def path_of(self, tree: Tree, number: int, device: int) -> int:
        """Return a qid's path, which is the inode number in the guest: apart for each share."""
        apart = self._apart.get((tree, device))
        if apart is None:
            share = self.roots.number_of(tree)
            bits = device * 0x9E3779B1 ^ (0 if share is None else share + 1) * 0x85EBCA6B
            apart = self._apart[tree, device] = (bits & 0xFFFF) << 48
        return (number ^ apart) & _64

    def qid_fields(self, tree: Tree, found: Attributes) -> tuple[int, int, int]:
        """Return type, version and path of the qid of what has these attributes."""
        kind = _QID_KINDS.get(stat.S_IFMT(found.mode), wire.QID_FILE)
        version = (found.mtime ^ found.size) & _32
        return kind, version, self.path_of(tree, found.ino, found.device)

    def qid(self, tree: Tree, found: Attributes) -> bytes:
        """Return the qid of what has these attributes."""
        return wire.QID.pack(*self.qid_fields(tree, found))
