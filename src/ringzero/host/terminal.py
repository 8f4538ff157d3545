"""The user's terminal: raw mode, size, escape key, and its restoration on every way out.

In raw mode each key goes to the guest, Ctrl-C and Ctrl-Z included. The escape
key is Ctrl-]: followed by `q` it ends the session, followed by Ctrl-] it goes
to the guest as itself, followed by anything else it is ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Ctrl-], as telnet and virsh have it: rarely typed, on every keyboard layout.
ESCAPE = 0x1D
ESCAPE_HELP = "Ctrl-] q ends the machine, Ctrl-] Ctrl-] sends a Ctrl-]"


class EscapeFilter:
    """Takes the escape key out of what the user types."""

    def __init__(self) -> None:
        self._pending = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Return what goes to the guest; sets `ended` when the user asked for the end."""
        out = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                if byte == ESCAPE:
                    out.append(byte)
                elif byte in b"qQ":
                    self.ended = True
                    break
            elif byte == ESCAPE:
                self._pending = True
            else:
                out.append(byte)
        return bytes(out)


@contextlib.contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """Put the terminal `descriptor` into raw mode for the block.

    It is restored when the block ends, at the interpreter's exit, and by
    SIGTERM and SIGHUP, which then end the process as usual. A descriptor that
    is no terminal is left alone.
    """
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)

    def restore() -> None:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    atexit.register(restore)
    with _restored_by_signals(restore):
        try:
            import tty

            tty.setraw(descriptor, termios.TCSADRAIN)
            yield
        finally:
            restore()
            atexit.unregister(restore)


@contextlib.contextmanager
def _restored_by_signals(restore: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier: dict[int, Any] = {}

    def handler(number: int, frame: FrameType | None) -> None:
        restore()
        before = earlier[number]
        if callable(before):
            before(number, frame)
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        earlier[ending] = signal.signal(ending, handler)
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


def size(descriptor: int) -> tuple[int, int]:
    """Return (rows, columns) of the terminal; 24 by 80 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(descriptor)
        if rows > 0 and columns > 0:
            return rows, columns
    import shutil

    fallback = shutil.get_terminal_size()
    return fallback.lines, fallback.columns


@contextlib.contextmanager
def on_resize(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` whenever the terminal's size changes, for the block (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGWINCH, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class Reader:
    """A thread that hands what comes from `descriptor` to `sink`, and `end()` at its end.

    `ready` is asked before each read, so that a slow consumer can hold it back.
    """

    def __init__(
        self,
        descriptor: int,
        sink: Callable[[bytes], None],
        end: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._descriptor = descriptor
        self._sink = sink
        self._end = end
        self._ready = ready
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="terminal", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        os.write(self._wake_write, b"x")
        self._thread.join(1)
        os.close(self._wake_write)
        if not self._thread.is_alive():
            os.close(self._wake_read)

    def _pump(self) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        poller.register(self._descriptor, select.POLLIN)
        try:
            while not self._stopping.is_set():
                if not self._ready():
                    # A wait, not a spin: the consumer tells nobody when it is ready.
                    self._stopping.wait(0.005)
                    continue
                events = dict(poller.poll())
                if self._wake_read in events:
                    return
                if events.get(self._descriptor, 0) & select.POLLNVAL:
                    break
                data = os.read(self._descriptor, 65536)
                if not data:
                    break
                self._sink(data)
        except OSError:
            # The terminal went away; that is the end of input.
            pass
        if not self._stopping.is_set():
            self._end()
