"""String instructions, with REP (Intel SDM vol. 2: MOVS, STOS, LODS, CMPS, SCAS).

REP runs page by page, with the host's memcpy and memset unless the two overlap, and
element by element where it cannot (devices, backwards). After each
element or page the registers are up to date, so faults and interrupts are
precise; after `YIELD` elements the instruction is left and begun again, so
that interrupts are not kept waiting.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import PAGE_MASK
from ringzero.isa.x86 import ccops
from ringzero.isa.x86.cpu import (
    DF,
    ES,
    MODE_64,
    RAX,
    RCX,
    RDI,
    RSI,
    TF,
    Cpu,
    Insn,
)
from ringzero.isa.x86.privileged.alignment import alignment_checked
from ringzero.isa.x86.privileged.breakpoints import stay_on_instruction
from ringzero.isa.x86.privileged.descriptors import segment_address
from ringzero.isa.x86.privileged.exclusive import end_exclusive
from ringzero.isa.x86.privileged.mmu import (
    probe_read_page,
    probe_write_bulk,
    read_memory,
    write_memory,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import (
    address_of,
    copy_memory,
    fill_memory,
    load,
    native,
    select,
    staged,
    store,
    u8,
    u64,
    unsigned,
)

# About 20 us of work between looks at pending interrupts.
YIELD = 1 << 16


@staged
def source_address(cpu: Any, insn: Any, size: int) -> Any:
    """Linear address of `size` bytes at DS:rSI, with segment override and address size."""
    offset = cpu.regs[RSI] & insn.address_mask
    if cpu.mode == MODE_64:
        return offset + load(u64, address_of(cpu) + u64(insn.segment))
    return segment_address(cpu, insn.segment, offset, size, 0)


@staged
def destination_address(cpu: Any, insn: Any, size: int, write: int) -> Any:
    """Linear address of `size` bytes at ES:rDI, with address size."""
    offset = cpu.regs[RDI] & insn.address_mask
    if cpu.mode == MODE_64:
        return offset
    return segment_address(cpu, Cpu.offset_of("seg", ES), offset, size, write)


@staged
def _in_bulk(cpu: Any, insn: Any) -> Any:
    """Whether a repetition may go page by page: nothing has to look at its elements."""
    whole = cpu.mode == MODE_64 or cpu.segmented == 0
    stepwise = (cpu.rflags & TF) != 0 or alignment_checked(cpu)
    return insn.rep != 0 and whole and not stepwise


@staged
def _allowance(cpu: Any) -> Any:
    """How many elements may be done at once; one while single-stepping."""
    return select((cpu.rflags & TF) != 0, u64(1), u64(YIELD))


@staged
def _yield(cpu: Any, insn: Any) -> None:
    """Stay on the instruction when the count is not spent."""
    if (cpu.regs[RCX] & insn.address_mask) != 0:
        cpu.next_rip = cpu.rip
        stay_on_instruction(cpu)


@staged
def set_address_register(cpu: Any, insn: Any, register: int, value: Any) -> None:
    """Set rSI, rDI or rCX by the rules of the address size."""
    mask = insn.address_mask
    kept = select(mask == 0xFFFF, cpu.regs[register] & ~u64(0xFFFF), u64(0))
    cpu.regs[register] = kept | (value & mask)


@staged
def _advance(cpu: Any, insn: Any, register: int, amount: Any) -> None:
    set_address_register(cpu, insn, register, cpu.regs[register] + amount)


@staged
def _finish(cpu: Any, insn: Any, done: Any) -> None:
    """Account for `done` elements: the count register, the outside accesses."""
    if insn.rep != 0:
        set_address_register(cpu, insn, RCX, (cpu.regs[RCX] & insn.address_mask) - done)
    cpu.external_done = 0
    cpu.external_cursor = 0


@staged
def _step(cpu: Any, size: int) -> Any:
    return select((cpu.rflags & DF) != 0, u64(0) - size, u64(size))


@staged
def _room(va: Any, size: int) -> Any:
    """How many whole elements lie between `va` and the end of its page."""
    return (0x1000 - (va & PAGE_MASK)) // size


@staged
def _smaller(a: Any, b: Any) -> Any:
    return select(a < b, a, b)


def _make_movs(size: int) -> Any:
    T = unsigned(size * 8)

    def movs_elements(cpu: Cpu, insn: Insn) -> None:
        step = _step(cpu, size)
        left = _allowance(cpu)
        while insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            source = source_address(cpu, insn, size)
            target = destination_address(cpu, insn, size, 1)
            done = u64(0)
            if _in_bulk(cpu, insn) and step == size:
                count = cpu.regs[RCX] & insn.address_mask
                count = _smaller(count, _smaller(_room(source, size), _room(target, size)))
                host = u64(0)
                if count > 1:
                    # Found before the target, whose translation may take the place of this one.
                    host = probe_read_page(cpu, source)
                if host != 0:
                    to = probe_write_bulk(cpu, target, count * size)
                    length = count * size
                    if to != 0:
                        if to + length <= host or host + length <= to:
                            copy_memory(to, host, length)
                        else:
                            # What is copied may be copied again, as compression has it.
                            for i in range(count):
                                store(T, to + i * size, load(T, host + i * size))
                        done = count
                    end_exclusive(cpu)
            if done == 0:
                write_memory(cpu, target, read_memory(cpu, T, source))
                done = u64(1)
            _advance(cpu, insn, RSI, step * done)
            _advance(cpu, insn, RDI, step * done)
            _finish(cpu, insn, done)
            if insn.rep == 0:
                return
            if left <= done:
                _yield(cpu, insn)
                return
            left -= done

    movs_elements.__name__ = movs_elements.__qualname__ = f"movs{size}"
    return native(inline="never")(movs_elements)


def _make_stos(size: int) -> Any:
    T = unsigned(size * 8)

    def stos_elements(cpu: Cpu, insn: Insn) -> None:
        step = _step(cpu, size)
        value = T(cpu.regs[RAX])
        left = _allowance(cpu)
        while insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            target = destination_address(cpu, insn, size, 1)
            done = u64(0)
            if _in_bulk(cpu, insn) and step == size:
                count = _smaller(cpu.regs[RCX] & insn.address_mask, _room(target, size))
                if count > 1:
                    to = probe_write_bulk(cpu, target, count * size)
                    if to != 0:
                        if size == 1 or value == 0:
                            fill_memory(to, u8(value), count * size)
                        else:
                            for i in range(count):
                                store(T, to + i * size, value)
                        done = count
                    end_exclusive(cpu)
            if done == 0:
                write_memory(cpu, target, value)
                done = u64(1)
            _advance(cpu, insn, RDI, step * done)
            _finish(cpu, insn, done)
            if insn.rep == 0:
                return
            if left <= done:
                _yield(cpu, insn)
                return
            left -= done

    stos_elements.__name__ = stos_elements.__qualname__ = f"stos{size}"
    return native(inline="never")(stos_elements)


def _make_lods(size: int) -> Any:
    T = unsigned(size * 8)

    def lods_elements(cpu: Cpu, insn: Insn) -> None:
        step = _step(cpu, size)
        left = _allowance(cpu)
        while insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            value = read_memory(cpu, T, source_address(cpu, insn, size))
            if size == 8:
                cpu.regs[RAX] = value
            elif size == 4:
                cpu.regs[RAX] = u64(value)
            else:
                cpu.regs[RAX] = (cpu.regs[RAX] & ~u64(T.mask)) | u64(value)
            _advance(cpu, insn, RSI, step)
            _finish(cpu, insn, u64(1))
            left -= 1
            if insn.rep == 0:
                return
            if left == 0:
                _yield(cpu, insn)
                return

    lods_elements.__name__ = lods_elements.__qualname__ = f"lods{size}"
    return native(inline="never")(lods_elements)


def _make_compare(size: int, scan: bool) -> Any:
    T = unsigned(size * 8)

    def compare_elements(cpu: Cpu, insn: Insn) -> None:
        step = _step(cpu, size)
        left = _allowance(cpu)
        while insn.rep == 0 or (cpu.regs[RCX] & insn.address_mask) != 0:
            # The manual leaves the order of CMPS's two reads open; hosts begin with this one.
            second = read_memory(cpu, T, destination_address(cpu, insn, size, 0))
            if scan:
                first = T(cpu.regs[RAX])
            else:
                first = read_memory(cpu, T, source_address(cpu, insn, size))
            cpu.cc_dst = u64(first - second)
            cpu.cc_src = u64(second)
            cpu.cc_op = ccops.cc_op(ccops.SUB, size * 8)
            if not scan:
                _advance(cpu, insn, RSI, step)
            _advance(cpu, insn, RDI, step)
            _finish(cpu, insn, u64(1))
            left -= 1
            if insn.rep == 0:
                return
            if (first == second) != (insn.rep == 0xF3):
                return
            if left == 0:
                _yield(cpu, insn)
                return

    name = "scas" if scan else "cmps"
    compare_elements.__name__ = compare_elements.__qualname__ = f"{name}{size}"
    return native(inline="never")(compare_elements)


_SIZES = (1, 2, 4, 8)
_MOVS = {n: _make_movs(n) for n in _SIZES}
_STOS = {n: _make_stos(n) for n in _SIZES}
_LODS = {n: _make_lods(n) for n in _SIZES}
_CMPS = {n: _make_compare(n, scan=False) for n in _SIZES}
_SCAS = {n: _make_compare(n, scan=True) for n in _SIZES}


def _enter(name: str, opcode: int, natives: dict[int, Any]) -> None:
    def byte_form(m: Operation) -> None:
        """A string instruction on bytes."""
        natives[1](m.cpu, m.insn)

    def sized_form(m: Operation) -> None:
        """A string instruction on elements of the operand size."""
        natives[m.size // 8](m.cpu, m.insn)

    instruction(f"{opcode:02X}", name=name + "b", ends=True)(byte_form)
    instruction(f"{opcode + 1:02X}", name=name, sized=True, ends=True)(sized_form)


for _name, _opcode, _natives in (
    ("movs", 0xA4, _MOVS),
    ("stos", 0xAA, _STOS),
    ("lods", 0xAC, _LODS),
    ("cmps", 0xA6, _CMPS),
    ("scas", 0xAE, _SCAS),
):
    _enter(_name, _opcode, _natives)
