"""x87 control: control and status words, environment, save and restore, FWAIT.

Intel SDM vol. 1, section 8.1 and 8.3.8, and vol. 2A. The environment has the
protected-mode layouts (vol. 1, figures 8-9 and 8-10) in every mode; selectors
are stored as 0, as on processors that deprecate them (CPUID.7.0:EBX[13]).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import CR0_MP, CR0_TS, NM, Cpu
from ringzero.isa.x86.insn.sse_operands import check_pending
from ringzero.isa.x86.insn.x87_operands import (
    DEFAULT_FCW,
    EXCEPTIONS,
    SUMMARY,
    start,
    summarize,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import load, native, staged, store, u8, u16, u32, u64

# Bits of FCW that can be set, and one that always is (SDM vol. 1, figure 8-6).
FCW_BITS, FCW_FIXED = 0x1F3F, 0x0040

# Classes of the full tag word (SDM vol. 1, figure 8-7).
TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY = range(4)


@staged
def set_control(cpu: Cpu, value: Any) -> None:
    """Set FCW; exceptions that it unmasks become pending."""
    cpu.fcw = (u16(value) & FCW_BITS) | FCW_FIXED
    summarize(cpu)


@staged
def get_status(cpu: Cpu) -> Any:
    """Return the whole FSW, with TOP."""
    return (cpu.fsw & ~u16(0x3800)) | (u16(cpu.ftop & 7) << 11)


@staged
def set_status(cpu: Cpu, value: Any) -> None:
    """Set the whole FSW, with TOP; the summary follows from the rest."""
    cpu.ftop = (u32(value) >> 11) & 7
    cpu.fsw = u16(value) & ~u16(0x3800)
    summarize(cpu)


@native(inline="never")
def reset_fpu(cpu: Cpu) -> None:
    """FNINIT: default control word, empty stack, nothing pending."""
    cpu.fcw = DEFAULT_FCW
    cpu.fsw = 0
    cpu.ftop = 0
    cpu.ftags = 0
    cpu.fpu_ip = 0
    cpu.fpu_dp = 0
    cpu.fpu_opcode = 0


@native(inline="never")
def full_tags(cpu: Cpu) -> u16:
    """Return the tag word with two bits per physical register."""
    result = u32(0)
    number = u32(8)
    while number != 0:
        number -= 1
        where = cpu.fpr.address(number)
        mantissa = load(u64, where)
        exponent = load(u16, where, 8) & 0x7FFF
        tag = u32(TAG_VALID)
        if ((u32(cpu.ftags) >> number) & 1) == 0:
            tag = TAG_EMPTY
        elif (exponent == 0) & (mantissa == 0):
            tag = TAG_ZERO
        elif (exponent == 0) | (exponent == 0x7FFF) | ((mantissa >> 63) == 0):
            tag = TAG_SPECIAL
        result = (result << 2) | tag
    return u16(result)


@native(inline="never")
def abridge_tags(cpu: Cpu, tags: u16) -> None:
    """Set which registers are in use from a full tag word."""
    result = u32(0)
    for number in range(8):
        result = result | (u32(((tags >> (2 * number)) & 3) != TAG_EMPTY) << number)
    cpu.ftags = u8(result)


# --- control and status words ----------------------------------------------


@instruction("DB =E3", fpu=True)
def fninit(m: Operation) -> None:
    "FNINIT (Intel SDM vol. 2A)."
    reset_fpu(m.cpu)


@instruction("DB =E2", fpu=True)
def fnclex(m: Operation) -> None:
    "FNCLEX (Intel SDM vol. 2A)."
    cpu = m.cpu
    cpu.fsw = cpu.fsw & ~u16(EXCEPTIONS | 0x40 | SUMMARY)


@instruction("DB =E0", "DB =E1", "DB =E4", fpu=True)
def fnop_287(m: Operation) -> None:
    "FENI, FDISI, FSETPM of the 8087 and 80287: do nothing (Intel SDM vol. 3B, section 23.18)."


@instruction("D9 =D0", fpu=True)
def fnop(m: Operation) -> None:
    "FNOP (Intel SDM vol. 2A)."
    start(m)


@instruction("D9 /5:m : Mw", fpu=True)
def fldcw(m: Operation) -> None:
    "FLDCW (Intel SDM vol. 2A)."
    start(m)
    set_control(m.cpu, m.read(0))


@instruction("D9 /7:m : Mw", fpu=True)
def fnstcw(m: Operation) -> None:
    "FNSTCW (Intel SDM vol. 2A)."
    m.write(0, m.cpu.fcw)


@instruction("DD /7:m : Mw", "DF =E0 : AX", fpu=True)
def fnstsw(m: Operation) -> None:
    "FNSTSW (Intel SDM vol. 2A)."
    m.write(0, get_status(m.cpu))


@instruction("9B")
def fwait(m: Operation) -> None:
    "WAIT/FWAIT (Intel SDM vol. 2B): #NM when CR0.MP and CR0.TS are set."
    cpu = m.cpu
    if (cpu.cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS):
        m.fault(NM)
    check_pending(m)


# --- environment, state ----------------------------------------------------


def environment_size(m: Operation) -> int:
    """Return the bytes of the environment: 14 with 16-bit operands, else 28."""
    return 14 if m.size == 16 else 28


@staged
def store_environment(m: Operation, address: Any) -> None:
    """Store the environment at a linear address."""
    cpu = m.cpu
    tags = full_tags(cpu)
    if m.size == 16:
        for offset, word in (
            (0, cpu.fcw), (2, get_status(cpu)), (4, tags), (6, u16(cpu.fpu_ip)), (8, u16(0)),
            (10, u16(cpu.fpu_dp)), (12, u16(0)),
        ):  # fmt: skip
            m.store(u16, address + offset, word)
    else:
        upper = u32(0xFFFF0000)
        for offset, word in (
            (0, u32(cpu.fcw) | upper), (4, u32(get_status(cpu)) | upper), (8, u32(tags) | upper),
            (12, u32(cpu.fpu_ip)), (16, u32(cpu.fpu_opcode & 0x7FF) << 16),
            (20, u32(cpu.fpu_dp)), (24, upper),
        ):  # fmt: skip
            m.store(u32, address + offset, word)


@staged
def load_environment(m: Operation, address: Any) -> None:
    """Load the environment from a linear address."""
    cpu = m.cpu
    step = 2 if m.size == 16 else 4
    kind = u16 if m.size == 16 else u32
    control = u16(m.load(kind, address))
    status = u16(m.load(kind, address + step))
    tags = u16(m.load(kind, address + 2 * step))
    ip = m.load(kind, address + 3 * step)
    selector = m.load(kind, address + 4 * step)
    dp = m.load(kind, address + 5 * step)
    m.load(kind, address + 6 * step)
    cpu.fpu_ip = u64(ip)
    cpu.fpu_dp = u64(dp)
    if m.size != 16:
        cpu.fpu_opcode = u16(selector >> 16) & 0x7FF
    abridge_tags(cpu, tags)
    set_status(cpu, status)
    set_control(cpu, control)


@instruction("D9 /6:m : M", fpu=True, sized=True)
def fnstenv(m: Operation) -> None:
    "FNSTENV (Intel SDM vol. 2A): masks all exceptions after storing."
    store_environment(m, m.address(0, environment_size(m) // 7))
    cpu = m.cpu
    cpu.fcw = cpu.fcw | EXCEPTIONS
    summarize(cpu)


@instruction("D9 /4:m : M", fpu=True, sized=True)
def fldenv(m: Operation) -> None:
    "FLDENV (Intel SDM vol. 2A)."
    start(m)
    load_environment(m, m.address(0, environment_size(m) // 7))


@instruction("DD /6:m : M", fpu=True, sized=True)
def fnsave(m: Operation) -> None:
    "FNSAVE (Intel SDM vol. 2A): the environment, ST(0) to ST(7), then FNINIT."
    cpu = m.cpu
    address = m.address(0, environment_size(m) // 7)
    store_environment(m, address)
    base = address + environment_size(m)
    for index in range(8):
        slot = cpu.fpr.address((cpu.ftop + index) & 7)
        # Halfwords: where alignment is checked, that of the whole image is enough.
        for part in range(0, 10, 2):
            m.store(u16, base + (10 * index + part), load(u16, slot, part))
    reset_fpu(cpu)


@instruction("DD /4:m : M", fpu=True, sized=True)
def frstor(m: Operation) -> None:
    "FRSTOR (Intel SDM vol. 2A)."
    start(m)
    cpu = m.cpu
    address = m.address(0, environment_size(m) // 7)
    base = address + environment_size(m)
    # In order of address, so that a page fault is the one processors raise.
    step = environment_size(m) // 7
    for offset in range(0, 7 * step, step):
        m.load(u16 if step == 2 else u32, address + offset)
    # To the scratch room first, so that a fault halfway changes nothing.
    for index in range(8):
        room = cpu.scratch.address(index)
        for part in range(0, 10, 2):
            store(u16, room, m.load(u16, base + (10 * index + part)), part)
    load_environment(m, address)
    for index in range(8):
        slot = cpu.fpr.address((cpu.ftop + index) & 7)
        store(u64, slot, load(u64, cpu.scratch.address(index)))
        store(u16, slot, load(u16, cpu.scratch.address(index), 8), 8)
