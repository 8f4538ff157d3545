"""One connection of a libvirt client, between the wire and the handlers."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Iterator

from ringzero.doors.caller import Caller
from ringzero.doors.libvirt.context import HANDLERS, Context, error_of
from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.doors.libvirt.limits import STREAM_DATA
from ringzero.doors.libvirt.session import (
    Call,
    Item,
    Session,
    StreamAbort,
    StreamData,
    StreamEnd,
    StreamHole,
    unsupported,
)
from ringzero.doors.manager import Manager
from ringzero.errors import ProtocolError, RingzeroError, TimeoutExpiredError

StreamItem = StreamData | StreamHole | StreamEnd | StreamAbort

_READ = 256 << 10
# How long a client may take to open the connection, and then take nothing of what is sent, in
# seconds. One that is open may be silent for ever, as virsh is between two commands.
_OPENING, _PATIENCE = 30.0, 60.0
# How long the other side of a stream may take nothing of what the client sends before the stream is
# ended, in seconds: all else that the client asks waits meanwhile, and clients that hear nothing
# for half a minute leave.
_STALLED = 20.0
# What of a stream waits for its other side, in packets of at most 256 KiB.
_BACKLOG = 16
# What may wait for a client that does not read, in bytes; it is left then.
_MOST_WAITING = 64 << 20


class Connection:
    """Serves one client to its end."""

    def __init__(
        self,
        manager: Manager,
        caller: Caller,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._session = Session(read_only=caller.reads)
        self._context = Context(manager, caller, self._session)
        self._context.send = self._send
        self._context.drain = self._drain
        self._context.ended = self._ended
        self._context.leave = writer.transport.abort
        self._calls: set[asyncio.Task[None]] = set()
        self._closing = False
        # One stream's bytes are taken in their order, beside calls.
        self._order: dict[int, asyncio.Queue[Item]] = {}
        # Streams whose last bytes are being written: what is asked next finds them there.
        self._finishing: set[asyncio.Future[None]] = set()
        self._progress = asyncio.Event()

    async def serve(self) -> None:
        """Serve. Raises ConnectionError, TimeoutError where the client does not go on."""
        try:
            while not self._closing:
                data = await self._read()
                if not data:
                    return
                self._session.feed(data)
                await self._take()
        except ProtocolError as fault:
            print(f"ringzero: a libvirt client is left: {fault.message}", file=sys.stderr)
        finally:
            for task in self._calls:
                task.cancel()
            self._context.close()
            self._send()

    async def _read(self) -> bytes:
        patience = None if self._session.opened else _OPENING
        return await asyncio.wait_for(self._reader.read(_READ), patience)

    async def _take(self) -> None:
        """Begin what the client asks; wait where too much of it is under way."""
        while True:
            for item in self._session.items():
                if isinstance(item, Call):
                    self._begin(item)
                else:
                    await self._pass_on(item)
            self._send()
            await self._drain()
            if self._session.wants_data:
                return
            self._progress.clear()
            await self._progress.wait()

    def _begin(self, call: Call) -> None:
        task = asyncio.ensure_future(self._answer(call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, call: Call) -> None:
        handler = HANDLERS.get(call.name)
        try:
            if self._finishing:
                await asyncio.wait(set(self._finishing))
            if handler is None:
                self._session.fail(call, unsupported(call.name))
            else:
                if call.procedure.stream is not None:
                    results = await handler(self._context, call=call, **call.arguments)
                else:
                    results = await handler(self._context, **call.arguments)
                self._session.reply(call, **results)
                self._opened(call)
                self._closing = call.name == "CONNECT_CLOSE"
        except RingzeroError as fault:
            self._discard(call)
            self._session.fail(call, error_of(fault))
        except asyncio.CancelledError:
            raise
        except Exception as fault:
            self._discard(call)
            traceback.print_exc(file=sys.stderr)
            self._session.fail(call, _internal(fault))
        self._send()
        self._progress.set()
        while self._context.later:
            self._context.beside(self._context.later.pop()())
        if self._closing:
            self._reader.feed_eof()

    # ---- streams ----------------------------------------------------------------

    def _opened(self, call: Call) -> None:
        serial = call.packet.serial
        if serial in self._context.streams:
            queue: asyncio.Queue[Item] = asyncio.Queue(_BACKLOG)
            self._order[serial] = queue
            self._context.beside(self._stream(serial, queue))

    def _discard(self, call: Call) -> None:
        side = self._context.streams.pop(call.packet.serial, None)
        if side is not None:
            side.close()

    async def _pass_on(self, item: StreamItem) -> None:
        queue = self._order.get(item.serial)
        if queue is None:
            return
        if isinstance(item, StreamAbort):
            # At once, whatever waits for the other side.
            self._context.streams.pop(item.serial).close()
            self._ended(item.serial)
            return
        if isinstance(item, StreamData | StreamHole):
            count = len(item.data) if isinstance(item, StreamData) else item.length
            whole = self._context.streams[item.serial].coming(count)
            if whole is not None and not whole.done():
                self._finishing.add(whole)
                whole.add_done_callback(self._finishing.discard)
        try:
            for part in _parts(item):
                await asyncio.wait_for(queue.put(part), _STALLED)
        except TimeoutError:
            text = f"nothing of this stream was taken for {_STALLED:g} seconds"
            self._context.abort(item.serial, TimeoutExpiredError(text))

    def _ended(self, serial: int) -> None:
        """End the server's side of a stream that is gone."""
        queue = self._order.pop(serial, None)
        if queue is not None:
            _empty(queue)
            queue.put_nowait(StreamAbort(serial))

    async def _stream(self, serial: int, queue: asyncio.Queue[Item]) -> None:
        side = self._context.streams[serial]
        try:
            while True:
                item = await queue.get()
                if isinstance(item, StreamData):
                    await side.data(item.data)
                elif isinstance(item, StreamHole):
                    await side.hole(item.length)
                elif isinstance(item, StreamEnd):
                    await side.end()
                    self._session.finish(serial)
                    return
                elif isinstance(item, StreamAbort):
                    return
        except RingzeroError as fault:
            self._session.abort(serial, error_of(fault))
        except Exception as fault:
            traceback.print_exc(file=sys.stderr)
            self._session.abort(serial, _internal(fault))
        finally:
            # The client may have opened another by the same number.
            if self._context.streams.get(serial) is side:
                del self._context.streams[serial]
            if self._order.get(serial) is queue:
                del self._order[serial]
            side.close()
            # Whoever waits for room in it need not any more.
            _empty(queue)
            self._send()

    # ---- out --------------------------------------------------------------------

    def _send(self) -> None:
        if not self._session.waiting:
            return
        self._writer.write(self._session.take())
        if self._writer.transport.get_write_buffer_size() > _MOST_WAITING:
            self._writer.transport.abort()

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._writer.drain(), _PATIENCE)
        except TimeoutError:
            self._writer.transport.abort()
            raise ConnectionError("the client does not read") from None


def _parts(item: StreamItem) -> Iterator[StreamItem]:
    """Yield what a stream's queue counts: a packet may have 32 MiB of data."""
    if not isinstance(item, StreamData) or len(item.data) <= STREAM_DATA:
        yield item
        return
    for at in range(0, len(item.data), STREAM_DATA):
        yield StreamData(item.serial, item.data[at : at + STREAM_DATA])


def _empty(queue: asyncio.Queue[Item]) -> None:
    while not queue.empty():
        queue.get_nowait()


def _internal(fault: Exception) -> Error:
    text = f"a fault of ringzero ({type(fault).__name__}); its log has more"
    return Error(ErrorCode.INTERNAL_ERROR, ErrorDomain.REMOTE, text)
