"""The translator: guest code to host code, by copying stencils and filling their holes.

A block is a run of instructions inside one page, with one entry; conditional
jumps leave it on the side and it goes on, so it ends only at unconditional
jumps, at the end of the page, or at BLOCK_LIMIT. An instruction that reaches into
the next page may be its last: its handler runs it, when its bytes there are still
those that were decoded. Three passes: decode, find
which flags are dead (backward, with a look at where jumps lead), emit (forward,
knowing which operation set the flags last; a compare and the jump behind it
become one stencil). Whatever has no stencil is run by its handler.

Blocks hold in-page offsets only, never addresses, so one translation serves
all virtual addresses at which a page is mapped.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import LINE_SHIFT
from ringzero.isa.exclusive import OUTSIDE
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.ccops import CC_OPS, CONDITIONS, DEC, INC, LOG2, STATUS
from ringzero.isa.x86.cpu import FETCH_BYTES, MODE_64, Cpu, Insn
from ringzero.isa.x86.privileged.exclusive import (
    end_exclusive,
    lock_machine,
    resume_others,
    shared_of,
    stop_others,
    stopped_within,
)
from ringzero.isa.x86.privileged.lookaside import forget_code, protect_code
from ringzero.isa.x86.privileged.mmu import peek
from ringzero.isa.x86.table.decoder import DECODED, MAX_LENGTH, decode
from ringzero.isa.x86.table.entry import ENDS, SLOTS, FormEntry
from ringzero.jit.blocks import (
    ALIGNMENT,
    drop_blocks,
    find_block,
    lines_between,
    register_block,
)
from ringzero.jit.emit import (
    NO_BRANCH,
    PAGE,
    begin_block,
    emit,
    emit_dispatch,
    emit_goto,
    emit_handled,
    emit_interpreted,
    emit_stubs,
    follow_far,
    link_stub,
    pay,
    reserve,
    resume_behind,
    set_target,
    space_of,
)
from ringzero.jit.host.x86_64 import set_condition
from ringzero.jit.tables import (
    BLOCK_LIMIT,
    BLOCK_ROOM,
    H0,
    HB,
    HD,
    HI,
    HN,
    HQ,
    HS,
    HX,
    CodeSpace,
)  # fmt: skip
from ringzero.jit.x86 import tables
from ringzero.jit.x86.tables import (
    CLASSES,
    END_CALL,
    END_CONDITIONAL,
    END_INDIRECT,
    END_JUMP,
    END_NONE,
    MOVABS,
    NO_CONDITION,
    NO_STENCIL,
    OPERANDS,
    SCALES,
    SLOT,
    UNKNOWN_CC,
    AcrossInsn,
    GuestTables,
    LoweringEntry,
    Translator,
)
from ringzero.native import (
    address_of,
    boolean,
    copy_memory,
    i32,
    i64,
    load,
    native,
    pointer,
    select,
    staged,
    store,
    u8,
    u16,
    u32,
    u64,
)

_ZERO = Cpu.offset_of("zero")
_REGS = Cpu.offset_of("regs")
_NEXT_RIP = Cpu.offset_of("next_rip")
_XMM = Cpu.offset_of("xmm")
_CONDITION = Cpu.offset_of("condition")
_FS, _GS = Cpu.offset_of("seg", x86.FS), Cpu.offset_of("seg", x86.GS)
MASK_32 = 0xFFFFFFFF
ALL_ONES = (1 << 64) - 1
# Bits of a block's mode: SSE and x87 instructions go to their handlers, which fault, and so do
# those of AVX without AVX_ON; accesses by FS and GS (`Cpu.limited`) go to theirs, which check
# limit and rights.
FPU_OFF, AVX_ON = 4, 32
FS_OFF, GS_OFF = x86.FS_LIMITED << 3, x86.GS_LIMITED << 3
MODE_BITS = 3
# The opcode of the conditional jump that looks at no flags.
JRCXZ = 0xE3
# Instructions behind a jump that are looked at, to find whether its flags are needed.
AHEAD = 6


@staged
def tables_of(tr: Any) -> Any:
    """Return the tables that a translator reads."""
    return pointer(GuestTables, tr.scratch.tables)


@staged
def glue_of(tr: Any) -> Any:
    """Return the numbers of the glue stencils."""
    return tables_of(tr).glue


@staged
def lowering_of(tr: Any, index: Any) -> Any:
    """Return a lowering by its index."""
    where = tables_of(tr).lowerings + u64(index) * LoweringEntry.size
    return pointer(LoweringEntry, where)


# --- decoding ----------------------------------------------------------------


@staged
def _operand_number(insn: Any, where: Any) -> Any:
    by_reg = (where == tables.OPERAND_REG) | (where == tables.OPERAND_XMM_REG)
    by_vvvv = (where == tables.OPERAND_VVVV) | (where == tables.OPERAND_XMM_VVVV)
    return u32(select(by_reg, insn.reg, select(by_vvvv, insn.vvvv, insn.rm)))


@staged
def _is_general(where: Any) -> Any:
    """Whether an operand is a general register."""
    found = (where == tables.OPERAND_REG) | (where == tables.OPERAND_RM)
    return found | (where == tables.OPERAND_VVVV)


@staged
def _is_vector(where: Any) -> Any:
    """Whether an operand is an XMM or YMM register."""
    found = (where == tables.OPERAND_XMM_REG) | (where == tables.OPERAND_XMM_RM)
    return found | (where == tables.OPERAND_XMM_VVVV)


@staged
def _byte_place(insn: Any, where: Any) -> Any:
    """Return the byte offset in Cpu.regs of a byte operand: odd for AH to BH."""
    return u32(select(where == tables.OPERAND_REG, insn.reg8, insn.rm8))


@native
def may_swap(insn: Insn, lowering: LoweringEntry, high: u32) -> boolean:
    """Return whether an instruction with the byte operand `high` (AH to BH) runs on swapped bytes.

    No other operand may be a different part of the same register, but for the whole
    of it that a MOVZX or MOVSX then sets.
    """
    if (lowering.flags & tables.HIGH_BYTES) == 0:
        return u64(0) != 0
    extends = (lowering.flags & tables.EXTENDS) != 0
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if where == tables.OPERAND_REG or where == tables.OPERAND_RM:
            if what != where:
                other = _byte_place(insn, where)
                if other >> 3 == high >> 3 and other != high:
                    return u64(0) != 0
            elif _operand_number(insn, where) == high >> 3 and not extends:
                return u64(0) != 0
    return u64(0) == 0


@native
def emit_swaps(tr: Translator, insn: Insn, lowering: LoweringEntry, behind: u32) -> None:
    """Append what brings AH to BH where the stencil has AL to BL, or back behind it."""
    swapped = u32(8)  # no register
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if (where == tables.OPERAND_REG or where == tables.OPERAND_RM) and what != where:
            byte = _byte_place(insn, where)
            number = byte >> 3
            gone = u32(0)
            if behind != 0 and (lowering.flags & tables.EXTENDS) != 0:
                gone = u32(u32(insn.reg) == number)
            if (byte & 1) != 0 and number != swapped and gone == 0:
                emit(tr.scratch, glue_of(tr).swap[number])
                swapped = number


@native(inline="never")
def emit_moves(tr: Translator, insn: Insn, lowering: LoweringEntry, which: u32, first: u32) -> None:
    """Append the moves of an instruction's register operands to or from the vCPU's struct.

    Bit n of `which`: that of the nth of them. `first` is the stencil for RAX, whose like for
    the other registers follow it; one that is there anyway needs none.
    """
    bit = u32(1)
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if _is_general(where):
            number = _operand_number(insn, where)
            if what != where:
                number = _byte_place(insn, where) >> 3
            if (which & bit) != 0 and number < SLOT:
                emit(tr.scratch, first + number)
            bit <<= 1


@native
def find_key(tr: Translator, insn: Insn, lowering: LoweringEntry) -> u32:
    """Return the stencil number for an instruction's operands, or NO_STENCIL."""
    key = u32(0)
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if _is_general(where):
            number = _operand_number(insn, where)
            if what != where:
                byte = _byte_place(insn, where)
                if (byte & 1) != 0 and not may_swap(insn, lowering, byte):
                    return u32(NO_STENCIL)
                number = byte >> 3
            key = key * CLASSES + select(number < SLOT, number, u32(SLOT))
        if _is_vector(where) and (tr.mode & FPU_OFF) != 0:
            return u32(NO_STENCIL)
    if (lowering.flags & tables.NEEDS_AVX) != 0 and (tr.mode & AVX_ON) == 0:
        return u32(NO_STENCIL)
    if lowering.immediate != tables.IMMEDIATE_NONE:
        imm = insn.imm
        if lowering.immediate == tables.IMMEDIATE_PLAIN:
            if u64(i64(i32(imm))) != imm:
                return select(
                    (lowering.flags & tables.WIDE_MOVE) != 0, u32(MOVABS), u32(NO_STENCIL)
                )
        else:
            mask = select(lowering.immediate == tables.IMMEDIATE_SHIFT_64, u64(63), u64(31))
            insn.imm = imm & mask
            if insn.imm == 0:
                return u32(NO_STENCIL)
    if (lowering.flags & tables.TOUCHES_MEMORY) != 0:
        if (lowering.flags & tables.DISPLACES) != 0 and insn.address_mask != ALL_ONES:
            return u32(NO_STENCIL)
        if (lowering.flags & tables.NO_SEGMENT) == 0:
            off = select(insn.segment == _FS, u32(FS_OFF), u32(0))
            off = select(insn.segment == _GS, u32(GS_OFF), off)
            if (tr.mode & off) != 0:
                return u32(NO_STENCIL)
        if insn.address_mask == 0xFFFF or insn.disp != u64(i64(i32(insn.disp))):
            return u32(NO_STENCIL)
        if insn.base == _NEXT_RIP:
            disp = insn.disp + u64(insn.page_offset) + u64(insn.length)
            if disp != u64(i64(i32(disp))):
                return u32(NO_STENCIL)
    return load(u32, tables_of(tr).keys + (u64(lowering.base + key) << 2))


@staged
def reaches(insn: Any, end: Any) -> Any:
    """Return whether a branch's target, counted from the page's start, fits the 32 bits kept of it.

    Only displacements of nearly 2 GiB do not; their handlers run them.
    """
    target = u64(insn.page_offset) + u64(insn.length) + insn.imm
    direct = (end == END_JUMP) | (end == END_CONDITIONAL) | (end == END_CALL)
    return (target == u64(i64(i32(target)))) | (direct == 0)


@native(inline="never")
def decode_in_page(cpu: Cpu, tr: Translator, insn: Insn, page: u64, at: u64) -> u32:
    """Decode the instruction at an in-page offset; 0 when it is none, or leaves the page."""
    room = PAGE - at
    where = page + at
    if room < FETCH_BYTES:
        buffer = cpu.fetch_buffer.address()
        for word in range(FETCH_BYTES // 8):
            store(u64, buffer, u64(0), word * 8)
        copy_memory(buffer, where, room)
        where = buffer
    status = decode(cpu, insn, where, tr.mode & MODE_BITS)
    length = u64(insn.length)
    insn.page_offset = u16(at)
    return u32((status == DECODED) & (length <= room) & (length <= MAX_LENGTH))


@native(inline="never")
def decode_across(cpu: Cpu, tr: Translator, insn: Insn, page: u64, at: u64) -> u32:
    """Decode the instruction at an in-page offset that reaches into `Translator.next_page`.

    0 when it is none, or there is no such page.
    """
    room = PAGE - at
    if tr.next_page == 0 or room >= MAX_LENGTH:
        return u32(0)
    buffer = cpu.fetch_buffer.address()
    copy_memory(buffer, page + at, room)
    copy_memory(buffer + room, tr.next_page, FETCH_BYTES - room)
    status = decode(cpu, insn, buffer, tr.mode & MODE_BITS)
    length = u64(insn.length)
    insn.page_offset = u16(at)
    if status != DECODED or length <= room or length > MAX_LENGTH:
        return u32(0)
    rest = tr.rest.address()
    store(u64, rest, u64(0))
    store(u64, rest, u64(0), 8)
    copy_memory(rest, buffer + room, length - room)
    return u32(1)


@staged
def lowering_number(tr: Any, insn: Any) -> Any:
    """Return the index of the lowering for a decoded instruction; 0: there is none."""
    slot = (u32(insn.op_size - 1) << 2) | (u32(insn.memory) << 1) | u32(insn.lock)
    index = u32(insn.form) * SLOTS + slot
    return u32(load(u16, tables_of(tr).lowering_index + (u64(index) << 1)))


@native(inline="never")
def decode_block(cpu: Cpu, tr: Translator, page: u64, start: u32, mode: u32) -> u32:
    """Decode the block at in-page offset `start` of the page at a host address; return its size.

    Notes where it ends, and whether what follows is left to the interpreter. The last may
    reach into the page of `Translator.next_page`.
    """
    at = u64(start)
    count = u32(0)
    # Whether an interrupt waits for the instruction that comes next.
    shadowed = u32(0)
    tr.mode = mode
    tr.unfinished = 0
    while count < BLOCK_LIMIT:
        if at >= PAGE:
            break
        insn = tr.insns[count]
        number = u32(0)
        if decode_in_page(cpu, tr, insn, page, at) != 0:
            number = lowering_number(tr, insn)
        elif decode_across(cpu, tr, insn, page, at) == 0:
            tr.unfinished = 1
            break
        end = u32(END_NONE)
        flags = u32(0)
        if number != 0:
            lowering = lowering_of(tr, number)
            end = u32(lowering.end)
            flags = u32(lowering.flags)
            if not reaches(insn, end):
                number = u32(0)
            elif end != END_JUMP and end != END_CONDITIONAL:
                key = find_key(tr, insn, lowering)
                tr.key[count] = key
                if key == NO_STENCIL:
                    number = u32(0)
        stays = number != 0 and end == END_NONE
        if shadowed != 0 and not (stays and (flags & tables.TOUCHES_MEMORY) == 0):
            break
        shadowed = select(stays, flags & tables.SHADOWS, u32(0))
        tr.lowering[count] = number
        count += 1
        at += u64(insn.length)
        if stays or (end == END_CONDITIONAL and number != 0):
            continue
        form = pointer(FormEntry, cpu.form_table + u64(insn.form) * FormEntry.size)
        if (form.flags & ENDS) != 0:
            break
    if shadowed != 0:
        # At what comes next the block may be left, and an interrupt taken: its handler says not.
        tr.lowering[count - 1] = 0
    tr.block_end = u32(at)
    return count


@native(inline="never")
def settled(cpu: Cpu, tr: Translator, page: u64, start: u32) -> u32:
    """Return how many instructions from an in-page offset on replace all flags; 0: not known.

    None of them looks at what they were before, none can fault or be left midway. So what
    jumps there need not leave flags, but where it is left before they are replaced, the
    run loop lets these instructions run first (`Cpu.unsettled`).
    """
    at = u64(start)
    for number in range(u32(AHEAD)):
        insn = tr.ahead
        if at >= PAGE or decode_in_page(cpu, tr, insn, page, at) == 0:
            return u32(0)
        index = lowering_number(tr, insn)
        if index == 0:
            return u32(0)
        lowering = lowering_of(tr, index)
        flags = u32(lowering.flags)
        looks = tables.CARRY_DEAD | tables.STATUS_DEAD | tables.TOUCHES_MEMORY
        if lowering.end != END_NONE or lowering.condition != NO_CONDITION or (flags & looks) != 0:
            return u32(0)
        if find_key(tr, insn, lowering) == NO_STENCIL:
            return u32(0)
        at += u64(insn.length)
        keeps = tables.CARRY_LIVE | tables.STATUS_LIVE
        if (flags & (tables.DEFINES | keeps)) == tables.DEFINES:
            tr.lines |= lines_between(u64(start) >> LINE_SHIFT, (at - 1) >> LINE_SHIFT)
            return number + 1
    return u32(0)


@native
def settled_at(cpu: Cpu, tr: Translator, page: u64, offset: u32) -> u32:
    """The same for a branch's target, counted from the page's start; 0 outside of the page."""
    found = u32(0)
    if offset < PAGE:
        found = settled(cpu, tr, page, offset)
    return found


@staged
def target_of(insn: Any) -> Any:
    """Return the target of a relative branch, counted from the page's start."""
    return u32(insn.page_offset) + u32(insn.length) + u32(insn.imm)


@native
def find_dead_flags(cpu: Cpu, tr: Translator, page: u64, count: u32) -> None:
    """Note for each instruction whether anyone may look at the flags that it leaves."""
    tr.lines = 0
    tr.unsettled_end = 0
    if tr.unfinished == 0:
        tr.unsettled_end = settled_at(cpu, tr, page, tr.block_end)
    live = u32(tr.unsettled_end == 0)
    number = count
    while number != 0:
        number -= 1
        tr.live[number] = u8(live)
        index = tr.lowering[number]
        if index == 0:
            live = u32(1)
            continue
        lowering = lowering_of(tr, index)
        flags = u32(lowering.flags)
        if lowering.end == END_JUMP or lowering.end == END_CONDITIONAL:
            due = settled_at(cpu, tr, page, target_of(tr.insns[number]))
            tr.unsettled[number] = u8(due)
            if lowering.end == END_JUMP:
                live = u32(due == 0)
            else:
                tr.live[number] = u8(live | u32(due == 0))
                live = u32(1)
            continue
        if lowering.end != END_NONE or lowering.condition != NO_CONDITION:
            live = u32(1)
            continue
        needs = select(
            live != 0,
            u32(tables.CARRY_LIVE | tables.STATUS_LIVE),
            u32(tables.CARRY_DEAD | tables.STATUS_DEAD),
        )
        if (flags & tables.DEFINES) != 0:
            live = u32(0)
        if (flags & (needs | tables.TOUCHES_MEMORY)) != 0:
            live = u32(1)


# --- one instruction ---------------------------------------------------------


@staged
def _class_of(offset: Any) -> Any:
    number = (offset - _REGS) >> 3
    return select(number < SLOT, number, u32(SLOT))


@native(inline="never")
def emit_address(tr: Translator, insn: Insn, segment: u32, span: u32) -> None:
    """Append what computes the address of the memory operand into the temporary.

    `segment` is 0 for LEA; `span` is the distance to the operand's last byte.
    """
    s = tr.scratch
    glue = glue_of(tr)
    s.holes[HD] = insn.disp
    base, index = insn.base, insn.index
    scale = u32(insn.scale)
    if base == _NEXT_RIP:
        s.holes[HD] = insn.disp + u64(insn.page_offset) + u64(insn.length)
        emit(s, glue.ea_rip)
    elif base == _ZERO:
        if index == _ZERO:
            emit(s, glue.ea_disp)
        else:
            s.holes[HX] = u64(index)
            emit(s, glue.ea_index[_class_of(index) * SCALES + scale])
    else:
        s.holes[HB] = u64(base)
        if index == _ZERO:
            emit(s, glue.ea_base[_class_of(base)])
        else:
            s.holes[HX] = u64(index)
            number = (_class_of(base) * CLASSES + _class_of(index)) * SCALES + scale
            emit(s, glue.ea_base_index[number])
    if insn.address_mask == MASK_32:
        emit(s, glue.ea_mask32)
    # Translated code runs with flat ES, CS, SS and DS; FS and GS have bases.
    if segment != 0 and insn.segment != _ZERO and insn.segment >= _FS:
        s.holes[HS] = u64(insn.segment)
        if (tr.mode & MODE_BITS) == MODE_64:
            emit(s, glue.ea_segment)
        else:
            s.holes[HD] = u64(span)
            emit(s, glue.ea_segment32)


@native
def know_flags(tr: Translator) -> u32:
    """Return the cc_op in force, making it STATUS where it is not known."""
    if tr.cc == UNKNOWN_CC:
        emit(tr.scratch, glue_of(tr).status_any)
        tr.cc = STATUS
    return tr.cc


@staged
def crosses(insn: Any) -> Any:
    """Whether a decoded instruction reaches into the page behind its own."""
    return u32(insn.page_offset) + u32(insn.length) > PAGE


@native(inline="never")
def emit_generic(tr: Translator, insn: Insn) -> None:
    """Append a call of the instruction's handler."""
    space = space_of(tr.scratch)
    record = reserve(space, AcrossInsn.size)
    copy_memory(record, address_of(insn), u64(Insn.size))
    if crosses(insn):
        copy_memory(record + AcrossInsn.offset_of("rest"), tr.rest.address(), u64(16))
    emit_handled(tr.scratch, record)
    tr.cc = UNKNOWN_CC
    space.count_generic += 1


@native(inline="never")
def emit_stencil(
    tr: Translator, insn: Insn, lowering: LoweringEntry, live: u32, key: u32, fused: u32
) -> None:
    """Append an instruction from stencils; `fused` is that which jumps, too, or 0."""
    s = tr.scratch
    glue = glue_of(tr)
    if key == MOVABS:
        s.holes[HQ] = insn.imm
        s.holes[H0] = u64(insn.rm) * 8 + _REGS
        number = u32(insn.rm)
        emit(s, glue.movabs[select(number < SLOT, number, u32(SLOT))])
        if number >= SLOT:
            emit(s, glue.store)
        return
    flags = u32(lowering.flags)
    carry = select(live != 0, u32(tables.CARRY_LIVE), u32(tables.CARRY_DEAD))
    status = select(live != 0, u32(tables.STATUS_LIVE), u32(tables.STATUS_DEAD))
    if (flags & carry) != 0:
        cc = tr.cc
        emit(s, glue.carry_any if cc == UNKNOWN_CC else glue.carry[cc])
    if (flags & status) != 0:
        emit(s, glue.status[know_flags(tr)])
        tr.cc = STATUS
    if lowering.condition != NO_CONDITION:
        cc = know_flags(tr)
        emit(s, glue.condition[u32(lowering.condition) * CC_OPS + cc])
        if insn.memory != 0:
            s.holes[H0] = u64(_CONDITION)
            emit(s, glue.store)
    if (flags & tables.HIGH_BYTES) != 0:
        emit_swaps(tr, insn, lowering, u32(0))
    spilled = (key & tables.SPILLED) != 0
    if spilled:
        emit_moves(tr, insn, lowering, key >> tables.STORED_FIRST.bit_length() - 1, glue.spill)
    slot = u64(0)
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        number = _operand_number(insn, where)
        if _is_general(where):
            if what != where:
                number = _byte_place(insn, where) >> 3
            if number >= SLOT or spilled:
                s.holes[H0 + slot] = u64(number) * 8 + _REGS
                slot += 1
        elif where == tables.OPERAND_TEMPORARY:
            s.holes[HD] = u64(0)
            s.holes[HB] = u64(insn.vvvv) * 8 + _REGS
            emit(s, glue.ea_base[select(insn.vvvv < SLOT, insn.vvvv, u8(SLOT))])
        elif _is_vector(where):
            s.holes[H0 + slot] = u64(number) * 16 + _XMM
            slot += 1
        elif where == tables.OPERAND_MEMORY:
            segment = u32((flags & tables.NO_SEGMENT) == 0)
            emit_address(tr, insn, segment, u32(lowering.span))
    s.holes[HI] = insn.imm
    s.holes[HN] = u64(insn.page_offset) + u64(insn.length)
    number = select(fused != 0, fused, (key & tables.KEY_MASK) * 2)
    if live == 0 and (flags & (tables.DEFINES | tables.CHANGES)) != 0:
        number += 1
    s.access = u32(lowering.access)
    emit(s, number)
    s.access = 0
    if spilled:
        emit_moves(tr, insn, lowering, key >> tables.LOADED_FIRST.bit_length() - 1, glue.fill)
    if (flags & tables.HIGH_BYTES) != 0:
        emit_swaps(tr, insn, lowering, u32(1))
    if (flags & (tables.DEFINES | tables.CHANGES)) != 0:
        tr.cc = select(live != 0, u32(lowering.result), u32(UNKNOWN_CC))


@native(inline="never")
def fused_number(tr: Translator, number: u32, count: u32) -> u32:
    """Return the stencil of an instruction with the conditional jump behind it, or 0."""
    index = tr.lowering[number]
    following = number + 1
    if index == 0 or following >= count or tr.lowering[following] == 0:
        return u32(0)
    lowering = lowering_of(tr, index)
    key = tr.key[number]
    if lowering.end != END_NONE or key == MOVABS:
        return u32(0)
    if lowering_of(tr, tr.lowering[following]).end != END_CONDITIONAL:
        return u32(0)
    if tr.insns[following].opcode == JRCXZ:
        return u32(0)
    kind = u32(lowering.result) // len(LOG2)
    base = u32(tr.insns[following].opcode & (CONDITIONS - 1)) >> 1
    # INC and DEC leave CF as it was (conditions B and BE are those that look at it).
    if (kind == INC or kind == DEC) and (base == 1 or base == 3):
        return u32(0)
    if (key & tables.SPILLED) != 0:
        return u32(0)
    if (lowering.flags & tables.HIGH_BYTES) != 0 and has_high_byte(tr.insns[number], lowering):
        return u32(0)
    return load(u32, tables_of(tr).fused + (u64(key) << 2))


@native
def has_high_byte(insn: Insn, lowering: LoweringEntry) -> boolean:
    """Return whether one of an instruction's operands is AH to BH."""
    found = u32(0)
    for n in range(OPERANDS):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if (where == tables.OPERAND_REG or where == tables.OPERAND_RM) and what != where:
            found = found | (_byte_place(insn, where) & 1)
    return found != 0


@native(inline="never")
def emit_conditional(tr: Translator, number: u32) -> None:
    """Append a conditional jump, and the instruction before it where that waits for it."""
    s = tr.scratch
    insn = tr.insns[number]
    code = u32(insn.opcode & (CONDITIONS - 1))
    fused = tr.fused
    tr.fused = 0
    if fused != 0:
        set_target(s, target_of(insn), u32(tr.unsettled[number]))
        before = number - 1
        lowering = lowering_of(tr, tr.lowering[before])
        live = u32(tr.live[number])
        emit_stencil(tr, tr.insns[before], lowering, live, tr.key[before], fused)
        set_condition(link_stub(s), code)
        # What the slow path runs is that instruction; the run loop finds the jump.
        resume_behind(s, u32(tr.insns[before].page_offset), u64(0) == 0)
        s.slow_stub = 0
    else:
        jump = u32(glue_of(tr).jrcxz[u32(insn.address_size) - 1])
        if insn.opcode != JRCXZ:
            jump = u32(glue_of(tr).jcc[code * CC_OPS + know_flags(tr)])
        set_target(s, target_of(insn), u32(tr.unsettled[number]))
        emit(s, jump)
        link_stub(s)


@native(inline="never")
def stretch(tr: Translator, number: u32, count: u32) -> u32:
    """Return how many instructions run from one on up to a conditional jump or the block's end."""
    at = number
    while at < count:
        index = tr.lowering[at]
        at += 1
        if index != 0:
            lowering = lowering_of(tr, index)
            if lowering.end == END_CONDITIONAL:
                return at - number
    return at - number + tr.unfinished


@native(inline="never")
def emit_insn(tr: Translator, number: u32, count: u32) -> u32:
    """Append one instruction of the block; return 1 when it ended the block."""
    s = tr.scratch
    insn = tr.insns[number]
    index = tr.lowering[number]
    s.slow_stub = 0
    s.branch = u32(insn.page_offset)
    if index == 0:
        emit_generic(tr, insn)
        return u32(0)
    lowering = lowering_of(tr, index)
    end = lowering.end
    target = target_of(insn)
    ended = u32(1)
    tr.fused = select(tr.fused == 0, fused_number(tr, number, count), tr.fused)
    if end == END_JUMP:
        emit_goto(s, target, u32(tr.unsettled[number]))
    elif end == END_CONDITIONAL:
        emit_conditional(tr, number)
        # Whoever goes on pays for the instructions up to the next way out.
        rest = stretch(tr, number + 1, count)
        if rest != 0:
            pay(s, rest)
        ended = u32(0)
    elif end == END_CALL:
        set_target(s, target, u32(0))
        emit_stencil(tr, insn, lowering, u32(1), tr.key[number], u32(0))
        if target >= PAGE:
            follow_far(s)
        else:
            link_stub(s)
    elif end == END_INDIRECT:
        emit_stencil(tr, insn, lowering, u32(1), tr.key[number], u32(0))
        emit_dispatch(s, s.branch)
    elif tr.fused != 0:
        ended = u32(0)
    else:
        emit_stencil(tr, insn, lowering, u32(tr.live[number]), tr.key[number], u32(0))
        ended = u32(0)
    resume_behind(s, u32(insn.page_offset), ended != 0)
    return ended


# --- blocks ------------------------------------------------------------------


@native(inline="never")
def translate(cpu: Cpu, tr: Translator, host_page: u64, start: u32, mode: u32) -> u64:
    """Return the host address of the block at an in-page offset, translating it.

    0 when there is no room for it now. A page gets its first block while no other
    vCPU writes to it; from then on writes to it wait for the lock.
    """
    slot = cpu.code_pages + (((host_page - cpu.ram) >> 12) << 3)
    lock_machine(cpu, u32(OUTSIDE))
    # Another vCPU may have translated it while this one waited.
    code = find_block(slot, start, mode)
    if code == 0 and has_room(cpu, space_of(tr.scratch)) != 0:
        if load(u64, slot) == 0:
            stop_others(cpu)
            protect_code(cpu, host_page)
        code = translate_block(cpu, tr, host_page, start, mode)
    end_exclusive(cpu)
    return code


@native(inline="never")
def has_room(cpu: Cpu, space: CodeSpace) -> u32:
    """Make room for a block, dropping all when there is none; 0 when that cannot be done now."""
    if space.data - space.out >= BLOCK_ROOM:
        return u32(1)
    stop_others(cpu)
    possible = u32(stopped_within(cpu) == 0)
    if possible != 0:
        drop_blocks(space, cpu.code_pages)
        forget_code(shared_of(cpu))
        # The jump by which the last block left lay in the region, too.
        cpu.link_site = 0
    resume_others(cpu)
    return possible


@native(inline="never")
def translate_block(cpu: Cpu, tr: Translator, host_page: u64, start: u32, mode: u32) -> u64:
    """Translate the block at an in-page offset; return its host address."""
    s = tr.scratch
    space = space_of(s)
    s.width = u32((mode & MODE_BITS) != MODE_64)
    # Outside 64-bit mode addresses wrap, and code has a base.
    tr.next_page = 0
    if (mode & MODE_BITS) == MODE_64:
        tr.next_page = peek(cpu, (cpu.rip & ~u64(PAGE - 1)) + PAGE)
    count = decode_block(cpu, tr, host_page, start, mode)
    find_dead_flags(cpu, tr, host_page, count)
    tr.cc = UNKNOWN_CC
    tr.fused = 0
    code = space.out
    unsettled = settled_at(cpu, tr, host_page, start)
    begin_block(s, start, stretch(tr, u32(0), count), unsettled)
    ended = u32(0)
    number = u32(0)
    while number < count:
        ended = emit_insn(tr, number, count)
        number += 1
    if ended == 0:
        s.branch = NO_BRANCH
        # An instruction that reaches into the next page, or is none, ends the block interpreted.
        if tr.unfinished != 0:
            emit_interpreted(s, tr.block_end)
        else:
            emit_goto(s, tr.block_end, tr.unsettled_end)
    emit_stubs(s)
    space.out = (space.out + (ALIGNMENT - 1)) & ~u64(ALIGNMENT - 1)
    slot = cpu.code_pages + (((host_page - cpu.ram) >> 12) << 3)
    end = tr.block_end + tr.unfinished
    end = select(end > PAGE, u32(PAGE), end)
    register_block(s, slot, start, end, tr.lines, mode, code)
    space.count_insns += u64(count)
    return code
