"""x87 arithmetic, comparison and transcendental instructions.

Intel SDM vol. 1, sections 8.3.5 to 8.3.7, and vol. 2A.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, PF, ZF, Cpu
from ringzero.isa.x86.insn.sse_operands import enter
from ringzero.isa.x86.insn.x87_operands import (
    AT_OPERAND,
    AT_SECOND,
    BEFORE,
    C0,
    C1,
    C2,
    C3,
    CONDITIONS,
    SECOND,
    invalid_masked,
    is_empty,
    note,
    pop,
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
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import load, staged, store, u16, u32, u64

SDM = "Intel SDM vol. 2A"
# Condition codes of a comparison that has no answer.
_UNORDERED = C0 | C2 | C3

# The host's instruction on an operand in memory, by the operand's encoding.
MEMORY_KINDS = {"D8": ("d", "s"), "DC": ("q", "l"), "DA": ("d", "l"), "DE": ("w", "s")}
INTEGER_OPCODES = ("DA", "DE")
# ModRM digits of the memory forms and of D8's register forms.
ARITHMETIC = {"fadd": 0, "fmul": 1, "fsub": 4, "fsubr": 5, "fdiv": 6, "fdivr": 7}
# With ST(i) as destination the encodings of the reversed forms change places.
TO_REGISTER = {"fadd": 0, "fmul": 1, "fsubr": 4, "fsub": 5, "fdivr": 6, "fdiv": 7}


@staged
def underflow(cpu: Cpu, conditions: int) -> None:
    """Report an empty operand; instructions that use C2 as "incomplete" clear it."""
    stack_fault(cpu, u32(0))
    if conditions & C2:
        cpu.fsw = cpu.fsw & ~u16(C2)


@staged
def no_remainder(cpu: Cpu, status: Any) -> Any:
    """Return whether the host's remainder is a NaN, or was not computed."""
    special = (load(u16, room(cpu), 8) & 0x7FFF) == 0x7FFF
    return special | unmasked(cpu, status, BEFORE)


@staged
def operate(
    cpu: Cpu, name: str, dest: Any, source: Any, pops: bool = False, conditions: int = C1
) -> None:
    """ST(dest) = ST(dest) `name` ST(source)."""
    if is_empty(cpu, dest) | is_empty(cpu, source):
        underflow(cpu, conditions)
        if invalid_masked(cpu):
            set_indefinite(cpu, dest)
            if pops:
                pop(cpu)
    else:
        status = run_host(
            cpu,
            f"fldt ($3)\nfldt ($2)\n{name}",
            f"fstpt {AT_OPERAND}\nfstp %st(0)",
            slot(cpu, dest),
            slot(cpu, source),
        )
        # Without a remainder there are no quotient bits: C0 and C3 stay.
        if conditions == CONDITIONS and no_remainder(cpu, status):
            settle(cpu, status, C1 | C2)
        else:
            settle(cpu, status, conditions)
        if not unmasked(cpu, status, BEFORE):
            set_register(cpu, dest, room(cpu))
            if pops:
                pop(cpu)


def _register_forms(name: str) -> None:
    host = f"{name} %st(1), %st"

    def to_top(m: Operation) -> None:
        start(m)
        note(m)
        operate(m.cpu, host, u32(0), stack_index(m))

    def to_register(m: Operation) -> None:
        start(m)
        note(m)
        operate(m.cpu, host, stack_index(m), u32(0))

    def to_register_pop(m: Operation) -> None:
        start(m)
        note(m)
        operate(m.cpu, host, stack_index(m), u32(0), pops=True)

    digit = TO_REGISTER[name]
    enter(name, [f"D8 /{ARITHMETIC[name]}:r : F"], to_top, SDM, fpu=True)
    enter(name, [f"DC /{digit}:r : F"], to_register, SDM, fpu=True)
    enter(name + "p", [f"DE /{digit}:r : F"], to_register_pop, SDM, fpu=True)


def _memory_form(name: str, opcode: str) -> None:
    size, suffix = MEMORY_KINDS[opcode]
    host = f"fi{name[1:]}{suffix}" if opcode in INTEGER_OPCODES else name + suffix

    def semantic(m: Operation) -> None:
        start(m)
        value = m.read(0)
        note(m)
        cpu = m.cpu
        if is_empty(cpu, 0):
            stack_fault(cpu, u32(0))
            if invalid_masked(cpu):
                set_indefinite(cpu, 0)
        else:
            store(value.kind, room(cpu), value)
            body = f"fldt ($2)\n{host} {AT_OPERAND}"
            status = run_host(cpu, body, f"fstpt {AT_OPERAND}", slot(cpu, 0))
            settle(cpu, status)
            if not unmasked(cpu, status, BEFORE):
                set_register(cpu, 0, room(cpu))

    title = f"fi{name[1:]}" if opcode in INTEGER_OPCODES else name
    enter(title, [f"{opcode} /{ARITHMETIC[name]}:m : M{size}"], semantic, SDM, fpu=True)


for _name in ARITHMETIC:
    _register_forms(_name)
    for _opcode in MEMORY_KINDS:
        _memory_form(_name, _opcode)


def _with_second(name: str, modrm: str, conditions: int) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        operate(m.cpu, name, u32(0), u32(1), conditions=conditions)

    enter(name, [f"D9 ={modrm}"], semantic, SDM, fpu=True)


_with_second("fscale", "FD", C1)
_with_second("fprem", "F8", CONDITIONS)
_with_second("fprem1", "F5", CONDITIONS)


def _unary(name: str, modrm: str, conditions: int) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        cpu = m.cpu
        if is_empty(cpu, 0):
            underflow(cpu, conditions)
            if invalid_masked(cpu):
                set_indefinite(cpu, 0)
        else:
            status = run_host(cpu, f"fldt ($2)\n{name}", f"fstpt {AT_OPERAND}", slot(cpu, 0))
            settle(cpu, status, conditions)
            if not unmasked(cpu, status, BEFORE):
                set_register(cpu, 0, room(cpu))

    enter(name, [f"D9 ={modrm}"], semantic, SDM, fpu=True)


for _name, _modrm, _conditions in (
    ("fchs", "E0", C1), ("fabs", "E1", C1), ("f2xm1", "F0", C1), ("fsqrt", "FA", C1),
    ("frndint", "FC", C1), ("fsin", "FE", C1 | C2), ("fcos", "FF", C1 | C2),
):  # fmt: skip
    _unary(_name, _modrm, _conditions)

# The host's TOP after an operation that may push or pop tells whether it did:
# it starts at 0, and bit 11 of the status word is TOP's lowest.
_FRESH = f"fninit\nfldcw {Cpu.offset_of('fcw')}($1)\n"
_TOP_ODD = 0x800


def _push_form(name: str, modrm: str, conditions: int) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        cpu = m.cpu
        if is_empty(cpu, 0):
            underflow(cpu, conditions)
            if invalid_masked(cpu):
                set_indefinite(cpu, 0)
                push_indefinite(cpu)
        elif not is_empty(cpu, 7):
            underflow(cpu, conditions)
            cpu.fsw = cpu.fsw | C1
            if invalid_masked(cpu):
                set_indefinite(cpu, 0)
                push_indefinite(cpu)
        else:
            status = run_host(
                cpu,
                f"{_FRESH}fldt ($2)\n{name}",
                f"fstpt {AT_OPERAND}\ntestl $${_TOP_ODD:#x}, %eax\njne 4f\nfstpt {AT_SECOND}\n4:",
                slot(cpu, 0),
            )
            settle(cpu, status, conditions)
            if (status & _TOP_ODD) == 0:
                set_register(cpu, 0, room(cpu, SECOND))
                push(cpu, room(cpu))
            elif not unmasked(cpu, status, BEFORE):
                set_register(cpu, 0, room(cpu))

    enter(name, [f"D9 ={modrm}"], semantic, SDM, fpu=True)


_push_form("fptan", "F2", C1 | C2)
_push_form("fsincos", "FB", C1 | C2)
_push_form("fxtract", "F4", C1)


def _pop_form(name: str, modrm: str) -> None:
    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        cpu = m.cpu
        if is_empty(cpu, 0) | is_empty(cpu, 1):
            stack_fault(cpu, u32(0))
            if invalid_masked(cpu):
                set_indefinite(cpu, 1)
                pop(cpu)
        else:
            status = run_host(
                cpu,
                f"{_FRESH}fldt ($3)\nfldt ($2)\n{name}",
                f"fstpt {AT_OPERAND}\ntestl $${_TOP_ODD:#x}, %eax\njne 4f\nfstp %st(0)\n4:",
                slot(cpu, 0),
                slot(cpu, 1),
            )
            settle(cpu, status)
            if (status & _TOP_ODD) != 0:
                set_register(cpu, 1, room(cpu))
                pop(cpu)

    enter(name, [f"D9 ={modrm}"], semantic, SDM, fpu=True)


_pop_form("fyl2x", "F1")
_pop_form("fpatan", "F3")
_pop_form("fyl2xp1", "F9")


# --- comparison ------------------------------------------------------------


@staged
def drop(cpu: Cpu, pops: int) -> None:
    """Pop `pops` registers."""
    for _ in range(pops):
        pop(cpu)


@staged
def unordered(cpu: Cpu, pops: int) -> None:
    """Answer a comparison with an empty register: a stack fault, and "unordered"."""
    stack_fault(cpu, u32(0))
    cpu.fsw = cpu.fsw | _UNORDERED
    if invalid_masked(cpu):
        drop(cpu, pops)


@staged
def compared(cpu: Cpu, status: Any, pops: int) -> None:
    """Take a comparison's condition codes and pop, unless an unmasked exception forbids it."""
    settle(cpu, status, CONDITIONS)
    if not unmasked(cpu, status, BEFORE):
        drop(cpu, pops)


@staged
def compare_registers(m: Operation, name: str, index: Any, pops: int) -> None:
    """Compare ST(0) with ST(index) into the condition codes."""
    start(m)
    note(m)
    cpu = m.cpu
    if is_empty(cpu, 0) | is_empty(cpu, index):
        unordered(cpu, pops)
    else:
        body = f"fldt ($3)\nfldt ($2)\n{name} %st(1)"
        after = "fstp %st(0)\nfstp %st(0)"
        compared(cpu, run_host(cpu, body, after, slot(cpu, 0), slot(cpu, index)), pops)


def _compare_register(name: str, pops: int, *forms: str) -> None:
    host = name.rstrip("p")

    def semantic(m: Operation) -> None:
        compare_registers(m, host, stack_index(m), pops)

    enter(name, list(forms), semantic, SDM, fpu=True)


_compare_register("fcom", 0, "D8 /2:r : F", "DC /2:r : F")
_compare_register("fcomp", 1, "D8 /3:r : F", "DC /3:r : F", "DE /2:r : F")
_compare_register("fucom", 0, "DD /4:r : F")
_compare_register("fucomp", 1, "DD /5:r : F")


@instruction("DE =D9", fpu=True)
def fcompp(m: Operation) -> None:
    "FCOMPP (Intel SDM vol. 2A)."
    compare_registers(m, "fcom", u32(1), 2)


@instruction("DA =E9", fpu=True)
def fucompp(m: Operation) -> None:
    "FUCOMPP (Intel SDM vol. 2A)."
    compare_registers(m, "fucom", u32(1), 2)


def _compare_memory(opcode: str, digit: int, pops: int) -> None:
    size, suffix = MEMORY_KINDS[opcode]
    name = "ficom" if opcode in INTEGER_OPCODES else "fcom"

    def semantic(m: Operation) -> None:
        start(m)
        value = m.read(0)
        note(m)
        cpu = m.cpu
        if is_empty(cpu, 0):
            unordered(cpu, pops)
        else:
            store(value.kind, room(cpu), value)
            body = f"fldt ($2)\n{name}{suffix} {AT_OPERAND}"
            compared(cpu, run_host(cpu, body, "fstp %st(0)", slot(cpu, 0)), pops)

    title = name + "p" * pops
    enter(title, [f"{opcode} /{digit}:m : M{size}"], semantic, SDM, fpu=True)


for _opcode in MEMORY_KINDS:
    _compare_memory(_opcode, 2, 0)
    _compare_memory(_opcode, 3, 1)


def _compare_eflags(name: str, form: str, pops: int) -> None:
    host = name.rstrip("p")

    def semantic(m: Operation) -> None:
        start(m)
        note(m)
        cpu = m.cpu
        index = stack_index(m)
        if is_empty(cpu, 0) | is_empty(cpu, index):
            stack_fault(cpu, u32(0))
            m.set_status(u64(ZF | PF | CF), ARITHMETIC_FLAGS)
            if invalid_masked(cpu):
                drop(cpu, pops)
        else:
            status = run_host(
                cpu,
                f"fldt ($3)\nfldt ($2)\n{host} %st(1), %st",
                "fstp %st(0)\nfstp %st(0)",
                slot(cpu, 0),
                slot(cpu, index),
                flags=True,
            )
            # The condition codes stay, C1 too.
            settle(cpu, status, 0)
            m.set_status(u64(status >> 16) & (ZF | PF | CF), ARITHMETIC_FLAGS)
            if not unmasked(cpu, status, BEFORE):
                drop(cpu, pops)

    enter(name, [form], semantic, SDM, fpu=True)


_compare_eflags("fcomi", "DB /6:r : F", 0)
_compare_eflags("fucomi", "DB /5:r : F", 0)
_compare_eflags("fcomip", "DF /6:r : F", 1)
_compare_eflags("fucomip", "DF /5:r : F", 1)


@instruction("D9 =E4", fpu=True)
def ftst(m: Operation) -> None:
    "FTST (Intel SDM vol. 2A)."
    start(m)
    note(m)
    cpu = m.cpu
    if is_empty(cpu, 0):
        unordered(cpu, 0)
    else:
        compared(cpu, run_host(cpu, "fldt ($2)\nftst", "fstp %st(0)", slot(cpu, 0)), 0)


@instruction("D9 =E5", fpu=True)
def fxam(m: Operation) -> None:
    "FXAM (Intel SDM vol. 2A): classify ST(0); an empty one is C3 and C0."
    start(m)
    note(m)
    cpu = m.cpu
    status = run_host(cpu, "fldt ($2)\nfxam", "fstp %st(0)", slot(cpu, 0))
    conditions = u16(status) & CONDITIONS
    if is_empty(cpu, 0):
        conditions = (conditions & C1) | (C3 | C0)
    cpu.fsw = (cpu.fsw & ~u16(CONDITIONS)) | conditions
