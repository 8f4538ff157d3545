"""What the translator of x86 has beside `jit.tables`: lowerings, glue, decoded instructions."""

from __future__ import annotations

from ringzero.isa.x86.ccops import CC_OPS, CONDITIONS
from ringzero.isa.x86.cpu import Insn
from ringzero.jit.tables import BLOCK_LIMIT, Scratch, Tables
from ringzero.native import Struct, field, u8, u16, u32, u64

# Guest registers in host registers, by number from RAX on; what a stencil's key tells apart
# of a register operand is which of them it is, or that it is a SLOT in the vCPU's struct.
PINNED_REGISTERS = 8
SLOT = PINNED_REGISTERS
CLASSES = PINNED_REGISTERS + 1
SCALES = 4
# CX, ECX and RCX, at which JRCXZ may look.
COUNTERS = 3

NO_STENCIL = 0xFFFFFFFF
# In place of a key: MOV of 64 immediate bits, which is glue.
MOVABS = 0xFFFFFFFE
# Beside a key's number: its registers are taken from the vCPU's struct; the first (and by the next
# bits the second and third) of them is stored there before it, and loaded again behind it.
KEY_MASK = 0xFFFF
SPILLED, STORED_FIRST, LOADED_FIRST = 1 << 16, 1 << 17, 1 << 20
UNKNOWN_CC = 0xFF
NO_CONDITION = 0xFF
# LoweringEntry.operands: where an operand is found.
(
    OPERAND_NONE, OPERAND_REG, OPERAND_RM, OPERAND_XMM_REG, OPERAND_XMM_RM, OPERAND_MEMORY,
    OPERAND_VVVV, OPERAND_XMM_VVVV, OPERAND_TEMPORARY,
) = range(9)  # fmt: skip
OPERAND_BYTE = 0x80
IMMEDIATE_NONE, IMMEDIATE_PLAIN, IMMEDIATE_SHIFT_32, IMMEDIATE_SHIFT_64 = range(4)
# LoweringEntry.flags
(
    DEFINES, CHANGES, CARRY_LIVE, CARRY_DEAD, STATUS_LIVE, STATUS_DEAD, TOUCHES_MEMORY, NO_SEGMENT,
    WIDE_MOVE, HIGH_BYTES, EXTENDS, DISPLACES, NEEDS_AVX, SHADOWS,
) = (1 << n for n in range(14))  # fmt: skip
# Guest registers with a second byte that has a name (AH, CH, DH, BH).
HIGH_REGISTERS = 4
# LoweringEntry.end: how an instruction ends its block.
END_NONE, END_JUMP, END_CONDITIONAL, END_CALL, END_INDIRECT, END_GENERIC = range(6)
# Operands of an instruction at most that a lowering describes.
OPERANDS = 3


class LoweringEntry(Struct):
    """How a form of some size is put together from stencils (see catalogue.Lowering)."""

    base = field(u32)
    flags = field(u16)
    end = field(u8)
    immediate = field(u8)
    operands = field(u8, OPERANDS + 1)
    result = field(u8)
    condition = field(u8)
    span = field(u8)  # from the first to the last byte of the memory operand
    access = field(u8)  # see jit.stencil


class Glue(Struct):
    """Numbers of the glue stencils, in arrays by `place_of_...`."""

    ea_base = field(u32, CLASSES)
    ea_base_index = field(u32, CLASSES * CLASSES * SCALES)
    ea_index = field(u32, CLASSES * SCALES)
    ea_disp = field(u32)
    ea_rip = field(u32)
    ea_segment = field(u32)
    ea_segment32 = field(u32)
    ea_mask32 = field(u32)
    # By cc_op.
    carry = field(u32, CC_OPS)
    status = field(u32, CC_OPS)
    # By condition code and cc_op.
    condition = field(u32, CONDITIONS * CC_OPS)
    jcc = field(u32, CONDITIONS * CC_OPS)
    jrcxz = field(u32, COUNTERS)  # by log2 of the counter's bytes, minus 1
    carry_any = field(u32)
    status_any = field(u32)
    movabs = field(u32, CLASSES)  # that of a slot leaves it to `store`
    store = field(u32)
    swap = field(u32, HIGH_REGISTERS)
    spill = field(u32)  # those of RAX; the other pinned registers' follow
    fill = field(u32)


class GuestTables(Struct):
    """Read-only, the same for all machines of a process (as `jit.tables.Tables`, which it has)."""

    common = field(Tables)
    keys = field(u64)
    fused = field(u64)  # a u32 by key: the stencil with the conditional jump behind it, or 0
    lowerings = field(u64)
    lowering_index = field(u64)
    glue = field(Glue)


class AcrossInsn(Struct):
    """A decoded instruction that reaches into the next page, with its bytes there, then zeros."""

    insn = field(Insn)
    rest = field(u64, 2)


class Translator(Struct):
    """The work area of one thread that translates; one per vCPU."""

    scratch = field(Scratch)
    insns = field(Insn, BLOCK_LIMIT)
    lowering = field(u32, BLOCK_LIMIT)  # index into lowerings; 0: by handler
    key = field(u32, BLOCK_LIMIT)
    live = field(u8, BLOCK_LIMIT)
    # After how many instructions of the path to a branch's target its flags are others (see
    # translate.settled); 0: they may be looked at.
    unsettled = field(u8, BLOCK_LIMIT)
    unsettled_end = field(u32)  # the same where the block goes on behind its end
    ahead = field(Insn)  # an instruction that is looked at and no part of the block
    lines = field(u64)  # lines of the page (isa.caches.CodePage) with such instructions
    fused = field(u32)  # the instruction before waits for its jump: their stencil; else 0
    cc = field(u32)  # cc_op in force, or UNKNOWN_CC
    mode = field(u32)  # see runtime.code_mode
    block_end = field(u32)  # in-page offset behind the block
    unfinished = field(u32)  # 1: the instruction there is no part of the page's code
    next_page = field(u64)  # host address of the page behind that of the block, or 0
    rest = field(u64, 2)  # bytes there of the block's last instruction (see AcrossInsn)
