"""Processes of this host: who one is beyond its number, why it may have died, how to signal it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ringzero.records import record

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# prctl(2): the name that ps(1) and top(1) show, at most 15 bytes.
_PR_SET_NAME = 15
# nice(2): the lowest priority.
_LOWEST = 19
# The kernel lets users change their sessions' share ten times a second, all of them together.
_SHARE_TRIES, _SHARE_PAUSE = 5, 0.1
# proc(5), /proc/PID/stat: field 3 is the first behind the name in parentheses; 22 is the
# time of the start since the host's boot, in clock ticks.
_STATE_FIELD, _START_FIELD = 3, 22


@record
class ProcessIdentity:
    """A process of one boot of this host. No other ever has the same three values."""

    pid: int
    started: int
    boot: str

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return the calling process's."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Return that of the process which has the number now."""
        return cls(pid, _start_time(pid) or 0, boot_id())

    def signal(self, number: int) -> bool:
        """Send a signal to this very process; False where it is gone.

        Raises PermissionError.
        """
        with contextlib.ExitStack() as stack:
            descriptor = self.open()
            if descriptor is None:
                return False
            stack.callback(os.close, descriptor)
            try:
                signal.pidfd_send_signal(descriptor, number)
            except ProcessLookupError:
                return False
            return True

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the process; whether it has ended.

        It has when its last thread has: until then its files are open, its locks held.
        """
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(max(0.0, timeout) * 1000))
        finally:
            os.close(descriptor)

    def exists(self) -> bool:
        """Whether any thread of the process runs."""
        return not self.wait(0)

    def _is_current(self) -> bool:
        """Whether the number still means this process, which may have ended."""
        boot, started = boot_id(), _start_time(self.pid)
        # Without /proc, here or where it was written down, the number alone has to do.
        return (not self.boot or not boot or boot == self.boot) and (
            not self.started or started is None or started == self.started
        )

    def open(self) -> int | None:
        """Return a pidfd, which cannot come to mean another process; None if this one is gone.

        It is the caller's to close, and can be read from when the process has ended.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except (OSError, OverflowError, ValueError):
            return None
        # Looked at after the descriptor is held: the number cannot be given away between the two.
        if self._is_current():
            return descriptor
        os.close(descriptor)
        return None


def boot_id() -> str:
    """Return what the kernel calls its present boot; "" on a host without /proc."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks after the boot; None where none runs."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
        # The name in parentheses may hold anything, parentheses and spaces too.
        fields = text.rpartition(")")[2].split()
        return int(fields[_START_FIELD - _STATE_FIELD])
    except (OSError, ValueError, IndexError):
        return None


@record
class Usage:
    """What a process has used: CPU time in seconds, memory that is there in bytes."""

    seconds: float
    resident: int


def usage(pid: int) -> Usage | None:
    """Return what a process has used; None where it is gone or cannot be seen (proc(5))."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        user, system, pages = (int(fields[n - _STATE_FIELD]) for n in (14, 15, 24))
    except (OSError, ValueError, IndexError):
        return None
    return Usage((user + system) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def own_cgroup() -> str:
    """Return the calling process's control group (version 2) below its root; "" without one."""
    return cgroup_of("self")


def cgroup_of(pid: int | str) -> str:
    """Return a process's control group, as `own_cgroup` does."""
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::/")), "")


def oom_kills(cgroup: str) -> int | None:
    """Return how many processes the kernel has killed in `cgroup` for want of memory."""
    try:
        text = (_CGROUPS / cgroup.lstrip("/") / "memory.events").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdecimal():
            return int(count)
    return None


def usable_cpus() -> int:
    """Return how many CPUs the calling process may keep busy: those it may run on, in its quota."""
    count = len(os.sched_getaffinity(0))
    try:
        limit = (_CGROUPS / own_cgroup().lstrip("/") / "cpu.max").read_text().split()
        quota, period = int(limit[0]), int(limit[1])
    except (OSError, ValueError, IndexError):
        return count
    return max(1, min(count, -(-quota // period))) if period > 0 else count


def give_way() -> None:
    """Have whoever else wants the CPU get it, also those of other sessions.

    Linux shares the CPU among sessions first (sched(7), "The autogroup feature"), where nice(2)
    counts for nothing: a session of this process's own takes the lowest share, too.
    """
    os.nice(_LOWEST)
    if os.getsid(0) != os.getpid():
        return
    for _ in range(_SHARE_TRIES):
        try:
            (_PROC / "self/autogroup").write_text(f"{_LOWEST}\n")
        except BlockingIOError:
            time.sleep(_SHARE_PAUSE)
        except OSError:
            # A kernel without such groups.
            return
        else:
            return


def detach(program: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a program of ours that forks at once, and whose child is nobody's; raises OSError.

    What it says goes behind what `log` has. `environment` is added to this process's.
    """
    import subprocess

    variables = dict(os.environ) | dict(environment or {})
    roots = [str(Path(__file__).parents[2]), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    with log.open("ab") as file:
        subprocess.run(
            program,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=variables,
            check=False,
        )


def stand_alone(title: str) -> None:
    """Be nobody's child from here on, in a program that `detach` runs or that is started as by it.

    Returns in the child; the parent's end is what the starter waits for. What ends a terminal's
    programs does not end it, and a crash says where it was.
    """
    import faulthandler

    if os.fork():
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    set_title(title)
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def set_title(text: str) -> None:
    """Give the calling process the name that ps(1) shows; it is cut at 15 bytes."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, text.encode()[:15], 0, 0, 0)
