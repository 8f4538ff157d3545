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

# Ctrl-], as telnet and virsh have it: rarely typed, on every keyboard layout.
ESCAPE = 0x1D
ESCAPE_HELP = "Ctrl-] q ends the machine, Ctrl-] Ctrl-] sends a Ctrl-]"
# Bytes at a time; what a pipe holds.
_READ = 1 << 16
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EscapeFilter:
    """Takes the escape key out of what the user types."""

    def __init__(self) -> None:
        self._pending = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """Return what goes to the guest; sets `ended` when the user asked for the end."""
        if not self._pending and ESCAPE not in data:
            return data
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
    SIGTERM, SIGHUP and SIGQUIT where these end the process without a handler.
    A descriptor that is no terminal is left alone.
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

    def handler(number: int, _: FrameType | None) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # A handler that is there ends the block, which restores, or means that it goes on.
    ending = [n for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def size(descriptor: int) -> tuple[int, int]:
    """Return (rows, columns) of the terminal; 24 by 80 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        columns, rows = os.get_terminal_size(descriptor)
        if rows > 0 and columns > 0:
            return rows, columns
    import shutil

    fallback = shutil.get_terminal_size()
    return fallback.lines, fallback.columns


class Reader:
    """A thread that hands what comes from `descriptor` to `sink`, and `end()` at its end.

    `ready` is asked before each read, so that a slow consumer can hold it back, who calls
    `proceed` when the answer may be another one. An exception of theirs ends the thread:
    `broken()` is called, and leaving the context raises it.
    """

    def __init__(
        self,
        descriptor: int,
        sink: Callable[[bytes], None],
        end: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._broken = broken
        self._fault: BaseException | None = None
        self._descriptor = descriptor
        self._sink = sink
        self._end = end
        self._ready = ready
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = False
        # Whether the reader waits for `proceed`.
        self._held = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._pump, name="terminal", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        os.write(self._wake_write, b"x")
        self._thread.join(1)
        with self._lock:
            os.close(self._wake_write)
            self._wake_write = -1
        if not self._thread.is_alive():
            os.close(self._wake_read)
        if self._fault is not None:
            raise self._fault

    def proceed(self) -> None:
        """Have `ready` asked again; from any thread."""
        if self._held:
            with self._lock:
                if self._wake_write >= 0:
                    os.write(self._wake_write, b"x")

    def _pump(self) -> None:
        try:
            self._pass_on()
        except BaseException as fault:
            self._fault = fault
            self._broken()

    def _pass_on(self) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        poller.register(self._descriptor, select.POLLIN)
        try:
            while not self._stopping:
                self._held = True
                if not self._ready():
                    os.read(self._wake_read, _READ)
                    continue
                self._held = False
                events = dict(poller.poll())
                if self._wake_read in events:
                    os.read(self._wake_read, _READ)
                    continue
                if events.get(self._descriptor, 0) & select.POLLNVAL:
                    break
                data = os.read(self._descriptor, _READ)
                if not data:
                    break
                self._sink(data)
        except OSError:
            # The terminal went away; that is the end of input.
            pass
        if not self._stopping:
            self._end()
