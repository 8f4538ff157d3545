"""Makes machines' directories: a name is claimed, and what is wanted is written down.

Nothing appears in part: a directory gets its name, whole and locked, by a rename.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringzero.api.values import HealthCheck
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_to_tree
from ringzero.control.host.directory import (
    LOCK,
    MACHINE,
    NEW,
    OLD,
    RUN,
    Claim,
    MachineDirectory,
    check_name,
    random_name,
    root,
    taken,
)
from ringzero.control.host.records import MachineRecord, save
from ringzero.errors import ConflictError, HostError
from ringzero.host import ofdlock
from ringzero.host.files import host_error, remove_tree
from ringzero.settings import JAIL, Jail


def create(
    name: str | None,
    config: MachineConfig,
    *,
    image: str = "",
    command: tuple[str, ...] = (),
    timeout: float | None = None,
    serial: str | None = None,
    foreground: bool = False,
    remove: bool = False,
    parent: str = "",
    snapshot: str = "",
    boot: bool = False,
    health: HealthCheck | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    deployment: Mapping[str, Any] | None = None,
    jail: Jail | None = None,
    where: Path | None = None,
    again: Callable[[str], str] | None = None,
    complete: Callable[[MachineDirectory], None] | None = None,
) -> Claim:
    """Make a machine's directory and claim it; without a name it gets a free one.

    `complete` puts into it what else is to be there when it appears. `jail` None is what
    RINGZERO_JAIL says.

    Where the name is taken, `again` gives the next one to try, or ConflictError
    is raised. Raises HostError.
    """
    where = where or root()
    make_root(where)
    _sweep(where)

    def describe(chosen: str) -> MachineRecord:
        return MachineRecord(
            name=chosen,
            id=random_name(),
            created=time.time(),
            config=config_to_tree(config) | {"name": chosen},
            image=image,
            command=command,
            timeout=timeout,
            serial=None if serial is None else str(Path(serial).absolute()),
            foreground=foreground,
            remove=remove,
            parent=parent,
            snapshot=snapshot,
            boot=boot,
            health=health.to_dict() if health is not None else None,
            secrets={name: dict(source) for name, source in (secrets or {}).items()},
            deployment=None if deployment is None else dict(deployment),
            jail=(jail or JAIL.get()).value,
        )

    if name is None:
        name, again = f"{config.name[:50]}-1", next_number
    while True:
        try:
            return _claim(where, check_name(name), describe, complete)
        except ConflictError:
            if again is None:
                raise
            name = again(name)


def define(claim: Claim) -> MachineDirectory:
    """Leave a machine that is claimed as it was described, to be started later."""
    try:
        claim.directory.write_defined()
    except BaseException:
        claim.discard()
        raise
    claim.release()
    return claim.directory


def next_number(name: str) -> str:
    """Return the name with the number at its end raised by one."""
    head = name.rstrip("0123456789")
    return f"{head}{int(name[len(head) :] or 0) + 1}"


def _claim(
    where: Path,
    name: str,
    describe: Callable[[str], MachineRecord],
    complete: Callable[[MachineDirectory], None] | None,
) -> Claim:
    path = where / name
    if os.path.lexists(path):
        raise taken(MachineDirectory(path))
    new = where / f"{NEW}{random_name()}"
    try:
        new.mkdir(0o700)
        (new / RUN).mkdir(0o700)
        lock = os.open(new / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        remove_tree(new)
        raise host_error(fault, "create", new) from fault
    try:
        ofdlock.take(lock)
        save(describe(name), new / MACHINE)
        if complete is not None:
            complete(MachineDirectory(new))
        # Refused where the name is taken: a directory with files in it is not replaced.
        new.rename(path)
    except BaseException as fault:
        os.close(lock)
        remove_tree(new)
        if isinstance(fault, OSError):
            if path.exists():
                raise taken(MachineDirectory(path)) from None
            raise host_error(fault, "create", path) from fault
        raise
    return Claim(MachineDirectory(path), lock)


def make_root(where: Path) -> None:
    """Make the directory of all machines, where it is missing. Raises HostError."""
    try:
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as fault:
        fault_error = host_error(fault, "create", where)
        raise HostError(
            fault_error.message, hint="set RINGZERO_MACHINES_DIR to a directory you can write to"
        ) from fault


def _sweep(where: Path) -> None:
    """Remove what killed commands left half made or half removed."""
    for prefix in (NEW, OLD):
        for path in where.glob(f"{prefix}*"):
            entry = MachineDirectory(path)
            # A new one has its lock a moment after it appears.
            with contextlib.suppress(OSError):
                if not entry.alive and time.time() - path.stat().st_mtime > 10:
                    remove_tree(path)
