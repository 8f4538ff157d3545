"""The way of an ssh client of the host's into a guest with sshd: by a forwarded port.

A port that leads to the guest's is used, or one of the loopback address is forwarded until the
connection is up. No agent is needed in the guest, and no address of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import GuestError, NotFoundError

if TYPE_CHECKING:
    from ringzero.control.host.client import RemoteMachine

# ssh(1): port 22 unless it is told otherwise.
PORT = 22
# How often a guest whose sshd does not listen yet is asked again, in seconds.
_AGAIN = 0.5
_PIECE = 64 * 1024
_STDIN, _STDOUT = 0, 1


def at(text: str) -> RemoteMachine | None:
    """Return the machine that is on a network by name with an address; None: `text` is no address.

    Raises NotFoundError where no machine has it.
    """
    from ringzero.control.host.client import host

    try:
        address = str(ipaddress.IPv4Address(text))
    except ValueError:
        return None
    here = host()
    for network in here.networks():
        for member in network["machines"]:
            if member["address"] == address:
                return here.machine(member["name"])
    raise NotFoundError(
        f"no machine on a network has the address {address}",
        hint="`ringzero network inspect NAME` tells who is there; a name goes, too",
    )


def options(machine: RemoteMachine, port: int, user: str) -> dict[str, str]:
    """Return the options of ssh_config(5) by which ssh finds the machine's guest.

    Its host key is kept beside the machine, and goes with it: another machine of this name has
    another key.
    """
    # Whatever RINGZERO_HOST says: the machine is this host's.
    ours = [sys.executable, "-m", "ringzero", "--host", "local"]
    ours += ["ssh", "--stdio", "--port", str(port), machine.name]
    return {
        "User": user,
        "ProxyCommand": shlex.join(ours).replace("%", "%%"),
        "HostKeyAlias": machine.name,
        "UserKnownHostsFile": _quoted(machine.directory.path / "known_hosts"),
        "GlobalKnownHostsFile": "none",
        "HashKnownHosts": "no",
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def connect(
    machine: RemoteMachine, port: int, patience: float, waiting: Callable[[], object]
) -> tuple[socket.socket, bytes]:
    """Return a connection with the guest's sshd, and the beginning of what that has said.

    One that does not listen yet is asked again for `patience` seconds, and `waiting` is told.
    Raises GuestError, and what forwarding a port raises.
    """
    until = time.monotonic() + patience
    with _forwarded(machine, port) as address:
        while True:
            link, said = _attempt(address)
            if link is not None and said:
                return link, said
            if time.monotonic() >= until:
                raise GuestError(
                    f"nobody answers at port {port} of the guest {machine.name}",
                    hint="is sshd installed there, and does it run? "
                    f"`ringzero exec -it {machine.name} sh`, `ringzero console {machine.name}`",
                )
            waiting()
            time.sleep(_AGAIN)


def _attempt(address: tuple[str, int]) -> tuple[socket.socket | None, bytes]:
    """Connect, and wait for sshd's first words (RFC 4253 section 4.2: it need not be asked)."""
    try:
        link = socket.create_connection(address, timeout=5)
    except OSError:
        return None, b""
    try:
        said = link.recv(_PIECE)
    except OSError:
        said = b""
    if not said:
        link.close()
        return None, b""
    link.settimeout(None)
    return link, said


@contextlib.contextmanager
def _forwarded(machine: RemoteMachine, port: int) -> Iterator[tuple[str, int]]:
    """Have a port of the host lead to the guest's for the block; connections outlast it."""
    for found in machine.ports():
        if found["guest_port"] == port and found["protocol"] == "tcp" and found["port"]:
            address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(found["address"], found["address"])
            yield address, found["port"]
            return
    (made,) = machine.publish(f"127.0.0.1:0:{port}")
    try:
        yield made["address"], made["port"]
    finally:
        machine.unpublish(f"127.0.0.1:{made['port']}:{port}")
