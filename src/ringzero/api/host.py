"""What can be asked of the host: what belongs to no machine, or to none yet."""

from __future__ import annotations

from typing import Annotated, Any

from ringzero.api.action import Actions, Scope, Stream, action
from ringzero.api.values import EventKind, ImageSummary, MachineSummary, SnapshotSummary


class HostActions(Actions):
    """The actions of the host."""

    scope = Scope.HOST

    @action()
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
    ) -> str:
        """Describe a machine without starting it; return its name."""

    @action()
    def images(self) -> list[ImageSummary]:
        """List the guest images in the cache."""

    @action()
    def snapshots(self) -> list[SnapshotSummary]:
        """List the snapshots that can be read, parents first."""

    @action(streams=True)
    def events(self, stream: Stream) -> None:
        """Tell what happens to machines, on stream 1, a line of JSON each, until asked to end."""
