"""How a process that has a machine already becomes that of a machine's directory.

Copies of a machine are such processes, and those of a pool: forks, each of which has grown a
machine of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ringzero.api.values import ExitRecord
from ringzero.control.host.directory import VMM_LOG, Claim
from ringzero.control.host.report import Reporter
from ringzero.control.machine import jail
from ringzero.control.machine.keeper import Keeper
from ringzero.control.machine.life import internal, keep, take_over
from ringzero.control.machine.server import Handlers
from ringzero.errors import RingzeroError
from ringzero.host.process import set_title
from ringzero.settings import Jail
from ringzero.vm.guest.contract import KeptGuest


def become(
    claim: Claim,
    reporter: Reporter,
    handlers: Handlers,
    make: Callable[[], KeptGuest],
    *,
    resumed: bool,
) -> NoReturn:
    """Be the machine that `make` returns until its end, and end the process.

    One that is `resumed` has started long ago. Its guest's and this process's words go to the
    directory; what goes wrong is told to `reporter`.
    """
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _redirect(claim.directory.path / VMM_LOG)
        os.chdir("/")
        set_title(f"rz-{claim.directory.name}")
        code = _live(claim, reporter, handlers, make(), resumed)
    except BaseException as fault:
        error = fault if isinstance(fault, RingzeroError) else internal(fault)
        ended = ExitRecord("not-built", error.message, error.exit_code, time.time())
        claim.directory.write_end(ended)
        reporter.fail(error)
    finally:
        os._exit(code)


def _live(
    claim: Claim, reporter: Reporter, handlers: Handlers, machine: KeptGuest, resumed: bool
) -> int:
    try:
        keeper = Keeper(machine, claim, handlers)
    except BaseException:
        machine.stop()
        raise
    take_over(keeper)
    jail.enter(machine, Jail(keeper.record.jail), claim.directory, keeper.record)
    return keep(keeper, reporter, resumed=resumed)


def _redirect(log: Path) -> None:
    """Make standard input nothing, and both outputs the machine's own log."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(file)
