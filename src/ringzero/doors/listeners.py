"""Where doors listen: Unix sockets of this user's, and TCP with TLS (1.2 and later)."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from pathlib import Path

from ringzero.doors.caller import Caller
from ringzero.doors.contract import Address
from ringzero.errors import HostError, InvalidValueError
from ringzero.host.files import host_error
from ringzero.host.unixsocket import Listener
from ringzero.records import record

# struct ucred of unix(7): process, user, group.
_UCRED = struct.Struct("3i")
_BACKLOG = 256
# A host that vanished is noticed after some two minutes of silence (tcp(7)), in seconds.
_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}


@record
class Certificate:
    """What a server over TCP shows: files of a certificate (with its chain) and of its key.

    With `clients`, a file of certificates that sign those of clients, none else comes in.
    """

    certificate: Path
    key: Path
    clients: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what asyncio takes. Raises HostError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # libvirt's client (9.0) takes the tickets that TLS 1.3 sends behind the handshake for the
        # server's first byte, finds none, and leaves.
        context.num_tickets = 0
        path = self.certificate
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.clients is not None:
                path = self.clients
                context.load_verify_locations(self.clients)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as fault:
            raise InvalidValueError(
                f"{path} is no certificate that can be used: {fault.reason or fault}",
                hint="PEM files; the key must be the certificate's",
            ) from fault
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
        return context


class Listening:
    """A socket that listens; `close` removes its file. Raises HostError, ConflictError."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._unix: Listener | None = None
        if address.path is not None:
            self._unix = _unix(address.path)
            self.socket = self._unix.socket
        else:
            self.socket = _tcp(address)
            port = self.socket.getsockname()[1]
            self.address = Address(host=address.host, port=port, reads=address.reads)

    def close(self) -> None:
        """Stop to listen."""
        if self._unix is not None:
            self._unix.close()
        else:
            self.socket.close()


def caller_behind(link: socket.socket, *, reads: bool) -> Caller | None:
    """Return who is at the other end of a Unix socket; None for one who is not let in."""
    process, user, _ = _UCRED.unpack(
        link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    if user not in (0, os.geteuid()):
        return None
    return Caller(f"user {user}, process {process}", reads)


def _unix(path: Path) -> Listener:
    with contextlib.suppress(OSError):
        # It may be one that others share, as libvirt's; the socket itself is its user's alone.
        path.parent.mkdir(mode=0o755, exist_ok=True, parents=True)
    return Listener(path, _BACKLOG)


def _tcp(address: Address) -> socket.socket:
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as fault:
        raise InvalidValueError(f"cannot listen on {address}: {fault.strerror}") from fault
    link = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ALIVE.items():
            link.setsockopt(socket.IPPROTO_TCP, option, value)
        link.bind(where)
        link.listen(_BACKLOG)
        link.setblocking(False)
    except OSError as fault:
        link.close()
        raise HostError(
            f"cannot listen on {address}: {fault.strerror}", hint="take another port"
        ) from fault
    return link
