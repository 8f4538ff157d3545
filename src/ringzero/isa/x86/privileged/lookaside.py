"""What is cached of linear addresses, by address space: soft TLBs and jump caches.

Each PCID has tables of its own, as far as there are some (`SPACES`), so that a MOV to CR3
which keeps translations keeps them here too (SDM vol. 3A, 4.10.1). What their kernels reach by
global pages of the upper half is the same in all of them (4.10.2.4), and stands in common tables
(`COMMON`), together with a few pages that are not global, which are noted and go with every
change of the address space. Where there are more of those, or code in them, or in the lower half,
a space's kernel has tables of its own until all of the space is forgotten.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import (
    JUMP_EMPTY,
    JUMP_ENTRIES,
    JUMP_GROUP_BITS,
    JUMP_NEVER_FIRST,
    JUMP_RUN,
    JUMP_USED_WORDS,
    JUMP_WAYS,
    JUMPS_SIZE,
    NEXT_JUMPS,
    PAGE_MASK,
    PAGE_SHIFT,
    SECOND_TLB,
    TAG_32,
    TLB_ENTRIES,
    TLB_GROUP_BITS,
    TLB_INVALID,
    TLB_SIDES,
    TLB_SIZE,
    TLB_USED_WORDS,
    JumpCacheEntry,
    TlbEntry,
    jump_entry,
    jump_index,
    tlb_entry_of,
)
from ringzero.isa.exclusive import Exclusive
from ringzero.isa.x86.cpu import (
    ALL_SPACES,
    COMMON,
    HUGE_REGIONS,
    JUMP_PAGES,
    JUMP_TABLES,
    LARGE_REGIONS,
    LOCAL_PAGES,
    NO_SPACE,
    SPACES,
    TLB_TABLES,
    TLBS_SIZE,
    AddressSpace,
    Cpu,
)
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.isa.x86.privileged.exclusive import shared_of
from ringzero.native import (
    fill_memory,
    load,
    native,
    pointer,
    select,
    staged,
    store,
    u8,
    u32,
    u64,
    v128,
)

_GROUP = 1 << TLB_GROUP_BITS
_GROUP_SIZE = TlbEntry.size << TLB_GROUP_BITS
_JUMP_GROUP = 1 << JUMP_GROUP_BITS
_JUMP_GROUP_SIZE = JumpCacheEntry.size << JUMP_GROUP_BITS
_TLB_WORDS = TLB_TABLES * TLB_USED_WORDS
_LARGE_SHIFT, _HUGE_SHIFT, _UPPER_HALF = 21, 30, 63
_PCID = 0xFFF
_EMPTY = 0xFF  # the byte of an empty entry of a TLB


# --- forgetting ----------------------------------------------------------------


@native(inline="never")
def flush_tlb_table(space: AddressSpace, table: u32) -> None:
    """Empty one of the tables of a space's TLBs."""
    for word in range(u64(TLB_USED_WORDS)):
        at = u64(table) * TLB_USED_WORDS + word
        used = space.tlb_used[at]
        space.tlb_used[at] = 0
        group = space.tlbs + at * (64 * _GROUP_SIZE)
        while used != 0:
            if (used & 1) != 0:
                fill_memory(group, u8(_EMPTY), u64(_GROUP_SIZE))
            used = used >> 1
            group += _GROUP_SIZE


@native(inline="never")
def flush_jump_table(space: AddressSpace, table: u32) -> None:
    """Empty one of the tables of a space's jump caches."""
    first = space.jumps + u64(table) * JUMPS_SIZE
    for word in range(u64(JUMP_USED_WORDS)):
        at = u64(table) * JUMP_USED_WORDS + word
        used = space.jump_used[at]
        space.jump_used[at] = 0
        space.forgotten = space.forgotten | u32(used != 0)
        group = first + word * (64 * _JUMP_GROUP_SIZE)
        while used != 0:
            if (used & 1) != 0:
                fill_memory(group, u8(JUMP_EMPTY), u64(_JUMP_GROUP_SIZE))
            used = used >> 1
            group += _JUMP_GROUP_SIZE
    # The address of an empty entry is that of one byte of guest memory, which the first entry
    # serves: so that one is emptied with an address that it cannot have.
    entry = pointer(JumpCacheEntry, first)
    if entry.address == JUMP_EMPTY:
        entry.address = JUMP_NEVER_FIRST


@native(inline="never")
def flush_jumps(space: AddressSpace) -> None:
    """Forget which translated code belongs to which guest-virtual address of a space."""
    for table in range(u32(JUMP_TABLES)):
        flush_jump_table(space, table)
    for word in range(u64(2 * JUMP_PAGES // 64)):
        space.jump_pages[word] = 0


@native(inline="never")
def flush_space(space: AddressSpace) -> None:
    """Forget all translations of a space and all that was derived from them."""
    for table in range(u32(TLB_TABLES)):
        flush_tlb_table(space, table)
    for word in range(2 * LARGE_REGIONS // 64):
        space.large_pages[word] = 0
    space.huge_pages = 0
    space.local = 0
    space.local_count = 0
    flush_jumps(space)


@native(inline="never")
def flush_lower_half(space: AddressSpace, table: u32) -> None:
    """Forget the pages of the lower half in one of the tables of a space's TLBs."""
    for word in range(u64(TLB_USED_WORDS)):
        at = u64(table) * TLB_USED_WORDS + word
        used = space.tlb_used[at]
        group = space.tlbs + at * (64 * _GROUP_SIZE)
        while used != 0:
            if (used & 1) != 0:
                for i in range(u64(_GROUP)):
                    entry = pointer(TlbEntry, group + i * TlbEntry.size)
                    if entry.read >> _UPPER_HALF == 0:
                        forget_entry(entry)
            used = used >> 1
            group += _GROUP_SIZE


@native(inline="never")
def flush_context(space: AddressSpace) -> None:
    """Forget a space's translations but for global ones, as MOV to CR3 does (SDM 4.10.4.1).

    Those kept are the kernel's of the upper half, where few others were entered since the last
    flush of all: then a kernel need not be found anew for each process.
    """
    if space.cr3 == NO_SPACE or space.local != 0:
        flush_space(space)
        space.own = 0
        return
    while space.local_count != 0:
        space.local_count -= 1
        page = u64(space.local_pages[u64(space.local_count)])
        for side in range(1, TLB_SIDES):
            forget_ways(tlb_entry_of(space.tlbs + side * TLB_SIZE, page), page)
    for table in range(0, JUMP_TABLES, 2):
        flush_jump_table(space, u32(table))
    for table in range(u32(TLB_TABLES)):
        if table == 0 or table == TLB_SIDES:
            flush_tlb_table(space, table)
        else:
            flush_lower_half(space, table)
    for word in range(u64(JUMP_PAGES // 64)):
        space.jump_pages[word] = 0
    for word in range(LARGE_REGIONS // 64):
        space.large_pages[word] = 0
    space.huge_pages &= ((1 << HUGE_REGIONS) - 1) << HUGE_REGIONS


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
    current.own = 0
    flush_space(cpu.spaces[COMMON])
    choose_tables(cpu)


@native(inline="never")
def flush_jump_cache(cpu: Cpu) -> None:
    """Forget which translated code belongs to which guest-virtual address."""
    for number in range(u64(ALL_SPACES)):
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
            flush_context(space)
    forget_locals(cpu)
    choose_tables(cpu)


@native(inline="never")
def forget_locals(cpu: Cpu) -> None:
    """Forget what the common tables have that is the same in no other address space."""
    space = cpu.spaces[COMMON]
    while space.local_count != 0:
        space.local_count -= 1
        page = u64(space.local_pages[u64(space.local_count)])
        forget_ways(tlb_entry_of(space.tlbs + TLB_SIZE, page), page)


@native(inline="never")
def invalidate_page(cpu: Cpu, va: u64) -> None:
    """INVLPG: forget the page that holds `va`, all of it when it is a large one."""
    large, huge = _large_region(va), _huge_region(va)
    if va >> _UPPER_HALF == 0:
        # Which of them lie in the same large page was not noted.
        forget_locals(cpu)
    for number in range(u64(ALL_SPACES)):
        space = cpu.spaces[number]
        if space.cr3 != NO_SPACE:
            if (space.huge_pages >> huge) & 1 != 0:
                forget_region(space, va, u64(_HUGE_SHIFT))
            elif (space.large_pages[large >> 6] >> (large & 63)) & 1 != 0:
                forget_region(space, va, u64(_LARGE_SHIFT))
            else:
                forget_page(space, va)


@native(inline="never")
def forget_page(space: AddressSpace, va: u64) -> None:
    """Forget the 4 KiB page of a space that holds `va`."""
    page = va & ~u64(PAGE_MASK)
    forget_ways(tlb_entry_of(space.tlbs, va), page)
    if space.own != 0:
        forget_ways(tlb_entry_of(space.tlbs + TLB_SIZE, va), page)
    forget_ways(tlb_entry_of(space.tlbs + 2 * TLB_SIZE, va), page)
    bit = _jump_page(va)
    if (space.jump_pages[bit >> 6] >> (bit & 63)) & 1 != 0:
        first = u64(jump_index(va & ~u64(PAGE_MASK))) & ~u64(JUMP_RUN - 1)
        forget_jumps(space, va, u64(PAGE_SHIFT), first, u64(JUMP_RUN))


@native(inline="never")
def forget_region(space: AddressSpace, va: u64, shift: u64) -> None:
    """Forget what a space has of the aligned 2**`shift` bytes that hold `va`, 2 MiB at least."""
    for word in range(u64(_TLB_WORDS)):
        used = space.tlb_used[word]
        group = space.tlbs + word * (64 * _GROUP_SIZE)
        while used != 0:
            if (used & 1) != 0:
                for i in range(u64(_GROUP)):
                    entry = pointer(TlbEntry, group + i * TlbEntry.size)
                    seen = (entry.read ^ va) >> shift == 0
                    seen = seen | ((entry.write ^ va) >> shift == 0)
                    if seen | ((entry.execute ^ va) >> shift == 0):
                        forget_entry(entry)
            used = used >> 1
            group += _GROUP_SIZE
    forget_jumps(space, va, shift, u64(0), u64(JUMP_ENTRIES))


@native(inline="never")
def forget_jumps(space: AddressSpace, va: u64, shift: u64, first: u64, count: u64) -> None:
    """Empty a space's jump-cache entries for the aligned 2**`shift` bytes that hold `va`.

    Only `count` of them from number `first` on in each table are looked at, multiples of 32.
    """
    for table in range(u64(JUMP_TABLES)):
        start = space.jumps + table * JUMPS_SIZE
        at = u64(first)
        while at < first + count:
            group = at >> JUMP_GROUP_BITS
            word = table * JUMP_USED_WORDS + (group >> 6)
            if (space.jump_used[word] >> (group & 63)) & 1 != 0:
                for i in range(u64(_JUMP_GROUP)):
                    entry = pointer(JumpCacheEntry, start + (at + i) * JumpCacheEntry.size)
                    if ((entry.address ^ va) & ~u64(TAG_32)) >> shift == 0:
                        entry.address = select(at + i == 0, u64(JUMP_NEVER_FIRST), u64(JUMP_EMPTY))
                        space.forgotten = 1
            at += _JUMP_GROUP


@staged
def serves(entry: Any, page: Any) -> Any:
    """Whether a TLB entry is that of the page at a guest-virtual address."""
    return (entry.read == page) | (entry.write == page) | (entry.execute == page)


@staged
def is_filled(entry: Any) -> Any:
    """Whether a TLB entry serves a page; an empty one, and one that was forgotten, serves none."""
    return ((entry.read & entry.write & entry.execute) & TLB_INVALID) == 0


@staged
def forget_ways(entry: Any, page: Any) -> None:
    """Forget a page where an entry of the first way or that behind it in the second serves it."""
    for way in (0, SECOND_TLB):
        other = pointer(TlbEntry, u64(entry) + way)
        if serves(other, page):
            forget_entry(other)


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
        for number in range(u64(ALL_SPACES)):
            space = other.spaces[number]
            if space.cr3 != NO_SPACE:
                protect_in_space(space, host_page)


@native(inline="never")
def protect_in_space(space: AddressSpace, host_page: u64) -> None:
    """Take back the right to write to a page, by its host address, from a space's TLBs."""
    for word in range(u64(_TLB_WORDS)):
        used = space.tlb_used[word]
        group = space.tlbs + word * (64 * _GROUP_SIZE)
        while used != 0:
            if (used & 1) != 0:
                for i in range(u64(_GROUP)):
                    entry = pointer(TlbEntry, group + i * TlbEntry.size)
                    if entry.write + entry.addend == host_page:
                        entry.write = TLB_INVALID
            used = used >> 1
            group += _GROUP_SIZE


# --- noting, and the second way ------------------------------------------------


@staged
def _in_half(va: Any, number: Any, count: int) -> Any:
    """Return the bit for a page or region, by its number, of those of its half of all addresses."""
    return (number & (count - 1)) | ((va >> _UPPER_HALF) * count)


@staged
def _large_region(va: Any) -> Any:
    return _in_half(va, va >> _LARGE_SHIFT, LARGE_REGIONS)


@staged
def _huge_region(va: Any) -> Any:
    return _in_half(va, va >> _HUGE_SHIFT, HUGE_REGIONS)


@staged
def _jump_page(va: Any) -> Any:
    return _in_half(va, va >> PAGE_SHIFT, JUMP_PAGES)


@staged
def note_large_page(cpu: Any, va: Any, size: Any) -> None:
    """Note that a part of the large page that holds `va` is about to be entered."""
    _note_large_in(cpu.spaces[u64(cpu.space)], va, size)
    if va >> _UPPER_HALF != 0:
        _note_large_in(cpu.spaces[COMMON], va, size)


@staged
def _note_large_in(space: Any, va: Any, size: Any) -> None:
    if size >= 1 << _HUGE_SHIFT:
        space.huge_pages |= u64(1) << _huge_region(va)
    else:
        bit = _large_region(va)
        space.large_pages[bit >> 6] |= u64(1) << (bit & 63)


@native(inline="never")
def note_local(cpu: Cpu, va: u64, runs: u32, is_open: u32) -> None:
    """Note that the kernel's access to a page is about to be entered that is not the same in all.

    Which is not global, or in the lower half. `runs` is 0 where the page holds no code; `is_open`
    says that it goes to the TLB for RFLAGS.AC, of which each space has its own.
    """
    space = cpu.spaces[u64(cpu.space)]
    upper = va >> _UPPER_HALF != 0
    if space.own == 0 and (is_open == 0 or (upper and runs != 0)):
        if runs == 0 and note_page(cpu.spaces[COMMON], va & ~u64(PAGE_MASK)) != 0:
            return
        have_own(cpu)
    if upper and space.local == 0 and (runs != 0 or note_page(space, va & ~u64(PAGE_MASK)) == 0):
        space.local = 1


@native(inline="never")
def note_page(space: AddressSpace, page: u64) -> u32:
    """Note a page that is not the same in all spaces; 0: there are too many."""
    count = u64(space.local_count)
    for number in range(count):
        if space.local_pages[number] == page:
            return u32(1)
    if count == LOCAL_PAGES:
        return u32(0)
    space.local_pages[count] = page
    space.local_count = u32(count + 1)
    return u32(1)


@native(inline="never")
def have_own(cpu: Cpu) -> None:
    """Have the kernel of the space in force use tables of its own, which are empty."""
    cpu.spaces[u64(cpu.space)].own = 1
    choose_tables(cpu)


@native
def make_room(cpu: Cpu, entry: TlbEntry, va: u64) -> None:
    """Have a TLB entry of the first way filled for `va` next: what it serves goes to the second."""
    group = (va >> (PAGE_SHIFT + TLB_GROUP_BITS)) & ((TLB_ENTRIES >> TLB_GROUP_BITS) - 1)
    common = u64(entry) - cpu.spaces[COMMON].tlbs < TLBS_SIZE
    space = cpu.spaces[select(common, u64(COMMON), u64(cpu.space))]
    word = (u64(entry) - space.tlbs) // TLB_SIZE * TLB_USED_WORDS + (group >> 6)
    space.tlb_used[word] |= u64(1) << (group & 63)
    # Memory of a second way that serves nothing stays untouched.
    if is_filled(entry) and not serves(entry, va & ~u64(PAGE_MASK)):
        _copy(u64(entry), u64(entry) + SECOND_TLB)
        space.tlb_used[word + TLB_SIDES * TLB_USED_WORDS] |= u64(1) << (group & 63)


@staged
def _copy(source: Any, to: Any) -> None:
    for part in range(0, TlbEntry.size, 16):
        store(v128, to, load(v128, source, part), part)


@native(inline="never")
def take_second(first: TlbEntry, va: u64) -> None:
    """Bring the page that holds `va` to its entry of a TLB's first way if the second has it."""
    second = pointer(TlbEntry, u64(first) + SECOND_TLB)
    if serves(second, va & ~u64(PAGE_MASK)):
        for part in range(0, TlbEntry.size, 16):
            kept = load(v128, u64(first), part)
            store(v128, u64(first), load(v128, u64(second), part), part)
            store(v128, u64(second), kept, part)


@staged
def _way(entry: Any, number: int) -> Any:
    return pointer(JumpCacheEntry, u64(entry) + number * NEXT_JUMPS)


@staged
def _move(source: Any, to: Any) -> None:
    to.address = source.address
    to.code = source.code


@native(inline="never")
def take_further_jump(entry: JumpCacheEntry, tag: u64) -> None:
    """Bring a tag to its entry of a jump cache's first way if a further one has it."""
    for number in range(1, JUMP_WAYS):
        if _way(entry, number).address == tag:
            code = u64(_way(entry, number).code)
            for nearer in reversed(range(number)):
                _move(_way(entry, nearer), _way(entry, nearer + 1))
            entry.address = tag
            entry.code = code
            return


@native(inline="never")
def enter_jump(cpu: Cpu, va: u64, tag: u64, code: u64) -> None:
    """Fill the entry for `va` of the jump cache in force; what it had goes to the second way."""
    side = select(cpu.jump_cache == cpu.jump_user, u64(0), u64(JUMP_USED_WORDS))
    space = cpu.spaces[u64(cpu.space)]
    if side != 0:
        if tag >> _UPPER_HALF == 0:
            if space.own == 0:
                have_own(cpu)
            space.local = 1
        if space.own == 0:
            space = cpu.spaces[COMMON]
    entry = jump_entry(cpu.jump_cache, va)
    group = (u64(entry) - cpu.jump_cache) // _JUMP_GROUP_SIZE
    word = side + (group >> 6)
    bit = u64(1) << (group & 63)
    # As with a TLB, memory of ways that serve nothing stays untouched.
    if entry.address != JUMP_EMPTY:
        if _way(entry, 1).address != JUMP_EMPTY:
            _move(_way(entry, 1), _way(entry, 2))
            space.jump_used[word + 4 * JUMP_USED_WORDS] |= bit
        _move(entry, _way(entry, 1))
        space.jump_used[word + 2 * JUMP_USED_WORDS] |= bit
    entry.address = tag
    entry.code = code
    space.jump_used[word] |= bit
    page = _jump_page(tag)
    space.jump_pages[page >> 6] |= u64(1) << (page & 63)


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
        flush_context(space)
        space.cr3 = value
    elif chosen == cpu.space:
        return
    forget_locals(cpu)
    cpu.space = chosen
    choose_tables(cpu)


@native(inline="never")
def choose_tables(cpu: Cpu) -> None:
    """Put the tables of the address space in force where they are looked for."""
    space = cpu.spaces[u64(cpu.space)]
    kernel = cpu.spaces[select(space.own != 0, u64(cpu.space), u64(COMMON))]
    cpu.tlb_user = space.tlbs
    cpu.tlb_kernel = kernel.tlbs + TLB_SIZE
    cpu.tlb_open = space.tlbs + 2 * TLB_SIZE
    cpu.jump_user = space.jumps
    cpu.jump_kernel = kernel.jumps + JUMPS_SIZE
    select_tlb(cpu)
    cpu.jump_cache = cpu.jump_user if cpu.cpl == 3 else cpu.jump_kernel
