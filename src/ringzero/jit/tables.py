"""What the translator reads: stencils, their holes, lowerings; and what it keeps."""

from __future__ import annotations

from ringzero.isa.x86.cpu import Insn
from ringzero.native import Struct, field, i32, u8, u16, u32, u64

# What a hole is filled with (index into Translator.holes), by the symbol that stands for it.
HOLES = (
    "H0", "H1", "HI", "HN", "HD", "HB", "HX", "HS", "HC", "HO", "HR", "HG", "HQ", "HF",
    "NEXT", "TARGET", "SLOW",
)  # fmt: skip
(
    H0, H1, HI, HN, HD, HB, HX, HS, HC, HO, HR, HG, HQ, HF, NEXT, TARGET, SLOW,
) = range(len(HOLES))  # fmt: skip
# How it is filled.
RELATIVE_32, ABSOLUTE_32, ABSOLUTE_64, ABSOLUTE_8, ABSOLUTE_16 = range(5)

NO_STENCIL = 0xFFFFFFFF
UNKNOWN_CC = 0xFF
NO_CONDITION = 0xFF
# LoweringEntry.operands: where an operand is found.
OPERAND_NONE, OPERAND_REG, OPERAND_RM, OPERAND_XMM_REG, OPERAND_XMM_RM, OPERAND_MEMORY = range(6)
OPERAND_BYTE = 0x80
IMMEDIATE_NONE, IMMEDIATE_PLAIN, IMMEDIATE_SHIFT_32, IMMEDIATE_SHIFT_64 = range(4)
# LoweringEntry.flags
(
    DEFINES, CHANGES, CARRY_LIVE, CARRY_DEAD, STATUS_LIVE, STATUS_DEAD, TOUCHES_MEMORY, NO_SEGMENT,
) = (1 << n for n in range(8))  # fmt: skip

# Entries (bytes) of the table that counts how often cold code was met.
COUNTERS = 1 << 16
# Guest instructions in one block at most; stubs and fix-ups follow from it.
BLOCK_LIMIT = 48
STUB_LIMIT = BLOCK_LIMIT * 3
FIXUP_LIMIT = BLOCK_LIMIT * 6


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


class LoweringEntry(Struct):
    """How a form of some size is put together from stencils (see stencils.Lowering)."""

    base = field(u32)
    flags = field(u16)
    end = field(u8)
    immediate = field(u8)
    operands = field(u8, 4)
    result = field(u8)
    condition = field(u8)
    span = field(u8)  # from the first to the last byte of the memory operand


class Stub(Struct):
    """Code out of line, after the block."""

    purpose = field(u32)
    offset = field(u32)  # in-page offset it is about (signed, for targets outside the page)
    refund = field(u32)
    branch = field(u32)  # in-page offset of the branch that it serves, or NO_BRANCH
    resume = field(u64)
    address = field(u64)


class Fixup(Struct):
    """A jump in the block that goes to a stub."""

    site = field(u64)
    stub = field(u32)


class Block(Struct):
    """A translated block: found by in-page offset and mode through its page's CodePage."""

    next = field(u64)
    code = field(u64)
    offset = field(u32)
    mode = field(u32)


class Glue(Struct):
    """Numbers of the glue stencils."""

    ea_base = field(u32, 9)
    ea_base_index = field(u32, 9 * 9 * 4)
    ea_index = field(u32, 9 * 4)
    ea_disp = field(u32)
    ea_rip = field(u32)
    ea_segment = field(u32)
    ea_segment32 = field(u32)
    ea_mask32 = field(u32)
    # By cc_op (44 of them).
    carry = field(u32, 44)
    status = field(u32, 44)
    condition = field(u32, 16 * 44)
    jcc = field(u32, 16 * 44)
    status_any = field(u32)
    movabs = field(u32, 9)
    head = field(u32)
    refund = field(u32)
    leave = field(u32)
    leave_linked = field(u32)
    slow = field(u32)
    generic = field(u32)
    goto = field(u32)
    dispatch64 = field(u32)
    dispatch32 = field(u32)
    target = field(u32)
    target32 = field(u32)


class Translator(Struct):
    """The translator's tables and its work area; one per machine."""

    stencils = field(u64)
    holes_table = field(u64)
    blob = field(u64)
    keys = field(u64)
    lowerings = field(u64)
    lowering_index = field(u64)
    counters = field(u64)
    hot = field(u32)  # a block met for this time is translated; until then it is interpreted
    out = field(u64)  # where code goes next; grows up
    data = field(u64)  # where data went last; grows down
    region_start = field(u64)
    region_end = field(u64)
    code_pages_size = field(u64)
    holes = field(u64, len(HOLES))
    insns = field(Insn, BLOCK_LIMIT)
    lowering = field(u32, BLOCK_LIMIT)  # index into lowerings; 0: by handler
    key = field(u32, BLOCK_LIMIT)
    live = field(u8, BLOCK_LIMIT)
    stubs = field(Stub, STUB_LIMIT)
    stub_count = field(u32)
    slow_stub = field(u32)  # stub + 1 of the current instruction, 0: none yet
    target_stub = field(u32)
    fixups = field(Fixup, FIXUP_LIMIT)
    fixup_count = field(u32)
    branch = field(u32)  # in-page offset of the current instruction
    cc = field(u32)
    mode = field(u32)
    block_end = field(u32)  # in-page offset behind the block
    unfinished = field(u32)  # 1: the instruction there is no part of the page's code
    glue = field(Glue)
    # Translations of an earlier run (see engine.soft.translations): saved pages, a hash
    # table of indices + 1 into them, their contents, their CodePages.
    saved_table = field(u64)
    saved_mask = field(u64)
    saved_hashes = field(u64)
    saved_contents = field(u64)
    saved_pages = field(u64)
    # Counters for statistics.
    count_blocks = field(u64)
    count_insns = field(u64)
    count_generic = field(u64)
    count_flushes = field(u64)
    count_lookups = field(u64)
    count_cold = field(u64)
    count_links = field(u64)
    count_adopted = field(u64)
