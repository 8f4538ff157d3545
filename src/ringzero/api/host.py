"""What can be asked of the host: what belongs to no machine, or to none yet."""

from __future__ import annotations

from typing import Annotated, Any

from ringzero.api.action import Actions, Scope, Stream, action
from ringzero.api.values import (
    EventKind,
    ImageSummary,
    MachineSummary,
    NetworkSummary,
    SnapshotFacts,
    SnapshotSummary,
    StoragePoolSummary,
    VolumeSummary,
)

# How long a volume may take to be made, copied or overwritten, in seconds: 200 GB on a slow disk.
_VOLUME = 3600.0
# How long a snapshot's memory and disks may take to be read or written, in seconds: as long.
_SNAPSHOT = 3600.0
# How long an image may take to be made, or pulled, in seconds.
_IMAGE = 3600.0
_POOL_HELP = "the storage pool's name"


class HostActions(Actions):
    """The actions of the host."""

    scope = Scope.HOST

    @action(reads=True)
    def machines(
        self, status: Annotated[str | None, "only those in this state"] = None
    ) -> list[MachineSummary]:
        """List the machines, those that ended too, by name."""

    @action(events=(EventKind.CREATED,), patience=_IMAGE)
    def define(
        self,
        config: Annotated[dict[str, Any], "the fields of the machine's description"],
        name: Annotated[str | None, "its name; null: a free one"] = None,
        image: Annotated[
            str, "the guest image that its kernel is from; made or pulled, where no kernel is given"
        ] = "",
        command: Annotated[
            list[str] | None, "what runs in the guest, and ends with it; null: what the image says"
        ] = None,
        timeout: Annotated[float | None, "seconds after which it is ended"] = None,
        serial: Annotated[str | None, "a file for what its serial line says"] = None,
        remove: Annotated[bool, "remove it at its end"] = False,
        uuid: Annotated[str | None, "its UUID; null: one is made"] = None,
    ) -> str:
        """Describe a machine without starting it; return its name."""

    @action(reads=True)
    def images(self) -> list[ImageSummary]:
        """List the guest images in the cache."""

    @action(reads=True)
    def snapshots(self) -> list[SnapshotSummary]:
        """List the snapshots that can be read, parents first."""

    @action(patience=_SNAPSHOT)
    def remove_snapshot(self, name: Annotated[str, "the snapshot's name"]) -> int:
        """Remove a snapshot; return how many bytes of the disk that freed."""

    @action(patience=_SNAPSHOT)
    def export_snapshot(
        self,
        name: Annotated[str, "the snapshot's name"],
        path: Annotated[str, "the file to write, absolute"],
    ) -> int:
        """Write a snapshot to one file, to be carried elsewhere; return its size in bytes."""

    @action(patience=_SNAPSHOT)
    def import_snapshot(
        self,
        path: Annotated[str, "the file that was exported, absolute"],
        name: Annotated[str | None, "the snapshot's name; null: as it was called"] = None,
    ) -> SnapshotFacts:
        """Make a snapshot of a file that was exported."""

    @action(reads=True)
    def networks(self) -> list[NetworkSummary]:
        """List the networks by name, with the machines that are on them."""

    @action()
    def create_network(
        self,
        name: Annotated[str, "its name"],
        mode: Annotated[str, "nat, isolated or open"] = "nat",
        subnet: Annotated[str, 'as 10.1.2.0/24; "": a free one'] = "",
        range: Annotated[str, 'FIRST-LAST that DHCP gives out; "": all but the first two'] = "",
        leases: Annotated[list[str] | None, "fixed addresses: MAC=ADDRESS"] = None,
        host: Annotated[bool, "whether machines reach the host"] = True,
        allow: Annotated[list[str] | None, "the only places they reach; null: all"] = None,
    ) -> NetworkSummary:
        """Make a network that machines can join by its name."""

    @action()
    def describe_network(
        self,
        name: Annotated[str, "the network's name"],
        active: Annotated[bool | None, "whether machines may join it; null: as it is"] = None,
        autostart: Annotated[
            bool | None, "whether it becomes active with `ringzero serve`; null: as it is"
        ] = None,
        uuid: Annotated[str | None, "its UUID; null: as it is"] = None,
        metadata: Annotated[
            dict[str, Any] | None, "texts by key, each one's own; one that is null goes"
        ] = None,
    ) -> NetworkSummary:
        """Note something of a network; machines that are on it stay."""

    @action()
    def update_network(
        self,
        name: Annotated[str, "the network's name"],
        range: Annotated[
            str | None, 'FIRST-LAST that DHCP gives out; "": all but the first two; null: as it is'
        ] = None,
        leases: Annotated[
            list[str] | None, "all fixed addresses: MAC=ADDRESS; null: as they are"
        ] = None,
    ) -> NetworkSummary:
        """Change who gets which address; machines that are on the network keep theirs."""

    @action()
    def remove_network(self, name: Annotated[str, "the network's name"]) -> None:
        """Remove a network that no machine is on."""

    @action(reads=True)
    def storage_pools(self) -> list[StoragePoolSummary]:
        """List the storage pools, directories whose files are volumes, by name."""

    @action()
    def define_storage_pool(
        self,
        name: Annotated[str, "its name"],
        path: Annotated[str, "the directory, absolute"],
        uuid: Annotated[str | None, "its UUID; null: one is made"] = None,
        active: Annotated[bool, "whether it has volumes from now on"] = True,
    ) -> StoragePoolSummary:
        """Define a storage pool, or define it anew; its directory is made where it is missing."""

    @action()
    def change_storage_pool(
        self,
        name: Annotated[str, _POOL_HELP],
        active: Annotated[bool | None, "whether it has volumes; null: as it is"] = None,
        autostart: Annotated[
            bool | None, "whether it becomes active with `ringzero serve`; null: as it is"
        ] = None,
    ) -> StoragePoolSummary:
        """Make a storage pool active, or not."""

    @action()
    def undefine_storage_pool(self, name: Annotated[str, _POOL_HELP]) -> None:
        """Forget a storage pool that is not active; its directory and files stay."""

    @action(reads=True)
    def volumes(
        self,
        pool: Annotated[str | None, "the storage pool's name; null: all that are active"] = None,
        name: Annotated[str | None, "only what is called so; null: all"] = None,
    ) -> list[VolumeSummary]:
        """List the volumes of storage pools, by name."""

    @action(patience=_VOLUME)
    def create_volume(
        self,
        name: Annotated[str, "its name: a file's"],
        capacity: Annotated[int | None, "in bytes; null: its backing image's"] = None,
        pool: Annotated[str, _POOL_HELP] = "default",
        format: Annotated[str, "as `ringzero disk create` has them"] = "qcow2",
        backing: Annotated[str | None, "the path of the image below it"] = None,
        backing_format: Annotated[str | None, "that one's format; null: found by content"] = None,
        preallocation: Annotated[str | None, "off, metadata, falloc or full"] = None,
        mode: Annotated[int, "the file's permissions"] = 0o600,
    ) -> VolumeSummary:
        """Make a volume."""

    @action(patience=_VOLUME)
    def clone_volume(
        self,
        source: Annotated[str, "the volume whose content it gets"],
        name: Annotated[str, "its name: a file's"],
        pool: Annotated[str, _POOL_HELP] = "default",
        source_pool: Annotated[str | None, "the storage pool of the other; null: the same"] = None,
        format: Annotated[str | None, "its format; null: the other's"] = None,
        mode: Annotated[int, "the file's permissions"] = 0o600,
    ) -> VolumeSummary:
        """Make a volume with the content of another."""

    @action(patience=_VOLUME)
    def resize_volume(
        self,
        name: Annotated[str, "the volume's name"],
        capacity: Annotated[int, "in bytes"],
        pool: Annotated[str, _POOL_HELP] = "default",
        shrink: Annotated[bool, "also where data is cut off"] = False,
    ) -> VolumeSummary:
        """Give a volume that is not in use another capacity."""

    @action(patience=_VOLUME)
    def wipe_volume(
        self,
        name: Annotated[str, "the volume's name"],
        pool: Annotated[str, _POOL_HELP] = "default",
    ) -> None:
        """Overwrite what a volume that is not in use holds."""

    @action()
    def remove_volume(
        self,
        name: Annotated[str, "the volume's name"],
        pool: Annotated[str, _POOL_HELP] = "default",
        force: Annotated[bool, "also where other volumes lie above it"] = False,
    ) -> None:
        """Remove a volume that is not in use."""

    @action(streams=True)
    def put_volume(
        self,
        stream: Stream,
        name: Annotated[str, "the volume's name"],
        pool: Annotated[str, _POOL_HELP] = "default",
        offset: Annotated[int, "where in the file they begin"] = 0,
        length: Annotated[int | None, "how many come; null: until their end"] = None,
    ) -> VolumeSummary:
        """Write bytes, which come on stream 0, into the file of a volume that is not in use."""

    @action(streams=True)
    def get_volume(
        self,
        stream: Stream,
        name: Annotated[str, "the volume's name"],
        pool: Annotated[str, _POOL_HELP] = "default",
        offset: Annotated[int, "where in the file they begin"] = 0,
        length: Annotated[int | None, "how many; null: until the file's end"] = None,
    ) -> None:
        """Send the bytes of a volume's file on stream 1."""

    @action(streams=True, reads=True)
    def events(self, stream: Stream) -> None:
        """Tell what happens to machines, on stream 1, a line of JSON each, until asked to end."""
