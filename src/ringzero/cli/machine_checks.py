"""What is wrong with the flags of `run` and `create`: all of it, before anything is made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.health_flags import contradictions as health_contradictions
from ringzero.cli.machine_config import DEFAULT_MEMORY, common_fields, seeded
from ringzero.errors import ConfigError, InvalidValueError, MissingFileError, RingzeroError

if TYPE_CHECKING:
    import argparse

# No kernel starts in less; a size below it without a unit was meant in another one.
_LEAST_MEMORY = 1 << 20


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


def check_flags(arguments: argparse.Namespace) -> None:
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
    cloud_init = seeded(arguments)
    yield (
        cloud_init and (arguments.kernel or arguments.image or arguments.root),
        "--cloud-init, --ssh-key, --hostname and --network-config are for a distribution's disk; "
        "give --disk FILE, and no kernel, image or root",
    )
    yield (
        (booted or cloud_init) and arguments.command and not arguments.agent,
        "a command in a distribution's guest needs the agent; add --agent, or have the guest's own "
        "services run it",
    )
    yield cloud_init and not arguments.disk, "cloud-init without a disk; add --disk FILE"
    yield (
        arguments.init is not None and not arguments.root,
        "--init is the first process of a folder; give the folder: --root DIR",
    )
    yield booted and arguments.root, "--boot-entry boots a disk; give it or --root"
    yield booted and arguments.image, "--boot-entry boots a disk, not an image; leave the image out"
    yield booted and not arguments.disk, "--boot-entry without a disk; add --disk FILE"
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
    yield from health_contradictions(arguments)
    yield arguments.detach and arguments.stats, "--stats with -d; `ringzero inspect NAME` has them"
    yield arguments.no_wait and not arguments.detach, "--no-wait without -d"
    yield (
        arguments.serial == "stdio" and not (arguments.kernel or arguments.disk),
        "the default guest uses standard input and output itself; give a file: --serial boot.log",
    )


def refuse_command(
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


def refuse_kvm(name: str) -> None:
    """Where KVM is asked for and cannot be had: say so before an image is made for it."""
    from ringzero.engine import select

    select.choose(name)
    if line := select.warning(name):
        print(f"ringzero: {line}", file=sys.stderr)


def check_description(arguments: argparse.Namespace) -> None:
    """Raise what is wrong with the machine's description, before anything is fetched for it."""
    from ringzero.config.machine import MachineConfig

    config = MachineConfig.create(**common_fields(arguments))
    for net in config.nets:
        if net.network == "user":
            # Known without loading it.
            continue
        from ringzero.net.contract import NETWORKS

        if net.network not in NETWORKS:
            from ringzero.net.named.directory import find

            find(net.network)


def check_files(arguments: argparse.Namespace) -> None:
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


def check_root(arguments: argparse.Namespace) -> None:
    """Raise MissingFileError or InvalidValueError for a folder that cannot be a root."""
    if arguments.root:
        from ringzero.config import root

        root.parse(arguments.root, arguments.init)


def suspect_memory(arguments: argparse.Namespace) -> None:
    """Ask where a size without a unit is too small for any guest."""
    text = (DEFAULT_MEMORY if arguments.memory is None else arguments.memory).strip()
    if text.isdecimal() and int(text) < _LEAST_MEMORY:
        # The rest is looked at as if it were right.
        arguments.memory = DEFAULT_MEMORY
        raise InvalidValueError(
            f"--memory {text} is {text} bytes", hint=f"was {text}M meant? --memory {text}M"
        )
