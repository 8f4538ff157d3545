"""IN, OUT, INS, OUTS (Intel SDM vol. 2, each name; permissions: vol. 1, 18.5).

Ports are Python's: each access is an exit, but for those of `ringzero.isa.x86.ports`.
A repeated INS or OUTS leaves the instruction after every element, with RIP still on
it, so that interrupts come between the elements.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    ATTR_TYPE,
    CR4_DE,
    DF,
    EXIT_PORT_READ,
    EXIT_PORT_WRITE,
    IOPL_SHIFT,
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
    TR,
    Cpu,
    Insn,
)
from ringzero.isa.x86.insn.string import destination_address, set_address_register, source_address
from ringzero.isa.x86.ports import KNOWN, gather, shadow_of
from ringzero.isa.x86.privileged.breakpoints import DR7_ENABLED, match_port
from ringzero.isa.x86.privileged.descriptors import TSS32_BUSY, protected_mode
from ringzero.isa.x86.privileged.faults import external, raise_gp0
from ringzero.isa.x86.privileged.mmu import probe_write, read_memory, read_system, write_memory
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, select, staged, u16, u32, u64, unsigned

# Offset in a 32 or 64-bit TSS of the offset of the I/O permission bitmap.
TSS_IO_MAP = 0x66


@native(inline="never")
def check_port(cpu: Cpu, port: u32, width: u32) -> None:
    """#GP(0) unless IOPL or the TSS's bitmap allows `width` bytes at `port`."""
    if not protected_mode(cpu) or cpu.cpl <= u32(cpu.rflags >> IOPL_SHIFT) & 3:
        return
    limit = cpu.seg[TR].limit
    base = cpu.seg[TR].base
    if cpu.seg[TR].attributes & ATTR_TYPE != TSS32_BUSY or limit < TSS_IO_MAP + 1:
        raise_gp0(cpu)
    offset = u32(read_system(cpu, u16, base + TSS_IO_MAP)) + (port >> 3)
    # Two bytes are always read, so the map is followed by one more (SDM vol. 1, 18.5.2).
    if offset + 1 > limit:
        raise_gp0(cpu)
    allowed = u32(read_system(cpu, u16, base + u64(offset))) >> (port & 7)
    if allowed & ((u32(1) << width) - 1) != 0:
        raise_gp0(cpu)


@native(inline="never")
def port_in(cpu: Cpu, port: u32, width: u32) -> u64:
    """Read 1, 2 or 4 bytes from a port, permissions checked."""
    check_port(cpu, port, width)
    value = external(cpu, EXIT_PORT_READ, u64(port), width, 0)
    note_access(cpu, port, width)
    return value


@native(inline="never")
def port_in_once(cpu: Cpu, port: u32, width: u32) -> u64:
    """Do as `port_in`, for an instruction without any other access outside."""
    check_port(cpu, port, width)
    shadow = shadow_of(cpu, port, width)
    value = u64(shadow & 0xFF)
    if shadow & KNOWN == 0:
        value = external(cpu, EXIT_PORT_READ, u64(port), width, 0)
    note_access(cpu, port, width)
    return value


@native(inline="never")
def port_out(cpu: Cpu, port: u32, width: u32, value: u64) -> None:
    """Write 1, 2 or 4 bytes to a port, permissions checked."""
    check_port(cpu, port, width)
    if gather(cpu, port, width, value) == 0:
        external(cpu, EXIT_PORT_WRITE, u64(port), width, value)
    note_access(cpu, port, width)


@staged
def note_access(cpu: Any, port: Any, width: Any) -> None:
    """Look for I/O breakpoints."""
    if cpu.cr4 & CR4_DE != 0 and cpu.dr[7] & DR7_ENABLED != 0:
        match_port(cpu, u64(port), u64(width))


@staged
def _port(m: Operation, n: int) -> Any:
    """The port that operand `n` names: an immediate byte, or DX."""
    return u32(m.read(n)) & 0xFF


@staged
def _input(m: Operation, port: Any) -> None:
    """Read a port of the operation's width (at most 32 bits) into AL, AX or EAX."""
    kind = unsigned(min(m.size, 32))
    m.set(RAX, kind(port_in_once(m.cpu, port, kind.size)))


@staged
def _output(m: Operation, port: Any) -> None:
    kind = unsigned(min(m.size, 32))
    port_out(m.cpu, port, kind.size, u64(m.get(RAX, kind)))


@instruction("E4 : AL Ib", "E5 : rAX Ib", name="in")
def in_immediate(m: Operation) -> None:
    """IN from a port given by a byte."""
    _input(m, _port(m, 1))


@instruction("EC : AL DX", "ED : rAX DX", name="in")
def in_dx(m: Operation) -> None:
    """IN from the port in DX."""
    _input(m, m.get(RDX, u32) & 0xFFFF)


@instruction("E6 : Ib AL", "E7 : Ib rAX", name="out")
def out_immediate(m: Operation) -> None:
    """OUT to a port given by a byte."""
    _output(m, _port(m, 0))


@instruction("EE : DX AL", "EF : DX rAX", name="out")
def out_dx(m: Operation) -> None:
    """OUT to the port in DX."""
    _output(m, m.get(RDX, u32) & 0xFFFF)


@staged
def _finish(cpu: Any, insn: Any, register: int, size: int) -> None:
    """Commit one element; stay on the instruction while a repetition has more."""
    step = select((cpu.rflags & DF) != 0, u64(0) - size, u64(size))
    set_address_register(cpu, insn, register, cpu.regs[register] + step)
    if insn.rep != 0:
        count = (cpu.regs[RCX] - 1) & insn.address_mask
        set_address_register(cpu, insn, RCX, count)
        if count != 0:
            cpu.next_rip = cpu.rip
    cpu.external_done = 0
    cpu.external_cursor = 0


def _make_ins(size: int) -> Any:
    T = unsigned(size * 8)

    def ins_element(cpu: Cpu, insn: Insn) -> None:
        if insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            port = u32(cpu.regs[RDX]) & 0xFFFF
            check_port(cpu, port, size)
            target = destination_address(cpu, insn, size, 1)
            # A port must not be read for memory that cannot take the value.
            probe_write(cpu, target, size)
            write_memory(cpu, target, T(port_in(cpu, port, size)))
            _finish(cpu, insn, RDI, size)

    ins_element.__name__ = ins_element.__qualname__ = f"ins{size}"
    return native(inline="never")(ins_element)


def _make_outs(size: int) -> Any:
    T = unsigned(size * 8)

    def outs_element(cpu: Cpu, insn: Insn) -> None:
        if insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            port = u32(cpu.regs[RDX]) & 0xFFFF
            check_port(cpu, port, size)
            value = read_memory(cpu, T, source_address(cpu, insn, size))
            port_out(cpu, port, size, u64(value))
            _finish(cpu, insn, RSI, size)

    outs_element.__name__ = outs_element.__qualname__ = f"outs{size}"
    return native(inline="never")(outs_element)


_INS = {n: _make_ins(n) for n in (1, 2, 4)}
_OUTS = {n: _make_outs(n) for n in (1, 2, 4)}


def _enter(name: str, opcode: int, natives: dict[int, Any]) -> None:
    def byte_form(m: Operation) -> None:
        """INS or OUTS of a byte."""
        natives[1](m.cpu, m.insn)

    def sized_form(m: Operation) -> None:
        """INS or OUTS of a word or a doubleword; REX.W changes nothing."""
        natives[min(m.size, 32) // 8](m.cpu, m.insn)

    instruction(f"{opcode:02X}", name=name + "b", ends=True)(byte_form)
    instruction(f"{opcode + 1:02X}", name=name, sized=True, ends=True)(sized_form)


_enter("ins", 0x6C, _INS)
_enter("outs", 0x6E, _OUTS)
