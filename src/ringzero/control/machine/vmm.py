"""The process that runs one machine: `python -m ringzero.control DIRECTORY LOCK REPORT`.

It is started by `ringzero.control.host.launch` with the open lock of the machine's
directory and a pipe to report on, becomes nobody's child, and ends when the
guest does. SIGTERM has the guest switch itself off; SIGINT and SIGHUP, which
terminals send, are ignored.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringzero.api.values import ExitRecord
from ringzero.config.machine import MachineConfig
from ringzero.control.host import reaper
from ringzero.control.host.directory import EXIT, Claim, MachineDirectory
from ringzero.control.host.records import MachineRecord, save
from ringzero.control.host.report import Reporter
from ringzero.control.machine import jail
from ringzero.control.machine.actions import HANDLERS
from ringzero.control.machine.keeper import Keeper, take_back, write_process
from ringzero.control.machine.life import internal, keep, take_over
from ringzero.errors import RingzeroError
from ringzero.host.files import host_error
from ringzero.host.process import stand_alone
from ringzero.records import replace
from ringzero.settings import Jail
from ringzero.vm.guest.contract import KeptGuest
from ringzero.vm.guest.identity import Identity

Build = Callable[..., KeptGuest]


def build(config: MachineConfig, reporter: Reporter, *, boot: bool = False) -> KeptGuest:
    """Build the machine, to go on from a template unless it is to `boot`."""
    from ringzero.vm import builder

    return builder.build(config, reporter, boot=boot, lasting=True, tell=_note(reporter))


def _note(reporter: Reporter) -> Callable[[str], None]:
    return lambda line: reporter.say(note=line)


def restore(record: MachineRecord) -> KeptGuest:
    """Build the machine that goes on from the record's snapshot, under the record's name."""
    from ringzero.vm.saved.snapshot import Snapshot

    machine: KeptGuest = Snapshot.open(record.snapshot).restore(Identity(record.name))
    return machine


def _take_back(machine: KeptGuest, directory: MachineDirectory, snapshot: Path) -> None:
    try:
        take_back(machine, directory, snapshot)
    except BaseException:
        machine.stop()
        raise


def main(arguments: list[str], build: Build = build) -> int:
    """Run the machine whose directory, lock and report pipe `arguments` name."""
    path, lock, report = arguments
    claim = Claim(MachineDirectory(Path(path)), int(lock))
    stand_alone(f"rz-{claim.directory.name}")
    os.set_inheritable(claim.lock, False)
    os.set_inheritable(int(report), False)
    return run(claim, Reporter(int(report)), build)


def run(claim: Claim, reporter: Reporter, build: Build) -> int:
    """Build the machine, keep it until its end, and write the end down."""
    directory = claim.directory
    try:
        write_process(directory)
        record = directory.machine()
        if record.remove and record.jail != Jail.NONE.value:
            reaper.attend(directory)
        config = replace(record.machine_config(), name=directory.name)
        machine = restore(record) if record.snapshot else build(config, reporter, boot=record.boot)
        if record.revert:
            _take_back(machine, directory, Path(record.revert))
    except Exception as fault:
        error = fault if isinstance(fault, RingzeroError) else internal(fault)
        with contextlib.suppress(RingzeroError):
            ended = ExitRecord("not-built", error.message, error.exit_code, time.time())
            save(ended, directory.file(EXIT))
        reporter.fail(error)
        return error.exit_code
    try:
        keeper = Keeper(machine, claim, HANDLERS)
        take_over(keeper)
        with _serial_file(keeper):
            jail.enter(machine, Jail(keeper.record.jail), directory, keeper.record)
            return keep(keeper, reporter, resumed=bool(record.snapshot or record.revert))
    except RingzeroError as fault:
        machine.stop()
        reporter.fail(fault)
        return fault.exit_code


@contextlib.contextmanager
def _serial_file(keeper: Keeper) -> Any:
    """Copy the serial line into the file that --serial named, for the block."""
    name = keeper.record.serial
    if name is None:
        yield
        return
    try:
        file = Path(name).open("wb", buffering=0)  # noqa: SIM115 - closed by the block below
    except OSError as fault:
        raise host_error(fault, "write", name) from fault
    with file:
        keeper.serial.copy_to(file.write)
        yield
