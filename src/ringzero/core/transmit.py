"""Transmit virtqueues that an engine drains for their device."""

from __future__ import annotations

from typing import Protocol


class TransmitDrain(Protocol):
    """An engine's hold on one transmit queue (`Vm.drain_queue`).

    While the queue is lent to it the engine serves the driver's notifications: it copies the
    buffers into a buffer of its own, gives them back, and asks for the next notification. The
    device has the queue again after `reclaim`. One thread at a time calls these.
    """

    def lend(
        self,
        areas: tuple[int, int, int],
        size: int,
        event_idx: bool,
        indices: tuple[int, int],
    ) -> None:
        """Let the engine drain a queue of `size` entries.

        `areas` are the guest-physical addresses of its descriptor, available and used areas,
        which are RAM. `indices` are those of the next request and of the next used element.
        The driver interrupts for itself: nobody is told of what was given back.
        """
        ...

    def reclaim(self) -> tuple[int, int] | None:
        """Take the queue back, with its `indices`; None where it was not lent."""
        ...

    def take(self) -> bytes:
        """Return, once, the output that was copied."""
        ...
