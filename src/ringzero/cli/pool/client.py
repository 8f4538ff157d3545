"""`run`'s side of a pool: a machine that is ready runs the command on this process's streams."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringzero.cli.output import can_read_stdin
from ringzero.cli.pool import place
from ringzero.cli.pool.place import GREETING, MACHINES, MESSAGE
from ringzero.errors import ControlError, from_dict
from ringzero.host.private import open_private

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig

# How long a pool may take to have a machine at hand, in seconds; to go on from a template takes
# as long.
_PATIENCE = 0.5
# How long a machine may take to end when it is told to, in seconds.
_END = 5.0


def run(
    config: MachineConfig,
    words: Sequence[str],
    *,
    timeout: float | None = None,
    stats: bool = False,
    as_json: bool = False,
) -> int | None:
    """Run a command in a machine of the pool of `config` and return its exit status.

    None where there is no such pool, or it has no machine at hand: nothing has happened then.
    Raises what `ringzero.cli.session.run` does, ControlError where the machine's process is gone.
    """
    link = _machine(config)
    if link is None:
        return None
    with link:
        request = {
            "words": list(words),
            "takes_input": can_read_stdin(),
            "timeout": timeout,
            "stats": stats,
            "json": as_json,
        }
        # surrogateescape: words are bytes on this system.
        data = json.dumps(request).encode()
        text = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            os.write(text, data)
            try:
                socket.send_fds(link, [b"run"], [text, 0, 1, 2])
            except OSError:
                return None
        finally:
            os.close(text)
        return _result(_await(link))


def _machine(config: MachineConfig) -> socket.socket | None:
    """Return a connection to a machine that has greeted us."""
    root = place.root()
    try:
        # Whoever could change this one could put a machine of theirs into it.
        os.close(open_private(root, directory=True))
    except Exception:
        return None
    key = place.key_of(config)
    if key is None or not place.fits(root / key):
        return None
    try:
        link = place.connect(root / key / MACHINES, _PATIENCE)
    except OSError:
        return None
    try:
        if link.recv(MESSAGE) == GREETING:
            link.settimeout(None)
            return link
    except OSError:
        pass
    link.close()
    return None


def _await(link: socket.socket) -> dict[str, Any]:
    """Return the machine's last message; a signal that ends us ends the machine."""
    try:
        return place.decode(_receive(link))
    except (KeyboardInterrupt, SystemExit) as end:
        number = end.code - 128 if isinstance(end, SystemExit) and isinstance(end.code, int) else 0
        try:
            link.settimeout(_END)
            link.send(place.encode(signal=number or int(signal.SIGINT)))
            _receive(link)
        except OSError:
            pass
        raise


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(MESSAGE)
    except ConnectionResetError:
        return b""


def _result(answer: dict[str, Any]) -> int:
    match answer:
        case {"code": int(code)}:
            return code
        case {"error": dict(fault)}:
            raise from_dict(fault)
        case {"broken": True}:
            raise BrokenPipeError
    raise ControlError(
        "the pool's machine ended before the command did",
        hint="was it killed? `ringzero pool status` tells whether the pool is still there",
    )
