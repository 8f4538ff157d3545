"""The guest's serial line: out to standard output or a file, in from standard input."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ringzero.core.buckets import Bucket, Tokens
from ringzero.doors.firecracker import faults
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.instance import Instance
from ringzero.doors.firecracker.logs import open_sink
from ringzero.doors.firecracker.metrics import Metrics

# Input ahead of what the guest has read that is kept, in bytes, and how often the rest waits.
_AHEAD, _PAUSE = 1 << 16, 0.02
_STDIN, _STDOUT = 0, 1


class SerialOutput:
    """What the guest prints; `write` is called by one thread of the machine's."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._descriptor = _STDOUT
        self._lost = False
        self._tokens: Tokens | None = None

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Take where the output goes, and how much of it, as PUT /serial has it. ApiFault."""
        if "serial_out_path" in fields:
            try:
                descriptor = open_sink(fields["serial_out_path"])
            except OSError as fault:
                raise ApiFault(
                    f"Start microvm error: Could not open serial output: {faults.os_error(fault)}"
                ) from fault
            # That of a start that failed.
            self.close()
            self._descriptor = descriptor
        limit = fields.get("rate_limiter")
        if limit is not None and limit["size"] and limit["refill_time"]:
            seconds = limit["refill_time"] / 1000
            bucket = Bucket(limit["size"], seconds, limit.get("one_time_burst", 0))
            self._tokens = Tokens(bucket, time.monotonic())

    def write(self, data: bytes) -> None:
        """Write all of it; what is over the limit, or what nobody takes any more, is dropped."""
        if self._tokens is not None:
            if self._tokens.wait(time.monotonic()):
                self._metrics.count("uart", "rate_limiter_dropped_bytes", len(data))
                return
            self._tokens.take(len(data))
        view = memoryview(data)
        while view and not self._lost:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                self._wait()
            except OSError:
                self._lost = True
        self._metrics.count("uart", "write_count", len(data) - len(view))
        if view:
            self._metrics.count("uart", "missed_write_count", len(view))

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLOUT)
        poller.poll()

    def close(self) -> None:
        """Give back what was opened."""
        if self._descriptor != _STDOUT:
            os.close(self._descriptor)
            self._descriptor = _STDOUT


@contextlib.contextmanager
def typing(instance: Instance) -> Iterator[None]:
    """Have what comes from standard input go to the guest for the block; a terminal is raw."""
    from ringzero.host.terminal import Reader, raw_mode

    over = threading.Event()

    def typed(data: bytes) -> None:
        while not over.is_set():
            machine = instance.machine
            if machine is not None and machine.serial.backlog < _AHEAD:
                machine.serial.write(data)
                return
            over.wait(_PAUSE)

    with raw_mode(_STDIN), Reader(_STDIN, typed, lambda: None):
        try:
            yield
        finally:
            over.set()
