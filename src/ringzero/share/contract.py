"""What can be shared with a guest: a tree of files, kept and served by whatever it is.

    @BACKENDS.register("host")
    class HostTree(Tree): ...

A tree gives out nodes, which are its own; whoever serves it says how often it holds each one
(`forget`). Every method raises OSError with Linux's number for what the guest is to be told, and
nothing else for whatever a guest may ask: any name, size, offset, or order. One thread at a time
calls a tree, but for the methods of an open `File` that move bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from ringzero.registry import Registry

# What a guest's caller is: the numbers of its user and its group.
Owner = tuple[int, int]


class Attributes(NamedTuple):
    """What stat(2) tells of a node, as the guest sees it. Times are in nanoseconds."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int
    block_size: int
    # Of the file system on the host that has it; not for the guest.
    device: int


class Change(NamedTuple):
    """What SETATTR changes; None stays. A time is nanoseconds, or NOW."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    # A write by who may not keep them takes set-uid and set-gid bits away.
    kill: bool = False


NOW = -1


class Entry(NamedTuple):
    """A name in a directory; `kind` is DT_* (dirent.h)."""

    name: bytes
    ino: int
    kind: int


class Node:
    """A file, directory, or other thing in a tree, as long as the guest knows of it."""

    __slots__ = ("key", "kind", "tree")

    def __init__(self, tree: Tree, key: tuple[int, ...], kind: int) -> None:
        self.tree = tree
        # The same for the same thing in one tree.
        self.key = key
        # Its S_IFMT, which never changes.
        self.kind = kind


class File(ABC):
    """An open file. Reads, writes and `sync` come from several threads at once."""

    @abstractmethod
    def read_into(self, offset: int, views: Sequence[memoryview]) -> int:
        """Fill `views`; return how many bytes there were."""

    @abstractmethod
    def write_from(self, offset: int, views: Sequence[memoryview]) -> int:
        """Write `views` at `offset`, or to the end of a file opened to append."""

    @abstractmethod
    def sync(self, *, data_only: bool) -> None:
        """Return when it is on the medium."""

    @abstractmethod
    def allocate(self, mode: int, offset: int, length: int) -> None:
        """As fallocate(2)."""

    @abstractmethod
    def seek(self, offset: int, whence: int) -> int:
        """Return where data or a hole begins, as lseek(2) with SEEK_DATA and SEEK_HOLE."""

    @abstractmethod
    def copy_to(self, offset: int, target: File, target_offset: int, length: int) -> int:
        """As copy_file_range(2)."""

    @abstractmethod
    def flock(self, operation: int) -> None:
        """As flock(2) with LOCK_NB."""

    @abstractmethod
    def close(self) -> None:
        """Give it back."""


class Locks(ABC):
    """The record locks that one owner has on one node, apart from all others'."""

    @abstractmethod
    def get(self, kind: int, start: int, end: int) -> tuple[int, int, int]:
        """Return (kind, start, end) of a lock that is in the way, or kind F_UNLCK."""

    @abstractmethod
    def set(self, kind: int, start: int, end: int) -> None:
        """Take or drop a lock; raises BlockingIOError where another is in the way."""

    @abstractmethod
    def close(self) -> None:
        """Drop all of them."""


class Tree(ABC):
    """One tree that is shared. What a back end cannot do it leaves: the guest gets ENOSYS or EROFS.

    The guest may believe names and attributes for `validity` seconds; 0 has it ask each time.
    """

    read_only: bool = False
    validity: float = 1.0
    # Whether what is beneath is one file system to the guest, whatever devices it is on: overlayfs
    # does not look into submounts.
    joined: bool = False

    @classmethod
    def open(cls, source: str, *, read_only: bool, ownership: str) -> Tree:
        """Return the tree that `source` names; raises ConfigError, HostError."""
        raise NotImplementedError

    @abstractmethod
    def root(self) -> Node:
        """Return the node where the tree begins."""

    @abstractmethod
    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Attributes]:
        """Return what is called `name` (never "." or "..", no slash) in a directory."""

    @abstractmethod
    def attributes(self, node: Node) -> Attributes:
        """Return what stat(2) tells."""

    @abstractmethod
    def entries(self, node: Node) -> list[Entry]:
        """Return what a directory holds, without "." and ".."."""

    @abstractmethod
    def read_link(self, node: Node) -> bytes:
        """Return the text of a symbolic link, which is the guest's to follow."""

    def forget(self, node: Node) -> None:
        """Nobody knows of the node any more."""
        return

    def change(self, node: Node, change: Change) -> Attributes:
        """Set attributes; all or nothing is not promised, as it is not by Linux."""
        raise _refusal()

    def open_file(self, node: Node, flags: int) -> File:
        """Open a regular file with O_* flags; O_CREAT and O_EXCL are not among them."""
        raise _refusal()

    def create(
        self, parent: Node, name: bytes, flags: int, mode: int, owner: Owner
    ) -> tuple[Node, Attributes, File]:
        """Make and open a regular file, or open what another has just made."""
        raise _refusal()

    def create_unnamed(
        self, parent: Node, flags: int, mode: int, owner: Owner
    ) -> tuple[Node, Attributes, File]:
        """Make and open a regular file without a name, which `link` may give it (O_TMPFILE)."""
        raise OSError(errno.EOPNOTSUPP, "no files without names")

    def make(
        self, parent: Node, name: bytes, mode: int, rdev: int, owner: Owner
    ) -> tuple[Node, Attributes]:
        """Make a directory, an empty file, or what else `mode` says."""
        raise _refusal()

    def symlink(
        self, parent: Node, name: bytes, target: bytes, owner: Owner
    ) -> tuple[Node, Attributes]:
        """Make a symbolic link."""
        raise _refusal()

    def link(self, node: Node, parent: Node, name: bytes) -> Attributes:
        """Give a file another name."""
        raise _refusal()

    def unlink(self, parent: Node, name: bytes, *, directory: bool) -> None:
        """Take a name away, of a directory or of anything else."""
        raise _refusal()

    def rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> None:
        """As renameat2(2): RENAME_NOREPLACE and RENAME_EXCHANGE."""
        raise _refusal()

    def statistics(self, node: Node) -> os.statvfs_result:
        """Return what statvfs(3) tells of the file system."""
        return os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))

    def sync(self, node: Node, *, data_only: bool) -> None:
        """Bring a directory's names to the medium."""
        return

    def sync_all(self) -> None:
        """Bring everything of the tree to the medium."""
        return

    def get_xattr(self, node: Node, name: bytes) -> bytes:
        """Return an extended attribute."""
        raise OSError(errno.ENODATA, "no such attribute")

    def set_xattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; flags are XATTR_CREATE and XATTR_REPLACE."""
        raise _refusal()

    def list_xattrs(self, node: Node) -> list[bytes]:
        """Return the names of all extended attributes."""
        return []

    def remove_xattr(self, node: Node, name: bytes) -> None:
        """Take an extended attribute away."""
        raise _refusal()

    def locks(self, node: Node) -> Locks:
        """Return a holder of record locks on a regular file."""
        raise OSError(errno.ENOSYS, "no locks")

    def save_node(self, node: Node) -> Any:
        """Return plain data from which `restore_node` finds the node again."""
        return None

    def restore_node(self, saved: Any) -> Node | None:
        """Return the node that was saved, or None where it is not there any more."""
        return None

    def close(self) -> None:
        """Give everything back."""
        return


def _refusal() -> OSError:
    return OSError(errno.EROFS, "read-only")


def need_writable(*nodes: Node) -> None:
    """Raise EROFS where one of them is in a tree that is shared read-only."""
    for node in nodes:
        if node.tree.read_only:
            raise OSError(errno.EROFS, "shared read-only")


def need_one_tree(one: Node, other: Node) -> Tree:
    """Return the tree that both are in; raises EXDEV."""
    if one.tree is not other.tree:
        raise OSError(errno.EXDEV, "another share")
    return one.tree


def need_directory(node: Node) -> None:
    """Raise ENOTDIR unless it is a directory."""
    if node.kind != stat.S_IFDIR:
        raise OSError(errno.ENOTDIR, "no directory")


BACKENDS: Registry[type[Tree]] = Registry("kind of share", "ringzero.share.backends")
