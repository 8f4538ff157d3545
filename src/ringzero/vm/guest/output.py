"""What the guest prints, passed on by a thread of its own, in batches.

A vCPU that prints never waits for the terminal, and a reader that has stopped
reading keeps nobody from stopping the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# How long output may wait for more of it, in seconds: less than a person notices,
# and few enough wake-ups that they cost nothing beside a kernel's boot messages.
DELAY = 0.005
# Bytes that wait for the reader before the guest has to wait too.
LIMIT = 1 << 20
# How long `close` waits for a reader that does not read, in seconds.
PATIENCE = 1.0


class OutputBatch:
    """Collects bytes and calls `sink(data)` on its own thread, in order.

    When more than LIMIT bytes wait, it calls `on_full`, or makes `write` wait
    where there is none; `on_room` is called when all was passed on after that.
    The last `kept` bytes stay for explanations (`tail`). An exception of `sink` goes to
    `on_fault`; what comes after it is thrown away.
    """

    def __init__(
        self,
        sink: Callable[[bytes], None],
        on_full: Callable[[], None] | None = None,
        on_room: Callable[[], None] | None = None,
        *,
        on_fault: Callable[[BaseException], None],
        kept: int = 16384,
    ) -> None:
        self._sink = sink
        self._on_fault = on_fault
        self._on_full = on_full
        self._on_room = on_room
        self._kept = kept
        self._tail = bytearray()
        self._buffer = bytearray()
        self._changed = threading.Condition()
        self._passing = False
        self._full = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Take `data`; from any thread."""
        with self._changed:
            first = not self._buffer
            self._buffer += data
            if first:
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(target=self._work, name="output", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
            if len(self._buffer) <= LIMIT or self._full or self._closed:
                return
            if self._on_full is None:
                self._changed.wait_for(lambda: self._closed or len(self._buffer) <= LIMIT)
                return
            self._full = True
        self._on_full()

    def flush(self, patience: float = PATIENCE) -> None:
        """Return when all was passed on, or after `patience` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._buffer and not self._passing, patience)

    def tail(self) -> str:
        """Return the end of everything that was printed, for a person."""
        with self._changed:
            return (self._tail + self._buffer).decode("utf-8", "replace").replace("\r", "")

    def release(self) -> None:
        """Let nobody wait in `write` any more; what comes then is still passed on if it can be."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Pass on what waits, as far as the reader takes it within PATIENCE, and end."""
        self.flush()
        self.release()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        pause = threading.Event()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._buffer or self._closed)
                if not self._buffer:
                    return
                closed = self._closed
            if not closed:
                pause.wait(DELAY)
            with self._changed:
                data = bytes(self._buffer)
                self._buffer.clear()
                self._tail += data[-self._kept :]
                del self._tail[: -self._kept]
                self._passing = True
                full, self._full = self._full, False
                self._changed.notify_all()
            try:
                self._sink(data)
                if full and self._on_room is not None:
                    self._on_room()
            except BaseException as fault:
                self._sink = _nobody
                self._on_fault(fault)
            with self._changed:
                self._passing = False
                self._changed.notify_all()


def _nobody(data: bytes) -> None:
    """Take what has lost its reader."""
