"""What the translator reads, keeps and works with, for guests of every ISA.

Three structs, by who may touch them. `Tables` are read-only, and the same for all
machines of a process. A `CodeSpace` is one machine's translated code, which all its
vCPUs share. A `Scratch` is the work area of one thread that translates, and leads to
the other two. An ISA embeds them in its own (see jit.x86.tables).
"""

from __future__ import annotations

from ringzero.native import Struct, field, i32, u8, u16, u32, u64

# What a hole is filled with (index into Scratch.holes), by the symbol that stands for it.
HOLES = (
    "H0", "H1", "H2", "HI", "HN", "HD", "HB", "HX", "HS", "HC", "HO", "HR", "HG", "HQ", "HF",
    "NEXT", "TARGET", "SLOW",
)  # fmt: skip
(
    H0, H1, H2, HI, HN, HD, HB, HX, HS, HC, HO, HR, HG, HQ, HF, NEXT, TARGET, SLOW,
) = range(len(HOLES))  # fmt: skip
# What a slow stub tells in one word: the in-page offset of its instruction, bytes to the next one,
# and the access.
SLOW_OFFSET_BITS, SLOW_BEHIND_BITS = 13, 11
# How it is filled.
RELATIVE_32, ABSOLUTE_32, ABSOLUTE_64, ABSOLUTE_8, ABSOLUTE_16 = range(5)

# Entries (bytes) of the table that counts how often cold code was met.
COUNTERS = 1 << 16
# Forms that an instruction set has at most.
FORM_LIMIT = 4096
# Guest instructions in one block at most; stubs and fix-ups follow from it.
BLOCK_LIMIT = 48
STUB_LIMIT = BLOCK_LIMIT * 3
FIXUP_LIMIT = BLOCK_LIMIT * 6
# Room that one block can need at most, code and data.
BLOCK_ROOM = 64 << 10
# Widths of code addresses that a guest may have: 64 bits, or 32, where they wrap.
WIDTHS = 2


class Stencil(Struct):
    """Code bytes in the blob, and the holes in them."""

    code = field(u32)
    length = field(u16)
    holes = field(u16)
    first_hole = field(u32)


class Hole(Struct):
    """A place in a stencil."""

    offset = field(u16)
    how = field(u8)
    what = field(u8)
    addend = field(i32)


class Stub(Struct):
    """Code out of line, among the records."""

    purpose = field(u32)
    offset = field(u32)  # in-page offset it is about (signed, for targets outside the page)
    refund = field(u32)
    unsettled = field(u32)  # STUB_BUDGET, STUB_LINK: instructions until the flags hold; 0: they do
    branch = field(u32)  # in-page offset of the branch that it serves, or NO_BRANCH
    resume = field(u64)  # STUB_SLOW: the stencil that came here
    address = field(u64)
    access = field(u32)  # STUB_SLOW: its access to memory (jit.stencil), or 0
    behind = field(u32)  # STUB_SLOW: bytes from `resume` to the next instruction; 0: none follows


class Fixup(Struct):
    """A jump in the block that goes to a stub."""

    site = field(u64)
    stub = field(u32)


class Block(Struct):
    """A translated block: found by in-page offset and mode through its page's CodePage."""

    next = field(u64)
    code = field(u64)
    stubs = field(u64)  # its code out of line
    stubs_size = field(u32)
    offset = field(u32)
    mode = field(u32)


class Exits(Struct):
    """Numbers of the stencils by which blocks begin, go on and are left (jit.exits)."""

    head = field(u32)
    refund = field(u32)
    leave = field(u32)
    leave_linked = field(u32)
    unsettled = field(u32)
    slow = field(u32)
    generic = field(u32)
    goto = field(u32)
    # By the width of code addresses.
    target = field(u32, WIDTHS)
    dispatch = field(u32, WIDTHS)


class Tables(Struct):
    """Where the stencils lie (host addresses), and which are the exits."""

    stencils = field(u64)
    holes = field(u64)
    blob = field(u64)
    exits = field(Exits)


class CodeSpace(Struct):
    """Translated code of one machine: its region of memory, and what is known of it."""

    out = field(u64)  # where code goes next; grows up
    data = field(u64)  # where data went last; grows down
    region_start = field(u64)
    region_end = field(u64)
    code_pages_size = field(u64)
    counters = field(u64)
    low_water = field(u64)  # with less than so much room, Python is to see to it
    hot = field(u32)  # a block met for this time is translated; until then it is interpreted
    # Translations of an earlier run (see engine.soft.translations): saved pages, a hash
    # table of indices + 1 into them, their contents, their CodePages.
    saved_table = field(u64)
    saved_mask = field(u64)
    saved_hashes = field(u64)
    saved_contents = field(u64)
    saved_pages = field(u64)
    handled = field(u64)  # a u32 for each form: how often its handler ran
    # Counters for statistics.
    count_blocks = field(u64)
    count_insns = field(u64)
    count_generic = field(u64)
    count_flushes = field(u64)
    count_lookups = field(u64)
    count_cold = field(u64)
    count_links = field(u64)
    count_adopted = field(u64)


class Scratch(Struct):
    """The block that a thread is translating: holes, stubs, fix-ups."""

    tables = field(u64)  # host address of the Tables
    space = field(u64)  # host address of the CodeSpace
    holes = field(u64, len(HOLES))
    stubs = field(Stub, STUB_LIMIT)
    stub_count = field(u32)
    stubs_start = field(u64)  # host address of the last block's
    stubs_size = field(u32)
    slow_stub = field(u32)  # stub + 1 of the current instruction, 0: none yet
    access = field(u32)  # of the stencil being appended (jit.stencil), or 0
    first = field(u64)  # host address of that stencil
    target_stub = field(u32)
    fixups = field(Fixup, FIXUP_LIMIT)
    fixup_count = field(u32)
    branch = field(u32)  # in-page offset of the current instruction
    width = field(u32)  # of the block's code addresses: 0: 64 bits, 1: 32
