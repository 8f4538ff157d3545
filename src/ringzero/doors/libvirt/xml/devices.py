"""Devices in the XML of a domain (libvirt's formatdomain, "Devices")."""

from __future__ import annotations

from typing import Any

from ringzero.doors.libvirt.xml.shape import (
    NUMBER,
    YES_NO,
    Extra,
    Flag,
    Form,
    Many,
    Shape,
    Value,
)
from ringzero.doors.libvirt.xml.tree import parse
from ringzero.errors import InvalidValueError
from ringzero.records import record

# The secret of a screen is read, and told to nobody who asks for the XML.
_SECRET = Form("a text", lambda text: text or None, lambda value: "")


@record
class DiskXml:
    """A disk: a file, a device of the host, a volume of a pool, or what a network has.

    `type` says which of the sources is meant, `device` is disk, cdrom, floppy or lun. Without a
    source a drive is empty.
    """

    type: str = "file"
    device: str = "disk"
    driver: str | None = None
    format: str | None = None
    cache: str | None = None
    io: str | None = None
    discard: str | None = None
    file: str | None = None
    dev: str | None = None
    pool: str | None = None
    volume: str | None = None
    protocol: str | None = None
    source_name: str | None = None
    target: str | None = None
    bus: str | None = None
    read_only: bool = False
    shareable: bool = False
    serial: str | None = None
    boot_order: int | None = None
    alias: str | None = None
    extra: tuple[Extra, ...] = ()

    @property
    def path(self) -> str | None:
        """The file or device of the host that it is."""
        return self.file or self.dev


DISK = Shape(
    "disk",
    DiskXml,
    {
        "type": Value("@type"),
        "device": Value("@device"),
        "driver": Value("driver/@name"),
        "format": Value("driver/@type"),
        "cache": Value("driver/@cache"),
        "io": Value("driver/@io"),
        "discard": Value("driver/@discard"),
        "file": Value("source/@file"),
        "dev": Value("source/@dev"),
        "pool": Value("source/@pool"),
        "volume": Value("source/@volume"),
        "protocol": Value("source/@protocol"),
        "source_name": Value("source/@name"),
        "target": Value("target/@dev"),
        "bus": Value("target/@bus"),
        "read_only": Flag("readonly"),
        "shareable": Flag("shareable"),
        "serial": Value("serial"),
        "boot_order": Value("boot/@order", NUMBER),
        "alias": Value("alias/@name"),
    },
)


@record
class RangeXml:
    """Ports of the host from `start` to `end` and where they lead to from `to` on.

    `end` None: `start` alone; `to` None: the same numbers. One that is excluded is not forwarded.
    """

    start: int
    end: int | None = None
    to: int | None = None
    exclude: bool | None = None
    extra: tuple[Extra, ...] = ()


RANGE = Shape(
    "range",
    RangeXml,
    {
        "start": Value("@start", NUMBER),
        "end": Value("@end", NUMBER),
        "to": Value("@to", NUMBER),
        "exclude": Value("@exclude", YES_NO),
    },
)


@record
class PortForwardXml:
    """Ports of an address of the host, all of its protocol where there are no ranges."""

    protocol: str
    address: str | None = None
    dev: str | None = None
    ranges: tuple[RangeXml, ...] = ()
    extra: tuple[Extra, ...] = ()


PORT_FORWARD = Shape(
    "portForward",
    PortForwardXml,
    {
        "protocol": Value("@proto"),
        "address": Value("@address"),
        "dev": Value("@dev"),
        "ranges": Many("range", RANGE),
    },
)


@record
class InterfaceXml:
    """A network interface; `type` is network, bridge, user, ethernet, direct, and so on.

    Averages are in KiB a second, bursts in KiB. `link` is up or down.
    """

    type: str
    mac: str | None = None
    network: str | None = None
    bridge: str | None = None
    dev: str | None = None
    target: str | None = None
    model: str | None = None
    queues: int | None = None
    backend: str | None = None
    mtu: int | None = None
    link: str | None = None
    inbound_average: int | None = None
    inbound_burst: int | None = None
    outbound_average: int | None = None
    outbound_burst: int | None = None
    boot_order: int | None = None
    port_forwards: tuple[PortForwardXml, ...] = ()
    alias: str | None = None
    address_type: str | None = None
    extra: tuple[Extra, ...] = ()


INTERFACE = Shape(
    "interface",
    InterfaceXml,
    {
        "type": Value("@type"),
        "mac": Value("mac/@address"),
        "network": Value("source/@network"),
        "bridge": Value("source/@bridge"),
        "dev": Value("source/@dev"),
        "inbound_average": Value("bandwidth/inbound/@average", NUMBER),
        "inbound_burst": Value("bandwidth/inbound/@burst", NUMBER),
        "outbound_average": Value("bandwidth/outbound/@average", NUMBER),
        "outbound_burst": Value("bandwidth/outbound/@burst", NUMBER),
        "target": Value("target/@dev"),
        "model": Value("model/@type"),
        "queues": Value("driver/@queues", NUMBER),
        "backend": Value("backend/@type"),
        "mtu": Value("mtu/@size", NUMBER),
        "link": Value("link/@state"),
        "boot_order": Value("boot/@order", NUMBER),
        "port_forwards": Many("portForward", PORT_FORWARD),
        "alias": Value("alias/@name"),
        "address_type": Value("address/@type"),
    },
)


@record
class CharacterXml:
    """A character device: a serial line, a console or a channel, by the element's name.

    `type` is where it leads to on the host: pty, file, unix, tcp, null, and so on.
    """

    type: str = "pty"
    tty: str | None = None
    mode: str | None = None
    path: str | None = None
    log: str | None = None
    target_type: str | None = None
    target_name: str | None = None
    target_port: int | None = None
    target_state: str | None = None
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


def _character(name: str) -> Shape[CharacterXml]:
    return Shape(
        name,
        CharacterXml,
        {
            "type": Value("@type"),
            "tty": Value("@tty"),
            "mode": Value("source/@mode"),
            "path": Value("source/@path"),
            "log": Value("log/@file"),
            "target_type": Value("target/@type"),
            "target_name": Value("target/@name"),
            "target_port": Value("target/@port", NUMBER),
            "target_state": Value("target/@state"),
            "alias": Value("alias/@name"),
        },
    )


SERIAL, CONSOLE, CHANNEL = _character("serial"), _character("console"), _character("channel")


@record
class FilesystemXml:
    """A folder of the host; `target` is the tag by which the guest mounts it.

    `driver` is virtiofs, path (9p) or None, which is 9p, too.
    """

    source: str | None = None
    target: str | None = None
    type: str = "mount"
    access_mode: str | None = None
    driver: str | None = None
    read_only: bool = False
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


FILESYSTEM = Shape(
    "filesystem",
    FilesystemXml,
    {
        "type": Value("@type"),
        "access_mode": Value("@accessmode"),
        "driver": Value("driver/@type"),
        "source": Value("source/@dir"),
        "target": Value("target/@dir"),
        "read_only": Flag("readonly"),
        "alias": Value("alias/@name"),
    },
)


@record
class GraphicsXml:
    """A screen that others see; a `port` of -1 is one not chosen yet."""

    type: str
    port: int | None = None
    autoport: bool | None = None
    listen: str | None = None
    password: str | None = None
    extra: tuple[Extra, ...] = ()


GRAPHICS = Shape(
    "graphics",
    GraphicsXml,
    {
        "type": Value("@type"),
        "port": Value("@port", NUMBER),
        "autoport": Value("@autoport", YES_NO),
        "listen": Value("@listen"),
        "password": Value("@passwd", _SECRET),
    },
)


@record
class VideoXml:
    """A display adapter; `vram` is in KiB."""

    model: str | None = None
    vram: int | None = None
    heads: int | None = None
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


VIDEO = Shape(
    "video",
    VideoXml,
    {
        "model": Value("model/@type"),
        "vram": Value("model/@vram", NUMBER),
        "heads": Value("model/@heads", NUMBER),
        "alias": Value("alias/@name"),
    },
)


@record
class RngXml:
    """A source of random numbers, which come from `backend`."""

    model: str = "virtio"
    backend_model: str | None = None
    backend: str | None = None
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


RNG = Shape(
    "rng",
    RngXml,
    {
        "model": Value("@model"),
        "backend_model": Value("backend/@model"),
        "backend": Value("backend"),
        "alias": Value("alias/@name"),
    },
)


@record
class MemballoonXml:
    """A balloon in the guest's memory; the model none is no balloon."""

    model: str = "virtio"
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


MEMBALLOON = Shape(
    "memballoon", MemballoonXml, {"model": Value("@model"), "alias": Value("alias/@name")}
)


@record
class VsockXml:
    """A socket device; `auto`: its address `cid` is chosen when the machine starts."""

    model: str | None = None
    auto: bool | None = None
    cid: int | None = None
    alias: str | None = None
    extra: tuple[Extra, ...] = ()


VSOCK = Shape(
    "vsock",
    VsockXml,
    {
        "model": Value("@model"),
        "auto": Value("cid/@auto", YES_NO),
        "cid": Value("cid/@address", NUMBER),
        "alias": Value("alias/@name"),
    },
)

DEVICES: dict[str, Shape[Any]] = {
    shape.name: shape
    for shape in (
        *(DISK, FILESYSTEM, INTERFACE, SERIAL, CONSOLE, CHANNEL, GRAPHICS, VIDEO, RNG),
        *(MEMBALLOON, VSOCK),
    )
}


def parse_device(document: str) -> tuple[str, Any]:
    """Return what a device by itself is called, and its record; raises InvalidValueError."""
    root = parse(document)
    shape = DEVICES.get(root.name)
    if shape is None:
        known = ", ".join(DEVICES)
        raise InvalidValueError(f"no device is called <{root.name[:80]}>", hint=f"known: {known}")
    return shape.name, shape.read(root)
