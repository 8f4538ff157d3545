"""One line of the guest (its console, its serial line) shared by all who watch it.

Whoever attaches sees the last part of what was said before. Everybody may type
unless one has asked to be the only one. A watcher that does not read loses
output, and is told so; the guest and the others never wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ringzero.errors import ConflictError

# What is shown to whoever attaches, in bytes: some screens full.
SCROLLBACK = 64 * 1024


class Sink(Protocol):
    """Who takes output: `write` never blocks, and is False where the bytes were dropped."""

    def write(self, data: bytes) -> bool:
        """Take `data`."""
        ...


class Watcher:
    """One attachment to a line."""

    def __init__(self, hub: Hub, sink: Sink, writes: bool) -> None:
        self._hub = hub
        self._sink = sink
        self.writes = writes
        self._skipped = 0

    def type(self, data: bytes) -> None:
        """Send what the user types, where this one may."""
        if self.writes:
            self._hub._type(self, data)

    def resize(self, rows: int, columns: int) -> None:
        """Hear of the size of this user's terminal; the last one counts."""
        if self.writes:
            self._hub._resize(rows, columns)

    def detach(self) -> None:
        """Leave; may be called twice."""
        self._hub._detach(self)

    def _show(self, data: bytes) -> None:
        if self._skipped:
            note = f"\r\n[ringzero: {self._skipped} bytes skipped]\r\n".encode()
            if not self._sink.write(note):
                self._skipped += len(data)
                return
            self._skipped = 0
        if not self._sink.write(data):
            self._skipped += len(data)


class Hub:
    """One line: `feed` takes the guest's output; `send` and `resize` lead to the guest."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        resize: Callable[[int, int], None] | None = None,
        log: Callable[[bytes], object] | None = None,
    ) -> None:
        self._send = send
        self._resize_guest = resize
        self._logs = [] if log is None else [log]
        self._lock = threading.Lock()
        self._scrollback = bytearray()
        self._watchers: list[Watcher] = []
        self._only: Watcher | None = None

    @property
    def watchers(self) -> int:
        """How many are attached."""
        return len(self._watchers)

    def feed(self, data: bytes) -> None:
        """Take what the guest printed."""
        with self._lock:
            self._scrollback += data
            if len(self._scrollback) > 2 * SCROLLBACK:
                del self._scrollback[:-SCROLLBACK]
            for watcher in self._watchers:
                watcher._show(data)
        for log in self._logs:
            log(data)

    def copy_to(self, log: Callable[[bytes], object]) -> None:
        """Have what the guest prints go to `log`, too."""
        self._logs.append(log)

    def tail(self, size: int = SCROLLBACK) -> bytes:
        """Return the last of what the guest printed."""
        with self._lock:
            return bytes(self._scrollback[-min(size, SCROLLBACK) :])

    def attach(
        self,
        sink: Sink,
        *,
        writes: bool = True,
        only: bool = False,
        scrollback: bool = True,
        caught_up: Callable[[], object] = lambda: None,
    ) -> Watcher:
        """Attach; with `only`, nobody else may type meanwhile.

        `caught_up` is called between what was said before and what comes from now on; it must
        not block. Raises ConflictError.
        """
        watcher = Watcher(self, sink, writes or only)
        with self._lock:
            if self._only is not None and watcher.writes:
                raise ConflictError(
                    "somebody else is typing on this console alone",
                    hint="watch it: `ringzero console --watch`",
                )
            if only and any(other.writes for other in self._watchers):
                raise ConflictError("others are typing on this console", hint="leave `--only` out")
            if only:
                self._only = watcher
            if scrollback and self._scrollback:
                watcher._show(bytes(self._scrollback[-SCROLLBACK:]))
            caught_up()
            self._watchers.append(watcher)
        return watcher

    def _type(self, watcher: Watcher, data: bytes) -> None:
        if self._only in (None, watcher):
            self._send(data)

    def _resize(self, rows: int, columns: int) -> None:
        if self._resize_guest is not None:
            self._resize_guest(rows, columns)

    def _detach(self, watcher: Watcher) -> None:
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
            if self._only is watcher:
                self._only = None
