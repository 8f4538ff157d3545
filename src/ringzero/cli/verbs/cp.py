"""`ringzero cp`: files into a machine and out of it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ringzero.cli.machines import note
from ringzero.cli.verb import CARRIED, VERBS, Away, Verb
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse

    from ringzero.control.host.operations import GuestOperations

_STDOUT = 1
# So many names of what was skipped are told.
_TOLD = 3


@VERBS.register("cp")
class Copy(Verb):
    summary = "copy files and folders into a machine, or out of it"
    away = Away(CARRIED, actions=True)
    examples = """\
  ringzero cp app.py web:/srv              into a folder; or under another name: web:/srv/main.py
  ringzero cp web:/var/log/syslog .        out of it
  ringzero cp src tests setup.cfg web:/app several, into a folder that exists
  ringzero cp site/. web:/var/www          what a folder holds, among what is there
  tar cz . | ringzero cp - web:/app        a tar archive, unpacked in a folder
  ringzero cp web:/etc - | tar t           a folder as a tar archive

A file keeps its mode and times, a symbolic link stays one; what is copied belongs to whom the
copy belongs (root in the guest, you here), or with -a to users and groups of the same numbers.
Each file is there as a whole or not at all, also where the copy is broken off. Paths of the
guest begin at its root. A file of yours with a colon in its name is given as ./NAME.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags, the sources and the target."""
        parser.usage = "ringzero cp [FLAGS] FILE... NAME:PATH | NAME:PATH FILE"
        add = parser.add_argument
        add("-a", "--archive", action="store_true", help="keep users and groups, by number")
        add("-L", "--follow-link", action="store_true", help="copy what symbolic links lead to")
        add("-q", "--quiet", action="store_true", help="no progress, and no word of what is left")
        add("-r", "-R", "--recursive", action="store_true", help="accepted: folders are copied")
        add("--json", action="store_true", help="errors as JSON")
        add("operands", nargs="+", metavar="FILE", help='FILE or NAME:PATH; "-": a tar archive')

    def execute(self, arguments: argparse.Namespace) -> int:
        """Copy."""
        from ringzero.cli.target import machine
        from ringzero.host.progress import QUIET, Progress

        *sources, target = arguments.operands
        if not sources:
            raise InvalidValueError("one path only", hint="ringzero cp FILE NAME:PATH")
        progress = QUIET if arguments.quiet else Progress()
        how = {"follow": arguments.follow_link, "owners": arguments.archive}
        inside = [_split(source) for source in sources]
        into = _split(target)
        skipped = list[str]()
        if into is not None and not any(inside):
            found = machine(into[0])
            if "-" in sources:
                _from_stdin(found, sources, into[1])
                return 0
            skipped = found.copy_in(sources, into[1], **how, progress=progress)
        elif into is None and len(inside) == 1 and inside[0] is not None:
            name, path = inside[0]
            if target == "-":
                _to_stdout(machine(name), path, follow=arguments.follow_link)
                return 0
            skipped = machine(name).copy_out(path, target, **how, progress=progress)
        else:
            raise _unclear(inside, into is not None)
        if skipped and not arguments.quiet:
            more = f" and {len(skipped) - _TOLD} more" if len(skipped) > _TOLD else ""
            names = ", ".join(map(ascii, skipped[:_TOLD]))
            note(f"not copied, as they are sockets or devices: {names}{more}")
        return 0


def _split(text: str) -> tuple[str, str] | None:
    """Return the machine and the path in it; None for a path of the host."""
    name, colon, path = text.partition(":")
    if not colon or not name or text.startswith((".", "/")):
        return None
    if not path:
        raise InvalidValueError(f"{text!r} has no path", hint=f"{text}/ is the guest's root")
    return name, path


def _unclear(inside: list[tuple[str, str] | None], into: bool) -> InvalidValueError:
    if not into and not any(inside):
        return InvalidValueError(
            "no path is a machine's", hint="one side is NAME:PATH, as in `ringzero cp a web:/tmp`"
        )
    if into and all(inside):
        return InvalidValueError(
            "both sides are machines'",
            hint="in two steps: ringzero cp A:PATH - | ringzero cp - B:FOLDER",
        )
    if not into and all(inside):
        return InvalidValueError(
            "only one file or folder is copied out of a machine at a time",
            hint="a folder: ringzero cp NAME:/FOLDER/. .",
        )
    return InvalidValueError("some sources are the machine's, others the host's")


def _from_stdin(machine: GuestOperations, sources: list[str], path: str) -> None:
    from ringzero.control.host import transfer
    from ringzero.host.progress import Progress
    from ringzero.host.tarstream import plain_stream

    if sources != ["-"]:
        raise InvalidValueError('"-" is the only source where it is one')
    if sys.stdin.isatty():
        raise InvalidValueError(
            "the archive is read from standard input, which is a terminal",
            hint="tar c FILES | ringzero cp - NAME:FOLDER",
        )
    transfer.put_stream(machine, plain_stream(sys.stdin.buffer), path, Progress())


def _to_stdout(machine: GuestOperations, path: str, *, follow: bool) -> None:
    from ringzero.cli.output import write
    from ringzero.control.host import transfer

    if os.isatty(_STDOUT):
        raise InvalidValueError(
            "the archive is binary, and standard output a terminal",
            hint=f"ringzero cp {machine.name}:{path} - > FILE.tar",
        )
    transfer.get_stream(machine, path, follow, lambda data: write(_STDOUT, data))
