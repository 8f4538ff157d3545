"""The run loop around translated code, and the doors between the two.

Translated code keeps guest registers in host registers (see stencil_ops);
everything else keeps them in the Cpu struct. The doors move them:

    x_enter    from the run loop into a block
    x_exit     from a block back to the run loop, which finds RIP in the struct
    x_slow     run one instruction by the interpreter, then go on in the block
    x_generic  run one instruction by its handler, already decoded, then go on

They are IR written out, because the language has no calling conventions.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import CodePage, jump_entry
from ringzero.isa.execution import EXIT_DEBUG, EXIT_NONE
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import MODE_16, MODE_64, Cpu, Insn
from ringzero.isa.x86.insn.mxcsr import MASKS
from ringzero.isa.x86.interpreter import (
    attend,
    begin,
    code_address,
    fetch_decode,
    step,
    step_one,
    stop_here,
)
from ringzero.isa.x86.privileged.descriptors import is_canonical
from ringzero.isa.x86.privileged.mmu import fetch_page, note_jump, protect_code
from ringzero.isa.x86.table.decoder import FormEntry
from ringzero.jit.compile.module import Module
from ringzero.jit.tables import BLOCK_LIMIT, COUNTERS, Block, Translator
from ringzero.jit.x86.operands import CONVENTION, PARAMETERS, PINNED
from ringzero.jit.x86.translate import FPU_OFF, FS_OFF, NO_BRANCH, is_own, translate
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

# Distinguishes 32-bit code in jump-cache tags (bit 62 is 1 in no canonical user address).
TAG_32 = 1 << 62
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
    """Return what a translation depends on beside its bytes: the mode, FPU_OFF, FS_OFF, GS_OFF."""
    off = (cpu.cr0 & (x86.CR0_EM | x86.CR0_TS)) | ((cpu.cr4 & x86.CR4_OSFXSR) ^ x86.CR4_OSFXSR)
    limited = select(cpu.mode == MODE_64, u32(0), cpu.limited * FS_OFF)
    return cpu.mode | select(off != 0, u32(FPU_OFF), u32(0)) | limited


@native
def find_block(cpu: Cpu, page: u64, offset: u32) -> u64:
    """Return the host address of a known block of a RAM page (by number), or 0."""
    where = load(u64, cpu.code_pages + (page << 3))
    if where == 0:
        return u64(0)
    entry = u64(pointer(CodePage, where).blocks[offset >> 6])
    mode = code_mode(cpu)
    while entry != 0:
        block = pointer(Block, entry)
        if block.offset == offset and block.mode == mode:
            return block.code
        entry = block.next
    return u64(0)


@native
def page_hash(page: u64) -> u64:
    """Return a hash of the 4 KiB at a host address; contents are compared as well."""
    value = u64(0x9E3779B97F4A7C15)
    for word in range(u64(512)):
        value = (value ^ load(u64, page + (word << 3))) * 0xFF51AFD7ED558CCD
        value = value ^ (value >> 32)
    return value


@native
def same_page(first: u64, second: u64) -> boolean:
    """Return whether the 4 KiB at two host addresses are the same."""
    for word in range(u64(512)):
        if load(u64, first + (word << 3)) != load(u64, second + (word << 3)):
            return u64(0) != 0
    return u64(0) == 0


@native(inline="never")
def adopt_saved(cpu: Cpu, tr: Translator, page: u64) -> None:
    """Take over translations of an earlier run for a RAM page with the same content."""
    store(u8, cpu.code_sought + page, u8(1))
    if tr.saved_table == 0:
        return
    host = cpu.ram + (page << 12)
    wanted = page_hash(host)
    slot = wanted & tr.saved_mask
    while True:
        index = u64(load(u32, tr.saved_table + (slot << 2)))
        if index == 0:
            return
        index -= 1
        alike = load(u64, tr.saved_hashes + (index << 3)) == wanted
        if alike and same_page(host, tr.saved_contents + (index << 12)):
            where = u64(load(u32, tr.saved_pages + (index << 2)))
            store(u64, cpu.code_pages + (page << 3), where)
            protect_code(cpu, host)
            tr.count_adopted += 1
            return
        slot = (slot + 1) & tr.saved_mask


@native(inline="never")
def find_code(cpu: Cpu, tr: Translator, va: u64) -> u64:
    """Return translated code for linear address `va`, or 0 when it is to be interpreted."""
    tag = va | select(cpu.mode == MODE_64, u64(0), u64(TAG_32))
    known = jump_entry(cpu.jump_cache, va)
    code = u64(0)
    if known.address == tag:
        code = known.code
    else:
        tr.count_lookups += 1
        host = fetch_page(cpu, va)
        if host == 0:
            return u64(0)
        page = (host - cpu.ram) >> 12
        offset = u32(va & 0xFFF)
        if load(u8, cpu.code_sought + page) == 0:
            adopt_saved(cpu, tr, page)
        code = find_block(cpu, page, offset)
        if code == 0:
            counter = tr.counters + ((page * 131 + (va & 0xFFF)) & (COUNTERS - 1))
            count = load(u8, counter) + 1
            if u32(count) < tr.hot:
                store(u8, counter, count)
                return u64(0)
            code = translate(cpu, tr, host & ~u64(0xFFF), offset, code_mode(cpu))
        note_jump(cpu, u64(known))
        known.address = tag
        known.code = code
    cpu.page_base = va & ~u64(0xFFF)
    return code


@native(inline="never")
def run_cold(cpu: Cpu, tr: Translator) -> None:
    """Interpret until the flow of control turns."""
    tr.count_cold += 1
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


@native
def run_blocks(cpu: Cpu) -> u32:
    """Run until there is a reason to exit to Python: the translator's run loop."""
    begin(cpu)
    tr = pointer(Translator, cpu.engine)
    cpu.link_site = 0
    while True:
        if cpu.requests != 0 or i64(cpu.budget) < BLOCK_LIMIT or cpu.halted != 0:
            cpu.link_site = 0
            reason = attend(cpu)
            if reason != EXIT_NONE:
                return reason
        if must_step(cpu):
            cpu.link_site = 0
            if cpu.single_step != 0 and stop_here(cpu):
                return u32(EXIT_DEBUG)
            step_one(cpu)
            continue
        code = find_code(cpu, tr, code_address(cpu))
        if code == 0:
            cpu.link_site = 0
            run_cold(cpu, tr)
            continue
        if cpu.link_site != 0:
            # The block before left by a direct jump inside its page: from now on it goes straight,
            # unless its code is shared with other machines.
            if is_own(tr, cpu.link_site):
                store(u32, cpu.link_site, u32(code - cpu.link_site - 4))
                tr.count_links += 1
            cpu.link_site = 0
        cpu.stop_block = 0
        call_address(cpu.enter_code, None, cpu, code)
        if not is_canonical(cpu.rip):
            retake_branch(cpu)


@native
def slow_step(cpu: Cpu) -> u32:
    """Interpret the instruction of a block that missed the TLB; 1 to leave the block."""
    rip = cpu.page_base + cpu.slow_offset
    cpu.rip = rip
    cpu.count_slow += 1
    cpu.stop_block = 0
    # The block has paid for it already.
    cpu.budget += 1
    step(cpu)
    left = (cpu.stop_block != 0) | (cpu.rip != rip + u64(cpu.insn.length)) | (cpu.resume == 0)
    return u32(left)


@native
def generic_step(cpu: Cpu) -> u32:
    """Run a decoded instruction of a block by its handler; 1 to leave the block."""
    insn = pointer(Insn, cpu.generic_insn)
    rip = cpu.page_base + u64(insn.page_offset)
    following = rip + u64(insn.length)
    cpu.rip = rip
    cpu.next_rip = following
    cpu.external_cursor = 0
    cpu.stop_block = 0
    slot = (u64(insn.op_size - 1) << 2) | (u64(insn.memory) << 1) | u64(insn.lock)
    entry = pointer(FormEntry, cpu.form_table + u64(insn.form) * FormEntry.size)
    # Not `insn.handler`: the record may come from an earlier run, the address not.
    call_address(entry.handlers[slot], None, cpu, insn)
    cpu.rip = cpu.next_rip
    cpu.external_done = 0
    return u32((cpu.stop_block != 0) | (cpu.rip != following))


_BUDGET = Cpu.offset_of("budget")
_RESUME = Cpu.offset_of("resume")


def _member(name: str, offset: int) -> str:
    return f" %{name} = getelementptr i8, ptr %cpu, i64 {offset}"


def _spill() -> list[str]:
    lines = [_member("bp", _BUDGET), " store i64 %n, ptr %bp"]
    for number in PINNED:
        lines += [_member(f"p{number}", number * 8), f" store i64 %g{number}, ptr %p{number}"]
    return lines


def _reload() -> list[str]:
    lines = [" %n2 = load i64, ptr %bp"]
    lines += [f" %r{number} = load i64, ptr %p{number}" for number in PINNED]
    return lines


def _arguments() -> str:
    parts = ["ptr %cpu", "i64 %n2", "i64 poison", *(f"i64 %r{n}" for n in PINNED)]
    return ", ".join(parts)


def _step_door(name: str, target: str) -> str:
    return "\n".join(
        [
            f"define {CONVENTION} void @{name}({PARAMETERS}) nounwind {{",
            *_spill(),
            f" %leaves = call i32 @{target}(ptr %cpu)",
            " %stop = icmp ne i32 %leaves, 0",
            " br i1 %stop, label %out, label %on",
            "out:",
            " ret void",
            "on:",
            *_reload(),
            _member("rp", _RESUME),
            " %resume = load ptr, ptr %rp",
            f" musttail call {CONVENTION} void %resume({_arguments()})",
            " ret void",
            "}",
        ]
    )


def define_doors(module: Module) -> None:
    """Add the doors to a module."""
    for function in (slow_step, generic_step):
        module.require(function)
    addresses = [_member("bp", _BUDGET)]
    addresses += [_member(f"p{number}", number * 8) for number in PINNED]
    module.define(
        "\n".join(
            [
                "define void @x_enter(ptr %cpu, i64 %code) nounwind {",
                *addresses,
                *_reload(),
                " %where = inttoptr i64 %code to ptr",
                f" call {CONVENTION} void %where({_arguments()})",
                " ret void",
                "}",
            ]
        )
    )
    module.define(
        "\n".join(
            [
                f"define {CONVENTION} void @x_exit({PARAMETERS}) nounwind {{",
                *_spill(),
                " ret void",
                "}",
            ]
        )
    )
    module.define(_step_door("x_slow", slow_step.name))
    module.define(_step_door("x_generic", generic_step.name))
