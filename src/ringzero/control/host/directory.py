"""The directories of machines: made, claimed, looked at and removed by any process.

`RINGZERO_MACHINES_DIR` holds one directory (mode 0700) for each machine, called
by its name. docs/machines.md explains every file in it. The truth about a
machine's life is the lock on its file `lock`, held by the process that runs
it: a process that dies, however it dies, holds no lock. No file is believed
where the lock says otherwise.

What the machine is, and who runs it, is written by the host's side alone; what
its process says while it runs is in `run`, the only part that a jailed process
may write to. Directories that an earlier version made have it all in one place
until their next start.

A directory appears whole and locked, by a rename; it goes away by a rename,
too, under the same lock. There is no moment at which two commands can both
have a name, and none at which a kill -9 leaves something that is in the way.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.api.values import ExitRecord, MachineSummary, Status
from ringzero.config.device import NAME
from ringzero.control.host.death import cause_of_death
from ringzero.control.host.notes import NEXT, changing, settle
from ringzero.control.host.records import (
    HealthRecord,
    MachineRecord,
    ProcessRecord,
    StatusRecord,
    described_anew,
    load,
    read_json,
    save,
)
from ringzero.errors import (
    ConflictError,
    ControlError,
    HostError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.host import ofdlock
from ringzero.host.files import host_error, open_regular, remove_tree, sync_file
from ringzero.host.unixsocket import LONGEST_PATH
from ringzero.records import record, replace
from ringzero.settings import MACHINES_DIR

if TYPE_CHECKING:
    import socket

LOCK, MACHINE, PROCESS = "lock", "machine.json", "process.json"
STATUS, HEALTH, EXIT = "status.json", "health.json", "exit.json"
SOCKET, CONSOLE_LOG, VMM_LOG = "socket", "console.log", "vmm.log"
# The directory of what the machine's process writes while it runs, and what that is.
RUN = "run"
OF_THE_PROCESS = (STATUS, HEALTH, EXIT, SOCKET, CONSOLE_LOG, f"{CONSOLE_LOG}.1")
# What a directory is called before it has its name, and after it lost it. Machines' names
# do not begin with a dot.
NEW, OLD = ".new-", ".old-"
# How much of vmm.log is read for the reason of a death, in bytes.
_LOG_TAIL = 8192
# How long a killed process may take to be gone, in seconds: the kernel frees its memory first.
_DEATH = 20.0
# How long a process may go on that has let its lock go, in seconds.
_LEAVING = 2.0
# Between two looks at a lock that no process known to us holds, in seconds, at first and at
# last: a command that is about to run the machine, or to remove it, has it for a moment.
_PAUSE, _LONGEST_PAUSE = 0.001, 0.1


@record
class Claim:
    """A machine's directory, and the open lock on it, which its process inherits.

    `again` says that the machine has been one before, and is not to be removed when it
    does not come up.
    """

    directory: MachineDirectory
    lock: int
    again: bool = False

    def release(self) -> None:
        """Close this process's hold; the lock is free when no process has it open."""
        os.close(self.lock)

    def end_process(self) -> None:
        """End the process that the claim was handed on to, if it is there."""
        process = self.directory.process()
        if process is not None and process.pid != os.getpid():
            process.identity.signal(9)
            process.identity.wait(_DEATH)

    def discard(self) -> None:
        """Remove a machine that never came to be."""
        if not self.again:
            self.directory.discard()
        self.release()


class MachineDirectory:
    """One machine's directory, as any process may see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def file(self, name: str) -> Path:
        """Return the path of one of the files called by the names of this module."""
        if name in OF_THE_PROCESS and os.path.isdir(f"{self.path}/{RUN}"):  # noqa: PTH112 - speed
            return self.path / RUN / name
        return self.path / name

    # ---- looking ----------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether a process runs (or is about to run) this machine."""
        try:
            return ofdlock.is_held(self.path / LOCK)
        except OSError:
            return False

    @property
    def exists(self) -> bool:
        """Whether the directory is still there."""
        return (self.path / LOCK).exists()

    def machine(self) -> MachineRecord:
        """Return what was asked for. Raises ControlError for a directory that does not say."""
        record = load(MachineRecord, self.path / MACHINE)
        if record is None:
            if not self.exists:
                raise not_found(self.name, self.path.parent)
            raise ControlError(
                f"{self.path / MACHINE} is not readable as a machine's description",
                hint=f"`ringzero rm -f {self.name}` removes the machine",
            )
        if record.name != self.name and NAME.fullmatch(self.name):
            # Whoever renamed it was killed in between.
            record = replace(record, name=self.name, config=record.config | {"name": self.name})
        return record

    def process(self) -> ProcessRecord | None:
        """Return who runs the machine, or ran it last."""
        return load(ProcessRecord, self.path / PROCESS)

    def exit(self) -> ExitRecord | None:
        """Return how the machine ended; for one whose process died, what can be known of it.

        None where it runs, or was never started.
        """
        status = self.status()
        if status.alive or status is Status.DEFINED:
            return None
        return load(ExitRecord, self.file(EXIT)) or self._death()

    def status(self) -> Status:
        """Return what the machine is doing now."""
        alive = self.alive
        record = load(StatusRecord, self.file(STATUS))
        if alive:
            return Status.STARTING if record is None else Status(record.status)
        if record is not None and record.status == Status.DEFINED.value:
            return Status.DEFINED
        return Status.DEAD if load(ExitRecord, self.file(EXIT)) is None else Status.ENDED

    def summary(self) -> MachineSummary:
        """Return everything that the files say, as plain data; it asks no process."""
        status = self.status()
        machine = load(MachineRecord, self.path / MACHINE)
        process = self.process()
        now = load(StatusRecord, self.file(STATUS))
        ended = None if status.alive else self.exit()
        facts: MachineSummary = {
            "name": self.name,
            "id": machine.id if machine else "",
            "status": status.value,
            "pid": process.pid if process and status.alive else None,
            "created": machine.created if machine else None,
            "since": ended.time if ended else now.since if now else None,
            "engine": now.engine if now else "",
            "image": machine.image if machine else "",
            "command": list(machine.command) if machine else [],
            "parent": machine.parent if machine else "",
            "foreground": bool(machine and machine.foreground),
            "config": machine.config if machine else {},
            "directory": str(self.path),
        }
        if ended is not None:
            facts["exit"] = ended.to_dict()
        elif machine and machine.health and status is not Status.DEFINED:
            told = load(HealthRecord, self.file(HEALTH))
            # What another process found is about another life.
            if told is None or told.pid != facts["pid"]:
                told = HealthRecord(0, "starting")
            facts["health"] = told.summary()
        return facts

    def _death(self) -> ExitRecord:
        """Return what can be known of a process that went away without a word."""
        process = self.process()
        try:
            when = self.file(STATUS).stat().st_mtime
        except OSError:
            when = 0.0
        machine = load(MachineRecord, self.path / MACHINE)
        cause = cause_of_death(process, self.tail(VMM_LOG, _LOG_TAIL), self.path / VMM_LOG)
        if machine is not None and machine.revert:
            cause += (
                f"; it was being taken back to {Path(machine.revert).name!r}, and its disks may be "
                f"in between: `ringzero start {self.name}` completes that"
            )
        return ExitRecord("died", cause, 137, when)

    def tail(self, name: str, size: int) -> str:
        """Return the end of one of the directory's files as text; "" where there is none."""
        try:
            with os.fdopen(open_regular(self.file(name)), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read(size).decode("utf-8", "replace")
        except OSError:
            return ""

    # ---- the socket -------------------------------------------------------

    def connect(self) -> socket.socket:
        """Return a connection to the machine's process. Raises ControlError, ConflictError."""
        import socket

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with self.socket_address() as address:
                connection.connect(address)
        except OSError as fault:
            connection.close()
            if not self.exists:
                raise not_found(self.name, self.path.parent) from None
            self.require_alive()
            if self.status() is Status.STARTING:
                raise ConflictError(
                    f"machine {self.name!r} is still starting", hint="try again in a moment"
                ) from None
            raise ControlError(
                f"machine {self.name!r} does not answer: {fault.strerror}",
                hint=f"`ringzero kill {self.name}` ends it",
            ) from fault
        return connection

    def require_alive(self) -> None:
        """Raise ConflictError where no process runs the machine, saying how it ended."""
        ended = self.exit()
        if ended is None and not self.alive:
            raise ConflictError(
                f"machine {self.name!r} was never started", hint=f"`ringzero start {self.name}`"
            )
        if ended is not None:
            detail = f": {ended.detail.splitlines()[0]}" if ended.detail else ""
            raise ConflictError(
                f"machine {self.name!r} does not run: {ended.reason}{detail}",
                hint=f"`ringzero logs {self.name}` shows what it said last",
            )

    @contextlib.contextmanager
    def socket_address(self) -> Iterator[str]:
        """Yield an address of the socket that is short enough, however long the path (unix(7))."""
        where = self.file(SOCKET)
        descriptor = os.open(where.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            short = f"/proc/self/fd/{descriptor}"
            if os.path.exists(short):  # noqa: PTH110 - no Path is needed for it
                yield f"{short}/{SOCKET}"
                return
            whole = os.fspath(where)
            if len(os.fsencode(whole)) > LONGEST_PATH:
                raise HostError(
                    f"the path {whole} is too long for a socket on a host without /proc",
                    hint="set RINGZERO_MACHINES_DIR to a shorter one, or mount /proc",
                )
            yield whole
        finally:
            os.close(descriptor)

    # ---- the end ----------------------------------------------------------

    def wait_end(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until no process runs the machine; whether that is so."""
        deadline, pause = time.monotonic() + timeout, _PAUSE
        while self.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            process = self.process()
            if process is None or process.identity.wait(left):
                pause = self._pause(pause, left)
        record = load(MachineRecord, self.path / MACHINE)
        if record is not None and record.remove:
            self._await_removal(min(deadline, time.monotonic() + _LEAVING))
        return True

    def _await_removal(self, deadline: float) -> None:
        """Wait for who removes what a jailed machine leaves behind."""
        while self.exists and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def end_process(self) -> None:
        """End the machine's process by SIGKILL and wait until it is gone. Raises ControlError."""
        deadline, pause = time.monotonic() + _DEATH, _PAUSE
        while self.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ControlError(
                    f"the process of machine {self.name!r} does not end",
                    hint="it may hang in the host's kernel; look at its directory",
                    directory=self.path,
                )
            process = self.process()
            # A process that is about to run it says who it is as the first thing it does.
            if process is not None and process.identity.signal(9):
                process.identity.wait(left)
            else:
                pause = self._pause(pause, left)

    def _pause(self, pause: float, left: float) -> float:
        """Wait for a lock that nobody known to us holds; return how long to wait next time."""
        if self.alive:
            time.sleep(min(pause, left))
        return min(2 * pause, _LONGEST_PAUSE)

    def write_defined(self) -> None:
        """Note that the machine was described and not started; its claim is held."""
        save(StatusRecord(Status.DEFINED.value, time.time()), self.file(STATUS))

    def write_end(self, record: ExitRecord) -> None:
        """Note how the machine ended; called by its process."""
        with contextlib.suppress(HostError):
            save(record, self.file(EXIT))

    def write_death(self, record: ExitRecord) -> None:
        """Note how a machine ended whose process could not do so itself."""
        if not self.alive and load(ExitRecord, self.file(EXIT)) is None:
            with contextlib.suppress(HostError):
                save(record, self.file(EXIT))

    def remove(self) -> None:
        """Remove a machine that does not run, or what stands where one should be.

        Raises ConflictError, NotFoundError.
        """
        if os.path.lexists(self.path) and self.oddity() and not self.alive:
            # Not one that we made; nobody can be running it.
            self.discard()
            return
        lock = self._take_lock()
        try:
            self._end_leaving()
            self.discard()
        finally:
            os.close(lock)

    def oddity(self) -> str:
        """Return why what stands here is no machine of ours, or ""."""
        try:
            if not stat.S_ISDIR(self.path.lstat().st_mode):
                return "it is no directory"
            for name in (LOCK, MACHINE, PROCESS, STATUS, EXIT, CONSOLE_LOG, VMM_LOG):
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISREG(self.file(name).lstat().st_mode):
                        return f"its {name} is no regular file"
        except OSError as fault:
            return fault.strerror or str(fault)
        return "" if self.exists else f"it has no file {LOCK}"

    def reclaim(self, record: MachineRecord) -> Claim:
        """Claim a machine that does not run, to start it again as `record` says.

        What it said stays. Raises ConflictError, NotFoundError, HostError.
        """
        lock = self._take_lock()
        try:
            given = read_json(self.path / NEXT)
            self._describe(record if given is None else described_anew(record, given))
            self._end_leaving()
            self._part()
            for name in (EXIT, STATUS, PROCESS):
                self.file(name).unlink(missing_ok=True)
        except BaseException as fault:
            os.close(lock)
            if isinstance(fault, OSError):
                raise host_error(fault, "write", self.path) from fault
            raise
        return Claim(self, lock, again=True)

    def _part(self) -> None:
        """Give what the process writes a directory of its own, where it has none yet."""
        if self.file(STATUS).parent != self.path:
            return
        run = self.path / f"{RUN}.new"
        run.mkdir(0o700, exist_ok=True)
        for name in OF_THE_PROCESS:
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).rename(run / name)
        run.rename(self.path / RUN)

    def _end_leaving(self) -> None:
        """End a process that has let the lock go and is still there; the caller has the lock.

        One that was taken over may do so to be forgotten. A command on a terminal goes on.
        """
        record, process = load(MachineRecord, self.path / MACHINE), self.process()
        if record is None or record.foreground or process is None or process.pid == os.getpid():
            return
        if not process.identity.wait(_LEAVING) and process.identity.signal(9):
            process.identity.wait(_DEATH)

    def amend(self, change: Callable[[MachineRecord], MachineRecord]) -> None:
        """Replace the description of a machine that runs by what `change` makes of it.

        Its process knows of it already. Raises what `change` does, ControlError, HostError.
        """
        with changing(self.path):
            save(change(self.machine()), self.path / MACHINE)
            sync_file(self.path / MACHINE)

    def redescribe(self, change: Callable[[MachineRecord], MachineRecord]) -> None:
        """Replace the description of a machine that does not run by what `change` makes of it.

        Raises what `change` does, ConflictError, NotFoundError, HostError.
        """
        lock = self._take_lock()
        try:
            self._describe(change(self.coming()))
        finally:
            os.close(lock)

    def coming(self) -> MachineRecord:
        """Return what the machine is from its next start on. Raises ControlError, ConfigError."""
        found, given = self.machine(), read_json(self.path / NEXT)
        return found if given is None else described_anew(found, given)

    def _describe(self, record: MachineRecord) -> None:
        """Write down what the machine is; what was to be from its next start on is in it."""
        old = load(MachineRecord, self.path / MACHINE)
        save(record, self.path / MACHINE)
        if (self.path / NEXT).exists():
            settle(self.path)
            (self.path / NEXT).unlink(missing_ok=True)
        if old is not None and old.config != record.config:
            self._release(old)

    def _release(self, described: MachineRecord) -> None:
        """Remove disks that were made for a machine, where no machine names them any more."""
        from ringzero.control.host import owndisks

        with contextlib.suppress(RingzeroError):
            owndisks.release(owndisks.in_tree(described.config), descriptions(self.path.parent))

    def rename(self, name: str) -> MachineDirectory:
        """Give a machine that does not run another name; return its directory.

        Raises InvalidValueError, ConflictError, NotFoundError, HostError.
        """
        new = MachineDirectory(self.path.with_name(check_name(name)))
        lock = self._take_lock()
        try:
            if os.path.lexists(new.path):
                raise taken(new)
            record = self.machine()
            # Refused where somebody took the name meanwhile: their directory has files in it.
            self.path.rename(new.path)
            again = replace(record, name=name, config=record.config | {"name": name})
            save(again, new.path / MACHINE)
        except OSError as fault:
            if new.exists and self.exists:
                raise taken(new) from None
            raise host_error(fault, "rename", self.path) from fault
        finally:
            os.close(lock)
        return new

    def _take_lock(self) -> int:
        try:
            lock = open_regular(self.path / LOCK, os.O_RDWR)
        except OSError as fault:
            if not os.path.lexists(self.path):
                raise not_found(self.name, self.path.parent) from None
            raise host_error(fault, "open", self.path / LOCK) from fault
        try:
            if not ofdlock.take(lock):
                raise ConflictError(
                    f"machine {self.name!r} is {self.status().value}",
                    hint=f"stop it first: `ringzero stop {self.name}`",
                )
            # Between the two somebody else may have removed it and used the name again.
            if not self._is_mine(lock):
                raise not_found(self.name, self.path.parent)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _is_mine(self, lock: int) -> bool:
        try:
            return os.path.samestat(os.fstat(lock), (self.path / LOCK).stat())
        except OSError:
            return False

    def discard(self) -> None:
        """Take the name away, then the files; the caller has the lock. Raises HostError."""
        described = load(MachineRecord, self.path / MACHINE)
        old = self.path.with_name(f"{OLD}{random_name()}")
        try:
            self.path.rename(old)
        except FileNotFoundError:
            return
        except OSError as fault:
            raise host_error(fault, "remove", self.path) from fault
        remove_tree(old)
        if described is not None:
            self._release(described)


# ---- all of them ----------------------------------------------------------


def root() -> Path:
    """Return the directory of all machines."""
    return MACHINES_DIR.get()


def descriptions(where: Path | None = None) -> list[Path]:
    """Return the files that say what the machines are."""
    return list((where or root()).glob(f"*/{MACHINE}"))


def check_name(name: str) -> str:
    """Return `name` if a machine may be called so; raises InvalidValueError."""
    if not NAME.fullmatch(name):
        raise InvalidValueError(
            f"a machine cannot be called {name!r}",
            hint="use letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    return name


def not_found(name: str, where: Path) -> NotFoundError:
    """Return the error for a name that no machine has."""
    known = [entry.name for entry in machines(where)]
    close = [other for other in known if other[:2] == name[:2]]
    hint = f"did you mean {close[0]!r}?" if close else "`ringzero ps -a` lists all machines"
    return NotFoundError(f"no machine called {name!r}", hint=hint)


def find(name: str, where: Path | None = None, *, odd: bool = False) -> MachineDirectory:
    """Return the directory of the machine called `name`; with `odd`, also what is no machine.

    Raises NotFoundError, ControlError.
    """
    where = where or root()
    found = MachineDirectory(where / check_name(name))
    if not os.path.lexists(found.path):
        raise not_found(name, where)
    reason = "" if odd else found.oddity()
    if reason:
        raise ControlError(
            f"{found.path} is no machine: {reason}", hint=f"`ringzero rm {name}` removes it"
        )
    return found


def machines(where: Path | None = None) -> list[MachineDirectory]:
    """Return the directories of all machines, by name."""
    try:
        entries = sorted((where or root()).iterdir())
    except OSError:
        return []
    found = [MachineDirectory(entry) for entry in entries if NAME.fullmatch(entry.name)]
    return [directory for directory in found if not directory.oddity()]


def users_of(place: Path, where: Path | None = None) -> list[str]:
    """Return the names of the machines that need an image's directory.

    Their description names a file below `place`, or a disk that stands on one there.
    """
    from ringzero.image.datadisks import begin_of_overlays

    records = ((m.name, load(MachineRecord, m.path / MACHINE)) for m in machines(where))
    begins = f"{place.absolute()}/", begin_of_overlays(place)
    return [name for name, record in records if record and _names_file(record.config, begins)]


def _names_file(value: object, begins: tuple[str, ...]) -> bool:
    """Whether a text in plain data begins so."""
    if isinstance(value, str):
        return value.startswith(begins)
    items = value.values() if isinstance(value, dict) else value
    return isinstance(items, Iterable) and any(_names_file(item, begins) for item in items)


def odd(where: Path | None = None) -> list[tuple[str, str]]:
    """Return the names of what is no machine among the machines, each with the reason."""
    try:
        entries = sorted((where or root()).iterdir())
    except OSError:
        return []
    found = [(e.name, MachineDirectory(e).oddity()) for e in entries if e.name[0] != "."]
    return [(name, reason) for name, reason in found if reason]


def taken(directory: MachineDirectory) -> ConflictError:
    """Return the error for a name that somebody has."""
    name, status = directory.name, directory.status()
    reason = directory.oddity()
    if reason:
        return ConflictError(
            f"the name {name!r} is taken by what is no machine: {reason}",
            hint=f"`ringzero rm {name}` removes it",
        )
    remedy = "rm -f" if status.alive else "rm"
    return ConflictError(
        f"the name {name!r} is taken by a machine that is {status.value}",
        hint=f"choose another name, or `ringzero {remedy} {name}`",
    )


def random_name() -> str:
    """Return 16 digits that nobody else has drawn."""
    return os.urandom(8).hex()
