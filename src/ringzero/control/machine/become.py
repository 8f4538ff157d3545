"""How a process that has a machine already becomes that of a machine's directory.

Copies of a machine are such processes, and those of a pool: forks, each of which has grown a
machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ringzero.api.values import ExitRecord
from ringzero.control.host import reaper
from ringzero.control.host.directory import EXIT, VMM_LOG, Claim, MachineDirectory
from ringzero.control.host.handing import Handed
from ringzero.control.host.records import MachineRecord
from ringzero.control.host.report import Reporter
from ringzero.control.machine import jail
from ringzero.control.machine.keeper import Keeper
from ringzero.control.machine.life import internal, keep, take_over
from ringzero.control.machine.runfiles import LentFiles, NamedFiles
from ringzero.control.machine.server import Handlers
from ringzero.errors import ControlError, HostError, RingzeroError
from ringzero.host.process import set_title
from ringzero.records import record
from ringzero.settings import Jail
from ringzero.vm.guest.contract import KeptGuest


@record
class Lent:
    """What a copy's process was handed of its machine.

    `description` and `log` (the process's own words) are descriptors; `origin` is the directory of
    the machine that it was copied from.
    """

    files: LentFiles
    description: int
    log: int
    origin: MachineDirectory

    @classmethod
    def of(cls, handed: Handed, origin: MachineDirectory) -> Lent:
        """Return what is left of `handed` besides lock and report."""
        files = LentFiles(handed.written, handed.listener)
        return cls(files, handed.machine, handed.log, origin)

    def machine(self) -> MachineRecord:
        """Return what the machine is. Raises ControlError."""
        with os.fdopen(self.description, "rb") as file:
            found = MachineRecord.from_dict(json.loads(file.read()))
        if found is None:
            raise ControlError("the copy's description is not readable")
        return found


def become(
    claim: Claim,
    reporter: Reporter,
    handlers: Handlers,
    make: Callable[[], KeptGuest],
    *,
    resumed: bool,
    lent: Lent | None = None,
) -> NoReturn:
    """Be the machine that `make` returns until its end, and end the process.

    One that is `resumed` has started long ago. Its guest's and this process's words go to the
    directory, or into what was `lent`; what goes wrong is told to `reporter`.
    """
    code = 1
    files = lent.files if lent is not None else NamedFiles(claim.directory)
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _redirect(_open_log(claim.directory.path / VMM_LOG) if lent is None else lent.log)
        os.chdir("/")
        set_title(f"rz-{claim.directory.name}")
        if lent is None and claim.directory.machine().remove:
            reaper.attend(claim.directory)
        code = _live(claim, reporter, handlers, make(), resumed, lent)
    except BaseException as fault:
        error = fault if isinstance(fault, RingzeroError) else internal(fault)
        ended = ExitRecord("not-built", error.message, error.exit_code, time.time())
        with contextlib.suppress(HostError):
            files.save(ended, EXIT)
        reporter.fail(error)
    finally:
        os._exit(code)


def _live(
    claim: Claim,
    reporter: Reporter,
    handlers: Handlers,
    machine: KeptGuest,
    resumed: bool,
    lent: Lent | None,
) -> int:
    try:
        if lent is None:
            keeper = Keeper(machine, claim, handlers)
        else:
            keeper = Keeper(machine, claim, handlers, lent.files, lent.machine())
    except BaseException:
        machine.stop()
        raise
    take_over(keeper)
    if lent is not None:
        jail.leave_origin(lent.origin)
    jail.enter(machine, Jail(keeper.record.jail), claim.directory, keeper.record)
    return keep(keeper, reporter, resumed=resumed)


def _open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _redirect(file: int) -> None:
    """Make standard input nothing, and both outputs the machine's own log."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(file)
