"""`ringzero disk serve`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, options, wants_json
from ringzero.cli.verb import print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse

    from ringzero.disk import Disk
    from ringzero.disk.nbd.server import Server


@ACTIONS.register("serve")
class Serve(Action):
    summary = "let other programs use a disk by NBD, until Ctrl-C"
    examples = """\
  ringzero disk serve disk.qcow2                          qemu-img info nbd://localhost
  ringzero disk serve -r --unix /tmp/nbd.sock disk.vmdk   nbdinfo 'nbd+unix:///?socket=/tmp/nbd.sock'
  ringzero disk serve --throw-away --once -p 0 base.qcow2

Who may reach the port may read the disk, and write to it: there is no password. It is this
host's alone, unless --bind says otherwise.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content (never raw to write)")
        add("-r", "--read-only", action="store_true", help="clients may not change it")
        add("-s", "--throw-away", action="store_true", help="what clients write is forgotten")
        add("-k", "--unix", metavar="PATH", help="listen on a socket there, for this user only")
        add("-p", "--port", type=int, help="listen on TCP (default: 10809; 0: a free port)")
        add("-b", "--bind", metavar="ADDR", help="the address to listen on (default: 127.0.0.1)")
        add("-x", "--name", default="", help='what clients call it (default: "")')
        add("-D", "--description", default="", metavar="TEXT", help="what clients are told of it")
        add("--once", action="store_true", help="end when the last client has left")
        add("filename")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        if arguments.unix is not None and (arguments.port is not None or arguments.bind):
            raise InvalidValueError("--unix is another way than --port and --bind", hint="choose")
        if arguments.port is not None and not 0 <= arguments.port < 1 << 16:
            raise InvalidValueError(f"there is no port {arguments.port}")
        disk = open_for(
            arguments.filename,
            arguments.format,
            write=not (arguments.read_only or arguments.throw_away),
            throw_away=arguments.throw_away and not arguments.read_only,
            options=options(arguments.open),
        )
        _serve(disk, arguments)
        return 0


def _serve(disk: Disk, arguments: argparse.Namespace) -> None:
    import contextlib

    from ringzero.disk.instant import LiveDisk
    from ringzero.disk.nbd.server import Export, Server

    with contextlib.ExitStack() as closing:
        live = LiveDisk(disk)
        closing.callback(live.close)
        server = Server()
        closing.callback(server.close)
        server.add(Export(arguments.name, live, arguments.read_only, arguments.description))
        url = _listen(server, arguments)
        if wants_json(arguments):
            print_json({"url": url, "size": live.size, "read-only": live.read_only})
        elif not arguments.quiet:
            print(url)
        sys.stdout.flush()
        if arguments.once:
            server.wait_served()
        else:
            server.wait_closed()


def _listen(server: Server, arguments: argparse.Namespace) -> str:
    from pathlib import Path

    from ringzero.disk.nbd.server import PORT, url_of

    if arguments.unix is not None:
        path = Path(arguments.unix).absolute()
        server.listen_unix(path)
        return url_of(arguments.name, path=path)
    host = arguments.bind or "127.0.0.1"
    port = server.listen_tcp(host, PORT if arguments.port is None else arguments.port)
    return url_of(arguments.name, host=host, port=port)
