"""What a FUSE server knows of its guest: the nodes that it holds, and what it has opened.

A guest may hold any number of nodes: each costs it a name in its own cache. What it opens is
bounded, because it costs the host.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ringzero.share.contract import Attributes, Entry, File, Node, Tree
from ringzero.share.fuse import wire
from ringzero.share.locking import LockTable
from ringzero.share.message import NANOSECONDS
from ringzero.share.server import ShareServer

if TYPE_CHECKING:
    from ringzero.share.fuse.wire import Body

ROOT_ID = 1
# More open files than a process of the host usually has.
MAX_HANDLES = 65536
_64, _32 = (1 << 64) - 1, (1 << 32) - 1


class Inode:
    """A node that the guest knows by a number, and how often it was told of it."""

    __slots__ = ("excused", "found", "given", "id", "locks", "lookups", "node", "opens", "packed")

    def __init__(self, number: int, node: Node) -> None:
        self.id = number
        self.node = node
        self.lookups = 0
        # Size, times and place of the attributes that the guest has; None where it has none, or
        # has changed the file itself and asks again.
        self.given: tuple[int, ...] | None = None
        # The attributes that were packed last.
        self.found: Attributes | None = None
        self.packed = b""
        # How many open files the guest has of it.
        self.opens = 0
        # The guest was told to look the name up again; it is not told twice.
        self.excused = False
        self.locks: LockTable[int] = LockTable()


class Handle:
    """An open file or directory. `users` are threads that are at it; it closes after the last."""

    __slots__ = ("closing", "entries", "file", "flags", "inode", "users")

    def __init__(self, inode: Inode, file: File | None, flags: int) -> None:
        self.inode = inode
        self.file = file
        self.flags = flags
        # What a directory held when the guest began to read it.
        self.entries: list[Entry] | None = None
        self.users = 0
        self.closing = False


class Request:
    """One request, taken apart as far as all have it."""

    __slots__ = ("body", "data", "gid", "node", "opcode", "room", "uid", "unique", "views")

    def __init__(
        self,
        header: tuple[int, ...],
        body: Body,
        data: list[memoryview],
        views: list[memoryview],
        room: int,
    ) -> None:
        _, self.opcode, self.unique, self.node, self.uid, self.gid, _, _, _ = header
        self.body = body
        # What is to be written; only of WRITE.
        self.data = data
        # Where the answer goes behind its header, and how many bytes of it there are.
        self.views = views
        self.room = room


class Session:
    """The guest's side of one server: its inodes and handles, and what INIT has settled.

    The server's `lock` guards all of it and all trees; data moves without it.
    """

    def __init__(self, server: ShareServer) -> None:
        self.roots = server.roots
        self.lock = server.lock
        self.flags = 0
        self.minor = 0
        self.inodes: dict[int, Inode] = {}
        self.handles: dict[int, Handle] = {}
        # Requests that wait for a lock, which the guest does not want any more.
        self.interrupted: set[int] = set()
        self._by_node: dict[Node, Inode] = {}
        self.next_id = ROOT_ID + 1
        self.next_handle = 1
        self._add_root()

    def _add_root(self) -> None:
        root = self.inodes[ROOT_ID] = Inode(ROOT_ID, self.roots.root())
        root.lookups = 1
        self._by_node[root.node] = root

    def reset(self) -> None:
        """Forget everything that the guest holds."""
        for handle in list(self.handles.values()):
            self._shut(handle)
        self.handles.clear()
        for inode in list(self.inodes.values()):
            self._drop(inode)
        self.interrupted.clear()
        self.flags = self.minor = 0
        self._add_root()

    # ---- nodes ------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """Return what the guest calls so; raises ESTALE."""
        found = self.inodes.get(number)
        if found is None:
            raise OSError(errno.ESTALE, "no such node")
        return found

    def know(self, node: Node) -> Inode:
        """Return the inode of a node that the guest is told of once more."""
        inode = self._by_node.get(node)
        if inode is None:
            inode = self.put(self.next_id, node)
            self.next_id += 1
        inode.lookups += 1
        return inode

    def known(self, node: Node) -> Inode:
        """Return the inode of a node that the guest has been told of."""
        return self._by_node[node]

    def put(self, number: int, node: Node) -> Inode:
        """Have `node` under a number that is free."""
        inode = self.inodes[number] = self._by_node[node] = Inode(number, node)
        return inode

    def forget(self, number: int, count: int) -> None:
        """The guest has forgotten `count` of what it was told of a node."""
        inode = self.inodes.get(number)
        if inode is None or number == ROOT_ID:
            return
        inode.lookups -= count
        if inode.lookups <= 0:
            self._drop(inode)

    def _drop(self, inode: Inode) -> None:
        self.inodes.pop(inode.id, None)
        if self._by_node.get(inode.node) is inode:
            del self._by_node[inode.node]
        inode.locks.clear()
        inode.node.tree.forget(inode.node)

    def drop_tree(self, tree: Tree) -> None:
        """Let go of everything of a share that is taken away; the guest gets ESTALE for it."""
        for number, handle in list(self.handles.items()):
            if handle.inode.node.tree is tree:
                self.release(number)
        for inode in list(self.inodes.values()):
            if inode.node.tree is tree:
                self._drop(inode)

    # ---- attributes -------------------------------------------------------

    def attributes(self, inode: Inode, found: Attributes, *, submount: bool = False) -> bytes:
        """Return the attributes as the guest takes them, and note that it has them."""
        inode.excused = False
        if inode.found != found or inode.given is None:
            inode.given = signature(found)
            inode.found = found
            inode.packed = pack_attributes(found, self.number_of(found), False)
        if submount:
            return pack_attributes(found, self.number_of(found), True)
        return inode.packed

    def number_of(self, found: Attributes) -> int:
        """Return the inode number that the guest sees.

        Devices of the host are apart for a guest that knows submounts; for others, numbers are.
        """
        if self.flags & wire.SUBMOUNTS or not found.device:
            return found.ino
        return (found.ino ^ (found.device * 0x9E3779B1 & 0xFFFF) << 48) & _64

    def entry(self, parent: Inode, node: Node, found: Attributes) -> bytes:
        """Return the answer to a look-up, by which the guest knows the node once more."""
        inode = self.know(node)
        submount = (
            bool(self.flags & wire.SUBMOUNTS)
            and stat.S_ISDIR(found.mode)
            and (node.tree is not parent.node.tree or self._crosses(parent, found))
        )
        seconds, nanoseconds = validity(node.tree)
        entry = wire.ENTRY.pack(inode.id, 0, seconds, seconds, nanoseconds, nanoseconds)
        return entry + self.attributes(inode, found, submount=submount)

    @staticmethod
    def _crosses(parent: Inode, found: Attributes) -> bool:
        """Whether another file system of the host begins here."""
        key = parent.node.key
        return len(key) > 1 and key[0] != found.device

    # ---- handles ----------------------------------------------------------

    def handle(self, number: int, inode: Inode | None = None) -> Handle:
        """Return what is open under a number, on `inode`; raises EBADF."""
        found = self.handles.get(number)
        if found is None or (inode is not None and found.inode is not inode):
            raise OSError(errno.EBADF, "not open")
        return found

    @contextmanager
    def using(self, number: int, inode: Inode | None = None) -> Iterator[tuple[Handle, File]]:
        """Keep a file open for a `with` block, which does not hold the lock."""
        with self.lock:
            handle = self.handle(number, inode)
            if handle.file is None:
                raise OSError(errno.EISDIR, "a directory")
            handle.users += 1
        try:
            yield handle, handle.file
        finally:
            with self.lock:
                handle.users -= 1
                if handle.closing and not handle.users:
                    handle.file.close()

    def add_handle(self, inode: Inode, file: File | None, flags: int) -> int:
        """Return the number of what was just opened; raises ENFILE."""
        if len(self.handles) >= MAX_HANDLES:
            if file is not None:
                file.close()
            raise OSError(errno.ENFILE, "too many open files")
        number = self.next_handle
        self.next_handle += 1
        self.handles[number] = Handle(inode, file, flags)
        inode.opens += file is not None
        return number

    def release(self, number: int) -> None:
        """Close what is open under a number; raises EBADF."""
        self._shut(self.handle(number))
        del self.handles[number]

    @staticmethod
    def _shut(handle: Handle) -> None:
        handle.closing = True
        handle.inode.opens -= handle.file is not None
        if handle.file is not None and not handle.users:
            handle.file.close()


def signature(found: Attributes) -> tuple[int, ...]:
    """Return what tells that somebody has changed a file, or put another in its place."""
    return found.size, found.mtime, found.ctime, found.links


def validity(tree: Tree) -> tuple[int, int]:
    """Return for how long the guest may believe what it was told: seconds, nanoseconds."""
    return int(tree.validity), int(tree.validity % 1 * NANOSECONDS)


def pack_attributes(found: Attributes, number: int, submount: bool) -> bytes:
    """Return struct fuse_attr."""
    billion = NANOSECONDS
    return wire.ATTRIBUTES.pack(
        number,
        found.size,
        found.blocks,
        found.atime // billion & _64,
        found.mtime // billion & _64,
        found.ctime // billion & _64,
        found.atime % billion,
        found.mtime % billion,
        found.ctime % billion,
        found.mode,
        found.links & _32,
        found.uid & _32,
        found.gid & _32,
        device_number(found.rdev),
        found.block_size & _32,
        wire.ATTR_SUBMOUNT if submount else 0,
    )


def device_number(rdev: int) -> int:
    """Return a device number as the kernel's new_encode_dev has it, in 32 bits."""
    return rdev & _32
