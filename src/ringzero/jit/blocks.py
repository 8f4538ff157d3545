"""Which blocks there are: found by page, in-page offset and mode; dropped all at once.

A CodePage, and the blocks in its lists, lie in the data half of a code space. Pages
whose content an earlier run has translated are taken over whole. Knows no guest; that
a page is watched for writes is the caller's doing (`lookaside.protect_code`).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import LINE_SHIFT, PAGE_SHIFT, CodePage
from ringzero.jit.emit import reserve, space_of
from ringzero.jit.tables import Block, CodeSpace, Scratch
from ringzero.native import (
    boolean,
    copy_memory,
    fence,
    fill_memory,
    load,
    native,
    pointer,
    staged,
    store,
    u8,
    u32,
    u64,
)

PAGE_WORDS = (1 << PAGE_SHIFT) // 8
# Blocks begin at multiples of this many bytes of host code.
ALIGNMENT = 16


@staged
def is_own(space: Any, address: Any) -> Any:
    """Whether translated code or a record lies in the region that only this machine uses."""
    return address - space.region_start < space.region_end - space.region_start


@staged
def lines_between(first: Any, last: Any) -> Any:
    """Return the lines of a page from one number to another, as `CodePage.lines`."""
    return ((u64(2) << (last - first)) - 1) << first


@native
def find_block(slot: u64, offset: u32, mode: u32) -> u64:
    """Return the host address of a known block, or 0.

    `slot` is the host address of the CodePage's address for its page.
    """
    where = load(u64, slot)
    if where == 0:
        return u64(0)
    entry = u64(pointer(CodePage, where).blocks[offset >> LINE_SHIFT])
    while entry != 0:
        block = pointer(Block, entry)
        if block.offset == offset and block.mode == mode:
            return block.code
        entry = block.next
    return u64(0)


@native(inline="never")
def register_block(
    s: Scratch, slot: u64, start: u32, end: u32, lines: u64, mode: u32, code: u64
) -> u32:
    """Make the block of in-page offsets `start` to `end` known; `slot` as for `find_block`.

    It depends on `lines` of the page too (as `CodePage.lines`), beyond its own.
    Returns 1 when it is the first of its page, else 0.
    """
    space = space_of(s)
    where = load(u64, slot)
    first_of_page = u32(0)
    if where == 0:
        first_of_page = u32(1)
        where = reserve(space, CodePage.size)
        fill_memory(where, u8(0), u64(CodePage.size))
        fence()
        store(u64, slot, where)
    elif not is_own(space, where):
        # Other machines, whose page may differ where no code is, have the same list of blocks.
        copy = reserve(space, CodePage.size)
        copy_memory(copy, where, u64(CodePage.size))
        where = copy
        fence()
        store(u64, slot, where)
    page = pointer(CodePage, where)
    first, last = u64(start) >> LINE_SHIFT, (u64(end) - 1) >> LINE_SHIFT
    page.lines |= lines_between(first, last) | lines
    address = reserve(space, Block.size)
    block = pointer(Block, address)
    block.next = u64(page.blocks[first])
    block.code = code
    block.stubs = s.stubs_start
    block.stubs_size = s.stubs_size
    block.offset = start
    block.mode = mode
    # Others look for blocks without a lock: it is complete when they find it.
    fence()
    page.blocks[first] = u32(address)
    space.count_blocks += 1
    return first_of_page


@native(inline="never")
def drop_blocks(space: CodeSpace, code_pages: u64) -> None:
    """Drop all translations, those of earlier runs with them: the region is full."""
    fill_memory(code_pages, u8(0), space.code_pages_size)
    space.out = space.region_start
    space.data = space.region_end
    # What was saved lay in the region, too.
    space.saved_table = u64(0)
    space.count_flushes += 1


# --- translations of earlier runs --------------------------------------------


@native
def page_hash(page: u64) -> u64:
    """Return a hash of the 4 KiB at a host address; contents are compared as well."""
    value = u64(0x9E3779B97F4A7C15)
    for word in range(u64(PAGE_WORDS)):
        value = (value ^ load(u64, page + (word << 3))) * 0xFF51AFD7ED558CCD
        value = value ^ (value >> 32)
    return value


@native
def same_page(first: u64, second: u64) -> boolean:
    """Return whether the 4 KiB at two host addresses are the same."""
    for word in range(u64(PAGE_WORDS)):
        if load(u64, first + (word << 3)) != load(u64, second + (word << 3)):
            return u64(0) != 0
    return u64(0) == 0


@native(inline="never")
def find_saved(space: CodeSpace, page: u64) -> u32:
    """Return number + 1 of the saved page that is like the one at host address `page`, or 0."""
    if space.saved_table == 0:
        return u32(0)
    wanted = page_hash(page)
    number = wanted & space.saved_mask
    while True:
        index = u64(load(u32, space.saved_table + (number << 2)))
        if index == 0:
            return u32(0)
        alike = load(u64, space.saved_hashes + ((index - 1) << 3)) == wanted
        if alike and same_page(page, space.saved_contents + ((index - 1) << PAGE_SHIFT)):
            return u32(index)
        number = (number + 1) & space.saved_mask


@native(inline="never")
def adopt_saved(space: CodeSpace, slot: u64, page: u64) -> u32:
    """Take over translations of an earlier run for the page at host address `page`.

    Returns 1 when there were some, for the same content; `slot` as for `find_block`.
    """
    found = find_saved(space, page)
    if found == 0:
        return u32(0)
    store(u64, slot, u64(load(u32, space.saved_pages + (u64(found - 1) << 2))))
    space.count_adopted += 1
    return u32(1)
