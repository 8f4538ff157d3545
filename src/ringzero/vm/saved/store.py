"""Named snapshots: saved, listed as a tree, removed anywhere in it, compared.

    ROOT/lock               held for the moments in which names come and go
    ROOT/NAME/              a snapshot (`ringzero.vm.saved.snapshot`)
    ROOT/blobs/DIGEST       memory and disks, each as long as a snapshot names it
    ROOT/.partial-RANDOM/   work of a process, which holds a lock on it; without one, rubbish

A snapshot knows its ancestors, nearest first. Its parent is the nearest that
is still there, so that removing one in the middle is one rename and changes no
other. Blobs have no parents at all: they go when no snapshot names them. A
process killed at any moment leaves whole snapshots and rubbish, which the next
`save`, `remove` or `sweep` takes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ringzero.config.machine import MachineConfig
from ringzero.errors import InvalidValueError, NotFoundError, RingzeroError, StateError
from ringzero.host.files import host_error, locked, make_directory
from ringzero.records import record, replace
from ringzero.settings import DATA_DIR
from ringzero.version import __version__
from ringzero.vm.saved import snapshot as snapshots
from ringzero.vm.saved.blobs import DIGEST
from ringzero.vm.saved.snapshot import MANIFEST, Manifest, Snapshot

if TYPE_CHECKING:
    from ringzero.vm.seed import Seed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_RESERVED = frozenset(("blobs", "lock"))
_PARTIAL = ".partial-"
_SECTOR = 512


@record
class Node:
    """A snapshot in the tree. `own` bytes of the disk go when it goes, `shared` ones stay."""

    snapshot: Snapshot
    parent: str | None
    own: int
    shared: int


class Saveable(Protocol):
    """A machine that can be saved; its `lineage` gets the new snapshot."""

    lineage: tuple[str, ...]
    engine_name: str

    def seed(self) -> Seed:
        """Return what it is now, to be closed."""
        ...


def check_name(name: str) -> str:
    """Return a snapshot's name; raises InvalidValueError."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidValueError(
            f"a snapshot cannot be called {name!r}",
            hint="use letters, digits, '_', '.' and '-', at most 63, beginning with a letter",
        )
    return name


class Store:
    """The snapshots below `root`, by default where RINGZERO_DATA_DIR says. From many processes."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else DATA_DIR.get() / "snapshots"
        self.blobs = self.root / "blobs"

    # ---- looking ----------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all snapshots, readable or not, sorted."""
        try:
            entries = list(self.root.iterdir())
        except OSError:
            return []
        return sorted(e.name for e in entries if _NAME.fullmatch(e.name) and e.is_dir()
                      and e.name not in _RESERVED)  # fmt: skip

    def get(self, name: str) -> Snapshot:
        """Return a snapshot; raises NotFoundError, StateError."""
        if not (self.root / check_name(name) / MANIFEST).exists():
            known = ", ".join(self.names()) or "none yet"
            raise NotFoundError(f"no snapshot called {name!r}", hint=f"there are: {known}")
        return Snapshot.open(self.root / name, self.blobs)

    def all(self) -> tuple[list[Snapshot], dict[str, RingzeroError]]:
        """Return the snapshots, oldest first, and what is wrong with those that cannot be read."""
        good: list[Snapshot] = []
        bad: dict[str, RingzeroError] = {}
        for name in self.names():
            try:
                good.append(Snapshot.open(self.root / name, self.blobs))
            except RingzeroError as fault:
                # One that is gone by now was removed by somebody else.
                if (self.root / name).exists():
                    bad[name] = fault
        return sorted(good, key=lambda s: (s.manifest.taken, s.name)), bad

    def tree(self) -> list[Node]:
        """Return all readable snapshots with their parents' names and their sizes, oldest first."""
        good, _ = self.all()
        names = {s.identifier: s.name for s in good}
        users: dict[str, int] = {}
        for snapshot in good:
            for digest in snapshot.manifest.blobs:
                users[digest] = users.get(digest, 0) + 1
        nodes = []
        for snapshot in good:
            sizes = {True: 0, False: 0}
            for digest in snapshot.manifest.blobs:
                sizes[users[digest] == 1] += _allocated(snapshot.blob(digest))
            parent = next((names[i] for i in snapshot.manifest.lineage if i in names), None)
            nodes.append(Node(snapshot, parent, sizes[True], sizes[False]))
        return nodes

    # ---- saving -----------------------------------------------------------

    def save(
        self, machine: Saveable, name: str, *, memory: bool = True, compress: bool = False
    ) -> Snapshot:
        """Save a machine as it is now; it stands still for milliseconds and runs meanwhile.

        `memory` False saves the disks only; `compress` packs memory. Raises InvalidValueError
        (the name is taken), StateError, HostError.
        """
        self._free(name)
        with machine.seed() as seed:
            saved = self.save_seed(
                seed,
                name,
                lineage=machine.lineage,
                engine=machine.engine_name,
                memory=memory,
                compress=compress,
            )
            if memory:
                saved.keep(seed.code)
        machine.lineage = (saved.identifier, *saved.manifest.lineage)
        return saved

    def save_disks(self, config: MachineConfig, name: str) -> Snapshot:
        """Save the disks of a machine that does not run."""
        from ringzero.disk import open_disk
        from ringzero.disk.instant import LiveDisk

        self._free(name)
        with contextlib.ExitStack() as closing:
            instants = []
            for disk in config.disks:
                live = LiveDisk(open_disk(disk.path, format=disk.format, read_only=True))
                closing.callback(live.close)
                instants.append(live.instant())
                closing.callback(instants[-1].close)
            return self._save(
                name,
                lambda work: snapshots.write_disks(work, name, __version__, config, instants),
            )

    def save_seed(
        self,
        seed: Seed,
        name: str,
        *,
        lineage: tuple[str, ...] = (),
        engine: str,
        memory: bool = True,
        compress: bool = False,
    ) -> Snapshot:
        """Save what a seed holds."""
        onto = next((s for i in lineage if (s := self._by_identifier(i)) is not None), None)

        def write(work: Path) -> Manifest:
            return snapshots.write(
                work, name, seed, version=__version__, lineage=lineage,
                engine=engine, memory=memory, compress=compress, onto=onto,
            )  # fmt: skip

        return self._save(name, write)

    def _by_identifier(self, identifier: str) -> Snapshot | None:
        return next((s for s in self.all()[0] if s.identifier == identifier), None)

    def _free(self, name: str) -> None:
        if os.path.lexists(self.root / check_name(name)):
            raise InvalidValueError(
                f"there is a snapshot called {name!r}",
                hint=f"choose another name, or `ringzero snapshot rm {name}`",
            )

    def _save(self, name: str, write: Callable[[Path], Manifest]) -> Snapshot:
        with self.workplace() as work:
            write(work)
            return self.commit(work, name)

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """Yield an empty directory in which a snapshot is put together; it is removed after."""
        make_directory(self.blobs)
        work = self.root / f"{_PARTIAL}{os.urandom(8).hex()}"
        try:
            # Others take it for rubbish from its making to its lock, unless they are kept out.
            with locked(self.root / "lock"):
                work.mkdir()
                held = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as fault:
            raise host_error(fault, "create", work) from fault
        try:
            yield work
        finally:
            os.close(held)
            shutil.rmtree(work, ignore_errors=True)

    def commit(self, work: Path, name: str) -> Snapshot:
        """Give a snapshot in its workplace its name, blobs first. Raises InvalidValueError."""
        snapshot = Snapshot.open(work, self.blobs)
        place = self.root / name
        with locked(self.root / "lock"):
            self._free(name)
            self._sweep()
            for digest in snapshot.manifest.blobs:
                if not (work / digest).exists() and not (self.blobs / digest).exists():
                    raise StateError(
                        "the snapshot that this one was to build upon is gone", hint="try again"
                    )
            try:
                for entry in list(work.iterdir()):
                    if DIGEST.fullmatch(entry.name):
                        entry.rename(self.blobs / entry.name)
                for directory in (self.blobs, work):
                    _sync(directory)
                work.rename(place)
                _sync(self.root)
            except OSError as fault:
                raise host_error(fault, "write", place) from fault
        return Snapshot.open(place, self.blobs)

    # ---- removing ---------------------------------------------------------

    def remove(self, name: str) -> int:
        """Remove a snapshot, whole or damaged; return how many bytes of the disk that freed.

        Its children become its parent's. Raises NotFoundError, HostError.
        """
        if check_name(name) not in self.names():
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(f"no snapshot called {name!r}", hint=f"there are: {known}")
        with locked(self.root / "lock"):
            rubbish = self.root / f"{_PARTIAL}{os.urandom(8).hex()}"
            try:
                (self.root / name).rename(rubbish)
                _sync(self.root)
            except OSError as fault:
                raise host_error(fault, "remove", self.root / name) from fault
            return self._sweep()

    def sweep(self) -> int:
        """Remove what killed processes left; return how many bytes of the disk that freed."""
        if not self.root.is_dir():
            return 0
        with locked(self.root / "lock"):
            return self._sweep()

    def _sweep(self) -> int:
        """Remove rubbish and blobs that nobody names; the lock is held."""
        for entry in self.root.glob(_PARTIAL + "*"):
            if _abandoned(entry):
                shutil.rmtree(entry, ignore_errors=True)
        good, bad = self.all()
        if bad or not self.blobs.is_dir():
            # What an unreadable snapshot names is not known: nothing is taken from it.
            return 0
        named = {digest for snapshot in good for digest in snapshot.manifest.blobs}
        freed = 0
        for entry in self.blobs.iterdir():
            if entry.name not in named:
                freed += _allocated(entry)
                with contextlib.suppress(OSError):
                    entry.unlink()
        return freed


def rename(manifest: Manifest, name: str, *, identifier: str | None = None) -> Manifest:
    """Return a manifest under another name, and with another identifier if one is given."""
    return replace(manifest, name=name, identifier=identifier or manifest.identifier)


def _abandoned(work: Path) -> bool:
    """Whether no living process holds a workplace."""
    try:
        descriptor = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * _SECTOR
    except OSError:
        return 0


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
