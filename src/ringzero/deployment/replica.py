"""One machine of a service: started, asked whether it is well, started again when it has ended.

Each has a thread, which sleeps until the machine's process ends, the next question is due, or
somebody wants the machine to go. What it does with one that has ended is the service's restart
policy, with a pause that doubles.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from ringzero.api.values import ExitRecord, Probed
from ringzero.control.host import directory
from ringzero.control.host.client import RemoteMachine
from ringzero.control.host.directory import CONSOLE_LOG, Claim, MachineDirectory, taken
from ringzero.control.host.launch import launch
from ringzero.control.host.records import HEALTHY, STARTING, UNHEALTHY, HealthRecord
from ringzero.deployment.balancer import Target
from ringzero.deployment.description import ALWAYS, COMMAND, HTTP, NEVER, TCP, Check, Service
from ringzero.deployment.machine import Label, label_of
from ringzero.deployment.probe import ask
from ringzero.errors import ControlError, GuestError, RingzeroError
from ringzero.host.process import ProcessIdentity
from ringzero.host.progress import QUIET
from ringzero.records import replace

# States beside those of a health check: not there yet; ended, and about to start again; ended.
WAITING, ENDED = "waiting", "ended"
# The first pause before a machine is started again, in seconds, and the longest; one that ran
# for so long begins anew.
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 0.2, 60.0, 10.0
# How often what others do is looked at, in seconds: what the machine's own process found, until
# it is well; whether there is a machine by now that is to end.
_GLANCE = 0.05
# Ends of machines of which the fault that was raised tells more.
_NEVER_RAN = ("not-built", "not-started", "died")
# How long one that asks may take to notice that nobody wants to know any more, in seconds.
_LEAVE = 1.0
# Of the console, what is told of a machine that failed.
_LINES, _TAIL = 8, 4096


class Replica:
    """A machine of a service; `claim` makes its directory where there is none.

    `changed` is called, from any thread, when its state has changed.
    """

    def __init__(
        self,
        label: Label,
        name: str,
        service: Service,
        claim: Callable[[], Claim],
        changed: Callable[[Replica], None],
    ) -> None:
        self.label = label
        self.name = name
        # As it is now: what changes no machine may change.
        self.service = service
        self.directory = MachineDirectory(directory.root() / name)
        self._claim = claim
        self._changed = changed
        self.state = STARTING
        self._launching = False
        # Since when, in seconds since 1970.
        self.since = time.time()
        self.reason = ""
        # Why it ended, or did not come up, where that was not as it should be.
        self.failure = ""
        self.restarts = 0
        self._streak = 0
        # By ports of the guest.
        self.targets: dict[int, Target] = {}
        self.health: HealthRecord | None = None
        self._ending = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # Start the machine whatever its end was, and whatever the policy says of it.
        self.insist = False

    # ---- from other threads ---------------------------------------------------

    def start(self) -> None:
        """Begin: start the machine, or go on with one that runs."""
        self._thread.start()

    def leave(self) -> None:
        """Watch the machine no longer; it stays as it is."""
        self._tell_end()
        self._await_thread(_LEAVE)

    def end(self, *, remove: bool) -> None:
        """End the machine, in order where its guest runs, and perhaps remove it."""
        self._tell_end()
        self._end_launch()
        # Before the thread has ended: it may wait for an answer. And behind it, which may have
        # been about to start the machine.
        for last in (False, True):
            if self._is_mine():
                end_machine(self.directory, self.service.stop, remove=remove and last)
            while not self._await_thread(_GLANCE):
                self._end_launch()

    def _end_launch(self) -> None:
        """End a machine whose guest the thread waits for."""
        with contextlib.suppress(RingzeroError):
            if self._launching and self._is_mine():
                self.directory.end_process()

    def _tell_end(self) -> None:
        if not self._ending.is_set():
            self._ending.set()
            os.eventfd_write(self._wake, 1)

    def _await_thread(self, bound: float) -> bool:
        """Wait for the thread's end, and tell whether it has come."""
        if self._thread.ident:
            self._thread.join(bound)
        if self._thread.is_alive():
            return False
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
        return True

    def _is_mine(self) -> bool:
        """Whether the machine of that name is this one, and not another of the user's."""
        return label_of(self.directory) == self.label

    def facts(self) -> dict[str, Any]:
        """Return what is known of it, as plain data."""
        last = self.health.log[-1]["output"] if self.health and self.health.log else ""
        return {
            "machine": self.name,
            "service": self.label.service,
            "version": self.label.version,
            "state": self.state,
            "since": self.since,
            "restarts": self.restarts,
            "reason": self.reason,
            "answer": last,
            "ports": {str(port): target[1] for port, target in self.targets.items()},
        }

    # ---- the thread -----------------------------------------------------------

    def _set(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason, self.since = state, reason, time.time()
            self._changed(self)

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                began = time.monotonic()
                failure = self._live()
                if self._ending.is_set():
                    return
                if failure is None or not self._again(time.monotonic() - began, failure):
                    return
        except Exception as fault:
            told = fault.message if isinstance(fault, RingzeroError) else repr(fault)
            self.failure = told
            self._set(ENDED, told)

    def _again(self, ran: float, reason: str) -> bool:
        """Wait for as long as the policy has it; False where it is over."""
        self.targets = {}
        if ran > _STEADY:
            self._streak = 0
        most = self.service.restart.most
        if most is not None and self._streak >= most:
            self._set(ENDED, f"{reason}; it was started again {self._streak} times")
            return False
        pause = min(_FIRST_PAUSE * 2**self._streak, _LONGEST_PAUSE)
        self._set(WAITING, f"{reason}; it is started again in {pause:g} s")
        self._streak += 1
        self.restarts += 1
        if self._ending.wait(pause):
            return False
        self.insist = True
        return True

    def _live(self) -> str | None:
        """Have the machine run until it ends; return why, or None where it stays ended."""
        try:
            if not self.directory.alive and not self._start():
                return None
            # Whoever ended it before there was a machine has not seen one.
            if self._ending.is_set():
                return None
            identity = self._identity()
            self.targets = self._find_ports()
        except RingzeroError as fault:
            if self._ending.is_set():
                return None
            return self._judge_start(fault)
        failure = self._watch(identity)
        if self._ending.is_set():
            return None
        if failure is not None:
            # Not well, and it does not get well by itself.
            end_machine(self.directory, self.service.stop, remove=False)
            return self._judge(None, failure)
        self.directory.wait_end(5.0)
        ended = self.directory.exit()
        return self._judge(ended, told_end(ended))

    def _judge_start(self, fault: RingzeroError) -> str | None:
        """As `_judge`, for a machine that did not come up, or ended as soon as it had."""
        ended = None
        if self._is_mine():
            if self.directory.wait_end(1.0):
                ended = self.directory.exit()
            else:
                end_machine(self.directory, self.service.stop, remove=False)
        if ended is not None and ended.reason not in _NEVER_RAN:
            return self._judge(ended, told_end(ended))
        said = self.last_lines() if isinstance(fault, (GuestError, ControlError)) else ""
        return self._judge(None, "\n".join(filter(None, (fault.message, said))))

    def _judge(self, ended: ExitRecord | None, reason: str) -> str | None:
        """Return the reason to start it again, or None where the policy says no."""
        when = self.service.restart.when
        good = ended is not None and ended.exit_code == 0
        if when == ALWAYS or not good:
            self.failure = reason
        if when == ALWAYS or (when != NEVER and not good):
            return reason
        self.targets = {}
        self._set(ENDED, reason)
        return None

    def _start(self) -> bool:
        """Start the machine; False where it has ended before, and is to stay so."""
        if self.directory.exists:
            if not self._is_mine():
                raise taken(self.directory)
            ended = self.directory.exit()
            if not self.insist and ended is not None and ended.reason != "died":
                reason = told_end(ended)
                if self._judge(ended, reason) is None:
                    return False
        self._launching = True
        try:
            if self.directory.exists:
                RemoteMachine(self.directory).start()
            else:
                launch(self._claim(), progress=QUIET)
        finally:
            self._launching = False
        self.insist = False
        return True

    def _identity(self) -> ProcessIdentity:
        process = self.directory.process()
        if process is None:
            raise ControlError(f"machine {self.name!r} ended as soon as it had started")
        return process.identity

    def _find_ports(self) -> dict[int, Target]:
        if not self.service.ports:
            return {}
        found = RemoteMachine(self.directory).ports()
        return {
            each["guest_port"]: (each["address"], each["port"])
            for each in found
            if each["protocol"] == "tcp" and each["port"]
        }

    # ---- whether it is well ---------------------------------------------------

    def _watch(self, identity: ProcessIdentity) -> str | None:
        """Ask again and again until the machine ends; return why it is not well, if that is so."""
        descriptor = identity.open()
        if descriptor is None:
            return None
        try:
            return self._ask_on(descriptor, identity.pid)
        finally:
            os.close(descriptor)

    def _ask_on(self, descriptor: int, pid: int) -> str | None:
        poller = select.poll()
        for number in (descriptor, self._wake):
            poller.register(number, select.POLLIN)
        began = time.monotonic()
        self.health = HealthRecord(pid, STARTING)
        self._set(STARTING)
        while True:
            check = self._check()
            early = self.health.status == STARTING
            early = early and time.monotonic() - began < check.start_period
            record = self._probe(check, early=early)
            if self._ending.is_set():
                return None
            self.health = record
            if record.status == UNHEALTHY:
                why = f"not well: {record.log[-1]['output'].strip()}" if record.log else "not well"
                self._set(UNHEALTHY, why)
                if self.service.restart.when != NEVER:
                    return "\n".join(filter(None, (why, self.last_lines())))
            elif record.status == HEALTHY:
                self._set(HEALTHY)
            early = early and record.status == STARTING
            pause = check.start_interval if early else check.interval
            if check.kind == COMMAND:
                # It is the machine's own process that asks.
                pause = _GLANCE if record.status == STARTING else min(pause, 1.0)
            bound = None if check.kind == "none" else max(pause, 0.01) * 1000
            woken = {number for number, _ in poller.poll(bound)}
            if self._ending.is_set() or descriptor in woken:
                return None

    def _check(self) -> Check:
        """Return how it is asked; by a command, where the machine's own process does so."""
        if self.service.check is None and self.directory.machine().health is not None:
            return replace(self.service.checked, kind=COMMAND)
        return self.service.checked

    def _probe(self, check: Check, *, early: bool) -> HealthRecord:
        assert self.health is not None
        if check.kind in (HTTP, TCP):
            return self.health.after(self._ask(check), check.retries, early=early)
        if check.kind == COMMAND:
            told = self.directory.summary().get("health")
            if told is None:
                return self.health
            return HealthRecord(self.health.pid, told["status"], told["streak"], tuple(told["log"]))
        return HealthRecord(self.health.pid, HEALTHY)

    def _ask(self, check: Check) -> Probed:
        target = self.targets.get(check.port)
        if target is None:
            now = time.time()
            return Probed(start=now, end=now, exit_code=1, output=f"no port {check.port} is there")
        return ask(check, target[1])

    def last_lines(self) -> str:
        """Return what the machine said last, for people."""
        text = self.directory.tail(CONSOLE_LOG, _TAIL)
        lines = [line.strip() for line in text.splitlines()]
        return "\n".join([line for line in lines if line][-_LINES:])


def told_end(ended: ExitRecord | None) -> str:
    """Return how a machine ended, for people."""
    if ended is None:
        return "it is gone"
    return ended.detail or ended.reason


def end_machine(where: MachineDirectory, timeout: float, *, remove: bool) -> None:
    """End a machine in order, or at once where that takes too long; and perhaps remove it."""
    with contextlib.suppress(RingzeroError):
        if where.alive:
            RemoteMachine(where).stop(timeout)
    with contextlib.suppress(RingzeroError):
        if where.alive:
            where.end_process()
    if remove:
        with contextlib.suppress(RingzeroError):
            where.remove()
