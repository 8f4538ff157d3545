"""A machine as a domain: what its description says, and what a client once sent of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ringzero.config.devices.disk import DiskConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.share import VIRTIOFS
from ringzero.config.machine import MachineConfig
from ringzero.config.ports import Forward
from ringzero.doors.libvirt.xml.devices import (
    CharacterXml,
    DiskXml,
    FilesystemXml,
    InterfaceXml,
    MemballoonXml,
    PortForwardXml,
    RangeXml,
    RngXml,
    VsockXml,
)
from ringzero.doors.libvirt.xml.domain import CpuXml, DomainXml, OsXml
from ringzero.doors.libvirt.xml.machine import AGENT_CHANNEL
from ringzero.records import field, record, replace
from ringzero.units import KIB

# Types of interfaces of which the XML does not say where they lead to.
_NOWHERE = ("ethernet", "null")


@record
class MachineFacts:
    """What there is to tell of a machine. `id` is its number while it runs, else None.

    `emulator` is the program that runs it.

    `sent` is what a client once defined it by; the rest is as it is now. `engine` is what runs it.
    `formats` are those of disks whose description leaves them to their content, by path: libvirt's
    clients take a disk for raw whose format they are not told.
    """

    name: str
    uuid: str
    config: MachineConfig
    id: int | None = None
    engine: str = ""
    title: str | None = None
    description: str | None = None
    metadata: tuple[str, ...] = ()
    architecture: str = "x86_64"
    emulator: str | None = None
    agent_up: bool = False
    formats: Mapping[Path, str] = field(default_factory=dict)
    sent: DomainXml | None = None


def domain(facts: MachineFacts) -> DomainXml:
    """Return the machine as a domain, as it is now."""
    config, live = facts.config, facts.id is not None
    kind = "kvm" if facts.engine == "kvm" else "qemu"
    sent = facts.sent or _plain(kind, facts)
    # libvirt's schemas have no other types.
    kind = sent.type if sent.type in ("qemu", "kvm") else kind
    return replace(
        sent,
        type=kind,
        name=facts.name,
        uuid=facts.uuid,
        id=facts.id,
        title=facts.title,
        description=facts.description,
        metadata=facts.metadata,
        memory=config.memory,
        current_memory=config.memory,
        vcpus=config.cpus,
        current_vcpus=None,
        os=_os(facts, sent.os or OsXml()),
        clock_offset=sent.clock_offset or "utc",
        on_poweroff=sent.on_poweroff or "destroy",
        on_reboot=sent.on_reboot or "restart",
        on_crash=sent.on_crash or "destroy",
        # Whichever was asked for.
        emulator=facts.emulator,
        disks=tuple(_disks(facts, sent)),
        filesystems=tuple(_filesystems(config, sent)),
        interfaces=tuple(_interfaces(config, sent, live)),
        channels=tuple(_channels(facts, sent)),
        vsock=_vsock(config, sent),
    )


def _plain(kind: str, facts: MachineFacts) -> DomainXml:
    """Return what every machine of ours has, and its description does not say."""
    line = CharacterXml(target_type="serial", target_port=0)
    cpu = facts.config.cpu
    if cpu is None:
        processor = None
    elif cpu == "host":
        processor = CpuXml(mode="host-passthrough")
    else:
        processor = CpuXml(mode="custom", match="exact", model=cpu)
    return DomainXml(
        kind,
        facts.name,
        acpi=True,
        apic=True,
        cpu=processor,
        serials=(CharacterXml(target_port=0),),
        consoles=(line,),
        memballoon=MemballoonXml("none"),
        rngs=(RngXml(backend_model="random", backend="/dev/urandom"),),
    )


def _os(facts: MachineFacts, sent: OsXml) -> OsXml:
    config = facts.config
    return replace(
        sent,
        arch=sent.arch or facts.architecture,
        machine=sent.machine or config.board,
        kernel=None if config.kernel is None else str(config.kernel),
        initrd=None if config.initrd is None else str(config.initrd),
        command_line=config.command_line or None,
    )


def _disks(facts: MachineFacts, sent: DomainXml) -> Iterator[DiskXml]:
    """Yield the disks as they were sent, without those that went, and those that came."""
    there = list(enumerate(facts.config.disks))
    taken = {disk.target for disk in sent.disks}
    free = (target for n in range(1 << 10) if (target := _target(n)) not in taken)
    for disk in sent.disks:
        volume = disk.type == "volume"
        found = next((d for d in there if volume or str(d[1].path) == disk.path), None)
        if found is not None:
            there.remove(found)
            yield _disk_now(disk, *found, facts)
        elif disk.path is None and not volume:
            yield disk if disk.target else replace(disk, target=next(free))
    for number, new in there:
        block = str(new.path).startswith("/dev/")
        made = DiskXml(
            "block" if block else "file",
            file=None if block else str(new.path),
            dev=str(new.path) if block else None,
            driver="qemu",
            target=next(free),
            bus="virtio",
        )
        yield _disk_now(made, number, new, facts)


def _disk_now(disk: DiskXml, number: int, config: DiskConfig, facts: MachineFacts) -> DiskXml:
    live = facts.id is not None
    return replace(
        disk,
        format=config.format or facts.formats.get(config.path) or disk.format,
        read_only=config.read_only,
        target=disk.target or _target(number),
        alias=disk.alias or (config.name_of(number) if live else None),
    )


def _target(number: int) -> str:
    """Return what Linux calls the virtio disk with this number: vda to vdz, vdaa, and so on."""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"vd{name}"


def _interfaces(config: MachineConfig, sent: DomainXml, live: bool) -> Iterator[InterfaceXml]:
    left = list(sent.interfaces)
    for number, net in enumerate(config.nets):
        same = [item for item in left if item.mac is not None and item.mac.lower() == net.mac]
        nameless = [item for item in left if item.mac is None]
        found = next(iter(same or nameless), None)
        if found is not None:
            left.remove(found)
        name = net.name_of(number)
        yield replace(
            _interface(net) if found is None else _interface_now(found, net, live),
            mac=net.mac,
            target=(found.target if found and found.target else name) if live else None,
            alias=found.alias if found and found.alias else name if live else None,
            address_type=found.address_type if found and found.address_type else "virtio-mmio",
            port_forwards=tuple(_port_forwards(net)) if net.network in ("user", "passt") else (),
        )


def _interface_now(found: InterfaceXml, net: NetConfig, live: bool) -> InterfaceXml:
    """Return an interface as it was sent, and where what runs has been plugged in since."""
    if not live or found.type in _NOWHERE:
        return found
    now = _interface(net)
    if now.type in _NOWHERE:
        return replace(found, link="down")
    link = "up" if found.link else None
    if (now.type, now.network, now.bridge) == (found.type, found.network, found.bridge):
        return replace(found, link=link)
    places = {"type": now.type, "network": now.network, "bridge": now.bridge, "dev": None}
    return replace(found, **places, link=link)


def _interface(net: NetConfig) -> InterfaceXml:
    values: dict[str, Any] = {"model": "virtio"}
    if net.queues > 1:
        values["queues"] = net.queues
    if net.mtu != NetConfig.mtu:
        values["mtu"] = net.mtu
    if net.rate is not None and net.rate >= KIB:
        values |= dict.fromkeys(("inbound_average", "outbound_average"), net.rate // KIB)
    if net.network in ("user", "passt"):
        return InterfaceXml("user", **values)
    if net.network == "bridge":
        return InterfaceXml("bridge", bridge=net.target, **values)
    if net.network in ("none", "socket", "tap"):
        return InterfaceXml("ethernet", **values)
    return InterfaceXml("network", network=net.network, **values)


def _port_forwards(net: NetConfig) -> Iterator[PortForwardXml]:
    """Yield the ports by protocol and address; those that follow one another are a range."""
    places: dict[tuple[str, str], list[Forward]] = {}
    for port in net.ports:
        places.setdefault((port.protocol, port.address), []).append(port)
    for (protocol, address), ports in places.items():
        ranges: list[RangeXml] = []
        for port in sorted(ports, key=lambda p: (p.port, p.guest_port)):
            last = ranges[-1] if ranges else None
            end = None if last is None else last.end or last.start
            to = None if last is None or end is None else (last.to or 0) + end - last.start
            if last is not None and (end, to) == (port.port - 1, port.guest_port - 1):
                ranges[-1] = replace(last, end=port.port)
            else:
                ranges.append(RangeXml(port.port, to=port.guest_port))
        yield PortForwardXml(protocol, address, ranges=tuple(ranges))


def _filesystems(config: MachineConfig, sent: DomainXml) -> Iterator[FilesystemXml]:
    left = list(sent.filesystems)
    for share in config.shares:
        if not share.target:
            continue
        found = next((item for item in left if item.source == str(share.path)), None)
        if found is not None:
            left.remove(found)
        else:
            driver = "virtiofs" if share.transport == VIRTIOFS else None
            found = FilesystemXml(str(share.path), share.target, driver=driver)
            if driver is not None:
                found = replace(found, access_mode="passthrough")
        yield replace(found, read_only=share.read_only)


def _channels(facts: MachineFacts, sent: DomainXml) -> Iterator[CharacterXml]:
    state = None
    if facts.id is not None:
        state = "connected" if facts.agent_up else "disconnected"
    seen = False
    for channel in sent.channels:
        own = channel.target_name == AGENT_CHANNEL
        seen = seen or own
        yield replace(channel, target_state=state) if own else channel
    if facts.config.agent and not seen:
        yield CharacterXml(
            "unix", target_type="virtio", target_name=AGENT_CHANNEL, target_state=state
        )


def _vsock(config: MachineConfig, sent: DomainXml) -> VsockXml | None:
    device = config.vsock
    if device is None:
        return sent.vsock
    return VsockXml("virtio", auto=device.cid is None, cid=device.cid)
