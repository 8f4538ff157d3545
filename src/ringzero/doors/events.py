"""Events for many who listen, numbered, and the log in which they are kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from ringzero.api.values import Event
from ringzero.control.host.events import Watch
from ringzero.errors import ConflictError
from ringzero.host.files import host_error
from ringzero.records import record

# How many of the last are told to who comes late; and wait for one who does not read, before
# he is left out.
_REMEMBERED, _BACKLOG = 4096, 4096
# How many may listen.
_LISTENERS = 1024
# The log begins anew at this size, in bytes, and the one before is kept: some 60,000 events.
_LOG_SIZE = 8 << 20
_OLD = ".1"


@record
class Numbered:
    """An event with its number, which grows from one to the next, over restarts, too."""

    number: int
    event: Event

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"number": self.number, **self.event.to_dict()}


class Events:
    """Watches machines on a thread of its own, from `start` on.

    `log` is a file with a line of JSON for each event; what is wrong with it is told once to the
    process's own log, and takes nobody's events.
    """

    def __init__(self, where: Path, log: Path | None = None) -> None:
        self._where = where
        self._log = log
        self._faulty = False
        self._number = _last_number(log) if log is not None else 0
        self._recent: deque[Numbered] = deque(maxlen=_REMEMBERED)
        self._listeners: set[Listener] = set()
        self._watch: Watch | None = None
        self._thread: threading.Thread | None = None

    @property
    def last(self) -> int:
        """The number of the last event; 0 before the first."""
        return self._number

    def start(self) -> None:
        """Begin to watch; on the event loop. Raises HostError."""
        self._watch = Watch(self._where)
        self._thread = threading.Thread(
            target=self._run, args=(self._watch, asyncio.get_running_loop()), name="events"
        )
        self._thread.daemon = True
        self._thread.start()

    def close(self) -> None:
        """End; who listens hears no more."""
        for listener in list(self._listeners):
            listener.end()
        if self._watch is not None and self._thread is not None:
            self._watch.send(b"")
            self._thread.join()
            self._watch.close()

    def listen(self, after: int | None = None) -> Listener:
        """Return one who hears what happens from now on, or all that is known after a number.

        Raises ConflictError where too many listen.
        """
        if len(self._listeners) >= _LISTENERS:
            raise ConflictError(f"{_LISTENERS} listen already", hint="close a connection")
        listener = Listener(self._listeners.discard)
        if after is not None:
            for each in self._recent:
                if each.number > after:
                    listener.put(each)
        self._listeners.add(listener)
        return listener

    def _tell(self, found: Numbered) -> None:
        """Tell an event; on the event loop."""
        self._number = found.number
        self._recent.append(found)
        for listener in list(self._listeners):
            listener.put(found)

    def _run(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        number = self._number
        for event in watch.events():
            number += 1
            found = Numbered(number, event)
            # Here, where a slow disk holds nobody up.
            self._write(found)
            # The loop may have ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell, found)

    def _write(self, found: Numbered) -> None:
        if self._log is None:
            return
        try:
            if self._log.exists() and self._log.stat().st_size > _LOG_SIZE:
                self._log.replace(self._log.with_name(self._log.name + _OLD))
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._log, flags, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(json.dumps(found.to_dict(), default=str).encode() + b"\n")
        except OSError as fault:
            if not self._faulty:
                error = host_error(fault, "write", self._log)
                print(f"ringzero: events are not kept: {error.message}", file=sys.stderr)
            self._faulty = True
        else:
            self._faulty = False


class Listener:
    """One who hears events; on the event loop. One who does not read is left out at last."""

    def __init__(self, forget: Callable[[Listener], None]) -> None:
        self._forget = forget
        self._queue: asyncio.Queue[Numbered | None] = asyncio.Queue()
        # Whether some were lost, and whether nothing more comes.
        self.lost = self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget(self)

    def put(self, event: Numbered) -> None:
        """Tell an event."""
        if self._queue.qsize() >= _BACKLOG:
            self.lost = True
            self.end()
        else:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Tell that nothing more comes."""
        self._forget(self)
        if not self.ended:
            self.ended = True
            self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[Numbered]:
        """Yield events until the end."""
        while (found := await self._queue.get()) is not None:
            yield found

    async def next(self, timeout: float) -> Numbered | None:
        """Return the next event; None after `timeout` seconds, or where none comes (`ended`)."""
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except TimeoutError:
            return None


def _last_number(log: Path) -> int:
    """Return the number of the last event in a log, or in the one before; 0 where none is."""
    for path in (log, log.with_name(log.name + _OLD)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - (64 << 10)))
                lines = file.read().splitlines()
            for line in reversed(lines):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    return int(json.loads(line)["number"])
    return 0
