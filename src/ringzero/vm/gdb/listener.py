"""Where gdb comes in to a machine of this process: a port of this host, or a Unix socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Self

from ringzero.errors import InvalidValueError, RingzeroError
from ringzero.host.files import host_error
from ringzero.host.unixsocket import Listener
from ringzero.vm.gdb.stub import Stub, Target
from ringzero.vm.machine import Machine

_READ = 64 * 1024
_UNIX = "unix:"


def parse(text: str) -> tuple[str, int] | Path:
    """Return the place in "[ADDR:]PORT" or "unix:PATH"; ADDR is 127.0.0.1. InvalidValueError."""
    if text.startswith(_UNIX) and len(text) > len(_UNIX):
        return Path(text.removeprefix(_UNIX))
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not int(port) < 1 << 16:
        raise InvalidValueError(
            f"{text!r} is no place for gdb", hint="write a port, ADDR:PORT or unix:PATH"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


class MachineTarget:
    """A machine of this process, which nobody else keeps."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def pause(self) -> bool:
        """Stop it; one that was handed over before its first instruction counts as running."""
        ran = self.machine.running or self.machine.hand_over is not None
        if self.machine.running:
            self.machine.pause()
        return ran

    def resume(self) -> None:
        """Let it go on."""
        self.machine.resume()

    def kill(self) -> None:
        """End it."""
        self.machine.stop()


class GdbListener:
    """Takes one debugger after the other; `start` begins, `close` ends it.

    Raises InvalidValueError for a place that is none, HostError, ConflictError.
    """

    def __init__(self, place: str, target: Target) -> None:
        self._target = target
        self._socket, self._unix = _bind(parse(place))
        self._link: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="gdb-listener", daemon=True)

    @property
    def address(self) -> str:
        """What gdb's `target remote` takes."""
        if self._unix is not None:
            return str(self._unix.path)
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Take debuggers from now on."""
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and let go of who is there."""
        for link in (self._link, self._socket):
            if link is not None:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
        if self._unix is not None:
            self._unix.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                link = self._socket.accept()[0]
            except OSError:
                return
            with link, contextlib.suppress(OSError, RingzeroError):
                self._link = link
                self._converse(link)

    def _converse(self, link: socket.socket) -> None:
        stub = Stub(self._target, link.sendall)
        try:
            while not stub.ended and (data := link.recv(_READ)):
                stub.feed(data)
        finally:
            stub.close()


def _bind(place: tuple[str, int] | Path) -> tuple[socket.socket, Listener | None]:
    if isinstance(place, Path):
        listener = Listener(place, backlog=1)
        listener.socket.setblocking(True)
        return listener.socket, listener
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(1)
    except OSError as fault:
        found.close()
        raise host_error(fault, "listen on", f"{place[0]}:{place[1]}") from fault
    return found, None
