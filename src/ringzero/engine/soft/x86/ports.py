"""The ports of a machine that native code serves (`ringzero.isa.x86.ports`), Python's side."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable, Sequence

from ringzero.core.bus import Show
from ringzero.isa.x86.ports import (
    GATHERED,
    KNOWN,
    ONCE,
    READ_SHIFT,
    RING,
    SHADOWED,
    VALUE_SHIFT,
    VERSION_SHIFT,
    WIDTH_SHIFT,
    PortTable,
)
from ringzero.native.view import view_of

Write = Callable[[int, int, Sequence[int]], None]
Then = Callable[[], None]
# What the entries of accesses of one kind to one register have in common.
_REGISTER = (1 << VALUE_SHIFT) - 1


class Ports:
    """A view of the PortTable at a host address, which is all zeros at first."""

    def __init__(self, address: int) -> None:
        self.address = address
        self._table = view_of(PortTable, address)
        # Read at every exit, so not through the view.
        self._written, self._taken = (
            ctypes.c_uint32.from_address(address + PortTable.offset_of(name))
            for name in ("written", "taken")
        )
        self._ring = (ctypes.c_uint64 * RING).from_address(address + PortTable.offset_of("ring"))
        self._writers: list[tuple[int, int, Write, Then | None]] = []
        # By the port, for shadows: their number, and who hears of reads that changed something.
        self._readers: dict[int, tuple[int, Then | None]] = {}
        # What is to be called before the guest goes on.
        self._late: list[Then] = []
        # Whoever comes second waits until the first has passed on what it took.
        self._delivering = threading.RLock()

    def gather(
        self,
        port: int,
        size: int,
        write: Write,
        then: Then | None = None,
        *,
        changes: int | None = None,
        clears: int = 0,
        hold: Callable[[Callable[[int], None]], None] | None = None,
    ) -> bool:
        """Let writes to `size` ports from `port` on wait; False when there is no room for more.

        `changes`, `clears` and `hold` are as the engine's contract has them.
        """
        number = len(self._writers)
        if number == GATHERED:
            return False
        self._writers.append((port, port + size - 1, write, then))
        table = self._table
        table.first[number], table.last[number] = port, port + size - 1
        if changes in self._readers:
            table.changes[number] = self._readers[changes][0] + 1
        if hold is not None:
            table.clears[number] = clears
            where = self.address + PortTable.offset_of("held") + 4 * number
            held = ctypes.c_uint32.from_address(where)

            def tell(value: int) -> None:
                held.value = value

            hold(tell)
        table.gathered = number + 1
        return True

    def shadow(self, port: int, read: Then | None = None) -> Show | None:
        """Return what sets the answer to reads of one byte at `port`; None: no room for more."""
        number = self._table.shadowed
        if number == SHADOWED:
            return None
        shown, following = (
            ctypes.c_uint32.from_address(self.address + PortTable.offset_of(name) + 4 * number)
            for name in ("shadow", "following")
        )
        version = itertools.count()
        self._table.port[number] = port
        self._readers[port] = number, read
        self._table.shadowed = number + 1

        def show(value: int | None, then: int | None = None, *, once: bool = False) -> None:
            # First: native code that finds the other takes this.
            following.value = 0 if then is None else KNOWN | then & 0xFF
            bits = 0 if value is None else KNOWN | once * ONCE | value & 0xFF
            shown.value = next(version) << VERSION_SHIFT & 0xFFFF_FFFF | bits

        return show

    def deliver(self) -> bool:
        """Pass on the accesses that were entered before this moment, in their order.

        Returns whether `finish` has something to do.
        """
        if self._written.value == self._taken.value:
            return bool(self._late)
        with self._delivering:
            end, at = self._written.value, self._taken.value
            while count := (end - at) & 0xFFFF_FFFF:
                first = at % RING
                entries = self._ring[first : min(first + count, RING)]
                register = entries[0] & _REGISTER
                # What goes to one register goes at once.
                for number, entry in enumerate(entries):
                    if entry & _REGISTER != register:
                        del entries[number:]
                        break
                at = (at + len(entries)) & 0xFFFF_FFFF
                self._taken.value = at
                self._pass_on(register, entries)
            return bool(self._late)

    def finish(self) -> None:
        """Do what is to be done between an access and the guest's going on."""
        while self._late:
            try:
                then = self._late.pop()
            except IndexError:
                return  # another vCPU's thread was quicker
            then()

    def _pass_on(self, register: int, entries: list[int]) -> None:
        """Pass on accesses of one kind to one register."""
        port, width = register & 0xFFFF, register >> WIDTH_SHIFT & 0xFF
        if register >> READ_SHIFT & 1:
            read = self._readers[port][1]
            if read is not None:
                for _ in entries:
                    read()
            return
        for first, last, write, then in self._writers:
            if first <= port <= last:
                mask = (1 << 8 * width) - 1
                write(port, width, [entry >> VALUE_SHIFT & mask for entry in entries])
                if then is not None and then not in self._late:
                    self._late.append(then)
                return
