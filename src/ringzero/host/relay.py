"""Bytes carried between this process's standard streams and a socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from ringzero.errors import HostError

_STDIN, _STDOUT = 0, 1
_PIECE = 64 * 1024


def relay(link: socket.socket, said: bytes = b"") -> None:
    """Carry bytes both ways until `link` ends, `said` before what it says. Raises HostError."""
    threading.Thread(target=_outwards, args=(link,), daemon=True).start()
    try:
        while True:
            view = memoryview(said)
            while view:
                view = view[os.write(_STDOUT, view) :]
            said = link.recv(_PIECE)
            if not said:
                return
    except BrokenPipeError:
        return
    except OSError as fault:
        raise HostError(f"the connection broke: {fault.strerror or fault}") from fault


def _outwards(link: socket.socket) -> None:
    how = socket.SHUT_RDWR
    try:
        with contextlib.suppress(OSError):
            while data := os.read(_STDIN, _PIECE):
                link.sendall(data)
        how = socket.SHUT_WR
    finally:
        # After anything else nobody is to wait for an answer.
        with contextlib.suppress(OSError):
            link.shutdown(how)
