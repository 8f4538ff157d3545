"""Devices that come, go and change: from the next start on, and where they can in what runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NoReturn

from ringzero.config.device import DeviceConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.share import ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.control.host.client import Host, RemoteMachine
from ringzero.doors.libvirt import attachments, definitions
from ringzero.doors.libvirt.attachments import Change, Device
from ringzero.doors.libvirt.constants import Affect
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.definitions import volume_path
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.handlers.domain import affected, find, find_active
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.doors.libvirt.xml.devices import DiskXml, FilesystemXml, InterfaceXml
from ringzero.doors.libvirt.xml.domain import DomainXml
from ringzero.errors import ConflictError

# What an interface's link is that is plugged into nothing.
_DOWN = "down"
_NO_SCREEN = "the machine has no screen; `virsh console` shows what it says"


@handles("DOMAIN_ATTACH_DEVICE")
async def attach_device(context: Context, domain: DomainHandle, xml: str) -> Results:
    return await attach_device_flags(context, domain, xml, Affect.LIVE)


@handles("DOMAIN_ATTACH_DEVICE_FLAGS")
async def attach_device_flags(
    context: Context, domain: DomainHandle, xml: str, flags: int
) -> Results:
    found = await find(context, domain)
    live, later = affected(found, flags)
    item = attachments.read(xml)

    def attach(host: Host) -> Change | None:
        # What cannot be from the next start on is refused before anything is done.
        change = attachments.attach(*_coming(host, found), item, volume_path) if later else None
        if live:
            with _now(host, found, later=later):
                _attach_live(host.machine(found.name), item)
        return _keep(host, found, change)

    await _change(context, found, attach, live=live)
    return {}


@handles("DOMAIN_DETACH_DEVICE")
async def detach_device(context: Context, domain: DomainHandle, xml: str) -> Results:
    return await detach_device_flags(context, domain, xml, Affect.LIVE)


@handles("DOMAIN_DETACH_DEVICE_FLAGS")
async def detach_device_flags(
    context: Context, domain: DomainHandle, xml: str, flags: int
) -> Results:
    found = await find(context, domain)
    live, later = affected(found, flags)
    item = attachments.read(xml)

    def detach(host: Host) -> Change | None:
        change = attachments.detach(*_coming(host, found), item, volume_path) if later else None
        if live:
            with _now(host, found, later=later):
                _detach_live(host, found, item)
        return _keep(host, found, change)

    await _change(context, found, detach, live=live)
    return {}


@handles("DOMAIN_DETACH_DEVICE_ALIAS")
async def detach_device_alias(
    context: Context, domain: DomainHandle, alias: str, flags: int
) -> Results:
    found = await find(context, domain)
    live, later = affected(found, flags)

    def detach(host: Host) -> Change | None:
        change = None
        if later:
            document, config = _coming(host, found)
            item = attachments.by_alias(document, alias)
            change = attachments.detach(document, config, item, volume_path)
        if live:
            item = attachments.by_alias(definitions.xml(host, found), alias)
            with _now(host, found, later=later):
                _detach_live(host, found, item)
        return _keep(host, found, change)

    await _change(context, found, detach, live=live)
    return {}


@handles("DOMAIN_UPDATE_DEVICE_FLAGS")
async def update_device_flags(
    context: Context, domain: DomainHandle, xml: str, flags: int
) -> Results:
    found = await find(context, domain)
    live, later = affected(found, flags)
    item = attachments.read(xml)

    def update(host: Host) -> Change | None:
        change = attachments.update(*_coming(host, found), item, volume_path) if later else None
        if live:
            with _now(host, found, later=later):
                _update_live(host, found, item)
        return _keep(host, found, change)

    await _change(context, found, update, live=live)
    return {}


@handles("DOMAIN_BLOCK_RESIZE")
async def block_resize(
    context: Context, domain: DomainHandle, disk: str, size: int, flags: int
) -> Results:
    await find_active(context, domain)
    _refuse("a disk of a machine that runs cannot be resized; switch it off, and vol-resize it")


@handles("DOMAIN_SCREENSHOT")
async def screenshot(
    context: Context, call: object, domain: DomainHandle, screen: int, flags: int
) -> Results:
    await find_active(context, domain)
    _refuse(_NO_SCREEN)


@handles("DOMAIN_OPEN_GRAPHICS", "DOMAIN_OPEN_GRAPHICS_FD")
async def open_graphics(context: Context, domain: DomainHandle, idx: int, flags: int) -> Results:
    await find_active(context, domain)
    _refuse(_NO_SCREEN)


# ---- from the next start on -------------------------------------------------------


def _coming(host: Host, domain: Domain) -> tuple[DomainXml, MachineConfig]:
    """Return the XML and the description that a machine has from its next start on."""
    tree = host.machine(domain.name).next()
    return definitions.xml(host, domain, inactive=True), config_from_tree(tree)


def _keep(host: Host, domain: Domain, change: Change | None) -> Change | None:
    if change is not None:
        tree = config_to_tree(change.config)
        definitions.change(host, domain.name, tree, change.document)
    return change


async def _change(
    context: Context, domain: Domain, act: Callable[[Host], Change | None], *, live: bool
) -> None:
    """Do it; a guest takes its time to mount a folder, and to leave one."""
    change = await context.manager.work(act, context.manager.host, long=live)
    if change is not None:
        context.warn(domain.name, change.warnings)


# ---- in what runs -----------------------------------------------------------------


@contextlib.contextmanager
def _now(host: Host, domain: Domain, *, later: bool) -> Iterator[None]:
    """Leave a machine's next start as it is while what runs changes, unless that is meant, too.

    What changes in a machine that runs is ringzero's way to change its next start as well.
    """
    coming = host.machine(domain.name).next()
    yield
    if not later:
        # What is part of a deployment is described by that.
        with contextlib.suppress(ConflictError):
            definitions.change(host, domain.name, coming)


def _attach_live(machine: RemoteMachine, item: Device) -> None:
    """Share a folder with a machine that runs. Raises RefusedError, and what that raises."""
    if not isinstance(item, FilesystemXml):
        _refuse_live(item, "come")
    share, _ = attachments.made(item, volume_path)
    assert isinstance(share, ShareConfig)
    machine.share(f"{share.path}:{share.target}{':ro' if share.read_only else ''}")


def _detach_live(host: Host, domain: Domain, item: Device) -> None:
    if not isinstance(item, FilesystemXml):
        _refuse_live(item, "go")
    _, share = _running(host, domain, item)
    assert isinstance(share, ShareConfig)
    host.machine(domain.name).unshare(share.target)


def _update_live(host: Host, domain: Domain, item: Device) -> None:
    """Plug an interface into another network, or unplug it. Raises RefusedError."""
    if not isinstance(item, InterfaceXml):
        _refuse_live(item, "change")
    number, old = _running(host, domain, item)
    machine = host.machine(domain.name)
    if item.link == _DOWN:
        machine.disconnect(number)
        return
    new, _ = attachments.made(item, volume_path)
    assert isinstance(old, NetConfig)
    assert isinstance(new, NetConfig)
    if (new.network, new.target) == (old.network, old.target):
        return
    coming = config_from_tree(machine.next()).nets
    if number < len(coming) and coming[number].network == new.network:
        # It is plugged in again: with its ports, and with what it may not reach.
        new = coming[number]
    machine.connect(_spelled(new), number)


def _spelled(net: NetConfig) -> str:
    """Return where an interface leads to, as `NetConfig.parse` reads it."""
    text = f"{net.network}={net.target}" if net.target else net.network
    if not net.host:
        text += ",host=no"
    if net.allow is not None:
        text += "".join(f",allow={place}" for place in net.allow) or ",restrict"
    for port in net.ports:
        address = f"[{port.address}]" if ":" in port.address else port.address
        text += f",port={address}:{port.port}:{port.guest_port}/{port.protocol}"
    return text


def _running(host: Host, domain: Domain, item: Device) -> tuple[int, DeviceConfig | None]:
    """Return which of its kind a device of a machine that runs is, and its description."""
    document = definitions.xml(host, domain)
    config = config_from_tree(host.machine(domain.name).inspect()["config"])
    number = attachments.position(document, item)
    return number, attachments.part(document, config, item, number, volume_path)


def _refuse_live(item: Device, verb: str) -> NoReturn:
    noun = "a disk" if isinstance(item, DiskXml) else "a device"
    if isinstance(item, InterfaceXml):
        noun = "an interface"
    _refuse(f"{noun} of a machine that runs cannot {verb}; --config changes its next start")


def _refuse(text: str) -> NoReturn:
    raise RefusedError(ErrorCode.OPERATION_UNSUPPORTED, f"Operation not supported: {text}")
