"""What happens to machines, observed in their directories without asking anybody.

The kernel tells of changed files (inotify(7)), also of the lock's last descriptor being
closed, which is the end of a machine's process, however it ended. What changes and changes
back between two looks, a few microseconds apart, is not told.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ringzero.api.values import Event, EventKind, Status
from ringzero.config.device import NAME
from ringzero.control.host import claims, directory
from ringzero.control.host.directory import (
    EXIT,
    LOCK,
    PROCESS,
    RUN,
    STATUS,
    MachineDirectory,
)
from ringzero.control.host.notes import METADATA
from ringzero.control.host.records import ProcessRecord
from ringzero.errors import HostError
from ringzero.host import inotify
from ringzero.host.files import host_error
from ringzero.records import record

_IN_ROOT = inotify.MOVED_FROM | inotify.MOVED_TO | inotify.CREATE | inotify.DELETE
# ATTRIB: what a copy of a machine writes into a file that it was handed has a time of its own.
_IN_MACHINE = inotify.MOVED_TO | inotify.CLOSE_WRITE | inotify.ATTRIB
_TELLING = frozenset((LOCK, STATUS, EXIT, PROCESS))
# The kernel tells of a closed file just before it drops its lock: how often and after how
# many seconds a lock that is held still is looked at again.
_LOOKS, _PAUSE = 5, 0.002


@record
class _Seen:
    """What was last seen of a machine."""

    status: Status
    process: ProcessRecord | None


class Watch:
    """Observes all machines in a directory from its making on; to be closed."""

    def __init__(self, where: Path) -> None:
        self._where = where
        claims.make_root(where)
        self._inotify = inotify.Inotify()
        self._seen: dict[str, _Seen] = {}
        self._names: dict[int, str] = {}
        self._moved: dict[int, str] = {}
        self._pending: dict[str, int] = {}
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closing = threading.Event()
        try:
            self._root = self._inotify.add(where, _IN_ROOT)
        except OSError as fault:
            self.close()
            raise host_error(fault, "watch", where) from fault
        for machine in directory.machines(where):
            self._follow(machine.name)
            self._seen[machine.name] = _look(machine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it; a reader is to be ended by `send` before."""
        self._inotify.close()
        os.close(self._wake)
        os.close(self._waker)

    def send(self, data: bytes) -> None:
        """End `events` where `data` is b"", from any thread: the end of a stream's input."""
        if not data:
            self._closing.set()
            with contextlib.suppress(OSError):
                os.write(self._waker, b"x")

    def event(self, kind: str, **content: Any) -> None:
        """Take an event of whoever listens; there is none that matters."""

    def events(self) -> Iterator[Event]:
        """Yield what happens, until `send(b"")`."""
        while not self._closing.is_set():
            yield from self.read(None)

    def read(self, timeout: float | None) -> list[Event]:
        """Return what has happened; wait for it up to `timeout` seconds, or without bound."""
        poller = select.poll()
        for descriptor in (self._inotify.descriptor, self._wake):
            poller.register(descriptor, select.POLLIN)
        wait = _PAUSE if self._pending else timeout
        poller.poll(None if wait is None else wait * 1000)
        again, self._pending = self._pending, {}
        found = [event for change in self._inotify.read() for event in self._changed(change)]
        # Moved away, and to no place of ours.
        found += [event for name in self._moved.values() for event in self._removed(name)]
        self._moved.clear()
        for name, looks in again.items():
            found += self._look(name, looks)
        return found

    def _changed(self, change: inotify.Change) -> list[Event]:
        if change.mask & inotify.OVERFLOW:
            names = {machine.name for machine in directory.machines(self._where)}
            return [event for name in names | set(self._seen) for event in self._appeared(name)]
        if change.number != self._root:
            name = self._names.get(change.number)
            if name is not None and change.name == METADATA and name in self._seen:
                return [_event(EventKind.CHANGED, name)]
            if name is not None and change.name == RUN:
                # One that an earlier version made is started again.
                self._follow(name)
            if name is None or change.name not in _TELLING:
                return []
            return self._look(name, _LOOKS if change.name == LOCK else 0)
        before = self._moved.pop(change.cookie, "") if change.cookie else ""
        if change.mask & inotify.MOVED_FROM:
            if NAME.fullmatch(change.name):
                self._moved[change.cookie] = change.name
            return []
        if NAME.fullmatch(change.name):
            return self._appeared(change.name, before)
        # One that is being removed has such a name, or one that is being made.
        return self._removed(before) if before else []

    def _appeared(self, name: str, before: str = "") -> list[Event]:
        machine = MachineDirectory(self._where / name)
        if machine.oddity():
            return self._removed(name)
        self._follow(name)
        found: list[Event] = []
        if before in self._seen:
            self._seen[name] = self._seen.pop(before)
            found.append(_event(EventKind.RENAMED, name, **{"from": before}))
        return found + self._look(name, 0)

    def _removed(self, name: str) -> list[Event]:
        for number in [number for number, of in self._names.items() if of == name]:
            self._inotify.remove(number)
            del self._names[number]
        seen = self._seen.pop(name, None)
        if seen is None:
            return []
        ended = [_event(EventKind.ENDED, name)] if seen.status.alive else []
        return [*ended, _event(EventKind.REMOVED, name)]

    def _follow(self, name: str) -> None:
        for place in _places(MachineDirectory(self._where / name)):
            with contextlib.suppress(OSError):
                self._names[self._inotify.add(place, _IN_MACHINE)] = name

    def _look(self, name: str, looks: int) -> list[Event]:
        machine = MachineDirectory(self._where / name)
        if machine.oddity():
            return self._removed(name)
        now, before = _look(machine), self._seen.get(name)
        if looks and now.status.alive:
            self._pending[name] = looks - 1
        self._seen[name] = now
        return list(_differences(machine, before, now))


class Changes:
    """Tells when something in a machine's directory changes, its log included; to be closed."""

    # Where the kernel cannot tell: how often to look, in seconds. A person sees no delay.
    _PAUSE = 0.05
    # The lock is dropped just after the kernel tells of its end; nothing comes after that.
    _AT_LEAST = 1.0

    def __init__(self, where: MachineDirectory) -> None:
        self._inotify: inotify.Inotify | None = None
        with contextlib.suppress(HostError, OSError):
            self._inotify = inotify.Inotify()
            for place in _places(where):
                self._inotify.add(place, _IN_MACHINE | inotify.MODIFY | inotify.CREATE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()

    def wait(self) -> None:
        """Wait until something may have changed."""
        if self._inotify is None:
            time.sleep(self._PAUSE)
            return
        poller = select.poll()
        poller.register(self._inotify.descriptor, select.POLLIN)
        poller.poll(self._AT_LEAST * 1000)
        for _ in self._inotify.read():
            pass


def _places(machine: MachineDirectory) -> set[Path]:
    """Return the directories that have a machine's files."""
    return {machine.path, machine.file(STATUS).parent}


def _look(machine: MachineDirectory) -> _Seen:
    return _Seen(machine.status(), machine.process())


def _differences(machine: MachineDirectory, before: _Seen | None, now: _Seen) -> Iterator[Event]:
    name, old = machine.name, before.status if before is not None else None
    if old is None:
        yield _event(EventKind.CREATED, name)
    alive = old is not None and old.alive
    if before is not None and None is not before.process != now.process is not None:
        # Another process runs it: it ended in between.
        if alive:
            yield _event(EventKind.ENDED, name)
        alive, old = False, None
    # One that is described and not started is claimed for a moment.
    if alive and not now.status.alive and now.status is not Status.DEFINED:
        ended = machine.exit()
        yield _event(EventKind.ENDED, name, **({"exit": ended.to_dict()} if ended else {}))
    if now.status in (Status.RUNNING, Status.PAUSED) and not (
        old in (Status.RUNNING, Status.PAUSED) and alive
    ):
        yield _event(EventKind.STARTED, name)
        old = Status.RUNNING
    if now.status is not old:
        match now.status:
            case Status.PAUSED:
                yield _event(EventKind.PAUSED, name)
            case Status.RUNNING:
                yield _event(EventKind.RESUMED, name)
            case Status.STOPPING:
                yield _event(EventKind.STOPPING, name)


def _event(kind: EventKind, machine: str, **detail: Any) -> Event:
    return Event(kind.value, machine, time.time(), detail)
