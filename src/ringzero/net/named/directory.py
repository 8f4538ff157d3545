"""The directories of networks by name: made, looked at and removed by any process.

`RINGZERO_NETWORKS_DIR` holds one directory (mode 0700) for each network:

    network.json   its description, with the notes that came with it
    notes.json     what is noted of it: UUID, whether it is active, texts of other programs
    leases.json    who had which address, by MAC address
    lock           held by the network's process as long as it lives
    socket         where machines join
    network.log    what its process had to say
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.errors import ConflictError, HostError, MissingFileError, NotFoundError, StateError
from ringzero.host import ofdlock
from ringzero.host.files import host_error, open_regular
from ringzero.host.process import detach
from ringzero.host.unixsocket import reach
from ringzero.net.named.description import RESERVED, NamedNetwork, NetworkNotes
from ringzero.plain import MisfitError, from_plain, to_plain
from ringzero.records import replace
from ringzero.settings import NETWORKS_DIR

DESCRIPTION, LEASES, LOCK, SOCKET, LOG = (
    *("network.json", "leases.json", "lock", "socket", "network.log"),
)
NOTES = "notes.json"
# In network.json: the notes that came with the description. One rename changes both.
_NOTED = "notes"
# Of the UUIDs that are made from networks' names and subnets (RFC 9562 section 5.5).
_NAMESPACE = uuid.UUID("9a1d7c0e-6f0b-4d6e-8a53-2f3f4e8f6b11")
_LARGEST = 1 << 20
# Where subnets are taken from that nobody named: what neither libvirt nor docker uses.
_POOL = [f"10.{89 + n // 256}.{n % 256}.0/24" for n in range(512)]
# How long a network's process may take to listen, in seconds; 0.2 where the host is idle.
_PATIENCE, _PAUSE = 20.0, 0.02
_PLACE = "set RINGZERO_NETWORKS_DIR to a directory that you can write to"
# -P: the current directory is no place to import from.
_PROGRAM = (sys.executable, "-P", "-m", "ringzero.net.named")


class NetworkDirectory:
    """One network's directory, as any process may see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def network(self) -> NamedNetwork:
        """Return the description. Raises NotFoundError, StateError."""
        data = _read(self.path / DESCRIPTION)
        if data is None and not self.path.is_dir():
            raise not_found(self.name)
        try:
            found: NamedNetwork = from_plain(NamedNetwork, _without_notes(data))
        except MisfitError as fault:
            raise StateError(
                f"{self.path / DESCRIPTION} is not readable as a network's description",
                hint=f"`ringzero network rm {self.name}` removes it",
            ) from fault
        return replace(found, name=self.name)

    def notes(self) -> NetworkNotes:
        """Return what is noted of it. Raises NotFoundError, StateError."""
        described = (_read(self.path / DESCRIPTION) or {}).get(_NOTED)
        try:
            found: NetworkNotes = from_plain(NetworkNotes, _read(self.path / NOTES) or {})
            if described is not None:
                # Those of a change of both, where nothing was noted since.
                first: NetworkNotes = from_plain(NetworkNotes, described)
                found = max(first, found, key=lambda notes: notes.changes)
        except MisfitError as fault:
            raise StateError(
                f"{self.path / NOTES} is not readable as a network's notes",
                hint="remove it: nothing that machines need is in it",
            ) from fault
        if found.uuid:
            return found
        name = f"{self.name} {self.network().subnet}"
        return replace(found, uuid=str(uuid.uuid5(_NAMESPACE, name)))

    def write_notes(self, notes: NetworkNotes) -> None:
        """Keep what is noted of it. Raises HostError."""
        _write(self.path / NOTES, to_plain(replace(notes, changes=self.notes().changes + 1)))

    def redefine(self, network: NamedNetwork, notes: NetworkNotes) -> list[str]:
        """Make it another network, with these notes: both, or neither where that is killed.

        Without a subnet it keeps its own. Leases of another subnet go. Returns what one should
        know of its subnet. Raises ConfigError, ConflictError where machines are on it, HostError.
        """
        old = self.network()
        network, told = _checked(replace(network, subnet=network.subnet or old.subnet))
        try:
            lock = open_regular(self.path / LOCK, os.O_RDWR)
        except OSError as fault:
            raise host_error(fault, "open", self.path / LOCK, _PLACE) from fault
        try:
            # No process of the network's begins meanwhile.
            if not ofdlock.take(lock):
                raise self._in_use()
            noted = replace(notes, changes=self.notes().changes + 1)
            _write(self.path / DESCRIPTION, {**to_plain(network), _NOTED: to_plain(noted)})
        finally:
            os.close(lock)
        return told

    def write_network(self, network: NamedNetwork) -> None:
        """Keep another description of the same subnet, of who gets which address in it.

        Raises ConfigError, ConflictError, HostError.
        """
        network.check()
        old = self.network()
        if (network.subnet, network.mode) != (old.subnet, old.mode):
            raise ConflictError(
                f"the network {self.name!r} keeps its subnet and its mode",
                hint=f"`ringzero network rm {self.name}`, and make it again",
            )
        noted = (_read(self.path / DESCRIPTION) or {}).get(_NOTED)
        kept = {} if noted is None else {_NOTED: noted}
        _write(self.path / DESCRIPTION, to_plain(network) | kept)

    def leases(self) -> dict[str, dict[str, str]]:
        """Return {"address", "name"} by MAC address: those of the network's subnet."""
        data, subnet = _read(self.path / LEASES) or {}, _subnet(self)
        return {mac: lease for mac, lease in data.items() if _is_lease(lease, subnet)}

    def write_leases(self, leases: dict[str, dict[str, str]]) -> None:
        """Note the leases; a full disk is no reason not to go on."""
        with contextlib.suppress(HostError):
            _write(self.path / LEASES, leases)

    @property
    def alive(self) -> bool:
        """Whether the network's process runs."""
        try:
            return ofdlock.is_held(self.path / LOCK)
        except (OSError, HostError):
            return False

    # ---- joining ----------------------------------------------------------

    def connect(self) -> socket.socket:
        """Return a connection, blocking, to the network's process, which is started if need be.

        Raises NotFoundError, HostError.
        """
        deadline, started = time.monotonic() + _PATIENCE, 0.0
        if self.path.is_dir() and not self.notes().active:
            raise ConflictError(
                f"the network {self.name!r} is not active",
                hint=f"`ringzero network start {self.name}`",
            )
        while True:
            if not self.path.is_dir():
                raise not_found(self.name)
            link = self.try_connect()
            if link is not None:
                return link
            now = time.monotonic()
            if now > deadline:
                raise HostError(
                    f"the process of network {self.name!r} does not start",
                    hint=f"see {self.path / LOG}",
                )
            if not self.alive and now - started > 1.0:
                self.launch()
                started = now
            time.sleep(_PAUSE)

    def try_connect(self) -> socket.socket | None:
        """Return a connection to the network's process, or None where there is none.

        Raises HostError where this process has no descriptor left for it.
        """
        return reach(self.path, SOCKET)

    def launch(self) -> None:
        """Start the network's process; of several the first one stays. Raises HostError."""
        try:
            detach([*_PROGRAM, str(self.path)], self.path / LOG)
        except OSError as fault:
            raise host_error(fault, "start the process of", self.path, _PLACE) from fault

    # ---- the end ----------------------------------------------------------

    def remove(self) -> None:
        """Remove a network that no machine is on.

        Raises ConflictError, NotFoundError, HostError.
        """
        import shutil

        if not self.path.is_dir():
            raise not_found(self.name)
        if self.alive:
            raise self._in_use()
        try:
            shutil.rmtree(self.path)
        except OSError as fault:
            raise host_error(fault, "remove", self.path, _PLACE) from fault

    def _in_use(self) -> ConflictError:
        return ConflictError(
            f"machines are on the network {self.name!r}",
            hint=f"`ringzero network inspect {self.name}` names them",
        )


def root() -> Path:
    """Return the directory of all networks."""
    return NETWORKS_DIR.get()


def not_found(name: str) -> NotFoundError:
    """Return the error for a name that no network has."""
    known = ", ".join((*RESERVED, *(other.name for other in networks())))
    return NotFoundError(
        f"no network called {name!r}",
        hint=f"`ringzero network create {name}` makes one; known: {known}",
    )


def find(name: str) -> NetworkDirectory:
    """Return the directory of the network called `name`. Raises NotFoundError."""
    found = NetworkDirectory(root() / name)
    if "/" in name or name.startswith(".") or not found.path.is_dir():
        raise not_found(name)
    return found


def networks() -> list[NetworkDirectory]:
    """Return the directories of all networks, by name."""
    try:
        entries = sorted(root().iterdir())
    except OSError:
        return []
    return [NetworkDirectory(entry) for entry in entries if entry.name[0] != "." and entry.is_dir()]


def create(
    network: NamedNetwork, notes: NetworkNotes | None = None
) -> tuple[NetworkDirectory, list[str]]:
    """Make a network; return it, and what one should know of its subnet.

    Without a subnet it gets a free one. It is there with its notes, or not at all.
    Raises ConfigError, ConflictError, HostError.
    """
    network, told = _checked(network)
    place = NetworkDirectory(root() / network.name)
    new = place.path.with_name(f".{network.name}.{os.getpid()}")
    try:
        new.mkdir(mode=0o700, parents=True)
        (new / LOCK).touch(0o600)
        noted = {} if notes is None else {_NOTED: to_plain(notes)}
        _write(new / DESCRIPTION, to_plain(network) | noted)
        # Refused where the name is taken: a directory with files in it is not replaced.
        new.rename(place.path)
    except OSError as fault:
        _discard(new)
        if place.path.exists():
            raise ConflictError(
                f"there is a network {network.name!r} already",
                hint=f"`ringzero network inspect {network.name}` describes it",
            ) from None
        raise host_error(fault, "create", place.path, _PLACE) from fault
    return place, told


def _checked(network: NamedNetwork) -> tuple[NamedNetwork, list[str]]:
    """Return a network with a subnet of its own, and what one should know of that.

    Raises ConfigError, ConflictError.
    """
    others = {other.name: subnet for other in networks() if (subnet := _subnet(other)) is not None}
    routes = list(host_routes())
    if not network.subnet:
        taken = [*others.values(), *routes]
        free = (t for t in _POOL if not any(ipaddress.IPv4Network(t).overlaps(x) for x in taken))
        network = replace(network, subnet=next(free, _POOL[0]))
    network.check()
    own = ipaddress.IPv4Network(network.subnet)
    for name, subnet in others.items():
        if name != network.name and own.overlaps(subnet):
            raise ConflictError(
                f"subnet {own} overlaps {subnet} of the network {name!r}",
                hint="give another one, or none: a free one is chosen",
            )
    return network, [
        f"the host has a route to {route}: machines on {network.name!r} do not reach it"
        for route in routes
        if route.prefixlen and own.overlaps(route)
    ]


def host_routes() -> Iterator[ipaddress.IPv4Network]:
    """Yield where this host has routes to, the default route left out (proc_net_route)."""
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        try:
            # Both in the byte order of the host.
            address, mask = (struct.pack("=I", int(words[n], 16)) for n in (1, 7))
            route = ipaddress.IPv4Network((address, str(ipaddress.IPv4Address(mask))))
        except (ValueError, IndexError):
            continue
        if route.prefixlen:
            yield route


def _subnet(place: NetworkDirectory) -> ipaddress.IPv4Network | None:
    with contextlib.suppress(NotFoundError, StateError, ValueError):
        return ipaddress.IPv4Network(place.network().subnet)
    return None


def _is_lease(lease: Any, subnet: ipaddress.IPv4Network | None) -> bool:
    with contextlib.suppress(TypeError, KeyError, ValueError):
        address = ipaddress.IPv4Address(lease["address"])
        return subnet is None or address in subnet
    return False


def _without_notes(data: dict[str, Any] | None) -> dict[str, Any] | None:
    return data and {name: value for name, value in data.items() if name != _NOTED}


def _discard(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            data = json.loads(file.read(_LARGEST))
    except (OSError, HostError, MissingFileError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _write(path: Path, data: object) -> None:
    """Replace a file: readers see the old one or the new one. Raises HostError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(data) + "\n")
        temporary.replace(path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise host_error(fault, "write", path, _PLACE) from fault
