"""What is asked of storage pools and volumes. Most verbs do not: what does it is loaded then."""

from __future__ import annotations

import contextlib
import os
import queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.api.action import Stream
from ringzero.api.protocol import STDOUT
from ringzero.api.values import StoragePoolSummary, VolumeSummary
from ringzero.control.host.handlers import handles
from ringzero.errors import (
    ConflictError,
    HostError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.host.files import make_directory
from ringzero.records import field_names

if TYPE_CHECKING:
    from ringzero.storage.pools import StoragePool
    from ringzero.storage.volumes import Volume

# What of an upload waits to be written, in pieces of at most 64 KiB.
_BACKLOG = 64


@handles("storage_pools")
def storage_pools(where: Path) -> list[StoragePoolSummary]:
    from ringzero.storage import pools

    return [_pool_summary(pool) for pool in pools.pools()]


@handles("define_storage_pool")
def define_storage_pool(
    where: Path, name: str, path: str, uuid: str | None, active: bool
) -> StoragePoolSummary:
    from ringzero.storage import pools

    pool = pools.define(name, Path(path), identifier=uuid, active=active)
    make_directory(pool.path)
    return _pool_summary(pool)


@handles("change_storage_pool")
def change_storage_pool(
    where: Path, name: str, active: bool | None, autostart: bool | None
) -> StoragePoolSummary:
    from ringzero.storage import pools

    return _pool_summary(pools.change(name, active=active, autostart=autostart))


@handles("undefine_storage_pool")
def undefine_storage_pool(where: Path, name: str) -> None:
    from ringzero.storage import pools

    pools.undefine(name)


@handles("volumes")
def list_volumes(where: Path, pool: str | None, name: str | None) -> list[VolumeSummary]:
    from ringzero.storage import pools, volumes

    chosen = [pools.find(pool)] if pool is not None else [p for p in pools.pools() if p.active]
    if name is not None:
        # The others are not read: a pool may have thousands.
        found = list[VolumeSummary]()
        for each in chosen:
            each.require_active()
            with contextlib.suppress(NotFoundError, InvalidValueError):
                found.append(_volume_summary(volumes.find(each, name)))
        return found
    return [_volume_summary(volume) for each in chosen for volume in volumes.volumes(each)]


@handles("create_volume")
def create_volume(
    where: Path,
    name: str,
    capacity: int | None,
    pool: str,
    format: str,
    backing: str | None,
    backing_format: str | None,
    preallocation: str | None,
    mode: int,
) -> VolumeSummary:
    from ringzero.storage import pools, volumes

    made = volumes.create(
        pools.find(pool),
        name,
        capacity,
        format,
        backing=None if backing is None else Path(backing),
        backing_format=backing_format,
        preallocation=preallocation,
        mode=mode & 0o777,
    )
    return _volume_summary(made)


@handles("clone_volume")
def clone_volume(
    where: Path,
    source: str,
    name: str,
    pool: str,
    source_pool: str | None,
    format: str | None,
    mode: int,
) -> VolumeSummary:
    from ringzero.storage import pools, volumes

    found = volumes.find(pools.find(source_pool or pool), source)
    made = volumes.clone(pools.find(pool), found, name, format, mode & 0o777)
    return _volume_summary(made)


@handles("resize_volume")
def resize_volume(where: Path, name: str, capacity: int, pool: str, shrink: bool) -> VolumeSummary:
    from ringzero.storage import pools, volumes

    volumes.resize(volumes.find(pools.find(pool), name), capacity, shrink=shrink)
    return _volume_summary(volumes.find(pools.find(pool), name))


@handles("wipe_volume")
def wipe_volume(where: Path, name: str, pool: str) -> None:
    from ringzero.storage import pools, volumes

    volumes.wipe(volumes.find(pools.find(pool), name))


@handles("remove_volume")
def remove_volume(where: Path, name: str, pool: str, force: bool) -> None:
    from ringzero.storage import pools, volumes

    found = pools.find(pool)
    volume = volumes.find(found, name)
    above = [] if force else volumes.users(found, volume)
    if above:
        raise ConflictError(
            f"the volume {above[0]!r} lies above {name!r}",
            hint="remove that one first, or say that it may be lost",
        )
    volumes.remove(volume)


@handles("put_volume")
def put_volume(
    where: Path, stream: Stream, name: str, pool: str, offset: int, length: int | None
) -> VolumeSummary:
    from ringzero.storage import pools, volumes

    found = pools.find(pool)
    upload = volumes.Upload(volumes.find(found, name), offset, length)
    with contextlib.closing(upload):
        link = _Input()
        stream.begin(link)
        try:
            while data := link.get():
                if isinstance(data, int):
                    upload.skip(data)
                else:
                    upload.write(data)
        finally:
            link.close()
    return _volume_summary(volumes.find(found, name))


@handles("get_volume")
def get_volume(
    where: Path, stream: Stream, name: str, pool: str, offset: int, length: int | None
) -> None:
    from ringzero.storage import pools, volumes

    link = _Input()
    stream.begin(link)
    for data in volumes.content(volumes.find(pools.find(pool), name), offset, length):
        if link.closed:
            return
        stream.data(STDOUT, data)


class _Input:
    """Bytes on their way from one thread to another; who sends waits for who takes."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | int | None] = queue.Queue(_BACKLOG)
        self.closed = False

    def get(self) -> bytes | int:
        """Return some bytes, or how long a hole is; b"" at the end.

        Raises RingzeroError where the sender left.
        """
        data = self._pieces.get()
        if data is None:
            raise RingzeroError("who sent the volume's bytes has left", hint="send them again")
        return data

    def send(self, data: bytes) -> None:
        """Send bytes, b"" for their end."""
        self._put(bytes(data))

    def event(self, kind: str, **content: Any) -> None:
        """Take an event: "hole", with its `length` in bytes."""
        length = content.get("length")
        if kind == "hole" and isinstance(length, int) and length > 0:
            self._put(length)

    def _put(self, piece: bytes | int) -> None:
        while not self.closed:
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=1.0)
                return

    def close(self) -> None:
        """Leave."""
        self.closed = True
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait(None)


def _pool_summary(pool: StoragePool) -> StoragePoolSummary:
    from ringzero.storage import volumes

    found: list[Volume] = []
    # One directory that cannot be read hides no other pool.
    with contextlib.suppress(HostError):
        found = volumes.volumes(pool) if pool.active else []
    capacity = available = 0
    with contextlib.suppress(OSError):
        # What is not there yet will be where its nearest directory is.
        place = next(p for p in (pool.path, *pool.path.parents) if p.is_dir())
        facts = os.statvfs(place)
        capacity, available = facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
    return {
        "name": pool.name,
        "uuid": pool.uuid,
        "path": str(pool.path),
        "active": pool.active,
        "autostart": pool.autostart,
        "volumes": len(found),
        "capacity": capacity,
        "allocation": max(0, capacity - available),
        "available": available,
    }


def _volume_summary(volume: Volume) -> VolumeSummary:
    from ringzero.storage.volumes import Volume

    facts: Any = {name: getattr(volume, name) for name in field_names(Volume)}
    facts["path"] = str(volume.path)
    return facts  # type: ignore[no-any-return]
