"""The translator: guest code to host code, by copying stencils and filling their holes.

A block is a run of instructions inside one page, with one entry; conditional
jumps leave it on the side and it goes on, so it ends only at unconditional
jumps, at the end of the page, or at BLOCK_LIMIT. Three passes: decode, find
which flags are dead (backward), emit (forward, knowing which operation set the
flags last). Whatever has no stencil is run by its handler.

Blocks hold in-page offsets only, never addresses, so one translation serves
all virtual addresses at which a page is mapped.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import CodePage
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import MODE_64, Cpu, Insn
from ringzero.isa.x86.flags import STATUS
from ringzero.isa.x86.interpreter import FETCH_BYTES
from ringzero.isa.x86.privileged.mmu import flush_jump_cache, protect_code
from ringzero.isa.x86.table.decoder import DECODED, ENDS, MAX_LENGTH, SLOTS, FormEntry, decode
from ringzero.jit import tables
from ringzero.jit.tables import (
    BLOCK_LIMIT,
    NO_CONDITION,
    NO_STENCIL,
    UNKNOWN_CC,
    Block,
    Hole,
    LoweringEntry,
    Stencil,
    Translator,
)
from ringzero.jit.x86.catalogue import (
    CLASSES,
    END_CALL,
    END_CONDITIONAL,
    END_INDIRECT,
    END_JUMP,
    END_NONE,
    SLOT,
)
from ringzero.native import (
    address_of,
    copy_memory,
    fill_memory,
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
    v128,
)

PAGE = 0x1000
_ZERO = Cpu.offset_of("zero")
_REGS = Cpu.offset_of("regs")
_NEXT_RIP = Cpu.offset_of("next_rip")
_XMM = Cpu.offset_of("xmm")
_FS, _GS = Cpu.offset_of("seg", x86.FS), Cpu.offset_of("seg", x86.GS)
MASK_32 = 0xFFFFFFFF
# Room that one block can need at most, code and data.
BLOCK_ROOM = 64 << 10
# Bits of a block's mode: SSE and x87 instructions go to their handlers, which fault;
# accesses by FS and GS (`Cpu.limited`) to theirs, which check limit and rights.
FPU_OFF = 4
FS_OFF, GS_OFF = x86.FS_LIMITED << 3, x86.GS_LIMITED << 3
MODE_BITS = 3
# `Translator.branch` behind the last instruction of a block, which does not branch.
NO_BRANCH = PAGE
# Stub kinds.
STUB_BUDGET, STUB_LINK, STUB_FAR, STUB_SLOW = range(4)


# --- emitting ----------------------------------------------------------------


@native(inline="never")
def emit(tr: Translator, number: u32) -> None:
    """Append a stencil, its holes filled from `tr.holes`."""
    stencil = pointer(Stencil, tr.stencils + u64(number) * Stencil.size)
    to = tr.out
    length = u64(stencil.length)
    source = tr.blob + u64(stencil.code)
    done = u64(0)
    # In steps of 16 bytes: the bytes beyond the end are overwritten by what follows.
    while done < length:
        store(v128, to + done, load(v128, source + done))
        done += 16
    tr.out = to + length
    tr.holes[tables.NEXT] = tr.out
    hole = tr.holes_table + u64(stencil.first_hole) * Hole.size
    for _ in range(stencil.holes):
        fill_hole(tr, pointer(Hole, hole), to)
        hole += Hole.size


@native
def fill_hole(tr: Translator, hole: Hole, to: u64) -> None:
    """Fill one hole of the stencil copied to `to`, or note a fix-up to a stub."""
    site = to + u64(hole.offset)
    what = hole.what
    if what == tables.TARGET:
        add_fixup(tr, site, tr.target_stub)
    elif what == tables.SLOW:
        if tr.slow_stub == 0:
            tr.slow_stub = 1 + add_stub(tr, u32(STUB_SLOW), u32(0), u32(0))
        add_fixup(tr, site, tr.slow_stub - 1)
    else:
        value = tr.holes[u64(what)] + u64(i64(hole.addend))
        kind = hole.how
        if kind == tables.RELATIVE_32:
            store(u32, site, u32(value - site))
        elif kind == tables.ABSOLUTE_32:
            store(u32, site, u32(value))
        elif kind == tables.ABSOLUTE_64:
            store(u64, site, value)
        elif kind == tables.ABSOLUTE_16:
            store(u16, site, u16(value))
        else:
            store(u8, site, u8(value))


@native
def add_fixup(tr: Translator, site: u64, stub: u32) -> None:
    """Note that the relative jump at `site` goes to a stub."""
    fixup = tr.fixups[tr.fixup_count]
    fixup.site = site
    fixup.stub = stub
    tr.fixup_count += 1


@native
def add_stub(tr: Translator, kind: u32, offset: u32, refund: u32) -> u32:
    """Reserve a stub and return its number."""
    number = tr.stub_count
    stub = tr.stubs[number]
    stub.purpose = kind
    stub.offset = offset
    stub.refund = refund
    stub.resume = 0
    stub.branch = tr.branch
    tr.stub_count = number + 1
    return number


@native(inline="never")
def emit_stubs(tr: Translator) -> None:
    """Append all stubs of the block and point its jumps at them."""
    number = u32(0)
    while number < tr.stub_count:
        stub = tr.stubs[number]
        stub.address = tr.out
        kind = stub.purpose
        if stub.refund != 0:
            tr.holes[tables.HC] = u64(stub.refund)
            emit(tr, tr.glue.refund)
        tr.holes[tables.HO] = u64(stub.offset)
        tr.holes[tables.HR] = stub.resume
        if kind == STUB_SLOW:
            emit(tr, tr.glue.slow)
        elif kind == STUB_BUDGET:
            emit(tr, tr.glue.leave)
        elif kind == STUB_LINK:
            emit(tr, tr.glue.leave_linked)
        else:
            tr.holes[tables.HF] = u64(stub.branch)
            emit_far(tr, stub.offset)
        number += 1
    index = u32(0)
    while index < tr.fixup_count:
        fixup = tr.fixups[index]
        stub = tr.stubs[fixup.stub]
        store(u32, fixup.site, u32(stub.address - fixup.site - 4))
        index += 1


@staged
def emit_far(tr: Any, offset: Any) -> None:
    """Append a jump to a target outside the page, by its offset from the page's start."""
    tr.holes[tables.HD] = u64(i64(i32(offset)))
    if (tr.mode & MODE_BITS) == MODE_64:
        emit(tr, tr.glue.target)
        emit(tr, tr.glue.dispatch64)
    else:
        emit(tr, tr.glue.target32)
        emit(tr, tr.glue.dispatch32)


@staged
def emit_dispatch(tr: Any) -> None:
    """Append a jump to the address in the temporary."""
    if (tr.mode & MODE_BITS) == MODE_64:
        emit(tr, tr.glue.dispatch64)
    else:
        emit(tr, tr.glue.dispatch32)


@native
def set_target(tr: Translator, offset: u32, refund: u32) -> None:
    """Make the next TARGET go to an in-page offset, or to one outside."""
    kind = select(offset < PAGE, u32(STUB_LINK), u32(STUB_FAR))
    stub = add_stub(tr, kind, offset, refund)
    tr.target_stub = stub


@native
def emit_goto(tr: Translator, offset: u32) -> None:
    """Append an unconditional jump to an offset from the page's start."""
    if offset < PAGE:
        set_target(tr, offset, u32(0))
        emit(tr, tr.glue.goto)
        # A link replaces the displacement of this jump.
        link_stub(tr)
    else:
        tr.holes[tables.HF] = u64(tr.branch)
        emit_far(tr, offset)


@native
def link_stub(tr: Translator) -> None:
    """Tell the last target's stub which jump leads to it: the one noted last."""
    if tr.fixup_count != 0:
        fixup = tr.fixups[tr.fixup_count - 1]
        stub = tr.stubs[tr.target_stub]
        stub.resume = fixup.site


# --- decoding ----------------------------------------------------------------


@staged
def _operand_number(insn: Any, where: Any) -> Any:
    by_reg = (where == tables.OPERAND_REG) | (where == tables.OPERAND_XMM_REG)
    return u32(select(by_reg, insn.reg, insn.rm))


@native
def find_key(tr: Translator, insn: Insn, lowering: LoweringEntry) -> u32:
    """Return the stencil number for an instruction's operands, or NO_STENCIL."""
    key = u32(0)
    for n in range(3):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        if where == tables.OPERAND_REG or where == tables.OPERAND_RM:
            number = _operand_number(insn, where)
            if what != where:
                byte = select(where == tables.OPERAND_REG, insn.reg8, insn.rm8)
                if (byte & 1) != 0:
                    return u32(NO_STENCIL)
            key = key * CLASSES + select(number < SLOT, number, u32(SLOT))
        vector = where == tables.OPERAND_XMM_REG or where == tables.OPERAND_XMM_RM
        if vector and (tr.mode & FPU_OFF) != 0:
            return u32(NO_STENCIL)
    if lowering.immediate != tables.IMMEDIATE_NONE:
        imm = insn.imm
        if lowering.immediate == tables.IMMEDIATE_PLAIN:
            if u64(i64(i32(imm))) != imm:
                return u32(NO_STENCIL)
        else:
            mask = select(lowering.immediate == tables.IMMEDIATE_SHIFT_64, u64(63), u64(31))
            insn.imm = imm & mask
            if insn.imm == 0:
                return u32(NO_STENCIL)
    if (lowering.flags & tables.TOUCHES_MEMORY) != 0:
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
    return load(u32, tr.keys + (u64(lowering.base + key) << 2))


@staged
def reaches(insn: Any, end: Any) -> Any:
    """Return whether a branch's target, counted from the page's start, fits the 32 bits kept of it.

    Only displacements of nearly 2 GiB do not; their handlers run them.
    """
    target = u64(insn.page_offset) + u64(insn.length) + insn.imm
    direct = (end == END_JUMP) | (end == END_CONDITIONAL) | (end == END_CALL)
    return (target == u64(i64(i32(target)))) | (direct == 0)


@native(inline="never")
def decode_block(cpu: Cpu, tr: Translator, page: u64, start: u32, mode: u32) -> u32:
    """Decode the block at in-page offset `start` of the page at a host address; return its size.

    Notes where it ends, and whether what follows is left to the interpreter.
    """
    at = u64(start)
    count = u32(0)
    tr.unfinished = 0
    while count < BLOCK_LIMIT:
        if at >= PAGE:
            break
        insn = tr.insns[count]
        room = PAGE - at
        where = page + at
        if room < FETCH_BYTES:
            buffer = cpu.fetch_buffer.address()
            for word in range(FETCH_BYTES // 8):
                store(u64, buffer, u64(0), word * 8)
            copy_memory(buffer, where, room)
            where = buffer
        status = decode(cpu, insn, where, mode & MODE_BITS)
        length = u64(insn.length)
        if status != DECODED or length > room or length > MAX_LENGTH:
            tr.unfinished = 1
            break
        insn.page_offset = u16(at)
        slot = (u32(insn.op_size - 1) << 2) | (u32(insn.memory) << 1) | u32(insn.lock)
        index = u32(insn.form) * SLOTS + slot
        lowering_number = u32(load(u16, tr.lowering_index + (u64(index) << 1)))
        end = u32(END_NONE)
        if lowering_number != 0:
            where = tr.lowerings + u64(lowering_number) * LoweringEntry.size
            lowering = pointer(LoweringEntry, where)
            end = u32(lowering.end)
            if not reaches(insn, end):
                lowering_number = u32(0)
            elif end != END_JUMP and end != END_CONDITIONAL:
                key = find_key(tr, insn, lowering)
                tr.key[count] = key
                if key == NO_STENCIL:
                    lowering_number = u32(0)
        tr.lowering[count] = lowering_number
        count += 1
        at += length
        if end == END_CONDITIONAL and lowering_number != 0:
            continue
        form = pointer(FormEntry, cpu.form_table + u64(insn.form) * FormEntry.size)
        if (form.flags & ENDS) != 0:
            break
    tr.block_end = u32(at)
    return count


@native
def find_dead_flags(tr: Translator, count: u32) -> None:
    """Note for each instruction whether anyone may look at the flags that it leaves."""
    live = u32(1)
    number = count
    while number != 0:
        number -= 1
        tr.live[number] = u8(live)
        index = tr.lowering[number]
        if index == 0:
            live = u32(1)
            continue
        lowering = pointer(LoweringEntry, tr.lowerings + u64(index) * LoweringEntry.size)
        flags = u32(lowering.flags)
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
    glue = tr.glue
    tr.holes[tables.HD] = insn.disp
    base, index = insn.base, insn.index
    scale = u32(insn.scale)
    if base == _NEXT_RIP:
        tr.holes[tables.HD] = insn.disp + u64(insn.page_offset) + u64(insn.length)
        emit(tr, glue.ea_rip)
    elif base == _ZERO:
        if index == _ZERO:
            emit(tr, glue.ea_disp)
        else:
            tr.holes[tables.HX] = u64(index)
            emit(tr, glue.ea_index[_class_of(index) * 4 + scale])
    else:
        tr.holes[tables.HB] = u64(base)
        if index == _ZERO:
            emit(tr, glue.ea_base[_class_of(base)])
        else:
            tr.holes[tables.HX] = u64(index)
            number = (_class_of(base) * CLASSES + _class_of(index)) * 4 + scale
            emit(tr, glue.ea_base_index[number])
    if insn.address_mask == MASK_32:
        emit(tr, glue.ea_mask32)
    # Translated code runs with flat ES, CS, SS and DS; FS and GS have bases.
    if segment != 0 and insn.segment != _ZERO and insn.segment >= _FS:
        tr.holes[tables.HS] = u64(insn.segment)
        if (tr.mode & MODE_BITS) == MODE_64:
            emit(tr, glue.ea_segment)
        else:
            tr.holes[tables.HD] = u64(span)
            emit(tr, glue.ea_segment32)


@native
def know_flags(tr: Translator) -> u32:
    """Return the cc_op in force, making it STATUS where it is not known."""
    if tr.cc == UNKNOWN_CC:
        emit(tr, tr.glue.status_any)
        tr.cc = STATUS
    return tr.cc


@native(inline="never")
def emit_generic(tr: Translator, insn: Insn) -> None:
    """Append a call of the instruction's handler."""
    tr.data = tr.data - Insn.size
    copy_memory(tr.data, address_of(insn), u64(Insn.size))
    tr.holes[tables.HG] = tr.data
    stencil = pointer(Stencil, tr.stencils + u64(tr.glue.generic) * Stencil.size)
    tr.holes[tables.HR] = tr.out + u64(stencil.length)
    emit(tr, tr.glue.generic)
    tr.cc = UNKNOWN_CC
    tr.count_generic += 1


@native(inline="never")
def emit_stencil(tr: Translator, insn: Insn, lowering: LoweringEntry, live: u32, key: u32) -> None:
    """Append an instruction from stencils."""
    flags = u32(lowering.flags)
    carry = select(live != 0, u32(tables.CARRY_LIVE), u32(tables.CARRY_DEAD))
    status = select(live != 0, u32(tables.STATUS_LIVE), u32(tables.STATUS_DEAD))
    if (flags & carry) != 0:
        emit(tr, tr.glue.carry[know_flags(tr)])
    if (flags & status) != 0:
        emit(tr, tr.glue.status[know_flags(tr)])
        tr.cc = STATUS
    if lowering.condition != NO_CONDITION:
        cc = know_flags(tr)
        emit(tr, tr.glue.condition[u32(lowering.condition) * 44 + cc])
    slot = u64(0)
    for n in range(3):
        what = lowering.operands[n]
        where = what & ~tables.OPERAND_BYTE & 0xFF
        number = _operand_number(insn, where)
        if where == tables.OPERAND_REG or where == tables.OPERAND_RM:
            if number >= SLOT:
                tr.holes[slot] = u64(number) * 8 + _REGS
                slot += 1
        elif where == tables.OPERAND_XMM_REG or where == tables.OPERAND_XMM_RM:
            tr.holes[slot] = u64(number) * 16 + _XMM
            slot += 1
        elif where == tables.OPERAND_MEMORY:
            segment = u32((flags & tables.NO_SEGMENT) == 0)
            emit_address(tr, insn, segment, u32(lowering.span))
    tr.holes[tables.HI] = insn.imm
    tr.holes[tables.HN] = u64(insn.page_offset) + u64(insn.length)
    number = key * 2
    if live == 0 and (flags & (tables.DEFINES | tables.CHANGES)) != 0:
        number += 1
    emit(tr, number)
    if (flags & (tables.DEFINES | tables.CHANGES)) != 0:
        tr.cc = select(live != 0, u32(lowering.result), u32(UNKNOWN_CC))


@native(inline="never")
def stretch(tr: Translator, number: u32, count: u32) -> u32:
    """Return how many instructions run from one on up to a conditional jump or the block's end."""
    at = number
    while at < count:
        index = tr.lowering[at]
        at += 1
        if index != 0:
            lowering = pointer(LoweringEntry, tr.lowerings + u64(index) * LoweringEntry.size)
            if lowering.end == END_CONDITIONAL:
                return at - number
    return at - number + tr.unfinished


@staged
def pay(tr: Any, instructions: Any) -> None:
    """Append what takes a number of instructions from the budget."""
    tr.holes[tables.HC] = u64(0) - u64(instructions)
    emit(tr, tr.glue.refund)


@native(inline="never")
def emit_insn(tr: Translator, number: u32, count: u32) -> u32:
    """Append one instruction of the block; return 1 when it ended the block."""
    insn = tr.insns[number]
    index = tr.lowering[number]
    tr.slow_stub = 0
    tr.branch = u32(insn.page_offset)
    if index == 0:
        emit_generic(tr, insn)
        return u32(0)
    lowering = pointer(LoweringEntry, tr.lowerings + u64(index) * LoweringEntry.size)
    end = lowering.end
    following = u32(insn.page_offset) + u32(insn.length)
    target = following + u32(insn.imm)
    ended = u32(1)
    if end == END_JUMP:
        emit_goto(tr, target)
    elif end == END_CONDITIONAL:
        cc = know_flags(tr)
        set_target(tr, target, u32(0))
        emit(tr, tr.glue.jcc[u32(insn.opcode & 0xF) * 44 + cc])
        link_stub(tr)
        # Whoever goes on pays for the instructions up to the next way out.
        rest = stretch(tr, number + 1, count)
        if rest != 0:
            pay(tr, rest)
        ended = u32(0)
    elif end == END_CALL:
        set_target(tr, target, u32(0))
        emit_stencil(tr, insn, lowering, u32(1), tr.key[number])
        link_last_target(tr)
    elif end == END_INDIRECT:
        emit_stencil(tr, insn, lowering, u32(1), tr.key[number])
        tr.holes[tables.HF] = u64(tr.branch)
        emit_dispatch(tr)
    else:
        emit_stencil(tr, insn, lowering, u32(tr.live[number]), tr.key[number])
        ended = u32(0)
    if tr.slow_stub != 0:
        stub = tr.stubs[tr.slow_stub - 1]
        stub.offset = u32(insn.page_offset)
        # After an instruction that ends the block the run loop finds the way.
        stub.resume = select(ended != 0, u64(0), tr.out)
    return ended


@native
def link_last_target(tr: Translator) -> None:
    """As `link_stub`, where fix-ups of the slow path may have come in between."""
    index = tr.fixup_count
    while index != 0:
        index -= 1
        fixup = tr.fixups[index]
        if fixup.stub == tr.target_stub:
            stub = tr.stubs[tr.target_stub]
            stub.resume = fixup.site
            return


# --- blocks ------------------------------------------------------------------


@native(inline="never")
def translate(cpu: Cpu, tr: Translator, host_page: u64, start: u32, mode: u32) -> u64:
    """Translate the block at an in-page offset; return its host address."""
    tr.mode = mode
    count = decode_block(cpu, tr, host_page, start, mode)
    if tr.data - tr.out < BLOCK_ROOM:
        flush_code(cpu, tr)
    find_dead_flags(tr, count)
    tr.stub_count = 0
    tr.fixup_count = 0
    tr.cc = UNKNOWN_CC
    entry = tr.out
    tr.slow_stub = 0
    first = stretch(tr, u32(0), count)
    tr.target_stub = add_stub(tr, u32(STUB_BUDGET), start, first)
    tr.holes[tables.HC] = u64(first)
    emit(tr, tr.glue.head)
    ended = u32(0)
    number = u32(0)
    while number < count:
        ended = emit_insn(tr, number, count)
        number += 1
    if ended == 0:
        tr.branch = NO_BRANCH
        # An instruction that reaches into the next page, or is none, ends the block interpreted.
        if tr.unfinished != 0:
            tr.holes[tables.HO] = u64(tr.block_end)
            tr.holes[tables.HR] = u64(0)
            emit(tr, tr.glue.slow)
        else:
            emit_goto(tr, tr.block_end)
    emit_stubs(tr)
    # Blocks begin at 16-byte boundaries.
    tr.out = (tr.out + 15) & ~u64(15)
    register_block(cpu, tr, host_page, start, tr.block_end + tr.unfinished, mode, entry)
    tr.count_blocks += 1
    tr.count_insns += u64(count)
    return entry


@staged
def is_own(tr: Any, address: Any) -> Any:
    """Whether translated code or a record lies in the space that only this machine uses."""
    return address - tr.region_start < tr.region_end - tr.region_start


@native(inline="never")
def register_block(
    cpu: Cpu, tr: Translator, host_page: u64, start: u32, end: u32, mode: u32, entry: u64
) -> None:
    """Make a block known, and its page watched for writes."""
    slot = cpu.code_pages + (((host_page - cpu.ram) >> 12) << 3)
    where = load(u64, slot)
    if where == 0:
        tr.data = (tr.data - CodePage.size) & ~u64(15)
        where = tr.data
        fill_memory(where, u8(0), u64(CodePage.size))
        store(u64, slot, where)
        protect_code(cpu, host_page)
    elif not is_own(tr, where):
        # Other machines, whose page may differ where no code is, have the same list of blocks.
        tr.data = (tr.data - CodePage.size) & ~u64(15)
        copy_memory(tr.data, where, u64(CodePage.size))
        where = tr.data
        store(u64, slot, where)
    page = pointer(CodePage, where)
    first, last = u64(start) >> 6, (u64(end) - 1) >> 6
    page.lines |= ((u64(2) << (last - first)) - 1) << first
    tr.data = (tr.data - Block.size) & ~u64(15)
    block = pointer(Block, tr.data)
    block.next = u64(page.blocks[first])
    block.code = entry
    block.offset = start
    block.mode = mode
    page.blocks[first] = u32(tr.data)


@native(inline="never")
def flush_code(cpu: Cpu, tr: Translator) -> None:
    """Drop all translations, those of earlier runs with them: the region is full."""
    fill_memory(cpu.code_pages, u8(0), tr.code_pages_size)
    flush_jump_cache(cpu)
    tr.out = tr.region_start
    tr.data = tr.region_end
    # What was saved lay in the region, too.
    tr.saved_table = u64(0)
    # So did the jump by which the last block left.
    cpu.link_site = 0
    tr.count_flushes += 1
