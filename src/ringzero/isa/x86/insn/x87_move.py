"""x87 loads, stores, constants, register moves, conversions to integers and decimal.

Intel SDM vol. 1, sections 8.3.2 to 8.3.4, and vol. 2A.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import CF, PF, ZF, Cpu
from ringzero.isa.x86.insn.sse_operands import enter
from ringzero.isa.x86.insn.x87_operands import (
    AT_OPERAND,
    BEFORE,
    C1,
    OVERFLOW,
    UNDERFLOW,
    copy_real,
    invalid_masked,
    is_empty,
    mark,
    note,
    pop,
    probe_store,
    push,
    push_indefinite,
    room,
    run_host,
    set_indefinite,
    set_register,
    settle,
    slot,
    stack_fault,
    stack_index,
    start,
    unmasked,
    write_indefinite,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import load, staged, store, u16, u32, u64

SDM = "Intel SDM vol. 2A"


@staged
def push_result(cpu: Cpu, body: str) -> None:
    """Push what the host's load instruction gives; a full stack is a stack fault."""
    if not is_empty(cpu, 7):
        stack_fault(cpu, u32(1))
        if invalid_masked(cpu):
            push_indefinite(cpu)
    else:
        status = run_host(cpu, body, f"fstpt {AT_OPERAND}")
        settle(cpu, status)
        push(cpu, room(cpu))


# --- loads -----------------------------------------------------------------


def _load_memory(mnemonic: str, form: str, host: str) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        value = m.read(0)
        note(m)
        cpu = m.cpu
        store(value.kind, room(cpu), value)
        push_result(cpu, f"{host} {AT_OPERAND}")

    enter(mnemonic, [form], semantic, SDM, fpu=True)


# Loads a value that may be refused: TOP starts at 0 and stays there if it is, and
# a constant takes its place on the host's stack.
_FRESH = f"fninit\nfldcw {Cpu.offset_of('fcw')}($1)\n"
_TOP = 0x3800
_LOADED = f"testl $${_TOP:#x}, %eax\njne 4f\nfld1\n4:\nfstpt {AT_OPERAND}"


@staged
def load_real(m: Operation, name: str) -> None:
    """FLD of a single or double, which may be a denormal or a signalling NaN."""
    start(m)
    value = m.read(0)
    note(m)
    cpu = m.cpu
    store(value.kind, room(cpu), value)
    body = f"{name} {AT_OPERAND}"
    if ((cpu.fcw & BEFORE) == BEFORE) | ~is_empty(cpu, 7):
        push_result(cpu, body)
    else:
        status = run_host(cpu, _FRESH + body, _LOADED)
        settle(cpu, status)
        if (status & _TOP) != 0:
            push(cpu, room(cpu))


@instruction("D9 /0:m : Md", name="fld", fpu=True)
def fld_single(m: Operation) -> None:
    "FLD m32fp (Intel SDM vol. 2A)."
    load_real(m, "flds")


@instruction("DD /0:m : Mq", name="fld", fpu=True)
def fld_double(m: Operation) -> None:
    "FLD m64fp (Intel SDM vol. 2A)."
    load_real(m, "fldl")


_load_memory("fild", "DF /0:m : Mw", "filds")
_load_memory("fild", "DB /0:m : Md", "fildl")
_load_memory("fild", "DF /5:m : Mq", "fildll")


@staged
def read_ten_bytes(m: Operation) -> None:
    """Read the 80-bit memory operand to `OPERAND`."""
    # In two parts, as processors do: the limit of the second matters when it is its turn.
    address = m.address(0, 8)
    mantissa = m.load(u64, address)
    m.address(0, 10)
    exponent = m.load(u16, address + 8)
    room_address = room(m.cpu)
    store(u64, room_address, mantissa)
    store(u16, room_address, exponent, 8)


@staged
def probe_ten_bytes(m: Operation) -> None:
    """Raise the fault that a store of 80 bits would."""
    # In two parts, as they are read.
    probe_store(m, 8)
    probe_store(m, 10)


@staged
def write_ten_bytes(m: Operation, source: Any) -> None:
    """Write the 80 bits at a host address to the memory operand."""
    probe_store(m, 8)
    address = m.address(0, 10)
    mantissa = load(u64, source)
    exponent = load(u16, source, 8)
    m.store(u64, address, mantissa)
    m.store(u16, address + 8, exponent)


@instruction("DB /5:m : M", name="fld", fpu=True)
def fld_extended(m: Operation) -> None:
    "FLD m80fp (Intel SDM vol. 2A)."
    start(m)
    read_ten_bytes(m)
    note(m)
    push_result(m.cpu, f"fldt {AT_OPERAND}")


@instruction("DF /4:m : M", fpu=True)
def fbld(m: Operation) -> None:
    "FBLD (Intel SDM vol. 2A)."
    start(m)
    read_ten_bytes(m)
    note(m)
    push_result(m.cpu, f"fbld {AT_OPERAND}")


def _constant(mnemonic: str, modrm: str) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        push_result(m.cpu, mnemonic)

    enter(mnemonic, [f"D9 ={modrm}"], semantic, SDM, fpu=True)


for _mnemonic, _modrm in {
    "fld1": "E8", "fldl2t": "E9", "fldl2e": "EA", "fldpi": "EB", "fldlg2": "EC",
    "fldln2": "ED", "fldz": "EE",
}.items():  # fmt: skip
    _constant(_mnemonic, _modrm)


# --- stores ----------------------------------------------------------------


# Exceptions that keep a result out of memory when they are unmasked.
_NO_STORE = BEFORE | OVERFLOW | UNDERFLOW


@staged
def store_result(m: Operation, host: str, kind: Any, indefinite: int, pops: bool) -> None:
    """Convert ST(0) by the host's instruction `host`, store it as a `kind`, then maybe pop.

    `indefinite` is what a masked stack underflow stores.
    """
    start(m)
    cpu = m.cpu
    if is_empty(cpu, 0):
        if invalid_masked(cpu):
            m.write(0, kind(indefinite))
            if pops:
                pop(cpu)
        else:
            probe_store(m, kind.size)
        stack_fault(cpu, u32(0))
    else:
        # FFREE: a popping conversion has left the value there if it was refused.
        status = run_host(cpu, f"fldt ($2)\n{host} {AT_OPERAND}", "ffree %st(0)", slot(cpu, 0))
        if unmasked(cpu, status, _NO_STORE):
            probe_store(m, kind.size)
            settle(cpu, status)
        else:
            m.write(0, load(kind, room(cpu)))
            settle(cpu, status)
            if pops:
                pop(cpu)
    note(m)


def _store_memory(
    mnemonic: str, form: str, host: str, kind: Any, indefinite: int, *, pops: bool
) -> None:
    def semantic(m: Operation) -> None:
        store_result(m, host, kind, indefinite, pops)

    enter(mnemonic, [form], semantic, SDM, fpu=True)


_SINGLE, _DOUBLE = 0xFFC0_0000, 0xFFF8_0000_0000_0000
_store_memory("fst", "D9 /2:m : Md", "fsts", u32, _SINGLE, pops=False)
_store_memory("fstp", "D9 /3:m : Md", "fsts", u32, _SINGLE, pops=True)
_store_memory("fst", "DD /2:m : Mq", "fstl", u64, _DOUBLE, pops=False)
_store_memory("fstp", "DD /3:m : Mq", "fstl", u64, _DOUBLE, pops=True)
_store_memory("fist", "DF /2:m : Mw", "fists", u16, 1 << 15, pops=False)
_store_memory("fistp", "DF /3:m : Mw", "fistps", u16, 1 << 15, pops=True)
_store_memory("fist", "DB /2:m : Md", "fistl", u32, 1 << 31, pops=False)
_store_memory("fistp", "DB /3:m : Md", "fistpl", u32, 1 << 31, pops=True)
_store_memory("fistp", "DF /7:m : Mq", "fistpll", u64, 1 << 63, pops=True)
_store_memory("fisttp", "DF /1:m : Mw", "fisttps", u16, 1 << 15, pops=True)
_store_memory("fisttp", "DB /1:m : Md", "fisttpl", u32, 1 << 31, pops=True)
_store_memory("fisttp", "DD /1:m : Mq", "fisttpll", u64, 1 << 63, pops=True)


@instruction("DB /7:m : M", name="fstp", fpu=True)
def fstp_extended(m: Operation) -> None:
    "FSTP m80fp (Intel SDM vol. 2A): any value as it is."
    start(m)
    cpu = m.cpu
    if is_empty(cpu, 0):
        if invalid_masked(cpu):
            write_indefinite(room(cpu))
            write_ten_bytes(m, room(cpu))
            pop(cpu)
        else:
            probe_ten_bytes(m)
        stack_fault(cpu, u32(0))
    else:
        write_ten_bytes(m, slot(cpu, 0))
        cpu.fsw = cpu.fsw & ~u16(C1)
        pop(cpu)
    note(m)


@instruction("DF /6:m : M", fpu=True)
def fbstp(m: Operation) -> None:
    "FBSTP (Intel SDM vol. 2A)."
    start(m)
    cpu = m.cpu
    if is_empty(cpu, 0):
        if invalid_masked(cpu):
            # The packed BCD indefinite has the bytes of the real one.
            write_indefinite(room(cpu))
            write_ten_bytes(m, room(cpu))
            pop(cpu)
        else:
            probe_ten_bytes(m)
        stack_fault(cpu, u32(0))
    else:
        status = run_host(cpu, f"fldt ($2)\nfbstp {AT_OPERAND}", "ffree %st(0)", slot(cpu, 0))
        if unmasked(cpu, status, _NO_STORE):
            probe_ten_bytes(m)
            settle(cpu, status)
        else:
            write_ten_bytes(m, room(cpu))
            settle(cpu, status)
            pop(cpu)
    note(m)


# --- between registers -----------------------------------------------------


@instruction("D9 /0:r : F", name="fld", fpu=True)
def fld_register(m: Operation) -> None:
    "FLD ST(i) (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    index = stack_index(m)
    if is_empty(cpu, index) | ~is_empty(cpu, 7):
        stack_fault(cpu, u32(~is_empty(cpu, index)))
        if invalid_masked(cpu):
            push_indefinite(cpu)
    else:
        cpu.fsw = cpu.fsw & ~u16(C1)
        push(cpu, slot(cpu, index))


@staged
def store_register(m: Operation, pops: bool) -> None:
    """FST, FSTP to ST(i)."""
    start(m)
    note(m)
    cpu = m.cpu
    index = stack_index(m)
    if is_empty(cpu, 0):
        stack_fault(cpu, u32(0))
        if invalid_masked(cpu):
            set_indefinite(cpu, index)
            if pops:
                pop(cpu)
    else:
        cpu.fsw = cpu.fsw & ~u16(C1)
        set_register(cpu, index, slot(cpu, 0))
        if pops:
            pop(cpu)


@instruction("DD /2:r : F", name="fst", fpu=True)
def fst_register(m: Operation) -> None:
    "FST ST(i) (Intel SDM vol. 2A)."
    store_register(m, False)


@instruction("DD /3:r : F", "DF /2:r : F", "DF /3:r : F", name="fstp", fpu=True)
def fstp_register(m: Operation) -> None:
    "FSTP ST(i) and its aliases (Intel SDM vol. 2A; AMD APM vol. 3, table A-15)."
    store_register(m, True)


@instruction("D9 /3:r : F", fpu=True)
def fstpnce(m: Operation) -> None:
    "FSTP ST(i) without a stack fault: an empty ST(0) is only popped (AMD APM vol. 3, A-15)."
    cpu = m.cpu
    if is_empty(cpu, 0):
        start(m)
        note(m)
        cpu.fsw = cpu.fsw & ~u16(C1)
        pop(cpu)
    else:
        store_register(m, True)


@instruction("D9 /1:r : F", "DD /1:r : F", "DF /1:r : F", fpu=True)
def fxch(m: Operation) -> None:
    "FXCH and its aliases (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    index = stack_index(m)
    fault = is_empty(cpu, 0) | is_empty(cpu, index)
    if fault:
        stack_fault(cpu, u32(0))
        if invalid_masked(cpu):
            if is_empty(cpu, 0):
                set_indefinite(cpu, 0)
            if is_empty(cpu, index):
                set_indefinite(cpu, index)
            exchange(cpu, index)
    else:
        cpu.fsw = cpu.fsw & ~u16(C1)
        exchange(cpu, index)


@staged
def exchange(cpu: Cpu, index: Any) -> None:
    """Exchange the contents of ST(0) and ST(index)."""
    copy_real(room(cpu), slot(cpu, 0))
    copy_real(slot(cpu, 0), slot(cpu, index))
    copy_real(slot(cpu, index), room(cpu))


def _conditional_move(mnemonic: str, form: str, mask: int, *, wanted: bool) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        cpu = m.cpu
        index = stack_index(m)
        if is_empty(cpu, 0) | is_empty(cpu, index):
            stack_fault(cpu, u32(0))
            if invalid_masked(cpu):
                set_indefinite(cpu, 0)
        elif ((m.get_status() & mask) != 0) == wanted:
            copy_real(slot(cpu, 0), slot(cpu, index))

    enter(mnemonic, [form], semantic, SDM, fpu=True)


for _digit, (_suffix, _mask) in enumerate((("b", CF), ("e", ZF), ("be", CF | ZF), ("u", PF))):
    _conditional_move(f"fcmov{_suffix}", f"DA /{_digit}:r : F", _mask, wanted=True)
    _conditional_move(f"fcmovn{_suffix}", f"DB /{_digit}:r : F", _mask, wanted=False)


# --- the stack -------------------------------------------------------------


@instruction("DD /0:r : F", fpu=True)
def ffree(m: Operation) -> None:
    "FFREE (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    mark(cpu, stack_index(m), full=False)
    cpu.fsw = cpu.fsw & ~u16(C1)


@instruction("DF /0:r : F", fpu=True)
def ffreep(m: Operation) -> None:
    "FFREEP (AMD APM vol. 3, table A-15): FFREE, then pop."
    start(m)
    note(m)
    cpu = m.cpu
    mark(cpu, stack_index(m), full=False)
    cpu.fsw = cpu.fsw & ~u16(C1)
    pop(cpu)


@instruction("D9 =F6", fpu=True)
def fdecstp(m: Operation) -> None:
    "FDECSTP (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    cpu.ftop = (cpu.ftop - 1) & 7
    cpu.fsw = cpu.fsw & ~u16(C1)


@instruction("D9 =F7", fpu=True)
def fincstp(m: Operation) -> None:
    "FINCSTP (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    cpu.ftop = (cpu.ftop + 1) & 7
    cpu.fsw = cpu.fsw & ~u16(C1)
