"""A domain's XML as the description of a machine (`facts` goes the other way).

`definition` gives the fields that `MachineConfig.create` takes, and the `define` action with it.
What cannot work is a ConfigError with all its reasons. What the machine has no part for is kept in
the XML and told in a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ringzero.config.device import DeviceConfig
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.share import NINEP, VIRTIOFS, ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.ports import LOOPBACK, MAX_RANGE, Forward
from ringzero.doors.libvirt.xml.capabilities import BOARD
from ringzero.doors.libvirt.xml.devices import (
    DISK,
    FILESYSTEM,
    INTERFACE,
    DiskXml,
    FilesystemXml,
    InterfaceXml,
    PortForwardXml,
)
from ringzero.doors.libvirt.xml.domain import DOMAIN, DomainXml, OsXml
from ringzero.errors import ConfigError
from ringzero.plain import to_plain
from ringzero.records import record
from ringzero.units import KIB

DOMAIN_TYPES = ("qemu", "kvm", "ringzero")
# The channel by which libvirt's clients reach an agent in the guest.
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# A guest of 64 bits runs what is of 32.
_ARCHITECTURES = {"x86_64": ("x86_64", "amd64", "i686")}
_PAGE = 4096
# More devices, and ports of one interface, than any board and host have: nobody counts further.
_MOST_DEVICES, _MOST_PORTS = 1024, 4096
# How many faults or warnings are told of one document.
_TOLD = 100
# Where a folder is in the guest whose tag is no path.
_MOUNTS = "/mnt"
# What is in many documents and asks for nothing: how QEMU wires its devices, and what it had chosen
# when it wrote one.
_QUIET = re.compile(
    r"vcpu/@placement|resource|seclabel|clock/timer|pm|iothreads|cpu/(@migratable|feature|vendor|"
    r"topology)|features/\w+|on_lockfailure|sysinfo|os/(smbios|bios|text\(\))|(.*/)?(address|"
    r"address/@\w+|backingStore|mirror)|devices/(controller|audio|hub|"
    r"disk/source/@(index|startupPolicy)|"
    r"interface/(source/@(portid|bridge)|driver/@iommu)|(serial|console)/(target/model|protocol)|"
    r"(channel|console)/source/@(host|service|mode)|memballoon/.*|rng/.*)"
)


@record
class Abilities:
    """What machines of this host can be: architecture, names of processors, whether KVM is here."""

    architecture: str = "x86_64"
    cpus: tuple[str, ...] = ()
    kvm: bool = False


@record
class Definition:
    """The machine that a domain's XML asks for.

    `fields` are plain data for `MachineConfig.create`; `serial` is a file for what the serial line
    says. `warnings` name what is kept and not carried out.
    """

    name: str
    fields: dict[str, Any]
    serial: str | None = None
    warnings: tuple[str, ...] = ()


# Gives the path of a volume by its pool and name.
Volumes = Callable[[str, str], str]


def definition(
    domain: DomainXml, abilities: Abilities | None = None, volumes: Volumes | None = None
) -> Definition:
    """Return the machine that the XML asks for; raises ConfigError for one that cannot be."""
    return _Reader(domain, abilities or Abilities(), volumes).definition()


def attachment(
    item: DiskXml | InterfaceXml | FilesystemXml, volumes: Volumes | None = None
) -> tuple[DeviceConfig, tuple[str, ...]]:
    """Return the device that a client attaches to a machine, and what of it is not carried out.

    Raises ConfigError for one that cannot be.
    """
    reader = _Reader(DomainXml(DOMAIN_TYPES[0], "-"), Abilities(), volumes)
    found: DeviceConfig | None
    if isinstance(item, DiskXml):
        found, kind, paths = reader.disk(item), DISK.name, DISK.unknown(item)
    elif isinstance(item, InterfaceXml):
        found, kind, paths = reader.net(item), INTERFACE.name, INTERFACE.unknown(item)
    else:
        found, kind, paths = reader.share(item), FILESYSTEM.name, FILESYSTEM.unknown(item)
    if found is None:
        # What a drive of a machine that is defined may be, one that is attached may not.
        raise ConfigError(reader.faults or reader.warnings)
    faults = reader.faults + found.faults()
    if faults:
        raise ConfigError(faults, hint="change the device's XML")
    rest = [path for path in paths if not _QUIET.fullmatch(f"devices/{kind}/{path}")]
    return found, (*reader.warnings, *(f"{path}: not carried out" for path in rest))


class _Reader:
    """Collects faults and warnings on the way through a domain's XML."""

    def __init__(self, domain: DomainXml, abilities: Abilities, volumes: Volumes | None) -> None:
        self.domain, self.abilities, self.volumes = domain, abilities, volumes
        self.faults: list[str] = []
        self.warnings: list[str] = []

    def definition(self) -> Definition:
        domain = self.domain
        boots = domain.os or OsXml()
        self._check_platform(boots)
        count = len(domain.disks) + len(domain.interfaces) + len(domain.filesystems)
        if count > _MOST_DEVICES:
            raise ConfigError([f"{count} devices; at most {_MOST_DEVICES}"], domain=domain.name)
        disks = [disk for item in disk_order(domain) if (disk := self.disk(item)) is not None]
        nets = [net for item in domain.interfaces if (net := self.net(item)) is not None]
        shares = [found for f in domain.filesystems if (found := self.share(f)) is not None]
        fields: dict[str, Any] = {
            "memory": self._memory(),
            "cpus": self._vcpus(),
            "disks": [to_plain(disk) for disk in disks],
            "nets": [to_plain(net) for net in nets],
            "shares": [to_plain(share) for share in shares],
            **self._boot(boots, bool(disks)),
        }
        if any(channel.target_name == AGENT_CHANNEL for channel in domain.channels):
            fields["agent"] = True
        cpu = self._cpu()
        if cpu is not None:
            fields["cpu"] = cpu
        self._warn_of_the_rest()
        name = domain.name
        try:
            MachineConfig.create(name=name, **fields)
        except ConfigError as fault:
            self.faults += fault.faults
        if self.faults:
            faults = _few(self.faults)
            raise ConfigError(faults, hint="change the domain's XML", domain=name)
        return Definition(name, fields, self._serial(), tuple(_few(self.warnings)))

    # ---- what there is of a machine ----------------------------------------

    def _check_platform(self, boots: OsXml) -> None:
        own = self.abilities.architecture
        if self.domain.type not in DOMAIN_TYPES:
            known = ", ".join(DOMAIN_TYPES)
            self.faults.append(f"domain type {self.domain.type!r}: known are {known}")
        if boots.type != "hvm":
            self.faults.append(f"os type {boots.type!r}: only hvm, whole machines")
        if boots.arch is not None and boots.arch not in _ARCHITECTURES.get(own, (own,)):
            self.faults.append(f"architecture {boots.arch!r}: this host's machines are {own}")
        if boots.machine not in (None, BOARD):
            self.warnings.append(f"os/type/@machine {boots.machine!r}: the board is {BOARD}")

    def _memory(self) -> int:
        wanted, now = self.domain.memory, self.domain.current_memory
        if wanted is None:
            if now is None:
                self.faults.append("no memory: write <memory unit='MiB'>512</memory>")
                return MachineConfig.memory
            wanted = now
        if now is not None and now != wanted:
            self.warnings.append(f"currentMemory: the guest has all of its {wanted // KIB} KiB")
        # As QEMU does, which rounds up, too.
        return -(-wanted // _PAGE) * _PAGE

    def _vcpus(self) -> int:
        most, now = self.domain.vcpus or 1, self.domain.current_vcpus
        if now is not None and now != most:
            self.warnings.append(f"vcpu/@current: {now} of {most}; the others cannot come later")
            return now
        return most

    def _cpu(self) -> str | None:
        asked = self.domain.cpu
        if asked is None or (asked.mode in (None, "host-model") and asked.model is None):
            return None
        if asked.mode == "host-passthrough":
            return "host" if self.abilities.kvm else self._known("max")
        if asked.mode == "maximum":
            return self._known("max")
        if asked.model is None:
            return None
        found = self._known(asked.model)
        if found is None and asked.mode != "host-model":
            self.warnings.append(f"cpu model {asked.model!r}: the guest has the usual processor")
        return found

    def _known(self, name: str) -> str | None:
        return name if name in self.abilities.cpus else None

    def _boot(self, boots: OsXml, disks: bool) -> dict[str, Any]:
        if boots.boot and boots.boot[0] in ("network", "fd"):
            self.warnings.append(f"os/boot: nothing is booted from {boots.boot[0]}")
        if boots.kernel is not None:
            return {
                "kernel": boots.kernel,
                "initrd": boots.initrd,
                "command_line": boots.command_line or "",
            }
        if boots.firmware or boots.loader:
            self.warnings.append(
                "os/loader: there is no firmware; what the first disk's boot loader has is booted"
            )
        if not disks:
            self.faults.append("nothing to boot: neither a <kernel> nor a disk")
            return {}
        return {"boot_entry": "", "command_line": boots.command_line or ""}

    def disk(self, disk: DiskXml) -> DiskConfig | None:
        """Return a disk, or None for a drive that is not attached."""
        name = f"disk {disk.target}" if disk.target else "a disk"
        if disk.device in ("floppy", "lun"):
            self.warnings.append(f"{name}: a {disk.device} is not attached")
            return None
        if disk.type == "volume" and disk.pool and disk.volume and self.volumes is not None:
            path: str | None = self.volumes(disk.pool, disk.volume)
        elif disk.type in ("file", "block"):
            path = disk.path
        else:
            self.faults.append(f"{name}: a source of type {disk.type!r}; file, block and volume go")
            return None
        if path is None:
            if disk.device == "cdrom":
                self.warnings.append(f"{name}: an empty drive is not attached")
            else:
                self.faults.append(f"{name}: no source")
            return None
        if disk.bus not in (None, "virtio"):
            self.warnings.append(f"{name}: the guest finds it on virtio, not {disk.bus}")
        read_only = disk.read_only or disk.device == "cdrom"
        # libvirt takes a disk for raw whose format it was not told.
        return DiskConfig(Path(path), read_only, disk.format or "raw")

    def net(self, item: InterfaceXml) -> NetConfig | None:
        """Return a network interface, or None for one with a fault."""
        name = f"interface {item.mac}" if item.mac else "an interface"
        target = ""
        if item.type == "user":
            network = "user"
        elif item.type == "network" and item.network:
            network = item.network
        elif item.type == "bridge" and item.bridge:
            network, target = "bridge", item.bridge
        elif item.type == "ethernet" and item.target:
            network, target = "tap", item.target
        elif item.type == "null":
            network = "none"
        else:
            self.faults.append(
                f"{name} of type {item.type!r}: user, network, bridge and ethernet (with a "
                "<target dev=...>) go, with their source"
            )
            return None
        if item.model not in (None, "virtio", "virtio-net"):
            self.warnings.append(f"{name}: its model is virtio, not {item.model}")
        if item.link == "down":
            self.warnings.append(f"{name}: its link is up")
        values: dict[str, Any] = {}
        if item.mac is not None:
            values["mac"] = item.mac.lower()
        if item.mtu is not None:
            values["mtu"] = item.mtu
        if item.queues is not None:
            values["queues"] = item.queues
        values |= self._rate(name, item)
        ports = tuple(self._ports(name, item.port_forwards))
        return NetConfig(network, target, ports=ports, **values)

    def _rate(self, name: str, item: InterfaceXml) -> dict[str, int]:
        inbound, outbound = item.inbound_average, item.outbound_average
        rates = [rate for rate in (inbound, outbound) if rate is not None]
        if not rates:
            return {}
        if inbound != outbound:
            self.warnings.append(f"{name}: bandwidth: {min(rates)} KiB/s both ways")
        bursts = [n for n in (item.inbound_burst, item.outbound_burst) if n is not None]
        return {"rate": min(rates) * KIB, "burst": min(bursts, default=0) * KIB}

    def _ports(self, name: str, forwards: Iterable[PortForwardXml]) -> Iterator[Forward]:
        count = 0
        for forward in forwards:
            address = forward.address or LOOPBACK
            if forward.dev is not None:
                self.warnings.append(f"{name}: portForward/@dev: {address} is listened at")
            if not forward.ranges:
                self.faults.append(f"{name}: a portForward without a <range start=...>")
            for ports in forward.ranges:
                last, to = ports.end or ports.start, ports.to or ports.start
                if ports.exclude:
                    self.warnings.append(f"{name}: portForward/range/@exclude")
                elif not 0 <= last - ports.start < MAX_RANGE:
                    self.faults.append(
                        f"{name}: ports {ports.start} to {last}; at most {MAX_RANGE} of them"
                    )
                elif count > _MOST_PORTS:
                    raise ConfigError([f"{name}: more than {_MOST_PORTS} ports"])
                else:
                    count += last - ports.start + 1
                    for n in range(last - ports.start + 1):
                        yield Forward(ports.start + n, to + n, address, forward.protocol)

    def share(self, folder: FilesystemXml) -> ShareConfig | None:
        """Return a shared folder, or None for one with a fault."""
        if folder.type != "mount" or folder.source is None or folder.target is None:
            self.faults.append(
                f"a filesystem of type {folder.type!r}: mount goes, with <source dir=...> and "
                "<target dir=...>"
            )
            return None
        place = folder.target
        if not place.startswith("/"):
            place = f"{_MOUNTS}/{place}"
            self.warnings.append(f"filesystem {folder.target}: the agent mounts it at {place}")
        transport = VIRTIOFS if folder.driver == "virtiofs" else NINEP
        # All folders of a machine go one way.
        if {f.driver == "virtiofs" for f in self.domain.filesystems} == {True, False}:
            transport = VIRTIOFS
        return ShareConfig(Path(folder.source), place, folder.read_only, transport=transport)

    def _serial(self) -> str | None:
        for line in (*self.domain.serials, *self.domain.consoles):
            if line.log is not None:
                return line.log
            if line.type == "file" and line.path is not None:
                return line.path
        return None

    def _warn_of_the_rest(self) -> None:
        domain = self.domain
        parts = [
            ("devices/graphics", domain.graphics),
            ("devices/video", domain.videos),
            ("clock/@offset", domain.clock_offset not in (None, "utc")),
            (
                "devices/channel",
                [c for c in domain.channels if c.target_name != AGENT_CHANNEL],
            ),
        ]
        paths = [path for path, there in parts if there]
        whole = tuple(f"{path}/" for path in paths)
        paths += [
            path
            for path in DOMAIN.unknown(domain)
            if not _QUIET.fullmatch(path) and not path.startswith(whole)
        ]
        self.warnings += [f"{path}: kept, and not carried out" for path in paths]


def _few(lines: list[str]) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    more = len(lines) - _TOLD
    return lines if more <= 0 else [*lines[:_TOLD], f"and {more} more"]


def disk_order(domain: DomainXml) -> list[DiskXml]:
    """Return the disks as the guest finds them: what is booted first, then by their targets.

    Drives of other kinds come after disks, unless such a one is booted.
    """
    first = domain.os.boot[:1] if domain.os is not None else ()

    def place(disk: DiskXml) -> tuple[int, bool, int, str]:
        order = 0 if first == ("cdrom",) == (disk.device,) else disk.boot_order or 1 << 31
        target = disk.target or ""
        return order, disk.device != "disk", len(target), target

    return sorted(domain.disks, key=place)
