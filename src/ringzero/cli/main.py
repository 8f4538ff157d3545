"""The command line: find the verb, run it, turn errors into messages.

Exit codes are in `ringzero.cli.codes`, for people in docs/run.md.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ringzero
from ringzero.cli import flags, output, signals
from ringzero.cli.codes import INTERNAL, INTERRUPTED
from ringzero.cli.verb import VERBS, Group, Verb
from ringzero.errors import ConfigError, InvalidValueError, OutputError, RingzeroError
from ringzero.settings import DEBUG, END_WITH_CALLER, HOST

if TYPE_CHECKING:
    import argparse

_EXAMPLES = """\
examples:
  ringzero run                        a Linux machine with a shell on the console
  ringzero run -- uname -a            one command in a machine, its output and status
  ringzero run --kernel bzImage --initrd initrd.cpio --append console=ttyS0
  ringzero info                       what this host can run
  ringzero --host ssh://ana@lab ps    machines of another host; see `ringzero host --help`

`ringzero COMMAND --help` tells about one command.
"""

_Words = list[str]
# Flags before a command that say whose machines it is about (`ringzero.cli.elsewhere`).
_HOST_FLAGS = ("--host", "-H", "--token-file", "--cacert")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # The process is ours: its end by a signal runs every `finally`, too.
        signals.install()
        output.guard()
        if END_WITH_CALLER.name in os.environ:
            from ringzero.cli import hangup

            hangup.watch()
    return told(lambda: _run(words), words)


def told(run: Callable[[], int], words: list[str]) -> int:
    """Return the exit code of `run`, for the command line `words`; what goes wrong is told."""
    try:
        code = run()
        # Here, and not at the interpreter's end: what cannot be written is an error.
        sys.stdout.flush()
    except RingzeroError as fault:
        code = failed(fault, words)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError as fault:
        lost = output.output_error(fault)
        lost.__cause__ = fault
        code = failed(lost, words)
    except Exception as fault:  # a fault of ours is a message too, never a traceback
        if _debugging():
            raise
        from ringzero.host.exhausted import host_limit

        limit = host_limit(fault)
        code = _internal(fault, words) if limit is None else failed(limit, words)
    return signals.code() or code


def failed(fault: RingzeroError, words: list[str]) -> int:
    """Tell what is wrong, and return the exit code; without anybody to tell, that tells."""
    if isinstance(fault, OutputError):
        output.abandon()
        if isinstance(fault.__cause__, BrokenPipeError):
            # A reader that has seen enough wants to hear no more.
            return fault.exit_code
    # What the verb has printed so far comes before what is wrong.
    with contextlib.suppress(OSError, OutputError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        _report(fault, _wants_json(words))
    return fault.exit_code


def _internal(fault: Exception, words: _Words) -> int:
    place = fault.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})" if place else ""
    message = f"internal error: {type(fault).__name__}: {fault}{where}"
    hint = "this is a fault in ringzero; RINGZERO_DEBUG=1 shows where it comes from"
    with contextlib.suppress(OSError):
        if _wants_json(words):
            import json

            told = {"kind": "internal", "message": message, "hint": hint, "context": {}}
            print(json.dumps({"error": told}), file=sys.stderr)
        else:
            print(f"ringzero: {message}\n  {hint}", file=sys.stderr)
    return INTERNAL


def _wants_json(words: _Words) -> bool:
    """Whether faults are told as JSON: --json stands before the words of a guest's command."""
    ours = words[: words.index("--")] if "--" in words else words
    if words and words[0] in VERBS:
        # Where the words themselves are wrong, all before "--" are ours.
        with contextlib.suppress(RingzeroError):
            ours, _ = VERBS.get(words[0])().split(words[1:])
    return "--json" in ours


def _run(words: _Words) -> int:
    # What --host means is loaded where it is meant.
    if (words and words[0].partition("=")[0] in _HOST_FLAGS) or HOST.name in os.environ:
        from ringzero.cli import elsewhere

        place = elsewhere.take(words)
        if place is not None:
            return elsewhere.run(place, words, _run_here)
    return _run_here(words)


def _run_here(words: _Words) -> int:
    # A known verb is the only module that is loaded.
    named = words[0] if words and not words[0].startswith("-") else None
    if named is not None and named not in VERBS:
        from ringzero.cli import habits

        words = habits.translate(words)
        if words[0] not in VERBS:
            raise habits.unknown(named, VERBS.names())
        named = words[0]
    if named is None:
        return _run_parsed(words, None, None)
    verb = VERBS.get(named)()
    own, command = verb.split(words[1:])
    arguments = flags.parse(verb, own)
    if arguments is not None:
        arguments.faults = []
        arguments.written = words[1 : words.index("--")] if "--" in words else own
        return _execute(verb, named, arguments, command)
    return _run_parsed([named, *own], named, command)


def _execute(
    verb: Verb, name: str, arguments: argparse.Namespace, command: list[str] | None
) -> int:
    if command is not None and not verb.takes_command:
        raise InvalidValueError(f"`ringzero {name}` takes no command after '--'")
    if arguments.faults and not verb.collects:
        raise fault_of(arguments.faults, f"{name} {getattr(arguments, 'action', '')}".strip())
    arguments.command = command or []
    return verb.execute(arguments)


def fault_of(faults: list[str], verb: str) -> RingzeroError:
    """Return the error for what is wrong with a command line."""
    hint = f"`{f'ringzero {verb}'.strip()} --help` tells what it takes"
    if len(faults) == 1:
        return InvalidValueError(faults[0], hint=hint)
    return ConfigError(faults, hint=hint)


def _run_parsed(words: _Words, named: str | None, command: list[str] | None) -> int:
    """Run what needs argparse: help, positional words, and all that is wrong."""
    from ringzero.cli.habits import foreign
    from ringzero.cli.parser import Parser, parse

    parser = Parser(
        prog="ringzero",
        description="Whole virtual machines on any Linux host, with KVM or without.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"ringzero {ringzero.__version__}")
    parser.add_argument("--json", action="store_true", help="errors as JSON; of every command")
    parser.add_argument(
        *("--host", "-H"),
        metavar="URL|NAME",
        help="before a command: do it on another host: ssh://[USER@]HOST[:PORT], https://HOST:PORT "
        "or unix:///PATH (docs/remote.md); RINGZERO_HOST",
    )
    parser.add_argument("--token-file", metavar="FILE", help="a token for https; RINGZERO_TOKEN")
    parser.add_argument("--cacert", metavar="FILE", help="who signs the certificate over https")
    known = ["--version", "--json", *_HOST_FLAGS]
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands")
    for name in [named] if named is not None else VERBS.names():
        verb = VERBS.get(name)()
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary[0].upper() + verb.summary[1:] + ".",
            epilog=verb.examples and f"examples:\n{verb.examples}",
        )
        # The list of commands needs a line of each, and no flags.
        if named is not None:
            if isinstance(verb, Group) and words[1:2] and words[1] in verb.commands():
                verb.named = words[1]
            verb.configure(sub)
            _share_examples(sub, name, verb.examples)
            known = list(sub._option_string_actions)
        sub.set_defaults(chosen=verb)
    try:
        instead = foreign(named or "", words[1:] if named else words, known)
        if instead:
            raise fault_of(instead, named or "")
        arguments, faults = parse(parser, words)
    except SystemExit as end:
        # Help or the version was printed.
        return int(end.code or 0)
    arguments.faults, arguments.written = faults, None
    if arguments.verb is None:
        if faults:
            raise InvalidValueError(faults[0], hint="`ringzero --help` lists the commands")
        parser.print_help()
        return 0
    return _execute(arguments.chosen, arguments.verb, arguments, command)


def _share_examples(parser: argparse.ArgumentParser, verb: str, examples: str) -> None:
    """Give the commands of a group those of its examples that are theirs."""
    import re

    for action in parser._actions:
        # The commands of a group have their parsers for choices.
        for name, command in action.choices.items() if isinstance(action.choices, dict) else ():
            named = re.compile(rf"ringzero {verb} {name}\b")
            found = [line for line in examples.splitlines() if named.search(line)]
            if found and not command.epilog:
                command.epilog = "\n".join(["examples:", *found])


def _debugging() -> bool:
    """Whether RINGZERO_DEBUG is set, be it to nonsense."""
    try:
        return DEBUG.get() > 0
    except InvalidValueError:
        return False


def _report(fault: RingzeroError, as_json: bool) -> None:
    if as_json:
        import json

        json.dump({"error": fault.to_dict()}, sys.stderr)
        sys.stderr.write("\n")
        return
    from ringzero.cli.text import printable

    if isinstance(fault, ConfigError) and len(fault.faults) > 1:
        print(f"ringzero: error: {len(fault.faults)} things are wrong:", file=sys.stderr)
        for line in fault.faults:
            print(f"  - {printable(line)}", file=sys.stderr)
    else:
        print(f"ringzero: error: {printable(fault.message)}", file=sys.stderr)
    if fault.hint:
        print(f"  hint: {printable(fault.hint)}", file=sys.stderr)
    if _debugging():
        for key, value in fault.context.items():
            print(f"  {key}: {value}", file=sys.stderr)
