"""The process that runs one machine: `python -m ringzero.control DIRECTORY LOCK REPORT`.

It is started by `ringzero.control.host.launch` with the open lock of the machine's
directory and a pipe to report on, becomes nobody's child, and ends when the
guest does. SIGTERM has the guest switch itself off; SIGINT and SIGHUP, which
terminals send, are ignored.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringzero.config.machine import MachineConfig
from ringzero.control.host.directory import EXIT, Claim, MachineDirectory
from ringzero.control.host.records import ExitRecord, MachineRecord
from ringzero.control.machine.keeper import Guest, Keeper, take_back, write_process
from ringzero.control.machine.report import Reporter
from ringzero.errors import ControlError, GuestError, RingzeroError
from ringzero.host.files import host_error
from ringzero.host.process import set_title
from ringzero.vm.guest.identity import Identity

Build = Callable[[MachineConfig, Reporter], Guest]


def build(config: MachineConfig, reporter: Reporter) -> Guest:
    """Build the machine, compiling the engine first where that was never done."""
    from ringzero.engine import select
    from ringzero.vm.machine import Machine

    if select.choose(config.engine).name == "soft":
        from ringzero.jit import build as engine

        reporter.say(step="compiling the software engine, once on this machine")
        engine.ensure(
            lambda done, total, units: reporter.say(fraction=done / total, note=str(units))
        )
        reporter.say(step="")
    machine: Guest = Machine(config)
    return machine


def restore(record: MachineRecord) -> Guest:
    """Build the machine that goes on from the record's snapshot, under the record's name."""
    from ringzero.vm.saved.snapshot import Snapshot

    machine: Guest = Snapshot.open(record.snapshot).restore(Identity(record.name))
    return machine


def _take_back(machine: Guest, directory: MachineDirectory, snapshot: Path) -> None:
    try:
        take_back(machine, directory, snapshot)
    except BaseException:
        machine.stop()
        raise


def main(arguments: list[str], build: Build = build) -> int:
    """Run the machine whose directory, lock and report pipe `arguments` name."""
    path, lock, report = arguments
    # The parent's end is what the command that started us waits for.
    if os.fork():
        os._exit(0)
    claim = Claim(MachineDirectory(Path(path)), int(lock))
    os.set_inheritable(claim.lock, False)
    os.set_inheritable(int(report), False)
    os.umask(0o077)
    os.chdir("/")
    set_title(f"rz-{claim.directory.name}")
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return run(claim, Reporter(int(report)), build)


def run(claim: Claim, reporter: Reporter, build: Build) -> int:
    """Build the machine, keep it until its end, and write the end down."""
    directory = claim.directory
    try:
        write_process(directory)
        record = directory.machine()
        config = record.machine_config()
        machine = restore(record) if record.snapshot else build(config, reporter)
        if record.revert:
            _take_back(machine, directory, Path(record.revert))
    except Exception as fault:
        error = fault if isinstance(fault, RingzeroError) else internal(fault)
        with contextlib.suppress(RingzeroError):
            ended = ExitRecord("not-built", error.message, error.exit_code, time.time())
            ended.write(directory.path / EXIT)
        reporter.fail(error)
        return error.exit_code
    try:
        keeper = Keeper(machine, claim)
        take_over(keeper)
        with _serial_file(keeper):
            return keep(keeper, reporter)
    except RingzeroError as fault:
        machine.stop()
        reporter.fail(fault)
        return fault.exit_code


def keep(keeper: Keeper, reporter: Reporter) -> int:
    """Let the machine of `keeper` run to its end; on the process's main thread."""
    ending = threading.Thread(target=keeper.stop, name="stop", daemon=True)
    signal.signal(signal.SIGTERM, lambda *_: None if ending.ident else ending.start())
    watcher = threading.Thread(target=_report_up, args=(keeper, reporter), daemon=True)
    try:
        keeper.start()
        watcher.start()
        result = keeper.wait()
    except RingzeroError as fault:
        reporter.fail(fault)
        result = ExitRecord("fault", fault.message, fault.exit_code, time.time())
        result = keeper.finish(result)
    keeper.close()
    if watcher.ident:
        watcher.join(1.0)
    if keeper.record.remove:
        keeper.directory.discard()
    return result.exit_code


def _report_up(keeper: Keeper, reporter: Reporter) -> None:
    """Tell the starter when the guest takes commands, and run the one that it was started for."""
    if keeper.machine.config.agent:
        with contextlib.suppress(GuestError):
            keeper.machine.agent.wait_ready()
        if not keeper.machine.agent.ready or keeper.ended.is_set():
            keeper.ended.wait(5)
            result = keeper.result
            detail = f": {result.reason}\n{result.detail}" if result is not None else ""
            reporter.fail(GuestError("the guest ended before it could run anything" + detail))
            return
        # In a copy, and where the machine was taken back, the guest runs it already.
        if keeper.record.command and not keeper.machine.agent.kept:
            _run_command(keeper)
    reporter.up()


def _run_command(keeper: Keeper) -> None:
    """Run the machine's command in the guest; its end is the machine's."""
    over = _end_with(keeper)
    keeper.machine.agent.run(
        keeper.record.command,
        on_stdout=keeper.log,
        on_stderr=keeper.log,
        on_exit=over,
        kept=True,
    )


def take_over(keeper: Keeper) -> None:
    """In a copy of a machine: its command, if it has one, is the copy's too."""
    if keeper.machine.config.agent:
        for command in keeper.machine.agent.kept:
            command.redirect(on_stdout=keeper.log, on_stderr=keeper.log, on_exit=_end_with(keeper))


def revert(keeper: Keeper, snapshot: Path) -> None:
    """Take a living machine back to a snapshot; its command goes on there, or begins anew."""
    keeper.revert(snapshot)
    # In the foreground the command is the session's, not the machine's.
    if not keeper.machine.config.agent or keeper.record.foreground:
        return
    take_over(keeper)
    if keeper.record.command and not keeper.machine.agent.kept:
        threading.Thread(target=_run_when_ready, args=(keeper,), daemon=True).start()


def _run_when_ready(keeper: Keeper) -> None:
    with contextlib.suppress(GuestError):
        if keeper.machine.agent.wait_ready():
            _run_command(keeper)


def _end_with(keeper: Keeper) -> Callable[[int], None]:
    def over(status: int) -> None:
        text = f"its command ended with status {status}"
        keeper.expect(ExitRecord("command", text, status, time.time()))
        threading.Thread(target=_finish, args=(keeper,), daemon=True).start()

    return over


def _finish(keeper: Keeper) -> None:
    """Have the guest write its disks, then end it."""
    if any(not disk.read_only for disk in keeper.machine.config.disks):
        keeper.stop()
    else:
        keeper.machine.stop()


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


def internal(fault: BaseException) -> ControlError:
    """Return the error for a fault of ours."""
    return ControlError(f"internal error: {type(fault).__name__}: {fault}")
