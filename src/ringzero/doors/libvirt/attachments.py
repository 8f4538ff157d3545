"""Devices of a domain that come, go and change: in its XML and in its machine's description.

The two go together: a device is found in the XML as clients see it, by what they know it by, and
from there in the description. Nothing here does I/O but for looking up volumes by their pool.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from ringzero.config.device import DeviceConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.machine import MachineConfig
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.xml.devices import (
    DiskXml,
    FilesystemXml,
    InterfaceXml,
    parse_device,
)
from ringzero.doors.libvirt.xml.domain import DomainXml
from ringzero.doors.libvirt.xml.machine import Volumes, attachment
from ringzero.errors import ConfigError, InvalidValueError
from ringzero.records import record, replace

Device = DiskXml | InterfaceXml | FilesystemXml
# Where a domain's XML has devices of each kind.
_PLACES: dict[type, str] = {
    DiskXml: "disks",
    InterfaceXml: "interfaces",
    FilesystemXml: "filesystems",
}
# What of an interface no XML tells, and what is therefore as it was.
_UNTOLD = ("listen", "host", "allow", "packet_rate", "setup")
# The addresses that libvirt gives interfaces (QEMU's own part of them).
_MAC_PREFIX = "52:54:00"


@record
class Change:
    """What a domain and its machine become; `warnings` tell what is not carried out."""

    document: DomainXml
    config: MachineConfig
    warnings: tuple[str, ...] = ()


def read(document: str) -> Device:
    """Return the device that a client sent; an interface has a MAC address. Raises RefusedError."""
    try:
        name, item = parse_device(document)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message) from fault
    if not isinstance(item, DiskXml | InterfaceXml | FilesystemXml):
        text = f"a <{name}> comes with the domain's definition; disks, interfaces and "
        raise RefusedError(ErrorCode.OPERATION_UNSUPPORTED, text + "filesystems come and go")
    return item


def attach(document: DomainXml, config: MachineConfig, item: Device, volumes: Volumes) -> Change:
    """Return what there is with one device more. Raises RefusedError."""
    if isinstance(item, InterfaceXml) and item.mac is None:
        item = replace(item, mac=_new_mac())
    if isinstance(item, DiskXml) and item.target is None:
        raise RefusedError(ErrorCode.XML_ERROR, "a disk needs <target dev=...>")
    there = _devices(document, item)
    if any(_known_by(one) == _known_by(item) for one in there):
        text = f"the domain has {_called(item)} already"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)
    warnings: tuple[str, ...] = ()
    if not _empty(item):
        device, warnings = made(item, volumes)
        config = replace(config, devices=(*config.devices, device))
    return Change(_with(document, item, [*there, item]), config, warnings)


def detach(document: DomainXml, config: MachineConfig, item: Device, volumes: Volumes) -> Change:
    """Return what there is without a device. Raises RefusedError."""
    number = position(document, item)
    old = part(document, config, item, number, volumes)
    rest = [one for n, one in enumerate(_devices(document, item)) if n != number]
    devices = tuple(device for device in config.devices if device is not old)
    return Change(_with(document, item, rest), replace(config, devices=devices))


def update(document: DomainXml, config: MachineConfig, item: Device, volumes: Volumes) -> Change:
    """Return what there is when a device is as a client sent it. Raises RefusedError."""
    if isinstance(item, FilesystemXml):
        text = "a <filesystem> does not change; detach it, and attach another"
        raise RefusedError(ErrorCode.OPERATION_UNSUPPORTED, text)
    number = position(document, item)
    old = part(document, config, item, number, volumes)
    there = _devices(document, item)
    before = there[number]
    if isinstance(item, InterfaceXml) and isinstance(before, InterfaceXml):
        item = replace(item, mac=item.mac or before.mac)
    new: tuple[DeviceConfig, ...] = ()
    warnings: tuple[str, ...] = ()
    if not _empty(item):
        device, warnings = made(item, volumes)
        if isinstance(device, NetConfig) and isinstance(old, NetConfig):
            device = _as_it_was(device, old)
        new = (device,)
    devices: list[DeviceConfig] = []
    for one in config.devices:
        devices += new if one is old else (one,)
    if old is None:
        devices += new
    there[number] = item
    return Change(_with(document, item, there), replace(config, devices=tuple(devices)), warnings)


def with_addresses(document: DomainXml, before: tuple[InterfaceXml, ...] = ()) -> DomainXml:
    """Return a domain whose interfaces all have MAC addresses, which stay what they are.

    One that is sent without has that of the interface `before` in its place, else a new one.
    """
    named = {item.mac.lower() for item in document.interfaces if item.mac is not None}
    left = [item for item in before if item.mac is not None and item.mac.lower() not in named]

    def address(item: InterfaceXml) -> str | None:
        found = next((old for old in left if _leads_to(old) == _leads_to(item)), None)
        if found is None:
            return _new_mac()
        left.remove(found)
        return found.mac

    interfaces = (
        item if item.mac is not None else replace(item, mac=address(item))
        for item in document.interfaces
    )
    return replace(document, interfaces=tuple(interfaces))


def with_untold(new: MachineConfig, old: MachineConfig) -> MachineConfig:
    """Return a description whose interfaces are as they were in what XML does not tell of them.

    What an interface may not reach is of that: who edits a domain does not let its guest out.
    """
    there = {net.mac: net for net in old.nets}

    def keep(number: int, device: DeviceConfig) -> DeviceConfig:
        if isinstance(device, NetConfig) and device.mac in there:
            return _as_it_was(device, there[device.mac])
        return device

    return new.map_devices(keep)


def _as_it_was(new: NetConfig, old: NetConfig) -> NetConfig:
    if (new.network, new.target) != (old.network, old.target):
        return new
    return replace(new, **{name: getattr(old, name) for name in _UNTOLD})


def by_alias(document: DomainXml, alias: str) -> Device:
    """Return the device with an alias. Raises RefusedError."""
    there: list[Device] = [*document.disks, *document.interfaces, *document.filesystems]
    for one in there:
        if one.alias == alias:
            return one
    raise RefusedError(ErrorCode.DEVICE_MISSING, f"device not found: no device has alias '{alias}'")


def position(document: DomainXml, item: Device) -> int:
    """Return which of a domain's devices of its kind a client means. Raises RefusedError.

    A disk is known by its target, a filesystem by its tag, an interface by its MAC address; it may
    have none where the domain has one interface only.
    """
    there = _devices(document, item)
    if isinstance(item, InterfaceXml) and item.mac is None:
        found = list(range(len(there)))
    else:
        found = [n for n, one in enumerate(there) if _known_by(one) == _known_by(item)]
    if not found:
        text = f"device not found: the domain does not have {_called(item)}"
        raise RefusedError(ErrorCode.DEVICE_MISSING, text)
    if len(found) > 1:
        text = f"multiple devices match {_called(item)}; its XML needs a MAC address"
        raise RefusedError(ErrorCode.OPERATION_FAILED, text)
    return found[0]


def part(
    document: DomainXml, config: MachineConfig, item: Device, number: int, volumes: Volumes
) -> DeviceConfig | None:
    """Return what the machine has for a device of the XML; None for a drive that is empty."""
    if isinstance(item, InterfaceXml):
        # Both have them in the same order (`ringzero.doors.libvirt.xml.facts`).
        return config.nets[number]
    if isinstance(item, FilesystemXml):
        return [share for share in config.shares if share.target][number]
    disk = document.disks[number]
    if disk.type == "volume" and disk.pool and disk.volume:
        path = Path(volumes(disk.pool, disk.volume))
    elif disk.path is not None:
        path = Path(disk.path)
    else:
        return None
    return next((one for one in config.disks if one.path == path), None)


def made(item: Device, volumes: Volumes) -> tuple[DeviceConfig, tuple[str, ...]]:
    """Return what a machine has for a device, and what is not carried out. Raises RefusedError."""
    try:
        return attachment(item, volumes)
    except ConfigError as fault:
        raise RefusedError(ErrorCode.CONFIG_UNSUPPORTED, "; ".join(fault.faults)) from fault


def _leads_to(item: InterfaceXml) -> tuple[str | None, ...]:
    return (item.type, item.network, item.bridge, item.dev)


def _devices(document: DomainXml, item: Device) -> list[Device]:
    return list(getattr(document, _PLACES[type(item)]))


def _with(document: DomainXml, item: Device, devices: list[Device]) -> DomainXml:
    return replace(document, **{_PLACES[type(item)]: tuple(devices)})


def _empty(item: Device) -> bool:
    return isinstance(item, DiskXml) and item.device == "cdrom" and not (item.path or item.volume)


def _known_by(item: Device) -> str | None:
    if isinstance(item, InterfaceXml):
        return None if item.mac is None else item.mac.lower()
    return item.target


def _called(item: Device) -> str:
    if isinstance(item, DiskXml):
        return f"a disk '{item.target}'"
    if isinstance(item, FilesystemXml):
        return f"a filesystem '{item.target}'"
    return "an interface" if item.mac is None else f"an interface {item.mac.lower()}"


def _new_mac() -> str:
    return ":".join((_MAC_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))))
