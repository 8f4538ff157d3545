"""Connections to another host, over TLS, a Unix socket, or the user's ssh client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ringzero.errors import ControlError, HostError, InvalidValueError, RingzeroError
from ringzero.host.files import host_error
from ringzero.remote import ssh
from ringzero.remote.address import Address

# How long a host may take to be connected with, in seconds. ssh connects when something is asked,
# and may ask for a password meanwhile.
CONNECT = 20.0
_SSH_CONNECT = 120.0
# What the way adds to the time that an answer may take, in seconds.
WAY = 15.0
_READ = 256 << 10
# After a minute of silence a host is asked whether it is there, four times, in seconds.
_ALIVE = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
}
# What of ssh's own words is told, in bytes.
_SAID = 2000


class Link:
    """One connection. Raises ControlError where the other side does not answer."""

    def __init__(
        self,
        endpoint: Endpoint,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        relay: Relay | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._writer = writer
        self._relay = relay
        self._read = False
        endpoint.links.add(self)

    @property
    def stale(self) -> bool:
        """Whether the other side has left meanwhile."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def send(self, data: bytes) -> None:
        """Send; waits while the other side takes nothing."""
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> bytes:
        """Return what comes; b"" at the end. Raises ControlError for a way that broke."""
        try:
            data = await self._reader.read(_READ)
        except (OSError, ssl.SSLError) as fault:
            raise self._endpoint.failed(fault) from fault
        if not data and not self._read and self._relay is not None:
            raise await asyncio.to_thread(self._relay.fault)
        self._read = True
        return data

    def close(self) -> None:
        """Leave."""
        self._endpoint.links.discard(self)
        self._writer.transport.abort()
        if self._relay is not None:
            self._relay.close()


class Endpoint:
    """A host's place, and how one is let in there."""

    def __init__(
        self, address: Address, token: str | None = None, authorities: Path | None = None
    ) -> None:
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise InvalidValueError(
                "a token is one line of ASCII", hint="`ringzero serve token create` prints one"
            )
        self.address = address
        self.token = token
        self._tls = _context(authorities) if address.scheme == "https" else None
        # Those that are open.
        self.links: set[Link] = set()

    @property
    def coming(self) -> float:
        """How long the first answer may take beside its own time, in seconds."""
        return _SSH_CONNECT if self.address.scheme == "ssh" else 0.0

    async def connect(self) -> Link:
        """Return a new connection. Raises ControlError, HostError, MissingToolError."""
        scheme = self.address.scheme
        try:
            async with asyncio.timeout(CONNECT):
                if scheme == "unix":
                    return Link(self, *await asyncio.open_unix_connection(self.address.path))
                if scheme == "ssh":
                    relay = Relay(self.address)
                    return Link(self, *await asyncio.open_connection(sock=relay.socket), relay)
                pair = await asyncio.open_connection(
                    self.address.host, self.address.port, ssl=self._tls
                )
                # A host that vanishes is noticed while nothing is said (tcp(7)).
                link: socket.socket = pair[1].get_extra_info("socket")
                for option, value in _ALIVE.items():
                    link.setsockopt(*option, value)
                return Link(self, *pair)
        except TimeoutError:
            raise ControlError(
                f"{self.address} does not answer", hint="is `ringzero serve` running there?"
            ) from None
        except UnicodeError as fault:
            # Of the name, before it is looked up: each label has 1 to 63 characters.
            raise HostError(
                f"{self.address.host!r} is no host's name", hint="is it right?"
            ) from fault
        except OSError as fault:
            raise self.failed(fault) from fault

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Say in errors of the conversation whom it was with."""
        try:
            yield
        except ControlError as fault:
            place = str(self.address)
            if fault.message.startswith(place):
                raise
            named = f"{place}: {fault.message}"
            raise type(fault)(named, hint=fault.hint, **fault.context) from fault

    def failed(self, fault: OSError) -> RingzeroError:
        """Return the error for a connection that could not be made, or that broke."""
        place = str(self.address)
        if isinstance(fault, ssl.SSLCertVerificationError):
            return HostError(
                f"{place} shows a certificate that is not trusted: {fault.verify_message}",
                hint="--cacert FILE names the certificate of who has signed it",
            )
        if isinstance(fault, ssl.SSLError):
            return ControlError(
                f"{place} does not speak TLS as it should: {fault.reason or fault}",
                hint="`ringzero serve --rest HOST:PORT --cert FILE --key FILE` does",
            )
        if isinstance(fault, socket.gaierror):
            return HostError(f"{self.address.host}: {fault.strerror}", hint="is its name right?")
        hint = "start it there: `ringzero serve`"
        if self.address.scheme == "https":
            hint += f" --rest :{self.address.port} --cert FILE --key FILE"
        return ControlError(f"{place} cannot be spoken with: {fault.strerror or fault}", hint=hint)


def _context(authorities: Path | None) -> ssl.SSLContext:
    """Return what checks the server. Raises InvalidValueError, HostError."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError as fault:
            raise InvalidValueError(
                f"{authorities} has no certificate: {fault.reason or fault}", hint="a PEM file"
            ) from fault
        except OSError as fault:
            raise host_error(fault, "read", authorities) from fault
    return context


class Relay:
    """An ssh that carries one connection: `ringzero serve --stdio` is at its other end."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        try:
            words = ssh.command(address, ("serve", "--stdio"))
            self._process = _begin(words, theirs, self._said)
        except BaseException:
            self.socket.close()
            self._said.close()
            raise
        finally:
            theirs.close()

    def fault(self) -> RingzeroError:
        """Return why nothing came of it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        if self._said.closed:
            return ControlError(f"{self._address}: the connection was closed")
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _SAID))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return _ssh_fault(self._address, self._process.returncode, lines)

    def close(self) -> None:
        """Leave; ssh ends by itself, as nobody is at its end."""
        self._said.close()
        with contextlib.suppress(OSError):
            self._process.terminate()
        threading.Thread(target=self._process.wait, name="ssh", daemon=True).start()


def _begin(words: Sequence[str], link: socket.socket, said: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(words, stdin=link.fileno(), stdout=link.fileno(), stderr=said)
    except OSError as fault:
        raise host_error(fault, "run", Path(words[0])) from fault


def _ssh_fault(address: Address, status: int | None, lines: Sequence[str]) -> RingzeroError:
    last = lines[-1] if lines else f"ssh ended with status {status}"
    if status in ssh.NO_COMMAND:
        return ControlError(
            f"{address.host} has no ringzero that can be run: {last}",
            hint=f"install it there, or say where it is: ssh://{address.host}/PATH/TO/ringzero",
        )
    hint = f"does `ssh {address.host}` work?" if status == ssh.FAILED else None
    return ControlError(f"{address}: {last}", hint=hint)
