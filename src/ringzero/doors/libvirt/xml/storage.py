"""The XML of storage pools and volumes (libvirt's formatstorage). Sizes are in bytes."""

from __future__ import annotations

from ringzero.doors.libvirt.xml.shape import Extra, Flag, Form, One, Shape, Size, Value
from ringzero.records import record


def _octal(text: str) -> int | None:
    return int(text, 8) if text.strip() else None


MODE = Form("an octal number", _octal, lambda value: f"{value:04o}")


@record
class PermissionsXml:
    """Whose the file is; numbers of user and group, -1: whoever runs libvirt."""

    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    label: str | None = None
    extra: tuple[Extra, ...] = ()


PERMISSIONS = Shape(
    "permissions",
    PermissionsXml,
    {
        "mode": Value("mode", MODE),
        "owner": Value("owner"),
        "group": Value("group"),
        "label": Value("label"),
    },
)


@record
class PoolXml:
    """A pool of volumes; one of type dir is a folder, its `path`."""

    type: str
    name: str | None = None
    uuid: str | None = None
    capacity: int | None = None
    allocation: int | None = None
    available: int | None = None
    source_host: str | None = None
    source_path: str | None = None
    source_name: str | None = None
    path: str | None = None
    permissions: PermissionsXml | None = None
    extra: tuple[Extra, ...] = ()


POOL = Shape(
    "pool",
    PoolXml,
    {
        "type": Value("@type"),
        "name": Value("name"),
        "uuid": Value("uuid"),
        "capacity": Size("capacity", "bytes", "bytes"),
        "allocation": Size("allocation", "bytes", "bytes"),
        "available": Size("available", "bytes", "bytes"),
        "source_host": Value("source/host/@name"),
        "source_path": Value("source/dir/@path"),
        "source_name": Value("source/name"),
        "path": Value("target/path"),
        "permissions": One("target/permissions", PERMISSIONS),
    },
)


@record
class TimestampsXml:
    """When the file was used, changed, and so on, in seconds since 1970 with a fraction."""

    atime: str | None = None
    mtime: str | None = None
    ctime: str | None = None
    btime: str | None = None
    extra: tuple[Extra, ...] = ()


TIMESTAMPS = Shape(
    "timestamps",
    TimestampsXml,
    {name: Value(name) for name in ("atime", "mtime", "ctime", "btime")},
)


@record
class VolumeXml:
    """A volume; `type` is file, block, dir, network, netdir or ploop."""

    name: str | None = None
    type: str | None = None
    key: str | None = None
    capacity: int | None = None
    allocation: int | None = None
    physical: int | None = None
    path: str | None = None
    format: str | None = None
    permissions: PermissionsXml | None = None
    timestamps: TimestampsXml | None = None
    compat: str | None = None
    cluster_size: int | None = None
    lazy_refcounts: bool = False
    backing_path: str | None = None
    backing_format: str | None = None
    extra: tuple[Extra, ...] = ()


VOLUME = Shape(
    "volume",
    VolumeXml,
    {
        "type": Value("@type"),
        "name": Value("name"),
        "key": Value("key"),
        "capacity": Size("capacity", "bytes", "bytes"),
        "allocation": Size("allocation", "bytes", "bytes"),
        "physical": Size("physical", "bytes", "bytes"),
        "path": Value("target/path"),
        "format": Value("target/format/@type"),
        "permissions": One("target/permissions", PERMISSIONS),
        "timestamps": One("target/timestamps", TIMESTAMPS),
        "compat": Value("target/compat"),
        "cluster_size": Size("target/clusterSize", "bytes", "B"),
        "lazy_refcounts": Flag("target/features/lazy_refcounts"),
        "backing_path": Value("backingStore/path"),
        "backing_format": Value("backingStore/format/@type"),
    },
)
