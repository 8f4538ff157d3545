"""`ringzero serve`: doors for other programs, and for other hosts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.machines import add_json, ago, note, table
from ringzero.cli.verb import AS_IS, THERE, VERBS, Away, Verb, print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    from ringzero.doors.daemon import Wanted
    from ringzero.doors.listeners import Certificate

# The doors, as `ringzero.doors.kinds` has them; they are not loaded for help.
_DOORS = {
    "rest": "the HTTP API: a path, or [HOST]:PORT with TLS and tokens",
    "libvirt": "libvirt's protocol: a path, or [HOST]:PORT with TLS and --client-ca",
}
_NONE = "none"


@VERBS.register("serve")
class Serve(Verb):
    summary = "open doors: an HTTP API for other programs and other hosts"
    away = Away(AS_IS, files={"cert": THERE, "key": THERE, "client_ca": THERE})
    examples = """\
  ringzero serve                               this user's own sockets, until Ctrl-C
  curl --unix-socket $XDG_RUNTIME_DIR/ringzero/serve.sock http://localhost/v1/machines
  ringzero serve --rest :8443 --cert c.pem --key k.pem       and over TCP, with tokens
  ringzero serve --as-qemu                     and for scripts that say qemu:///
  ringzero serve token create laptop           print a token, once
  ringzero serve token create ci --read-only
  ringzero serve token ls
  ringzero serve openapi                       the description of the HTTP API
  ringzero serve install                       a systemd unit of this user's
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags, and the other commands with theirs."""
        parser.usage = "ringzero serve [FLAGS] | token create|ls|rm | openapi | install"
        for name, text in _DOORS.items():
            parser.add_argument(
                f"--{name}",
                metavar="ADDRESS",
                action="append",
                default=None,
                help=f"{text}; repeatable, `none`: not at all",
            )
        add = parser.add_argument
        add(
            *("--as-qemu",),
            action="store_true",
            help="also answer where libvirt's clients look for qemu:///",
        )
        add("--cert", metavar="FILE", type=Path, help="the certificate for TCP, with its chain")
        add("--key", metavar="FILE", type=Path, help="its private key")
        add(
            *("--client-ca",),
            metavar="FILE",
            type=Path,
            help="let in over TCP only whose certificate one of these has signed",
        )
        add("-q", "--quiet", action="store_true", help="do not say where it listens")
        add(
            *("--stdio",),
            action="store_true",
            help="serve the HTTP API at standard input and output, to one who comes by ssh",
        )
        parser.set_defaults(act=_serve)
        commands = parser.add_subparsers(dest="action", metavar="COMMAND")
        _configure_tokens(commands)
        describe = commands.add_parser(
            "openapi",
            help="print the description of the HTTP API",
            description="Print the description of the HTTP API (OpenAPI 3.1).",
        )
        describe.set_defaults(act=_openapi)
        install = commands.add_parser(
            "install",
            help="write a systemd unit that runs `ringzero serve`",
            description="Write a systemd unit that runs `ringzero serve`; it starts nothing.",
        )
        install.add_argument("--system", action="store_true", help="for the whole host, as root")
        install.add_argument("--print", action="store_true", help="only print it")
        install.set_defaults(act=_install)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Serve, or do what the command says."""
        return int(arguments.act(arguments) or 0)


def _configure_tokens(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = commands.add_parser(
        "token",
        help="make and remove tokens, by which clients come in over TCP",
        description="Make and remove tokens, by which clients come in over TCP.",
    )
    tokens = token.add_subparsers(dest="token_action", metavar="COMMAND", required=True)
    create = tokens.add_parser("create", help="make a token, and print it, once")
    create.add_argument("name", metavar="NAME", help="what it is called: who has it")
    create.add_argument("--read-only", action="store_true", help="it can change nothing")
    add_json(create)
    create.set_defaults(act=_create_token)
    listing = tokens.add_parser("ls", help="list the tokens")
    add_json(listing)
    listing.set_defaults(act=_list_tokens)
    remove = tokens.add_parser("rm", help="remove tokens: they let nobody in any more")
    remove.add_argument("name", metavar="NAME", nargs="+", help="a token's name")
    remove.set_defaults(act=_remove_tokens)


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.stdio:
        from ringzero.doors import stdio
        from ringzero.settings import SERVE_DIR, SERVE_SOCKET

        stdio.serve(SERVE_SOCKET.get(), SERVE_DIR.get())
        return 0
    from ringzero.doors.daemon import serve
    from ringzero.settings import SERVE_DIR

    wanted = _wanted({name: getattr(arguments, name) for name in _DOORS})
    if arguments.as_qemu:
        wanted += _as_qemu()
    if not wanted:
        raise InvalidValueError("no door is left to open", hint="leave a `none` away")
    serve(
        wanted,
        SERVE_DIR.get(),
        _certificate(arguments),
        (lambda _: None) if arguments.quiet else note,
    )
    return 0


def _wanted(given: dict[str, Sequence[str] | None]) -> list[Wanted]:
    """Return the doors that are to be opened; each where it is by default, else where asked."""
    from ringzero.doors.contract import DOORS, Address
    from ringzero.doors.daemon import Wanted

    found = []
    for name, texts in given.items():
        door = DOORS.get(name)
        if texts is None:
            addresses = door.addresses()
        else:
            asked = [Address.parse(text) for text in texts if text != _NONE]
            addresses = [at for address in asked for at in door.at(address)]
        found += [Wanted(name, address, default=texts is None) for address in addresses]
    return found


def _as_qemu() -> list[Wanted]:
    from ringzero.doors.daemon import Wanted
    from ringzero.doors.kinds.libvirt import Libvirt

    return [Wanted("libvirt", address) for address in Libvirt.named("qemu")]


def _certificate(arguments: argparse.Namespace) -> Certificate | None:
    from ringzero.doors.listeners import Certificate

    if arguments.cert is None and arguments.key is None:
        if arguments.client_ca is not None:
            raise InvalidValueError("--client-ca without --cert and --key")
        return None
    if arguments.cert is None or arguments.key is None:
        raise InvalidValueError(
            "--cert and --key belong together",
            hint="openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 "
            "-subj /CN=HOST -addext subjectAltName=DNS:HOST -keyout k.pem -out c.pem",
        )
    return Certificate(arguments.cert, arguments.key, arguments.client_ca)


def _create_token(arguments: argparse.Namespace) -> None:
    from ringzero.doors.tokens import Tokens
    from ringzero.settings import SERVE_DIR

    text = Tokens(SERVE_DIR.get()).create(arguments.name, reads=arguments.read_only)
    if arguments.json:
        print_json({"name": arguments.name, "read_only": arguments.read_only, "token": text})
    else:
        print(text)
        note("it is not shown again; `Authorization: Bearer TOKEN` shows it to the server")


def _list_tokens(arguments: argparse.Namespace) -> None:
    from ringzero.doors.tokens import Tokens
    from ringzero.settings import SERVE_DIR

    found = Tokens(SERVE_DIR.get()).all()
    if arguments.json:
        print_json([token.to_dict() for token in found])
        return
    rows = [(t.name, "reads" if t.reads else "all", ago(t.created)) for t in found]
    table(("NAME", "MAY", "SINCE"), rows)


def _remove_tokens(arguments: argparse.Namespace) -> None:
    from ringzero.doors.tokens import Tokens
    from ringzero.settings import SERVE_DIR

    tokens = Tokens(SERVE_DIR.get())
    for name in arguments.name:
        tokens.remove(name)
        print(name)


def _openapi(arguments: argparse.Namespace) -> None:
    from ringzero.doors.rest.openapi import document

    print_json(document())


def _install(arguments: argparse.Namespace) -> None:
    from ringzero.doors import unit

    text = unit.text(sys.argv[0], system=arguments.system)
    if arguments.print:
        print(text, end="")
        return
    path = unit.write(text, system=arguments.system)
    print(path)
    scope = "" if arguments.system else " --user"
    note(f"`systemctl{scope} enable --now {path.name}` starts it, now and at each boot")
