"""The directory in which a machine finds its shares: each by its number, and where it belongs.

    0        the share itself
    0.at     a symbolic link whose text is the place in the guest
    0.ro     there for a read-only one

All shares of a machine are served by one device, so that they come and go while it runs. The
guest's init binds each to its place (`ringzero/image/guest/init`).
"""

from __future__ import annotations

import contextlib
import errno
import stat
import time
from typing import Any

from ringzero.share.contract import Attributes, Entry, Node, Tree

_DIRECTORY, _LINK = 4, 10
# How the root and its links are numbered; the shares themselves have their own numbers.
_ROOT_INODE, _FIRST_LINK = 1, 2


class _Place(Node):
    """The root, or a link in it: `text` is where the link leads."""

    __slots__ = ("text",)

    def __init__(self, tree: Tree, number: int, kind: int, text: bytes = b"") -> None:
        super().__init__(tree, (number,), kind)
        self.text = text


class Roots(Tree):
    """The shares of one machine by number; they are closed with it."""

    # What is in it changes with every share that comes.
    validity = 0.0

    def __init__(self) -> None:
        self._root = _Place(self, _ROOT_INODE, stat.S_IFDIR)
        self._trees: dict[bytes, Tree] = {}
        self._links: dict[bytes, _Place] = {}
        self._next_link = _FIRST_LINK
        self._made = time.time_ns()

    def add(self, number: int, tree: Tree, target: str) -> None:
        """Have a share, which belongs at `target` in the guest."""
        name = b"%d" % number
        self._trees[name] = tree
        self._add_link(name + b".at", target.encode())
        if tree.read_only:
            self._add_link(name + b".ro", b"ro")

    def _add_link(self, name: bytes, text: bytes) -> None:
        self._links[name] = _Place(self, self._next_link, stat.S_IFLNK, text)
        self._next_link += 1

    def remove(self, number: int) -> Tree | None:
        """Have a share no more; what the guest holds of it is the caller's to end."""
        name = b"%d" % number
        for suffix in (b".at", b".ro"):
            self._links.pop(name + suffix, None)
        return self._trees.pop(name, None)

    def tree(self, number: int) -> Tree | None:
        """Return the share with this number."""
        return self._trees.get(b"%d" % number)

    def number_of(self, tree: Tree) -> int | None:
        """Return which share a tree is; None for this directory itself and for those that went."""
        return next((int(name) for name, other in self._trees.items() if other is tree), None)

    def root(self) -> Node:
        return self._root

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Attributes]:
        tree = self._trees.get(name)
        if tree is not None:
            root = tree.root()
            return root, tree.attributes(root)
        link = self._links.get(name)
        if link is None or parent is not self._root:
            raise OSError(errno.ENOENT, "no such share")
        return link, self.attributes(link)

    def attributes(self, node: Node) -> Attributes:
        text = node.text if isinstance(node, _Place) else b""
        mode = node.kind | (0o777 if text else 0o555)
        made = self._made
        return Attributes(
            node.key[0], len(text), 0, made, made, made, mode, 1 if text else 2, 0, 0, 0, 4096, 0
        )

    def entries(self, node: Node) -> list[Entry]:
        links = [Entry(name, link.key[0], _LINK) for name, link in self._links.items()]
        return [*(Entry(name, 0, _DIRECTORY) for name in self._trees), *links]

    def read_link(self, node: Node) -> bytes:
        if isinstance(node, _Place) and node.kind == stat.S_IFLNK:
            return node.text
        raise OSError(errno.EINVAL, "no link")

    def save_node(self, node: Node) -> Any:
        """Return a link's name, which is the same in every server; "" is the directory."""
        return next((name.decode() for name, link in self._links.items() if link is node), "")

    def restore_node(self, saved: Any) -> Node | None:
        return self._links.get(str(saved).encode()) if saved else self._root

    def sync_all(self) -> None:
        for tree in self._trees.values():
            tree.sync_all()

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            for tree in self._trees.values():
                closing.callback(tree.close)
        self._trees.clear()
