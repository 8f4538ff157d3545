"""The other side of a guest's TCP connection, whoever it is."""

from __future__ import annotations

from typing import Protocol

from ringzero.core.frames import Buffer


class Endpoint(Protocol):
    """The other side of a guest's connection; called while the stack works."""

    def opened(self) -> None:
        """Hear that the connection is up."""
        ...

    def receive(self, buffers: list[Buffer], size: int) -> int:
        """Take bytes; return how many. The rest is kept: see `Connection.inbox`.

        The bytes are good only during the call.
        """
        ...

    def ended(self) -> None:
        """Hear that the guest sends nothing more. Bytes may be left in the inbox."""
        ...

    def room(self) -> None:
        """Hear that `Connection.room` has grown."""
        ...

    def lost(self) -> None:
        """Hear that the connection is gone, by a reset or for want of an answer."""
        ...
