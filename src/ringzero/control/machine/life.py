"""The life of a kept machine from its start to its end, and that of its command."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from ringzero.api.values import ExitRecord
from ringzero.control.host import secrets
from ringzero.control.host.report import Reporter
from ringzero.control.machine.keeper import Keeper
from ringzero.errors import ControlError, GuestError, HostError, RingzeroError
from ringzero.host.jail import confine
from ringzero.host.service import ServiceThread
from ringzero.settings import BOOT_TIMEOUT, boot_bound
from ringzero.vm import boot
from ringzero.vm.guest import linux
from ringzero.vm.guest.cloudinit import CloudInitWatch

# Of a system's services that have failed, one a line; nothing where there is no systemd.
_FAILED_UNITS = ("sh", "-c", "systemctl --failed --no-legend --plain 2>/dev/null")
_MOST_UNITS = 20
# In so much of the serial line, in bytes, its last line is looked for.
_LAST_SAID = 2048
# How often the starter hears that the guest is not up yet, in seconds.
_TELL = 10.0


def keep(keeper: Keeper, reporter: Reporter, *, resumed: bool = False) -> int:
    """Let the machine of `keeper` run to its end; on the process's main thread.

    A machine that is `resumed`, as a copy, has started long ago.
    """
    asked: SimpleQueue[int] = SimpleQueue()

    def stop_when_asked() -> None:
        asked.get()
        keeper.stop()

    # The handler notes the signal, and no more: it may interrupt anything.
    ServiceThread(keeper, stop_when_asked, "stop").start()
    signal.signal(signal.SIGTERM, lambda number, _: asked.put(number))
    watcher = ServiceThread(keeper, partial(_report_up, keeper, reporter, resumed), "up")
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
    # A jailed one is waited for by who removes it (`ringzero.control.host.reaper`).
    if keeper.record.remove and not confine.parts():
        keeper.directory.discard()
    return result.exit_code


def _report_up(keeper: Keeper, reporter: Reporter, resumed: bool) -> None:
    """Tell the starter when the guest takes commands, and run the one that it was started for."""
    config = keeper.machine.config
    watch = _listen(keeper) if config.cloud_init and not resumed else None
    if config.agent:
        bound = boot_bound(config.boot_entry)
        with contextlib.suppress(GuestError):
            if not _await_ready(keeper, reporter, bound or math.inf):
                reporter.fail(
                    GuestError(
                        f"the guest took no command within {bound:g} seconds; it runs on",
                        hint=f"`ringzero logs {keeper.name}`, `ringzero console {keeper.name}`",
                    )
                )
                # Its command waits for it.
                keeper.machine.agent.wait_ready()
        if keeper.machine.agent.fault is not None:
            reporter.fail(keeper.machine.agent.fault)
            return
        if not keeper.machine.agent.ready or keeper.ended.is_set():
            keeper.ended.wait(5)
            result = keeper.result
            detail = f": {result.reason}\n{result.detail}" if result is not None else ""
            reporter.fail(GuestError("the guest ended before it could run anything" + detail))
            return
        # In a copy, and where the machine was taken back, the guest runs it already.
        if keeper.record.command and not keeper.machine.agent.kept:
            try:
                _run_command(keeper)
            except HostError as fault:
                reporter.fail(fault)
                return
        if boot.READY in boot.services_of(config.command_line) and not resumed:
            _await_services(keeper, reporter)
        if keeper.record.health is not None and not keeper.record.foreground:
            from ringzero.control.machine import health

            health.watch(keeper)
        if config.boot_entry is not None and not resumed:
            _tell_failed_units(keeper, reporter)
    if watch is not None:
        _await_cloud_init(keeper, reporter, watch)
    reporter.up()


def _listen(keeper: Keeper) -> CloudInitWatch:
    """Return what hears cloud-init on the serial line, from the beginning."""
    watch = CloudInitWatch()
    watch.feed(keeper.serial.tail())
    keeper.serial.copy_to(watch.feed)
    return watch


def _tell_failed_units(keeper: Keeper, reporter: Reporter) -> None:
    """Tell the starter which of the system's services have failed, where it is systemd's."""
    said, over = bytearray(), threading.Event()
    with contextlib.suppress(GuestError):
        keeper.machine.agent.run(
            _FAILED_UNITS, on_stdout=said.extend, on_exit=lambda status: over.set()
        )
        over.wait(_TELL)
    for line in said.decode("utf-8", "replace").splitlines()[:_MOST_UNITS]:
        unit = line.split()[:1]
        if unit and unit[0].isprintable():
            reporter.say(note=f"the guest's {unit[0][:100]} has failed")


def _await_services(keeper: Keeper, reporter: Reporter) -> None:
    """Wait until what the image says of its readiness holds; the guest knows how long at most."""
    said, over, statuses = bytearray(), threading.Event(), list[int]()

    def end(status: int) -> None:
        statuses.append(status)
        over.set()

    try:
        keeper.machine.agent.run(
            boot.ASK_READY, on_stdout=said.extend, on_stderr=said.extend, on_exit=end
        )
    except GuestError as fault:
        reporter.fail(fault)
        return
    waited = 0.0
    while not over.wait(_TELL) and not keeper.ended.is_set():
        waited += _TELL
        reporter.say(note=f"the guest's services are starting, for {waited:.0f} s now")
    if not statuses:
        reporter.fail(GuestError("the guest ended before it was ready"))
    elif statuses[0]:
        text = linux.last_line(bytes(said))
        reporter.fail(
            GuestError(
                "the guest is not ready, as its image's READY has it; it runs on"
                + (f": {text}" if text else ""),
                hint=f"`ringzero logs {keeper.name}`",
            )
        )


def _await_cloud_init(keeper: Keeper, reporter: Reporter, watch: CloudInitWatch) -> None:
    """Wait until cloud-init in the guest has finished, and tell the starter what went wrong."""
    bound, waited = boot_bound(keeper.machine.config.boot_entry) or math.inf, 0.0
    while not watch.wait(min(_TELL, bound - waited)) and not keeper.ended.is_set():
        waited += _TELL
        if waited >= bound:
            reporter.fail(
                GuestError(
                    f"cloud-init did not finish within {bound:g} seconds; the machine runs on",
                    hint=f"`ringzero logs --serial {keeper.name}`, `{BOOT_TIMEOUT.name}=1800`",
                )
            )
            return
        reporter.say(note=_starting(keeper, waited))
    if keeper.ended.is_set() and not watch.finished:
        reporter.fail(GuestError("the guest ended before cloud-init had finished"))
    elif watch.problems:
        lines = "\n".join(watch.problems)
        reporter.fail(
            GuestError(
                f"cloud-init finished with faults; the machine runs on:\n{lines}",
                hint=f"`ringzero console {keeper.name}`: see /var/log/cloud-init-output.log",
            )
        )


def _await_ready(keeper: Keeper, reporter: Reporter, bound: float) -> bool:
    """Wait until the guest takes commands, and tell the starter of it; False after `bound` s."""
    waited = 0.0
    while waited < bound:
        pause = min(_TELL, bound - waited)
        if keeper.machine.agent.wait_ready(pause):
            return True
        waited += pause
        if waited < bound:
            reporter.say(note=_starting(keeper, waited))
    return False


def _starting(keeper: Keeper, waited: float) -> str:
    """Return that the guest is starting, with what it said last where it is the user's own."""
    text = f"the guest is starting, for {waited:.0f} s now"
    if keeper.machine.config.boot_entry is None:
        return text
    said = linux.last_line(keeper.serial.tail(_LAST_SAID))
    return f"{text}: {said}" if said else text


def _run_command(keeper: Keeper) -> None:
    """Run the machine's command in the guest; its end is the machine's.

    Raises HostError where a secret of it is not there, which is the machine's end, too.
    """
    over = _end_with(keeper)
    try:
        words = secrets.command_of(keeper.record)
    except HostError as fault:
        keeper.expect(ExitRecord("not-started", fault.message, fault.exit_code, time.time()))
        ServiceThread(keeper, partial(_finish, keeper), "finish").start()
        raise
    keeper.machine.agent.run(
        words,
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
        ServiceThread(keeper, partial(_run_when_ready, keeper), "command").start()


def _run_when_ready(keeper: Keeper) -> None:
    with contextlib.suppress(GuestError, HostError):
        if keeper.machine.agent.wait_ready():
            _run_command(keeper)


def _end_with(keeper: Keeper) -> Callable[[int], None]:
    def over(status: int) -> None:
        text = f"its command ended with status {status}"
        keeper.expect(ExitRecord("command", text, status, time.time()))
        ServiceThread(keeper, partial(_finish, keeper), "finish").start()

    return over


def _finish(keeper: Keeper) -> None:
    """Have the guest write its disks, then end it."""
    if any(not disk.read_only for disk in keeper.machine.config.disks):
        keeper.stop()
    else:
        keeper.machine.stop()


def internal(fault: BaseException) -> ControlError:
    """Return the error for a fault of ours."""
    return ControlError(f"internal error: {type(fault).__name__}: {fault}")
