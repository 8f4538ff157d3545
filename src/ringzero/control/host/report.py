"""What a starting machine's process tells the command that started it, over a pipe.

Lines of JSON: {"step": TEXT} (empty: the step is over), {"fraction": F, "note": TEXT},
{"note": TEXT}, {"up": true}, {"error": {...}}. The end of the pipe without "up" or
"error" is the end of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ringzero.control.host.directory import VMM_LOG, MachineDirectory
from ringzero.errors import ControlError, RingzeroError, from_dict
from ringzero.host.progress import Progress, Step


class Reporter:
    """The starting process's end; the command may have gone away, which hurts nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, **content: Any) -> None:
        """Send one line."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, json.dumps(content, default=str).encode() + b"\n")

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[_ReportedStep]:
        """Run a block as one step of the start."""
        self.say(step=text)
        try:
            yield _ReportedStep(self)
        finally:
            self.say(step="")

    def up(self) -> None:
        """Say that the machine is there, and no more."""
        self.say(up=True)
        self.close()

    def fail(self, fault: RingzeroError) -> None:
        """Say why there is no machine, and no more."""
        self.say(error=fault.to_dict())
        self.close()

    def close(self) -> None:
        """Close the pipe."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class _ReportedStep:
    """A running step of the starting process."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def update(self, fraction: float | None = None, note: str = "") -> None:
        self._reporter.say(fraction=fraction, note=note)


def follow(descriptor: int, directory: MachineDirectory, progress: Progress) -> None:
    """Show what a starting machine's process says until it is up. Raises what it failed of."""
    with contextlib.ExitStack() as stack:
        step: Step | None = None
        for line in _lines(descriptor):
            match line:
                case {"up": True}:
                    return
                case {"error": dict(fault)}:
                    raise from_dict(fault)
                case {"step": str(text)}:
                    stack.close()
                    step = stack.enter_context(progress.step(text)) if text else None
                case {"fraction": float(fraction), "note": str(note)} if step is not None:
                    step.update(fraction, note)
                case {"note": str(note)}:
                    print(f"ringzero: {note}", file=sys.stderr)
    ended = directory.exit()
    why = ended.detail if ended is not None else "it closed its report"
    log = directory.tail(VMM_LOG, 2048).strip()
    raise ControlError(
        f"the machine's process ended while it started: {why}" + (f"\n{log}" if log else ""),
    )


def _lines(descriptor: int) -> Iterator[dict[str, Any]]:
    with os.fdopen(descriptor, "rb") as file:
        for text in file:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line
