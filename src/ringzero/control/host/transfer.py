"""Files copied into a machine's guest and out of it, over its process (`put_archive` ...)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ringzero.api import copying
from ringzero.api.action import Link, Stream
from ringzero.api.copying import Rule
from ringzero.api.machine import MachineActions
from ringzero.errors import ControlError
from ringzero.host.progress import Reported, Steps
from ringzero.host.tarstream import Intake, Plan, Readable, Unpacking
from ringzero.settings import BOOT_TIMEOUT
from ringzero.units import format_size

_PIECE = 256 * 1024


def copy_in(
    machine: MachineActions,
    sources: Sequence[str | Path],
    target: str,
    follow: bool,
    owners: bool,
    progress: Steps,
) -> list[str]:
    """Copy files and folders of the host to `target` of the guest; return what was skipped."""
    plan = Plan(sources, follow=follow, owners=owners)
    total, sent = plan.size(), 0
    with progress.step(f"copying to {target}") as step:

        def write(send: Callable[[bytes], object]) -> None:
            def counted(data: bytes) -> None:
                nonlocal sent
                send(data)
                sent += len(data)
                step.update(min(1.0, sent / total) if total else None, format_size(sent))

            plan.write(counted)

        _put(machine, write, target, plan.rule)
    return plan.skipped


def put_stream(machine: MachineActions, source: Readable, target: str, progress: Steps) -> None:
    """Unpack a tar archive in the folder `target` of the guest."""
    with progress.step(f"unpacking in {target}") as step:

        def write(send: Callable[[bytes], object]) -> None:
            sent = 0
            while data := source.read(_PIECE):
                send(data)
                sent += len(data)
                step.update(None, format_size(sent))

        _put(machine, write, target, Rule.INTO)


def _put(
    machine: MachineActions,
    write: Callable[[Callable[[bytes], object]], None],
    target: str,
    rule: Rule,
) -> None:
    feed = _Feed(write)
    try:
        machine.put_archive(feed, target, rule.value, BOOT_TIMEOUT.get())
    except ControlError:
        # We left because of it.
        if feed.fault is not None:
            raise feed.fault from None
        raise
    finally:
        feed.over = True


class _Feed(Stream):
    """Sends what `write` writes, on a thread of its own."""

    def __init__(self, write: Callable[[Callable[[bytes], object]], None]) -> None:
        self._write = write
        self.fault: BaseException | None = None
        # Whether nobody takes it any more.
        self.over = False

    def begin(self, link: Link) -> None:
        threading.Thread(target=self._work, args=(link,), name="archive", daemon=True).start()

    def _work(self, link: Link) -> None:
        def send(data: bytes) -> None:
            if self.over:
                raise ControlError("the guest takes no more of it")
            link.send(data)

        try:
            self._write(send)
        except BaseException as fault:
            # Only an archive's end tells the guest that it is whole.
            self.fault = fault
            link.close()
        else:
            link.send(b"")


def copy_out(
    machine: MachineActions,
    source: str,
    target: Path,
    follow: bool,
    owners: bool,
    progress: Steps,
) -> list[str]:
    """Copy a file or folder of the guest to `target` of the host; return what was skipped."""
    contents = copying.holds_contents(source)
    with (
        Unpacking(target, contents=contents, owners=owners) as unpacking,
        progress.step(f"copying from {source}") as step,
    ):
        receiver = _Receiver(machine, source, follow)
        try:
            unpacking.take(_Counted(receiver.intake, step))
            receiver.intake.drain()
        finally:
            receiver.leave()
        unpacking.place()
    return unpacking.skipped


def get_stream(
    machine: MachineActions, source: str, follow: bool, write: Callable[[bytes], object]
) -> None:
    """Pass a file or folder of the guest on as a tar archive."""

    class Passing(Stream):
        def data(self, number: int, content: bytes) -> None:
            write(content)

    machine.get_archive(Passing(), source, follow, BOOT_TIMEOUT.get())


class _Counted:
    """An intake whose step hears how much was read."""

    def __init__(self, intake: Intake, step: Reported) -> None:
        self._intake, self._step = intake, step
        self._count = 0

    def read(self, size: int) -> bytes:
        data = self._intake.read(size)
        self._count += len(data)
        self._step.update(None, format_size(self._count))
        return data


class _Receiver(Stream):
    """Asks for an archive on a thread of its own; `intake` has it."""

    def __init__(self, machine: MachineActions, source: str, follow: bool) -> None:
        self.intake = Intake()
        self._link: Link | None = None
        self._left = False
        self._arguments: tuple[Any, ...] = (source, follow, BOOT_TIMEOUT.get())
        self._machine = machine
        threading.Thread(target=self._work, name="archive", daemon=True).start()

    def begin(self, link: Link) -> None:
        self._link = link
        if self._left:
            link.close()

    def data(self, number: int, content: bytes) -> None:
        if not self.intake.feed(content):
            self.intake.wait_room()

    def leave(self) -> None:
        """Want no more."""
        self._left = True
        self.intake.leave()
        if self._link is not None:
            self._link.close()

    def _work(self) -> None:
        try:
            self._machine.get_archive(self, *self._arguments)
        except BaseException as fault:
            self.intake.close(fault)
        else:
            self.intake.close()
