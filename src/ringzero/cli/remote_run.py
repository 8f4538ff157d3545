"""`run` and `create` over the HTTP API: by a host's actions, where no file of the caller's is."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ringzero.cli.command_flags import advise_quoting, command_words, given
from ringzero.cli.verb import print_json
from ringzero.errors import ConfigError, InvalidValueError, RingzeroError
from ringzero.remote.client import Client
from ringzero.remote.machine import Machine

_STDIN = 0
_DEFAULT_IMAGE = "micro"
# What `run` without a command runs in an image that says nothing of its own.
_SHELL = ("sh", "-l")
# Arguments that have an effect here; of others only the default is taken.
_TAKEN = frozenset((
    "append", "command", "cpu", "cpus", "detach", "engine", "env", "image",
    "interactive", "json", "memory", "name", "net", "no_wait", "publish", "rm", "timeout", "tty",
    "user", "workdir",
))  # fmt: skip
_HINT = "by ssh it can be done: --host ssh://HOST"


def run(client: Client, arguments: argparse.Namespace) -> int:
    """Run a machine on another host, in the foreground or not; return the exit code."""
    _check(arguments)
    if arguments.detach:
        _refuse_placing(arguments)
        name = _define(client, arguments, arguments.command or None)
        _start(client.machine(name))
        _tell(client, name, arguments)
        return 0
    name = _define(client, arguments, [])
    machine = client.machine(name)
    with _removed(machine, arguments):
        _start(machine)
        return _command(client, machine, arguments)


def create(client: Client, arguments: argparse.Namespace) -> int:
    """Describe a machine on another host."""
    _check(arguments)
    _refuse_placing(arguments)
    name = _define(client, arguments, arguments.command or None)
    _tell(client, name, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done there."""
    faults = list[str]()
    for name, value in sorted(vars(arguments).items()):
        if name not in _TAKEN and value not in (None, False, "", []):
            faults.append(f"--{name.replace('_', '-')} cannot be done over the HTTP API")
    if faults:
        raise ConfigError(faults, hint=_HINT)


def _refuse_placing(arguments: argparse.Namespace) -> None:
    if given(arguments):
        raise InvalidValueError(
            "--env, --workdir and --user of a machine that stays cannot be given over the HTTP API",
            hint=f"`ringzero exec` takes them; {_HINT}",
        )


def _define(client: Client, arguments: argparse.Namespace, command: list[str] | None) -> str:
    named = ("memory", "cpus", "cpu", "engine")
    fields = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    if arguments.append:
        fields["command_line"] = " ".join(arguments.append)
    if arguments.net:
        fields["nets"] = list(arguments.net)
    stays = arguments.name is not None or getattr(arguments, "detach", True)
    name = client.define(
        fields,
        name=arguments.name,
        image=arguments.image or _DEFAULT_IMAGE,
        command=command,
        timeout=arguments.timeout,
        remove=arguments.rm or not stays,
    )
    try:
        for text in arguments.publish:
            client.machine(name).publish(text)
    except BaseException:
        with contextlib.suppress(RingzeroError):
            client.machine(name).remove()
        raise
    return name


def _start(machine: Machine) -> None:
    try:
        machine.start()
    except BaseException:
        # Nobody is to find half of what was asked for.
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)
        raise


@contextlib.contextmanager
def _removed(machine: Machine, arguments: argparse.Namespace) -> Iterator[None]:
    """Have a machine end with the block, and go where it was not given a name."""
    try:
        yield
    finally:
        with contextlib.suppress(RingzeroError):
            if arguments.name is None or arguments.rm:
                machine.remove(force=True)
            else:
                machine.stop()


def _command(client: Client, machine: Machine, arguments: argparse.Namespace) -> int:
    """Run the command, the image's own, or a shell."""
    from ringzero.cli.stdin import can_read_stdin
    from ringzero.cli.verbs.exec import run_there

    first, default = _of_image(client, machine)
    words = [*first, *(arguments.command or default)] or list(_SHELL)
    terminal = os.isatty(_STDIN) and sys.stdout.isatty()
    tty = arguments.tty or (terminal and not arguments.command)
    if given(arguments):
        words = command_words(arguments, words, takes_options=machine.takes_options)
    status = run_there(machine, words, tty=tty, interactive=can_read_stdin())
    advise_quoting(arguments.command, status)
    return status


def _of_image(client: Client, machine: Machine) -> tuple[Sequence[str], Sequence[str]]:
    """Return the entrypoint and the command of a machine's image."""
    name = machine.inspect()["image"]
    for image in client.images():
        if name in (image["name"], *image["names"]):
            return image.get("entrypoint", ()), image.get("cmd", ())
    return (), ()


def _tell(client: Client, name: str, arguments: argparse.Namespace) -> None:
    if arguments.json:
        facts: Any = client.machine(name).inspect()
        print_json(facts)
    else:
        print(name)
