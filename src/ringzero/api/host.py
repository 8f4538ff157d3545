"""What can be asked of the host: what belongs to no machine, or to none yet."""

from __future__ import annotations

from typing import Annotated, Any

from ringzero.api.action import Actions, Scope, Stream, action
from ringzero.api.values import (
    EventKind,
    ImageSummary,
    MachineSummary,
    NetworkSummary,
    SnapshotSummary,
)


class HostActions(Actions):
    """The actions of the host."""

    scope = Scope.HOST

    @action(reads=True)
    def machines(
        self, status: Annotated[str | None, "only those in this state"] = None
    ) -> list[MachineSummary]:
        """List the machines, those that ended too, by name."""

    @action(events=(EventKind.CREATED,))
    def define(
        self,
        config: Annotated[dict[str, Any], "the fields of the machine's description"],
        name: Annotated[str | None, "its name; null: a free one"] = None,
        image: Annotated[str, "the guest image that its kernel is from"] = "",
        command: Annotated[list[str] | None, "what runs in the guest, and ends with it"] = None,
        timeout: Annotated[float | None, "seconds after which it is ended"] = None,
        serial: Annotated[str | None, "a file for what its serial line says"] = None,
        remove: Annotated[bool, "remove it at its end"] = False,
        uuid: Annotated[str | None, "its UUID; null: one is made"] = None,
    ) -> str:
        """Describe a machine without starting it; return its name."""

    @action(reads=True)
    def images(self) -> list[ImageSummary]:
        """List the guest images in the cache."""

    @action(reads=True)
    def snapshots(self) -> list[SnapshotSummary]:
        """List the snapshots that can be read, parents first."""

    @action(reads=True)
    def networks(self) -> list[NetworkSummary]:
        """List the networks by name, with the machines that are on them."""

    @action()
    def create_network(
        self,
        name: Annotated[str, "its name"],
        mode: Annotated[str, "nat, isolated or open"] = "nat",
        subnet: Annotated[str, 'as 10.1.2.0/24; "": a free one'] = "",
        range: Annotated[str, 'FIRST-LAST that DHCP gives out; "": all but the first two'] = "",
        leases: Annotated[list[str] | None, "fixed addresses: MAC=ADDRESS"] = None,
        host: Annotated[bool, "whether machines reach the host"] = True,
        allow: Annotated[list[str] | None, "the only places they reach; null: all"] = None,
    ) -> NetworkSummary:
        """Make a network that machines can join by its name."""

    @action()
    def remove_network(self, name: Annotated[str, "the network's name"]) -> None:
        """Remove a network that no machine is on."""

    @action(streams=True, reads=True)
    def events(self, stream: Stream) -> None:
        """Tell what happens to machines, on stream 1, a line of JSON each, until asked to end."""
