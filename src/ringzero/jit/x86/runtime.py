"""The run loop around translated code of x86.

`run_blocks` finds translated code, or interprets what is cold. Behind the doors
(jit.doors) `slow_step` and `generic_step` run single instructions of a block, and
`seek_step` finds the next block: they go on where they can, without the loop.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import PAGE_MASK, TAG_32, jump_entry, tlb_entry_of
from ringzero.isa.exclusive import OUTSIDE
from ringzero.isa.execution import EXIT_DEBUG, EXIT_NONE
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import EXIT_GATHERED, MODE_16, MODE_64, Cpu, Insn
from ringzero.isa.x86.insn.mxcsr import MASKS
from ringzero.isa.x86.interpreter import (
    attend,
    begin,
    fetch_decode,
    step,
    step_one,
    stop_here,
)
from ringzero.isa.x86.privileged.alignment import alignment_checked, select_tlb
from ringzero.isa.x86.privileged.breakpoints import code_address
from ringzero.isa.x86.privileged.descriptors import is_canonical
from ringzero.isa.x86.privileged.exclusive import (
    end_exclusive,
    lock_machine,
    shared_of,
    stop_others,
    try_lock_machine,
)
from ringzero.isa.x86.privileged.lookaside import (
    enter_jump,
    protect_code,
    take_further_jump,
    take_second,
)
from ringzero.isa.x86.privileged.mmu import READ, WRITE, fetch_page
from ringzero.isa.x86.privileged.mmu import translate as translate_address
from ringzero.isa.x86.table.entry import FormEntry
from ringzero.jit.blocks import adopt_saved, find_block, find_saved, is_own
from ringzero.jit.emit import NO_BRANCH, PAGE, space_of
from ringzero.jit.host.x86_64 import direct
from ringzero.jit.stencil import (
    ACCESS_ALIGNED,
    ACCESS_BASE,
    ACCESS_SIZE,
    ACCESS_WRITE,
    BY_POP,
    BY_PUSH,
)
from ringzero.jit.tables import (
    BLOCK_LIMIT,
    COUNTERS,
    SLOW_BEHIND_BITS,
    SLOW_OFFSET_BITS,
    CodeSpace,
)
from ringzero.jit.x86.tables import AcrossInsn, Translator
from ringzero.jit.x86.translate import AVX_ON, FPU_OFF, FS_OFF, crosses, translate
from ringzero.native import (
    address_of,
    boolean,
    call_address,
    i64,
    load,
    native,
    pointer,
    select,
    staged,
    store,
    u8,
    u32,
    u64,
)

# Opcodes of near branches that move the stack pointer.
RET_RELEASE, RET, CALL_RELATIVE = 0xC2, 0xC3, 0xE8
# Instructions interpreted at most before cold code is looked at again.
COLD_RUN = 64


@staged
def must_step(cpu: Any) -> Any:
    """Whether the next instruction has to be interpreted: something watches each one."""
    odd = (cpu.rflags & x86.TF) | u64(cpu.shadow) | (cpu.dr[7] & 0xFF) | u64(cpu.single_step)
    odd = odd | u64((cpu.mxcsr & MASKS) ^ MASKS)
    mode = cpu.mode
    return (odd != 0) | (mode == MODE_16) | ((mode != MODE_64) & (cpu.segmented != 0))


@staged
def code_mode(cpu: Any) -> Any:
    """Return what a translation depends on beside its bytes: the mode, and what is switched off."""
    off = (cpu.cr0 & (x86.CR0_EM | x86.CR0_TS)) | ((cpu.cr4 & x86.CR4_OSFXSR) ^ x86.CR4_OSFXSR)
    limited = select(cpu.mode == MODE_64, u32(0), cpu.limited * FS_OFF)
    enabled = (cpu.xcr0 & x86.XCR0_AVX) != 0 and (cpu.cr4 & x86.CR4_OSXSAVE) != 0
    avx = select(enabled, u32(AVX_ON), u32(0))
    return cpu.mode | select(off != 0, u32(FPU_OFF), u32(0)) | avx | limited


@native(inline="never")
def seek_saved(cpu: Cpu, space: CodeSpace, host_page: u64) -> None:
    """Take over translations of an earlier run for a page of RAM, by its host address."""
    page = (host_page - cpu.ram) >> 12
    lock_machine(cpu, u32(OUTSIDE))
    if load(u8, cpu.code_sought + page) == 0:
        store(u8, cpu.code_sought + page, u8(1))
        # What is compared must not change any more: again, with the others stopped.
        if find_saved(space, host_page) != 0:
            stop_others(cpu)
            if adopt_saved(space, cpu.code_pages + (page << 3), host_page) != 0:
                protect_code(cpu, host_page)
    end_exclusive(cpu)


@native(inline="never")
def link_block(cpu: Cpu, space: CodeSpace, code: u64) -> None:
    """Have the block that was left last jump to `code`, where it came here by a direct jump.

    Others may run that jump: its displacement changes in one piece inside an aligned
    8 bytes (SDM vol. 3A, 8.1.1), else while they stand still. Code that is shared with
    other machines stays as it is.
    """
    site = u64(cpu.link_site)
    if is_own(space, site):
        if (site & 7) <= 4:
            direct(site, code)
            space.count_links += 1
        elif try_lock_machine(cpu) != 0:
            stop_others(cpu)
            direct(site, code)
            space.count_links += 1
            end_exclusive(cpu)
    cpu.link_site = 0


@native(inline="never")
def find_code(cpu: Cpu, tr: Translator, va: u64) -> u64:
    """Return translated code for linear address `va`, or 0 when it is to be interpreted."""
    tag = va | select(cpu.mode == MODE_64, u64(0), u64(TAG_32))
    known = jump_entry(cpu.jump_cache, va)
    code = u64(0)
    if known.address != tag:
        take_further_jump(known, tag)
    if known.address == tag:
        code = known.code
    else:
        space = space_of(tr.scratch)
        space.count_lookups += 1
        host = fetch_page(cpu, va)
        if host == 0:
            return u64(0)
        page = (host - cpu.ram) >> 12
        start = host & ~u64(PAGE_MASK)
        offset = u32(va & PAGE_MASK)
        slot = cpu.code_pages + (page << 3)
        if load(u8, cpu.code_sought + page) == 0:
            seek_saved(cpu, space, start)
        mode = code_mode(cpu)
        code = find_block(slot, offset, mode)
        if code == 0:
            counter = space.counters + ((page * 131 + u64(offset)) & (COUNTERS - 1))
            count = load(u8, counter) + 1
            if u32(count) < space.hot:
                store(u8, counter, count)
                return u64(0)
            code = translate(cpu, tr, start, offset, mode)
            if code == 0:
                return u64(0)
        enter_jump(cpu, va, tag, code)
    cpu.page_base = va & ~u64(PAGE_MASK)
    return code


@native(inline="never")
def run_cold(cpu: Cpu, space: CodeSpace) -> None:
    """Interpret until the flow of control turns."""
    space.count_cold += 1
    left = u32(COLD_RUN)
    while left != 0:
        left -= 1
        cpu.stop_block = 0
        before = cpu.rip
        step(cpu)
        if cpu.stop_block != 0 or cpu.rip != before + u64(cpu.insn.length):
            return


@native(inline="never")
def retake_branch(cpu: Cpu) -> None:
    """Let the interpreter take a near branch again that left for an address not canonical.

    The branch is to raise #GP(0) at its own address with nothing done, but translated
    code looks at a target only when it is nowhere to be found. RSP goes back; a call
    by register or memory has looked before it pushed (`check_call_target`).
    """
    if cpu.branch_offset == NO_BRANCH:
        return
    cpu.rip = cpu.page_base + cpu.branch_offset
    insn = pointer(Insn, address_of(cpu) + Cpu.offset_of("insn"))
    fetch_decode(cpu, insn, cpu.rip)
    if insn.opcode == RET or insn.opcode == RET_RELEASE:
        cpu.regs[x86.RSP] -= 8 + (insn.imm & 0xFFFF)
    elif insn.opcode == CALL_RELATIVE:
        cpu.regs[x86.RSP] += 8
    cpu.budget += 1
    step(cpu)


@staged
def called(cpu: Any) -> Any:
    """Whether the run loop has something to see to: a request, the end of the slice, HLT."""
    wanted = (cpu.requests | shared_of(cpu).stop | cpu.halted) != 0
    return wanted | (i64(cpu.budget) < BLOCK_LIMIT)


@native(inline="never")
def settle(cpu: Cpu) -> None:
    """Run the instructions after which the flags hold: translated code has left some out."""
    left = u32(cpu.unsettled)
    cpu.unsettled = 0
    while left != 0:
        left -= 1
        step(cpu)


@native
def run_blocks(cpu: Cpu) -> u32:
    """Run until there is a reason to exit to Python: the translator's run loop."""
    begin(cpu)
    tr = pointer(Translator, cpu.engine)
    space = space_of(tr.scratch)
    cpu.link_site = 0
    while True:
        if called(cpu):
            cpu.link_site = 0
            if cpu.unsettled != 0:
                settle(cpu)
            reason = attend(cpu)
            if reason != EXIT_NONE:
                return reason
            if space.data - space.out < space.low_water:
                return u32(EXIT_GATHERED)
        if must_step(cpu):
            cpu.link_site = 0
            cpu.unsettled = 0
            if cpu.single_step != 0 and stop_here(cpu):
                return u32(EXIT_DEBUG)
            step_one(cpu)
            continue
        code = find_code(cpu, tr, code_address(cpu))
        if code == 0:
            cpu.link_site = 0
            cpu.unsettled = 0
            run_cold(cpu, space)
            continue
        if cpu.link_site != 0:
            link_block(cpu, space, code)
        cpu.stop_block = 0
        cpu.unsettled = 0
        call_address(cpu.enter_code, None, cpu, code)
        if not is_canonical(cpu.rip):
            retake_branch(cpu)


@native(inline="never")
def seek(cpu: Cpu) -> u32:
    """Go on at RIP from behind a door: with the code there in `Cpu.resume`, or (1) by the run loop.

    What has no code yet is run here until something has.
    """
    tr = pointer(Translator, cpu.engine)
    while True:
        if called(cpu) or must_step(cpu):
            return u32(1)
        code = find_code(cpu, tr, code_address(cpu))
        cpu.stop_block = 0
        if code != 0:
            cpu.resume = code
            return u32(0)
        run_cold(cpu, space_of(tr.scratch))


@native
def seek_step(cpu: Cpu) -> u32:
    """Go on at RIP, for which the jump cache had no code; 1 to leave for the run loop."""
    if not is_canonical(cpu.rip):
        return u32(1)
    return seek(cpu)


@native(inline="never")
def refill(cpu: Cpu, access: u32) -> boolean:
    """Fill the TLB entry that an access of a stencil missed; may raise #PF at `rip`.

    False when that is not what the stencil wants: the interpreter finds out.
    """
    size = u64(1) << u64(access & ACCESS_SIZE)
    base = access & ACCESS_BASE
    va = u64(cpu.slow_address)
    if base == BY_PUSH:
        va = cpu.regs[x86.RSP] - size
    elif base == BY_POP:
        va = u64(cpu.regs[x86.RSP])
    page = va & ~u64(PAGE_MASK)
    crosses = ((va + size - 1) & ~u64(PAGE_MASK)) != page
    misaligned = (access & ACCESS_ALIGNED) != 0 and (va & (size - 1)) != 0
    # Read once: another thread may choose a TLB meanwhile (`apic.notify`).
    table = u64(cpu.tlb)
    watched = (cpu.dr[7] & 0xFF) != 0 or table == cpu.tlb_checked
    if crosses or misaligned or watched or not is_canonical(va):
        return u64(0) != 0
    entry = tlb_entry_of(table, va)
    write = access & ACCESS_WRITE
    if select(write != 0, entry.write, entry.read) == page:
        return u64(0) != 0
    take_second(entry, va)
    if select(write != 0, entry.write, entry.read) == page:
        return u64(0) == 0
    cpu.count_tlb_misses += 1
    translate_address(cpu, va, select(write != 0, u32(WRITE), u32(READ)), u32(cpu.cpl == 3))
    return select(write != 0, entry.write, entry.read) == page


@native
def slow_step(cpu: Cpu) -> u32:
    """Fill the TLB for a block that missed it, else interpret the instruction; 1 to leave.

    `Cpu.resume` is the stencil that missed, or the instruction behind it.
    """
    word = cpu.slow_offset
    rip = cpu.page_base + (word & ((1 << SLOW_OFFSET_BITS) - 1))
    cpu.rip = rip
    if cpu.tlb == cpu.tlb_checked and not alignment_checked(cpu):
        # Somebody wants the run loop to look (`apic.notify`): then the instruction comes later.
        select_tlb(cpu)
        if called(cpu):
            return u32(1)
    access = u32(word >> (SLOW_OFFSET_BITS + SLOW_BEHIND_BITS))
    if access != 0 and refill(cpu, access):
        return u32(0)
    behind = (word >> SLOW_OFFSET_BITS) & ((1 << SLOW_BEHIND_BITS) - 1)
    cpu.resume = select(behind == 0, u64(0), cpu.resume + behind)
    cpu.count_slow += 1
    cpu.stop_block = 0
    # The block has paid for it already.
    cpu.budget += 1
    step(cpu)
    stays = (cpu.stop_block == 0) & (cpu.rip == rip + u64(cpu.insn.length)) & (cpu.resume != 0)
    if stays:
        return u32(0)
    return seek(cpu)


@native(inline="never")
def is_whole(cpu: Cpu, insn: AcrossInsn) -> boolean:
    """Return whether the bytes on the next page are still those of a decoded instruction at RIP."""
    known = insn.rest.address()
    room = PAGE - u64(insn.insn.page_offset)
    host = fetch_page(cpu, cpu.rip + room)
    if host == 0:
        return u64(0) != 0
    left = (u64(insn.insn.length) - room) * 8
    low = select(left < 64, (u64(1) << (left & 63)) - 1, ~u64(0))
    high = select(left > 64, (u64(1) << ((left - 64) & 63)) - 1, u64(0))
    differ = (load(u64, host) ^ load(u64, known)) & low
    return (differ | ((load(u64, host, 8) ^ load(u64, known, 8)) & high)) == 0


@native
def generic_step(cpu: Cpu) -> u32:
    """Run a decoded instruction of a block by its handler; 1 to leave the block."""
    insn = pointer(Insn, cpu.generic_insn)
    rip = cpu.page_base + u64(insn.page_offset)
    following = rip + u64(insn.length)
    cpu.rip = rip
    if crosses(insn):
        if not is_whole(cpu, pointer(AcrossInsn, cpu.generic_insn)):
            cpu.count_slow += 1
            cpu.budget += 1
            step(cpu)
            return seek(cpu)
    else:
        counter = space_of(pointer(Translator, cpu.engine).scratch).handled + (u64(insn.form) << 2)
        store(u32, counter, load(u32, counter) + 1)
    cpu.next_rip = following
    cpu.external_cursor = 0
    cpu.stop_block = 0
    slot = (u64(insn.op_size - 1) << 2) | (u64(insn.memory) << 1) | u64(insn.lock)
    entry = pointer(FormEntry, cpu.form_table + u64(insn.form) * FormEntry.size)
    # Not `insn.handler`: the record may come from an earlier run, the address not.
    call_address(entry.handlers[slot], None, cpu, insn)
    cpu.rip = cpu.next_rip
    cpu.external_done = 0
    if cpu.stop_block == 0 and cpu.rip == following:
        return u32(0)
    return seek(cpu)
