"""What is done for the requests of one client (doc/proto.md, "Transmission"). No sockets.

Data goes in pieces, so that a client holds no more memory than one: a write's are written as
they come, a read's are sent as they are read. What was done of a write that fails in between
is not undone, as with any disk.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import islice

from ringzero.disk.instant import LiveDisk
from ringzero.disk.nbd import wire
from ringzero.disk.nbd.wire import Request
from ringzero.disk.vectors import aligned_buffer, is_zero
from ringzero.errors import DiskReadOnlyError, RingzeroError
from ringzero.units import MIB

# How much is read, or taken from a client, at once.
PIECE = MIB
# Of one answer; a client asks again for the rest.
_MOST_ENTRIES = 4096

_FLAGS = {
    wire.CMD_READ: wire.FLAG_DF,
    wire.CMD_WRITE: wire.FLAG_FUA,
    wire.CMD_FLUSH: 0,
    wire.CMD_TRIM: wire.FLAG_FUA,
    wire.CMD_CACHE: 0,
    wire.CMD_WRITE_ZEROES: wire.FLAG_FUA | wire.FLAG_NO_HOLE,
    wire.CMD_BLOCK_STATUS: wire.FLAG_REQ_ONE,
}
_CHANGES = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)
_DATA = bytes | memoryview


class Broken(Exception):  # noqa: N818 - the client is left, and nobody sees it
    """The conversation cannot go on."""


class Fault(Exception):  # noqa: N818 - an answer
    """A request is answered by an error."""

    def __init__(self, error: int, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.message = message


class Transmission:
    """Answers requests on `live`, as one client has negotiated it."""

    def __init__(
        self, live: LiveDisk, *, read_only: bool, structured: bool, allocation: bool
    ) -> None:
        self._live = live
        self._read_only = read_only or live.read_only
        self._structured = structured
        self._allocation = allocation
        self._buffer: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """Room for one piece, which `answer` uses, too."""
        if self._buffer is None:
            self._buffer = aligned_buffer(PIECE)
        return self._buffer

    def check(self, request: Request) -> Fault | None:
        """Return what is wrong with a request. Raises Broken for a payload that nobody takes."""
        kind, flags, length = request.kind, request.flags, request.length
        if kind == wire.CMD_WRITE and length > wire.PAYLOAD_MAX:
            raise Broken
        if kind not in _FLAGS or (kind == wire.CMD_BLOCK_STATUS and not self._allocation):
            return Fault(wire.EINVAL, f"no request {kind} was agreed on")
        if flags & ~_FLAGS[kind]:
            return Fault(wire.EINVAL, f"request {kind} has no such flags: {flags:#x}")
        if kind == wire.CMD_FLUSH:
            return None
        if kind in _CHANGES and self._read_only:
            return Fault(wire.EPERM, "the export is read-only")
        if kind == wire.CMD_READ and length > wire.PAYLOAD_MAX:
            return Fault(wire.EINVAL, f"{length} bytes are more than are read at once")
        if request.offset + length > self._live.size:
            error = wire.ENOSPC if kind in _CHANGES else wire.EINVAL
            return Fault(error, f"the disk has {self._live.size} bytes")
        if not length and kind == wire.CMD_BLOCK_STATUS:
            return Fault(wire.EINVAL, "the state of no bytes was asked for")
        return None

    def write(self, offset: int, data: memoryview) -> None:
        """Write a piece of a request's payload. Raises Fault."""
        try:
            self._live.write(offset, data)
        except RingzeroError as fault:
            raise _fault(fault) from fault

    def answer(self, request: Request) -> Iterator[Sequence[_DATA]]:
        """Do a request that was checked, and whose payload is written; yield what to send.

        Raises Fault before anything was yielded that an error could not follow; else Broken.
        """
        try:
            if request.kind == wire.CMD_READ:
                yield from self._read(request)
                return
            if request.kind == wire.CMD_BLOCK_STATUS:
                yield self._block_status(request)
                return
            self._change(request)
        except RingzeroError as fault:
            raise _fault(fault) from fault
        yield self.done(request)

    def done(self, request: Request) -> Sequence[_DATA]:
        """Return the reply to a request without data."""
        if self._structured:
            return (wire.chunk(request.cookie, wire.CHUNK_NONE, last=True),)
        return (wire.simple(request.cookie),)

    def failed(self, request: Request, fault: Fault) -> Sequence[_DATA]:
        """Return the reply that says what went wrong."""
        if self._structured:
            return (wire.error_chunk(request.cookie, fault.error, fault.message),)
        return (wire.simple(request.cookie, fault.error),)

    # ---- the requests ------------------------------------------------------

    def _change(self, request: Request) -> None:
        live, offset, length = self._live, request.offset, request.length
        if request.kind == wire.CMD_TRIM and length:
            live.discard(offset, length)
        elif request.kind == wire.CMD_WRITE_ZEROES and length:
            live.write_zeroes(offset, length, unmap=not request.flags & wire.FLAG_NO_HOLE)
        elif request.kind == wire.CMD_CACHE and length:
            with live.passing():
                live.disk.announce(offset, length)
        if request.kind == wire.CMD_FLUSH or request.flags & wire.FLAG_FUA:
            live.flush()

    def _read(self, request: Request) -> Iterator[Sequence[_DATA]]:
        cookie, end = request.cookie, request.offset + request.length
        if not request.length:
            yield self.done(request)
            return
        # A reply in one chunk, or none, has its head before everything is read.
        whole = not self._structured or bool(request.flags & wire.FLAG_DF)
        for start in range(request.offset, end, PIECE):
            view = self.buffer[: min(PIECE, end - start)]
            first = start == request.offset
            try:
                self._live.read_into(start, view)
            except RingzeroError as fault:
                if whole and not first:
                    raise Broken from fault
                raise
            place = wire.DATA_OFFSET.pack(start)
            if not self._structured:
                yield (wire.simple(cookie), view) if first else (view,)
            elif whole:
                head = wire.chunk(cookie, wire.CHUNK_DATA, place, last=True, more=request.length)
                yield (head, view) if first else (view,)
            elif is_zero(view):
                hole = wire.HOLE.pack(start, len(view))
                yield (wire.chunk(cookie, wire.CHUNK_HOLE, hole, last=start + len(view) == end),)
            else:
                last = start + len(view) == end
                yield wire.chunk(cookie, wire.CHUNK_DATA, place, last=last, more=len(view)), view

    def _block_status(self, request: Request) -> Sequence[_DATA]:
        most = 1 if request.flags & wire.FLAG_REQ_ONE else _MOST_ENTRIES
        with self._live.passing():
            entries = list(islice(self._states(request.offset, request.length), most))
        data = b"".join(wire.STATUS_ENTRY.pack(length, state) for length, state in entries)
        identifier = wire.BASE_ALLOCATION_ID.to_bytes(4, "big")
        return (wire.chunk(request.cookie, wire.CHUNK_STATUS, identifier + data, last=True),)

    def _states(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (length, state) over a range, neighbours of the same state joined."""
        held, state = 0, 0
        for extent in self._live.disk.block_status(offset, length):
            found = wire.STATE_HOLE | wire.STATE_ZERO if extent.reads_zero else 0
            if held and found != state:
                yield held, state
                held = 0
            held, state = held + extent.length, found
        if held:
            yield held, state


def _fault(fault: RingzeroError) -> Fault:
    """Return how a client hears of what went wrong at the disk."""
    if isinstance(fault, DiskReadOnlyError):
        return Fault(wire.EPERM, fault.message)
    # Names of the host's files are nothing for clients.
    full = fault.context.get("errno") in (errno.ENOSPC, errno.EDQUOT)
    return Fault(wire.ENOSPC, "no space is left") if full else Fault(wire.EIO, "the disk failed")
