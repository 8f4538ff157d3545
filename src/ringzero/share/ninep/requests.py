"""Each request of 9P2000.L. Those that move data do not hold the session's lock."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from ringzero.core.views import limited
from ringzero.share.contract import (
    NOW,
    Attributes,
    Change,
    Entry,
    Node,
    Tree,
    need_one_tree,
    need_writable,
)
from ringzero.share.message import (
    NAME_MAX,
    NANOSECONDS,
    PATH_MAX,
    XATTR_SIZE_MAX,
    WireError,
    payload,
    time_of,
)
from ringzero.share.ninep import wire
from ringzero.share.ninep.session import Attribute, Fid, Session
from ringzero.share.ninep.wire import Fields

_SET_IDS = stat.S_ISUID | stat.S_ISGID
_XATTR_FLAGS = os.XATTR_CREATE | os.XATTR_REPLACE
# The end of a lock that goes on for ever (fs.h: OFFSET_MAX).
_FOR_EVER = (1 << 63) - 1
_DIRENT_DIRECTORY, _DIRENT_LINK = 4, 10
# What a listing's offsets begin with: "." and "..".
_DOTS = (b".", b"..")
# So many numbers of 32 bits.
_TWO, _THREE, _FOUR = (struct.Struct(f"<{count}I") for count in (2, 3, 4))


class Request:
    """One request, taken apart as far as all have it."""

    __slots__ = ("data", "fields", "room", "views")

    def __init__(
        self, fields: Fields, data: list[memoryview], views: list[memoryview], room: int
    ) -> None:
        self.fields = fields
        # What is to be written; only of WRITE.
        self.data = data
        # Where the data of READ go, and how many bytes an answer may have behind its header.
        self.views = views
        self.room = room


def _made(session: Session, fid: Fid, node: Node, found: Attributes) -> bytes:
    """Return the qid of what was made in a directory; no fid leads to it."""
    session.leave(session.hold(node, fid.held), 0)
    return session.qid(node.tree, found)


# ---- fids -----------------------------------------------------------------


def attach(session: Session, request: Request) -> bytes:
    """Return the qid of the directory in which the shares are, whatever name is asked for."""
    number, _ = request.fields.take(_TWO)
    request.fields.text(NAME_MAX)
    request.fields.text(PATH_MAX)
    uid = request.fields.number()
    session.check_free(number)
    root = session.roots.root()
    session.add(number, session.hold(root, None), 0 if uid == wire.NO_UID else uid)
    return session.qid(root.tree, root.tree.attributes(root))


def walk(session: Session, request: Request) -> bytes:
    """Look names up, one in the other. What is found before one that is not, is told."""
    number, new, count = request.fields.take(wire.WALK_IN)
    if count > wire.MAX_WALK:
        raise WireError("a walk of too many names", names=count)
    names = [request.fields.name() for _ in range(count)]
    fid = session.fid(number)
    if new != number:
        session.check_free(new)
        if count == 1:
            return _walk_one(session, fid, new, names[0])
    qids = b""
    held = fid.held
    # No fid leads to what is on the way.
    held.fids += 1
    done = 0
    try:
        for name in names:
            node, found = held.node.tree.lookup(held.node, name)
            above, held = held, session.hold(node, held)
            held.fids += 1
            session.leave(above)
            qids += session.qid(node.tree, found)
            done += 1
    except OSError:
        if not done:
            session.leave(held)
            raise
    if done == count:
        if new == number:
            session.lead(fid, held)
        else:
            session.add(new, held, fid.uid)
    session.leave(held)
    return wire.U16.pack(done) + qids


def _walk_one(session: Session, fid: Fid, new: int, name: bytes) -> bytes:
    """Look one name up, as Linux does for each component of a path."""
    held = fid.held
    node, found = held.node.tree.lookup(held.node, name)
    session.add(new, session.hold(node, held), fid.uid)
    session.keep(new, found)
    return wire.WALK_OUT.pack(1, *session.qid_fields(node.tree, found))


def clunk(session: Session, request: Request) -> bytes:
    number = request.fields.number()
    fid = session.fid(number)
    try:
        if fid.attribute is not None:
            _store(fid, fid.attribute)
    finally:
        session.clunk(number)
    return b""


def _store(fid: Fid, value: Attribute) -> None:
    """Set the attribute that was written to a fid, if one was."""
    if not value.written:
        return
    if len(value.data) < value.size:
        raise OSError(errno.EINVAL, "an attribute that is cut off")
    tree = fid.node.tree
    # Linux removes an attribute so: it sets nothing, and says that it is there.
    if not value.size and value.flags == os.XATTR_REPLACE:
        tree.remove_xattr(fid.node, value.name)
    else:
        tree.set_xattr(fid.node, value.name, bytes(value.data), value.flags)


# ---- attributes -----------------------------------------------------------


def get_attributes(session: Session, request: Request) -> bytes:
    number, _ = request.fields.take(wire.GETATTR_IN)
    node = session.fid(number).held.node
    tree = node.tree
    found = session.take_kept(number) or tree.attributes(node)
    return wire.GETATTR_OUT.pack(
        wire.GETATTR_BASIC,
        *session.qid_fields(tree, found),
        found.mode,
        found.uid & 0xFFFFFFFF,
        found.gid & 0xFFFFFFFF,
        found.links,
        found.rdev,
        found.size,
        found.block_size,
        found.blocks,
        *divmod(found.atime, NANOSECONDS),
        *divmod(found.mtime, NANOSECONDS),
        *divmod(found.ctime, NANOSECONDS),
        *(0, 0, 0, 0),
    )


def set_attributes(session: Session, request: Request) -> bytes:
    number = request.fields.number()
    valid, mode, uid, gid, size, atime, atime_ns, mtime, mtime_ns = request.fields.take(
        wire.SETATTR_IN
    )
    fid = session.fid(number)
    need_writable(fid.node)

    def time(bit: int, given: int, seconds: int, nanoseconds: int) -> int | None:
        if not valid & bit:
            return None
        if not valid & given:
            return NOW
        return time_of(seconds, nanoseconds)

    change = Change(
        mode=mode if valid & wire.SET_MODE else None,
        uid=uid if valid & wire.SET_UID else None,
        gid=gid if valid & wire.SET_GID else None,
        size=size if valid & wire.SET_SIZE else None,
        atime=time(wire.SET_ATIME, wire.SET_ATIME_GIVEN, atime, atime_ns),
        mtime=time(wire.SET_MTIME, wire.SET_MTIME_GIVEN, mtime, mtime_ns),
        kill=bool(valid & (wire.SET_UID | wire.SET_GID)) and not valid & wire.SET_MODE,
    )
    fid.node.tree.change(fid.node, change)
    return b""


def statistics(session: Session, request: Request) -> bytes:
    node = session.fid(request.fields.number()).node
    found = node.tree.statistics(node)
    return wire.STATFS_OUT.pack(
        wire.MAGIC,
        # Linux counts in the one size that there is.
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        0,
        min(found.f_namemax, NAME_MAX),
    )


def read_link(session: Session, request: Request) -> bytes:
    node = session.fid(request.fields.number()).node
    if node.kind != stat.S_IFLNK:
        raise OSError(errno.EINVAL, "no link")
    return wire.string(node.tree.read_link(node))


# ---- names ----------------------------------------------------------------


def symlink(session: Session, request: Request) -> bytes:
    fid = session.fid(request.fields.number())
    name = request.fields.name()
    target = request.fields.text(PATH_MAX - 1)
    gid = request.fields.number()
    if not target:
        raise OSError(errno.ENOENT, "a link to nothing")
    need_writable(fid.node)
    made = fid.node.tree.symlink(fid.node, name, target, (fid.uid, gid))
    return _made(session, fid, *made)


def make_node(session: Session, request: Request) -> bytes:
    fid = session.fid(request.fields.number())
    name = request.fields.name()
    mode, major, minor, gid = request.fields.take(_FOUR)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EPERM, "directories are made otherwise")
    if not stat.S_IFMT(mode):
        mode |= stat.S_IFREG
    # As the kernel's new_encode_dev has it, in 32 bits.
    rdev = minor & 0xFF | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
    return _make(session, fid, name, mode, rdev, gid)


def make_directory(session: Session, request: Request) -> bytes:
    fid = session.fid(request.fields.number())
    name = request.fields.name()
    mode, gid = request.fields.take(_TWO)
    return _make(session, fid, name, stat.S_IFDIR | stat.S_IMODE(mode), 0, gid)


def _make(session: Session, fid: Fid, name: bytes, mode: int, rdev: int, gid: int) -> bytes:
    need_writable(fid.node)
    made = fid.node.tree.make(fid.node, name, mode, rdev, (fid.uid, gid))
    return _made(session, fid, *made)


def link(session: Session, request: Request) -> bytes:
    above, number = request.fields.take(_TWO)
    parent, fid = session.fid(above), session.fid(number)
    name = request.fields.name()
    tree = need_one_tree(parent.node, fid.node)
    need_writable(parent.node)
    tree.link(fid.node, parent.node, name)
    return b""


def rename_at(session: Session, request: Request) -> bytes:
    parent = session.fid(request.fields.number())
    name = request.fields.name()
    new_parent = session.fid(request.fields.number())
    new_name = request.fields.name()
    tree = need_one_tree(parent.node, new_parent.node)
    need_writable(parent.node)
    tree.rename(parent.node, name, new_parent.node, new_name, 0)
    return b""


def unlink_at(session: Session, request: Request) -> bytes:
    parent = session.fid(request.fields.number())
    name = request.fields.name()
    flags = request.fields.number()
    if flags & ~wire.UNLINK_DIRECTORY:
        raise OSError(errno.EINVAL, "no such flags")
    need_writable(parent.node)
    tree = parent.node.tree
    tree.unlink(parent.node, name, directory=bool(flags & wire.UNLINK_DIRECTORY))
    return b""


def remove(session: Session, request: Request) -> bytes:
    """What Linux asks of servers without UNLINKAT; the fid is gone with it, as always."""
    session.clunk(request.fields.number())
    raise OSError(errno.EOPNOTSUPP, "by UNLINKAT")


def rename(session: Session, request: Request) -> bytes:
    """What Linux asks of servers without RENAMEAT."""
    raise OSError(errno.EOPNOTSUPP, "by RENAMEAT")


# ---- open files -----------------------------------------------------------


def _closed(fid: Fid) -> None:
    if fid.flags is not None or fid.attribute is not None:
        raise OSError(errno.EBADF, "a fid that is open")


def _opened(session: Session, tree: Tree, found: Attributes) -> bytes:
    # 0: as long as messages are.
    return session.qid(tree, found) + wire.U32.pack(0)


def open_fid(session: Session, request: Request) -> bytes:
    number, flags = request.fields.take(_TWO)
    fid = session.fid(number)
    _closed(fid)
    node = fid.node
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if node.kind == stat.S_IFDIR:
        if writes:
            raise OSError(errno.EISDIR, "a directory")
    else:
        if writes or flags & os.O_TRUNC:
            need_writable(fid.node)
        fid.file = node.tree.open_file(node, flags)
    fid.flags = flags
    return _opened(session, node.tree, node.tree.attributes(node))


def create(session: Session, request: Request) -> bytes:
    fid = session.fid(request.fields.number())
    name = request.fields.name()
    flags, mode, gid = request.fields.take(_THREE)
    _closed(fid)
    need_writable(fid.node)
    tree = fid.node.tree
    node, found, file = tree.create(fid.node, name, flags, mode, (fid.uid, gid))
    session.lead(fid, session.hold(node, fid.held))
    fid.file, fid.flags = file, flags
    return _opened(session, tree, found)


def read(session: Session, request: Request) -> int:
    """Fill what is behind the count; return how many bytes that is."""
    number, offset, count = request.fields.take(wire.TRANSFER)
    with session.lock:
        fid = session.fid(number)
        value = fid.attribute
        if value is not None:
            if value.written:
                raise OSError(errno.EBADF, "an attribute that is being written")
            piece = bytes(value.data[offset : offset + count])
    views = limited(request.views, min(count, request.room - wire.U32.size))
    if value is not None:
        done = 0
        for view in views:
            part = piece[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done
    with session.using(fid) as file:
        return file.read_into(offset, views)


def write(session: Session, request: Request) -> bytes:
    number, offset, size = request.fields.take(wire.TRANSFER)
    data = payload(request.data, size)
    with session.lock:
        fid = session.fid(number)
        need_writable(fid.node)
        if fid.attribute is not None:
            return _write_attribute(fid.attribute, offset, data)
        node = fid.node
        # Root keeps them, as on every file system of Linux's.
        if fid.uid and node.tree.attributes(node).mode & _SET_IDS:
            node.tree.change(node, Change(kill=True))
    with session.using(fid) as file:
        done = file.write_from(offset, data) if size else 0
    return wire.U32.pack(done)


def _write_attribute(value: Attribute, offset: int, data: list[memoryview]) -> bytes:
    piece = b"".join(data)
    if not value.written:
        raise OSError(errno.EBADF, "an attribute that is being read")
    if offset != len(value.data) or offset + len(piece) > value.size:
        raise OSError(errno.ENOSPC, "more than the attribute is to have")
    value.data += piece
    return wire.U32.pack(len(piece))


def sync(session: Session, request: Request) -> bytes:
    number, data_only = request.fields.take(_TWO)
    with session.lock:
        fid = session.fid(number)
        if fid.file is None:
            fid.node.tree.sync(fid.node, data_only=bool(data_only))
            return b""
    with session.using(fid) as file:
        file.sync(data_only=bool(data_only))
    return b""


def read_directory(session: Session, request: Request) -> bytes:
    number, offset, count = request.fields.take(wire.TRANSFER)
    fid = session.fid(number)
    node = fid.node
    if node.kind != stat.S_IFDIR:
        raise OSError(errno.ENOTDIR, "no directory")
    if fid.flags is None:
        raise OSError(errno.EBADF, "not open")
    found = node.tree.attributes(node)
    if not offset or not fid.entries:
        own = [Entry(name, found.ino, _DIRENT_DIRECTORY) for name in _DOTS]
        fid.entries = own + node.tree.entries(node)
    room = min(count, request.room - wire.U32.size)
    parts: list[bytes] = []
    for at in range(offset, len(fid.entries)):
        name, ino, kind = fid.entries[at]
        room -= wire.DIRENT.size + len(name)
        if room < 0:
            break
        qid_kind = {_DIRENT_DIRECTORY: wire.QID_DIRECTORY, _DIRENT_LINK: wire.QID_LINK}.get(kind, 0)
        path = session.path_of(node.tree, ino, found.device)
        parts += wire.DIRENT.pack(qid_kind, 0, path, at + 1, kind, len(name)), name
    listed = b"".join(parts)
    return wire.U32.pack(len(listed)) + listed


# ---- extended attributes --------------------------------------------------


def walk_attribute(session: Session, request: Request) -> bytes:
    """Have a fid from which an attribute is read, or without a name all their names."""
    number, new = request.fields.take(_TWO)
    name = request.fields.text(NAME_MAX)
    fid = session.fid(number)
    if new != number:
        session.check_free(new)
    else:
        _closed(fid)
    node = fid.node
    if name:
        value = node.tree.get_xattr(node, name)
    else:
        value = b"".join(one + b"\0" for one in node.tree.list_xattrs(node))
    reader = fid if new == number else session.add(new, fid.held, fid.uid)
    reader.attribute = Attribute(name, value, len(value), 0, written=False)
    return wire.U64.pack(len(value))


def create_attribute(session: Session, request: Request) -> bytes:
    """Have a fid take an attribute; it is set when the fid is clunked."""
    fid = session.fid(request.fields.number())
    name = request.fields.text(NAME_MAX)
    size = request.fields.number(wire.U64)
    flags = request.fields.number()
    _closed(fid)
    if size > XATTR_SIZE_MAX:
        raise OSError(errno.E2BIG, "a large attribute")
    if flags & ~_XATTR_FLAGS:
        raise OSError(errno.EINVAL, "no such flags")
    need_writable(fid.node)
    fid.attribute = Attribute(name, b"", size, flags, written=True)
    return b""


# ---- locks ----------------------------------------------------------------


def set_lock(session: Session, request: Request) -> bytes:
    """Take or drop a record lock. Raises BlockingIOError where the guest is to wait for it."""
    number = request.fields.number()
    kind, flags, start, length, process = request.fields.take(wire.LOCK_IN)
    owner = process, request.fields.text(NAME_MAX)
    held = session.fid(number).held
    end = _end(start, length)
    try:
        held.locks.set(held.node, owner, kind, start, end)
    except BlockingIOError:
        if flags & wire.LOCK_WAIT:
            raise
        return wire.U8.pack(wire.LOCK_BLOCKED)
    if kind == fcntl.F_UNLCK and (start, end) == (0, _FOR_EVER):
        # Each holds a descriptor of the host's.
        held.locks.drop(owner)
    return wire.U8.pack(wire.LOCK_SUCCESS)


def _end(start: int, length: int) -> int:
    """Return a lock's last byte; a length of 0 is for ever."""
    return min(start + length - 1, _FOR_EVER) if length else _FOR_EVER


def get_lock(session: Session, request: Request) -> bytes:
    number = request.fields.number()
    kind, start, length, process = request.fields.take(wire.GETLOCK_IN)
    name = request.fields.text(NAME_MAX)
    held = session.fid(number).held
    owner, end = (process, name), _end(start, length)
    found, begin, last = held.locks.get(held.node, owner, kind, start, end)
    rest = 0 if last >= _FOR_EVER else last - begin + 1
    return wire.GETLOCK_IN.pack(found, begin, rest, process) + wire.string(name)
