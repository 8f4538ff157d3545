"""What is cached of linear addresses, by address space: soft TLBs and jump caches.

Each PCID has tables of its own, as far as there are some (`SPACES`), so that a MOV to CR3
which keeps translations keeps them here too (SDM vol. 3A, 4.10.1). Global pages have no
table of their own: what forgets one forgets it in all spaces.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import (
    JUMP_NEVER_FIRST,
    JUMP_USED_WORDS,
    JUMP_WINDOW,
    JUMPS_SIZE,
    PAGE_MASK,
    PAGE_SHIFT,
    TLB_ENTRIES,
    TLB_GROUP_BITS,
    TLB_INVALID,
    TLB_SIZE,
    TLB_USED_WORDS,
    JumpCacheEntry,
    TlbEntry,
    jump_entry,
    tlb_entry_of,
)
from ringzero.isa.exclusive import Exclusive
from ringzero.isa.x86.cpu import FIRST_JUMPS, NO_SPACE, SPACE_SIZE, SPACES, AddressSpace, Cpu
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.isa.x86.privileged.exclusive import shared_of
from ringzero.native import fill_memory, native, pointer, select, staged, u8, u32, u64

_GROUP_SIZE = TlbEntry.size << TLB_GROUP_BITS
_PCID = 0xFFF
_EMPTY = 0xFF  # the byte of an empty entry


# --- forgetting ----------------------------------------------------------------


@native(inline="never")
def flush_jumps(space: AddressSpace) -> None:
    """Forget which translated code belongs to which guest-virtual address of a space."""
    for side in range(2):
        table = space.tables + FIRST_JUMPS + side * JUMPS_SIZE
        for word in range(JUMP_USED_WORDS):
            used = space.jump_used[side * JUMP_USED_WORDS + word]
            space.jump_used[side * JUMP_USED_WORDS + word] = 0
            window = table + word * 64 * JUMP_WINDOW
            while used != 0:
                if (used & 1) != 0:
                    fill_memory(window, u8(_EMPTY), u64(JUMP_WINDOW))
                used = used >> 1
                window += JUMP_WINDOW
        pointer(JumpCacheEntry, table).address = JUMP_NEVER_FIRST


@native(inline="never")
def flush_space(space: AddressSpace) -> None:
    """Forget all translations of a space and all that was derived from them."""
    if space.blank != 0:
        space.blank = 0
        fill_memory(space.tables, u8(_EMPTY), u64(SPACE_SIZE))
    for side in range(2):
        for word in range(TLB_USED_WORDS):
            used = space.tlb_used[side * TLB_USED_WORDS + word]
            space.tlb_used[side * TLB_USED_WORDS + word] = 0
            group = space.tables + side * TLB_SIZE + word * 64 * _GROUP_SIZE
            while used != 0:
                if (used & 1) != 0:
                    fill_memory(group, u8(_EMPTY), u64(_GROUP_SIZE))
                used = used >> 1
                group += _GROUP_SIZE
    for word in range(4):
        space.large_pages[word] = 0
    flush_jumps(space)


@native(inline="never")
def flush_tlb(cpu: Cpu) -> None:
    """Forget all translations, of all address spaces, and all that was derived from them."""
    for number in range(u64(SPACES)):
        space = cpu.spaces[number]
        space.cr3 = NO_SPACE
        space.last_used = 0
    current = cpu.spaces[u64(cpu.space)]
    current.cr3 = cpu.cr3
    flush_space(current)


@native(inline="never")
def flush_jump_cache(cpu: Cpu) -> None:
    """Forget which translated code belongs to which guest-virtual address."""
    for number in range(u64(SPACES)):
        space = cpu.spaces[number]
        if space.cr3 != NO_SPACE:
            flush_jumps(space)


@native(inline="never")
def forget_code(shared: Exclusive) -> None:
    """Empty the jump caches of all vCPUs, which have stopped."""
    for number in range(u64(shared.count)):
        flush_jump_cache(pointer(Cpu, u64(shared.cpus[number])))


@native(inline="never")
def flush_pcid(cpu: Cpu, pcid: u64) -> None:
    """Forget the translations of one PCID."""
    for number in range(u64(SPACES)):
        space = cpu.spaces[number]
        if space.cr3 != NO_SPACE and (space.cr3 & _PCID) == pcid:
            flush_space(space)


@staged
def forget_jumps(table: Any, start: Any, size: Any) -> None:
    """Empty `size` bytes of a jump cache from the host address `start` on.

    All ones is the address of an empty entry, and of one byte of guest memory, which
    the first entry serves: so that one is emptied with an address that it cannot have.
    """
    fill_memory(start, u8(_EMPTY), size)
    pointer(JumpCacheEntry, table).address = JUMP_NEVER_FIRST


@native(inline="never")
def invalidate_page(cpu: Cpu, va: u64) -> None:
    """INVLPG: forget the page that holds `va`, all of it when it is a large one."""
    region = (va >> 21) & 0xFF
    for number in range(u64(SPACES)):
        space = cpu.spaces[number]
        if space.cr3 != NO_SPACE:
            if (space.large_pages[region >> 6] >> (region & 63)) & 1 != 0:
                flush_space(space)
            else:
                forget_page(space, va)


@native
def forget_page(space: AddressSpace, va: u64) -> None:
    """Forget the 4 KiB page of a space that holds `va`."""
    for side in range(2):
        forget_entry(tlb_entry_of(space.tables + side * TLB_SIZE, va))
        table = space.tables + FIRST_JUMPS + side * JUMPS_SIZE
        window = u64(jump_entry(table, va & ~u64(PAGE_MASK)))
        start = table + ((window - table) & ~u64(JUMP_WINDOW - 1))
        forget_jumps(table, start, u64(JUMP_WINDOW))


@staged
def forget_entry(entry: Any) -> None:
    """Make a TLB entry serve nothing."""
    entry.read = TLB_INVALID
    entry.write = TLB_INVALID
    entry.execute = TLB_INVALID


@native(inline="never")
def protect_code(cpu: Cpu, host_page: u64) -> None:
    """Make everybody's next write to a page of RAM, by its host address, take the slow path.

    The other vCPUs have stopped.
    """
    shared = shared_of(cpu)
    for index in range(u64(shared.count)):
        other = pointer(Cpu, u64(shared.cpus[index]))
        for number in range(u64(SPACES)):
            space = other.spaces[number]
            if space.cr3 != NO_SPACE:
                protect_in_space(space, host_page)


@native(inline="never")
def protect_in_space(space: AddressSpace, host_page: u64) -> None:
    """Take back the right to write to a page, by its host address, from a space's TLBs."""
    for word in range(2 * TLB_USED_WORDS):
        used = space.tlb_used[word]
        group = space.tables + word * 64 * _GROUP_SIZE
        while used != 0:
            if (used & 1) != 0:
                for i in range(u64(1 << TLB_GROUP_BITS)):
                    entry = pointer(TlbEntry, group + i * TlbEntry.size)
                    if entry.write + entry.addend == host_page:
                        entry.write = TLB_INVALID
            used = used >> 1
            group += _GROUP_SIZE


# --- noting --------------------------------------------------------------------


@staged
def note_translation(cpu: Any, va: Any, user: Any) -> None:
    """Note that the TLB entry that serves `va` is about to be filled."""
    group = (va >> (PAGE_SHIFT + TLB_GROUP_BITS)) & ((TLB_ENTRIES >> TLB_GROUP_BITS) - 1)
    word = select(user != 0, u64(0), u64(TLB_USED_WORDS)) + (group >> 6)
    cpu.spaces[u64(cpu.space)].tlb_used[word] |= u64(1) << (group & 63)


@staged
def note_large_page(cpu: Any, va: Any) -> None:
    """Note that a part of the large page that holds `va` is about to be entered."""
    region = (va >> 21) & 0xFF
    cpu.spaces[u64(cpu.space)].large_pages[region >> 6] |= u64(1) << (region & 63)


@native
def note_jump(cpu: Cpu, entry: u64) -> None:
    """Note that an entry of the jump cache in force, by its host address, is about to be filled."""
    window = (entry - cpu.jump_cache) // JUMP_WINDOW
    side = select(cpu.jump_cache == cpu.jump_user, u64(0), u64(JUMP_USED_WORDS))
    cpu.spaces[u64(cpu.space)].jump_used[side + (window >> 6)] |= u64(1) << (window & 63)


# --- changing the address space --------------------------------------------------


@native(inline="never")
def enter_space(cpu: Cpu, value: u64, keep: u64) -> None:
    """Put the address space of a new CR3 in force; its translations go unless `keep` is not 0.

    Those of a space with the same PCID and other page tables go in any case.
    """
    cpu.space_clock += 1
    cpu.spaces[u64(cpu.space)].last_used = cpu.space_clock
    found = u32(SPACES)
    oldest = u32(0)
    for number in range(u64(SPACES)):
        space = cpu.spaces[number]
        if space.cr3 != NO_SPACE and (space.cr3 & _PCID) == (value & _PCID):
            found = u32(number)
        if space.last_used < cpu.spaces[u64(oldest)].last_used:
            oldest = u32(number)
    chosen = select(found == SPACES, oldest, found)
    space = cpu.spaces[u64(chosen)]
    if found == SPACES or keep == 0 or space.cr3 != value:
        flush_space(space)
        space.cr3 = value
    if chosen == cpu.space:
        return
    cpu.space = chosen
    cpu.tlb_user = space.tables
    cpu.tlb_kernel = space.tables + TLB_SIZE
    cpu.jump_user = space.tables + FIRST_JUMPS
    cpu.jump_kernel = space.tables + (FIRST_JUMPS + JUMPS_SIZE)
    select_tlb(cpu)
    cpu.jump_cache = cpu.jump_user if cpu.cpl == 3 else cpu.jump_kernel
