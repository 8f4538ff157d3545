"""A 9P2000.L server: one request in, one answer out, whoever carries them.

A request is served where it comes; which ones may take long is the carrier's to ask (`is_long`).
Whatever is wrong with a request, it is answered: an error of Linux's, never an exception.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

from ringzero.core.state import from_part
from ringzero.core.views import fill, split
from ringzero.share.contract import Tree
from ringzero.share.message import NameTooLongError, WireError
from ringzero.share.ninep import requests, wire
from ringzero.share.ninep.requests import Request
from ringzero.share.ninep.session import Fid, Session
from ringzero.share.ninep.state import FidState, NinepState
from ringzero.share.server import ShareServer

Handler = Callable[[Session, Request], "bytes | int"]

# Linux takes at most 125 pages in one message by virtio (trans_virtio.c: VIRTQUEUE_NUM).
MAX_MESSAGE = 512_000
# Under the server's lock.
_NAMES: dict[int, Handler] = {
    wire.ATTACH: requests.attach,
    wire.WALK: requests.walk,
    wire.GETATTR: requests.get_attributes,
    wire.SETATTR: requests.set_attributes,
    wire.STATFS: requests.statistics,
    wire.READLINK: requests.read_link,
    wire.SYMLINK: requests.symlink,
    wire.MKNOD: requests.make_node,
    wire.MKDIR: requests.make_directory,
    wire.LINK: requests.link,
    wire.RENAMEAT: requests.rename_at,
    wire.UNLINKAT: requests.unlink_at,
    wire.REMOVE: requests.remove,
    wire.RENAME: requests.rename,
    wire.LOPEN: requests.open_fid,
    wire.LCREATE: requests.create,
    wire.READDIR: requests.read_directory,
    wire.XATTRWALK: requests.walk_attribute,
    wire.XATTRCREATE: requests.create_attribute,
    wire.LOCK: requests.set_lock,
    wire.GETLOCK: requests.get_lock,
    wire.CLUNK: requests.clunk,
}
# What the medium may keep for long; the kind of a request is its fifth byte.
_LONG, _WRITE = bytes([wire.FSYNC]), bytes([wire.WRITE])
# These take the lock themselves, for as long as they need it.
_DATA: dict[int, Handler] = {
    wire.READ: requests.read,
    wire.WRITE: requests.write,
    wire.FSYNC: requests.sync,
}
# A message but for the data of WRITE: so long at most, and those before the data.
_WHOLE = wire.HEADER.size + wire.MAX_BODY
_BEFORE_DATA = wire.HEADER.size + wire.TRANSFER.size


class NinepServer(ShareServer):
    """Serves the shares of one machine by 9P2000.L."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(self)

    # ---- what the carrier calls -------------------------------------------

    def is_long(self, header: bytes) -> bool:
        """Return whether the request, of which the first bytes are given, may take long."""
        return header[4:5] == _LONG

    def defer(self, header: bytes) -> None:
        """Hear that a request is served later: the guest may take it back meanwhile."""
        with self.lock:
            self.session.pending.add(int.from_bytes(header[5:7], "little"))

    def serve(self, readable: Sequence[memoryview], writable: Sequence[memoryview]) -> int | None:
        """Serve one request; return how many bytes of `writable` the answer takes.

        0 for one that the guest has taken back; None for what waits: it is to be served again.
        """
        message = _message(readable)
        room = sum(map(len, writable)) - wire.HEADER.size
        if len(message) < wire.HEADER.size or room < 0:
            return 0
        size, kind, tag = wire.HEADER.unpack_from(message)
        session = self.session
        if session.size:
            room = min(room, session.size - wire.HEADER.size)
        if kind == wire.FLUSH and self._flush(message):
            return None
        if session.flushed:
            with self.lock:
                if tag in session.flushed:
                    self._over(tag)
                    return 0
        counted = 0
        try:
            there = sum(map(len, readable))
            if not wire.HEADER.size <= size <= there:
                raise WireError("a message of another length than it says", size=size, there=there)
            result = self._answer(kind, message[:size], readable, writable, room)
            if isinstance(result, int):
                counted = result
                result = wire.U32.pack(counted)
            kind, body = kind + 1, result
            if len(body) + counted > room:
                raise OSError(errno.EIO, "an answer without room")
        except BlockingIOError:
            with self.lock:
                session.pending.add(tag)
            return None
        except NameTooLongError:
            kind, counted, body = wire.RLERROR, 0, wire.U32.pack(errno.ENAMETOOLONG)
        except WireError:
            kind, counted, body = wire.RLERROR, 0, wire.U32.pack(errno.EINVAL)
        except Exception as fault:  # whatever befalls us, the guest gets an answer
            kind, counted, body = wire.RLERROR, 0, wire.U32.pack(self.error_of(fault))
        if session.pending or session.flushed:
            with self.lock:
                self._over(tag)
        if len(body) > room:
            return 0
        total = wire.HEADER.size + len(body) + counted
        fill(writable, wire.HEADER.pack(total, kind, tag) + body)
        return total

    def _flush(self, message: bytes) -> bool:
        """Take a request back; returns whether it is still on its way, and FLUSH has to wait."""
        if len(message) < wire.HEADER.size + wire.U16.size:
            return False
        (old,) = wire.U16.unpack_from(message, wire.HEADER.size)
        with self.lock:
            if old not in self.session.pending:
                return False
            self.session.flushed.add(old)
            return True

    def _over(self, tag: int) -> None:
        """Forget that a request was on its way."""
        self.session.flushed.discard(tag)
        self.session.pending.discard(tag)

    def _answer(
        self,
        kind: int,
        message: bytes,
        readable: Sequence[memoryview],
        writable: Sequence[memoryview],
        room: int,
    ) -> bytes | int:
        session = self.session
        data: list[memoryview] = []
        views: list[memoryview] = []
        if kind == wire.WRITE:
            _, data = split(readable, _BEFORE_DATA)
        elif len(message) > _WHOLE:
            raise WireError("a request that is too long", size=len(message))
        elif kind == wire.READ:
            _, views = split(writable, wire.HEADER.size + wire.U32.size)
        request = Request(wire.Fields(message, wire.HEADER.size), data, views, room)
        if kind == wire.TVERSION:
            return self._version(request)
        if not session.size:
            raise OSError(errno.EINVAL, "before VERSION")
        if kind != wire.GETATTR:
            session.forget_kept()
        handler = _NAMES.get(kind)
        if handler is not None:
            with self.lock:
                return handler(session, request)
        handler = _DATA.get(kind)
        if handler is not None:
            return handler(session, request)
        if kind == wire.FLUSH:
            request.fields.number(wire.U16)
            return b""
        if kind == wire.AUTH:
            raise OSError(errno.ENOENT, "nobody need say who they are")
        raise OSError(errno.EOPNOTSUPP, "no such request")

    def _version(self, request: Request) -> bytes:
        found = wire.version(request.fields, MAX_MESSAGE)
        with self.lock:
            self.session.reset()
            if found.name == wire.VERSION:
                self.session.size = found.size
        return wire.U32.pack(found.size) + wire.string(found.name)

    # ---- life -------------------------------------------------------------

    def reset(self) -> None:
        with self.lock:
            self.session.reset()

    def drop(self, tree: Tree) -> None:
        self.session.drop(tree)

    def save(self) -> NinepState:
        """Return what the guest holds; nothing is in flight. An attribute on its way is lost."""
        with self.lock:
            return NinepState(
                self.session.size,
                tuple(
                    self._saved(number, fid)
                    for number, fid in self.session.fids.items()
                    if fid.attribute is None
                ),
            )

    def _saved(self, number: int, fid: Fid) -> FidState:
        node = fid.node
        share = self.roots.number_of(node.tree)
        return FidState(number, share, node.tree.save_node(node), fid.uid, fid.flags)

    def restore(self, saved: Any) -> None:
        """Take up what a saved guest holds, a NinepState or plain data of it; raises StateError.

        What is not there any more is left out: the guest is told EBADF. Locks were the
        original's, and are gone.
        """
        state: NinepState = from_part(NinepState, saved, "shares")
        with self.lock:
            self.session.reset()
            self.session.size = min(max(state.size, 0), MAX_MESSAGE)
            for fid in state.fids:
                self._restore(fid)

    def _restore(self, saved: FidState) -> None:
        session = self.session
        tree: Tree | None = self.roots if saved.share is None else self.roots.tree(saved.share)
        node = None if tree is None else tree.restore_node(saved.node)
        if tree is None or node is None or saved.number in session.fids:
            return
        fid = session.add(saved.number, session.hold(node, None), saved.uid)
        if saved.flags is None:
            return
        fid.flags = saved.flags
        if node.kind != stat.S_IFDIR:
            flags = saved.flags & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
            try:
                fid.file = tree.open_file(node, flags)
            except OSError:
                session.clunk(saved.number)


def _message(readable: Sequence[memoryview]) -> bytes:
    """Return the first bytes of what the guest sends: all of a message but the data of WRITE."""
    if len(readable) == 1 and len(readable[0]) <= _WHOLE:
        # In a buffer of its own, as Linux has it.
        return bytes(readable[0])
    head, _ = split(readable, wire.HEADER.size)
    return split(readable, _BEFORE_DATA if head[4:5] == _WRITE else _WHOLE + 1)[0]
