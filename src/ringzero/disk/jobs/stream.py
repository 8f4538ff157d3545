"""Stream: what backing files hold, into the topmost layer, which then needs them no more.

The guest goes on writing to that layer. What the job has read from below is written where
the layer holds nothing at that moment (`MappedDisk.fill`), under the layer's own lock: what
the guest has written since stays. As long as the job runs, and after a crash, the layer
reads the same with its backing file as before; the last step takes that away.
"""

from __future__ import annotations

from ringzero.disk.contract import Disk, Kind
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs import chain
from ringzero.disk.jobs.contract import DEFAULTS, PIECE, Job, JobOptions
from ringzero.disk.mapped import MappedDisk
from ringzero.errors import InvalidValueError


class Stream(Job):
    """Fills the topmost layer of `live` from the layers below it, down to `base`, left out.

    `base` is a number in the chain, which becomes the backing file; None takes all layers.
    """

    kind = "stream"

    def __init__(
        self,
        live: LiveDisk,
        base: int | None = None,
        id: str = "stream",
        *,
        options: JobOptions = DEFAULTS,
    ) -> None:
        super().__init__(live, id, options)
        layers = live.disk.chain()
        top = layers[0]
        if live.read_only:
            raise InvalidValueError("a disk that is only read takes nothing in")
        chain.require_overlay(top)
        if top.backing is None:
            raise InvalidValueError(f"{top.path} has no backing file")
        if base is not None and not 1 < base < len(layers):
            raise InvalidValueError(
                "there is nothing between the disk and that layer",
                hint="name a layer further below",
            )
        assert isinstance(top, MappedDisk)
        self._top = top
        self._base: Disk | None = None if base is None else layers[base]
        self._dropped = layers[1:base]
        # How many layers are taken in; None: all.
        self._depth = None if base is None else base - 1
        self.target = str(top.path)

    @property
    def length(self) -> int:
        return self._top.size

    def attach(self) -> None:
        if self.live.disk is not self._top:
            raise InvalidValueError("the disk is another one by now")

    def work(self) -> None:
        size = self._top.size
        buffer = memoryview(bytearray(PIECE))
        for start in range(0, size, PIECE):
            length = min(PIECE, size - start)
            with self.live.passing():
                done = self._fill(start, length, buffer)
            self.offset = start + length
            self.checkpoint(done)

    def _fill(self, start: int, length: int, buffer: memoryview) -> int:
        """Take in what is missing of a range; return how many bytes that was."""
        below = self._top.backing
        assert below is not None
        done = 0
        for extent in list(self._top.block_status(start, length, layers=1)):
            there = min(extent.length, below.size - extent.offset)
            if extent.kind is not Kind.ABSENT or there <= 0:
                continue
            for held in list(below.block_status(extent.offset, there, layers=self._depth)):
                # Without a backing file what nobody holds reads as zeroes.
                if held.kind is Kind.ABSENT or (held.reads_zero and self._base is None):
                    continue
                view = buffer[: held.length]
                below.read_into(held.offset, view)
                self._top.fill(held.offset, view)
                done += held.length
        return done

    def prepare(self) -> None:
        self._top.flush()

    def settle(self) -> None:
        top, base = self._top, self._base
        with self.live.still():
            top.flush()
            if base is None:
                top.change_backing(None, None)
            else:
                top.change_backing(chain.name_from(top, base), base.format)
            top.backing = base
        self.live.retire(self._dropped)
