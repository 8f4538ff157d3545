"""Copies of a running machine, as the host's side makes them: their names, directories, numbers.

The machine's process forks them (`ringzero.control.machine.fork`) and is handed what is theirs.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Sequence

from ringzero.api import table
from ringzero.control.host import claims, directory
from ringzero.control.host.directory import Claim, MachineDirectory
from ringzero.control.host.handing import Birth
from ringzero.control.host.handlers import handles
from ringzero.control.host.session import Session
from ringzero.errors import ControlError, HostError, InvalidValueError, from_dict
from ringzero.settings import Jail

# More at once are more processes than a user may have on many hosts.
MAX_COUNT = 1000
# How long a copy may take to be there, in seconds; on a host that is not overloaded, 0.05.
_PATIENCE = 60.0
# What stands for the copy's number in a name.
NUMBER = "%"


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


@handles("fork")
def fork(where: MachineDirectory, count: int, name: str) -> list[str]:
    """Make copies of the machine and let them run; return their names.

    Without a name, one that is taken is made another by a higher number. All come to be, or none.
    Raises ConflictError, ControlError, HostError.
    """
    made = _claim_all(where, names(where.name, count, name), free=not name)
    births = list[Birth]()
    try:
        births += map(Birth, made)
        _bear(where, births)
    except BaseException:
        for birth in births:
            birth.close()
        for claim in made:
            claim.end_process()
            claim.discard()
        raise
    for birth in births:
        birth.close()
    for claim in made:
        claim.release()
    return [claim.directory.name for claim in made]


def _claim_all(where: MachineDirectory, wanted: Sequence[str], *, free: bool) -> list[Claim]:
    record, made = where.machine(), list[Claim]()
    config = record.machine_config()
    try:
        for name in wanted:
            made.append(
                claims.create(
                    name,
                    config,
                    image=record.image,
                    # In the foreground the command is the session's, not the machine's.
                    command=() if record.foreground else record.command,
                    health=record.health_check,
                    parent=where.name,
                    # One in the foreground was not asked how those that stay are confined.
                    jail=None if record.foreground else Jail(record.jail),
                    where=where.path.parent,
                    again=claims.next_number if free else None,
                )
            )
    except BaseException:
        for claim in made:
            claim.discard()
        raise
    return made


def _bear(where: MachineDirectory, births: Sequence[Birth]) -> None:
    """Have the machine's process fork, and wait until all copies have said that they are up."""
    action = table.get("fork")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, Session(where, action.patience + _PATIENCE) as session:
        with theirs:
            arguments = {"count": len(births), "name": ""}
            session.request(action, arguments, (theirs.fileno(),))
        ours.settimeout(_PATIENCE)
        try:
            for birth in births:
                birth.send(ours)
            _await_all(births)
        except (ControlError, HostError):
            # Where the machine has refused, its answer says why.
            with contextlib.suppress(ControlError):
                session.answer(action)
            raise
        session.answer(action)


def _await_all(births: Sequence[Birth]) -> None:
    """Wait until all copies have said that they are up. Raises what one of them raises."""
    deadline, poller = time.monotonic() + _PATIENCE, select.poll()
    left = {birth.fileno(): birth for birth in births}
    for number in left:
        poller.register(number, select.POLLIN)
    while left:
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            raise ControlError("a copy of the machine did not come up in time")
        for number, _ in ready:
            lines = left[number].read()
            if not lines:
                raise ControlError("the process of a copy ended at once", hint="is memory short?")
            for line in map(json.loads, lines):
                if "error" in line:
                    raise from_dict(line["error"])
                if "up" in line and left.pop(number, None) is not None:
                    poller.unregister(number)
