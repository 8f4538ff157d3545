"""Whether what runs in a machine is well: the health check of its image, run by its process.

Docker's rules ("HEALTHCHECK" of the Dockerfile reference): `starting` until a run succeeds, which
makes it `healthy`; `unhealthy` after so many failures in a row. What came of it is written into
the machine's directory, where `ps` and `inspect` find it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from ringzero.api.values import HealthCheck, Probed, Status
from ringzero.control.host.directory import HEALTH
from ringzero.control.host.records import STARTING, HealthRecord
from ringzero.control.machine.keeper import Keeper
from ringzero.errors import GuestError, HostError, InvalidValueError
from ringzero.host.service import ServiceThread
from ringzero.vm.guest.command import Command

# As Docker keeps of each run's output, in bytes.
_MAX_OUTPUT = 4096
# How long a command that took too long may take to die, in seconds.
_DEATH = 5.0


def watch(keeper: Keeper) -> None:
    """Run the health check of a machine, whose guest takes commands, until the machine's end."""
    check = keeper.record.health_check
    if check is not None:
        ServiceThread(keeper, _Watch(keeper, check).run, "health").start()


class _Watch:
    """What is known of a machine's health."""

    def __init__(self, keeper: Keeper, check: HealthCheck) -> None:
        self._keeper = keeper
        self._check = check
        self._record = HealthRecord(os.getpid(), STARTING)
        # A command that has not died of its signal: none is run beside it.
        self._stuck: Command | None = None

    def run(self) -> None:
        """Ask again and again; on a thread of its own."""
        began = time.monotonic()
        self._write()
        while True:
            early = time.monotonic() - began < self._check.start_period
            early = early and self._record.status == STARTING
            pause = self._check.start_interval if early else self._check.interval
            if self._keeper.ended.wait(pause):
                return
            if self._keeper.status is not Status.RUNNING:
                continue
            found = self._probe()
            # A guest that stood still is not to be blamed, and one that is gone is past it.
            if found is not None and self._keeper.status is Status.RUNNING:
                self._record = self._record.after(found, self._check.retries, early=early)
                self._write()

    def _write(self) -> None:
        # A full disk is no reason to end a machine.
        with contextlib.suppress(HostError):
            self._keeper.files.save(self._record, HEALTH)

    def _probe(self) -> Probed | None:
        """Run the command once; None where it says nothing about the guest."""
        if self._stuck is not None and self._stuck.wait_quietly(0) is None:
            now = time.time()
            return Probed(start=now, end=now, exit_code=None, output="the last one still runs")
        self._stuck = None
        output, start, lost = bytearray(), time.time(), threading.Event()

        def said(data: bytes) -> None:
            output.extend(data[: _MAX_OUTPUT - len(output)])

        try:
            command = self._keeper.machine.agent.run(
                self._check.words, on_stdout=said, on_stderr=said, on_lost=lost.set
            )
        except GuestError:
            return None
        except InvalidValueError as fault:
            return Probed(start=start, end=time.time(), exit_code=None, output=fault.message)
        status = command.wait_quietly(self._check.timeout)
        if lost.is_set() or self._keeper.ended.is_set():
            return None
        if status is None:
            command.signal("KILL")
            if command.wait_quietly(_DEATH) is None:
                self._stuck = command
        return Probed(
            start=start, end=time.time(), exit_code=status, output=output.decode("utf-8", "replace")
        )
