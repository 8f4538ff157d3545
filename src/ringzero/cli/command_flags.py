"""Flags that say how a command runs in the guest: its environment, directory and user."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse

# What a shell ends with where there is no such command (POSIX, 2.8.2).
_NOT_FOUND = 127


def add_command_flags(parser: argparse.ArgumentParser) -> None:
    """Add --env, --workdir and --user."""
    add = parser.add_argument
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="set a variable for the command; without VALUE to what it is here (repeatable)",
    )
    add("-w", "--workdir", metavar="DIR", help="the command's directory in the guest")
    add("-u", "--user", metavar="NAME", help="the guest's user that the command runs as")


def given(arguments: argparse.Namespace) -> bool:
    """Whether one of the flags is there."""
    return bool(arguments.env or arguments.workdir or arguments.user)


def command_words(
    arguments: argparse.Namespace, words: Sequence[str], *, takes_options: bool = False
) -> list[str]:
    """Return the command as the guest is to run it. Raises InvalidValueError.

    Not every guest `takes_options` before a command (`ringzero.api.command`).
    """
    if not given(arguments):
        return list(words)
    from ringzero.api.command import Invocation

    invocation = Invocation(
        list(words), env=dict(variables(arguments)), cwd=arguments.workdir, user=arguments.user
    )
    return list(map(os.fsdecode, invocation.words(takes_options=takes_options)))


def variables(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the names and values that --env gives. Raises InvalidValueError."""
    return [_variable(text) for text in arguments.env]


def advise_quoting(words: Sequence[str], status: int) -> None:
    """Where a whole line was quoted as one word, which names no program, say how it is meant."""
    if status == _NOT_FOUND and len(words) == 1 and " " in words[0].strip():
        import shlex

        from ringzero.cli.text import printable

        line = printable(shlex.quote(words[0]))
        print(f"  hint: for a line of the shell: -- sh -c {line}", file=sys.stderr)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name:
        raise InvalidValueError(f"--env {text!r} has no name", hint="--env NAME=VALUE")
    if equals:
        return name, value
    if name not in os.environ:
        raise InvalidValueError(
            f"--env {name}: there is no such variable here", hint=f"--env {name}=VALUE"
        )
    return name, os.environ[name]
