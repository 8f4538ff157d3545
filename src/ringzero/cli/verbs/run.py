"""`ringzero run`: the default guest, one command in it, or a kernel of the user's."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.command_flags import add_command_flags, advise_quoting, given, variables
from ringzero.cli.flags import unknown_flags, words_of
from ringzero.cli.health_flags import add_health_flags
from ringzero.cli.health_flags import check as check_health
from ringzero.cli.machine_checks import (
    Faults,
    check_description,
    check_files,
    check_flags,
    check_root,
    refuse_command,
    refuse_kvm,
    suspect_memory,
)
from ringzero.cli.machine_config import (
    PROFILES,
    default_config,
    find_entry,
    find_imported,
    is_own,
    own_config,
    read_seed,
    release_disks,
    seeded,
)
from ringzero.cli.verb import BARRED, ENV, SENT, STREAMS, VERBS, Away, Verb, print_json
from ringzero.config.device import DEVICE_CONFIGS
from ringzero.settings import ENGINE, POOL_DIR, Jail

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from ringzero.config.machine import MachineConfig
    from ringzero.control.host.directory import Claim
    from ringzero.remote.client import Client

# Arguments that name files which a start reads; and images that are files.
_READ_AT_START = ("kernel", "initrd", "cloud_init", "ssh_key", "network_config")
_IMAGE_FILES = ("oci:", "docker-archive:", "oci-archive:")


@VERBS.register("run")
class Run(Verb):
    # What it is called, in hints.
    name = "run"
    summary = "start a machine: the default Linux guest, or a kernel of your own"
    away = Away(STREAMS, actions=True)
    takes_command = True
    collects = True
    examples = """\
  ringzero run                            a shell in the default guest
  ringzero run -- uname -a                one command; its output, its exit status
  echo hi | ringzero run -- cat           standard input goes to the command
  ringzero run -t -- vi                   a command that wants a terminal
  ringzero run full -- uname -r           another image: a guest with another kernel
  ringzero run debian:12 -- cat /etc/os-release   a container's image as a machine
  ringzero run appliance                  what `image import` brought in, with its own kernel
  ringzero run localhost:5000/app         its own entrypoint; also oci:DIR, docker-archive:FILE
  ringzero run -e LANG=C -w /tmp -u nobody -- env
  ringzero run --root / -- pytest         this host's own files, in a machine
  ringzero run --root ./rootfs:rw -- apt-get -y upgrade
  ringzero run --root ./rootfs --init /sbin/init -- systemctl status
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
  ringzero run -d --name web --health-cmd 'wget -qO- localhost' --health-interval 10s nginx
  ringzero run --jail=strict -- ./untrusted    and its process can open, start and reach nothing
  ringzero run --boot -- dmesg            a boot, and not an idle guest that goes on

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
        add(
            "--gdb",
            metavar="[ADDR:]PORT|unix:PATH",
            help="boot, and wait for gdb there before the first instruction (also `ringzero gdb`)",
        )

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
            "--init",
            metavar="PATH",
            default=None,
            help="with --root: the folder's own first process, such as /sbin/init; commands run "
            "when its system is up",
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
        add(
            *("--memory", "-m"),
            metavar="SIZE",
            default=None,
            help="memory (default: what the image asks for, or 512M)",
        )
        add(
            "--cpu",
            metavar="MODEL",
            default=None,
            help="CPU model: x86-64-v2 (default), x86-64-v3 (AVX2, FMA, BMI), max, host (KVM "
            "only); help: list them, and what each asks of this host",
        )
        add(
            "--cpus",
            metavar="N",
            type=int,
            default=None,
            help="virtual CPUs (default: as many as the image asks for, or 1)",
        )
        add(
            "--engine",
            metavar="NAME",
            default=None,
            help="CPU engine: auto, soft, kvm, or kvm! where it is slow "
            "(default: auto, or RINGZERO_ENGINE)",
        )
        add(
            "--profile",
            choices=list(PROFILES),
            default=None,
            help="full (default), or minimal: console, disks, networks and entropy, and nothing "
            "else of a machine in its process; no shared folders",
        )
        add(
            "--boot",
            action="store_true",
            help="boot the guest, and do not go on from an earlier start of the same description",
        )
        add(
            "--jail",
            metavar="LEVEL",
            choices=[level.value for level in Jail],
            default=None,
            help="confine the machine's process: auto (by all that the host allows), strict (as "
            "that, or not at all; no snapshots or copies), none (default: none; with -d "
            "RINGZERO_JAIL, or auto)",
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
        add_health_flags(parser)
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
            refuse_command(self.name, own, found, command, alone)
            own = [*own[:at], *own[at + 1 :], "--image", own[at]]
        return own, command

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        """What a start reads may be sent; what a machine keeps on using may not."""
        stays = arguments.name is not None or getattr(arguments, "detach", True)
        found = dict.fromkeys(_READ_AT_START, BARRED if stays else SENT)
        for kind, device in DEVICE_CONFIGS:
            if kind != "net":
                flag = next(name for name in device.flag_names() if name.startswith("--"))
                found[flag.removeprefix("--")] = BARRED
        found |= {"root": BARRED, "env": ENV}
        if arguments.serial != "stdio":
            found["serial"] = BARRED
        if hasattr(arguments, "gdb") and (arguments.gdb or "unix:").startswith("unix:"):
            found["gdb"] = BARRED
        if any(net.startswith("socket=") for net in arguments.net):
            found["net"] = BARRED
        if arguments.image and arguments.image.startswith(_IMAGE_FILES):
            found["image"] = BARRED
        return found

    def describe(self, arguments: argparse.Namespace) -> MachineConfig:
        """Return the machine's description. Raises ConfigError with all that is wrong."""
        faults = Faults(arguments.faults)
        faults.take(lambda: find_imported(arguments))
        faults.take(lambda: check_flags(arguments))
        engine = arguments.engine or ENGINE.get()
        if engine.startswith("kvm"):
            # Said before an image is made for it.
            faults.take(lambda: refuse_kvm(engine))
        faults.take(lambda: suspect_memory(arguments))
        faults.take(lambda: check_files(arguments))
        faults.take(lambda: check_description(arguments))
        faults.take(lambda: variables(arguments))
        faults.take(lambda: check_health(arguments))
        if seeded(arguments):
            faults.take(lambda: read_seed(arguments))
        faults.take(lambda: find_entry(arguments))
        faults.take(lambda: check_root(arguments))
        faults.end(self.name)
        arguments.own_command = bool(arguments.command)
        arguments.shows_services = False
        # That of the image, once it is known.
        arguments.health = None
        return own_config(arguments) if is_own(arguments) else default_config(arguments)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Build the machine's description, then hand over to `ringzero.cli.session`."""
        if arguments.cpu == "help":
            from ringzero.cli.cpu_models import show_models

            show_models()
            return 0
        config = self.describe(arguments)
        try:
            if arguments.gdb is not None:
                return _under_gdb(arguments, config)
            return self._run(arguments, config)
        finally:
            release_disks(config)

    def execute_there(self, client: Client, arguments: argparse.Namespace) -> int:
        """Do it by the other host's actions."""
        from ringzero.cli import remote_run

        return remote_run.run(client, arguments)

    def _run(self, arguments: argparse.Namespace, config: MachineConfig) -> int:
        if arguments.detach:
            return _detach(arguments, config)
        lent = _from_pool(arguments, config)
        if lent is not None:
            advise_quoting(arguments.command, lent)
            return lent
        _measure_engines(config.engine)

        from ringzero.cli import session

        how = _how(arguments)
        if arguments.name is None:
            code = session.run(config, **how)
        else:
            code = _named(arguments, config, how)
        advise_quoting(arguments.command, code)
        return code


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a session is to do with the machine."""
    return {
        "words": arguments.command,
        "terminal": _on_terminal(arguments),
        "serial": arguments.serial or ("stdio" if _shows_serial(arguments) else None),
        "timeout": arguments.timeout,
        "stats": arguments.stats,
        "as_json": arguments.json,
        "boot": boots(arguments),
        "jail": Jail(arguments.jail or Jail.NONE.value),
    }


def _under_gdb(arguments: argparse.Namespace, config: MachineConfig) -> int:
    """Run the machine, and have gdb come in before its first instruction."""
    from ringzero.cli import session
    from ringzero.errors import InvalidValueError
    from ringzero.vm.gdb.listener import GdbListener, MachineTarget

    if arguments.detach or arguments.name is not None:
        raise InvalidValueError(
            "--gdb is for a machine in the foreground, without a name",
            hint="start it without --gdb, then: ringzero gdb NAME",
        )
    with contextlib.ExitStack() as stack:

        def build(config: MachineConfig, *, boot: bool) -> Any:
            machine: Any = session.build_machine(config, boot=True)
            listener = stack.enter_context(GdbListener(arguments.gdb, MachineTarget(machine)))
            machine.hand_over = listener.start
            print(f"ringzero: waiting for gdb: target remote {listener.address}", file=sys.stderr)
            return machine

        return session.run(config, **_how(arguments), build=build)


def _shows_serial(arguments: argparse.Namespace) -> bool:
    """Whether the serial line is what a user sees: of another kernel, and of services."""
    return bool((is_own(arguments) and not arguments.agent) or arguments.shows_services)


def _on_terminal(arguments: argparse.Namespace) -> bool:
    """Whether the command is given the console: where that is asked for, and a placed shell."""
    shell = given(arguments) and arguments.shell and sys.stdin.isatty()
    return bool(arguments.command and (arguments.tty or shell))


def boots(arguments: argparse.Namespace) -> bool:
    """Whether the guest is to boot: where that is asked for, or what it says as it does."""
    return bool(arguments.boot or arguments.serial)


def takes_from_pool(arguments: argparse.Namespace) -> bool:
    """Whether a machine of a pool will do."""
    if not arguments.command or arguments.name is not None or boots(arguments):
        return False
    # Machines of a pool run a stranger's guest, in a process that is not confined.
    jailed = arguments.jail not in (None, Jail.NONE.value)
    return not (arguments.detach or jailed or _on_terminal(arguments) or is_own(arguments))


def keeps_from_pool(arguments: argparse.Namespace) -> bool:
    """Whether a machine of a pool may become the one that stays."""
    return not (boots(arguments) or is_own(arguments))


def _from_pool(arguments: argparse.Namespace, config: MachineConfig) -> int | None:
    """Run the command in a machine that is ready; None where there is none for it."""
    if not takes_from_pool(arguments) or not _has_pools(POOL_DIR.get()):
        return None
    from ringzero.cli.pool import client

    return client.run(
        config,
        arguments.command,
        own=arguments.written,
        timeout=arguments.timeout,
        stats=arguments.stats,
        as_json=arguments.json,
    )


def _has_pools(root: Path) -> bool:
    """Whether a pool is there; where one has been, its directory is left."""
    try:
        return any((root / name / "machines").exists() for name in os.listdir(root))  # noqa: PTH208
    except OSError:
        return False


def claim(arguments: argparse.Namespace, config: MachineConfig, foreground: bool) -> Claim:
    """Make the machine's directory."""
    from ringzero.control.host import claims

    return claims.create(
        arguments.name,
        config.with_room_for_shares(),
        image="" if is_own(arguments) and arguments.imported is None else config.name,
        command=tuple(arguments.command),
        timeout=arguments.timeout,
        serial=None if arguments.serial == "stdio" else arguments.serial,
        foreground=foreground,
        remove=arguments.rm,
        boot=boots(arguments),
        health=None if arguments.no_healthcheck else arguments.health,
        jail=Jail(arguments.jail) if arguments.jail else Jail.NONE if foreground else None,
    )


def _named(arguments: argparse.Namespace, config: MachineConfig, how: dict[str, Any]) -> int:
    """Run the machine here, where others can find it by its name."""
    from ringzero.cli import session
    from ringzero.control.machine.foreground import Foreground
    from ringzero.records import replace

    claimed = claim(arguments, config, foreground=True)
    # The guest is called as its machine is.
    config = replace(config.with_room_for_shares(), name=claimed.directory.name)
    with Foreground(claimed) as foreground:
        code = session.run(config, **how, wrap=foreground.keep)
        return foreground.conclude(code)


def _detach(arguments: argparse.Namespace, config: MachineConfig) -> int:
    """Start the machine in a process of its own, and print its name when the guest is up."""
    from ringzero.control.host.launch import launch

    claimed = claim(arguments, config, foreground=False)
    hand_over = None
    if keeps_from_pool(arguments) and _has_pools(POOL_DIR.get()):
        from ringzero.cli.pool import client

        hand_over = client.keeper(config)
    found = launch(claimed, wait=not arguments.no_wait, hand_over=hand_over)
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
