"""The tables of a vCPU's address spaces (`isa.x86.privileged.lookaside`) in the host's memory.

A clone begins with empty TLBs, as its RAM lies elsewhere, but with its original's jump caches:
they lead from guest-virtual addresses to code that the two share. Of both it takes host memory
only for the pages that it writes to, and gives that back when it sleeps.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

from ringzero.host.memory import HostMemory, MemoryImage, RepeatedMemory
from ringzero.isa.caches import JUMP_NEVER_FIRST, JUMPS_SIZE, TLB_SIZE
from ringzero.isa.x86.cpu import (
    ALL_SPACES,
    COMMON,
    NO_SPACE,
    SPACE_JUMPS_SIZE,
    SPACES,
    TLBS_SIZE,
    AddressSpace,
    Cpu,
)
from ringzero.records import record

# So much of the jump caches that has changed since is copied into each clone. An idle guest
# changes some pages of them between two forks.
_COPIED = 64 << 10
_SPACES = Cpu.offset_of("spaces")
# What a jump cache depends on beside memory: which address space it is of, and the mode of code.
_CONTROL = ("cr0", "cr3", "cr4", "efer", "xcr0", "cpl", "mode", "limited", "segmented")


@functools.cache
def _empty_tlbs() -> tuple[HostMemory, MemoryImage]:
    """Return the TLBs of an address space that nothing has run in yet, and their image."""
    tlbs = HostMemory("vcpu-tlbs", TLBS_SIZE)
    # A tag of all ones matches no page.
    tlbs.view[:] = b"\xff" * TLBS_SIZE
    image = tlbs.freeze()
    image.share()
    return tlbs, image


@functools.cache
def _empty_jumps() -> tuple[HostMemory, MemoryImage]:
    """Return the jump caches of all address spaces in which nothing was found yet; their image."""
    jumps = HostMemory("vcpu-jumps", ALL_SPACES * SPACE_JUMPS_SIZE)
    for start in range(0, jumps.size, JUMPS_SIZE):
        struct.pack_into("=Q", jumps.view, start, JUMP_NEVER_FIRST)
    image = jumps.freeze()
    image.share()
    return jumps, image


@record
class SharedLookaside:
    """What a clone's vCPU takes over: jump caches, what is noted of its spaces, and their state.

    `spaces` are the AddressSpaces, `space` the number of the one in force; `control` is the
    state in which all of it holds, or empty where none of it does.
    """

    jumps: MemoryImage
    spaces: bytes
    space: int
    clock: int
    control: tuple[int, ...]

    def hold(self) -> SharedLookaside:
        """Return the same for another holder, to be closed on its own."""
        self.jumps.hold()
        return self

    def share(self) -> None:
        """Be good in processes forked from now on."""
        self.jumps.share()

    def close(self) -> None:
        """Let go of it; those who have taken it over keep theirs."""
        self.jumps.close()


class Lookaside:
    """The tables of one vCPU, by a view of its Cpu; `inherited` is its original's in a clone."""

    def __init__(self, cpu: Any, inherited: SharedLookaside | None = None) -> None:
        self._cpu = cpu
        # In which state what was inherited holds.
        self._held_in = inherited.control if inherited else None
        # Held: machines that begin at once, in several threads, may each have made one.
        self._never, empty = _empty_tlbs()
        self._tlbs = RepeatedMemory(empty, ALL_SPACES)
        self._jumps = HostMemory(
            "vcpu-jumps", ALL_SPACES * SPACE_JUMPS_SIZE, inherited.jumps if inherited else None
        )
        # What a clone's jump caches began as, and become when it rests: empty.
        self._origin = inherited.jumps.hold() if inherited else None
        # Never written to, and so every vCPU's.
        cpu.tlb_checked = self._never.address
        if inherited is not None:
            self._take_over(inherited)
            return
        # As each space in turn is emptied before it is used first.
        for number in (0, COMMON):
            start = number * SPACE_JUMPS_SIZE
            for table in range(start, start + SPACE_JUMPS_SIZE, JUMPS_SIZE):
                struct.pack_into("=Q", self._jumps.view, table, JUMP_NEVER_FIRST)
        for number in range(1, SPACES):
            cpu.spaces[number].cr3 = NO_SPACE
        cpu.spaces[COMMON].own = 1
        self._enter(0)

    def _take_over(self, inherited: SharedLookaside) -> None:
        """Know of the spaces what the original has noted, but for its TLBs."""
        cpu = self._cpu
        ctypes.memmove(cpu.address + _SPACES, inherited.spaces, len(inherited.spaces))
        self._note_empty("tlb_used")
        for number in range(ALL_SPACES):
            cpu.spaces[number].forgotten = 0
        cpu.space_clock = inherited.clock
        self._enter(inherited.space)

    def _note_empty(self, member: str) -> None:
        """Note of the groups of one kind, in all spaces, that they hold nothing."""
        for number in range(ALL_SPACES):
            groups = getattr(self._cpu.spaces[number], member)
            ctypes.memset(groups, 0, ctypes.sizeof(groups))

    def _enter(self, chosen: int) -> None:
        """Tell native code where the tables lie, and which space is in force."""
        cpu = self._cpu
        for number in range(ALL_SPACES):
            space = cpu.spaces[number]
            space.tlbs = self._tlbs.address + number * TLBS_SIZE
            space.jumps = self._jumps.address + number * SPACE_JUMPS_SIZE
        space = cpu.spaces[chosen]
        kernel = space if space.own else cpu.spaces[COMMON]
        cpu.space = chosen
        cpu.tlb_user, cpu.jump_user = space.tlbs, space.jumps
        cpu.tlb_kernel = kernel.tlbs + TLB_SIZE
        cpu.tlb_open = space.tlbs + 2 * TLB_SIZE
        cpu.jump_kernel = kernel.jumps + JUMPS_SIZE
        # As at CPL 0.
        cpu.tlb, cpu.jump_cache = cpu.tlb_kernel, cpu.jump_kernel

    def share(self, *, holds: bool) -> SharedLookaside:
        """Hand the jump caches on to clones, and go on with a copy; the machine stands still.

        Without `holds` all is to be forgotten before the vCPU runs on, and so in clones.
        """
        cpu = self._cpu
        control = self._control() if holds else ()
        spaces = ctypes.string_at(cpu.address + _SPACES, ALL_SPACES * AddressSpace.size)
        image = self._jumps.freeze(_COPIED)
        return SharedLookaside(image, spaces, cpu.space, cpu.space_clock, control)

    def _control(self) -> tuple[int, ...]:
        return tuple(int(getattr(self._cpu, name)) for name in _CONTROL)

    def holds(self) -> bool:
        """Whether what was inherited holds in the vCPU's first state, and choose its tables.

        Where it does not, all has to be forgotten before the vCPU runs.
        """
        held_in, self._held_in = self._held_in, None
        if held_in is None or held_in != self._control():
            return False
        # Loaded when it is first needed, like what it imports.
        from ringzero.isa.x86.state_io import select_tables

        select_tables(self._cpu)
        return True

    @property
    def can_rest(self) -> bool:
        """Whether `rest` gives memory back: a clone's does."""
        return self._origin is not None

    def rest(self) -> None:
        """Give back a clone's own memory; what is needed will be found again.

        The machine stands still. The jump caches are empty then: what is found again lies in their
        first ways, and takes fewer pages than to change the order of what they began as.
        """
        cpu = self._cpu
        assert self._origin is not None
        self._tlbs.discard()
        self._note_empty("tlb_used")
        _, empty = _empty_jumps()
        self._origin.close()
        self._origin = empty.hold()
        self._note_empty("jump_used")
        for number in range(ALL_SPACES):
            cpu.spaces[number].forgotten = 0
        self._jumps.become(self._origin)

    def close(self) -> None:
        """Give the memory back."""
        if self._origin is not None:
            self._origin.close()
        self._tlbs.close()
        self._jumps.close()
