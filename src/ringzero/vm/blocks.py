"""A running machine's disks at work: block jobs, and exports to other programs.

Which image a disk is becomes the machine's description's business when a job has it be
another: `noted` is given the new description, and writes it down durably, before the guest
writes to the new image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.config.devices.disk import DiskConfig
from ringzero.config.machine import MachineConfig
from ringzero.disk import Disk, create_disk, open_disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs import chain
from ringzero.disk.jobs.backup import Backup
from ringzero.disk.jobs.commit import ActiveCommit, LowerCommit
from ringzero.disk.jobs.contract import Job, JobInfo, JobOptions, Lock, Owner, State
from ringzero.disk.jobs.listing import Jobs
from ringzero.disk.jobs.mirror import Mirror, Sync
from ringzero.disk.jobs.stream import Stream
from ringzero.errors import InvalidValueError, NotFoundError
from ringzero.records import record, replace

if TYPE_CHECKING:
    from ringzero.disk.nbd.server import Export, Server
    from ringzero.vm.build import Assembly

# QEMU's words for what a job does, and which need a target.
KINDS = ("mirror", "backup", "commit", "stream")
_TO_TARGETS = ("mirror", "backup")
SYNCS = tuple(sync.value for sync in Sync)
# What is asked of a job by one word.
ORDERS = ("pause", "resume", "cancel", "abort", "complete", "finalize", "dismiss")


@record
class Wish:
    """A job as it is asked for.

    `target` is the new image of a mirror or a backup, of `format`; `existing` takes one that is
    there, and is written over. `sync` is for a mirror. `top` and `base` name layers of a commit
    ("": the topmost, and the one below `top`); for a stream, `base` is the first that stays
    ("": none). `pivot` completes it as soon as it is ready.
    """

    kind: str
    target: str = ""
    format: str = ""
    existing: bool = False
    sync: str = "full"
    top: str = ""
    base: str = ""
    name: str = ""
    speed: int = 0
    pivot: bool = False
    auto_finalize: bool = True
    auto_dismiss: bool = False

    @property
    def moves(self) -> bool:
        """Whether it is for the disk to become another image."""
        return self.pivot or (self.kind == "commit" and not self.top)

    def check(self) -> None:
        """Raise InvalidValueError for what makes no sense in itself."""
        if self.kind not in KINDS:
            raise InvalidValueError(
                f"no block job is called {self.kind[:64]!r}", hint=", ".join(KINDS)
            )
        if bool(self.target) != (self.kind in _TO_TARGETS):
            raise InvalidValueError(
                f"a {self.kind} " + ("has no target" if self.target else "needs a target"),
                hint="a mirror or a backup goes to a new image",
            )
        if self.target and not Path(self.target).is_absolute():
            raise InvalidValueError(f"the target {self.target!r} is no absolute path")
        if self.sync not in SYNCS or (self.sync != "full" and self.kind != "mirror"):
            raise InvalidValueError(
                f"a {self.kind} with sync {self.sync[:64]!r} is not known",
                hint=f"for a mirror: {', '.join(SYNCS)}",
            )
        if self.pivot and self.kind in ("backup", "stream"):
            raise InvalidValueError(f"a {self.kind} ends by itself", hint="leave pivot out")


class Blocks:
    """Block jobs and exports of the machine of `parts`.

    `on_change` hears of every change of a job's state, on any thread.
    """

    def __init__(self, parts: Assembly) -> None:
        self._parts = parts
        self._lock: Lock = threading.RLock()
        self._noted: Callable[[], None] | None = None
        self.on_change: Callable[[Job], None] = lambda job: None
        self.jobs = Jobs()
        self._numbers: dict[str, int] = {}
        self._server: Server | None = None
        self._serving = threading.Lock()

    def keep(self, lock: Lock, noted: Callable[[], None]) -> None:
        """Have `noted` called when the description has another image, to write it down.

        `lock` is what its owner has while the machine pauses, and while it notes; see
        `ringzero.disk.jobs.contract.Owner`.
        """
        self._lock, self._noted = lock, noted

    def live(self, number: int) -> LiveDisk:
        """Return a disk of the machine. Raises NotFoundError."""
        disks = self._parts.disks
        if not 0 <= number < len(disks):
            raise NotFoundError(f"the machine has no disk {number}", hint=f"it has {len(disks)}")
        return disks[number]

    # ---- jobs --------------------------------------------------------------

    def start(self, number: int, wish: Wish) -> JobInfo:
        """Start a job on a disk. Raises InvalidValueError, NotFoundError, DiskError, others."""
        wish.check()
        live = self.live(number)
        name = wish.name or self.jobs.free_name(f"{wish.kind}-disk{number}")

        def change(job: Job) -> None:
            self.on_change(job)
            if wish.pivot and job.state is State.READY:
                job.complete()

        options = JobOptions(wish.speed, wish.auto_finalize, wish.auto_dismiss, change)
        owner = _DiskOwner(self._parts, number, self._lock, self._noted)
        job = self.jobs.start(name, lambda: _make(live, name, wish, owner, options))
        self._numbers[name] = number
        return job.info()

    def opened(self, number: int, wish: Wish) -> list[Path]:
        """Return the files that a job will open anew."""
        layers = self.live(number).disk.chain()
        if wish.target:
            return [Path(wish.target)]
        if wish.kind != "commit":
            return []
        top, base = _layers_of(layers, wish)
        changed = [base, *([top - 1] if top > 1 else [])]
        return [path for n in changed if n < len(layers) and (path := layers[n].path) is not None]

    def number(self, name: str) -> int:
        """Return the disk of a job."""
        return self._numbers.get(name, 0)

    def infos(self) -> list[tuple[int, JobInfo]]:
        """Return all jobs, each behind the number of its disk."""
        return [(self.number(info.id), info) for info in self.jobs.infos()]

    def order(self, name: str, order: str) -> JobInfo:
        """Ask something of a job: one of ORDERS. Raises NotFoundError, ConflictError."""
        job = self.jobs.find(name)
        if order not in ORDERS:
            raise InvalidValueError(
                f"nothing called {order[:64]!r} can be asked of a job", hint=", ".join(ORDERS)
            )
        if order == "abort":
            job.cancel(force=True)
        else:
            getattr(job, order)()
        return job.info()

    # ---- exports -----------------------------------------------------------

    @property
    def server(self) -> Server:
        """The NBD server of the machine; it is made at the first use."""
        with self._serving:
            if self._server is None:
                from ringzero.disk.nbd.server import Server

                self._server = Server()
            return self._server

    @property
    def exports(self) -> list[Export]:
        """The disks that are exported."""
        return [] if self._server is None else self._server.exports

    def export(
        self, number: int, name: str, *, writable: bool, path: str = "", port: int | None = None
    ) -> Export:
        """Offer a disk to clients, on the socket that is given, and those that there are.

        Raises ConflictError, HostError, InvalidValueError, NotFoundError.
        """
        from ringzero.disk.nbd.server import Export

        export = Export(name, self.live(number), not writable)
        server = self.server
        if not path and port is None and not server.listening:
            raise InvalidValueError(
                "nobody could reach the export", hint="say a Unix socket, or a port"
            )
        server.add(export)
        try:
            if path:
                server.listen_unix(Path(path))
            elif port is not None:
                server.listen_tcp(port=port)
        except BaseException:
            server.remove(name)
            raise
        export.live.on_close.append(self.stop_exports)
        return export

    def unexport(self, name: str) -> None:
        """Offer a disk no longer. Raises NotFoundError."""
        live = next((export.live for export in self.exports if export.name == name), None)
        self.server.remove(name)
        if live is not None:
            live.on_close.remove(self.stop_exports)

    def leave(self) -> None:
        """In a forked process: let go of the sockets, which stay the original's."""
        if self._server is not None:
            self._server.leave()

    def number_of(self, live: LiveDisk) -> int:
        """Return which disk of the machine this is."""
        return self._parts.disks.index(live)

    def stop_exports(self) -> None:
        """Close the server, with everything that it offers."""
        with self._serving:
            server, self._server = self._server, None
        if server is not None:
            server.close()
        for live in self._parts.disks:
            while self.stop_exports in live.on_close:
                live.on_close.remove(self.stop_exports)


class _DiskOwner(Owner):
    """The machine as who has a disk."""

    def __init__(
        self, parts: Assembly, number: int, lock: Lock, noted: Callable[[], None] | None
    ) -> None:
        super().__init__()
        self.lock = lock
        self._parts = parts
        self._number = number
        self._noted = noted

    def moved(self, path: str, format: str) -> None:
        before = self._parts.config
        self._parts.config = _with_disk(before, self._number, path, format)
        if self._noted is None:
            return
        try:
            self._noted()
        except BaseException:
            self._parts.config = before
            self._noted()
            raise


def _with_disk(config: MachineConfig, number: int, path: str, format: str) -> MachineConfig:
    """Return a description in which a disk is another image."""

    def change(n: int, device: Any) -> Any:
        if device.kind != DiskConfig.kind or n != number:
            return device
        return replace(device, path=Path(path).absolute(), format=format)

    return config.map_devices(change)


def _make(live: LiveDisk, name: str, wish: Wish, owner: Owner, options: JobOptions) -> Job:
    """Return the job, not started."""
    layers = live.disk.chain()
    if wish.kind == "stream":
        base = chain.find_layer(layers, wish.base) if wish.base else None
        return Stream(live, base, name, options=options)
    if wish.kind == "commit":
        top, lowest = _layers_of(layers, wish)
        if not top:
            return ActiveCommit(live, lowest, name, owner=owner, options=options)
        return LowerCommit(live, top, lowest, name, options=options)
    return _make_copy(live, name, wish, owner, options)


def _layers_of(layers: list[Disk], wish: Wish) -> tuple[int, int]:
    """Return the layers from which and to which is committed."""
    top = chain.find_layer(layers, wish.top) if wish.top else 0
    return top, chain.find_layer(layers, wish.base) if wish.base else top + 1


def _make_copy(live: LiveDisk, name: str, wish: Wish, owner: Owner, options: JobOptions) -> Job:
    """Return a job that goes to a target, which is made first where it is not there."""
    path, sync = Path(wish.target), Sync(wish.sync)
    below = live.disk.backing if sync is Sync.TOP else None
    if sync is Sync.TOP and (below is None or below.path is None):
        raise InvalidValueError("the disk has no backing file", hint="mirror all of it")

    def scrap() -> None:
        if not wish.existing:
            path.unlink(missing_ok=True)

    if not wish.existing:
        create_disk(
            path,
            wish.format or "qcow2",
            live.size,
            backing=None if below is None else str(below.path),
            backing_format=None if below is None else below.format,
        )
    try:
        target = open_disk(path, wish.format or (None if wish.existing else "qcow2"))
    except BaseException:
        scrap()
        raise
    # What stood there before is written over; of an overlay, it may be what belongs there.
    blank = not wish.existing
    if wish.kind == "backup":
        return Backup(live, target, name, blank=blank, on_failure=scrap, options=options)
    return Mirror(
        live, target, name, sync=sync, blank=blank, owner=owner, on_failure=scrap, options=options
    )
