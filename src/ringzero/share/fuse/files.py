"""Requests about open files. Those that move bytes do not hold the session's lock."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from ringzero.core.views import limited
from ringzero.share.contract import Attributes, Change, File, Node, need_writable
from ringzero.share.fuse import wire
from ringzero.share.fuse.session import Inode, Request, Session, signature
from ringzero.share.message import payload

_SET_IDS = stat.S_ISUID | stat.S_ISGID


def open_file(session: Session, request: Request) -> bytes:
    """Open a file: what it holds now is what the guest then sees.

    The guest believes attributes for a while, and has pages in its cache. Where the host has
    changed the file, or put another in its place, since they were given, the guest is told
    ESTALE: Linux then looks the path up again (LOOKUP_REVAL), and comes back with fresh ones.
    """
    flags, open_flags = request.body.take(wire.OPEN)
    inode = session.inode(request.node)
    node, tree = inode.node, inode.node.tree
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        need_writable(node)
    now = signature(tree.attributes(node))
    if inode.given is not None and inode.given != now and not inode.excused and tree.validity:
        inode.excused = True
        raise OSError(errno.ESTALE, "changed on the host")
    fresh = inode.given == now
    inode.excused = False
    file = tree.open_file(node, flags)
    if flags & os.O_TRUNC:
        inode.given = None
        if open_flags & wire.OPEN_KILL:
            tree.change(node, Change(kill=True))
    opened = (wire.OPENED_KEEP_CACHE if fresh else 0) | _direct(inode, flags)
    return wire.OPEN_OUT.pack(session.add_handle(inode, file, flags), opened, 0)


def _direct(inode: Inode, flags: int) -> int:
    """Return the flag for a file whose data go past the guest's cache, where that is right.

    They then come from the program's own memory, in large pieces. Who only writes maps nothing,
    and nobody else has the file open, whose mapping would be left behind.
    """
    alone = flags & os.O_ACCMODE == os.O_WRONLY and not inode.opens
    return wire.OPENED_DIRECT if alone else 0


def create(session: Session, request: Request) -> bytes:
    flags, mode, _, _ = request.body.take(wire.CREATE)
    parent = session.inode(request.node)
    name = request.body.name()
    need_writable(parent.node)
    tree, owner = parent.node.tree, (request.uid, request.gid)
    return _created(session, parent, flags, tree.create(parent.node, name, flags, mode, owner))


def create_unnamed(session: Session, request: Request) -> bytes:
    """Make a file without a name (O_TMPFILE): what stands for one in the request is nothing."""
    flags, mode, _, _ = request.body.take(wire.CREATE)
    parent = session.inode(request.node)
    need_writable(parent.node)
    tree, owner = parent.node.tree, (request.uid, request.gid)
    return _created(session, parent, flags, tree.create_unnamed(parent.node, flags, mode, owner))


def _created(
    session: Session, parent: Inode, flags: int, made: tuple[Node, Attributes, File]
) -> bytes:
    node, found, file = made
    entry = session.entry(parent, node, found)
    inode = session.known(node)
    opened = _direct(inode, flags)
    try:
        number = session.add_handle(inode, file, flags)
    except OSError:
        session.forget(inode.id, 1)
        raise
    return entry + wire.OPEN_OUT.pack(number, opened, 0)


def read(session: Session, request: Request) -> int:
    number, offset, size, _, _, _, _ = request.body.take(wire.TRANSFER)
    with session.using(number) as (_, file):
        return file.read_into(offset, limited(request.views, size))


def write(session: Session, request: Request) -> bytes:
    number, offset, size, write_flags, _, _, _ = request.body.take(wire.TRANSFER)
    data = payload(request.data, size)
    with session.using(number) as (handle, file):
        inode = handle.inode
        need_writable(inode.node)
        if write_flags & wire.WRITE_KILL:
            with session.lock:
                if inode.node.tree.attributes(inode.node).mode & _SET_IDS:
                    inode.node.tree.change(inode.node, Change(kill=True))
        done = file.write_from(offset, data) if size else 0
        inode.given = None
    return wire.WRITE_OUT.pack(done, 0)


def flush(session: Session, request: Request) -> bytes:
    """A descriptor was closed: its process has no record locks on the file any more."""
    _, _, _, owner = request.body.take(wire.FLUSH)
    with session.lock:
        session.inode(request.node).locks.drop(owner)
    return b""


def release(session: Session, request: Request) -> bytes:
    number, *_ = request.body.take(wire.RELEASE)
    with session.lock:
        session.release(number)
    return b""


def sync(session: Session, request: Request) -> bytes:
    number, flags, _ = request.body.take(wire.FSYNC)
    with session.using(number) as (_, file):
        file.sync(data_only=bool(flags & wire.FSYNC_DATA))
    return b""


def allocate(session: Session, request: Request) -> bytes:
    number, offset, length, mode, _ = request.body.take(wire.FALLOCATE)
    with session.using(number) as (handle, file):
        need_writable(handle.inode.node)
        file.allocate(mode, offset, length)
        handle.inode.given = None
    return b""


def seek(session: Session, request: Request) -> bytes:
    number, offset, whence, _ = request.body.take(wire.LSEEK)
    with session.using(number) as (_, file):
        return wire.NUMBER.pack(file.seek(offset, whence))


def copy_range(session: Session, request: Request) -> bytes:
    number, offset, _, target, target_offset, length, flags = request.body.take(wire.COPY_RANGE)
    if flags:
        raise OSError(errno.EINVAL, "no such flags")
    with session.using(number) as (_, file), session.using(target) as (other, into):
        need_writable(other.inode.node)
        # The answer counts in 32 bits.
        done = file.copy_to(offset, into, target_offset, min(length, 1 << 30))
        other.inode.given = None
    return wire.WRITE_OUT.pack(done, 0)


# ---- locks ----------------------------------------------------------------


def get_lock(session: Session, request: Request) -> bytes:
    _, owner, start, end, kind, _, flags, _ = request.body.take(wire.LOCK)
    if flags & wire.LOCK_FLOCK:
        raise OSError(errno.EINVAL, "flock asks nothing")
    with session.lock:
        inode = session.inode(request.node)
        found, begin, last = inode.locks.get(inode.node, owner, kind, start, end)
    return wire.LOCK_OUT.pack(begin, last, found, 0)


def set_lock(session: Session, request: Request) -> bytes:
    number, owner, start, end, kind, _, flags, _ = request.body.take(wire.LOCK)
    if flags & wire.LOCK_FLOCK:
        with session.using(number) as (_, file):
            _flock(file, kind)
        return b""
    with session.lock:
        handle = session.handle(number)
        inode = session.inode(request.node)
        if handle.inode is not inode:
            raise OSError(errno.EBADF, "another file")
        inode.locks.set(inode.node, owner, kind, start, end)
    return b""


def _flock(file: File, kind: int) -> None:
    operations = {
        fcntl.F_RDLCK: fcntl.LOCK_SH,
        fcntl.F_WRLCK: fcntl.LOCK_EX,
        fcntl.F_UNLCK: fcntl.LOCK_UN,
    }
    if kind not in operations:
        raise OSError(errno.EINVAL, "no lock")
    file.flock(operations[kind])
