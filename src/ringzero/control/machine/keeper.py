"""The keeper of a machine: what stands between a `Machine` and those who ask for it.

It keeps the machine's directory up to date, has its lines shared and logged,
ends it in order, and writes down how it ended.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringzero.api.values import ExitRecord, Status
from ringzero.config.tree import config_to_tree
from ringzero.control.host.directory import (
    EXIT,
    MACHINE,
    PROCESS,
    STATUS,
    Claim,
    MachineDirectory,
)
from ringzero.control.host.notes import UNCHANGED
from ringzero.control.host.records import (
    MachineRecord,
    ProcessRecord,
    StatusRecord,
    save,
)
from ringzero.control.machine.hub import Hub
from ringzero.control.machine.runfiles import NamedFiles, RunFiles
from ringzero.control.machine.server import Handlers, Server
from ringzero.errors import (
    ConflictError,
    GuestError,
    HostError,
    RingzeroError,
    TimeoutExpiredError,
)
from ringzero.host.files import sync_file
from ringzero.host.jail import confine
from ringzero.host.process import ProcessIdentity, oom_kills, own_cgroup
from ringzero.host.service import OnFault
from ringzero.records import replace
from ringzero.vm.boot import has_own_agent
from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.guest import linux
from ringzero.vm.guest.command import Command
from ringzero.vm.guest.contract import REBOOT_CODE, SHUTDOWN, KeptGuest
from ringzero.vm.guest.identity import Identity

# In so much of the serial line, in bytes, the cause of a bad end is looked for.
_LAST_WORDS = 16384
_EXIT_CODES = {
    ExitReason.REBOOT: REBOOT_CODE,
    ExitReason.PANIC: GuestError.exit_code,
    ExitReason.TRIPLE_FAULT: GuestError.exit_code,
}


class Keeper:
    """One living machine: its directory, its lines, its socket, its end.

    Made with the claim on the directory, and with who does the actions that it is asked for;
    `files` and `record` are what a process was handed that comes to no directory. `close` frees
    the machine and the socket; the claim is the caller's to release, as the last thing.
    """

    def __init__(
        self,
        machine: KeptGuest,
        claim: Claim,
        handlers: Handlers,
        files: RunFiles | None = None,
        record: MachineRecord | None = None,
    ) -> None:
        self.machine = machine
        self.handlers = handlers
        self.directory = claim.directory
        self.name = claim.directory.name
        self._lock_descriptor = claim.lock
        self.files = files or NamedFiles(self.directory)
        self.record = record or claim.directory.machine()
        self._log = self.files.log()
        self.console = Hub(machine.console.write, machine.console.resize, self._log.write)
        self.serial = Hub(machine.serial.write, None, self._log.write)
        self._status = Status.STARTING
        self._changing = threading.RLock()
        self._stopping: ExitRecord | None = None
        self._shell: Command | None = None
        self._hearers: list[Callable[[ExitRecord], None]] = []
        # Hears of an exception that ends a thread which serves the machine.
        self.on_fault: OnFault | None = self.fail
        self.ended = threading.Event()
        self.result: ExitRecord | None = None
        if files is None:
            # Who handed the files to this process has written down who it is.
            write_process(self.directory)
        self._write_status()
        self.server = Server(self.directory, self, handlers, self.files.listener)

    # ---- life -------------------------------------------------------------

    def start(self) -> None:
        """Let the guest run and answer on the socket."""
        self.machine.console.on_output = self.console.feed
        self.machine.serial.on_output = self.serial.feed
        self.server.start()
        self.machine.start()
        with self._changing:
            self._set(Status.RUNNING)

    def log(self, data: bytes) -> None:
        """Add bytes to what the machine said."""
        self._log.write(data)

    @property
    def status(self) -> Status:
        """What the machine is doing."""
        return self._status

    def pause(self) -> None:
        """Stop the guest until `resume`. Raises ConflictError."""
        with self._changing:
            if self._status is Status.PAUSED:
                raise ConflictError(f"machine {self.name!r} is paused already")
            self._require(Status.RUNNING)
            self.machine.pause()
            self._set(Status.PAUSED)

    def resume(self) -> None:
        """Let the guest go on. Raises ConflictError."""
        with self._changing:
            if self._status is Status.RUNNING:
                raise ConflictError(f"machine {self.name!r} is not paused")
            self._require(Status.PAUSED)
            self.machine.resume()
            self._set(Status.RUNNING)

    def revert(self, snapshot: Path) -> None:
        """Take the machine back to a snapshot; it goes on if it ran. Raises ConflictError."""
        with self._changing:
            if self._status is not Status.PAUSED:
                self._require(Status.RUNNING)
            go_back(self.machine, self.record, snapshot)
            # The shell that was on the console belongs to a future that is no more.
            self._shell = None

    def stop(self, timeout: float = SHUTDOWN) -> ExitRecord:
        """Have the guest switch itself off; end it after `timeout` seconds; wait for the end."""
        with self._changing:
            if self._status is Status.PAUSED:
                self.machine.resume()
            self._set(Status.STOPPING)
        asked = self.ask_power_off()
        if asked and self.ended.wait(timeout):
            return self._await_result()
        detail = "by `stop`" if not asked else f"by `stop`: it did not end in {timeout:g} seconds"
        return self.end(ExitRecord("stopped", detail, 0, time.time()))

    def ask_power_off(self) -> bool:
        """Ask the guest to switch itself off; False where nobody in it would listen."""
        config = self.machine.config
        if config.agent and self.machine.agent.ready:
            self.machine.agent.poweroff()
            return True
        # A system of the user's own hears the power button. Without a disk there is nothing to
        # write, and systems that heed no button need not be waited for.
        if has_own_agent(config.command_line) or all(disk.read_only for disk in config.disks):
            return False
        return self.machine.press_power_button()

    def end(self, why: ExitRecord) -> ExitRecord:
        """End the guest at once; `why` becomes its exit record, if nothing was before."""
        self.expect(why)
        self.machine.stop()
        return self._await_result()

    def fail(self, fault: BaseException) -> None:
        """End the guest because of a fault of ours."""
        text = f"internal error: {type(fault).__name__}: {fault}"
        self.expect(ExitRecord("fault", text, 70, time.time()))
        self.machine.stop()

    def expect(self, why: ExitRecord) -> None:
        """Say what the exit record will be once the machine is stopped from outside."""
        with self._changing:
            if self._stopping is None:
                self._stopping = why
            self._set(Status.STOPPING)

    def wait(self) -> ExitRecord:
        """Wait for the end of the guest, and write it down; called by one thread."""
        deadline = None
        if self.record.timeout is not None:
            deadline = time.monotonic() + self.record.timeout
        try:
            found = self._wait_exit(deadline)
            if found is None:
                text = "the time allowed by --timeout is over"
                self.expect(ExitRecord("timeout", text, TimeoutExpiredError.exit_code, time.time()))
                self.machine.stop()
                found = self.machine.wait(SHUTDOWN) or Exit(ExitReason.STOPPED)
            result = self._explain(found)
        except RingzeroError as fault:
            result = ExitRecord("fault", fault.message, fault.exit_code, time.time())
        except Exception as fault:
            result = ExitRecord("fault", f"{type(fault).__name__}: {fault}", 70, time.time())
        return self.finish(result)

    def finish(self, result: ExitRecord) -> ExitRecord:
        """Write the end down; the first one counts."""
        with self._changing:
            if self.result is None:
                self.result = result
                with contextlib.suppress(HostError):
                    self.files.save(result, EXIT)
                self.ended.set()
                for hear in self._hearers:
                    hear(result)
            return self.result

    def conclude(self, otherwise: ExitRecord) -> ExitRecord:
        """Write down how the guest ended; `otherwise` if its user has ended it just so."""
        found = self.machine.wait(0)
        if found is None or found.reason is ExitReason.STOPPED:
            return self.finish(self._stopping or otherwise)
        return self.finish(replace(self._explain(found), exit_code=otherwise.exit_code))

    def on_end(self, hear: Callable[[ExitRecord], None]) -> None:
        """Have `hear` called with the exit record at the end, or now if that was before."""
        with self._changing:
            if self.result is not None:
                hear(self.result)
            else:
                self._hearers.append(hear)

    def close(self) -> None:
        """Free the machine and the socket."""
        record = self.result or self.finish(
            self._stopping or ExitRecord("stopped", "", 0, time.time())
        )
        fault = record.error() or GuestError(
            f"machine {self.name!r} ended ({record.reason}) before that did"
        )
        self.server.close(fault)
        self.machine.stop()
        self._log.close()

    def leave(self) -> None:
        """In a forked process: let go of what is the original's alone, its lock before all."""
        os.close(self._lock_descriptor)
        self.server.leave()
        self.machine.leave()
        self._log.leave()
        self.files.leave()

    @functools.cached_property
    def blocks(self) -> Any:
        """Block jobs on the disks, and exports of them (`ringzero.vm.blocks.Blocks`)."""
        found = self.machine.blocks
        found.keep(self._changing, self.note_disks)
        return found

    def note_disks(self) -> None:
        """Write down durably which images the disks are now, from the next start on, too.

        The process is not confined, and comes to its own description.
        """
        from ringzero.control.host.description import move_disks

        with self._changing:
            move_disks(self.directory, self.machine.config.disks)

    # ---- the console ------------------------------------------------------

    def ensure_shell(self, rows: int, columns: int) -> None:
        """Have a login shell on the console, where the guest's agent can give one."""
        with self._changing:
            if not self.machine.config.agent or self.record.foreground:
                return
            if self._shell is None or self._shell.status is not None:
                self._shell = self.machine.agent.terminal(rows=rows, columns=columns)

    # ---- about it ---------------------------------------------------------

    def inspect(self) -> dict[str, Any]:
        """Return what the machine's process alone knows of it, as plain data."""
        config = self.machine.config
        facts: dict[str, Any] = {"config": config_to_tree(config)}
        facts["agent"] = (
            {"ready": self.machine.agent.ready, "kernel": self.machine.agent.release}
            if config.agent
            else None
        )
        facts["watchers"] = {"console": self.console.watchers, "serial": self.serial.watchers}
        facts["stats"] = dict(self.machine.stats())
        facts["jail"] = {
            part.name: {"holds": part.holds, "detail": part.detail} for part in confine.parts()
        }
        return facts

    # ---- inside -----------------------------------------------------------

    def _await_result(self) -> ExitRecord:
        # Whoever sits in `wait` writes it down; a moment after the machine's end.
        self.ended.wait(SHUTDOWN)
        return self.finish(self._stopping or ExitRecord("stopped", "", 0, time.time()))

    def _wait_exit(self, deadline: float | None) -> Exit | None:
        while True:
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            found = self.machine.wait(max(0.0, left))
            if found is not None or (deadline is not None and time.monotonic() >= deadline):
                return found

    def _explain(self, found: Exit) -> ExitRecord:
        now = time.time()
        if found.reason is ExitReason.STOPPED:
            return self._stopping or ExitRecord("stopped", "", 0, now)
        if found.reason is ExitReason.POWEROFF and self._stopping is not None:
            # It wrote its disks first.
            return self._stopping
        error = found.error()
        detail = error.message if error is not None else ""
        if error is not None:
            said = linux.last_words(self.serial.tail(_LAST_WORDS).decode("utf-8", "replace"))
            detail = "\n".join([detail.split("\n")[0], said]) if said else detail
        return ExitRecord(found.reason.value, detail, _EXIT_CODES.get(found.reason, 0), now)

    def _require(self, status: Status) -> None:
        if self._status is not status:
            raise ConflictError(
                f"machine {self.name!r} is {self._status.value}, not {status.value}"
            )

    def _set(self, status: Status) -> None:
        """Change the status; from STOPPING there is no way back. The lock is held."""
        if self._status is not Status.STOPPING and self._status is not status:
            self._status = status
            self._write_status()

    def _write_status(self) -> None:
        engine = str(self.machine.stats().get("engine", ""))
        # A full disk is no reason not to pause or to stop.
        with contextlib.suppress(HostError):
            record = StatusRecord(self._status.value, time.time(), engine)
            self.files.save(record, STATUS)


def take_back(machine: KeptGuest, directory: MachineDirectory, snapshot: Path) -> None:
    """Take a machine back to a snapshot, with a note of it as long as its disks are in between.

    Raises what `Machine.revert` does, and HostError.
    """
    record = directory.machine()
    _note(directory, replace(record, revert=str(snapshot)))
    try:
        go_back(machine, record, snapshot)
    except RingzeroError as fault:
        if fault.context.get(UNCHANGED):
            _note(directory, replace(record, revert=""))
        raise
    _note(directory, replace(record, revert=""))


def go_back(machine: KeptGuest, record: MachineRecord, snapshot: Path) -> None:
    """Take a machine back to a snapshot.

    Raises what `Machine.revert` does; the fault's context says where nothing was changed.
    """
    from ringzero.vm.saved.snapshot import Snapshot

    # A copy had a name of its own; another machine's guest keeps the one that it had.
    identity = Identity(record.name) if record.snapshot or record.parent else None
    try:
        machine.revert(Snapshot.open(snapshot), identity)
    except RingzeroError as fault:
        if _goes_on(machine):
            fault.context[UNCHANGED] = True
        raise


def _note(directory: MachineDirectory, record: MachineRecord) -> None:
    path = directory.path / MACHINE
    save(record, path)
    sync_file(path)


def _goes_on(machine: KeptGuest) -> bool:
    try:
        return machine.wait(0) is None
    except RingzeroError:
        return False


def write_process(directory: MachineDirectory) -> None:
    """Write down that the calling process runs the machine. Raises HostError."""
    own, cgroup = ProcessIdentity.own(), own_cgroup()
    record = ProcessRecord(own.pid, own.started, own.boot, cgroup, oom_kills(cgroup))
    save(record, directory.path / PROCESS)
