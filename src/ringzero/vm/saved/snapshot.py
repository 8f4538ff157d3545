"""A snapshot: a machine at one instant, written down.

    NAME/manifest.json      what it is, as JSON: the configuration, readable, and
                            digests of all that follows; it has a checksum of its own
    NAME/state.json         the state tree of `ringzero.vm.state`, with memory
    ../blobs/DIGEST         memory and disks (`ringzero.vm.saved.blobs`), shared by snapshots

A snapshot is named by a rename of its whole directory, after everything in it
and every blob is on the disk: there is never half a one. Nothing in it is
trusted: each number and name is checked, and nothing is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.core.state import from_tree, to_tree
from ringzero.errors import ConfigError, NotFoundError, StateError
from ringzero.host.files import host_error
from ringzero.host.memory import MemoryBase, MemoryImage
from ringzero.records import record, replace
from ringzero.units import MIB
from ringzero.vm.saved import blobs

# What makes a machine loads with it: listing snapshots takes none of that.
if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk
    from ringzero.vm.guest.identity import Identity
    from ringzero.vm.machine import Machine
    from ringzero.vm.seed import Seed
    from ringzero.vm.state import MachineState

# Raised whenever a reader of before would misread what is written now. What a
# newer ringzero reads of older formats, it says in docs/snapshots.md.
FORMAT = 3
MANIFEST, STATE = "manifest.json", "state.json"
# The longest manifest and state tree that are read; real ones have kilobytes, and up to
# some megabytes when the consoles' ports were full.
MAX_MANIFEST, MAX_STATE = 4 * MIB, 256 * MIB
# As many ancestors are remembered.
MAX_LINEAGE = 1000
_IDENTIFIER = re.compile(r"[0-9a-f]{32}")


@record
class MemoryPart:
    """The blob that is mapped, and the delta that is laid over it, if there is one.

    A `packed` blob (`ringzero.vm.saved.packed`) is not mapped but unpacked.
    """

    size: int
    base: str
    delta: str | None
    packed: bool


@record
class DiskPart:
    """A disk: its content in a blob; or, of a read-only one, only where it is."""

    blob: str | None
    path: str
    format: str | None
    read_only: bool
    size: int


@record
class Manifest:
    """What a snapshot is. `lineage` holds the identifiers of its ancestors, nearest first.

    `taken` is UTC in nanoseconds, `engine` the CPU engine whose state it has, `state` the
    SHA-256 of the state file; the last two are None without memory. `blobs` gives the size of
    each file that belongs to it.
    """

    format: int
    version: str
    identifier: str
    name: str
    taken: int
    lineage: tuple[str, ...]
    config: dict[str, Any]
    engine: str | None
    state: str | None
    memory: MemoryPart | None
    disks: tuple[DiskPart, ...]
    blobs: dict[str, int]

    def to_bytes(self) -> bytes:
        """Return the manifest as a file."""
        tree = to_tree(self)
        return json.dumps({**tree, "checksum": _checksum(tree)}, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: Path | str) -> Manifest:
        """Read a manifest; raises StateError for anything amiss."""
        try:
            tree = json.loads(data)
            checksum = tree.pop("checksum")
            version = tree["format"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise StateError(f"{where} is no manifest of a snapshot", path=where) from fault
        if version not in (1, 2, FORMAT):
            raise StateError(
                f"{where} has format {version!r}, this ringzero reads 1 to {FORMAT}",
                hint="use the ringzero that wrote it, or a newer one",
                path=where,
            )
        if checksum != _checksum(tree):
            raise StateError(f"{where} is damaged: its checksum does not match", path=where)
        if version == 1:
            tree = _from_format_1(tree)
        tree = {**tree, "format": FORMAT}
        made: Manifest = from_tree(cls, tree, str(where))
        made._check(where)
        return made

    def _check(self, where: Path | str) -> None:
        digests = [d.blob for d in self.disks if d.blob is not None]
        if self.memory is not None:
            digests += [d for d in (self.memory.base, self.memory.delta) if d is not None]
        config = self.machine_config()
        sound = (
            all(_IDENTIFIER.fullmatch(i) for i in (self.identifier, *self.lineage))
            and len(self.lineage) <= MAX_LINEAGE
            and all(blobs.DIGEST.fullmatch(d) for d in digests)
            and self.blobs.keys() == set(digests)
            and all(0 <= size < 1 << 62 for size in self.blobs.values())
            and (self.memory is None) == (self.state is None) == (self.engine is None)
            and len(self.disks) == len(config.disks)
            and all(part.blob is not None or part.read_only for part in self.disks)
            and all(self.blobs[d.blob] == d.size for d in self.disks if d.blob is not None)
        )
        if sound and self.memory is not None:
            sound = self.memory.size == config.memory
            sound = sound and (
                self.memory.packed or self.memory.size == self.blobs[self.memory.base]
            )
        if not sound:
            raise StateError(f"{where} contradicts itself", path=where)

    def machine_config(self) -> MachineConfig:
        """Return the configuration; raises StateError."""
        try:
            return config_from_tree(self.config)
        except ConfigError as fault:
            raise StateError(f"the snapshot's configuration is none: {fault}") from fault


def _from_format_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 1, in which no memory was packed, as one of format 2."""
    memory = tree.get("memory")
    if isinstance(memory, dict):
        memory = {**memory, "packed": False}
    return {**tree, "memory": memory}


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


class Snapshot:
    """A snapshot in a directory; `blobs` is where its blobs lie."""

    def __init__(self, path: Path, blob_directory: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._blobs = blob_directory
        # What the engine of the machine that was saved just now hands on to copies in this process.
        self._code: Any = None

    @classmethod
    def open(cls, path: Path | str, blob_directory: Path | None = None) -> Snapshot:
        """Open a snapshot's directory. Raises NotFoundError, StateError, HostError."""
        path = Path(path)
        manifest = Manifest.from_bytes(_read_limited(path / MANIFEST, MAX_MANIFEST), path)
        if manifest.name != path.name and not path.name.startswith("."):
            raise StateError(f"{path} holds the snapshot {manifest.name!r}", path=path)
        return cls(path, blob_directory or path.parent / "blobs", manifest)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def identifier(self) -> str:
        return self.manifest.identifier

    def keep(self, code: Any) -> None:
        """Let machines that are restored by this object share translated code."""
        if code is not None:
            self._code = code.hold()
            weakref.finalize(self, self._code.close)

    def blob(self, digest: str) -> Path:
        """Return the path of one of its blobs."""
        return self._blobs / digest

    def state(self) -> MachineState | None:
        """Return the state tree, or None without memory. Raises StateError."""
        from ringzero.vm.state import MachineState

        if self.manifest.state is None:
            return None
        data = _read_limited(self.path / STATE, MAX_STATE)
        if hashlib.sha256(data).hexdigest() != self.manifest.state:
            raise StateError(f"the state of {self.name} is damaged", path=self.path / STATE)
        try:
            return MachineState(json.loads(data))
        except (ValueError, RecursionError) as fault:
            raise StateError(f"the state of {self.name} is no JSON") from fault

    def check(self) -> list[str]:
        """Read everything; return what is wrong, in words, or nothing."""
        faults = []
        try:
            self.state()
        except (StateError, NotFoundError) as fault:
            faults.append(fault.message)
        for digest, size in self.manifest.blobs.items():
            path = self.blob(digest)
            if not path.is_file():
                faults.append(f"{path} is missing")
            elif path.stat().st_size != size:
                faults.append(f"{path} has {path.stat().st_size} bytes, not {size}")
            elif blobs.digest_file(path) != digest:
                faults.append(f"{path} is damaged: its content is not what its name says")
        for part in self.manifest.disks:
            if part.blob is None and not Path(part.path).exists():
                faults.append(f"the read-only disk {part.path} is missing")
        return faults

    def memory(self) -> MemoryImage:
        """Return the memory, to be mapped and closed. Raises StateError, HostError."""
        part = self.manifest.memory
        if part is None:
            raise StateError(
                f"{self.name} was saved without memory",
                hint="start it: its guest boots from its disks",
            )
        changed = blobs.read_delta(self.blob(part.delta), part.size) if part.delta else ()
        return MemoryImage(self.memory_base(part), changed)

    def memory_base(self, part: MemoryPart) -> MemoryBase:
        """Return what the memory is without its delta, to be released. StateError, HostError."""
        path = self.blob(part.base)
        if part.packed:
            from ringzero.vm.saved import packed

            return packed.read(path, part.size)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as fault:
            raise host_error(fault, "open", path) from fault
        base = MemoryBase(fd, part.size, owned=False)
        # What is missing at the end would be a bus error at the first touch.
        if os.fstat(fd).st_size != part.size:
            base.release()
            raise StateError(f"the memory of {self.name} is cut short", path=path)
        return base

    def _read_ahead(self, base: MemoryBase) -> None:
        """Have the host read what machines touch first, as far as that is known."""
        from ringzero.vm.saved import workingset

        part = self.manifest.memory
        if part is not None and not part.packed:
            workingset.prefetch(self.path / workingset.FILE, base.fd, part.size)

    def seed(self) -> Seed:
        """Return the seed from which machines grow; the caller closes it."""
        from ringzero.vm.seed import Seed

        state = self.state()
        if state is None:
            raise StateError(f"{self.name} was saved without memory")
        with contextlib.ExitStack() as undo:
            image = self.memory()
            undo.callback(image.close)
            self._read_ahead(image.base)
            config = replace(self.manifest.machine_config(), engine=self.manifest.engine or "auto")
            code = self._code.hold() if self._code is not None else None
            seed = Seed(config, state, image, self.disks(), self.manifest.taken, code)
            undo.pop_all()
            return seed

    def _sound_blob(self, digest: str) -> Path:
        """Return a blob's path when it is as long as it must be. Raises StateError, HostError."""
        path = self.blob(digest)
        try:
            size = path.stat().st_size
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
        if size != self.manifest.blobs[digest]:
            raise StateError(f"{path} is damaged: it has another size", path=path)
        return path

    def disks(self) -> list[InstantDisk]:
        """Return the disks' content; the caller closes each. Raises StateError, DiskError."""
        from ringzero.disk import open_disk
        from ringzero.disk.instant import LiveDisk

        disks: list[InstantDisk] = []
        with contextlib.ExitStack() as undo:
            for part in self.manifest.disks:
                if part.blob is not None:
                    disk = open_disk(self._sound_blob(part.blob), format="raw", read_only=True)
                else:
                    disk = open_disk(part.path, format=part.format, read_only=True)
                live = LiveDisk(disk)
                # Its content at this instant is all of it: nobody writes to it.
                instant = live.instant()
                live.close()
                instant = instant if part.read_only else _writable(instant)
                undo.callback(instant.close)
                if instant.size != part.size:
                    raise StateError(f"the disk {part.path} has another size than it had")
                disks.append(instant)
            undo.pop_all()
        return disks

    def start(self, identity: Identity | None = None, *, engine: Any = None) -> Machine:
        """Return a machine that goes on from here, started; use it in a `with` statement.

        A snapshot without memory boots, on its disks as they were. Raises StateError
        where this host cannot honour it.
        """
        machine = self.restore(identity, engine=engine)
        try:
            machine.start()
        except BaseException:
            machine.stop()
            raise
        return machine

    def restore(self, identity: Identity | None = None, *, engine: Any = None) -> Machine:
        """Return a paused machine that is a copy of the one that was saved."""
        from ringzero.vm.build import assemble
        from ringzero.vm.guest.identity import Identity
        from ringzero.vm.machine import Machine
        from ringzero.vm.saved import workingset

        manifest = self.manifest
        if engine is not None and manifest.engine not in (None, engine.name):
            raise StateError(
                f"{self.name} was saved on the engine {manifest.engine!r}, not {engine.name!r}",
                hint="restore it on the engine that it was saved on",
            )
        if manifest.memory is None:
            identity = identity or Identity()
            config = identity.adopt(manifest.machine_config())
            machine = Machine.of(assemble(config, identity=identity, disks=self.disks()))
        else:
            with self.seed() as seed:
                machine = Machine.from_seed(seed, identity, engine=engine)
            first_pages = self.path / workingset.FILE
            if not manifest.memory.packed and not first_pages.exists():
                workingset.watch(machine.control, machine.memory.host, first_pages)
        machine.lineage = (manifest.identifier, *manifest.lineage)
        return machine


def _writable(instant: InstantDisk) -> InstantDisk:
    """Return the instant of a writable disk with the content of a read-only one."""
    from ringzero.disk.instant import LiveDisk
    from ringzero.disk.overlay import OverlayDisk

    live = LiveDisk(OverlayDisk(instant))
    grown = live.instant()
    live.close()
    return grown


def _read_limited(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as fault:
        raise NotFoundError(f"{path} does not exist", path=path) from fault
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > limit:
        raise StateError(f"{path} is longer than any that ringzero writes", path=path)
    return data


def write(
    directory: Path,
    name: str,
    seed: Seed,
    *,
    version: str,
    lineage: tuple[str, ...] = (),
    engine: str,
    memory: bool = True,
    compress: bool = False,
    onto: Snapshot | None = None,
) -> Manifest:
    """Write a snapshot of `seed` to an empty directory, blobs and all; return its manifest.

    `onto` is an earlier snapshot: where the memories differ in little, only that is written.
    `compress` packs memory that is written whole.
    Raises HostError. Nothing here is a snapshot before the caller gives it its name.
    """
    parts, sizes = _write_disks(directory, seed.config, seed.disks)
    manifest = Manifest(
        FORMAT, version, os.urandom(16).hex(), name, seed.taken, lineage[:MAX_LINEAGE],
        config_to_tree(seed.config), None, None, None, parts, sizes,
    )  # fmt: skip
    if memory:
        part = _write_memory(directory, seed.memory, onto, compress)
        for digest in filter(None, (part.base, part.delta)):
            written = directory / digest
            place = written if written.exists() or onto is None else onto.blob(digest)
            sizes[digest] = place.stat().st_size
        state = json.dumps(seed.state.tree, separators=(",", ":")).encode()
        write_file(directory / STATE, state)
        digest = hashlib.sha256(state).hexdigest()
        manifest = replace(manifest, engine=engine, state=digest, memory=part)
    write_file(directory / MANIFEST, manifest.to_bytes())
    return manifest


def write_disks(
    directory: Path, name: str, version: str, config: MachineConfig, disks: Sequence[InstantDisk]
) -> Manifest:
    """Write a snapshot of a machine's disks alone. Raises HostError."""
    parts, sizes = _write_disks(directory, config, disks)
    manifest = Manifest(
        FORMAT, version, os.urandom(16).hex(), name, time.time_ns(), (),
        config_to_tree(config), None, None, None, parts, sizes,
    )  # fmt: skip
    write_file(directory / MANIFEST, manifest.to_bytes())
    return manifest


def _write_disks(
    directory: Path, config: MachineConfig, disks: Sequence[InstantDisk]
) -> tuple[tuple[DiskPart, ...], dict[str, int]]:
    sizes: dict[str, int] = {}
    parts = []
    for disk, described in zip(disks, config.disks, strict=True):
        digest = None
        if not described.read_only:
            digest = blobs.write_blob(directory, disk.size, blobs.disk_blocks(disk))
            sizes[digest] = disk.size
        path = str(described.path.absolute())
        parts.append(DiskPart(digest, path, described.format, described.read_only, disk.size))
    return tuple(parts), sizes


def _write_memory(
    directory: Path, image: MemoryImage, onto: Snapshot | None, compress: bool
) -> MemoryPart:
    earlier = onto.manifest.memory if onto is not None else None
    size = image.size
    if onto is not None and earlier is not None and earlier.size == size:
        base = onto.memory_base(earlier)
        try:
            earlier_blocks = blobs.file_blocks(base.fd, size)
            pages = blobs.differences(size, blobs.memory_blocks(image), earlier_blocks)
            delta = blobs.write_delta(directory, size, pages)
        finally:
            base.release()
        if delta is not None:
            return MemoryPart(size, earlier.base, delta, earlier.packed)
    blocks = blobs.memory_blocks(image)
    if not compress:
        return MemoryPart(size, blobs.write_blob(directory, size, blocks), None, packed=False)
    from ringzero.vm.saved import packed

    return MemoryPart(size, packed.write(directory, size, blocks), None, packed=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file, safely on the disk. Raises HostError."""
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
