"""`ringzero serve --stdio`: the HTTP API for the one who is at standard input and output.

Who comes by ssh needs no server that runs already. Where one does, it serves this one, too, and
its jobs go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

from ringzero.control.host.client import Host
from ringzero.doors.caller import Caller
from ringzero.doors.contract import DOORS
from ringzero.doors.events import Events
from ringzero.doors.manager import Manager
from ringzero.doors.tokens import Tokens
from ringzero.errors import HostError
from ringzero.host import unixsocket
from ringzero.host.relay import relay

# How long what is under way may take to end when the client has left, in seconds.
_END = 3.0


def serve(running: Path, where: Path) -> None:
    """Serve to the end of standard input; `running` is the socket of a server that may run.

    `where` is that one's directory. Raises HostError.
    """
    serving: threading.Thread | None = None
    try:
        link = unixsocket.connect(running)
    except HostError:
        link, theirs = socket.socketpair()
        serving = threading.Thread(
            target=_keep_serving, args=(theirs, where), name="serve", daemon=True
        )
        serving.start()
    else:
        link.setblocking(True)
    with link:
        relay(link)
    if serving is not None:
        serving.join(_END)


def _keep_serving(link: socket.socket, where: Path) -> None:
    with link:
        asyncio.run(_serve(link, where))


async def _serve(link: socket.socket, where: Path) -> None:
    host = Host()
    events = Events(host.where)
    manager = Manager(host, events, Tokens(where))
    reader, writer = await asyncio.open_connection(sock=link)
    events.start()
    try:
        caller = Caller(f"user {os.geteuid()}, at standard input")
        await DOORS.get("rest")(manager).converse(reader, writer, caller)
    except (ConnectionError, TimeoutError):
        # The client's affair.
        pass
    finally:
        writer.close()
        # What was said last is still on its way; a client that leaves ends that.
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        events.close()
        await manager.close()
