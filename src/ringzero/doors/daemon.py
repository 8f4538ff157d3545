"""`ringzero serve`: one process, one event loop, the doors that were asked for.

It may be killed and started again at any moment: machines live in processes of their own, and what
they are stands in their directories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ringzero.control.host.client import Host
from ringzero.doors import autostart
from ringzero.doors.contract import DOORS, Address, Door
from ringzero.doors.events import Events
from ringzero.doors.listeners import Certificate, Listening, caller_behind
from ringzero.doors.manager import Manager
from ringzero.doors.tokens import Tokens
from ringzero.errors import ConflictError, HostError, InvalidValueError
from ringzero.host import ofdlock
from ringzero.host.files import host_error
from ringzero.records import record

# How many connections there may be; each takes a descriptor and some 30 KiB.
_CONNECTIONS = 4096
# How long connections may take to end when the process is to, in seconds.
_END = 3.0
# How long a client may take to shake hands over TLS, in seconds.
_HANDSHAKE = 10.0
_LOCK, _LOG = "lock", "events.jsonl"


@record
class Wanted:
    """A door, and where it is to listen; one by `default` may be missing where it cannot."""

    door: str
    address: Address
    default: bool = False


class Daemon:
    """The doors of this user's host. Raises RingzeroError where one cannot be opened."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        where: Path,
        certificate: Certificate | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._wanted = wanted
        self._where = where
        self._certificate = certificate
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()
        # What goes on beside connections.
        self._beside: set[asyncio.Task[None]] = set()
        self._attended: set[str] = set()
        self._most = _CONNECTIONS

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        with _alone(self._where), contextlib.ExitStack() as stack:
            # Half of the descriptors is left to what clients ask for.
            self._most = min(_CONNECTIONS, _raise_limit() // 2)
            host = Host()
            events = Events(host.where, self._where / _LOG)
            manager = Manager(host, events, Tokens(self._where))
            servers = []
            events.start()
            try:
                for wanted in self._wanted:
                    try:
                        servers.append(await self._open(wanted, manager, stack))
                    except (HostError, ConflictError) as fault:
                        if not wanted.default or len(self._wanted) == 1:
                            raise
                        self._tell(f"{wanted.door}: not at {wanted.address}: {fault.message}")
                _notify("READY=1")
                self._go_on(self._start_machines(manager))
                await stop.wait()
                _notify("STOPPING=1")
            finally:
                for server in servers:
                    server.close()
                events.close()
                await manager.close()
                await self._end()

    async def _start_machines(self, manager: Manager) -> None:
        for name, fault in await manager.work(
            autostart.start_once, manager.host, self._where, long=True
        ):
            self._tell(f"{name} does not start: {fault}" if fault else f"started {name}")

    async def _open(
        self, wanted: Wanted, manager: Manager, stack: contextlib.ExitStack
    ) -> asyncio.Server:
        door = DOORS.get(wanted.door)(manager)
        listening = Listening(wanted.address)
        stack.callback(listening.close)
        context = None
        if wanted.address.path is None:
            if self._certificate is None:
                raise InvalidValueError(
                    f"{wanted.address} is TCP, which wants TLS",
                    hint="--cert FILE --key FILE; or take a path, and reach it by ssh",
                )
            if not door.authenticates and self._certificate.clients is None:
                raise InvalidValueError(
                    f"over TCP the door {wanted.door!r} knows clients by certificates alone",
                    hint="--client-ca FILE says who signs them",
                )
            context = self._certificate.context()
        server = await asyncio.start_server(
            partial(self._serve, door, listening.address),
            sock=listening.socket,
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE if context else None,
        )
        self._tell(f"{wanted.door}: {listening.address}")
        if wanted.door not in self._attended:
            self._attended.add(wanted.door)
            self._go_on(door.attend())
        return server

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._beside.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            traceback.print_exception(fault, file=sys.stderr)

    async def _serve(
        self,
        door: Door,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            caller = None
            if address.path is not None:
                caller = caller_behind(writer.get_extra_info("socket"), reads=address.reads)
                if caller is None:
                    return
            if len(self._tasks) <= self._most:
                await door.converse(reader, writer, caller)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            # The client's affair, or the end of all.
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)
        finally:
            writer.close()
            try:
                await asyncio.wait_for(writer.wait_closed(), _END)
            except (OSError, asyncio.CancelledError, TimeoutError):
                # What a client does not read would keep its connection open for ever.
                writer.transport.abort()
            self._tasks.discard(task)

    async def _end(self) -> None:
        left = self._tasks | self._beside
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_END)


def serve(
    wanted: Sequence[Wanted],
    where: Path,
    certificate: Certificate | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises RingzeroError."""

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Daemon(wanted, where, certificate, tell).run(stop)

    asyncio.run(run())


@contextlib.contextmanager
def _alone(where: Path) -> Iterator[None]:
    """Be the only one that keeps its things in a directory. Raises ConflictError, HostError."""
    path = where / _LOCK
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as fault:
        raise host_error(fault, "open", path) from fault
    try:
        if not ofdlock.take(descriptor):
            raise ConflictError(
                "`ringzero serve` runs already for this user",
                hint="end that one, or give this one its own RINGZERO_SERVE_DIR",
            )
        yield
    finally:
        os.close(descriptor)


def _raise_limit() -> int:
    """Allow as many descriptors as the kernel lets this process have; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _notify(text: str) -> None:
    """Tell systemd, where that is who started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with link, contextlib.suppress(OSError):
        link.sendto(text.encode(), name)
