"""Progress for people: one line on stderr for every step that takes over a second.

On a terminal the line is redrawn in place and removed at the end; in a log
each step is one line when it starts to take long, and one more every ten seconds.
Nothing is shown for steps under a second, and `QUIET` shows nothing at all.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

# A step shorter than this is not worth a line, in seconds.
_PATIENCE = 1.0
# Redraws closer together than this are a blur, in seconds.
_REDRAW = 0.1
# Between lines in a log, in seconds.
_REPEAT = 10.0


class Reported(Protocol):
    """A running step."""

    def update(self, fraction: float | None = None, note: str = "") -> None:
        """Say how far the step is (0.0 to 1.0, None: unknown) and what it is doing."""
        ...


class Steps(Protocol):
    """Who is told of steps that take long: a person (`Progress`), or a process that waits."""

    def step(self, text: str) -> AbstractContextManager[Reported]:
        """Run a `with` block as one step called `text`."""
        ...


class Progress:
    """Reports nested steps to `stream`; `enabled=False` makes it silent."""

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._terminal = enabled and self._stream.isatty()
        self._drawn = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Run a block as one step called `text`; the step takes `update(fraction, note)`."""
        step = Step(self, text)
        over = threading.Event()
        if self._enabled:
            threading.Thread(
                target=self._repeat, args=(step, over), name="progress", daemon=True
            ).start()
        try:
            yield step
        finally:
            over.set()
            self._clear()

    def _repeat(self, step: Step, over: threading.Event) -> None:
        """Show a step that takes long, whether or not anybody tells how far it is."""
        pause = _PATIENCE
        # What goes wrong here is no reason for the step to fail, or to say more than its result.
        with contextlib.suppress(Exception):
            while not over.wait(pause):
                step.show()
                pause = _REDRAW * 10 if self._terminal else _REPEAT

    @property
    def redraws(self) -> bool:
        """Whether lines are drawn in place of the last one."""
        return self._terminal

    def show(self, text: str) -> None:
        """Write a line, or draw it in place of the last one."""
        if not self._enabled:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._terminal:
                import shutil

                width = shutil.get_terminal_size().columns - 1
                self._stream.write("\r\x1b[K" + text[:width])
                self._drawn = True
            else:
                self._stream.write(text + "\n")
            self._stream.flush()

    def _clear(self) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._drawn:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
                self._drawn = False


class Step:
    """One running step."""

    def __init__(self, progress: Progress, text: str) -> None:
        self._progress = progress
        self._text = text
        self._began = time.monotonic()
        self._shown = 0.0
        self._told: tuple[float | None, str] = None, ""

    def update(self, fraction: float | None = None, note: str = "") -> None:
        """Say how far the step is (0.0 to 1.0, None: unknown) and what it is doing."""
        self._told = fraction, note
        now = time.monotonic()
        due = now - self._began >= _PATIENCE and now - self._shown >= _REDRAW
        if self._progress.redraws and due:
            self.show()

    def show(self) -> None:
        """Show how far the step is."""
        fraction, note = self._told
        self._shown = now = time.monotonic()
        percent = "" if fraction is None else f" {100 * fraction:3.0f}%"
        detail = f"  {note}" if note else ""
        if now - self._began >= _REPEAT / 2:
            detail += f"  ({now - self._began:.0f} s)"
        self._progress.show(f"ringzero: {self._text} ...{percent}{detail}")


QUIET = Progress(enabled=False)
