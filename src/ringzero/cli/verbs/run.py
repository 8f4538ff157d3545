"""`ringzero run`: the default guest, one command in it, or a kernel of the user's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.verb import VERBS, Verb, print_json
from ringzero.config.device import DEVICE_CONFIGS
from ringzero.errors import InvalidValueError
from ringzero.settings import ENGINE

if TYPE_CHECKING:
    import argparse

    from ringzero.config.machine import MachineConfig
    from ringzero.control.host.directory import Claim

_DEFAULT_IMAGE = "micro"


@VERBS.register("run")
class Run(Verb):
    summary = "start a machine: the default Linux guest, or a kernel of your own"
    takes_command = True
    examples = """\
  ringzero run                            a shell in the default guest
  ringzero run -- uname -a                one command; its output, its exit status
  echo hi | ringzero run -- cat           standard input goes to the command
  ringzero run -t -- vi                   a command that wants a terminal
  ringzero run --image full -- uname -r   a guest with another kernel
  ringzero run --kernel vmlinuz --initrd initrd.img --append console=ttyS0
  ringzero run --disk data.img,ro --memory 1G -- mount /dev/vda /mnt
  ringzero run --vsock /tmp/vm.sock       sockets between host and guest
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
        parser.usage = "ringzero run [FLAGS] [-- CMD ...]"
        add = parser.add_argument
        add("--kernel", metavar="FILE", help="bzImage or ELF vmlinux to boot directly")
        add(
            "--image",
            metavar="NAME",
            default=None,
            help="guest: micro (default), full (Debian's full kernel), backports (a newer one)",
        )
        add("--initrd", metavar="FILE", help="initial RAM disk for the kernel")
        add(
            "--append",
            metavar="S",
            action="append",
            help="kernel command line (with the default guest: added to its own)",
        )
        for kind, device in DEVICE_CONFIGS:
            add(f"--{kind}", metavar=device.spelling, action="append", default=[], help=device.help)
        add("--memory", "-m", metavar="SIZE", default="512M", help="memory (default: 512M)")
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
            help="CPU engine: auto, soft, kvm (default: auto, or RINGZERO_ENGINE)",
        )
        add("--timeout", metavar="S", type=float, help="end the machine after S seconds (exit 124)")
        add(
            "--serial",
            metavar="stdio|FILE",
            help="where the serial line goes (default: stdio with --kernel, else nowhere)",
        )
        add("-t", "--tty", action="store_true", help="give the command the guest's console")
        add("-d", "--detach", action="store_true", help="leave the machine running; print its name")
        add("--name", metavar="NAME", help="what `ps`, `exec`, `stop` and others call the machine")
        add("--rm", action="store_true", help="remove a named machine's directory at its end")
        add("--no-wait", action="store_true", help="with -d: do not wait until the guest is up")
        add("--stats", action="store_true", help="say on stderr where the time went")
        add("--json", action="store_true", help="statistics and errors as JSON")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Build the machine's description, then hand over to `ringzero.cli.session`."""
        _check(arguments)
        _refuse_missing_kvm(arguments.engine or ENGINE.get())
        config = _user_config(arguments) if arguments.kernel else _default_config(arguments)
        config.check_files()
        for net in config.nets:
            from ringzero.net.contract import NETWORKS

            NETWORKS.get(net.network)
        if arguments.detach:
            return _detach(arguments, config)
        _measure_engines(config.engine)

        from ringzero.cli import session

        how: dict[str, Any] = {
            "words": arguments.command,
            "terminal": arguments.tty,
            "serial": arguments.serial or ("stdio" if arguments.kernel else None),
            "timeout": arguments.timeout,
            "stats": arguments.stats,
            "as_json": arguments.json,
        }
        if arguments.name is None:
            return session.run(config, **how)
        return _named(arguments, config, how)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.kernel and arguments.command:
        raise InvalidValueError(
            "a command can only be run in the default guest, not with --kernel",
            hint="leave --kernel out, or let your own initrd run the command",
        )
    if arguments.kernel and arguments.image:
        raise InvalidValueError("--image has a kernel of its own", hint="give it or --kernel")
    if arguments.initrd and not arguments.kernel:
        raise InvalidValueError("--initrd without --kernel")
    if arguments.tty and not arguments.command:
        raise InvalidValueError("-t without a command", hint="ringzero run -t -- CMD")
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise InvalidValueError(f"a timeout of {arguments.timeout} seconds makes no sense")
    if arguments.detach and (arguments.tty or arguments.serial == "stdio"):
        raise InvalidValueError(
            "a machine that is detached has no terminal",
            hint="attach to it later: `ringzero console NAME`",
        )
    if arguments.detach and arguments.stats:
        raise InvalidValueError("--stats with -d", hint="`ringzero inspect NAME` has them")
    if arguments.rm and not (arguments.detach or arguments.name):
        raise InvalidValueError("--rm without --name or -d")
    if arguments.no_wait and not arguments.detach:
        raise InvalidValueError("--no-wait without -d")
    if arguments.name is not None:
        from ringzero.control.host.directory import check_name

        check_name(arguments.name)
    if arguments.serial == "stdio" and not arguments.kernel:
        raise InvalidValueError(
            "the default guest uses standard input and output itself",
            hint="give a file: --serial boot.log",
        )


def _refuse_missing_kvm(name: str) -> None:
    """Where KVM is asked for and cannot be had: say so before an image is made for it."""
    if name == "kvm":
        from ringzero.engine import select

        select.choose(name)


def _claim(arguments: argparse.Namespace, config: MachineConfig, foreground: bool) -> Claim:
    """Make the machine's directory."""
    from ringzero.control.host import directory

    return directory.create(
        arguments.name,
        config,
        image="" if arguments.kernel else config.name,
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

    with Foreground(_claim(arguments, config, foreground=True)) as foreground:
        code = session.run(config, **how, wrap=foreground.keep)
        return foreground.conclude(code)


def _detach(arguments: argparse.Namespace, config: MachineConfig) -> int:
    """Start the machine in a process of its own, and print its name when the guest is up."""
    from ringzero.control.host.launch import launch

    claim = _claim(arguments, config, foreground=False)
    found = launch(claim, wait=not arguments.no_wait)
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
        **{f"{kind}s": getattr(arguments, kind) for kind in DEVICE_CONFIGS.names()},
    }


def _user_config(arguments: argparse.Namespace) -> MachineConfig:
    from ringzero.config.machine import MachineConfig

    return MachineConfig.create(
        **_common(arguments),
        name=_name(arguments.kernel),
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        command_line=" ".join(arguments.append or ()),
    )


def _default_config(arguments: argparse.Namespace) -> MachineConfig:
    from ringzero.config.machine import MachineConfig
    from ringzero.host.progress import Progress
    from ringzero.image.names import IMAGES

    # Faults of the flags are told before anything is downloaded.
    common = _common(arguments)
    MachineConfig.create(**common)
    image = IMAGES.get(arguments.image or _DEFAULT_IMAGE)(progress=Progress())
    return MachineConfig.create(
        **common,
        name=image.name,
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=_joined(image.command_line, arguments.append),
        agent=True,
    )


def _joined(own: str, added: Sequence[str] | None) -> str:
    return " ".join((own, *(added or ())))


def _name(kernel: str) -> str:
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(kernel).name)
    return text.strip("-")[:60] or "machine"
