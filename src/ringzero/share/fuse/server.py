"""A FUSE server: one request in, one answer out, whoever carries them.

A request is served where it comes; which ones may take long is the carrier's to ask (`is_long`).
Whatever is wrong with a request, it is answered: an error of Linux's, never an exception.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from ringzero.core.state import from_part
from ringzero.core.views import fill, split
from ringzero.share.contract import Tree
from ringzero.share.fuse import files, names, wire
from ringzero.share.fuse.session import Inode, Request, Session
from ringzero.share.fuse.state import FuseState, HandleState, InodeState
from ringzero.share.message import NameTooLongError, WireError
from ringzero.share.server import ShareServer

Handler = Callable[[Session, Request], "bytes | int | None"]

# What we take of what the guest offers.
_FLAGS = (
    wire.ASYNC_READ | wire.POSIX_LOCKS | wire.ATOMIC_O_TRUNC | wire.BIG_WRITES | wire.FLOCK_LOCKS
    | wire.AUTO_INVALIDATE | wire.DO_READDIRPLUS | wire.READDIRPLUS_AUTO | wire.ASYNC_DIO
    | wire.PARALLEL_DIROPS | wire.MAX_PAGES | wire.SUBMOUNTS | wire.KILLPRIV_V2
    | wire.SETXATTR_EXT | wire.INIT_EXT
)  # fmt: skip
# 1 MiB in one request: what Linux makes of 256 pages.
_MAX_PAGES, _MAX_WRITE = 256, 1 << 20
# Linux's own defaults are 12 and 9; many small reads ahead are worth more.
_BACKGROUND, _CONGESTION = 64, 48

# Under the session's lock.
_NAMES: dict[int, Handler] = {
    wire.LOOKUP_OP: names.lookup,
    wire.FORGET_OP: names.forget,
    wire.BATCH_FORGET_OP: names.batch_forget,
    wire.GETATTR_OP: names.get_attributes,
    wire.SETATTR_OP: names.set_attributes,
    wire.READLINK_OP: names.read_link,
    wire.SYMLINK_OP: names.symlink,
    wire.MKNOD_OP: names.make_node,
    wire.MKDIR_OP: names.make_directory,
    wire.UNLINK_OP: names.unlink,
    wire.RMDIR_OP: names.remove_directory,
    wire.RENAME_OP: names.rename,
    wire.RENAME2_OP: names.rename2,
    wire.LINK_OP: names.link,
    wire.STATFS_OP: names.statistics,
    wire.ACCESS_OP: names.access,
    wire.OPENDIR_OP: names.open_directory,
    wire.READDIR_OP: names.read_directory,
    wire.READDIRPLUS_OP: names.read_directory_plus,
    wire.RELEASEDIR_OP: names.release_directory,
    wire.GETXATTR_OP: names.get_xattr,
    wire.LISTXATTR_OP: names.list_xattrs,
    wire.SETXATTR_OP: names.set_xattr,
    wire.REMOVEXATTR_OP: names.remove_xattr,
    wire.OPEN_OP: files.open_file,
    wire.CREATE_OP: files.create,
    wire.TMPFILE_OP: files.create_unnamed,
    wire.RELEASE_OP: files.release,
    wire.FLUSH_OP: files.flush,
    wire.GETLK_OP: files.get_lock,
}
# These take the lock themselves, for as long as they need it.
_DATA: dict[int, Handler] = {
    wire.READ_OP: files.read,
    wire.WRITE_OP: files.write,
    wire.FSYNC_OP: files.sync,
    wire.FSYNCDIR_OP: names.sync_directory,
    wire.SYNCFS_OP: names.sync_file_system,
    wire.FALLOCATE_OP: files.allocate,
    wire.LSEEK_OP: files.seek,
    wire.COPY_RANGE_OP: files.copy_range,
    wire.SETLK_OP: files.set_lock,
    wire.SETLKW_OP: files.set_lock,
}
# What the medium, or another's lock, may keep for long.
_LONG = frozenset(
    (wire.FSYNC_OP, wire.FSYNCDIR_OP, wire.SYNCFS_OP, wire.FALLOCATE_OP, wire.COPY_RANGE_OP)
)  # fmt: skip
# Requests that are not answered.
_SILENT = frozenset((wire.FORGET_OP, wire.BATCH_FORGET_OP, wire.INTERRUPT_OP))


class FuseServer(ShareServer):
    """Serves the shares of one machine by FUSE."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(self)

    # ---- what the carrier calls -------------------------------------------

    def is_long(self, header: bytes) -> bool:
        """Return whether the request, of which the first bytes are given, may take long."""
        return int.from_bytes(header[4:8], "little") in _LONG

    def defer(self, header: bytes) -> None:
        """Hear that a request is served later; the guest takes none back but those for locks."""

    def serve(self, readable: Sequence[memoryview], writable: Sequence[memoryview]) -> int | None:
        """Serve one request; return how many bytes of `writable` the answer takes.

        0 for what is not answered; None for what waits for a lock: it is to be served again.
        """
        head, rest = split(readable, wire.IN_HEADER.size)
        if len(head) < wire.IN_HEADER.size:
            return 0
        header = wire.IN_HEADER.unpack(head)
        opcode, unique = header[1], header[2]
        answer, views = split(writable, wire.OUT_HEADER.size)
        room = sum(map(len, views))
        error, body = 0, b""
        size = 0
        try:
            result = self._answer(opcode, unique, header, rest, views, room)
            if isinstance(result, int):
                size = result
            else:
                body = result or b""
                size = len(body)
        except BlockingIOError:
            if opcode == wire.SETLKW_OP and not self._is_interrupted(unique):
                return None
            error = errno.EINTR if opcode == wire.SETLKW_OP else errno.EAGAIN
        except NameTooLongError:
            error = errno.ENAMETOOLONG
        except WireError:
            error = errno.EINVAL
        except Exception as fault:  # whatever befalls us, the guest gets an answer
            error = self.error_of(fault)
        if opcode in _SILENT or len(answer) < wire.OUT_HEADER.size:
            return 0
        if not error and size > room:
            error = errno.EIO
        if error:
            size, body = 0, b""
        total = wire.OUT_HEADER.size + size
        fill(writable, wire.OUT_HEADER.pack(total, -error, unique))
        if body:
            fill(views, body)
        return total

    def _is_interrupted(self, unique: int) -> bool:
        with self.session.lock:
            found = unique in self.session.interrupted
            self.session.interrupted.discard(unique)
            return found

    def _answer(
        self,
        opcode: int,
        unique: int,
        header: tuple[int, ...],
        rest: list[memoryview],
        views: list[memoryview],
        room: int,
    ) -> bytes | int | None:
        session = self.session
        data: list[memoryview] = []
        if opcode == wire.WRITE_OP:
            body, data = split(rest, wire.TRANSFER.size)
        else:
            limit = room_of_body(opcode)
            body, beyond = split(rest, limit)
            if beyond:
                raise WireError("a request that is too long")
        request = Request(header, wire.Body(body), data, views, room)
        handler = _DATA.get(opcode)
        if handler is not None and session.minor:
            return handler(session, request)
        with session.lock:
            if opcode == wire.INIT_OP:
                return self._init(request)
            if not session.minor:
                raise OSError(errno.EINVAL, "before INIT")
            handler = _NAMES.get(opcode)
            if handler is not None:
                return handler(session, request)
            if opcode == wire.DESTROY_OP:
                session.reset()
                return b""
            if opcode == wire.INTERRUPT_OP:
                (other,) = request.body.take(wire.NUMBER)
                # Only what waits looks there, and a guest has no use of more.
                if len(session.interrupted) < 1024:
                    session.interrupted.add(other)
                return None
        raise OSError(errno.ENOSYS, "no such request")

    def _init(self, request: Request) -> bytes:
        major, minor, read_ahead, flags = request.body.take(wire.INIT_IN)
        session = self.session
        if major != wire.MAJOR or minor < wire.LEAST_MINOR:
            if major > wire.MAJOR:
                # The guest then asks again, in our version.
                return wire.INIT_OUT.pack(wire.MAJOR, wire.MINOR, *(0,) * 9)
            raise OSError(errno.EPROTO, "too old")
        session.reset()
        session.minor = min(minor, wire.MINOR)
        session.flags = flags & _FLAGS
        return wire.INIT_OUT.pack(
            wire.MAJOR,
            session.minor,
            read_ahead,
            session.flags,
            _BACKGROUND,
            _CONGESTION,
            _MAX_WRITE,
            1,
            _MAX_PAGES,
            0,
            0,
        )

    # ---- life -------------------------------------------------------------

    def reset(self) -> None:
        with self.lock:
            self.session.reset()

    def drop(self, tree: Tree) -> None:
        self.session.drop_tree(tree)

    def save(self) -> FuseState:
        """Return what the guest holds; nothing is in flight."""
        session = self.session
        with session.lock:
            return FuseState(
                session.flags,
                session.minor,
                session.next_id,
                session.next_handle,
                tuple(
                    InodeState(i.id, self._number_of(i), i.node.tree.save_node(i.node), i.lookups)
                    for i in session.inodes.values()
                    if self._number_of(i) is not None
                ),
                tuple(
                    HandleState(number, handle.inode.id, handle.flags, handle.file is None)
                    for number, handle in session.handles.items()
                ),
            )

    def _number_of(self, inode: Inode) -> int | None:
        return self.roots.number_of(inode.node.tree)

    def restore(self, saved: Any) -> None:
        """Take up what a saved guest holds, a FuseState or plain data of it; raises StateError.

        What is not there any more is left out: the guest is told ESTALE for such a node and
        EBADF for an open file. Locks were the original's, and are gone.
        """
        state: FuseState = from_part(FuseState, saved, "shares")
        session = self.session
        with session.lock:
            session.reset()
            session.flags, session.minor = state.flags & _FLAGS, state.minor
            for inode in state.inodes:
                self._restore_inode(inode)
            session.next_id = max(state.next_id, *session.inodes) + 1
            for handle in state.handles:
                self._restore_handle(handle)
            session.next_handle = max(state.next_handle, 0, *session.handles) + 1

    def _restore_inode(self, saved: InodeState) -> None:
        tree = None if saved.share is None else self.roots.tree(saved.share)
        node = None if tree is None else tree.restore_node(saved.node)
        if node is None or saved.id in self.session.inodes:
            return
        inode = self.session.put(saved.id, node)
        inode.lookups = saved.lookups

    def _restore_handle(self, saved: HandleState) -> None:
        session = self.session
        inode = session.inodes.get(saved.inode)
        if inode is None or saved.number in session.handles:
            return
        file = None
        if not saved.directory:
            flags = saved.flags & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
            try:
                file = inode.node.tree.open_file(inode.node, flags)
            except OSError:
                return
        session.next_handle = saved.number
        session.add_handle(inode, file, saved.flags)


def room_of_body(opcode: int) -> int:
    """Return how long the body of a request may be, in bytes."""
    if opcode == wire.BATCH_FORGET_OP:
        # Linux sends as many as fit into a page.
        return wire.FORGET_ONE.size * 65536
    return wire.MAX_BODY
