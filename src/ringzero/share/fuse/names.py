"""Requests about names and attributes: each is given the session, whose lock is held."""

from __future__ import annotations

import errno
import stat

from ringzero.share.contract import NOW, Attributes, Change, Node, need_one_tree, need_writable
from ringzero.share.fuse import wire
from ringzero.share.fuse.session import Inode, Request, Session, validity
from ringzero.share.message import NAME_MAX, PATH_MAX, XATTR_SIZE_MAX, time_of

_DIRENT_DIRECTORY = 4
# What a listing may take of memory, in bytes of its answer.
_MOST_LISTED = 1 << 20
# Names of one directory are numbered, as the guest's offset, from here; before are "." and "..".
_FIRST = 2
_XATTR_FLAGS = 3


def lookup(session: Session, request: Request) -> bytes:
    parent = session.inode(request.node)
    name = request.body.name()
    return session.entry(parent, *parent.node.tree.lookup(parent.node, name))


def forget(session: Session, request: Request) -> None:
    (count,) = request.body.take(wire.NUMBER)
    session.forget(request.node, count)


def batch_forget(session: Session, request: Request) -> None:
    count, _ = request.body.take(wire.OPEN)
    for _ in range(count):
        session.forget(*request.body.take(wire.FORGET_ONE))


def _attributes_out(session: Session, inode: Inode, found: Attributes) -> bytes:
    seconds, nanoseconds = validity(inode.node.tree)
    valid = wire.ATTRIBUTES_VALID.pack(seconds, nanoseconds, 0)
    return valid + session.attributes(inode, found)


def get_attributes(session: Session, request: Request) -> bytes:
    request.body.take(wire.GETATTR)
    inode = session.inode(request.node)
    return _attributes_out(session, inode, inode.node.tree.attributes(inode.node))


def set_attributes(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = (
        request.body.take(wire.SETATTR)
    )
    need_writable(inode.node)

    def time(bit: int, now_bit: int, seconds: int, nanoseconds: int) -> int | None:
        if valid & now_bit:
            return NOW
        if not valid & bit:
            return None
        return time_of(seconds, nanoseconds)

    change = Change(
        mode=mode if valid & wire.SET_MODE else None,
        uid=uid if valid & wire.SET_UID else None,
        gid=gid if valid & wire.SET_GID else None,
        size=size if valid & wire.SET_SIZE else None,
        atime=time(wire.SET_ATIME, wire.SET_ATIME_NOW, atime, atime_ns),
        mtime=time(wire.SET_MTIME, wire.SET_MTIME_NOW, mtime, mtime_ns),
        # A change of owner always takes set-id bits of files away (chown(2)).
        kill=bool(valid & (wire.SET_KILL | wire.SET_UID | wire.SET_GID))
        and not valid & wire.SET_MODE,
    )
    return _attributes_out(session, inode, inode.node.tree.change(inode.node, change))


def read_link(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    if inode.node.kind != stat.S_IFLNK:
        raise OSError(errno.EINVAL, "no link")
    return inode.node.tree.read_link(inode.node)


def symlink(session: Session, request: Request) -> bytes:
    parent = session.inode(request.node)
    name = request.body.name()
    target = request.body.text(PATH_MAX - 1)
    if not target:
        raise OSError(errno.ENOENT, "a link to nothing")
    need_writable(parent.node)
    owner = request.uid, request.gid
    return session.entry(parent, *parent.node.tree.symlink(parent.node, name, target, owner))


def make_node(session: Session, request: Request) -> bytes:
    mode, rdev, _, _ = request.body.take(wire.MKNOD)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EPERM, "directories are made otherwise")
    return _make(session, request, mode, rdev)


def make_directory(session: Session, request: Request) -> bytes:
    mode, _ = request.body.take(wire.MKDIR)
    return _make(session, request, stat.S_IFDIR | stat.S_IMODE(mode), 0)


def _make(session: Session, request: Request, mode: int, rdev: int) -> bytes:
    parent = session.inode(request.node)
    name = request.body.name()
    need_writable(parent.node)
    if not stat.S_IFMT(mode):
        mode |= stat.S_IFREG
    owner = request.uid, request.gid
    return session.entry(parent, *parent.node.tree.make(parent.node, name, mode, rdev, owner))


def unlink(session: Session, request: Request) -> bytes:
    return _unlink(session, request, False)


def remove_directory(session: Session, request: Request) -> bytes:
    return _unlink(session, request, True)


def _unlink(session: Session, request: Request, directory: bool) -> bytes:
    parent = session.inode(request.node)
    name = request.body.name()
    need_writable(parent.node)
    parent.node.tree.unlink(parent.node, name, directory=directory)
    return b""


def rename(session: Session, request: Request) -> bytes:
    (target,) = request.body.take(wire.NUMBER)
    return _rename(session, request, target, 0)


def rename2(session: Session, request: Request) -> bytes:
    target, flags, _ = request.body.take(wire.RENAME2)
    return _rename(session, request, target, flags)


def _rename(session: Session, request: Request, target: int, flags: int) -> bytes:
    parent, new_parent = session.inode(request.node), session.inode(target)
    name, new_name = request.body.name(), request.body.name()
    tree = need_one_tree(parent.node, new_parent.node)
    need_writable(parent.node)
    tree.rename(parent.node, name, new_parent.node, new_name, flags)
    return b""


def link(session: Session, request: Request) -> bytes:
    (old,) = request.body.take(wire.NUMBER)
    parent, inode = session.inode(request.node), session.inode(old)
    name = request.body.name()
    tree = need_one_tree(parent.node, inode.node)
    need_writable(parent.node)
    found = tree.link(inode.node, parent.node, name)
    return session.entry(parent, inode.node, found)


def statistics(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    found = inode.node.tree.statistics(inode.node)
    return wire.STATFS_OUT.pack(
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_bsize,
        min(found.f_namemax, NAME_MAX),
        found.f_frsize,
        0,
    )


def access(session: Session, request: Request) -> bytes:
    """The guest's kernel checks permissions by itself (default_permissions)."""
    session.inode(request.node)
    return b""


# ---- directories ----------------------------------------------------------


def open_directory(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    if inode.node.kind != stat.S_IFDIR:
        raise OSError(errno.ENOTDIR, "no directory")
    return wire.OPEN_OUT.pack(session.add_handle(inode, None, 0), 0, 0)


def read_directory(session: Session, request: Request) -> bytes:
    return _list(session, request, False)


def read_directory_plus(session: Session, request: Request) -> bytes:
    return _list(session, request, True)


def _list(session: Session, request: Request, plus: bool) -> bytes:
    """Names are listed as they were when the guest began at the front: offsets stay good."""
    number, offset, size, *_ = request.body.take(wire.TRANSFER)
    inode = session.inode(request.node)
    handle = session.handle(number, inode)
    tree = inode.node.tree
    if handle.file is not None:
        raise OSError(errno.ENOTDIR, "a file")
    if handle.entries is None or offset == 0:
        handle.entries = tree.entries(inode.node)
    room = min(size, request.room, _MOST_LISTED)
    found: list[bytes] = []
    head = wire.ENTRY.size + wire.ATTRIBUTES.size if plus else 0
    own = session.number_of(tree.attributes(inode.node)) if offset < _FIRST else 0
    for at in range(offset, len(handle.entries) + _FIRST):
        if at < _FIRST:
            name, ino, kind = (b".", b"..")[at], own, _DIRENT_DIRECTORY
        else:
            name, ino, kind = handle.entries[at - _FIRST]
        room -= head + wire.DIRENT.size + (len(name) + 7 & ~7)
        if room < 0:
            break
        if plus:
            found.append(_entry_of(session, inode, name) if at >= _FIRST else bytes(head))
        found.append(wire.dirent(ino or 1, at + 1, kind, name))
    return b"".join(found)


def _entry_of(session: Session, parent: Inode, name: bytes) -> bytes:
    """Return the entry of a name, or one that says nothing where it has just gone."""
    try:
        node: Node
        node, found = parent.node.tree.lookup(parent.node, name)
    except OSError:
        return bytes(wire.ENTRY.size + wire.ATTRIBUTES.size)
    return session.entry(parent, node, found)


def release_directory(session: Session, request: Request) -> bytes:
    number, *_ = request.body.take(wire.RELEASE)
    session.release(number)
    return b""


def sync_directory(session: Session, request: Request) -> bytes:
    _, flags, _ = request.body.take(wire.FSYNC)
    inode = session.inode(request.node)
    inode.node.tree.sync(inode.node, data_only=bool(flags & wire.FSYNC_DATA))
    return b""


def sync_file_system(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    inode.node.tree.sync_all()
    return b""


# ---- extended attributes --------------------------------------------------


def _sized(request: Request, value: bytes, size: int) -> bytes:
    """Return an attribute, or its size where the guest asks for that."""
    if size == 0:
        return wire.GETXATTR.pack(len(value), 0)
    if len(value) > min(size, request.room):
        raise OSError(errno.ERANGE, "more than there is room for")
    return value


def get_xattr(session: Session, request: Request) -> bytes:
    size, _ = request.body.take(wire.GETXATTR)
    inode = session.inode(request.node)
    name = request.body.text(wire.XATTR_NAME_MAX)
    return _sized(request, inode.node.tree.get_xattr(inode.node, name), size)


def list_xattrs(session: Session, request: Request) -> bytes:
    size, _ = request.body.take(wire.GETXATTR)
    inode = session.inode(request.node)
    names = inode.node.tree.list_xattrs(inode.node)
    return _sized(request, b"".join(name + b"\0" for name in names), size)


def set_xattr(session: Session, request: Request) -> bytes:
    if session.flags & wire.SETXATTR_EXT:
        size, flags, _, _ = request.body.take(wire.SETXATTR_EXTENDED)
    else:
        size, flags = request.body.take(wire.SETXATTR)
    inode = session.inode(request.node)
    name = request.body.text(wire.XATTR_NAME_MAX)
    if size > XATTR_SIZE_MAX:
        raise OSError(errno.E2BIG, "a large attribute")
    if flags & ~_XATTR_FLAGS:
        raise OSError(errno.EINVAL, "no such flags")
    value = request.body.rest(size)
    need_writable(inode.node)
    inode.node.tree.set_xattr(inode.node, name, value, flags)
    inode.given = None
    return b""


def remove_xattr(session: Session, request: Request) -> bytes:
    inode = session.inode(request.node)
    name = request.body.text(wire.XATTR_NAME_MAX)
    need_writable(inode.node)
    inode.node.tree.remove_xattr(inode.node, name)
    inode.given = None
    return b""
