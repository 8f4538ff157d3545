"""Taking a machine back to a snapshot, in place: what fits, and what it becomes.

A user's disk image is written to only with the content of a snapshot of that
same image. Everything that can be refused is refused before anything is changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ringzero.config.machine import MachineConfig
from ringzero.disk.instant import InstantDisk, LiveDisk
from ringzero.errors import RingzeroError, StateError
from ringzero.vm import copies
from ringzero.vm.build import Assembly
from ringzero.vm.saved.snapshot import Snapshot
from ringzero.vm.seed import Seed

# What of a configuration the saved state and memory were made for.
_FIXED = ("board", "memory", "cpus", "cpu", "agent")
_HINT = "`ringzero snapshot restore` makes another machine of it"


def seed_for(parts: Assembly, snapshot: Snapshot) -> Seed:
    """Return what the machine of `parts` is to become; the caller closes it.

    Of a snapshot without memory that is the machine about to boot. Raises StateError where
    the snapshot is of another kind of machine, or of other disks, or is damaged.
    """
    check_fit(parts.config, parts.engine.name, snapshot)
    check_disks(parts.disks, snapshot)
    if snapshot.manifest.memory is not None:
        return snapshot.seed()
    with contextlib.ExitStack() as closing:
        instants = snapshot.disks()
        for instant in instants:
            closing.callback(instant.close)
        return copies.boot_seed(parts, instants)


def check_fit(config: MachineConfig, engine: str, snapshot: Snapshot) -> None:
    """Raise StateError unless a machine of this configuration can become what was saved."""
    saved = snapshot.manifest.machine_config()
    for name in _FIXED if snapshot.manifest.memory is not None else ():
        mine, its = getattr(config, name), getattr(saved, name)
        if mine != its:
            raise StateError(
                f"{snapshot.name} is of a machine with {name} {its!r}, this one has {mine!r}",
                hint=_HINT,
            )
    if snapshot.manifest.engine not in (None, engine):
        raise StateError(
            f"{snapshot.name} was saved on the engine {snapshot.manifest.engine!r}, not {engine!r}",
            hint="run the machine on the engine that it was saved on",
        )


def check_disks(disks: Sequence[LiveDisk], snapshot: Snapshot) -> None:
    """Raise StateError unless the snapshot is of these disks."""
    parts = snapshot.manifest.disks
    if len(parts) != len(disks):
        raise StateError(
            f"{snapshot.name} is of a machine with {len(parts)} disks, this one has {len(disks)}",
            hint=_HINT,
        )
    for number, (disk, part) in enumerate(zip(disks, parts, strict=True)):
        path = disk.disk.path
        # A copy's disk has no file; it may become any of its size.
        if path is not None and Path(path).absolute() != Path(part.path):
            raise StateError(f"{snapshot.name} is of the disk {part.path}, not {path}", hint=_HINT)
        if disk.read_only != part.read_only or disk.size != part.size:
            raise StateError(
                f"disk {number} is of another size, or otherwise writable, than in {snapshot.name}",
                hint=_HINT,
                expected=part.size,
                seen=disk.size,
            )


def take_back(disks: Sequence[LiveDisk], contents: Sequence[InstantDisk]) -> None:
    """Write to the disks where they differ from `contents`. Raises StateError."""
    for disk, content in zip(disks, contents, strict=True):
        if disk.read_only:
            continue
        try:
            disk.become(content)
        except RingzeroError as fault:
            raise StateError(
                f"{disk.disk.path or 'a disk'} was taken back in part only: {fault.message}",
                hint="free some space, perhaps, and revert again: that completes it",
            ) from fault
