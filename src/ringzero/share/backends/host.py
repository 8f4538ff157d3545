"""A directory of the host, or a single file.

Nothing outside it is ever reached. Nodes are descriptors (O_PATH): a name is looked up in the
descriptor of its directory, one component at a time, and no symbolic link is followed; a node
whose descriptor was let go is found by openat2 with RESOLVE_BENEATH; a directory that somebody
moves out of what is shared is refused from then on. What opens a file opens the node's own
descriptor anew, and only regular files: FIFOs, sockets and devices are the guest's own affair.
What the guest must not do to the host is kept in attributes (`ringzero.share.host.owners`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Any

from ringzero.errors import ConfigError, HostError
from ringzero.host import beneath
from ringzero.settings import DATA_DIR
from ringzero.share.contract import (
    BACKENDS,
    NOW,
    Attributes,
    Change,
    Entry,
    Node,
    Owner,
    Tree,
)
from ringzero.share.host.files import HostFile, HostLocks
from ringzero.share.host.mounts import KernelMounts
from ringzero.share.host.nodes import HostNode, Nodes, proc_path
from ringzero.share.host.overrides import MADE, Overrides, SideFile
from ringzero.share.host.owners import FOREIGN, Override, Owners

# What of a guest's flags for an open file counts here: how it is written and made durable.
_OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
_ALWAYS = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_DIRENT_REGULAR, _DIRENT_DIRECTORY, _DIRENT_LINK, _DIRENT_UNKNOWN = 8, 4, 10, 0
# What capabilities(7) of a program are kept in; a write takes them away, as Linux does.
_CAPABILITIES = b"security.capability"


@BACKENDS.register("host")
class HostTree(Tree):
    """The directory, or file, `source`; `limit` bounds its descriptors (None: by the process).

    In the directory `beside` is kept of owners and modes what the files themselves cannot have.
    """

    def __init__(
        self,
        source: str | bytes,
        *,
        read_only: bool = False,
        owners: Owners | None = None,
        limit: int | None = None,
        beside: Path | None = None,
    ) -> None:
        self.read_only = read_only
        self._owners = owners or Owners(os.geteuid() == 0)
        fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
                raise OSError(errno.EINVAL, "it is neither a directory nor a file")
            key, kind = (found.st_dev, found.st_ino), stat.S_IFMT(found.st_mode)
            self._root = HostNode(self, key, kind, None, b"")
            self._root.fd, self._root.pinned = fd, True
            self._nodes = Nodes(self._root, limit)
            place = os.readlink(proc_path(fd))  # noqa: PTH115 - bytes
            self._overrides = Overrides(found.st_dev, SideFile(place, beside))
        except BaseException:
            os.close(fd)
            raise
        self._mounts = KernelMounts()

    @classmethod
    def open(cls, source: str, *, read_only: bool, ownership: str) -> Tree:
        owners = Owners(ownership == "host" or os.geteuid() == 0)
        try:
            return cls(source, read_only=read_only, owners=owners, beside=DATA_DIR.get() / "owners")
        except FileNotFoundError as fault:
            if fault.filename is not None and b"/proc/" in os.fsencode(fault.filename):
                raise HostError("shares need /proc on the host", hint="mount it") from fault
            raise ConfigError(
                [f"the shared folder {source} does not exist"], hint="check the path"
            ) from fault
        except OSError as fault:
            raise HostError(
                f"cannot share {source}: {fault.strerror}", hint="check the path", path=source
            ) from fault

    def root(self) -> Node:
        return self._root

    # ---- looking ----------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, Attributes]:
        above = _own(parent)
        directory = self._directory(above)
        # Most names lead to what is held already: nothing need be opened for them.
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        node = self._nodes.held(found, above, name)
        if node is not None:
            return node, self._shown(node, found)
        return self._found(above, directory, name)

    def _found(self, above: HostNode, directory: int, name: bytes) -> tuple[HostNode, Attributes]:
        fd = self._nodes.opened(
            lambda: os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        )
        try:
            found = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        node = self._nodes.take(fd, found, above, name)
        return node, self._shown(node, found)

    def attributes(self, node: Node) -> Attributes:
        own = _own(node)
        return self._shown(own, self._nodes.status(own))

    def _shown(self, node: HostNode, found: os.stat_result) -> Attributes:
        override = self._overrides.of(node, found)
        mode, uid, gid, rdev = self._owners.shown(found, override)
        node.kind = stat.S_IFMT(mode)
        device = self._root.key[0]
        joined = self.joined and found.st_dev != device
        return Attributes(
            _apart(found.st_ino, found.st_dev) if joined else found.st_ino,
            found.st_size,
            found.st_blocks,
            found.st_atime_ns,
            found.st_mtime_ns,
            found.st_ctime_ns,
            mode,
            found.st_nlink,
            uid,
            gid,
            rdev,
            found.st_blksize,
            device if joined else found.st_dev,
        )

    def entries(self, node: Node) -> list[Entry]:
        directory = self._directory(_own(node))
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = self._nodes.opened(lambda: os.open(b".", flags, dir_fd=directory))
        try:
            with os.scandir(fd) as found:
                device = node.key[0]
                apart = self.joined and device != self._root.key[0]
                return [
                    Entry(
                        os.fsencode(e.name),
                        _apart(e.inode(), device) if apart else e.inode(),
                        _kind_of(e),
                    )
                    for e in found
                ]
        finally:
            os.close(fd)

    def read_link(self, node: Node) -> bytes:
        return os.readlink(b"", dir_fd=self._nodes.fd(_own(node)))

    def forget(self, node: Node) -> None:
        own = _own(node)
        if own.pinned and own is not self._root:
            self._overrides.leave(own)
        self._nodes.forget(own)

    def statistics(self, node: Node) -> os.statvfs_result:
        return os.statvfs(self._nodes.fd(_own(node)))

    def _directory(self, node: HostNode) -> int:
        if node.host_kind != stat.S_IFDIR:
            raise OSError(errno.ENOTDIR, "no directory")
        device = node.key[0]
        if device != self._root.key[0] and self._mounts.has(device):
            raise OSError(errno.EACCES, "a file system of the host's kernel")
        return self._nodes.fd(node)

    # ---- attributes -------------------------------------------------------

    def change(self, node: Node, change: Change) -> Attributes:
        own = _own(node)
        fd = self._nodes.fd(own)
        place = proc_path(fd)
        found = os.fstat(fd)
        before = self._shown(own, found)
        if change.size is not None:
            if own.kind != stat.S_IFREG or own.host_kind != stat.S_IFREG:
                raise OSError(errno.EISDIR if own.kind == stat.S_IFDIR else errno.EINVAL, "size")
            if change.size >= 1 << 63:
                raise OSError(errno.EFBIG, "too large")
            os.truncate(place, change.size)
        mode, uid, gid = before.mode, before.uid, before.gid
        if change.mode is not None:
            mode = stat.S_IFMT(mode) | stat.S_IMODE(change.mode)
        uid = uid if change.uid is None else change.uid
        gid = gid if change.gid is None else change.gid
        if change.kill and own.kind == stat.S_IFREG:
            mode = without_set_ids(mode)
            self._drop_capabilities(own, place)
        wanted = mode, uid, gid
        if wanted != (before.mode, before.uid, before.gid):
            self._set_owner(own, fd, *wanted, before.rdev)
        if change.atime is not None or change.mtime is not None:
            _set_times(place, found, change.atime, change.mtime)
        return self.attributes(own)

    def _set_owner(self, node: HostNode, fd: int, mode: int, uid: int, gid: int, rdev: int) -> None:
        """Make mode and owner what the guest says, on the host as far as that may be."""
        place = proc_path(fd)
        found = os.fstat(fd)
        if self._owners.real and (uid, gid) != (found.st_uid, found.st_gid):
            os.chown(place, uid, gid)
        if node.host_kind != stat.S_IFLNK and (node.kind in MADE):
            on_host = self._owners.on_host(mode)
            if stat.S_IMODE(os.fstat(fd).st_mode) != on_host:
                os.chmod(place, on_host)  # noqa: PTH101 - bytes
        found = os.fstat(fd)
        if self._owners.shown(found, None) == (mode, uid, gid, found.st_rdev) and (
            stat.S_IFMT(mode) == stat.S_IFMT(found.st_mode)
        ):
            self._overrides.clear(node, place)
        else:
            override = Override(uid, gid, mode, rdev, found.st_mode)
            self._overrides.store(node, place, override)

    def _drop_capabilities(self, node: HostNode, place: bytes) -> None:
        if node.known_override is not None or self._owners.real:
            with contextlib.suppress(OSError):
                os.removexattr(place, FOREIGN + _CAPABILITIES)

    # ---- files ------------------------------------------------------------

    def open_file(self, node: Node, flags: int) -> HostFile:
        own = _own(node)
        if own.host_kind != stat.S_IFREG or own.kind != stat.S_IFREG:
            # A FIFO would block, and a device act.
            raise OSError(errno.EISDIR if own.kind == stat.S_IFDIR else errno.ENXIO, "no file")
        fd = self._nodes.fd(own)
        how = flags & _OPEN_FLAGS | _ALWAYS
        return HostFile(self._nodes.opened(lambda: os.open(proc_path(fd), how)))

    def create(
        self, parent: Node, name: bytes, flags: int, mode: int, owner: Owner
    ) -> tuple[Node, Attributes, HostFile]:
        above = _own(parent)
        directory = self._directory(above)
        how = flags & _OPEN_FLAGS & ~os.O_TRUNC | _ALWAYS | os.O_CREAT | os.O_EXCL
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        try:
            fd = self._nodes.opened(
                lambda: os.open(name, how, self._owners.on_host(mode), dir_fd=directory)
            )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # Somebody else has just made it.
            node, _ = self._found(above, directory, name)
            file = self.open_file(node, flags)
            return node, self.attributes(node), file
        file = HostFile(fd)
        try:
            node, shown = self._adopt(above, directory, name, mode, 0, owner)
        except BaseException:
            file.close()
            raise
        return node, shown, file

    def make(
        self, parent: Node, name: bytes, mode: int, rdev: int, owner: Owner
    ) -> tuple[Node, Attributes]:
        above = _own(parent)
        directory = self._directory(above)
        if stat.S_ISDIR(mode):
            os.mkdir(name, self._owners.on_host(mode), dir_fd=directory)
        elif stat.S_IFMT(mode) in (
            *(stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
        ):
            how = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _ALWAYS
            permissions = self._owners.on_host(stat.S_IFREG | stat.S_IMODE(mode))
            os.close(self._nodes.opened(lambda: os.open(name, how, permissions, dir_fd=directory)))
        else:
            raise OSError(errno.EINVAL, "no type of file")
        return self._adopt(above, directory, name, mode, rdev, owner)

    def symlink(
        self, parent: Node, name: bytes, target: bytes, owner: Owner
    ) -> tuple[Node, Attributes]:
        above = _own(parent)
        directory = self._directory(above)
        os.symlink(target, name, dir_fd=directory)
        return self._adopt(above, directory, name, stat.S_IFLNK | 0o777, 0, owner)

    def _adopt(
        self, above: HostNode, directory: int, name: bytes, mode: int, rdev: int, owner: Owner
    ) -> tuple[HostNode, Attributes]:
        """Return the node that was just made, with the owner and mode that it is to have."""
        node, shown = self._found(above, directory, name)
        return node, self._owned(node, shown, above, mode, rdev, owner)

    def _owned(
        self,
        node: HostNode,
        shown: Attributes,
        above: HostNode,
        mode: int,
        rdev: int,
        owner: Owner,
    ) -> Attributes:
        """Give what was just made its owner and mode; return what it then has."""
        uid, gid = owner
        inherited = self.attributes(above)
        if inherited.mode & stat.S_ISGID:
            gid = inherited.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        if node.host_kind == stat.S_IFLNK:
            mode = shown.mode
        if (shown.mode, shown.uid, shown.gid, shown.rdev) == (mode, uid, gid, rdev):
            return shown
        node.kind = stat.S_IFMT(mode)
        self._set_owner(node, self._nodes.fd(node), mode, uid, gid, rdev)
        return self.attributes(node)

    def create_unnamed(
        self, parent: Node, flags: int, mode: int, owner: Owner
    ) -> tuple[Node, Attributes, HostFile]:
        above = _own(parent)
        directory = self._directory(above)
        how = flags & (os.O_ACCMODE | os.O_SYNC | os.O_DSYNC | os.O_EXCL) | _ALWAYS | os.O_TMPFILE
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        fd = self._nodes.opened(
            lambda: os.open(b".", how, self._owners.on_host(mode), dir_fd=directory)
        )
        file = HostFile(fd)
        try:
            place = self._nodes.opened(lambda: os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC))
            found = os.fstat(place)
            node = self._nodes.take(place, found, above, b"")
            # No path leads to it.
            self._nodes.pin(node)
            shown = self._owned(node, self._shown(node, found), above, mode, 0, owner)
        except BaseException:
            file.close()
            raise
        return node, shown, file

    def link(self, node: Node, parent: Node, name: bytes) -> Attributes:
        above, own = _own(parent), _own(node)
        if own.host_kind == stat.S_IFDIR:
            raise OSError(errno.EPERM, "no links of directories")
        place = proc_path(self._nodes.fd(own))
        os.link(place, name, dst_dir_fd=self._directory(above), follow_symlinks=True)
        own.parent, own.name = above, name
        return self.attributes(own)

    def unlink(self, parent: Node, name: bytes, *, directory: bool) -> None:
        above = self._directory(_own(parent))
        self._keep(above, name)
        if directory:
            os.rmdir(name, dir_fd=above)
        else:
            os.unlink(name, dir_fd=above)

    def _keep(self, directory: int, name: bytes) -> None:
        """Hold what is called so: the guest may have it open, and its name goes away."""
        node = self._nodes.known(directory, name)
        if node is not None:
            self._nodes.pin(node)

    def rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> None:
        above, new_above = _own(parent), _own(new_parent)
        source, target = self._directory(above), self._directory(new_above)
        if flags not in (0, beneath.RENAME_NOREPLACE, beneath.RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "no such way to rename")
        moved = self._nodes.known(source, name)
        replaced = self._nodes.known(target, new_name)
        exchange = flags == beneath.RENAME_EXCHANGE
        if replaced is not None and replaced is not moved and not exchange:
            self._nodes.pin(replaced)
        beneath.rename(source, name, target, new_name, flags)
        if moved is not None and moved is not self._root:
            moved.parent, moved.name = new_above, new_name
        if exchange and replaced is not None and replaced is not self._root:
            replaced.parent, replaced.name = above, name

    def sync(self, node: Node, *, data_only: bool) -> None:
        own = _own(node)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if own.host_kind not in MADE:
            return
        place = proc_path(self._nodes.fd(own))
        fd = self._nodes.opened(lambda: os.open(place, flags))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_all(self) -> None:
        fd = os.open(proc_path(self._nodes.fd(self._root)), os.O_RDONLY | os.O_CLOEXEC)
        try:
            beneath.syncfs(fd)
        finally:
            os.close(fd)

    # ---- extended attributes ----------------------------------------------

    def get_xattr(self, node: Node, name: bytes) -> bytes:
        return os.getxattr(self._place(node), _stored(name))

    def set_xattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        _own(node).known_ctime = -1
        os.setxattr(self._place(node), _stored(name), value, flags)

    def list_xattrs(self, node: Node) -> list[bytes]:
        names = map(os.fsencode, os.listxattr(self._place(node)))
        return [shown for name in names if (shown := _visible(name)) is not None]

    def remove_xattr(self, node: Node, name: bytes) -> None:
        os.removexattr(self._place(node), _stored(name))

    def _place(self, node: Node) -> bytes:
        own = _own(node)
        place = proc_path(self._nodes.fd(own))
        if own.host_kind not in MADE:
            # Linux keeps user attributes with files and directories alone.
            raise OSError(errno.ENOTSUP, "no attributes")
        return place

    # ---- locks, state -----------------------------------------------------

    def locks(self, node: Node) -> HostLocks:
        own = _own(node)
        if own.host_kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "no file")
        place = proc_path(self._nodes.fd(own))
        try:
            fd = self._nodes.opened(lambda: os.open(place, os.O_RDWR | _ALWAYS))
        except (PermissionError, OSError) as fault:
            if fault.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            fd = self._nodes.opened(lambda: os.open(place, os.O_RDONLY | _ALWAYS))
        return HostLocks(fd)

    def save_node(self, node: Node) -> Any:
        own = _own(node)
        return [os.fsdecode(own.path()), *own.key]

    def restore_node(self, saved: Any) -> Node | None:
        try:
            path, device, inode = saved
            names = [os.fsencode(name) for name in str(path).split("/") if name not in ("", ".")]
            node: HostNode = self._root
            for name in names:
                if name == b".." or len(name) > 255:
                    return None
                node, _ = self._found(node, self._directory(node), name)
        except (OSError, ValueError, TypeError):
            return None
        # On another host the numbers are others; there the path alone must do.
        return node if node.key == (device, inode) or not names else None

    def close(self) -> None:
        self._nodes.close()
        self._overrides.close()


def _apart(number: int, device: int) -> int:
    """Return an inode's number so that those of other devices are others."""
    return number ^ (device * 0x9E3779B1 & 0xFFFF) << 48


def _own(node: Node) -> HostNode:
    assert isinstance(node, HostNode)
    return node


def without_set_ids(mode: int) -> int:
    """Return the mode that is left when somebody writes (chown(2), notes on S_ISGID)."""
    if mode & stat.S_IXGRP:
        return mode & ~_SET_IDS
    return mode & ~stat.S_ISUID


def _kind_of(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return _DIRENT_LINK
    if entry.is_dir(follow_symlinks=False):
        return _DIRENT_DIRECTORY
    return _DIRENT_REGULAR if entry.is_file(follow_symlinks=False) else _DIRENT_UNKNOWN


def _set_times(place: bytes, found: os.stat_result, atime: int | None, mtime: int | None) -> None:
    if atime == NOW and mtime == NOW:
        os.utime(place)
        return
    import time

    now = time.time_ns()
    times = [
        old if new is None else now if new == NOW else new
        for new, old in ((atime, found.st_atime_ns), (mtime, found.st_mtime_ns))
    ]
    os.utime(place, ns=(times[0], times[1]))


def _stored(name: bytes) -> bytes:
    """Return under which name the host keeps an attribute of the guest's."""
    if name.startswith(b"user.ringzero."):
        raise OSError(errno.EPERM, "kept for the host")
    if name.startswith(b"user."):
        return name
    if name.startswith((b"security.", b"trusted.")):
        return FOREIGN + name
    raise OSError(errno.ENOTSUP, "no such name space")


def _visible(name: bytes) -> bytes | None:
    """Return what the guest calls an attribute of the host's; None hides it."""
    if name.startswith(FOREIGN):
        return name.removeprefix(FOREIGN)
    if name.startswith(b"user.") and not name.startswith(b"user.ringzero."):
        return name
    return None
