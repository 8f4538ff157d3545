"""The interpreter's handlers: each form's semantics as a native function of its own.

A handler takes the vCPU and a decoded instruction. There is one per form,
operand size, kind of ModRM operand and LOCK prefix; `ringzero.isa` knows
nothing of this, it only sees an `Operation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ringzero.isa.x86 import ccops
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import flags as lazy
from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, MODE_64, Cpu, Insn
from ringzero.isa.x86.privileged.descriptors import (
    check_near_target,
    is_canonical,
    not_canonical,
    segment_address,
)
from ringzero.isa.x86.privileged.exclusive import begin_exclusive, end_exclusive
from ringzero.isa.x86.privileged.faults import (
    raise_fault,
    raise_fault_code,
    raise_gp0,
    require_avx,
)
from ringzero.isa.x86.privileged.mmu import probe_write, read_memory, write_memory
from ringzero.isa.x86.table.entry import SLOTS
from ringzero.isa.x86.table.forms import VECTORS, Form
from ringzero.jit.compile.builder import FunctionBuilder
from ringzero.jit.compile.module import Module
from ringzero.jit.x86.operands import UPPER
from ringzero.native import (
    address_of,
    compare_exchange,
    load,
    select,
    signed,
    staged,
    store,
    u8,
    u16,
    u32,
    u64,
    unsigned,
    v128,
)
from ringzero.native.generation import building
from ringzero.native.values import Value

_XMM = Cpu.offset_of("xmm")
_FPR = Cpu.offset_of("fpr")


@dataclass(frozen=True)
class Variant:
    """One handler of a form: an operand size in bits, register or memory, LOCK or not."""

    form: Form
    size: int
    memory: bool
    lock: bool

    @property
    def name(self) -> str:
        kind = "ml" if self.lock else "m" if self.memory else "r"
        return f"h{self.form.index}.{self.form.mnemonic}.{self.size}{kind}"


def operation_size(form: Form, operand_size: int) -> int:
    """Return `Operation.size` of a form under an operand size in bits."""
    if form.sized:
        return operand_size
    for operand in form.operands:
        if operand.fixed in ("DX", "CL", "1"):
            continue  # a port or a count says nothing of the operation's width
        if operand.letter in "EGMZIO" or operand.fixed:
            return operand.bits(operand_size) or operand_size
    return 32


def variants(form: Form) -> Iterator[tuple[Variant, list[int]]]:
    """Yield a form's handlers, each with the decoder slots (see SLOTS) that it serves."""
    memories = []
    if not form.has_modrm or form.may_be_register:
        memories.append(False)
    if form.has_modrm and form.may_be_memory:
        memories.append(True)
    sizes = (16, 32, 64)
    for memory in memories:
        locks = [False]
        # LOCK needs a memory destination; anything else is #UD (SDM vol. 2, LOCK).
        if memory and form.attributes.get("lock") and form.operands[0].is_modrm_rm:
            locks.append(True)
        for lock in locks:
            if form.sized:
                for number, size in enumerate(sizes):
                    if form.vex is not None and size == 16:
                        continue  # VEX.W chooses between the others
                    yield Variant(form, size, memory, lock), [number * 4 + memory * 2 + lock]
            else:
                slots = [number * 4 + memory * 2 + lock for number in range(3)]
                yield Variant(form, operation_size(form, 32), memory, lock), slots


class HandlerOperation:
    """`Operation` over a decoded instruction in memory."""

    mode64: bool | None = None
    checked = True
    nested = False

    def __init__(self, builder: FunctionBuilder, variant: Variant, cpu: Value, insn: Value) -> None:
        self._builder = builder
        self._form = variant.form
        self._locked = variant.lock or (
            variant.memory and bool(variant.form.attributes.get("atomic"))
        )
        self.cpu: Any = cpu
        self.insn: Any = insn
        self.memory = variant.memory
        self.mnemonic = variant.form.mnemonic
        self.size = variant.size
        self.T = unsigned(variant.size)
        self.S = signed(variant.size)
        self._host: Any = None
        self._old: Any = None
        self._retry = ""
        self._extra: Any = None
        self._loaded: tuple[Any, Any] | None = None

    # --- operands ---

    def _kind(self, n: int) -> Any:
        bits = self._form.operands[n].bits(self.size if self._form.sized else 32)
        return v128 if bits >= 128 else unsigned(bits)

    def is_memory(self, n: int) -> bool:
        operand = self._form.operands[n]
        return operand.letter == "O" or (self.memory and operand.is_modrm_rm)

    def _is_rmw(self, n: int) -> bool:
        return n == 0 and bool(self._form.attributes.get("rmw"))

    def read(self, n: int) -> Any:
        operand = self._form.operands[n]
        if operand.is_immediate and operand.letter != "O":
            return self.T(self.insn.imm2 if self._is_second_immediate(n) else self.insn.imm)
        if operand.fixed:
            return self._read_fixed(operand.fixed)
        kind = self._kind(n)
        if self.is_memory(n):
            if self._is_rmw(n):
                return self._read_modify(kind, self._operand_address(n, kind, write=True))
            return read_memory(self.cpu, kind, self._operand_address(n, kind))
        if operand.letter == "S":
            return u16(self.cpu.seg[u64(self.insn.reg)].selector)
        where = self._register_address(n, kind)
        return load(kind, where)

    def write(self, n: int, value: Any) -> None:
        operand = self._form.operands[n]
        if operand.fixed:
            register = {"AL": 0, "AX": 0, "EAX": 0, "RAX": 0, "rAX": 0, "DX": 2, "CL": 1}
            self.set(register[operand.fixed], value)
            return
        if self.is_memory(n):
            if self._is_rmw(n):
                self._write_modified(value, self._operand_address(n, value.kind, write=True))
            else:
                where = self._operand_address(n, value.kind, write=True)
                write_memory(self.cpu, where, value)
            return
        if operand.letter in "EGZRB" and value.kind == u32:
            value = u64(value)
        store(value.kind, self._register_address(n, value.kind), value)

    def read_half(self, n: int, half: int, aligned: bool = False) -> Any:
        if not self.is_memory(n):
            return load(v128, self._register_address(n, v128), half * UPPER)
        if self._loaded is None:
            address = self._linear(self.effective_address(n), 32, False, 32 if aligned else 1)
            if aligned:
                self._require_aligned(address, 32)
            low = read_memory(self.cpu, v128, address)
            self._loaded = low, read_memory(self.cpu, v128, self._truncated(address + 16))
        return self._loaded[half]

    @staged
    def write_halves(self, n: int, low: Any, high: Any, aligned: bool = False) -> None:
        if self.is_memory(n):
            address = self._linear(self.effective_address(n), 32, True, 32 if aligned else 1)
            if aligned:
                self._require_aligned(address, 32)
            host = probe_write(self.cpu, address, u64(32))
            if host != 0:
                store(v128, host, low)
                store(v128, host, high, 16)
            else:
                write_memory(self.cpu, address, low)
                write_memory(self.cpu, self._truncated(address + 16), high)
        else:
            where = self._register_address(n, v128)
            store(v128, where, low)
            store(v128, where, high, UPPER)

    def _is_second_immediate(self, n: int) -> bool:
        return any(o.is_immediate for o in self._form.operands[:n])

    def _read_fixed(self, name: str) -> Any:
        if name == "1":
            return self.T(1)
        if name == "CL":
            return self.get(x86.RCX, u8)
        kinds = {"AL": u8, "AX": u16, "EAX": u32, "RAX": u64, "rAX": self.T, "DX": u16}
        return self.get(x86.RDX if name == "DX" else x86.RAX, kinds[name])

    def _register_address(self, n: int, kind: Any) -> Any:
        """Host address of the register that is operand `n`."""
        operand = self._form.operands[n]
        letter = operand.letter
        by_reg = letter in "GVP"
        cpu = address_of(self.cpu)
        if letter in "EGZRB":
            if operand.bits(self.size) == 8:
                return cpu + u64(self.insn.reg8 if by_reg else self.insn.rm8)
            return cpu + (self.register_number(n) << 3)
        number = self.register_number(n)
        if letter in VECTORS:
            return cpu + (number << 4) + _XMM
        if letter in "PQN":
            return cpu + ((number & 7) << 4) + _FPR
        raise TypeError(f"operand {n} of {self.mnemonic} is no register that can be read")

    def shift_count(self, n: int) -> Any:
        return u64(self.read(n)) & (0x3F if self.size == 64 else 0x1F)

    def is_nonzero(self, count: Any) -> Any:
        return count != 0

    def is_register(self, n: int, register: int) -> Any:
        return self.insn.rm == register

    def register_number(self, n: int) -> Any:
        letter = self._form.operands[n].letter
        if letter in ("H", "B"):
            return u64(self.insn.vvvv)
        if letter == "L":
            return (self.insn.imm >> 4) & select(self.long_mode(), u64(15), u64(7))
        return u64(self.insn.reg if letter in "GSCDVP" else self.insn.rm)

    def get(self, register: int, kind: Any = None) -> Any:
        kind = self.T if kind is None else kind
        return kind(self.cpu.regs[register])

    def set(self, register: int, value: Any) -> None:
        kind = value.kind
        if kind == u64 or kind == u32:
            self.cpu.regs[register] = u64(value)
        else:
            store(kind, address_of(self.cpu) + register * 8, value)

    # --- addresses and memory ---

    def effective_address(self, n: int) -> Any:
        insn = self.insn
        if self._form.operands[n].letter == "O":
            return insn.imm
        cpu = address_of(self.cpu)
        base = load(u64, cpu + u64(insn.base))
        index = load(u64, cpu + u64(insn.index))
        address = (base + (index << insn.scale) + insn.disp) & insn.address_mask
        if self._extra is not None:
            address = (address + self._extra) & insn.address_mask
        return address

    def address(self, n: int, size: int = 1, alignment: int = 1) -> Any:
        return self._linear(self.effective_address(n), size, False, alignment)

    def _operand_address(self, n: int, kind: Any, *, write: bool = False) -> Any:
        return self._linear(self.effective_address(n), kind.size, write)

    @staged
    def _linear(self, offset: Any, size: int, write: bool, alignment: int = 1) -> Any:
        """Return the linear address of `size` bytes; their segment or canonicality is checked."""
        if self.cpu.mode == MODE_64:
            linear = offset + load(u64, address_of(self.cpu) + u64(self.insn.segment))
            if size != 0 and not (is_canonical(linear) and is_canonical(linear + (size - 1))):
                not_canonical(self.cpu, self.insn, u32((linear & (alignment - 1)) == 0))
            return linear
        if alignment > 1:
            base = load(u64, address_of(self.cpu) + u64(self.insn.segment))
            self._require_aligned(base + offset, alignment)
        return segment_address(self.cpu, self.insn.segment, offset, max(size, 1), int(write))

    def string_address(self, register: int, offset: Any) -> Any:
        where = (self.cpu.regs[register] + offset) & self.insn.address_mask
        return self._linear(where, 1, False)

    def displace(self, amount: Any) -> None:
        self._extra = amount

    def load(self, kind: Any, address: Any, aligned: bool = False) -> Any:
        if aligned:
            self._require_aligned(address, kind.size)
        return read_memory(self.cpu, kind, self._truncated(address))

    def store(self, kind: Any, address: Any, value: Any, aligned: bool = False) -> None:
        assert value.kind == kind
        if aligned:
            self._require_aligned(address, kind.size)
        write_memory(self.cpu, self._truncated(address), value)

    @staged
    def _require_aligned(self, address: Any, size: int) -> None:
        if (address & (size - 1)) != 0:
            raise_gp0(self.cpu)

    def _truncated(self, address: Any) -> Any:
        return select(self.cpu.mode == MODE_64, address, address & 0xFFFFFFFF)

    @staged
    def _read_modify(self, kind: Any, address: Any) -> Any:
        self._host = probe_write(self.cpu, address, u64(kind.size))
        if self._locked:
            # In pieces, it is one access only while nobody else makes any.
            if self._host == 0:
                begin_exclusive(self.cpu)
            self._begin_retry()
        value = kind(unsigned(kind.size * 8)(0))
        if self._host != 0:
            value = load(kind, self._host)
        else:
            value = read_memory(self.cpu, kind, address)
        self._old = value
        return value

    def _begin_retry(self) -> None:
        self._retry = self._builder.fresh("retry")
        self._builder.start(self._retry)

    @staged
    def _write_modified(self, value: Any, address: Any) -> None:
        if self._host != 0:
            if self._locked:
                seen = compare_exchange(value.kind, self._host, self._old, value)
                if seen != self._old:
                    self._builder.jump(self._retry)
            else:
                store(value.kind, self._host, value)
        else:
            write_memory(self.cpu, address, value)
            if self._locked:
                end_exclusive(self.cpu)

    @staged
    def exchange_pair(self, kind: Any, expected: Any, desired: Any) -> Any:
        # A pair of 16 bytes that is not aligned is #GP(0), and before it is anything else.
        alignment = 16 if kind.size == 16 else 1
        address = self._linear(self.effective_address(0), kind.size, True, alignment)
        if (address & (alignment - 1)) != 0:
            raise_gp0(self.cpu)
        host = probe_write(self.cpu, address, u64(kind.size))
        old = kind(0)
        if host != 0:
            old = compare_exchange(kind, host, expected, desired)
        else:
            if self._locked:
                begin_exclusive(self.cpu)
            half = unsigned(kind.bits // 2)
            low = kind(read_memory(self.cpu, half, address))
            high = kind(read_memory(self.cpu, half, address + half.size))
            old = low | (high << half.bits)
            new = select(old == expected, desired, old)
            write_memory(self.cpu, address, half(new))
            write_memory(self.cpu, address + half.size, half(new >> half.bits))
            if self._locked:
                end_exclusive(self.cpu)
        return old

    # --- flags ---

    def set_flags(self, kind: int, dst: Any, src: Any = 0, aux: Any = 0) -> None:
        self.cpu_store("cc_dst", u64(dst))
        if kind != ccops.LOGIC:
            self.cpu_store("cc_src", u64(src))
        if kind in (ccops.ADC, ccops.SBB):
            self.cpu_store("cc_aux", u64(aux))
        self.cpu_store("cc_op", u32(ccops.cc_op(kind, dst.kind.bits)))

    def cpu_store(self, name: str, value: Any) -> None:
        member = Cpu.fields[name]
        self._builder.store(member.kind, self.cpu, member.offset, value)

    def set_status(self, value: Any, mask: int) -> None:
        if mask != ARITHMETIC_FLAGS:
            value = (lazy.compute_status(self.cpu) & (ARITHMETIC_FLAGS & ~mask)) | (value & mask)
        else:
            value = value & mask
        self.cpu_store("cc_src", value)
        self.cpu_store("cc_op", u32(ccops.STATUS))

    def get_status(self) -> Any:
        return lazy.compute_status(self.cpu)

    def flag(self, mask: int) -> Any:
        return (lazy.compute_status(self.cpu) & mask) != 0

    def condition(self, code: int) -> Any:
        return lazy.condition_of_status(code, lazy.compute_status(self.cpu))

    # --- control ---

    @property
    def next_rip(self) -> Any:
        return self.cpu.next_rip

    def jump(self, target: Any) -> None:
        self.cpu_store("next_rip", target)

    @staged
    def branch(self, condition: Any, target: Any) -> None:
        if condition:
            check_near_target(self.cpu, target)
            self.cpu.next_rip = target

    def check_target(self, target: Any) -> None:
        check_near_target(self.cpu, target)

    def check_call_target(self, target: Any) -> None:
        check_near_target(self.cpu, target)

    def fault(self, vector: int, code: Any = None) -> None:
        if code is None:
            raise_fault(self.cpu, u32(vector))
        else:
            raise_fault_code(self.cpu, u32(vector), u64(code))

    def defer(self) -> None:
        raise TypeError("a handler has nobody to leave its instruction to")

    def long_mode(self) -> Any:
        return self.cpu.mode == MODE_64

    def stop_block(self) -> None:
        self.cpu_store("stop_block", u32(1))

    @staged
    def check_attributes(self) -> None:
        """Raise what the form's attributes demand before anything else happens."""
        attributes = self._form.attributes
        if attributes.get("privileged") and self.cpu.cpl != 0:
            raise_gp0(self.cpu)
        if attributes.get("avx"):
            require_avx(self.cpu)
        elif attributes.get("sse"):
            if (self.cpu.cr0 & x86.CR0_EM) != 0 or (self.cpu.cr4 & x86.CR4_OSFXSR) == 0:
                raise_fault(self.cpu, u32(x86.UD))
            if (self.cpu.cr0 & x86.CR0_TS) != 0:
                raise_fault(self.cpu, u32(x86.NM))
        elif attributes.get("mmx"):
            if (self.cpu.cr0 & x86.CR0_EM) != 0:
                raise_fault(self.cpu, u32(x86.UD))
            if (self.cpu.cr0 & x86.CR0_TS) != 0:
                raise_fault(self.cpu, u32(x86.NM))
        elif attributes.get("fpu") and (self.cpu.cr0 & (x86.CR0_EM | x86.CR0_TS)) != 0:
            raise_fault(self.cpu, u32(x86.NM))


def define_handler(module: Module, variant: Variant) -> None:
    """Add one handler to a module."""
    builder, (cpu, insn), finish = module.function(
        f'"{variant.name}"', [("cpu", Cpu), ("insn", Insn)], None
    )
    with building(builder):
        operation = HandlerOperation(builder, variant, cpu, insn)
        operation.check_attributes()
        from ringzero.jit.compile.staging import Execution

        Execution(builder, variant.form.function).run([operation], {})
        if not builder.terminated:
            builder.ret(None)
    finish()


def define_handlers(module: Module, forms: list[Form]) -> list[tuple[int, int]]:
    """Add all handlers of `forms` and the array `handlers.<module>` of their addresses.

    Returns, for each element of the array in order, the form's index and slot.
    """
    names: list[str] = []
    places: list[tuple[int, int]] = []
    for form in forms:
        for variant, slots in variants(form):
            define_handler(module, variant)
            for slot in slots:
                assert slot < SLOTS
                names.append(f'ptr @"{variant.name}"')
                places.append((form.index, slot))
    array = ", ".join(names)
    module.define(f"@handlers.{module.name} = constant [{len(names)} x ptr] [{array}]")
    return places
