"""Commit: what upper layers hold, into a layer below them, which then takes their place.

While the job copies, what it writes to the base is hidden by the layers it comes from:
whoever opens the chain after a crash reads what the guest wrote. When the topmost layer is
committed, the guest goes on writing to it, and the job follows as a mirror does, until it
is completed. Otherwise nobody writes to what is copied; the layer above is given the base
as its backing file as the last step.
"""

from __future__ import annotations

import contextlib

from ringzero.disk.contract import Disk, Kind
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs import chain
from ringzero.disk.jobs.contract import DEFAULTS, PIECE, Job, JobOptions, Owner
from ringzero.disk.jobs.mirror import Mirror
from ringzero.disk.vectors import is_zero
from ringzero.errors import InvalidValueError, RingzeroError


class ActiveCommit(Mirror):
    """Commits all layers of `live` above the layer `base` of its chain into that, and pivots."""

    kind = "commit"

    def __init__(
        self,
        live: LiveDisk,
        base: int,
        id: str = "commit",
        *,
        owner: Owner | None = None,
        options: JobOptions = DEFAULTS,
    ) -> None:
        layers = live.disk.chain()
        if not 0 < base < len(layers):
            raise InvalidValueError(f"{live.disk.path} has no backing file to commit to")
        if live.read_only:
            raise InvalidValueError("a disk that is only read has nothing to commit")
        chain.require_base(layers[base])
        self._depth = base
        self._above = layers[base - 1]
        super().__init__(
            live,
            layers[base],
            id,
            owner=owner,
            options=options,
        )

    def attach(self) -> None:
        self.live.keep_unshared(self)
        with self.live.still():
            self.output = chain.reopen(self.live, self._above, self.output)
            if self.output.size < self.live.size:
                self.output.resize(self.live.size)
            self.live.watch(self)
        if self.output.size > self.live.size:
            raise InvalidValueError(
                f"{self.target} has {self.output.size} bytes, and the disk {self.live.size}",
                hint="make the disk as long first, or mirror it to a new image",
            )

    def held(self, start: int, length: int) -> list[tuple[int, int]]:
        status = self.live.disk.block_status(start, length, layers=self._depth)
        return [(one.offset, one.length) for one in status if one.kind is not Kind.ABSENT]

    def left_behind(self, old: Disk) -> list[Disk]:
        return old.chain()[: self._depth]

    def _leave_copy(self) -> None:
        """The base is no copy of anything; it stays hidden by what is above it."""

    def release(self) -> None:
        _read_only_again(self.live, self._above, self.output)

    def detach(self) -> None:
        super().detach()
        self.live.shared_again(self)


class LowerCommit(Job):
    """Commits the layers from `top` on, above `base`, of the chain of `live`; nobody writes there.

    Both are numbers in the chain, 0 < top < base.
    """

    kind = "commit"

    def __init__(
        self,
        live: LiveDisk,
        top: int,
        base: int,
        id: str = "commit",
        *,
        options: JobOptions = DEFAULTS,
    ) -> None:
        super().__init__(live, id, options)
        layers = live.disk.chain()
        if not 0 < top < base < len(layers):
            raise InvalidValueError("the layer to commit lies above the one that it goes to")
        chain.require_base(layers[base])
        chain.require_overlay(layers[top - 1])
        self._overlay, self._top = layers[top - 1], layers[top]
        # Through which the overlay is opened for writing; None for the disk itself.
        self._over_overlay = layers[top - 2] if top > 1 else None
        self._above, self._base = layers[base - 1], layers[base]
        self._depth = base - top
        self._dropped = layers[top:base]
        self._size = layers[top].size
        self.target = str(self._base.path)

    @property
    def length(self) -> int:
        return self._size

    def attach(self) -> None:
        if self._over_overlay is None and self._overlay.read_only:
            raise InvalidValueError("a disk that is only read keeps its layers")
        self.live.keep_unshared(self)
        with self.live.still():
            self._base = chain.reopen(self.live, self._above, self._base)
            if self._base.size < self._size:
                self._base.resize(self._size)

    def work(self) -> None:
        buffer = memoryview(bytearray(PIECE))
        for start in range(0, self._size, PIECE):
            length = min(PIECE, self._size - start)
            paid = 0
            with self.live.passing():
                for extent in list(self._top.block_status(start, length, layers=self._depth)):
                    if extent.kind is Kind.ABSENT:
                        continue
                    view = buffer[: extent.length]
                    self._top.read_into(extent.offset, view)
                    if is_zero(view):
                        self._base.write_zeroes(extent.offset, extent.length)
                    else:
                        self._base.write(extent.offset, view)
                    paid += extent.length
            self.offset = start + length
            self.checkpoint(paid)

    def prepare(self) -> None:
        self._base.flush()

    def settle(self) -> None:
        with self.live.still():
            overlay = self._overlay
            if self._over_overlay is not None:
                overlay = chain.reopen(self.live, self._over_overlay, overlay)
            try:
                overlay.flush()
                overlay.change_backing(chain.name_from(overlay, self._base), self._base.format)
                overlay.backing = self._base
                self._above = overlay
            finally:
                if self._over_overlay is not None:
                    with contextlib.suppress(RingzeroError):
                        self._above = chain.reopen(
                            self.live, self._over_overlay, overlay, read_only=True
                        )
        self.live.retire(self._dropped)

    def detach(self) -> None:
        _read_only_again(self.live, self._above, self._base)
        self.live.shared_again(self)


def _read_only_again(live: LiveDisk, above: Disk, layer: Disk) -> None:
    """Open a layer read-only again, as others may read it; where that fails it stays as it is."""
    with contextlib.suppress(RingzeroError), live.still():
        if not layer.read_only and above.backing is layer:
            layer.flush()
            chain.reopen(live, above, layer, read_only=True)
