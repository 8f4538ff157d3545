"""What the toy's instructions do, and its interpreter. A word is opcode, rd | ra << 4, imm16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringzero.isa.execution import (
    EXIT_INTERRUPT,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_NONE,
    EXIT_SHUTDOWN,
    LEAVE_EXIT,
    LEAVE_FAULT,
    REQUEST_INTERRUPT,
    Execution,
    abandon,
    ask_outside,
    run_steps,
    serve_requests,
    stops_at,
)
from ringzero.native import boolean, i16, load, native, read_host_tsc, staged, store, u8, u32, u64
from tests.toy.cpu import ACCESS, FETCH, INTERRUPT, TRAP, UNKNOWN, Cpu

# Mnemonic of each opcode: 0 is no instruction.
MNEMONICS: dict[str, int] = {}
_SEMANTICS: dict[int, Any] = {}


def insn(function: Callable[..., None]) -> Callable[..., None]:
    """Give the next opcode to a function of (cpu, rd, ra, imm); its name is the mnemonic's."""
    number = len(MNEMONICS) + 1
    MNEMONICS[function.__name__.strip("_")] = number
    _SEMANTICS[number] = staged(function)
    return function


# ---- leaving an instruction ---------------------------------------------------


@native(noreturn=True)
def leave(cpu: Cpu, code: u32) -> None:
    abandon(cpu, code)


@native(noreturn=True)
def fault(cpu: Cpu, cause: u32) -> None:
    cpu.cause = u64(cause)
    leave(cpu, LEAVE_FAULT)


@native(noreturn=True)
def refuse(cpu: Cpu) -> None:
    fault(cpu, ACCESS)


@native
def enter_handler(cpu: Cpu) -> None:
    cpu.epc = cpu.pc
    cpu.pc = cpu.vector
    cpu.enabled = 0


@native
def after_leave(cpu: Cpu) -> u32:
    if cpu.leave_code == LEAVE_EXIT:
        return u32(1)
    cpu.external_done = 0
    if cpu.vector == 0:
        cpu.exit_kind = EXIT_SHUTDOWN
        return u32(1)
    enter_handler(cpu)
    return u32(0)


# ---- memory -------------------------------------------------------------------


@native(inline="never")
def external(cpu: Cpu, kind: u32, address: u64, width: u32, value: u64) -> u64:
    return ask_outside(cpu, kind, address, width, value, refuse, leave)


@staged
def read(cpu: Any, kind: Any, address: Any) -> Any:
    if address <= cpu.ram_end - kind.size:
        return u64(load(kind, cpu.ram + address))
    return external(cpu, u32(EXIT_MMIO_READ), address, u32(kind.size), u64(0))


@staged
def write(cpu: Any, kind: Any, address: Any, value: Any) -> None:
    if address <= cpu.ram_end - kind.size:
        store(kind, cpu.ram + address, kind(value))
    else:
        external(cpu, u32(EXIT_MMIO_WRITE), address, u32(kind.size), value)


# ---- instructions -------------------------------------------------------------


@insn
def halt(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.halted = 1


@insn
def li(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = imm


@insn
def lui(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = (cpu.regs[rd] << 16) | (imm & 0xFFFF)


@insn
def add(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = cpu.regs[rd] + cpu.regs[ra] + imm


@insn
def mul(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = cpu.regs[rd] * cpu.regs[ra]


@insn
def ld(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = read(cpu, u64, cpu.regs[ra] + imm)


@insn
def st(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    write(cpu, u64, cpu.regs[ra] + imm, cpu.regs[rd])


@insn
def lb(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = read(cpu, u8, cpu.regs[ra] + imm)


@insn
def sb(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    write(cpu, u8, cpu.regs[ra] + imm, cpu.regs[rd])


@insn
def bnz(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    if cpu.regs[rd] != 0:
        cpu.next_pc = cpu.pc + (imm << 2)


@insn
def trap(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    fault(cpu, u32(TRAP))


@insn
def ret(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.next_pc = cpu.epc + imm
    cpu.enabled = 1


@insn
def vec(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.vector = cpu.regs[rd]


@insn
def why(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.regs[rd] = cpu.cause


@insn
def ei(cpu: Any, rd: Any, ra: Any, imm: Any) -> None:
    cpu.enabled = u32(imm & 1)


# ---- the interpreter ----------------------------------------------------------


@native(inline="never")
def step(cpu: Cpu) -> None:
    cpu.external_cursor = 0
    pc = cpu.pc
    if (pc & 3) != 0 or pc > cpu.ram_end - 4:
        fault(cpu, FETCH)
    word = load(u32, cpu.ram + pc)
    cpu.next_pc = pc + 4
    cpu.budget -= 1
    opcode = word & 0xFF
    rd = u64((word >> 8) & 7)
    ra = u64((word >> 12) & 7)
    imm = u64(i16(word >> 16))
    for number, execute in _SEMANTICS.items():
        if opcode == number:
            execute(cpu, rd, ra, imm)
            cpu.pc = cpu.next_pc
            cpu.external_done = 0
            return
    fault(cpu, UNKNOWN)


@native
def begin(cpu: Cpu) -> None:
    if cpu.refuse != 0:
        cpu.refuse = 0
        refuse(cpu)
    if cpu.external_done != 0:
        step(cpu)
    if cpu.inject != 0:
        cpu.cause = u64(cpu.inject - 1 + INTERRUPT)
        cpu.inject = 0
        cpu.halted = 0
        cpu.count_interrupts += 1
        enter_handler(cpu)


@staged
def flush(cpu: Any) -> None:
    """There are no translated addresses."""


@staged
def accept(cpu: Any, requests: Any) -> Any:
    if (requests & REQUEST_INTERRUPT) != 0 and cpu.enabled != 0:
        return u32(EXIT_INTERRUPT)
    return u32(EXIT_NONE)


@staged
def here(cpu: Any) -> Any:
    return cpu.pc


@native(inline="never")
def attend(cpu: Cpu) -> u32:
    return serve_requests(cpu, flush, accept, here)


@native(inline="never")
def stop_here(cpu: Cpu) -> boolean:
    return stops_at(cpu, cpu.pc)


@native
def interpret(cpu: Cpu) -> u32:
    return run_steps(cpu, begin, attend, stop_here, step)


@native
def host_counter(cpu: Cpu) -> u64:
    return read_host_tsc()


EXECUTION = Execution(Cpu, after_leave)
