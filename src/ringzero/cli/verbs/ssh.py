"""`ringzero ssh`: the host's ssh client into a guest with sshd."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NoReturn

from ringzero.cli.flags import words_of
from ringzero.cli.machines import add_name, note
from ringzero.cli.verb import BARRED, STREAMS, VERBS, Away, Verb
from ringzero.errors import InvalidValueError, MissingToolError, NotFoundError

if TYPE_CHECKING:
    import argparse

    from ringzero.control.host.client import RemoteMachine

_USER = "root"


@VERBS.register("ssh")
class Ssh(Verb):
    summary = "ssh into a guest with sshd"
    away = Away(STREAMS, files={"identity": BARRED})
    takes_command = True
    examples = """\
  ringzero ssh web                        a shell, as root
  ringzero ssh ana@web uname -a           a command, as ana
  ringzero ssh -i ~/.ssh/id_web web
  ringzero ssh --config web >>~/.ssh/config   then: ssh web, scp, rsync, an editor's remote mode
  ringzero ssh 192.168.121.3              by its address on a network by name

It is the host's ssh client, with its agent, keys and configuration; a port of this host leads to
the guest's while it connects. The guest's host key is kept beside the machine and is accepted at
the first connection. Guests of ringzero's own need no sshd: `ringzero exec`.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and the name."""
        parser.usage = "ringzero ssh [FLAGS] [USER@]NAME [CMD ...]"
        add = parser.add_argument
        add("-l", "--user", metavar="USER", help=f"the guest's user (default: {_USER})")
        add("-i", "--identity", metavar="FILE", action="append", default=[], help="a private key")
        add(
            *("-o", "--option"),
            metavar="NAME=VALUE",
            action="append",
            default=[],
            help="an option of ssh_config(5) (repeatable)",
        )
        add("-p", "--port", type=int, default=22, metavar="N", help="sshd's port (default: 22)")
        add("-t", "--tty", action="store_true", help="give the command a terminal")
        add("--config", action="store_true", help="print a section for ~/.ssh/config instead")
        add("--stdio", action="store_true", help="carry the connection itself, for ProxyCommand")
        add("--json", action="store_true", help="errors as JSON")
        add_name(parser)

    def split(self, words: list[str]) -> tuple[list[str], list[str] | None]:
        """The command begins behind the name, or behind "--" there."""
        own, command = super().split(words)
        _, *after = words_of(self, own) or [0]
        return (words[: after[0]], words[after[0] :]) if after else (own, command)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Become ssh; its exit status is ours."""
        from ringzero.control.host import sshway
        from ringzero.host.relay import relay

        user, at, name = arguments.machine.rpartition("@")
        if at and arguments.user:
            raise InvalidValueError("two users", hint=f"ringzero ssh {user}@{name}")
        arguments.machine = name
        machine = _meant(name)
        if not 0 < arguments.port < 1 << 16:
            raise InvalidValueError(f"no port has the number {arguments.port}")
        if arguments.stdio:
            told = False

            def waiting() -> None:
                nonlocal told
                if not told:
                    note("waiting for the guest's sshd; Ctrl-C ends that")
                told = True

            link, said = sshway.connect(machine, arguments.port, machine.boot_bound(), waiting)
            relay(link, said)
            return 0
        options = sshway.options(machine, arguments.port, user or arguments.user or _USER)
        if arguments.config:
            print(f"Host {machine.name}")
            for key, value in options.items():
                print(f"  {key} {value}")
            return 0
        machine.directory.require_alive()
        program = shutil.which("ssh")
        if program is None:
            raise MissingToolError("this host has no ssh", hint="install openssh-client")
        words = [program, *(word for o in arguments.option for word in ("-o", o))]
        words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        words += [word for file in arguments.identity for word in ("-i", file)]
        words += ["-t"] * arguments.tty
        return _become(program, [*words, machine.name, *(arguments.command or ())])


def _meant(name: str) -> RemoteMachine:
    """Return this host's machine of a name, or else of an address. Raises NotFoundError."""
    from ringzero.control.host import sshway
    from ringzero.control.host.client import machine

    try:
        return machine(name)
    except NotFoundError:
        found = sshway.at(name)
        if found is None:
            raise
        return found


def _become(program: str, words: list[str]) -> NoReturn:
    os.execv(program, words)
