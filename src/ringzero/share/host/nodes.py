"""Nodes of a host directory, each held by a descriptor; bounded in number.

A process may have so many open files (RLIMIT_NOFILE), and a guest knows any number of nodes.
Those held longest are let go, and found again by their path when they are used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Callable
from typing import TypeVar

from ringzero.host.beneath import open_beneath
from ringzero.share.contract import Node, Tree
from ringzero.share.host.owners import Override

T = TypeVar("T")

# Of the open files that the process may have, the nodes of one tree take a quarter: the rest is
# for the guest's own open files, other trees, disks and connections. More than the second number
# saves no time.
_SHARE, _MOST, _LEAST = 4, 32768, 16
# How many are let go where the process has no descriptor left.
_AT_ONCE = 64


class HostNode(Node):
    """A node of a host directory: `fd` is an O_PATH descriptor, or None while it is not held."""

    __slots__ = (
        "fd", "host_kind", "known_ctime", "known_override", "name", "parent", "pinned"
    )  # fmt: skip

    def __init__(
        self, tree: Tree, key: tuple[int, int], kind: int, parent: HostNode | None, name: bytes
    ) -> None:
        super().__init__(tree, key, kind)
        # What it is on the host, where the guest may see a device.
        self.host_kind = kind
        self.parent = parent
        self.name = name
        self.fd: int | None = None
        # No path leads to it any more, or it is the root: its descriptor stays.
        self.pinned = False
        # What its attribute said at this change time.
        self.known_ctime = -1
        self.known_override: Override | None = None

    def path(self) -> bytes:
        """Return the way from the root, as far as we were told of renames."""
        names: list[bytes] = []
        node: HostNode | None = self
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names)) or b"."


class Nodes:
    """The nodes below the directory (or file) that `root` is open on, with O_PATH.

    `limit` is how many of them are held at most, but for pinned ones.
    """

    def __init__(self, root: HostNode, limit: int | None = None) -> None:
        assert root.fd is not None
        self.root, self._root_fd = root, root.fd
        self.limit = _limit() if limit is None else limit
        self._root_path = _path_of(root.fd)
        self._known: dict[tuple[int, ...], HostNode] = {root.key: root}
        # In the order in which they were opened.
        self._held: dict[HostNode, None] = {}

    def __len__(self) -> int:
        return len(self._held)

    # ---- descriptors ------------------------------------------------------

    def fd(self, node: HostNode) -> int:
        """Return the descriptor of a node, which lies beneath the root now.

        Raises ESTALE where it is not there any more, or was taken out of what is shared.
        """
        fd = node.fd
        if fd is None:
            fd = self._find_again(node)
        elif node is not self.root and not self._is_beneath(fd):
            raise OSError(errno.ESTALE, "it was moved out of what is shared")
        return fd

    def status(self, node: HostNode) -> os.stat_result:
        """Return what stat(2) tells of a node, which lies beneath the root now; raises as `fd`."""
        parent = node.parent
        named = node.fd is not None and node.host_kind != stat.S_IFDIR
        if named and parent is not None and parent.fd is not None:
            # Asked for by its name in a directory that is beneath: /proc takes long to tell where
            # a descriptor leads of which it is asked for the first time.
            with contextlib.suppress(OSError):
                directory = self.fd(parent)
                found = os.stat(node.name, dir_fd=directory, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == node.key and (
                    stat.S_IFMT(found.st_mode) == node.host_kind
                ):
                    return found
        return os.fstat(self.fd(node))

    def opened(self, opening: Callable[[], T]) -> T:
        """Return what `opening` opens, after letting nodes go where no descriptor is left."""
        try:
            return opening()
        except OSError as fault:
            if fault.errno != errno.EMFILE or not self._held:
                raise
        for _ in range(_AT_ONCE):
            self._let_one_go()
        return opening()

    def _is_beneath(self, fd: int) -> bool:
        path = _path_of(fd)
        if self._contains(path):
            return True
        # The root itself may have moved.
        self._root_path = _path_of(self._root_fd)
        return self._contains(path)

    def _contains(self, path: bytes) -> bool:
        root = self._root_path
        return root == b"/" or path.startswith(root + b"/")

    def _find_again(self, node: HostNode) -> int:
        """Open a node that was let go, by its path."""
        try:
            fd = self.opened(lambda: open_beneath(self._root_fd, node.path(), os.O_PATH))
        except OSError as fault:
            if fault.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise OSError(errno.ESTALE, "it is not there any more") from fault
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != node.key or stat.S_IFMT(found.st_mode) != node.host_kind:
            os.close(fd)
            raise OSError(errno.ESTALE, "something else has its name")
        self._hold(node, fd)
        return fd

    def _hold(self, node: HostNode, fd: int) -> None:
        while len(self._held) >= self.limit:
            self._let_one_go()
        node.fd = fd
        if not node.pinned:
            self._held[node] = None

    def _let_one_go(self) -> None:
        node = next(iter(self._held), None)
        if node is not None:
            del self._held[node]
            if node.fd is not None:
                os.close(node.fd)
                node.fd = None

    def pin(self, node: HostNode) -> None:
        """Keep a node's descriptor: its last name goes away."""
        if node is not self.root:
            with contextlib.suppress(OSError):
                self.fd(node)
                node.pinned = True
                self._held.pop(node, None)

    # ---- nodes ------------------------------------------------------------

    def take(self, fd: int, found: os.stat_result, parent: HostNode, name: bytes) -> HostNode:
        """Return the node that `fd`, which is given away, is open on; `name` leads to it."""
        key = found.st_dev, found.st_ino
        node = self._known.get(key)
        if node is not None and node.host_kind == stat.S_IFMT(found.st_mode):
            if node is not self.root:
                node.parent, node.name = parent, name
            if node.fd is None:
                self._hold(node, fd)
            else:
                os.close(fd)
            return node
        # Another thing has the number of one that was let go, and is gone.
        node = HostNode(parent.tree, key, stat.S_IFMT(found.st_mode), parent, name)
        self._known[key] = node
        self._hold(node, fd)
        return node

    def held(self, found: os.stat_result, parent: HostNode, name: bytes) -> HostNode | None:
        """Return the node with these attributes if it is held; `name` leads to it."""
        node = self._known.get((found.st_dev, found.st_ino))
        if node is None or node.fd is None:
            return None
        if node is not self.root:
            node.parent, node.name = parent, name
        return node

    def known(self, directory: int, name: bytes) -> HostNode | None:
        """Return the node that a name in a directory leads to, if the guest knows of it."""
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None
        return self._known.get((found.st_dev, found.st_ino))

    def forget(self, node: HostNode) -> None:
        """Let go of a node that the guest does not know any more."""
        if node is self.root:
            return
        if self._known.get(node.key) is node:
            del self._known[node.key]
        self._held.pop(node, None)
        if node.fd is not None:
            os.close(node.fd)
            node.fd = None

    def close(self) -> None:
        """Close all descriptors, the root's too."""
        for node in self._known.values():
            if node.fd is not None:
                os.close(node.fd)
                node.fd = None
        self._known.clear()
        self._held.clear()


def proc_path(fd: int) -> bytes:
    """Return a path that opens anew what `fd` is open on."""
    return b"/proc/self/fd/%d" % fd


def _path_of(fd: int) -> bytes:
    return os.readlink(proc_path(fd))  # noqa: PTH115 - bytes


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, soft // _SHARE))
