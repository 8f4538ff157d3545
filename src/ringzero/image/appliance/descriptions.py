"""What descriptions of machines say of disks, memory and CPUs; no I/O.

    OVF      DMTF DSP0243 1.1 and 2.0 (and the 0.9 of VMware's old tools)
    .vmx     VMware's configuration: NAME = "VALUE"
    .vbox    VirtualBox's settings, XML
    box      metadata.json of Vagrant, which says who its provider is, and a Vagrantfile

Their bytes are not trusted: a name that is none of a file beside the description is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from ringzero.errors import GuestImageError
from ringzero.records import record
from ringzero.units import GIB, KIB, MIB, TIB

MAX_DESCRIPTION = 4 * MIB
# More than any of their products gives a machine.
_MOST_DISKS, _MOST_MEMORY, _MOST_CPUS = 64, 64 * TIB, 4096
# CIM_ResourceAllocationSettingData, ResourceType.
_PROCESSOR, _MEMORY, _NIC, _DISK = "3", "4", "10", "17"
# Of OVF 2.0 the last two.
_ITEMS = ("Item", "StorageItem", "EthernetPortItem")
_UNITS = {"kilobytes": KIB, "kb": KIB, "megabytes": MIB, "mb": MIB, "gigabytes": GIB, "gb": GIB}
_POWER = re.compile(r"byte\s*\*\s*2\s*\^\s*(\d{1,2})")
_VMX_LINE = re.compile(r'^\s*([A-Za-z0-9_.:]+)\s*=\s*"(.*)"\s*$')
_VMX_DISK = re.compile(r"(scsi|sata|ide|nvme)\d+:\d+\.filename")
_VMX_NIC = re.compile(r"ethernet\d+\.present")
# A setting of a provider in a Vagrantfile that is a number, in MiB where it is of memory; what is
# computed there is not.
_VAGRANT = re.compile(r"^\s*\w+\.(memory|cpus)\s*=\s*[\"']?(\d{1,9})[\"']?\s*$", re.MULTILINE)


@record
class Appliance:
    """A machine: the files of its disks in order.

    `memory` in bytes, CPUs and network interfaces where that is said.
    """

    disks: tuple[str, ...]
    memory: int | None = None
    cpus: int | None = None
    nics: int | None = None


def ovf(data: bytes) -> Appliance:
    """Return the machine that an OVF describes. Raises GuestImageError."""
    root = _xml(data, "the OVF")
    files = {_of(item, "id"): _of(item, "href") for item in _all(root, "File")}
    packed = {_of(item, "id") for item in _all(root, "File") if _of(item, "compression")}
    disks = {_of(item, "diskId"): item for item in _all(root, "Disk")}
    systems = list(_all(root, "VirtualSystem")) + list(_all(root, "Content"))
    if len(systems) != 1:
        raise GuestImageError(f"the OVF describes {len(systems)} machines, and one is imported")
    order, memory, cpus = list[str](), None, None
    items = [item for kind in _ITEMS for item in _all(systems[0], kind)]
    for item in items:
        kind, quantity = _text(item, "ResourceType"), _text(item, "VirtualQuantity")
        if kind == _PROCESSOR:
            cpus = _number(quantity, _MOST_CPUS)
        elif kind == _MEMORY:
            unit = _unit(_text(item, "AllocationUnits"))
            memory = _number(quantity, _MOST_MEMORY // unit)
            memory = memory and memory * unit
        elif kind == _DISK:
            order.append(_text(item, "HostResource").rpartition("/")[2])
    names = []
    for identifier in order or list(disks):
        disk = disks.get(identifier)
        reference = _of(disk, "fileRef") if disk is not None else ""
        if reference in packed:
            raise GuestImageError("a disk of the OVF is compressed", hint="unpack it with ovftool")
        # A disk without a file is an empty one.
        if reference:
            names.append(beside(files.get(reference, "")))
    nics = sum(_text(item, "ResourceType") == _NIC for item in items)
    return _machine(names, memory, cpus, nics)


def vmx(data: bytes) -> Appliance:
    """Return the machine that VMware's configuration describes. Raises GuestImageError."""
    found = dict[str, str]()
    for line in _decoded(data).splitlines():
        match = _VMX_LINE.match(line)
        if match:
            found[match[1].lower()] = match[2]
    if "config.version" not in found and "virtualhw.version" not in found:
        raise GuestImageError("no configuration of VMware's: it says no version")
    names = []
    for key in sorted(filter(_VMX_DISK.fullmatch, found)):
        place = key.partition(".")[0]
        is_disk = found[key].lower().endswith(".vmdk")
        if is_disk and found.get(f"{place}.present", "TRUE").upper() == "TRUE":
            names.append(beside(found[key]))
    memory = _number(found.get("memsize", ""), _MOST_MEMORY // MIB)
    nics = sum(found[key].upper() == "TRUE" for key in filter(_VMX_NIC.fullmatch, found))
    cpus = _number(found.get("numvcpus", ""), _MOST_CPUS)
    return _machine(names, memory and memory * MIB, cpus, nics)


def vbox(data: bytes) -> Appliance:
    """Return the machine that VirtualBox's settings describe. Raises GuestImageError."""
    root = _xml(data, "the settings of VirtualBox")
    known = {_of(disk, "uuid"): disk for disk in _all(root, "HardDisk")}
    inner = {
        _of(child, "uuid") for disk in known.values() for child in disk if _tag(child) == "HardDisk"
    }
    machine = next(_all(root, "Machine"), root)
    # Those of snapshots hang below these.
    controllers = [
        place for place in _all(machine, "StorageControllers") if not _in_snapshot(machine, place)
    ]
    names = []
    for device in (d for place in controllers for d in _all(place, "AttachedDevice")):
        image = next(_all(device, "Image"), None)
        if _of(device, "type") != "HardDisk" or image is None:
            continue
        identifier = _of(image, "uuid")
        if identifier in inner:
            raise GuestImageError(
                "a disk of the machine is a difference to another one, of a snapshot",
                hint="clone it in VirtualBox, or export it as an OVA",
            )
        disk = known.get(identifier)
        names.append(beside(_of(disk, "location") if disk is not None else ""))
    memory = next((_of(item, "RAMSize") for item in _all(machine, "Memory")), "")
    cpus = next((_of(item, "count") for item in _all(machine, "CPU")), "")
    size = _number(memory, _MOST_MEMORY // MIB)
    adapters = [a for place in _all(machine, "Network") for a in _all(place, "Adapter")
                if not _in_snapshot(machine, place)]  # fmt: skip
    nics = sum(_of(adapter, "enabled") == "true" for adapter in adapters)
    return _machine(names, size and size * MIB, _number(cpus, _MOST_CPUS), nics)


def box(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return whom a box is for, by its metadata.json, and the files of its disks where it has them.

    Those of libvirt's have them from version 2 of their format on. Raises GuestImageError.
    """
    try:
        value = json.loads(data)
        found, disks = value.get("provider"), value.get("disks", [])
    except (ValueError, AttributeError, RecursionError):
        found = None
    if not isinstance(found, str):
        raise GuestImageError("no box of Vagrant's: its metadata.json names no provider")
    if not isinstance(disks, list) or len(disks) > _MOST_DISKS:
        raise GuestImageError("the metadata.json of the box has no list of disks")
    names = [disk.get("path") if isinstance(disk, dict) else None for disk in disks]
    texts = [name for name in names if isinstance(name, str)]
    if len(texts) < len(names):
        raise GuestImageError("the metadata.json of the box has a disk without a path")
    return found, tuple(map(beside, texts))


def vagrantfile(data: bytes) -> tuple[int | None, int | None]:
    """Return memory in bytes and CPUs that a box's own Vagrantfile sets; None for what it does not.

    It is a program, which is not run: settings that are plain numbers are read.
    """
    found = dict(_VAGRANT.findall(_decoded(data)))
    memory = _number(found.get("memory", ""), _MOST_MEMORY // MIB)
    return memory and memory * MIB, _number(found.get("cpus", ""), _MOST_CPUS)


def beside(name: str) -> str:
    """Return a name of a file beside a description. Raises GuestImageError for any other."""
    text = name.removeprefix("./").replace("%20", " ")
    if not text or text.startswith(("/", "\\")) or ":" in text or "\0" in text:
        raise GuestImageError(f"a disk's file is called {name[:200]!r}, which is none beside it")
    if any(part in ("", ".", "..") for part in text.replace("\\", "/").split("/")):
        raise GuestImageError(f"a disk's file is called {name[:200]!r}, which leads elsewhere")
    return text


def _machine(names: list[str], memory: int | None, cpus: int | None, nics: int) -> Appliance:
    if not names:
        raise GuestImageError("the machine has no disk with a file")
    if len(names) > _MOST_DISKS:
        raise GuestImageError(f"the machine has {len(names)} disks, more than {_MOST_DISKS}")
    return Appliance(tuple(names), memory, cpus, nics)


def _in_snapshot(machine: ElementTree.Element, place: ElementTree.Element) -> bool:
    return any(
        place is other for snapshot in _all(machine, "Snapshot") for other in snapshot.iter()
    )


def _xml(data: bytes, what: str) -> ElementTree.Element:
    # Entities have no use in either, and are how small documents become large ones.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or len(data) > MAX_DESCRIPTION:
        raise GuestImageError(f"{what} is too large, or has a document type, which it never has")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as fault:
        raise GuestImageError(f"{what} is no XML: {fault}") from fault


def _tag(item: ElementTree.Element) -> str:
    return str(item.tag).rpartition("}")[2]


def _all(root: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (item for item in root.iter() if _tag(item) == name)


def _of(item: ElementTree.Element, name: str) -> str:
    """Return an attribute, of whatever namespace."""
    return next((v for key, v in item.attrib.items() if key.rpartition("}")[2] == name), "")


def _text(item: ElementTree.Element, name: str) -> str:
    return next((child.text or "" for child in item if _tag(child) == name), "").strip()


def _unit(text: str) -> int:
    match = _POWER.fullmatch(text.strip().lower())
    if match:
        return 1 << min(int(match[1]), 50)
    return _UNITS.get(text.strip().lower(), MIB)


def _number(text: str, most: int) -> int | None:
    """Return a number from 1 to `most`; None for what is none."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
    return value if 0 < value <= most else None


def _decoded(data: bytes) -> str:
    return data[:MAX_DESCRIPTION].decode("utf-8", "replace")
