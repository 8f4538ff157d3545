"""`ringzero pool`: machines that are ready before somebody runs something in them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringzero.cli.machines import add_json, ago, table
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import ConfigError, InvalidValueError, NotFoundError

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig

# Each takes the memory that its guest touches, and some thousandths of a CPU.
_SIZE = 2
# Long enough for a person between two commands, in seconds.
_IDLE = 3600.0


@VERBS.register("pool")
class Pool(Verb):
    summary = "keep machines ready, so that `run` answers at once"
    away = Away(AS_IS)
    examples = """\
  ringzero pool start                     two machines of the default guest, for an hour unused
  ringzero run -- true                    takes one of them, and the pool makes another
  ringzero pool start --size 8 --memory 1G --idle-timeout 0
  ringzero run --memory 1G -- nproc       the same flags: another pool is no use to it
  ringzero pool status
  ringzero pool stop                      all; or the ids that status shows

A machine of a pool serves one `run` with a command and without -t, --name, --serial, --boot, ports
and folders, or becomes the machine of one `run -d`; every other starts a machine of its own.
docs/starts.md tells more.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions and their flags."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        start = actions.add_parser("start", help="start a pool; return when its machines are ready")
        add = start.add_argument
        add("image", metavar="IMAGE", nargs="?", help="the guest, as `run` takes it (micro)")
        add("--size", metavar="N", type=int, default=_SIZE, help="so many machines (default: 2)")
        add(
            "--idle-timeout",
            metavar="S",
            type=float,
            default=_IDLE,
            help="end the pool after S seconds without a `run` (default: 3600; 0: never)",
        )
        for name, metavar, text in (
            ("--memory", "SIZE", "memory of each"),
            ("--cpus", "N", "virtual CPUs of each"),
            ("--cpu", "MODEL", "CPU model"),
            ("--engine", "NAME", "CPU engine: auto, soft, kvm"),
        ):
            add(name, metavar=metavar, help=f"{text}, as `run` has it")
        add("--append", metavar="S", action="append", help="added to the kernel command line")
        add("--net", metavar="NET", action="append", help="network interface, as `run` has it")
        add_json(start)
        add_json(actions.add_parser("status", help="show the pools"))
        stop = actions.add_parser("stop", help="end pools; machines at work go on to their ends")
        stop.add_argument("id", nargs="*", metavar="ID", help="an id, or its beginning (all)")
        add_json(stop)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        from ringzero.cli.pool import start

        if arguments.action == "start":
            words = _words(arguments)
            found = start.start(_description(words), words, arguments.size, arguments.idle_timeout)
            if arguments.json:
                print_json(found)
            else:
                print(found["id"])
            return 0
        known = start.pools()
        if arguments.action == "stop":
            chosen = _find(known, arguments.id)
            known = [facts for one in chosen if (facts := start.stop(one["id"])) is not None]
            if not arguments.json:
                for facts in known:
                    print(facts["id"])
        elif not arguments.json:
            _show(known)
        if arguments.json:
            print_json(known)
        return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    """Return the words of `run` for such a machine. Raises ConfigError."""
    from ringzero.cli.pool.process import MAX_SIZE

    faults = []
    if not 1 <= arguments.size <= MAX_SIZE:
        faults.append(f"--size {arguments.size} is outside 1 to {MAX_SIZE}")
    if not 0 <= arguments.idle_timeout < float("inf"):
        faults.append("--idle-timeout is a number of seconds, or 0")
    if faults:
        raise ConfigError(faults)
    # As most people write them.
    words = [arguments.image] if arguments.image is not None else []
    for name in ("memory", "cpus", "cpu", "engine"):
        value = getattr(arguments, name)
        words += [f"--{name}", str(value)] if value is not None else []
    words += [f"--append={text}" for text in arguments.append or ()]
    words += [f"--net={text}" for text in arguments.net or ()]
    return words


def _description(words: list[str]) -> MachineConfig:
    """Return what `run` with such words would start. Raises ConfigError and others."""
    from ringzero.cli import flags
    from ringzero.cli.verbs.run import Run

    run = Run()
    wanted = flags.parse(run, run.split(words)[0])
    if wanted is None:
        raise InvalidValueError("the flags make no sense", hint="`ringzero run --help` tells more")
    # One that needs no terminal.
    wanted.command, wanted.faults = ["true"], []
    config = run.describe(wanted)
    if wanted.imported is not None:
        from ringzero.cli.machine_config import release_disks

        release_disks(config)
        raise InvalidValueError(
            f"{wanted.imported.image.name} is an imported machine, and a pool holds guests of "
            "ringzero's own",
            hint=f"ringzero run {wanted.imported.image.name}",
        )
    return config


def _find(known: Sequence[dict[str, Any]], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pools whose ids begin so, or all. Raises NotFoundError."""
    if not wanted:
        return list(known)
    found = {}
    for text in wanted:
        chosen = [facts for facts in known if text and facts["id"].startswith(text)]
        if not chosen:
            there = ", ".join(facts["id"] for facts in known) or "none"
            raise NotFoundError(f"no pool {text!r}", hint=f"there are: {there}")
        found.update({facts["id"]: facts for facts in chosen})
    return list(found.values())


def _show(known: Sequence[dict[str, Any]]) -> None:
    from ringzero.units import format_size

    rows = [
        (
            facts["id"],
            facts["image"],
            facts["engine"],
            format_size(facts["memory"]),
            str(facts["cpus"]),
            f"{facts['ready']}/{facts['size']}",
            str(facts["lent"]),
            str(facts["served"]),
            ago(facts["since"]),
        )
        for facts in known
    ]
    table(("ID", "IMAGE", "ENGINE", "MEMORY", "CPUS", "READY", "LENT", "SERVED", "SINCE"), rows)
