"""One connection of a libvirt client, between the wire and the handlers."""

from __future__ import annotations

import asyncio
import sys
import traceback

from ringzero.doors.caller import Caller
from ringzero.doors.libvirt.context import HANDLERS, Context, error_of
from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
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
from ringzero.errors import ProtocolError, RingzeroError

_READ = 256 << 10
# How long a client may take to open the connection, and then take nothing of what is sent, in
# seconds. One that is open may be silent for ever, as virsh is between two commands.
_OPENING, _PATIENCE = 30.0, 60.0
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
        self._calls: set[asyncio.Task[None]] = set()
        self._closing = False
        # One stream's bytes are taken in their order, beside calls.
        self._order: dict[int, asyncio.Queue[Item]] = {}
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
            text = f"a fault of ringzero ({type(fault).__name__}); its log has more"
            self._session.fail(call, Error(ErrorCode.INTERNAL_ERROR, ErrorDomain.REMOTE, text))
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
            queue: asyncio.Queue[Item] = asyncio.Queue(64)
            self._order[serial] = queue
            self._context.beside(self._stream(serial, queue))

    def _discard(self, call: Call) -> None:
        side = self._context.streams.pop(call.packet.serial, None)
        if side is not None:
            side.close()

    async def _pass_on(self, item: Item) -> None:
        queue = self._order.get(item.serial) if not isinstance(item, Call) else None
        if queue is not None:
            await queue.put(item)

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
        finally:
            self._context.streams.pop(serial, None)
            self._order.pop(serial, None)
            side.close()
            # Whoever waits for room in it need not any more.
            while not queue.empty():
                queue.get_nowait()
            self._send()

    # ---- out --------------------------------------------------------------------

    def _send(self) -> None:
        if not self._session.waiting:
            return
        self._writer.write(self._session.take())
        if self._writer.transport.get_write_buffer_size() > _MOST_WAITING:
            self._writer.transport.abort()

    async def _drain(self) -> None:
        await asyncio.wait_for(self._writer.drain(), _PATIENCE)
