"""Batching of what the guest prints byte by byte."""

from __future__ import annotations

import threading
from collections.abc import Callable

# Bytes that are passed on at once, without waiting for more.
BATCH_SIZE = 512
# How long the rest of a line may wait, in seconds: less than a person notices.
DELAY = 0.01


class OutputBatch:
    """Collects bytes and passes them on by line, by `BATCH_SIZE` or after `DELAY`.

    `sink(data)` is called from the vCPU's thread or from the batch's own,
    one call at a time and in order. The last `kept` bytes stay for
    explanations (`tail`).
    """

    def __init__(self, sink: Callable[[bytes], None], kept: int = 4096) -> None:
        self.sink = sink
        self._kept = kept
        self._tail = bytearray()
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._partial = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Take `data`; from any thread."""
        with self._lock:
            buffer = self._buffer
            buffer += data
            if data.endswith(b"\n") or len(buffer) >= BATCH_SIZE:
                self._pass_on()
            elif not self._partial.is_set():
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="output", daemon=True)
                    self._thread.start()
                self._partial.set()

    def flush(self) -> None:
        """Pass on what waits."""
        with self._lock:
            self._pass_on()

    def tail(self) -> str:
        """Return the end of everything that was printed, for a person."""
        with self._lock:
            return (self._tail + self._buffer).decode("utf-8", "replace").replace("\r", "")

    def _pass_on(self) -> None:
        self._partial.clear()
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        self._tail += data
        if len(self._tail) > 2 * self._kept:
            del self._tail[: -self._kept]
        self.sink(data)

    def _work(self) -> None:
        pause = threading.Event()
        while not self._closed:
            self._partial.wait()
            pause.wait(DELAY)
            self.flush()

    def close(self) -> None:
        """Pass on what waits and end the thread."""
        self._closed = True
        self._partial.set()
        self.flush()
        if self._thread is not None:
            self._partial.set()
            self._thread.join()
