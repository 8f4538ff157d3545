"""The XML of a domain: a machine, running or not (libvirt's formatdomain)."""

from __future__ import annotations

from ringzero.doors.libvirt.xml.devices import (
    CHANNEL,
    CONSOLE,
    DISK,
    FILESYSTEM,
    GRAPHICS,
    INTERFACE,
    MEMBALLOON,
    RNG,
    SERIAL,
    VIDEO,
    VSOCK,
    CharacterXml,
    DiskXml,
    FilesystemXml,
    GraphicsXml,
    InterfaceXml,
    MemballoonXml,
    RngXml,
    VideoXml,
    VsockXml,
)
from ringzero.doors.libvirt.xml.shape import (
    NUMBER,
    PROSE,
    YES_NO,
    Extra,
    Flag,
    Many,
    One,
    Shape,
    Size,
    Texts,
    Value,
    Verbatim,
)
from ringzero.records import record


@record
class OsXml:
    """What is booted: a kernel, firmware, or what lies on the devices of `boot`, in turn."""

    type: str = "hvm"
    arch: str | None = None
    machine: str | None = None
    firmware: str | None = None
    loader: str | None = None
    nvram: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    command_line: str | None = None
    boot: tuple[str, ...] = ()
    boot_menu: bool | None = None
    extra: tuple[Extra, ...] = ()


OS = Shape(
    "os",
    OsXml,
    {
        "firmware": Value("@firmware"),
        "type": Value("type"),
        "arch": Value("type/@arch"),
        "machine": Value("type/@machine"),
        "loader": Value("loader"),
        "nvram": Value("nvram"),
        "kernel": Value("kernel"),
        "initrd": Value("initrd"),
        "command_line": Value("cmdline"),
        "boot": Texts("boot", "dev"),
        "boot_menu": Value("bootmenu/@enable", YES_NO),
    },
)


@record
class CpuXml:
    """The guest's processor: `mode` is custom, host-model, host-passthrough or maximum."""

    mode: str | None = None
    match: str | None = None
    check: str | None = None
    model: str | None = None
    fallback: str | None = None
    extra: tuple[Extra, ...] = ()


CPU = Shape(
    "cpu",
    CpuXml,
    {
        "mode": Value("@mode"),
        "match": Value("@match"),
        "check": Value("@check"),
        "model": Value("model"),
        "fallback": Value("model/@fallback"),
    },
)


@record
class DomainXml:
    """A domain. Sizes are in bytes; `vcpus` is the most it may have, `current_vcpus` what it has.

    `type` is qemu, kvm or ringzero. `metadata` are the XML elements that clients keep with it.
    """

    type: str
    name: str
    id: int | None = None
    uuid: str | None = None
    title: str | None = None
    description: str | None = None
    metadata: tuple[str, ...] = ()
    memory: int | None = None
    current_memory: int | None = None
    vcpus: int | None = None
    current_vcpus: int | None = None
    os: OsXml | None = None
    acpi: bool = False
    apic: bool = False
    pae: bool = False
    cpu: CpuXml | None = None
    clock_offset: str | None = None
    on_poweroff: str | None = None
    on_reboot: str | None = None
    on_crash: str | None = None
    emulator: str | None = None
    disks: tuple[DiskXml, ...] = ()
    filesystems: tuple[FilesystemXml, ...] = ()
    interfaces: tuple[InterfaceXml, ...] = ()
    serials: tuple[CharacterXml, ...] = ()
    consoles: tuple[CharacterXml, ...] = ()
    channels: tuple[CharacterXml, ...] = ()
    graphics: tuple[GraphicsXml, ...] = ()
    videos: tuple[VideoXml, ...] = ()
    memballoon: MemballoonXml | None = None
    rngs: tuple[RngXml, ...] = ()
    vsock: VsockXml | None = None
    extra: tuple[Extra, ...] = ()


DOMAIN = Shape(
    "domain",
    DomainXml,
    {
        "type": Value("@type"),
        "id": Value("@id", NUMBER),
        "name": Value("name"),
        "uuid": Value("uuid"),
        "title": Value("title", PROSE),
        "description": Value("description", PROSE),
        "metadata": Verbatim("metadata"),
        "memory": Size("memory", "KiB", "KiB"),
        "current_memory": Size("currentMemory", "KiB", "KiB"),
        "vcpus": Value("vcpu", NUMBER),
        "current_vcpus": Value("vcpu/@current", NUMBER),
        "os": One("os", OS),
        "acpi": Flag("features/acpi"),
        "apic": Flag("features/apic"),
        "pae": Flag("features/pae"),
        "cpu": One("cpu", CPU),
        "clock_offset": Value("clock/@offset"),
        "on_poweroff": Value("on_poweroff"),
        "on_reboot": Value("on_reboot"),
        "on_crash": Value("on_crash"),
        "emulator": Value("devices/emulator"),
        "disks": Many("devices/disk", DISK),
        "filesystems": Many("devices/filesystem", FILESYSTEM),
        "interfaces": Many("devices/interface", INTERFACE),
        "serials": Many("devices/serial", SERIAL),
        "consoles": Many("devices/console", CONSOLE),
        "channels": Many("devices/channel", CHANNEL),
        "graphics": Many("devices/graphics", GRAPHICS),
        "videos": Many("devices/video", VIDEO),
        "memballoon": One("devices/memballoon", MEMBALLOON),
        "rngs": Many("devices/rng", RNG),
        "vsock": One("devices/vsock", VSOCK),
    },
)
