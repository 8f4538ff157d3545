"""What host and machines can do, as XML: capabilities, domain capabilities, system information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ringzero.doors.libvirt.xml.tree import Element, render
from ringzero.records import record
from ringzero.units import KIB

# What clients ask for that take no machine type from their user: it is another name of our board.
_ALIASES = {"x86_64": ("pc",)}
_WORD_SIZES = {"x86_64": "64", "aarch64": "64", "riscv64": "64"}


# What clients are told runs machines: they want a path, and start nothing themselves.
EMULATOR = "/usr/bin/ringzero"
# What the usual board is called as a machine type.
BOARD = "microvm"


@record
class HostFacts:
    """The host, and what machines on it can be. `memory` is in bytes; `board` is the usual one."""

    uuid: str
    architecture: str
    processors: int
    memory: int
    kvm: bool = False
    emulator: str = EMULATOR
    board: str = BOARD
    most_vcpus: int = 254
    cpus: tuple[str, ...] = ()
    disk_formats: tuple[str, ...] = ("qcow2", "raw")

    @property
    def domain_types(self) -> list[str]:
        """Which types a domain may have, by libvirt's schemas: the better one first."""
        return ["kvm", "qemu"] if self.kvm else ["qemu"]


def capabilities(host: HostFacts) -> str:
    """Return what the host is and which machines it runs (libvirt's formatcaps)."""
    root = Element("capabilities")
    machine = root.add("host")
    machine.add("uuid", host.uuid)
    cpu = machine.add("cpu")
    cpu.add("arch", host.architecture)
    count = str(host.processors)
    cpu.add("topology", sockets="1", dies="1", cores=count, threads="1")
    cells = machine.add("topology").add("cells", num="1")
    cell = cells.add("cell", id="0")
    cell.add("memory", str(host.memory // KIB), unit="KiB")
    cpus = cell.add("cpus", num=count)
    for number in map(str, range(host.processors)):
        cpus.add("cpu", id=number, socket_id="0", die_id="0", core_id=number, siblings=number)
    guest = root.add("guest")
    guest.add("os_type", "hvm")
    arch = guest.add("arch", name=host.architecture)
    arch.add("wordsize", _WORD_SIZES[host.architecture])
    arch.add("emulator", host.emulator)
    most = str(host.most_vcpus)
    arch.add("machine", host.board, maxCpus=most)
    for alias in _ALIASES.get(host.architecture, ()):
        arch.add("machine", alias, canonical=host.board, maxCpus=most)
    for kind in host.domain_types:
        arch.add("domain", type=kind)
    features = guest.add("features")
    features.add("acpi", default="on", toggle="no")
    features.add("apic", default="on", toggle="no")
    features.add("disksnapshot", default="on", toggle="no")
    return render(root)


def domain_capabilities(host: HostFacts, kind: str | None = None) -> str:
    """Return what one type of domain can have (libvirt's formatdomaincaps)."""
    root = Element("domainCapabilities")
    root.add("path", host.emulator)
    root.add("domain", kind if kind in host.domain_types else host.domain_types[0])
    root.add("machine", host.board)
    root.add("arch", host.architecture)
    root.add("vcpu", max=str(host.most_vcpus))
    root.add("iothreads", supported="no")
    boots = root.add("os", supported="yes")
    _enumerate(boots, "firmware", ())
    boots.add("loader", supported="no")
    cpu = root.add("cpu")
    cpu.add("mode", name="host-passthrough", supported="yes" if host.kvm else "no")
    cpu.add("mode", name="maximum", supported="yes" if "max" in host.cpus else "no")
    cpu.add("mode", name="host-model", supported="no")
    custom = cpu.add("mode", name="custom", supported="yes" if host.cpus else "no")
    for model in host.cpus:
        custom.add("model", model, usable="yes", vendor="unknown")
    devices = root.add("devices")
    disk = devices.add("disk", supported="yes")
    _enumerate(disk, "diskDevice", ("disk", "cdrom"))
    _enumerate(disk, "bus", ("virtio",))
    _enumerate(disk, "model", ("virtio",))
    for name in ("graphics", "video", "hostdev"):
        devices.add(name, supported="no")
    rng = devices.add("rng", supported="yes")
    _enumerate(rng, "model", ("virtio",))
    _enumerate(rng, "backendModel", ("random",))
    folders = devices.add("filesystem", supported="yes")
    _enumerate(folders, "driverType", ("virtiofs", "path"))
    devices.add("tpm", supported="no")
    features = root.add("features")
    for name in ("gic", "vmcoreinfo", "genid", "backingStoreInput", "backup", "sev"):
        features.add(name, supported="no")
    return render(root)


def _enumerate(parent: Element, name: str, values: Sequence[str]) -> None:
    found = parent.add("enum", name=name)
    for value in values:
        found.add("value", value)


def system_information(tables: Mapping[str, Mapping[str, str]]) -> str:
    """Return what the host's firmware says of it: entries by table, such as bios and system."""
    root = Element("sysinfo", {"type": "smbios"})
    for table, entries in tables.items():
        place = root.add(table)
        for name, text in entries.items():
            place.add("entry", text, name=name)
    return render(root)
