"""Storage pools and volumes as the actions know them, from XML and back.

What has no part in a pool or a volume of ours is told in warnings, as of domains
(`ringzero.doors.libvirt.xml.machine`).
"""

from __future__ import annotations

from typing import Any

from ringzero.api.values import StoragePoolSummary, VolumeSummary
from ringzero.disk.formatnames import format_name, qemu_format_name
from ringzero.doors.libvirt.xml.storage import (
    POOL,
    VOLUME,
    PermissionsXml,
    PoolXml,
    TimestampsXml,
    VolumeXml,
)
from ringzero.errors import ConfigError
from ringzero.records import record

# Whoever defines it, of root's or of nobody's said.
_NOBODY = (None, "-1", "0")
# virStorageVolCreateFlags.
PREALLOCATE_METADATA = 1 << 0
_DEFAULT_MODE = 0o600
# What libvirt calls plain bytes with a file system of a CD in them.
ISO = "iso"


@record
class StorageDefinition:
    """The arguments of the action that defines a pool, or makes a volume; and the warnings."""

    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()


def pool_definition(pool: PoolXml) -> StorageDefinition:
    """Return the arguments of `define_storage_pool`; raises ConfigError for no directory."""
    if pool.type != "dir" or pool.name is None or pool.path is None:
        raise ConfigError(
            [f"a storage pool of type {pool.type!r}"],
            hint="a directory: <pool type='dir'> with <name> and <target><path>",
        )
    warnings = _permission_warnings(pool.permissions)
    if pool.permissions is not None and pool.permissions.mode is not None:
        warnings.append("target/permissions/mode")
    fields: dict[str, Any] = {"name": pool.name, "path": pool.path}
    if pool.uuid is not None:
        fields["uuid"] = pool.uuid
    return StorageDefinition(fields, _told([*warnings, *POOL.unknown(pool)]))


def volume_definition(volume: VolumeXml, pool: str, flags: int = 0) -> StorageDefinition:
    """Return the arguments of `create_volume` in a pool; raises ConfigError for no file."""
    if volume.name is None or volume.type not in (None, "file"):
        raise ConfigError(
            [f"a volume of type {volume.type!r}"], hint="a file: <volume> with <name>"
        )
    if volume.capacity is None and volume.backing_path is None:
        raise ConfigError([f"volume {volume.name}: neither a capacity nor an image below it"])
    warnings = _permission_warnings(volume.permissions)
    if volume.lazy_refcounts:
        warnings.append("target/features/lazy_refcounts")
    if volume.cluster_size is not None:
        warnings.append("target/clusterSize")
    # As libvirt, whose volumes are raw unless something else is said.
    kind = format_name(volume.format or "raw")
    if kind == ISO:
        kind = "raw"
    fields: dict[str, Any] = {"name": volume.name, "pool": pool, "format": kind}
    if volume.capacity is not None:
        fields["capacity"] = volume.capacity
    if volume.backing_path is not None:
        fields["backing"] = volume.backing_path
        below = volume.backing_format
        fields["backing_format"] = None if below is None else format_name(below)
    elif kind == "raw" and volume.capacity and (volume.allocation or 0) >= volume.capacity:
        fields["preallocation"] = "falloc"
    elif flags & PREALLOCATE_METADATA:
        fields["preallocation"] = "metadata"
    mode = None if volume.permissions is None else volume.permissions.mode
    fields["mode"] = _DEFAULT_MODE if mode is None else mode & 0o777
    return StorageDefinition(fields, _told([*warnings, *VOLUME.unknown(volume)]))


def _permission_warnings(permissions: PermissionsXml | None) -> list[str]:
    if permissions is None:
        return []
    place, asked = "target/permissions", (permissions.owner, permissions.group)
    warnings = [f"{place}/owner"] if any(who not in _NOBODY for who in asked) else []
    return warnings + ([f"{place}/label"] if permissions.label is not None else [])


def _told(paths: list[str]) -> tuple[str, ...]:
    return tuple(f"{path}: not carried out" for path in paths)


def pool(summary: StoragePoolSummary) -> PoolXml:
    """Return a pool as it is; sizes are its file system's."""
    return PoolXml(
        "dir",
        summary["name"],
        summary["uuid"],
        summary["capacity"],
        summary["allocation"],
        summary["available"],
        path=summary["path"],
    )


def volume(summary: VolumeSummary, *, iso: bool = False) -> VolumeXml:
    """Return a volume as it is; its key is its path. `iso`: it has a file system of a CD."""
    owner, group = str(summary["user"]), str(summary["group"])
    return VolumeXml(
        summary["name"],
        "file",
        summary["path"],
        summary["capacity"],
        summary["allocation"],
        summary["physical"],
        summary["path"],
        ISO if iso else qemu_format_name(summary["format"]),
        PermissionsXml(summary["mode"] & 0o777, owner, group),
        TimestampsXml(mtime=f"{summary['modified']:.9f}"),
        backing_path=summary["backing"],
        backing_format=summary["backing_format"],
    )
