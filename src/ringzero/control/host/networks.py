"""What is asked of networks by name. Most verbs do not: what does it is loaded then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.api import table
from ringzero.api.values import NetworkSummary
from ringzero.control.host.handlers import handles
from ringzero.errors import ConflictError, InvalidValueError
from ringzero.records import replace

if TYPE_CHECKING:
    from ringzero.net.named.description import NamedNetwork, NetworkNotes
    from ringzero.net.named.directory import NetworkDirectory


@handles("networks")
def networks(where: Path) -> list[NetworkSummary]:
    from ringzero.net.named import directory as places

    return [_network_summary(place) for place in places.networks()]


@handles("create_network")
def create_network(
    where: Path,
    name: str,
    mode: str,
    subnet: str,
    range: str,
    leases: list[str] | None,
    host: bool,
    allow: list[str] | None,
) -> NetworkSummary:
    from ringzero.net.named import directory as places

    place, told = places.create(
        _network(name, mode, subnet, range, leases=leases, host=host, allow=allow)
    )
    return {**_network_summary(place), "notes": told}


def _network(
    name: str,
    mode: str = "nat",
    subnet: str = "",
    range: str = "",
    *,
    leases: list[str] | None = None,
    host: bool = True,
    allow: list[str] | None = None,
) -> NamedNetwork:
    """Return the record of what `create_network` is given. Raises InvalidValueError."""
    from ringzero.net.named.description import NamedNetwork

    first, _, last = range.partition("-")
    allowed = None if allow is None else tuple(allow)
    return NamedNetwork(name, mode, subnet, first, last, _fixed(leases or ()), host, allowed)


def _fixed(leases: Iterable[str]) -> dict[str, str]:
    """Return addresses by MAC address. Raises InvalidValueError."""
    fixed = dict[str, str]()
    for lease in leases:
        mac, equals, address = lease.partition("=")
        if not equals or mac.lower() in fixed:
            raise InvalidValueError(
                f"no lease of its own in {lease!r}", hint="write MAC=ADDRESS, each MAC once"
            )
        fixed[mac.lower()] = address
    return fixed


@handles("update_network")
def update_network(
    where: Path, name: str, range: str | None, leases: list[str] | None
) -> NetworkSummary:
    from ringzero.net.named import client, directory

    place = directory.find(name)
    network = place.network()
    if range is not None:
        first, _, last = range.partition("-")
        network = replace(network, first=first, last=last)
    if leases is not None:
        network = replace(network, fixed=_fixed(leases))
    client.change(place, network)
    return _network_summary(place)


@handles("describe_network")
def describe_network(
    where: Path,
    name: str,
    active: bool | None,
    autostart: bool | None,
    uuid: str | None,
    metadata: dict[str, Any] | None,
) -> NetworkSummary:
    from ringzero.net.named import directory as places

    place = places.find(name)
    given = {"active": active, "autostart": autostart, "uuid": uuid, "metadata": metadata}
    place.write_notes(_noted(name, place.notes(), given))
    return _network_summary(place)


def define_network(
    fields: Mapping[str, Any], notes: Mapping[str, Any], *, anew: bool
) -> NetworkSummary:
    """Make a network with notes, or make one that is there `anew`: whole, or not at all.

    `fields` are as `create_network` takes them, `notes` as `describe_network` does; a network
    without a subnet keeps the one that it has. Raises what these raise.
    """
    from ringzero.net.named import client
    from ringzero.net.named import directory as places
    from ringzero.net.named.description import NetworkNotes

    network = _network(**table.get("create_network").check(fields))
    if anew:
        place = places.find(network.name)
        client.redefine(place, network, _noted(place.name, place.notes(), notes))
    else:
        place, _ = places.create(network, _noted(network.name, NetworkNotes(), notes))
    return _network_summary(place)


def _noted(name: str, old: NetworkNotes, given: Mapping[str, Any]) -> NetworkNotes:
    """Return notes with what is given. Raises ConflictError, InvalidValueError."""
    from ringzero.control.host.description import check_metadata, check_uuid
    from ringzero.net.named import directory as places

    changes = {name: value for name, value in given.items() if value is not None}
    texts = {**old.metadata, **changes.pop("metadata", {})}
    kept = check_metadata({key: text for key, text in texts.items() if text is not None})
    if "uuid" in changes:
        changes["uuid"] = check_uuid(changes["uuid"])
        for other in places.networks():
            if other.name != name and other.notes().uuid == changes["uuid"]:
                raise ConflictError(f"the network {other.name!r} has the UUID {changes['uuid']}")
    return replace(old, **changes, metadata=kept)


@handles("remove_network")
def remove_network(where: Path, name: str) -> None:
    from ringzero.net.named import client, directory

    client.remove(directory.find(name))


def _network_summary(place: NetworkDirectory) -> NetworkSummary:
    from ringzero.net.named.client import inspect
    from ringzero.net.stack.addresses import text

    network = place.network()
    subnet, noted = network.addresses(), place.notes()
    return {
        "name": network.name,
        "uuid": noted.uuid,
        "active": noted.active,
        "autostart": noted.autostart,
        "metadata": noted.metadata,
        "mode": network.mode,
        "subnet": network.subnet,
        "gateway": text(subnet.gateway4),
        "first": text(subnet.first4),
        "last": text(subnet.last4),
        "fixed": network.fixed,
        "host": network.host,
        "allow": None if network.allow is None else list(network.allow),
        "leases": place.leases(),
        "machines": inspect(place)["machines"],
        "directory": str(place.path),
        "notes": [],
    }
