"""The ports of a machine that native code serves (`ringzero.isa.x86.ports`), Python's side."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence

from ringzero.isa.x86.ports import (
    GATHERED,
    KNOWN,
    RING,
    SHADOWED,
    VALUE_SHIFT,
    WIDTH_SHIFT,
    PortTable,
)
from ringzero.native.view import StructView

Write = Callable[[int, int, Sequence[int]], None]
Then = Callable[[], None]


class Ports:
    """A view of the PortTable at a host address, which is all zeros at first."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._table = StructView(PortTable, address)
        # Read at every exit, so not through the view.
        self._written, self._taken = (
            ctypes.c_uint32.from_address(address + PortTable.offset_of(name))
            for name in ("written", "taken")
        )
        self._ring = (ctypes.c_uint64 * RING).from_address(address + PortTable.offset_of("ring"))
        self._writers: list[tuple[int, int, Write, Then | None]] = []
        # What is to be called before the guest goes on.
        self._late: list[Then] = []
        # Whoever comes second waits until the first has passed on what it took.
        self._delivering = threading.RLock()

    def gather(self, port: int, size: int, write: Write, then: Then | None = None) -> bool:
        """Let writes to `size` ports from `port` on wait; False when there is no room for more."""
        number = len(self._writers)
        if number == GATHERED:
            return False
        self._writers.append((port, port + size - 1, write, then))
        self._table.first[number], self._table.last[number] = port, port + size - 1
        self._table.gathered = number + 1
        return True

    def shadow(self, port: int) -> Callable[[int | None], None] | None:
        """Return what sets the answer to reads of one byte at `port`; None: no room for more."""
        number = self._table.shadowed
        if number == SHADOWED:
            return None
        where = self.address + PortTable.offset_of("shadow") + 4 * number
        shown = ctypes.c_uint32.from_address(where)
        self._table.port[number] = port
        self._table.shadowed = number + 1

        def show(value: int | None) -> None:
            shown.value = 0 if value is None else KNOWN | value & 0xFF

        return show

    def deliver(self) -> bool:
        """Pass on the writes that were entered before this moment, in their order.

        Returns whether `finish` has something to do.
        """
        if self._written.value == self._taken.value:
            return bool(self._late)
        with self._delivering:
            end, at = self._written.value, self._taken.value
            while at != end:
                port, width, value = _parts(self._ring[at % RING])
                values = [value]
                at = (at + 1) & 0xFFFF_FFFF
                # What goes to one register goes at once.
                while at != end and _parts(self._ring[at % RING])[:2] == (port, width):
                    values.append(_parts(self._ring[at % RING])[2])
                    at = (at + 1) & 0xFFFF_FFFF
                self._taken.value = at
                self._write(port, width, values)
            return bool(self._late)

    def finish(self) -> None:
        """Do what is to be done between an access and the guest's going on."""
        while self._late:
            try:
                then = self._late.pop()
            except IndexError:
                return  # another vCPU's thread was quicker
            then()

    def _write(self, port: int, width: int, values: list[int]) -> None:
        for first, last, write, then in self._writers:
            if first <= port <= last:
                write(port, width, values)
                if then is not None and then not in self._late:
                    self._late.append(then)
                return


def _parts(entry: int) -> tuple[int, int, int]:
    """Return port, width and value of an entry of the ring."""
    width = entry >> WIDTH_SHIFT & 0xFF
    return entry & 0xFFFF, width, entry >> VALUE_SHIFT & ((1 << 8 * width) - 1)
