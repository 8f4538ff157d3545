"""A command line with --host, done on another host: by its actions over HTTP, or there by ssh.

`Away` (`ringzero.cli.verb`) tells of each command what becomes of it; docs/remote.md tells people.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ringzero.cli import habits
from ringzero.cli.verb import (
    BARRED,
    CARRIED,
    ENV,
    FETCHED,
    HERE,
    REFUSED,
    SENT,
    THERE,
    VERBS,
    Away,
    Group,
    Verb,
)
from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.remote.address import Address
from ringzero.remote.hosts import LOCAL, Hosts, NamedHost
from ringzero.settings import HOST, TOKEN

# Flags before a command, by the field of a `NamedHost` that they are.
FLAGS = {"--host": "url", "-H": "url", "--token-file": "token_file", "--cacert": "cacert"}
_STDIN, _STDOUT = 0, 1
_LONGEST_TOKEN = 4096

# What does a command line on this host.
Here = Callable[[list[str]], int]


@record
class Place:
    """The host that a command line is about, and what lets one in."""

    address: Address
    token_file: str = ""
    cacert: str = ""

    def token(self) -> str | None:
        """Return the token for it; None for none. Raises HostError, InvalidValueError."""
        if not self.token_file:
            return TOKEN.get() or None
        from ringzero.host.files import host_error

        try:
            with Path(self.token_file).open() as file:
                text = file.read(_LONGEST_TOKEN).strip()
        except (OSError, UnicodeError) as fault:
            error = fault if isinstance(fault, OSError) else OSError(0, "it is no text")
            raise host_error(error, "read", self.token_file) from fault
        if not text or not text.isprintable() or not text.isascii():
            raise InvalidValueError(f"{self.token_file} holds no token")
        return text


def take(words: list[str]) -> Place | None:
    """Take the flags before the command out of `words`; return the host that they mean.

    None is this one. Raises InvalidValueError, NotFoundError.
    """
    given = dict[str, str]()
    while words:
        name, equals, value = words[0].partition("=")
        if name not in FLAGS:
            break
        del words[0]
        if not equals:
            if not words:
                raise InvalidValueError(f"{name} needs a value", hint="--host ssh://HOST")
            value = words.pop(0)
        given[FLAGS[name]] = value
    text = given.pop("url", None) or HOST.get()
    if not text or text == LOCAL:
        if given:
            raise InvalidValueError("--token-file and --cacert are for --host https://HOST")
        return None
    host = NamedHost("", text) if ":" in text else Hosts().get(text)
    return Place(
        Address.parse(host.url),
        given.get("token_file", host.token_file),
        given.get("cacert", host.cacert),
    )


def run(place: Place, words: list[str], here: Here) -> int:
    """Do a command line (without the flags of the host); return the exit code."""
    words = habits.translate(words)
    if not words or words[0].startswith("-"):
        return here(words)
    if words[0] not in VERBS:
        raise habits.unknown(words[0], VERBS.names())
    verb = VERBS.get(words[0])()
    own, command = verb.split(words[1:])
    if {"-h", "--help"} & set(own):
        return here(words)
    line = _read(verb, words[0], own, command)
    away = line.away
    if away.how == HERE:
        return here(words)
    if away.how == REFUSED:
        raise InvalidValueError(f"`{line.name}` is not done on another host", hint=away.why)
    files = line.verb.files(line.arguments)
    _check(line, files, place)
    if place.address.scheme == "ssh" and not (away.how == CARRIED and away.actions):
        return _by_ssh(place.address, line, files)
    if not away.actions:
        raise InvalidValueError(
            f"`{line.name}` cannot be done over the HTTP API",
            hint=f"by ssh it can: --host ssh://{place.address.host or 'HOST'}",
        )
    from ringzero.cli import target
    from ringzero.remote.client import Client

    authorities = place.cacert or None
    with (
        Client(str(place.address), token=place.token(), authorities=authorities) as client,
        target.using(client),
    ):
        return line.verb.execute_there(client, line.arguments)


@record
class Line:
    """A command line that has been read: its command, and its words before and behind "--"."""

    name: str
    verb: Verb
    away: Away
    parser: argparse.ArgumentParser
    arguments: argparse.Namespace
    own: list[str]
    command: list[str] | None


def _read(verb: Verb, name: str, own: list[str], command: list[str] | None) -> Line:
    """Return what a command line says. Raises InvalidValueError."""
    from ringzero.cli.parser import Parser, parse

    parser = Parser(prog=f"ringzero {name}")
    if isinstance(verb, Group) and own[:1] and own[0] in verb.commands():
        verb.named = own[0]
    verb.configure(parser)
    arguments, faults = parse(parser, own)
    if faults:
        raise InvalidValueError(faults[0], hint=f"`ringzero {name} --help` tells what it takes")
    if command is not None and not verb.takes_command:
        raise InvalidValueError(f"`ringzero {name}` takes no command after '--'")
    arguments.command = command or []
    chosen: Verb = getattr(arguments, "chosen_command", verb)
    whole = f"ringzero {name}" if chosen is verb else f"ringzero {name} {arguments.action}"
    return Line(whole, chosen, away_of(chosen, verb), parser, arguments, list(own), command)


def away_of(command: Verb, group: Verb) -> Away:
    """Return what becomes of a command of a group, or of a verb, on another host."""
    found = command.away or group.away
    assert found is not None, "each verb tells of it"
    return found


def _check(line: Line, files: Mapping[str, str], place: Place) -> None:
    """Raise InvalidValueError for files that would be taken from the wrong host."""
    over_http = place.address.scheme != "ssh"
    for name, kind in files.items():
        value = getattr(line.arguments, name, None)
        for text in map(str, value if isinstance(value, list | tuple) else (value or (),)):
            if not value or text == "-":
                continue
            if kind == BARRED or (kind in (SENT, FETCHED) and over_http and not line.away.actions):
                raise InvalidValueError(
                    f"{text}: a file or folder of this host, and the machine is on {place.address}",
                    hint=line.away.why or _hint(place.address),
                )
            if kind == THERE and not text.startswith("/"):
                raise InvalidValueError(
                    f"{text}: not absolute, and {place.address} has another working directory",
                    hint="begin it with /",
                )


def _hint(address: Address) -> str:
    where = address.host or "there"
    return f"`ringzero cp` takes files into its guest; or log in there: ssh {where} ringzero ..."


def _by_ssh(address: Address, line: Line, files: Mapping[str, str]) -> int:
    """Run the same command there."""
    from ringzero.cli.carrying import Carrying, places
    from ringzero.remote import ssh

    own = line.own
    found = [at for at in places(line.parser, own) if at.argument in files]
    with Carrying(address) as carrying:
        for at in found:
            text, kind = own[at.word][at.begin :], files[at.argument]
            new = text
            if kind == ENV:
                new = _variable(text)
            elif kind == SENT and text not in ("", "-"):
                new = carrying.send(Path(text))
            elif kind == FETCHED and text not in ("", "-"):
                new = carrying.expect(Path(text))
            own[at.word] = own[at.word][: at.begin] + new
        placed = {at.argument for at in found}
        for name, kind in files.items():
            value = getattr(line.arguments, name, None)
            if kind == SENT and name not in placed and isinstance(value, str):
                own[:0] = [_flag(line.parser, name), carrying.send(Path(value))]
        _, verb, *command = line.name.split()
        if command:
            # Another name for it may have been written.
            own[0] = command[0]
        words = [verb, *own]
        if line.command is not None and line.verb.takes_command:
            words += ["--", *line.command]
        tty = os.isatty(_STDIN) and os.isatty(_STDOUT)
        asked = ssh.command(address, words, tty=tty)
        code = carrying.run(asked)
        if code == 0:
            carrying.fetch()
        return code


def _variable(text: str) -> str:
    """Return --env with the value that the variable has here. Raises InvalidValueError."""
    if "=" in text:
        return text
    if text not in os.environ:
        raise InvalidValueError(f"there is no variable {text!r} here", hint=f"{text}=VALUE")
    return f"{text}={os.environ[text]}"


def _flag(parser: argparse.ArgumentParser, name: str) -> str:
    return next(
        option
        for action in parser._actions
        if action.dest == name
        for option in action.option_strings
    )
