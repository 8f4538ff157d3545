"""What finds memory and code fast: soft TLB, jump cache, table of translated pages.

The same for every guest. Handlers, run loops and translated code look things up by the
functions here, so that one formula serves those who fill a table and those who read it.
"""

from __future__ import annotations

from typing import Any

from ringzero.native import Struct, field, pointer, staged, u32, u64

PAGE_SHIFT = 12
PAGE_MASK = (1 << PAGE_SHIFT) - 1

# A soft TLB has two ways of this many entries; the index is taken from the page number. Translated
# code looks at the first way alone, so what it missed may lie in the second: the two then change
# places. With one way, pages that a program used in turn and that shared an entry by the luck of
# where they lay cost it up to half its speed.
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


TLB_SIZE = TLB_ENTRIES * TlbEntry.size  # of one way
# An address space has TLBs for its user, for its kernel, and for its kernel while that may reach
# the user's pages (see isa.x86.privileged.alignment); all first ways come before the second ones.
TLB_SIDES = 3
SECOND_TLB = TLB_SIDES * TLB_SIZE


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


# A jump cache has ways, as a TLB has: a third one, as a large program has thousands of targets in
# use, and with two every fourth run or so had three of the busiest ones in one place. Its index
# mixes the page's number into the offset in the page so that the entries of one page lie in one
# aligned run of JUMP_RUN.
JUMP_WAYS = 3
JUMP_BITS = 13
JUMP_ENTRIES = 1 << JUMP_BITS
JUMP_RUN = 1 << PAGE_SHIFT
JUMP_GROUP_BITS = 5
JUMP_USED_WORDS = JUMP_ENTRIES >> JUMP_GROUP_BITS >> 6
# The address of an empty entry, as memory comes from the host; and one that the first entry never
# serves, as it belongs to the second: that is empty with this one.
JUMP_EMPTY, JUMP_NEVER_FIRST = 0, 1
# Distinguishes 32-bit code in jump-cache tags (bit 62 is 1 in no canonical user address).
TAG_32 = 1 << 62


class JumpCacheEntry(Struct):
    """Translated code for a guest-virtual address, in the mode that was in force."""

    address = field(u64)  # guest-virtual; JUMP_EMPTY or JUMP_NEVER_FIRST when empty
    code = field(u64)  # host address


JUMPS_SIZE = JUMP_ENTRIES * JumpCacheEntry.size  # of one way
NEXT_JUMPS = 2 * JUMPS_SIZE  # from an entry to that of the next way


@staged
def jump_index(va: Any) -> Any:
    """Return the number of the entry in a jump cache that serves `va`."""
    return (va ^ (va >> PAGE_SHIFT)) & (JUMP_ENTRIES - 1)


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
