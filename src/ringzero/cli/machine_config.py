"""What `run` and `create` make of their flags: the description of the machine.

It is a guest of the user's own (a kernel, or a disk that boots), or one of ringzero's images, with
a container's image or a folder of the host's as its root.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ringzero.cli.command_flags import command_words, given, variables
from ringzero.cli.health_flags import health_check
from ringzero.config.device import DEVICE_CONFIGS, DeviceConfig
from ringzero.errors import (
    GuestImageError,
    HostError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.settings import ENGINE

if TYPE_CHECKING:
    import argparse

    from ringzero.config.machine import MachineConfig
    from ringzero.image.cloudinit import Seed
    from ringzero.image.machinespec import DataDisk, MachineSpec
    from ringzero.image.oci.boot import DiskFiles

# What `run` without a command runs.
_SHELL = ("sh", "-l")
_DEFAULT_IMAGE = "micro"
# What a machine has where neither its flags nor its image say more.
DEFAULT_MEMORY, _DEFAULT_CPUS = "512M", 1
# The board of each profile of a machine.
PROFILES = {"full": "microvm", "minimal": "minimal"}


def release_disks(config: MachineConfig) -> None:
    """Remove the disks that were made for a machine, where none is left that needs them."""
    if config.boot_entry is not None or len(config.disks) > 1:
        from ringzero.control.host import owndisks
        from ringzero.control.host.directory import descriptions

        owndisks.release(owndisks.of(config), descriptions())


def _place_command(arguments: argparse.Namespace) -> None:
    """Make environment, directory and user part of the command, or of the shell."""
    arguments.shell = not arguments.command
    if given(arguments):
        arguments.command = command_words(arguments, arguments.command or _SHELL)


def _place_program(
    arguments: argparse.Namespace,
    environment: Sequence[tuple[str, str]] = (),
    directory: str | None = None,
) -> Callable[[Sequence[str]], Sequence[str]]:
    """Make environment, directory and user part of a container's command, as its init reads them.

    There need be no programs in the image by which that could be done. Returns what makes them
    part of another.
    """
    arguments.shell = False
    of_image = arguments.command and not arguments.own_command
    if of_image and sys.stdin.isatty() and sys.stdout.isatty():
        # What the image says is for a person, who sits there.
        arguments.tty = arguments.tty or not arguments.detach
    from ringzero.api.command import command_options

    # A user's own HOME is not that of the host's.
    *before, _ = command_options(environment)
    where = arguments.workdir or directory
    before += command_options(variables(arguments), where, arguments.user)

    def place(words: Sequence[str]) -> Sequence[str]:
        return [*before, *words]

    if arguments.command:
        arguments.command = place(arguments.command)
    return place


def common_fields(
    arguments: argparse.Namespace, spec: MachineSpec | None = None
) -> dict[str, object]:
    """Return the fields of the description that every guest has. Raises InvalidValueError.

    `spec` is what the guest's image asks for, and flags say otherwise.
    """
    memory, cpus = (spec.memory, spec.cpus) if spec is not None else (None, None)
    return {
        "memory": (memory or DEFAULT_MEMORY) if arguments.memory is None else arguments.memory,
        "cpus": (cpus or _DEFAULT_CPUS) if arguments.cpus is None else arguments.cpus,
        "engine": arguments.engine or ENGINE.get(),
        **({"cpu": arguments.cpu} if arguments.cpu else {}),
        **({"board": PROFILES[arguments.profile]} if arguments.profile else {}),
        **{f"{kind}s": _of_flag(arguments, device) for kind, device in DEVICE_CONFIGS},
        "nets": _nets(arguments, 1 if spec is None or spec.nics is None else spec.nics),
    }


def _of_flag(arguments: argparse.Namespace, device: type[DeviceConfig]) -> Sequence[object]:
    """Return what was written behind the flag of a kind of device."""
    name = next(name for name in device.flag_names() if name.startswith("--"))
    found: Sequence[object] = getattr(arguments, name.removeprefix("--"))
    return found


def _nets(arguments: argparse.Namespace, count: int) -> Sequence[object]:
    """Return the network interfaces; but for a user's own kernel there are `count` by default.

    Ports that are published have one in any case.
    """
    nets = arguments.net or ([] if arguments.kernel else ["user"] * count)
    if not arguments.publish:
        return nets
    nets = nets or ["user"]
    from ringzero.config.devices.net import NetConfig, publish
    from ringzero.config.ports import parse_ports

    ports = [port for text in arguments.publish for port in parse_ports(text)]
    return publish([NetConfig.parse(text) for text in nets], ports)


def is_own(arguments: argparse.Namespace) -> bool:
    """Whether the guest is the user's own, and not one of ringzero's images."""
    return bool(arguments.kernel) or arguments.boot_entry is not None


def find_entry(arguments: argparse.Namespace) -> None:
    """Have the first disk booted where nothing else is to be, and it has something to boot.

    Raises NotFoundError with the disk's entries where another was asked for.
    """
    asked = arguments.boot_entry is not None or seeded(arguments)
    other = (
        *(arguments.kernel, arguments.image, arguments.root),
        arguments.command and not arguments.agent,
        given(arguments),
    )
    if not arguments.disk or (any(other) and not asked):
        return
    from ringzero.config.devices.disk import DiskConfig
    from ringzero.vm import diskboot

    disk = DiskConfig.parse(arguments.disk[0])
    if disk.file_faults():
        # Told with the rest.
        return
    try:
        bootable = diskboot.look(disk)
        entry = bootable.choose(arguments.boot_entry or "")
    except GuestImageError as fault:
        if asked:
            raise
        print(f"ringzero: {disk.path}: {fault.message}: the default guest has it", file=sys.stderr)
        return
    arguments.boot_entry = arguments.boot_entry or ""
    what = disk.path if arguments.imported is None else arguments.imported.image.name
    print(f"ringzero: booting {entry.title!r} from {what}", file=sys.stderr)
    if seeded(arguments) and not bootable.cloud_init:
        print(
            f"ringzero: {what}: no cloud-init was found on it; it may pass over "
            "--cloud-init, --ssh-key, --hostname and --network-config",
            file=sys.stderr,
        )


def find_imported(arguments: argparse.Namespace) -> None:
    """Have the disks of an imported machine booted, where the image that is named is one.

    One that is not in the store is known for it when it has been pulled.
    """
    arguments.imported = None
    if not arguments.image or arguments.kernel:
        return
    from ringzero.image.names import IMAGES

    if arguments.image in IMAGES:
        return
    from ringzero.image.oci import boot

    found = boot.imported(arguments.image)
    if found is not None:
        boot_imported(arguments, found)


def boot_imported(arguments: argparse.Namespace, files: DiskFiles) -> None:
    """Have the disks of an imported machine booted, with what the flags say besides."""
    files.words((), arguments.entrypoint)
    if arguments.root:
        raise InvalidValueError(
            f"{files.image.name} is an imported machine, and has its own root",
            hint="leave the image or --root out",
        )
    if given(arguments) and not arguments.command:
        raise InvalidValueError(
            f"--env, --workdir and --user are for a command, and {files.image.name} runs its own "
            "system",
            hint=f"ringzero run {files.image.name} -- CMD",
        )
    arguments.image, arguments.imported = None, files
    arguments.disk = [*(f"{disk},format=qcow2" for disk in files.disks), *arguments.disk]
    arguments.boot_entry = arguments.boot_entry or ""
    # A command is run by the agent.
    arguments.agent = arguments.agent or bool(arguments.command)
    if given(arguments):
        _place_command(arguments)


def seeded(arguments: argparse.Namespace) -> bool:
    """Whether cloud-init in the guest is to be given something."""
    return bool(
        arguments.cloud_init or arguments.ssh_key or arguments.hostname or arguments.network_config
    )


def read_seed(arguments: argparse.Namespace) -> Seed:
    """Return what cloud-init is given. Raises what is wrong with the files."""
    from ringzero.image.cloudinit import Seed

    return Seed.read(
        user_data=arguments.cloud_init,
        keys=arguments.ssh_key,
        hostname=arguments.hostname,
        network_config=arguments.network_config,
        agent=arguments.agent,
    )


def own_config(arguments: argparse.Namespace) -> MachineConfig:
    """Return the description of a guest of the user's own. Raises ConfigError."""
    from ringzero.config.machine import MachineConfig

    imported: DiskFiles | None = arguments.imported
    common = common_fields(arguments, imported.machine if imported else None)
    arguments.health = health_check(arguments, None, tuple)
    if arguments.health is not None and not arguments.agent:
        raise InvalidValueError(
            "a health check is a command in the guest, which needs the agent", hint="add --agent"
        )
    if seeded(arguments):
        from ringzero.config.devices.disk import DiskConfig
        from ringzero.control.host import owndisks
        from ringzero.control.host.directory import descriptions

        path = owndisks.keep(read_seed(arguments), descriptions())
        common["disks"] = [*arguments.disk, DiskConfig(path, read_only=True, format="raw")]
    name = (
        imported.name
        if imported
        else _name(arguments.kernel or arguments.disk[0].partition(",")[0])
    )
    config = MachineConfig.create(
        **common,
        cloud_init=seeded(arguments),
        name=name,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        command_line=" ".join(arguments.append or ()),
        boot_entry=arguments.boot_entry,
        agent=arguments.agent,
    )
    return config if imported is None else _with_overlays(config, imported)


def _with_overlays(config: MachineConfig, imported: DiskFiles) -> MachineConfig:
    """Return the same with what this machine writes on the disks of an imported one."""
    from ringzero.control.host import owndisks
    from ringzero.control.host.directory import descriptions
    from ringzero.vm.boot import with_overlays

    overlays = owndisks.overlays(imported.disks, descriptions())
    return with_overlays(config, imported.disks, overlays)


def default_config(arguments: argparse.Namespace) -> MachineConfig:
    """Return the description of a guest with a kernel of ringzero's, made where it is missing.

    Its command is put into `arguments.command`. Raises NotFoundError, HostError, ConfigError.
    """
    from ringzero.config.machine import MachineConfig
    from ringzero.host.progress import Progress
    from ringzero.image import names

    name = arguments.image or _DEFAULT_IMAGE
    _look_here(name, quiet=arguments.json)
    try:
        image = names.find(name)(progress=Progress())
    except RingzeroError as fault:
        raise _unknown(name, fault) from fault
    if image.disks:
        boot_imported(arguments, cast("DiskFiles", image))
        find_entry(arguments)
        return own_config(arguments)
    arguments.command = image.words(arguments.command, arguments.entrypoint)
    config = MachineConfig.create(
        **common_fields(arguments, image.machine),
        name=image.name,
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=_joined(image.command_line, arguments.append),
        agent=True,
    )
    if arguments.root:
        from ringzero.cli import hostroot
        from ringzero.config import root as roots
        from ringzero.vm.boot import modules_of, with_folder

        root = roots.parse(arguments.root, arguments.init)
        if not (arguments.command or arguments.detach):
            # A machine that stays ends when its user says so.
            arguments.command = hostroot.shell(root)
        place = _place_program(arguments, hostroot.environment(root), hostroot.directory(root))
        arguments.health = health_check(arguments, None, place)
        return with_folder(config, root, modules_of(image, root, Progress()))
    if image.root is None:
        _place_command(arguments)
        arguments.health = health_check(
            arguments, None, lambda words: command_words(arguments, words)
        )
        return config
    from ringzero.vm.boot import AWAIT_SERVICES, with_root, with_services

    if not arguments.command and given(arguments):
        raise InvalidValueError(
            f"--env, --workdir and --user are for a command, and {image.name} runs its services",
            hint=f"ringzero run {image.name} -- CMD",
        )
    # A health check runs as the image's program does.
    place = _place_program(arguments)
    if not (arguments.command or arguments.detach):
        # Its services are what it is for: their output is shown, until they have ended.
        arguments.command, arguments.shows_services = [*AWAIT_SERVICES], True
    arguments.health = health_check(arguments, image.health, place)
    if image.machine is not None and image.machine.disks:
        config = _with_disks(config, image.machine.disks)
    return with_services(with_root(config, image), image)


def _with_disks(config: MachineConfig, disks: Sequence[DataDisk]) -> MachineConfig:
    """Return the same with the disks that its image asks for, made for this machine."""
    from ringzero.control.host import owndisks
    from ringzero.control.host.directory import descriptions
    from ringzero.vm.boot import with_disks

    return with_disks(config, disks, owndisks.make(disks, descriptions()))


def _look_here(name: str, *, quiet: bool) -> None:
    """Say what a bare word is taken for before a registry is asked for an image of that name.

    Raises NotFoundError for one that is a command, InvalidValueError for one that is no name.
    """
    from ringzero.image import names

    if any(c in name for c in ":/@") or names.is_here(name):
        return
    import shutil

    if shutil.which(name):
        raise NotFoundError(
            f"no image is called {name!r} here; it is a command",
            hint=f"a command goes behind --: ringzero run -- {name}; for an image of that name: "
            f"ringzero pull {name}",
        )
    if not quiet:
        print(
            f"ringzero: no image is called {name!r} here, a registry is asked for one "
            f"(a command goes behind --: ringzero run -- {name})",
            file=sys.stderr,
        )


def _unknown(name: str, fault: RingzeroError) -> RingzeroError:
    """Return the error for an image that cannot be had; a bare word may be a command."""
    from ringzero.image.names import IMAGES

    reference = any(c in name for c in ":/@")
    if name in IMAGES.names() or reference or not isinstance(fault, (HostError, NotFoundError)):
        return fault
    return NotFoundError(
        f"no image is called {name!r} here, and {fault.message}",
        hint=f"a command goes behind --: ringzero run -- {name}; images here: "
        f"{', '.join(IMAGES.names())}",
    )


def _joined(own: str, added: Sequence[str] | None) -> str:
    return " ".join((own, *(added or ())))


def _name(kernel: str) -> str:
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(kernel).name)
    return text.strip("-")[:60] or "machine"
