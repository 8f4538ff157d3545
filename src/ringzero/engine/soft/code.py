"""Where a machine's translated code lies, and how clones come to share it.

Code and its records lie in an arena below 2 GiB: code grows up, records grow
down, and the space between is the machine's own. When a machine is cloned, all
that it has translated is handed to the clones, and from then on nobody writes
to it: every machine goes on in space of its own, the original in what is left
between, a clone in a small arena that grows with its needs. Two rules keep
that safe, both in `ringzero.jit`: a page's list of blocks that lies outside the
machine's own space is copied before a block is added to it, and a jump outside
of it is never linked. A machine that drops a page's code, because the page was
written to, only clears its own table.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Protocol, Self

from ringzero.errors import HostError
from ringzero.host.memory import PAGE, SPACE, ExecutableMemory, Held, HostMemory, MemoryImage
from ringzero.jit.tables import CodeSpace
from ringzero.records import record, replace

# Room for translated code and its records; when it is full, all is dropped and begun anew.
CODE_SIZE = 64 << 20
# Saved translations hold addresses, so they serve only where they were made: at an address
# that position-independent programs leave free. A second machine in a process does without.
CODE_BASE = 0x1000_0000
# What a second machine, and a clone, begin with: address space below 2 GiB is scarce. An idle
# Linux and a few commands need some 300 KiB beside what a clone has from its original.
FIRST_ARENA, CLONE_ARENA = 8 << 20, 512 << 10
GROWTH = 4
# Room is shared out so that all machines of a process find some: none begins with more than a 16th
# of what is left, or goes on in more than an 8th of what is left beyond a quarter of all.
FIRST_PART, GROWTH_PART, KEPT = 16, 8, SPACE // 4
# When so much of CODE_SIZE is used, what there is is saved: in the end it may be too much to save.
EARLY = 1 / 2
# The least that a machine goes on in: several times what one block can need.
LEAST = 256 << 10
# Members of CodeSpace that lead to translations of an earlier run.
SAVED = ("saved_table", "saved_mask", "saved_hashes", "saved_contents", "saved_pages")


class Arena(Held):
    """Executable memory with several holders, given back by the last.

    Arguments are those of ExecutableMemory. Raises HostError.
    """

    def __init__(
        self, size: int, wanted: int = 0, elsewhere: int | None = None, least: int = LEAST
    ) -> None:
        super().__init__()
        self._memory = ExecutableMemory(size, wanted, elsewhere, least)
        self.start = self._memory.address
        self.end = self.start + self._memory.size

    def _give_back(self) -> None:
        self._memory.close()


def _beginning() -> int:
    """Return how much a machine may begin with that has nobody's code to share."""
    part = ExecutableMemory.room() // FIRST_PART & -PAGE
    return max(min(FIRST_ARENA, part), CLONE_ARENA)


class Lookaside(Protocol):
    """What a clone's vCPU takes over of its original's, which an architecture knows."""

    def hold(self) -> Self: ...

    def share(self) -> None: ...

    def close(self) -> None: ...


@record
class SharedCode:
    """What clones take over: arenas, the tables of pages, saved translations (and their owner).

    `vcpus` has what each vCPU has found in them, as far as its architecture hands that on.
    """

    arenas: tuple[Arena, ...]
    tables: MemoryImage
    saved: tuple[int, ...]
    owner: Any
    vcpus: tuple[Lookaside, ...] = ()

    def hold(self) -> SharedCode:
        """Return the same for another holder, to be closed on its own."""
        for arena in self.arenas:
            arena.hold()
        vcpus = tuple(vcpu.hold() for vcpu in self.vcpus)
        return replace(self, tables=self.tables.hold(), vcpus=vcpus)

    def share(self) -> None:
        """Be good in processes forked from now on; arenas are private memory, and copied there."""
        self.tables.share()
        for vcpu in self.vcpus:
            vcpu.share()

    def close(self) -> None:
        """Let go of the arenas; clones keep theirs."""
        self.tables.close()
        for vcpu in self.vcpus:
            vcpu.close()
        for arena in self.arenas:
            arena.release()


class CodeArenas:
    """One machine's translated code: the arenas it lies in, and the tables of pages.

    `words` holds, for each of RAM's `pages` pages, the address of its CodePage or 0; `sought` a
    byte for each: 1 when saved translations were looked for.
    """

    def __init__(self, code: Any, pages: int, shared: SharedCode | None = None) -> None:
        self._code = code
        self.owner = shared.owner if shared is not None else None
        self.tables = HostMemory("code-pages", pages * 9, shared.tables if shared else None)
        self.words_address = self.tables.address
        self.sought_address = self.tables.address + pages * 8
        self.words = self.tables.view[: pages * 8].cast("Q")
        self.sought = self.tables.view[pages * 8 :]
        code.code_pages_size = pages * 8
        self._arenas: list[Arena] = []
        # Read at every exit, so not through the view.
        self._out, self._data, self._low_water = (
            ctypes.c_uint64.from_address(code.address + CodeSpace.offset_of(name))
            for name in ("out", "data", "low_water")
        )
        if shared is None:
            arena = Arena(CODE_SIZE, CODE_BASE, _beginning())
        else:
            self._arenas += [arena.hold() for arena in shared.arenas]
            for member, value in zip(SAVED, shared.saved, strict=True):
                setattr(code, member, value)
            arena = Arena(CLONE_ARENA)
        self._use(arena)
        # Whether everything lies where translations can be saved.
        self.main = shared is None and arena.start == CODE_BASE

    def _use(self, arena: Arena) -> None:
        self.main = False
        self._arenas.append(arena)
        self._room = arena.end - arena.start
        code = self._code
        code.region_start = code.out = arena.start
        code.region_end = code.data = arena.end
        # Where a larger one is due, or what there is is to be saved early.
        left = 1 / GROWTH if self._room < CODE_SIZE else 1 - EARLY
        self._low_water.value = int(self._room * left)

    def is_short(self) -> bool:
        """Whether the arena is to be looked after; native code exits for that."""
        return self._data.value - self._out.value < self._low_water.value

    def look(self) -> None:
        """Go on in a larger arena where that is due, else for good; the vCPUs stand still."""
        # Where there is none to be had it goes on as one that is large enough.
        larger = self._larger()
        if larger > self._room:
            with contextlib.suppress(HostError):
                self._use(Arena(larger, least=larger))
                return
        self._low_water.value = 0

    def _larger(self) -> int:
        """Return how much the machine may go on in."""
        part = (ExecutableMemory.room() - KEPT) // GROWTH_PART & -PAGE
        return min(self._room * GROWTH, CODE_SIZE, part)

    def share(self) -> SharedCode:
        """Hand everything on to clones, and go on in what is left; the machine stands still."""
        code = self._code
        code.region_start = code.out
        code.region_end = code.data
        shared = SharedCode(
            tuple(arena.hold() for arena in self._arenas),
            self.tables.freeze(),
            tuple(getattr(code, member) for member in SAVED),
            self.owner,
        )
        left = self._data.value - self._out.value
        if left < LEAST:
            self._use(Arena(max(self._larger(), CLONE_ARENA)))
        elif not self._low_water.value:
            # No more of it is the machine's own: dropping all each time that this is full would
            # leave too little for what it runs.
            self._room = left
            self._low_water.value = left // GROWTH
        return shared

    def close(self) -> None:
        """Give the memory back."""
        self.words.release()
        self.sought.release()
        self.tables.close()
        for arena in self._arenas:
            arena.release()
        self._arenas.clear()
