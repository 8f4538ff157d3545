"""What a machine boots from: its description made whole, its kernel and initrd read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.api.command import ROOT_PARAMETER
from ringzero.config.machine import MachineConfig
from ringzero.config.root import HostRoot
from ringzero.config.root import parse as parse_root
from ringzero.errors import ConfigError, GuestImageError, InvalidValueError
from ringzero.host.files import map_file
from ringzero.host.progress import QUIET, Progress
from ringzero.image import names
from ringzero.image.names import BootFiles
from ringzero.records import record, replace
from ringzero.settings import CACHE_DIR

if TYPE_CHECKING:
    from ringzero.board.boot.kernelimage import KernelImage
    from ringzero.config.device import DeviceConfig
    from ringzero.image.machinespec import DataDisk


def complete(
    config: MachineConfig | None, image: str | None, fields: dict[str, Any]
) -> MachineConfig:
    """Return the whole description, whichever way it was given."""
    if config is not None:
        if image is not None or fields:
            raise InvalidValueError("give a MachineConfig or fields by name, not both")
        return config
    if image is None and "root" in fields:
        # The kernel and what runs beside the folder's programs are the default guest's.
        image = "micro"
    if image is None:
        return MachineConfig.create(**fields)
    clash = {"kernel", "initrd"} & set(fields)
    if clash:
        raise ConfigError([f"an image has its own {name}" for name in sorted(clash)])
    files = _boot_files(image)
    if files.disks:
        return _imported(files, fields)
    fields = with_network(fields)
    added, root = fields.pop("command_line", ""), fields.pop("root", None)
    init = fields.pop("init", None)
    if init is not None and root is None:
        raise ConfigError(["an init without a root: the first process is the image's own"])
    spec = files.machine
    asked = {} if spec is None else {"memory": spec.memory, "cpus": spec.cpus}
    config = MachineConfig.create(
        **{"name": files.name, **{k: v for k, v in asked.items() if v is not None}, **fields},
        kernel=files.kernel,
        initrd=files.initrd,
        command_line=f"{files.command_line} {added}".strip(),
        agent=True,
    )
    if root is not None:
        if files.root is not None:
            raise ConfigError([f"the image {image} has a root of its own"])
        where = parse_root(str(root), init)
        return with_folder(config, where, modules_of(files, where))
    if spec is not None and spec.disks:
        from ringzero.image import datadisks

        config = with_disks(config, spec.disks, datadisks.make(spec.disks))
    return with_services(with_root(config, files), files)


def _imported(files: BootFiles, fields: dict[str, Any]) -> MachineConfig:
    """Return the description of an imported machine: as it was, where the fields say nothing.

    The agent is brought into it, unless `agent` is False.
    """
    from ringzero.config.devices.disk import DiskConfig
    from ringzero.image import datadisks

    clash = {"root", "init"} & set(fields)
    if clash:
        raise ConfigError([f"an imported machine has its own {name}" for name in sorted(clash)])
    spec = files.machine
    assert spec is not None
    known: dict[str, Any] = {"name": files.name, "memory": spec.memory, "cpus": spec.cpus}
    known |= {"boot_entry": "", "agent": True}
    given = with_network(fields, 1 if spec.nics is None else spec.nics)
    # The first one is booted.
    devices = [DiskConfig(disk, format="qcow2") for disk in files.disks]
    devices += given.pop("devices", ())
    known = {name: value for name, value in known.items() if value is not None} | given
    config = MachineConfig.create(**known, devices=devices)
    return with_overlays(config, files.disks, datadisks.overlays(files.disks))


def with_overlays(
    config: MachineConfig, disks: Sequence[Path], overlays: Sequence[Path]
) -> MachineConfig:
    """Return the same with the disks of an imported machine replaced by what is written on each."""
    from ringzero.config.devices.disk import DiskConfig

    places = dict(zip(disks, overlays, strict=True))

    def change(_: int, device: DeviceConfig) -> DeviceConfig:
        if isinstance(device, DiskConfig) and device.path in places:
            return replace(device, path=places[device.path])
        return device

    return config.map_devices(change)


def with_disks(
    config: MachineConfig, disks: Sequence[DataDisk], paths: Sequence[Path]
) -> MachineConfig:
    """Return the same with the disks that an image asks for, which lie at `paths`, mounted.

    They come behind the user's own.
    """
    from ringzero.config.devices.disk import DiskConfig

    devices, words = list(config.devices), list[str]()
    for number, (disk, path) in enumerate(zip(disks, paths, strict=True), len(config.disks)):
        devices.append(DiskConfig(path, format="raw"))
        words.append(f"{_disk_name(number)}:{disk.format}:{disk.path}")
    line = f"{config.command_line} {DISKS_PARAMETER}={','.join(words)}"
    return replace(config, devices=tuple(devices), command_line=line)


def _disk_name(number: int) -> str:
    """Return what the guest's kernel calls its disk with a number, from 0 on."""
    return f"/dev/vd{chr(ord('a') + number)}"


def with_root(config: MachineConfig, files: BootFiles) -> MachineConfig:
    """Return the same with the disk that holds the root of `files`, where it has one.

    It is the last, so that the user's disks are called as they are in every other guest.
    """
    if files.root is None:
        return config
    from ringzero.config.devices.disk import DiskConfig

    device = _disk_name(len(config.disks))
    return replace(
        config,
        devices=(*config.devices, DiskConfig(files.root, read_only=True, format="vmdk")),
        command_line=f"{config.command_line} {ROOT_PARAMETER}={device}",
    )


def with_services(config: MachineConfig, files: BootFiles) -> MachineConfig:
    """Return the same with the services of `files` started at boot, where it has any."""
    spec = files.machine
    if spec is None:
        return config
    words = [
        word
        for word, said in (
            (SERVICES, spec.services),
            (READY, spec.ready),
            (KEPT, spec.snapshot),
        )
        if said
    ]
    if not words:
        return config
    line = f"{config.command_line} {SERVICES_PARAMETER}={','.join(words)}"
    return replace(config, command_line=line)


def services_of(command_line: str) -> frozenset[str]:
    """Return what a kernel command line says of services: SERVICES, READY, KEPT."""
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name == SERVICES_PARAMETER:
            return frozenset(value.split(","))
    return frozenset()


def with_folder(
    config: MachineConfig, root: HostRoot, modules: Path | None = None
) -> MachineConfig:
    """Return the same with a folder of the host as the guest's root.

    What the guest writes is thrown away with it, unless the folder is writable. `modules` is a
    folder with those of the guest's kernel, called by its release; one that is written to is not
    given a place for them.
    """
    from ringzero.config.devices.share import ShareConfig

    share = ShareConfig(root.folder, "/", read_only=not root.writable)
    shares = [share.absolute()]
    if modules is not None and not root.writable:
        target = f"/lib/modules/{modules.name}"
        shares.append(ShareConfig(modules, target, read_only=True, cache="always"))
    how = "share,rw" if root.writable else "share"
    # The file systems that the folder's fstab names are on no disk of the guest's.
    first = f" ringzero.init={root.init} fstab=no" if root.init else ""
    return replace(
        config,
        devices=(*config.devices, *shares),
        command_line=f"{config.command_line} {ROOT_PARAMETER}={how}{first}",
    )


def with_transport(config: MachineConfig, *, saved: bool = False) -> MachineConfig:
    """Return the same with what carries its shared folders, where that is left open.

    Our own guests have virtio-fs, and so have saved ones that say nothing of it, of an earlier
    version. Of another kernel nobody knows before it runs: it gets both, if the board has room.
    """
    shares = config.shares
    if all(share.transport != "auto" for share in shares):
        return config
    from ringzero.config.devices.share import AUTO, BOTH, VIRTIOFS, ShareConfig
    from ringzero.image.micro import image_of

    def carried(transport: str) -> MachineConfig:
        return config.map_devices(
            lambda _, device: (
                replace(device, transport=transport) if isinstance(device, ShareConfig) else device
            )
        )

    for share in shares:
        if share.transport != AUTO:
            return carried(share.transport)
    if not saved and not image_of(config.kernel):
        with contextlib.suppress(ConfigError):
            return carried(BOTH)
    return carried(VIRTIOFS)


def modules_of(files: BootFiles, root: HostRoot, progress: Progress = QUIET) -> Path | None:
    """Return a folder with the modules of an image's kernel, for a guest with such a root.

    None where they have no place there, or cannot be had.
    """
    from ringzero.image import kernelmodules, micro

    if root.writable or not isinstance(files, micro.BootFiles):
        return None
    return kernelmodules.ensure(files, progress=progress)


def with_network(fields: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
    """Return the fields of a description of one of ringzero's own guests: with a user network.

    Unless they say something of networks themselves; `nets=()` is none. An imported machine has
    `count` of them.
    """
    if "net" in fields or "nets" in fields or "net" in map(_kind, fields.get("devices", ())):
        return dict(fields)
    return {**fields, "nets": ("user",) * count}


def _kind(device: Any) -> str:
    """Return the kind of a device as a description may have it: a record, plain data, text."""
    if isinstance(device, Mapping):
        return str(device.get("kind"))
    return str(getattr(device, "kind", "") or str(device).partition("=")[0])


@record
class Beginning:
    """What is put into memory before a machine runs."""

    kernel: KernelImage | None
    initrd: memoryview
    command_line: str


# By which ringzero's own guests know that they are to be served by the agent.
OWN_AGENT = "ringzero.agent"
# What tells them how to set their network interfaces up.
NET_PARAMETER, SEARCH_PARAMETER = "ringzero.net", "ringzero.search"
# What tells them which disks they mount, and where.
DISKS_PARAMETER = "ringzero.disks"
# What tells them that services are started; that a guest can say when it is ready; and that the
# memory in which they run may be another machine's beginning.
SERVICES_PARAMETER = "ringzero.services"
SERVICES, READY, KEPT = "started", "ready", "kept"
# How a guest is asked whether it is ready, and for the end of its services.
ASK_READY, AWAIT_SERVICES = ("/sbin/ready",), ("/sbin/services",)
NOTHING = Beginning(None, memoryview(b""), "")


def read(config: MachineConfig) -> Beginning:
    """Return the kernel, if there is one, the initrd and the command line.

    Raises GuestImageError, NotFoundError, HostError, and of a disk that is booted DiskError.
    """
    if config.boot_entry is not None:
        from ringzero.vm import diskboot

        return _with_agent(config, Beginning(*diskboot.read(config)))
    if config.kernel is None:
        return NOTHING
    from ringzero.board.boot.kernel import load_kernel

    kernel = load_kernel(config.kernel, CACHE_DIR.get() / "kernels")
    initrd = _read_initrd(config.initrd, config.memory) if config.initrd else memoryview(b"")
    return _with_agent(config, Beginning(kernel, initrd, config.command_line))


def _with_agent(config: MachineConfig, found: Beginning) -> Beginning:
    """Return the same with the agent brought into a guest that is to have one, and is not ours."""
    if not config.agent or has_own_agent(found.command_line):
        return found
    if config.cloud_init and not len(found.initrd):
        # cloud-init's disk has it.
        return found
    from ringzero.image.agent import brought

    return Beginning(found.kernel, *brought(found.initrd, found.command_line))


def has_own_agent(command_line: str) -> bool:
    """Whether the guest's own init is the agent, as in ringzero's own guests."""
    return OWN_AGENT in command_line.split()


def own_command_line(config: MachineConfig, given: str, hostname: str) -> str:
    """Return the command line `given` of one of ringzero's own guests with what `config` adds."""
    # They are called as their machines are (Linux from 5.19 on).
    line = f"{given} hostname={hostname}"
    setups = [net.guest_setup(number) for number, net in enumerate(config.nets)]
    if setups:
        line += f" {NET_PARAMETER}={','.join(setups)}"
    if "static" in setups and KEPT not in services_of(given):
        from ringzero.host.resolvconf import search_domains

        # Those with DHCP are told by it.
        domains = search_domains()
        if domains:
            line += f" {SEARCH_PARAMETER}={','.join(domains)}"
    return line


def with_console(given: str, console: str) -> str:
    """Return a command line whose kernel speaks on `console`, and on no other."""
    words = [word for word in given.split(" ") if not word.startswith("console=")]
    return " ".join([f"console={console}", *words])


def _read_initrd(path: Path, memory: int) -> memoryview:
    from ringzero.board.boot.kernelimage import KernelImage

    try:
        size = path.stat().st_size
        # Not read first: it may be a disk image by mistake, and take a minute.
        KernelImage.check_initrd(size, memory, path)
        return map_file(path)[0]
    except OSError as fault:
        raise GuestImageError(
            f"cannot read the initrd {path}: {fault.strerror}", hint="check the path", path=path
        ) from fault


def _boot_files(image: str) -> BootFiles:
    """Return kernel, initrd and command line of the image called `image`.

    Raises NotFoundError with the known names, and what making the image raises.
    """
    return names.find(image)()
