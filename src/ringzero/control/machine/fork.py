"""Copies of a running machine, each in a process of its own.

The guest stands still for the milliseconds in which its seed is taken. Then
the machine's process forks, once for all copies, and again for each of them,
so that they are nobody's children. A forked process has the engine, with the
code that it has translated, and the seed in its memory already; it builds a
machine of its own from them and lets go of everything else.

What makes a fork of a process with threads safe here: the new process uses no
object that another thread may have had in its hands, but for the seed and the
engine, which nobody changes; the original machine's objects stay in its memory
untouched, and are never finalized, because it ends by _exit(2).
"""

from __future__ import annotations

import gc
import json
import os
import select
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from ringzero.control.host import claims, directory
from ringzero.control.host.directory import Claim
from ringzero.control.host.report import Reporter
from ringzero.control.machine.become import become
from ringzero.control.machine.keeper import Keeper
from ringzero.errors import ControlError, InvalidValueError, from_dict
from ringzero.settings import Jail
from ringzero.vm.guest.contract import KeptGuest
from ringzero.vm.guest.identity import Identity

# More at once are more processes than a user may have on many hosts.
MAX_COUNT = 1000
# How long a copy may take to be there, in seconds; on a host that is not overloaded, 0.05.
_PATIENCE = 60.0
# What stands for the copy's number in a name.
NUMBER = "%"
# The original machine of a forked process: its memory and code are mapped still, and nothing
# of it may be finalized.
_originals: list[Keeper] = []


def names(origin: str, count: int, pattern: str) -> list[str]:
    """Return the copies' names: `pattern` with their numbers for "%"; "web-%" for web's.

    Raises InvalidValueError.
    """
    if not 1 <= count <= MAX_COUNT:
        raise InvalidValueError(f"{count} copies are outside 1 to {MAX_COUNT}")
    pattern = pattern or f"{origin}-{NUMBER}"
    if pattern.count(NUMBER) > 1 or (count > 1 and NUMBER not in pattern):
        raise InvalidValueError(
            f"the name {pattern!r} is no pattern for {count} machines",
            hint=f"write {NUMBER} once where the number belongs: --name {origin}-{NUMBER}",
        )
    return [directory.check_name(pattern.replace(NUMBER, str(n + 1))) for n in range(count)]


def fork(keeper: Keeper, wanted: Sequence[str], *, free: bool) -> list[str]:
    """Make a copy of the machine for each name and let them run; return their names.

    With `free`, a name that is taken is made another by a higher number. All
    come to be, or none. Raises ConflictError, HostError.
    """
    made = _claim_all(keeper, wanted, free=free)
    try:
        _fork_all(keeper, made)
    except BaseException:
        for claim in made:
            claim.end_process()
            claim.discard()
        raise
    for claim in made:
        claim.release()
    return [claim.directory.name for claim in made]


def _claim_all(keeper: Keeper, wanted: Sequence[str], *, free: bool) -> list[Claim]:
    record, made = keeper.record, list[Claim]()
    where = keeper.directory.path.parent
    try:
        for name in wanted:
            made.append(
                claims.create(
                    name,
                    keeper.machine.config,
                    image=record.image,
                    # In the foreground the command is the session's, not the machine's.
                    command=() if record.foreground else record.command,
                    health=record.health_check,
                    parent=keeper.name,
                    # One in the foreground was not asked how those that stay are confined.
                    jail=None if record.foreground else Jail(record.jail),
                    where=where,
                    again=claims.next_number if free else None,
                )
            )
    except BaseException:
        for claim in made:
            claim.discard()
        raise
    return made


def _fork_all(keeper: Keeper, made: Sequence[Claim]) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            middle = _fork_middle(keeper, made, writing)
        finally:
            os.close(writing)
        os.waitpid(middle, 0)
        _await_all(reading, len(made))
    finally:
        os.close(reading)


def _fork_middle(keeper: Keeper, made: Sequence[Claim], report: int) -> int:
    """Fork the process that forks the copies; return its number."""
    machine = keeper.machine
    # At the fork no device may be at work, and no lock of a disk held.
    with machine.frozen(), machine.seed(len(made)) as seed, machine.disks_still():
        machine.keep_from_children()
        readers = seed.share()
        try:
            number = os.fork()
            if number == 0:
                _make_processes(keeper, seed, made, report)
        finally:
            for reader in readers:
                reader.complete()
    return number


def _make_processes(keeper: Keeper, seed: Any, made: Sequence[Claim], report: int) -> NoReturn:
    """In the middle process: fork one for each copy and end."""
    status = 1
    try:
        for index, claim in enumerate(made):
            if os.fork() == 0:
                _become(keeper, seed, claim, made[index + 1 :], report)
            os.close(claim.lock)
        status = 0
    finally:
        os._exit(status)


def _become(
    origin: Keeper, seed: Any, claim: Claim, others: Sequence[Claim], report: int
) -> NoReturn:
    """In a copy's process: be that machine until its end."""

    def grow() -> KeptGuest:
        os.setsid()
        _originals.append(origin)
        # What is there is never garbage, and looking for some would copy all of it.
        gc.freeze()
        for other in others:
            os.close(other.lock)
        origin.leave()
        machine: KeptGuest = origin.machine.grow(seed, Identity(name=claim.directory.name))
        seed.close()
        return machine

    become(claim, Reporter(report), origin.handlers, grow, resumed=True)


def _await_all(reading: int, count: int) -> None:
    """Wait until all copies have said that they are there. Raises what one of them raises."""
    deadline, ready, text = time.monotonic() + _PATIENCE, 0, b""
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    while ready < count:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ControlError("a copy of the machine did not come up in time")
        data = os.read(reading, 65536)
        if not data:
            raise ControlError("the process of a copy ended at once", hint="is memory short?")
        *lines, text = (text + data).split(b"\n")
        for line in map(json.loads, lines):
            if "error" in line:
                raise from_dict(line["error"])
            ready += "up" in line
