"""The command line: find the verb, run it, turn errors into messages.

Exit codes: 0 good; the command's own status from `ringzero run -- CMD`; 2 a
wrong flag or value; 124 timeout; 125 the guest failed; 130 Ctrl-C; others as
in `ringzero.errors`; 70 a fault in ringzero itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import ringzero
from ringzero.cli import flags
from ringzero.cli.verb import VERBS, Verb
from ringzero.errors import ConfigError, InvalidValueError, NotFoundError, RingzeroError
from ringzero.settings import DEBUG

if TYPE_CHECKING:
    import argparse

_EXAMPLES = """\
examples:
  ringzero run                        a Linux machine with a shell on the console
  ringzero run -- uname -a            one command in a machine, its output and status
  ringzero run --kernel bzImage --initrd initrd.cpio --append console=ttyS0
  ringzero info                       what this host can run

`ringzero COMMAND --help` tells about one command.
"""

# Of help where standard output is no terminal, in characters.
_WIDTH = 80
# sysexits.h EX_SOFTWARE: an internal fault.
_INTERNAL = 70
_INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # The process is ours: its end by a signal runs every `finally`, too.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
    # What stands behind "--" is a command for a guest, and none of ours to read.
    cut = words.index("--") if "--" in words else len(words)
    words, command = words[:cut], words[cut + 1 :] if cut < len(words) else None
    try:
        code = _run(words, command)
        # Here, and not at the interpreter's end: a reader that went away is no fault.
        sys.stdout.flush()
        return code
    except RingzeroError as fault:
        # Without anybody to tell, the exit code tells.
        with contextlib.suppress(OSError):
            _report(fault, "--json" in words)
        return fault.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; the interpreter must not complain at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as fault:  # a fault of ours is a message too, never a traceback
        if _debugging():
            raise
        place = fault.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})" if place else ""
        print(
            f"ringzero: internal error: {type(fault).__name__}: {fault}{where}\n"
            "  this is a fault in ringzero; RINGZERO_DEBUG=1 shows where it comes from",
            file=sys.stderr,
        )
        return _INTERNAL


def _formatter(prog: str) -> argparse.HelpFormatter:
    import argparse

    # Left to itself, the formatter loads much in order to find the width.
    width = os.get_terminal_size(1).columns if os.isatty(1) else _WIDTH
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width - 2)


def _run(words: list[str], command: list[str] | None) -> int:
    # A known verb is the only one loaded.
    named = words[0] if words and not words[0].startswith("-") else None
    if named is not None and named in VERBS:
        verb = VERBS.get(named)()
        arguments = flags.parse(verb, words[1:])
        if arguments is not None:
            return _execute(verb, named, arguments, command)
    return _run_parsed(words, named, command)


def _execute(
    verb: Verb, name: str, arguments: argparse.Namespace, command: list[str] | None
) -> int:
    if command is not None and not verb.takes_command:
        raise InvalidValueError(f"`ringzero {name}` takes no command after '--'")
    arguments.command = command or []
    return verb.execute(arguments)


def _run_parsed(words: list[str], named: str | None, command: list[str] | None) -> int:
    """Run what needs argparse: help, positional words, and all that is wrong."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="ringzero",
        description="Whole virtual machines on any Linux host, with KVM or without.",
        epilog=_EXAMPLES,
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"ringzero {ringzero.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    if named is not None and named not in VERBS:
        close = [name for name in VERBS.names() if name.startswith(named[:2])]
        raise NotFoundError(
            f"no command called {named!r}",
            hint=f"did you mean {close[0]!r}?" if close else f"known: {', '.join(VERBS.names())}",
        )
    for name in [named] if named is not None else VERBS.names():
        verb = VERBS.get(name)()
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog=verb.examples and f"examples:\n{verb.examples}",
            formatter_class=_formatter,
        )
        # The list of commands needs a line of each, and no flags.
        if name in words:
            verb.configure(sub)
        sub.set_defaults(chosen=verb)
    arguments = parser.parse_args(words)
    if arguments.verb is None:
        parser.print_help()
        return 0
    return _execute(arguments.chosen, arguments.verb, arguments, command)


def _debugging() -> bool:
    """Whether RINGZERO_DEBUG is set, be it to nonsense."""
    try:
        return DEBUG.get() > 0
    except InvalidValueError:
        return False


def _report(fault: RingzeroError, as_json: bool) -> None:
    if as_json:
        json.dump({"error": fault.to_dict()}, sys.stderr)
        sys.stderr.write("\n")
        return
    if isinstance(fault, ConfigError) and len(fault.faults) > 1:
        print("ringzero: error: the machine cannot be built:", file=sys.stderr)
        for line in fault.faults:
            print(f"  - {line}", file=sys.stderr)
    else:
        print(f"ringzero: error: {fault.message}", file=sys.stderr)
    if fault.hint:
        print(f"  hint: {fault.hint}", file=sys.stderr)
    if _debugging():
        for key, value in fault.context.items():
            print(f"  {key}: {value}", file=sys.stderr)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    """Turn a signal into an exception, so that every `finally` runs."""
    raise SystemExit(128 + number)
