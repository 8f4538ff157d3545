"""`ringzero run`: the default guest, one command in it, or a kernel of the user's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.command_flags import (
    add_command_flags,
    advise_quoting,
    command_words,
    given,
    variables,
)
from ringzero.cli.flags import unknown_flags, words_of
from ringzero.cli.verb import VERBS, Verb, print_json
from ringzero.config.device import DEVICE_CONFIGS, DeviceConfig
from ringzero.errors import (
    ConfigError,
    GuestImageError,
    HostError,
    InvalidValueError,
    MissingFileError,
    NotFoundError,
    RingzeroError,
)
from ringzero.settings import DATA_DIR, ENGINE

if TYPE_CHECKING:
    import argparse

    from ringzero.config.machine import MachineConfig
    from ringzero.control.host.directory import Claim
    from ringzero.image.cloudinit import Seed

# What `run` without a command runs.
_SHELL = ("sh", "-l")
_DEFAULT_IMAGE, _MEMORY = "micro", "512M"
# No kernel starts in less; a size below it without a unit was meant in another one.
_LEAST_MEMORY = 1 << 20


@VERBS.register("run")
class Run(Verb):
    # What it is called, in hints.
    name = "run"
    summary = "start a machine: the default Linux guest, or a kernel of your own"
    takes_command = True
    collects = True
    examples = """\
  ringzero run                            a shell in the default guest
  ringzero run -- uname -a                one command; its output, its exit status
  echo hi | ringzero run -- cat           standard input goes to the command
  ringzero run -t -- vi                   a command that wants a terminal
  ringzero run full -- uname -r           another image: a guest with another kernel
  ringzero run debian:12 -- cat /etc/os-release   a container's image as a machine
  ringzero run localhost:5000/app         its own entrypoint; also oci:DIR, docker-archive:FILE
  ringzero run -e LANG=C -w /tmp -u nobody -- env
  ringzero run --root / -- pytest         this host's own files, in a machine
  ringzero run --root ./rootfs:rw -- apt-get -y upgrade
  ringzero run --kernel vmlinuz --initrd initrd.img --append console=ttyS0
  ringzero run --disk cloud.qcow2         a distribution's disk image: the kernel that it holds
  ringzero run -d --name web --disk cloud.qcow2 --cloud-init web.yaml --ssh-key ~/.ssh/id.pub
  ringzero run --disk data.img,ro --memory 1G -- mount /dev/vda /mnt
  ringzero run -v .:/src -w /src -- ls    this folder is the guest's /src; also -v DATA:/data:ro
  ringzero run --vsock /tmp/vm.sock       sockets between host and guest
  ringzero run -d --name web -p 8080:80   port 8080 of this host leads to the guest's 80
  ringzero run --net none -- ./untrusted  no network; also --net user,host=no,allow=packages.example
  ringzero run --net socket=/tmp/cable,listen
  ringzero run --net socket=/tmp/cable    two machines that are connected with each other
  ringzero run --disk a.img,format=raw --disk b.qcow2 --net none --net socket=/tmp/lan
  ringzero run -d --name web              a machine that stays; see ps, exec, console, stop

The default guest is put together from Debian's packages at the first run and
kept in the cache. In an interactive session Ctrl-] is the escape key:
Ctrl-] q ends the machine.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.usage = "ringzero run [FLAGS] [IMAGE] [-- CMD ...]"
        self.add_machine_flags(parser)
        add = parser.add_argument
        add("-i", "--interactive", action="store_true", help="accepted: input is passed on anyway")
        add("-t", "--tty", action="store_true", help="give the command the guest's console")
        add("-d", "--detach", action="store_true", help="leave the machine running; print its name")
        add("--no-wait", action="store_true", help="with -d: do not wait until the guest is up")
        add("--stats", action="store_true", help="say on stderr where the time went")

    def add_machine_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags that say what the machine is, and what runs in it."""
        add = parser.add_argument
        add("--kernel", metavar="FILE", help="bzImage or ELF vmlinux to boot directly")
        add(
            "--image",
            metavar="NAME",
            default=None,
            help="the guest, as IMAGE: micro (default), full (Debian's full kernel), backports (a "
            "newer one), or a container's image: NAME:TAG, REGISTRY/NAME, oci:PATH, "
            "docker-archive:FILE",
        )
        add(
            "--root",
            metavar="DIR[:rw]",
            help="a folder of the host, or / itself, as the guest's root; what the guest writes is "
            "thrown away, unless with ':rw'",
        )
        add(
            "--agent",
            action="store_true",
            help="bring ringzero's agent into a Linux of your own, from --disk or --kernel and "
            "--initrd: for commands, `exec`, `cp` and `stop` in order",
        )
        add("--initrd", metavar="FILE", help="initial RAM disk for the kernel")
        add(
            "--boot-entry",
            metavar="NAME|N",
            default=None,
            help="boot this entry of the boot loader on the first disk: a title, an id or a number "
            "(default, without a kernel and a command: the loader's own choice)",
        )
        add(
            "--cloud-init",
            metavar="FILE",
            default=None,
            help="user data for cloud-init in the disk that is booted: '#cloud-config' or a script",
        )
        add(
            "--ssh-key",
            metavar="FILE",
            action="append",
            default=[],
            help="public key that may log in, by cloud-init (repeatable)",
        )
        add("--hostname", metavar="NAME", default=None, help="the guest's name, by cloud-init")
        add(
            "--network-config",
            metavar="FILE",
            default=None,
            help="network configuration (version 1 or 2) for cloud-init",
        )
        add(
            "--append",
            metavar="S",
            action="append",
            help="kernel command line (with an image or a disk: added to its own)",
        )
        for _, device in DEVICE_CONFIGS:
            add(
                *device.flag_names(),
                metavar=device.spelling,
                action="append",
                default=[],
                help=device.help,
            )
        add(
            *("-p", "--publish"),
            metavar="[ADDR:]HOST:GUEST[/udp]",
            action="append",
            default=[],
            help="forward a port of the host, by default of 127.0.0.1, to the guest; ranges as "
            "8000-8009:80-89; HOST 0: any free one (`ringzero port NAME` tells) (repeatable)",
        )
        add("--memory", "-m", metavar="SIZE", default=_MEMORY, help="memory (default: 512M)")
        add(
            "--cpu",
            metavar="MODEL",
            default=None,
            help="CPU model: x86-64-v2 (default), the same with -intel or -amd, which look alike "
            "on every engine, or host (KVM only)",
        )
        add("--cpus", metavar="N", type=int, default=1, help="virtual CPUs (default: 1)")
        add(
            "--engine",
            metavar="NAME",
            default=None,
            help="CPU engine: auto, soft, kvm, or kvm! where it is slow "
            "(default: auto, or RINGZERO_ENGINE)",
        )
        add("--timeout", metavar="S", type=float, help="end the machine after S seconds (exit 124)")
        add(
            "--serial",
            metavar="stdio|FILE",
            help="where the serial line goes (default: stdio with --kernel, else nowhere)",
        )
        add_command_flags(parser)
        add(
            "--entrypoint",
            metavar="CMD",
            default=None,
            help="what a container's image runs, instead of its own entrypoint",
        )
        add("--name", metavar="NAME", help="what `ps`, `exec`, `stop` and others call the machine")
        add("--rm", action="store_true", help="remove a named machine's directory at its end")
        add("--json", action="store_true", help="statistics and errors as JSON")

    def split(self, words: list[str]) -> tuple[list[str], list[str] | None]:
        """A word that is no flag is an image; the command stands behind "--"."""
        own, command = super().split(words)
        found = words_of(self, own)
        if not found:
            return own, command
        at = found[0]
        # A flag that we do not know may have a value: it is not taken for an image or a command.
        if not unknown_flags(self, own[:at]):
            if found[1:] and unknown_flags(self, own[at + 1 : found[1]]):
                found = found[:1]
            alone = len(found) == 1 and not unknown_flags(self, own[at + 1 :])
            _refuse_command(self.name, own, found, command, alone)
            own = [*own[:at], *own[at + 1 :], "--image", own[at]]
        return own, command

    def describe(self, arguments: argparse.Namespace) -> MachineConfig:
        """Return the machine's description. Raises ConfigError with all that is wrong."""
        faults = Faults(arguments.faults)
        faults.take(lambda: _check(arguments))
        engine = arguments.engine or ENGINE.get()
        if engine.startswith("kvm"):
            # Said before an image is made for it.
            faults.take(lambda: _refuse_kvm(engine))
        faults.take(lambda: _suspect_memory(arguments))
        faults.take(lambda: _check_files(arguments))
        faults.take(lambda: _description(arguments))
        faults.take(lambda: variables(arguments))
        if _seeded(arguments):
            faults.take(lambda: _seed(arguments))
        faults.take(lambda: _find_entry(arguments))
        faults.take(lambda: _check_root(arguments))
        faults.end(self.name)
        arguments.own_command = bool(arguments.command)
        return _own_config(arguments) if _is_own(arguments) else _default_config(arguments)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Build the machine's description, then hand over to `ringzero.cli.session`."""
        config = self.describe(arguments)
        if arguments.detach:
            return _detach(arguments, config)
        _measure_engines(config.engine)

        from ringzero.cli import session

        how: dict[str, Any] = {
            "words": arguments.command,
            "terminal": _on_terminal(arguments),
            "serial": arguments.serial
            or ("stdio" if _is_own(arguments) and not arguments.agent else None),
            "timeout": arguments.timeout,
            "stats": arguments.stats,
            "as_json": arguments.json,
        }
        if arguments.name is None:
            code = session.run(config, **how)
        else:
            code = _named(arguments, config, how)
        advise_quoting(arguments.command, code)
        return code


def _refuse_command(
    verb: str, own: list[str], found: list[int], command: list[str] | None, alone: bool
) -> None:
    """Where a command stands before "--", or instead of an image, say where it belongs."""
    import shlex

    from ringzero.cli.habits import no_image, perhaps_container
    from ringzero.image.names import IMAGES

    at, *more = found
    image = own[at]
    container = perhaps_container(image, alone=alone) and _may_be_container(image)
    if image not in IMAGES and not container:
        before = f"{verb} {shlex.join(own[:at])}".strip() + " "
        rest = shlex.join([*own[at + 1 :], *(command or ())])
        raise no_image(image, before, rest, IMAGES.names())
    if more:
        before, rest = shlex.join(own[: more[0]]), shlex.join(own[more[0] :])
        raise InvalidValueError(
            f"{own[more[0]]!r} stands where a flag belongs",
            hint=f"a command goes behind --: ringzero {verb} {before} -- {rest}",
        )


def _may_be_container(text: str) -> bool:
    """Whether `text` can be the name of a container's image."""
    from ringzero.image.oci.reference import parse

    try:
        parse(text)
    except InvalidValueError:
        return False
    return True


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError with all that does not go together."""
    faults = [fault for wrong, fault in _contradictions(arguments) if wrong]
    if len(faults) == 1:
        message, _, hint = faults[0].partition("; ")
        raise InvalidValueError(message, hint=hint or None)
    if faults:
        raise ConfigError(faults)
    if arguments.name is not None:
        from ringzero.control.host.directory import check_name

        check_name(arguments.name)


def _contradictions(arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """Yield what is wrong and what to do, each with whether it is so."""
    limit = arguments.timeout
    yield (
        arguments.kernel and arguments.command and not arguments.agent,
        "a command can only be run in the default guest, not with --kernel; leave --kernel out, "
        "or add --agent to have ringzero's agent in a Linux of your own",
    )
    booted = arguments.boot_entry is not None
    yield booted and arguments.kernel, "--boot-entry is of a disk's kernels; give it or --kernel"
    seeded = _seeded(arguments)
    yield (
        seeded and (arguments.kernel or arguments.image or arguments.root or arguments.command),
        "--cloud-init, --ssh-key, --hostname and --network-config are for a distribution's disk; "
        "give --disk FILE, and no kernel, image or command",
    )
    yield seeded and not arguments.disk, "cloud-init without a disk; add --disk FILE"
    yield booted and arguments.root, "--boot-entry boots a disk; give it or --root"
    yield booted and arguments.image, "--boot-entry boots a disk, not an image; leave the image out"
    yield booted and not arguments.disk, "--boot-entry without a disk; add --disk FILE"
    yield (
        booted and arguments.command,
        "a command can only be run in the default guest, not with --boot-entry; log in on the "
        "console, or let the guest's own services run it",
    )
    yield (
        arguments.kernel and arguments.image,
        "--image has a kernel of its own; give it or --kernel",
    )
    yield (
        arguments.kernel and (arguments.env or arguments.workdir or arguments.user),
        "--env, --workdir and --user are for commands in the default guest, not with --kernel",
    )
    yield arguments.kernel and arguments.entrypoint, "--entrypoint is of images, not of --kernel"
    yield arguments.initrd and not arguments.kernel, "--initrd without --kernel"
    yield (
        arguments.kernel and arguments.root,
        "--root boots with a kernel of ringzero's; leave --kernel out, or share the folder: -v",
    )
    yield (
        arguments.tty and not arguments.command and not arguments.interactive,
        "-t without a command; ringzero run -t -- CMD",
    )
    yield limit is not None and not limit > 0, f"a timeout of {limit} seconds makes no sense"
    yield (
        arguments.detach and (arguments.tty or arguments.serial == "stdio"),
        "a machine that is detached has no terminal; attach to it later: `ringzero console NAME`",
    )
    yield arguments.detach and arguments.stats, "--stats with -d; `ringzero inspect NAME` has them"
    yield arguments.no_wait and not arguments.detach, "--no-wait without -d"
    yield (
        arguments.serial == "stdio" and not (arguments.kernel or arguments.disk),
        "the default guest uses standard input and output itself; give a file: --serial boot.log",
    )


class Faults:
    """What is wrong with a command line, all of it."""

    def __init__(self, found: Sequence[str]) -> None:
        self._found: list[RingzeroError] = [InvalidValueError(text) for text in found]

    def take(self, check: Callable[[], object]) -> None:
        """Do a check and keep what it raises."""
        try:
            check()
        except RingzeroError as fault:
            self._found.append(fault)

    def end(self, verb: str) -> None:
        """Raise what was found: one as it is, several as ConfigError."""
        hint = f"`ringzero {verb} --help` tells what it takes"
        if not self._found:
            return
        lines: dict[str, None] = {}
        for fault in self._found:
            told = f"{fault.message}; {fault.hint}" if fault.hint else fault.message
            for line in getattr(fault, "faults", [told]):
                lines[line] = None
        if len(lines) > 1:
            raise ConfigError(list(lines), hint=hint)
        only = self._found[0]
        only.hint = only.hint or hint
        raise only


def _on_terminal(arguments: argparse.Namespace) -> bool:
    """Whether the command is given the console: where that is asked for, and a placed shell."""
    shell = given(arguments) and arguments.shell and sys.stdin.isatty()
    return bool(arguments.command and (arguments.tty or shell))


def _place_command(arguments: argparse.Namespace) -> None:
    """Make environment, directory and user part of the command, or of the shell."""
    arguments.shell = not arguments.command
    if given(arguments):
        arguments.command = command_words(arguments, arguments.command or _SHELL)


def _place_program(
    arguments: argparse.Namespace,
    environment: Sequence[tuple[str, str]] = (),
    directory: str | None = None,
) -> None:
    """Make environment, directory and user part of a container's command, as its init reads them.

    There need be no programs in the image by which that could be done.
    """
    arguments.shell = False
    if not arguments.own_command and sys.stdin.isatty() and sys.stdout.isatty():
        # What the image says is for a person, who sits there.
        arguments.tty = arguments.tty or not arguments.detach
    given = (*environment, *variables(arguments))
    words = [f"--env={name}={value}" for name, value in given]
    if arguments.workdir or directory:
        words.append(f"--workdir={arguments.workdir or directory}")
    if arguments.user:
        words.append(f"--user={arguments.user}")
    # A program whose name begins with a dash is no option.
    arguments.command = [*words, "--", *arguments.command]


def _refuse_kvm(name: str) -> None:
    """Where KVM is asked for and cannot be had: say so before an image is made for it."""
    from ringzero.engine import select

    select.choose(name)
    if line := select.warning(name):
        print(f"ringzero: {line}", file=sys.stderr)


def _description(arguments: argparse.Namespace) -> None:
    """Raise what is wrong with the machine's description, before anything is fetched for it."""
    from ringzero.config.machine import MachineConfig

    config = MachineConfig.create(**_common(arguments))
    for net in config.nets:
        if net.network == "user":
            # Known without loading it.
            continue
        from ringzero.net.contract import NETWORKS

        if net.network not in NETWORKS:
            from ringzero.net.named.directory import find

            find(net.network)


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise MissingFileError or ConfigError for files that are not there, or of no use."""
    from ringzero.config.device import file_faults
    from ringzero.config.machine import MachineConfig

    faults = list[str]()
    for noun in ("kernel", "initrd"):
        if path := getattr(arguments, noun):
            faults += file_faults(noun, Path(path), writable=False, device=False)
    named = [("disks", text) for text in arguments.disk]
    named += [("shares", text) for text in arguments.mount]
    for plural, text in named:
        fields: dict[str, Any] = {plural: [text]}
        try:
            (device,) = MachineConfig.create(**fields).devices
        except ConfigError:
            # Told with the rest of the description.
            continue
        faults += device.file_faults()
    if len(faults) == 1 and faults[0].endswith("does not exist"):
        raise MissingFileError(faults[0], hint="check the path")
    if faults:
        raise ConfigError(faults, hint="check the paths")


def _check_root(arguments: argparse.Namespace) -> None:
    if arguments.root:
        from ringzero.config import root

        root.parse(arguments.root)


def _suspect_memory(arguments: argparse.Namespace) -> None:
    """Ask where a size without a unit is too small for any guest."""
    text = arguments.memory.strip()
    if text.isdecimal() and int(text) < _LEAST_MEMORY:
        # The rest is looked at as if it were right.
        arguments.memory = _MEMORY
        raise InvalidValueError(
            f"--memory {text} is {text} bytes", hint=f"was {text}M meant? --memory {text}M"
        )


def claim(arguments: argparse.Namespace, config: MachineConfig, foreground: bool) -> Claim:
    """Make the machine's directory."""
    from ringzero.control.host import claims

    return claims.create(
        arguments.name,
        config,
        image="" if _is_own(arguments) else config.name,
        command=tuple(arguments.command),
        timeout=arguments.timeout,
        serial=None if arguments.serial == "stdio" else arguments.serial,
        foreground=foreground,
        remove=arguments.rm,
    )


def _named(arguments: argparse.Namespace, config: MachineConfig, how: dict[str, Any]) -> int:
    """Run the machine here, where others can find it by its name."""
    from ringzero.cli import session
    from ringzero.control.machine.foreground import Foreground
    from ringzero.records import replace

    claimed = claim(arguments, config, foreground=True)
    # The guest is called as its machine is.
    config = replace(config, name=claimed.directory.name)
    with Foreground(claimed) as foreground:
        code = session.run(config, **how, wrap=foreground.keep)
        return foreground.conclude(code)


def _detach(arguments: argparse.Namespace, config: MachineConfig) -> int:
    """Start the machine in a process of its own, and print its name when the guest is up."""
    from ringzero.control.host.launch import launch

    claimed = claim(arguments, config, foreground=False)
    found = launch(claimed, wait=not arguments.no_wait)
    if arguments.json:
        print_json(found.summary())
    else:
        print(found.name)
    return 0


def _measure_engines(name: object) -> None:
    """Where the choice is ours: measure now, and say what came of it.

    Logs and pipes get it once per boot of the host, a person every time.
    """
    if name == "auto":
        from ringzero.engine.select import choose_auto

        def tell(line: str, news: bool) -> None:
            if news or sys.stderr.isatty():
                print(f"ringzero: {line}", file=sys.stderr)

        choose_auto(tell)


def _common(arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "memory": arguments.memory,
        "cpus": arguments.cpus,
        "engine": arguments.engine or ENGINE.get(),
        **({"cpu": arguments.cpu} if arguments.cpu else {}),
        **{f"{kind}s": _of_flag(arguments, device) for kind, device in DEVICE_CONFIGS},
        "nets": _nets(arguments),
    }


def _of_flag(arguments: argparse.Namespace, device: type[DeviceConfig]) -> Sequence[object]:
    """Return what was written behind the flag of a kind of device."""
    name = next(name for name in device.flag_names() if name.startswith("--"))
    found: Sequence[object] = getattr(arguments, name.removeprefix("--"))
    return found


def _nets(arguments: argparse.Namespace) -> Sequence[object]:
    """Return the network interfaces; ringzero's own guests have one unless others are given."""
    nets = arguments.net or ([] if arguments.kernel else ["user"])
    if not arguments.publish:
        return nets
    from ringzero.config.devices.net import NetConfig, publish
    from ringzero.config.ports import parse_ports

    ports = [port for text in arguments.publish for port in parse_ports(text)]
    return publish([NetConfig.parse(text) for text in nets], ports)


def _is_own(arguments: argparse.Namespace) -> bool:
    """Whether the guest is the user's own, and not one of ringzero's images."""
    return bool(arguments.kernel) or arguments.boot_entry is not None


def _find_entry(arguments: argparse.Namespace) -> None:
    """Have the first disk booted where nothing else is to be, and it has something to boot.

    Raises NotFoundError with the disk's entries where another was asked for.
    """
    asked = arguments.boot_entry is not None or _seeded(arguments)
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
        entry = diskboot.look(disk).choose(arguments.boot_entry or "")
    except GuestImageError as fault:
        if asked:
            raise
        print(f"ringzero: {disk.path}: {fault.message}: the default guest has it", file=sys.stderr)
        return
    arguments.boot_entry = arguments.boot_entry or ""
    print(f"ringzero: booting {entry.title!r} from {disk.path}", file=sys.stderr)


def _seeded(arguments: argparse.Namespace) -> bool:
    """Whether cloud-init in the guest is to be given something."""
    return bool(
        arguments.cloud_init or arguments.ssh_key or arguments.hostname or arguments.network_config
    )


def _seed(arguments: argparse.Namespace) -> Seed:
    """Return what cloud-init is given. Raises what is wrong with the files."""
    from ringzero.image.cloudinit import Seed

    return Seed.read(
        user_data=arguments.cloud_init,
        keys=arguments.ssh_key,
        hostname=arguments.hostname,
        network_config=arguments.network_config,
    )


def _own_config(arguments: argparse.Namespace) -> MachineConfig:
    from ringzero.config.machine import MachineConfig

    common = _common(arguments)
    if _seeded(arguments):
        from ringzero.config.devices.disk import DiskConfig

        path = _seed(arguments).keep(DATA_DIR.get() / "cloud-init")
        common["disks"] = [*arguments.disk, DiskConfig(path, read_only=True, format="raw")]
    return MachineConfig.create(
        **common,
        cloud_init=_seeded(arguments),
        name=_name(arguments.kernel or arguments.disk[0].partition(",")[0]),
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        command_line=" ".join(arguments.append or ()),
        boot_entry=arguments.boot_entry,
        agent=arguments.agent,
    )


def _default_config(arguments: argparse.Namespace) -> MachineConfig:
    from ringzero.config.machine import MachineConfig
    from ringzero.host.progress import Progress
    from ringzero.image import names

    common = _common(arguments)
    name = arguments.image or _DEFAULT_IMAGE
    try:
        image = names.find(name)(progress=Progress())
    except RingzeroError as fault:
        raise _unknown(name, fault) from fault
    arguments.command = image.words(arguments.command, arguments.entrypoint)
    config = MachineConfig.create(
        **common,
        name=image.name,
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=_joined(image.command_line, arguments.append),
        agent=True,
    )
    if arguments.root:
        from ringzero.cli import hostroot
        from ringzero.config import root as roots
        from ringzero.vm.boot import with_folder

        root = roots.parse(arguments.root)
        arguments.command = arguments.command or hostroot.shell(root)
        _place_program(arguments, hostroot.environment(root), hostroot.directory(root))
        return with_folder(config, root)
    if image.root is None:
        _place_command(arguments)
        return config
    from ringzero.vm.boot import with_root

    _place_program(arguments)
    return with_root(config, image)


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
