"""`run`'s side of a pool: a machine that is ready runs the command on this process's streams.

For `run -d`, it becomes a machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ringzero.cli.pool import place, protocol
from ringzero.cli.pool.protocol import (
    ACCEPTED,
    COMMAND,
    GREETING,
    KEEP,
    LOST,
    LOST_HINT,
    MACHINES,
    MESSAGE,
    SIGNAL,
)
from ringzero.cli.stdin import can_read_stdin
from ringzero.errors import ControlError, from_dict
from ringzero.host.private import open_private

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.control.host.directory import Claim


def run(
    config: MachineConfig,
    words: Sequence[str],
    *,
    own: Sequence[str] | None = None,
    timeout: float | None = None,
    stats: bool = False,
    as_json: bool = False,
) -> int | None:
    """Run a command in a machine of the pool of `config` and return its exit status.

    None where there is no such pool, or it has no machine at hand: nothing has happened then.
    Where `run`'s own words are given, the next command line with them finds the pool by itself.
    Raises what `ringzero.cli.session.run` does, ControlError where the machine's process is gone.
    """
    key = place.key_of(config)
    link = _machine(key) if key is not None else None
    if key is None or link is None:
        return None
    if own is not None:
        place.remember(key, own)
    with link:
        request = {
            "words": list(words),
            "takes_input": can_read_stdin(),
            "timeout": timeout,
            "stats": stats,
            "json": as_json,
        }
        # surrogateescape: words are bytes on this system.
        with _file(json.dumps(request).encode()) as text:
            try:
                socket.send_fds(link, [COMMAND], [text, 0, 1, 2])
            except OSError:
                return None
        return _result(_await(link))


def keeper(config: MachineConfig) -> Callable[[Claim, int], bool]:
    """Return what has a machine of the pool of `config` become a machine of its own name.

    It takes what `ringzero.control.host.launch.launch` gives it, and returns False where there is
    no such pool, or none at hand for this process's settings: nothing has happened then.
    """

    def keep(claim: Claim, report: int) -> bool:
        key = place.key_of(config)
        link = _machine(key) if key is not None else None
        if link is None:
            return False
        request = {"path": os.fspath(claim.directory.path), "settings": place.settings()}
        with link, _file(json.dumps(request).encode()) as text:
            try:
                # Until it has answered, or ended: there are not to be two.
                socket.send_fds(link, [KEEP], [text, claim.lock, report])
                return link.recv(MESSAGE) == ACCEPTED
            except OSError:
                return False

    return keep


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[int]:
    """Have a descriptor of `data` for the block."""
    text = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(text, data)
        yield text
    finally:
        os.close(text)


def _machine(key: str) -> socket.socket | None:
    """Return a connection to a machine that has greeted us."""
    root = place.root()
    try:
        # Whoever could change this one could put a machine of theirs into it.
        os.close(open_private(root, directory=True))
    except Exception:
        return None
    if not place.fits(root / key):
        return None
    try:
        link = place.connect(root / key / MACHINES, protocol.PATIENCE)
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
            link.settimeout(protocol.END)
            link.send(SIGNAL + b" %d" % (number or signal.SIGINT))
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
    raise ControlError(LOST, hint=LOST_HINT)
