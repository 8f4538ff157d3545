"""What finds memory and code fast: soft TLB, jump cache, table of translated pages.

The same for every guest. Handlers, run loops and translated code look things up by the
functions here, so that one formula serves those who fill a table and those who read it.
"""

from __future__ import annotations

from typing import Any

from ringzero.native import Struct, field, pointer, staged, u32, u64

PAGE_SHIFT = 12
PAGE_MASK = (1 << PAGE_SHIFT) - 1

# A soft TLB has this many entries; its index is taken from the page number. With 1024, two pages
# that a program used in turn shared one in every fifth run or so, and it ran at half its speed.
TLB_BITS = 12
TLB_ENTRIES = 1 << TLB_BITS
# What was filled is noted by groups of entries, a bit each, so that a flush touches no more.
TLB_GROUP_BITS = 5
TLB_USED_WORDS = TLB_ENTRIES >> TLB_GROUP_BITS >> 6
# A tag bit below the page number: a tag with it never equals a page address, so the fast
# path fails and the slow path looks closer.
TLB_INVALID = 1 << 0


class TlbEntry(Struct):
    """One translation: the page address for each kind of access, and host minus guest address."""

    read = field(u64)
    write = field(u64)
    execute = field(u64)
    addend = field(u64)


TLB_SIZE = TLB_ENTRIES * TlbEntry.size


@staged
def tlb_offset(va: Any) -> Any:
    """Return the byte offset in a TLB of the entry that serves `va`."""
    return ((va >> PAGE_SHIFT) & (TLB_ENTRIES - 1)) * TlbEntry.size


@staged
def tlb_entry_of(table: Any, va: Any) -> Any:
    """Return the entry of the TLB at host address `table` that serves `va`."""
    return pointer(TlbEntry, table + tlb_offset(va))


@staged
def page_of_last(va: Any, size: Any) -> Any:
    """Return the tag by which `size` bytes at `va` hit: the page's address of the last of them.

    Bytes that reach into the next page never hit the entry that serves `va`.
    """
    return (va + (size - 1)) & ~PAGE_MASK


# The jump cache has a window of entries for each page (hashed), so that one page can be
# dropped without touching the rest.
JUMP_PAGE_BITS = 7
JUMP_OFFSET_BITS = 7
JUMP_ENTRIES = 1 << (JUMP_PAGE_BITS + JUMP_OFFSET_BITS)
JUMP_USED_WORDS = (1 << JUMP_PAGE_BITS) // 64
# An address that the first entry never serves: it belongs to the second.
JUMP_NEVER_FIRST = 1


class JumpCacheEntry(Struct):
    """Translated code for a guest-virtual address, in the mode that was in force."""

    address = field(u64)  # guest-virtual; all ones when empty
    code = field(u64)  # host address


# Bytes of the jump cache for one page, and of all of it.
JUMP_WINDOW = JumpCacheEntry.size << JUMP_OFFSET_BITS
JUMPS_SIZE = JUMP_ENTRIES * JumpCacheEntry.size


@staged
def jump_index(va: Any) -> Any:
    """Return the number of the entry in a jump cache that serves `va`."""
    window = ((va >> PAGE_SHIFT) ^ (va >> (PAGE_SHIFT + JUMP_PAGE_BITS))) & (
        (1 << JUMP_PAGE_BITS) - 1
    )
    within = (va ^ (va >> JUMP_OFFSET_BITS)) & ((1 << JUMP_OFFSET_BITS) - 1)
    return (window << JUMP_OFFSET_BITS) | within


@staged
def jump_entry(table: Any, va: Any) -> Any:
    """Return the entry of the jump cache at host address `table` that serves `va`."""
    return pointer(JumpCacheEntry, table + jump_index(va) * JumpCacheEntry.size)


# A page's translations are found by line of this many bytes (as a shift).
LINE_SHIFT = 6
LINES = 1 << (PAGE_SHIFT - LINE_SHIFT)


class CodePage(Struct):
    """Translations of one page of guest RAM."""

    lines = field(u64)  # which of its lines hold translated code
    blocks = field(u32, LINES)  # per line: the first block that starts there (jit.tables.Block)
