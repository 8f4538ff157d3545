"""Byte channels between the machine and the user: the serial line and the console."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Line:
    """What the guest prints goes to `on_output`; what the user types goes in by `write`.

    Output from before `on_output` is set is kept, up to `KEPT` bytes, and
    then passed on. `on_output` is called on a thread of the machine and must
    not call back into it.
    """

    KEPT = 1 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_output: Callable[[bytes], None] | None = None
        self._early = bytearray()
        self._typed = bytearray()
        self._push: Callable[[bytes], int] | None = None
        self._moving = threading.Lock()

    @property
    def on_output(self) -> Callable[[bytes], None] | None:
        """Who takes the guest's output."""
        return self._on_output

    @on_output.setter
    def on_output(self, sink: Callable[[bytes], None] | None) -> None:
        with self._lock:
            self._on_output = sink
            if sink is not None and self._early:
                early = bytes(self._early)
                self._early.clear()
                sink(early)

    @property
    def backlog(self) -> int:
        """How much for the guest waits here, in bytes."""
        return len(self._typed)

    def write(self, data: bytes) -> None:
        """Send `data` to the guest; what it does not take yet waits here."""
        with self._lock:
            self._typed += data
        self._move()

    def connect(self, push: Callable[[bytes], int]) -> None:
        """Name the device's way in; it returns how many bytes it took."""
        self._push = push

    def emit(self, data: bytes) -> None:
        """Take what the guest printed."""
        with self._lock:
            sink = self._on_output
            if sink is None:
                self._early += data
                if len(self._early) > self.KEPT:
                    del self._early[: -self.KEPT]
        if sink is not None:
            sink(data)

    def room(self) -> None:
        """Hear that the device takes bytes again."""
        if self._typed:
            self._move()

    def _move(self) -> None:
        # One mover at a time keeps the order. Whoever finds the door shut leaves
        # the bytes to the one inside, who looks again after it came out.
        while self._typed and self._push is not None and self._moving.acquire(blocking=False):
            try:
                with self._lock:
                    data = bytes(self._typed)
                taken = self._push(data)
                with self._lock:
                    del self._typed[:taken]
            finally:
                self._moving.release()
            if taken == 0:
                return


class Console(Line):
    """The terminal of the guest's virtio console."""

    def __init__(self) -> None:
        super().__init__()
        self._resize: Callable[[int, int], None] | None = None
        # The last size that was told, as rows and columns.
        self._size: tuple[int, int] | None = None

    def connect_size(self, resize: Callable[[int, int], None]) -> None:
        """Name the device's way to hear of a new size: `resize(columns, rows)`."""
        self._resize = resize

    def resize(self, rows: int, columns: int) -> None:
        """Tell the guest the size of the user's terminal, in characters."""
        self._size = rows, columns
        if self._resize is not None:
            self._resize(columns, rows)

    def tell_size(self) -> None:
        """Tell the size once more, if one was told: the guest has become another."""
        if self._size is not None:
            self.resize(*self._size)
