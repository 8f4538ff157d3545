"""`Operation` for stencils: guest registers pinned, operands as holes to be patched.

What every stencil has is in `jit.stencil`. While an instruction's is generated, this
class also notes what it does with the flags; the translator lives on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ringzero.isa.x86 import ccops
from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, RSP, Cpu
from ringzero.isa.x86.privileged.descriptors import is_canonical
from ringzero.isa.x86.state import GPR_NAMES
from ringzero.isa.x86.table.forms import Form
from ringzero.jit.compile.builder import FunctionBuilder
from ringzero.jit.stencil import BY_POP, BY_PUSH, LIKELY, Frame, StencilWriter, pinned_by_name
from ringzero.jit.x86.tables import LOADED_FIRST, PINNED_REGISTERS, SPILLED, STORED_FIRST
from ringzero.native import (
    compare_exchange,
    load,
    signed,
    store,
    u8,
    u32,
    u64,
    unsigned,
    v128,
)
from ringzero.native.generation import convert
from ringzero.native.types import Int
from ringzero.native.values import Value

# Guest registers that stencils pass in host registers; R8 to R15 stay in memory.
FRAME = Frame(Cpu, pinned_by_name(GPR_NAMES[:PINNED_REGISTERS]), RSP)
# From the lower half of a YMM register to the upper one.
UPPER = Cpu.offset_of("ymm_high") - Cpu.offset_of("xmm")


# Instructions that have stencils with the conditional jump behind them: by which of the host's
# the flags are computed for it (of INC and DEC all but CF).
FUSED = {
    "cmp": "cmp", "sub": "cmp", "test": "test", "and_": "test", "or_": "test",
    "add": "add", "inc": "add", "dec": "cmp",
}  # fmt: skip
# Those of them that have such stencils for operands of 8 and 16 bits, too.
FUSED_NARROW = ("cmp", "test")
# Of these LLVM would load an immediate of 16 or 32 bits by ten bytes of code.
NARROWED = ("adc", "add", "and", "cmp", "imul", "or", "sbb", "sub", "test", "xor")
# Instructions that raise exceptions before they do anything, so that their handlers can.
FAULTS = ("div", "idiv", "cli", "sti", "clac", "stac", "rdtsc", "rdtscp")
_SUFFIXES = {8: "b", 16: "w", 32: "l", 64: "q"}


class Unsuitable(Exception):  # noqa: N818 - a fact about an instruction, not a fault
    """The instruction cannot be a stencil in this form; its handler is called instead."""


@dataclass(frozen=True)
class Binding:
    """How a stencil gets at one operand.

    kind: "pinned" (register number), "slot" (byte offset in Cpu from hole H0, H1
    or H2), "spilled" (the same, of a register that is stored there before, and loaded
    behind it when it was written), "memory" (at the address in the temporary),
    "temporary" (a register that is there), "immediate" (hole HI), "constant" (value).
    """

    kind: str
    value: int = 0

    @property
    def tag(self) -> str:
        named = self.kind in ("pinned", "slot", "spilled", "constant")
        letter = "v" if self.kind == "spilled" else self.kind[0]
        return letter + (str(self.value) if named else "")


@dataclass
class FlagUse:
    """What an instruction does with the arithmetic flags, noted while it is generated."""

    # cc_op that it leaves, or None.
    result: int | None = None
    # Sets all flags whatever happens / only some or only sometimes.
    defines: bool = False
    changes: bool = False
    # Needs CF in cc_aux, the whole status in cc_src, a condition: in the temporary, or, with an
    # operand in memory, in Cpu.condition.
    needs_carry: bool = False
    needs_status: bool = False
    condition: int | None = None


@dataclass(frozen=True)
class Generated:
    """What is known of a stencil once it was generated: with flags wanted, with flags dead."""

    flags: FlagUse
    dead: FlagUse
    slow: bool
    # How the slow path finds the address of its only access (see jit.stencil), or 0.
    access: int
    displaces: bool
    # Flags of its key: which registers are stored before it, and loaded behind it.
    moves: int


class StencilOperation(StencilWriter):
    """`Operation` over pinned registers and holes."""

    checked = False
    nested = False

    def __init__(
        self,
        builder: FunctionBuilder,
        form: Form,
        size: int,
        bindings: tuple[Binding, ...],
        *,
        memory: bool,
        locked: bool,
        mode64: bool,
        flags_live: bool,
        fused: bool = False,
    ) -> None:
        super().__init__(builder, FRAME)
        # Operands and result of what a conditional jump in this stencil looks at.
        self._fused = fused
        self._values: dict[int, Any] = {}
        self._flagged: Any = None
        self._form = form
        self._bindings = bindings
        self._flags_live = flags_live
        self.mnemonic = form.mnemonic
        self.memory = memory
        self.mode64: bool | None = mode64
        self.size = size
        self.T = unsigned(size)
        self.S = signed(size)
        self.flag_use = FlagUse()
        self.jump_target: Value | None = None
        # Whether the operand may lie far from where its address says (bit strings).
        self.displaces = False
        # Flags of the key (tables.SPILLED ...), of one whose registers are spilled.
        self.moves = 0
        self._locked = locked
        self._host: Any = None
        self._old: Any = None
        self._retry = ""
        self._extra: Any = None
        # Where an operand of 256 bits in memory is, once it was read.
        self._whole: Any = None
        self._depth = builder.depth

    @property
    def insn(self) -> Any:
        raise Unsuitable("needs the decoded instruction")

    # --- registers ---

    def get(self, register: int, kind: Any = None) -> Any:
        kind = self.T if kind is None else kind
        if register < PINNED_REGISTERS:
            return kind(self.register(register))
        return kind(self.cpu.regs[register])

    def set(self, register: int, value: Any) -> None:
        if register < PINNED_REGISTERS:
            self._set_pinned(register, value)
        else:
            raise Unsuitable("sets a register that is not pinned")

    def _set_pinned(self, number: int, value: Value) -> None:
        bits = value.kind.bits
        if bits >= 32:
            self.set_register(number, convert(Int(64), value))
        else:
            kept = self.register(number) & (~((1 << bits) - 1) & ((1 << 64) - 1))
            self.set_register(number, kept | convert(Int(64), value))

    # --- operands ---

    def _kind(self, n: int) -> Any:
        bits = self._form.operands[n].bits(self.size if self._form.sized else 32)
        return v128 if bits >= 128 else unsigned(bits)

    def is_memory(self, n: int) -> bool:
        return self._bindings[n].kind == "memory"

    def read(self, n: int) -> Any:
        value = self._values[n] = self._read(n)
        return value

    def _read(self, n: int) -> Any:
        binding = self._bindings[n]
        if binding.kind == "immediate":
            moved = self.mnemonic == "mov" and not self.memory
            if moved or (self.mnemonic in NARROWED and 8 < self.size < 64):
                return self.T(self.moved_hole("HI", wide=self.size == 64))
            return self.T(self.hole("HI"))
        if binding.kind == "constant":
            return self.T(binding.value)
        kind = self._kind(n)
        if binding.kind == "pinned":
            return kind(self.register(binding.value))
        if binding.kind == "temporary":
            return kind(self.temporary)
        if binding.kind == "spilled":
            self.moves |= SPILLED | STORED_FIRST << binding.value
        if binding.kind in ("slot", "spilled"):
            return load(kind, self._slot(binding))
        if n == 0 and self._form.attributes.get("rmw"):
            self._host = self.translated(self._operand_address(), kind.size, write=True)
            if self._locked:
                self._retry = self.builder.fresh("retry")
                self.builder.start(self._retry)
            self._old = load(kind, self._host)
            return self._old
        return load(kind, self.translated(self._operand_address(), kind.size, write=False))

    def read_half(self, n: int, half: int, aligned: bool = False) -> Any:
        binding = self._bindings[n]
        if binding.kind == "slot":
            return load(v128, self._slot(binding), half * UPPER)
        if self._whole is None:
            address = self._operand_address()
            self._whole = self.translated(address, 32, write=False, aligned=aligned)
        return load(v128, self._whole, half * 16)

    def write_halves(self, n: int, low: Any, high: Any, aligned: bool = False) -> None:
        binding = self._bindings[n]
        if binding.kind == "slot":
            where, distance = self._slot(binding), UPPER
        else:
            distance = 16
            where = self.translated(self.temporary, 32, write=True, aligned=aligned)
        store(v128, where, low)
        store(v128, where, high, distance)

    def _slot(self, binding: Binding) -> Any:
        return u64(self.cpu) + self.hole(f"H{binding.value}")

    def _write_spilled(self, binding: Binding, value: Value) -> None:
        """Store the whole register: loading it from a part that was stored takes longer."""
        self.moves |= SPILLED | LOADED_FIRST << binding.value
        where = self._slot(binding)
        whole = convert(u64, value)
        if value.kind.bits < 32 or self._conditional:
            # What is not written must be there as well.
            self.moves |= STORED_FIRST << binding.value
        if value.kind.bits < 32:
            whole = (load(u64, where) & ~value.kind.mask) | whole
        store(u64, where, whole)

    def _operand_address(self) -> Any:
        return self.temporary if self._extra is None else self.temporary + self._extra

    def write(self, n: int, value: Any) -> None:
        binding = self._bindings[n]
        if binding.kind == "pinned":
            self._set_pinned(binding.value, value)
        elif binding.kind == "spilled":
            self._write_spilled(binding, value)
        elif binding.kind == "slot":
            if value.kind == u32 and self._form.operands[n].letter in "EGZRB":
                value = u64(value)
            store(value.kind, self._slot(binding), value)
        elif self._host is not None:
            self._store_modified(value)
        else:
            host = self.translated(self.temporary, value.kind.size, write=True)
            store(value.kind, host, value)

    def _store_modified(self, value: Value) -> None:
        """Store what a read-modify-write made of its operand; locked, if nobody changed it since.

        On the way back to try again nothing but this value was computed.
        """
        if not self._locked:
            store(value.kind, self._host, value)
            return
        seen = compare_exchange(value.kind, self._host, self._old, value)
        done = self.builder.fresh("done")
        self.builder.branch(seen == self._old, done, self._retry, LIKELY)
        self.builder.start(done)

    def shift_count(self, n: int) -> Any:
        mask = 0x3F if self.size == 64 else 0x1F
        if self._bindings[n].kind == "immediate":
            # The translator has masked it, and 0 never comes here.
            return self.hole("HI") & mask
        return u64(self.read(n)) & mask

    def is_nonzero(self, count: Any) -> Any:
        binding = self._bindings[-1]
        return True if binding.kind in ("immediate", "constant") else count != 0

    def is_register(self, n: int, register: int) -> Any:
        binding = self._bindings[n]
        return binding.kind == "pinned" and binding.value == register

    def register_number(self, n: int) -> Any:
        raise Unsuitable("needs a register's number")

    # --- memory ---

    def base_of(self, va: Value, size: int) -> int:
        name = self._form.function.__name__
        if not self.mode64 or va.ref == "%t":
            return super().base_of(va, size)
        if name in ("push", "push_immediate", "call", "pushf"):
            return BY_PUSH
        return BY_POP if name in ("pop", "ret", "ret_release", "popf") else 0

    def effective_address(self, n: int) -> Any:
        return self.temporary

    def address(self, n: int, size: int = 1, alignment: int = 1) -> Any:
        return self.temporary

    def displace(self, amount: Any) -> None:
        self.displaces = True
        self._extra = amount

    def string_address(self, register: int, offset: Any) -> Any:
        raise Unsuitable("string instruction")

    def exchange_pair(self, kind: Any, expected: Any, desired: Any) -> Any:
        raise Unsuitable("atomic")

    def load(self, kind: Any, address: Any, aligned: bool = False) -> Any:
        host = self.translated(address, kind.size, write=False, aligned=aligned)
        return load(kind, host)

    def store(self, kind: Any, address: Any, value: Any, aligned: bool = False) -> None:
        host = self.translated(address, kind.size, write=True, aligned=aligned)
        store(kind, host, value)

    # --- flags ---

    @property
    def _conditional(self) -> bool:
        return self.builder.depth > self._depth

    def set_flags(self, kind: int, dst: Any, src: Any = 0, aux: Any = 0) -> None:
        use = self.flag_use
        self._flagged = dst
        operation = ccops.cc_op(kind, dst.kind.bits)
        if self._conditional:
            use.changes = True
            use.result = None
        else:
            use.defines = True
            use.changes = False
            use.result = operation
        if not self._flags_live:
            if kind in (ccops.INC, ccops.DEC):
                # They read CF only to keep it.
                use.needs_carry = False
            return
        self.put("cc_dst", u64(dst))
        if kind != ccops.LOGIC:
            self.put("cc_src", u64(src))
        if kind in (ccops.ADC, ccops.SBB):
            self.put("cc_aux", u64(aux))
        self.put("cc_op", operation)

    def jump_on_host_flags(self) -> None:
        """End in a conditional jump to TARGET, else to NEXT, by the flags of the instruction.

        The host's own jump looks at the host's own flags, so whoever copies the stencil puts
        the guest's condition in the place of "less" (`host.x86_64.set_condition`).
        """
        builder = self.builder
        name = self._form.function.__name__
        operation, result = FUSED[name], self._flagged
        bits = result.kind.bits
        if operation == "test" and name != "test":
            first = second = result
        else:
            first = self._values[0]
            second = None if name in ("inc", "dec") else self._values[1]
        given, how = "i64 1", "i"
        if second is not None:
            given, how = f"i{bits} {second.ref}", "r"
            if second is not result and self._bindings[-1].kind == "immediate":
                given, how = "i64 ptrtoint (ptr @HI to i64)", "i"
        # The operand that ADD changes is the first output.
        changed = operation == "add"
        kinds, outputs = (f"{{ i{bits}, i8 }}", "=r,={@ccl},0") if changed else ("i8", "={@ccl},r")
        text = f"{operation}{_SUFFIXES[bits]} ${2 + changed}, ${1 - changed}"
        constraints = f"{outputs},{how},~{{flags}}"
        arguments = f"i{bits} {first.ref}, {given}"
        flag = builder.emit(f'call {kinds} asm "{text}", "{constraints}"({arguments})', u8)
        if changed:
            flag = builder.emit(f"extractvalue {kinds} {flag.ref}, 1", u8)
        taken, stays = builder.fresh("taken"), builder.fresh("stays")
        builder.branch(flag != 0, taken, stays)
        builder.start(taken)
        self.tail("TARGET", self.arguments())
        builder.start(stays)
        self.tail("NEXT", self.arguments())

    def set_status(self, value: Any, mask: int) -> None:
        use = self.flag_use
        if mask == ARITHMETIC_FLAGS and not self._conditional:
            use.defines = True
            use.result = ccops.STATUS
            if self._flags_live:
                self.put("cc_src", value & mask)
                self.put("cc_op", ccops.STATUS)
            return
        use.changes = True
        use.result = ccops.STATUS
        if self._flags_live:
            use.needs_status = True
            self.put("cc_src", (self.cpu.cc_src & (ARITHMETIC_FLAGS & ~mask)) | (value & mask))

    def get_status(self) -> Any:
        self.flag_use.needs_status = True
        return self.cpu.cc_src

    def flag(self, mask: int) -> Any:
        if mask != CF:
            raise Unsuitable("reads a flag other than CF")
        self.flag_use.needs_carry = True
        return self.cpu.cc_aux != 0

    def condition(self, code: int) -> Any:
        self.flag_use.condition = code
        return (self.cpu.condition if self.memory else self.temporary) != 0

    # --- control ---

    @property
    def next_rip(self) -> Any:
        return self.cpu.page_base + self.hole("HN")

    def jump(self, target: Any) -> None:
        self.jump_target = target

    def branch(self, condition: Any, target: Any) -> None:
        raise Unsuitable("conditional jumps have stencils of their own")

    def check_target(self, target: Any) -> None:
        """A target that is not canonical misses the jump cache: see `runtime.retake_branch`."""

    def check_call_target(self, target: Any) -> None:
        if self.mode64:
            self.uses_slow = True
            canonical = self.builder.fresh("canonical")
            self.builder.branch(is_canonical(target), canonical, "slow", LIKELY)
            self.builder.start(canonical)

    def fault(self, vector: int, code: Any = None) -> None:
        if self._form.mnemonic not in FAULTS:
            raise Unsuitable("raises exceptions")
        self.defer()

    def check_privilege(self) -> None:
        """Leave a privileged instruction of user code to its handler, which raises #GP(0)."""
        if self._form.attributes.get("privileged"):
            self.uses_slow = True
            allowed = self.builder.fresh("allowed")
            self.builder.branch(self.cpu.cpl == 0, allowed, "slow", LIKELY)
            self.builder.start(allowed)

    def defer(self) -> None:
        self.uses_slow = True
        self.builder.jump("slow")

    def long_mode(self) -> Any:
        return self.mode64

    def stop_block(self) -> None:
        raise Unsuitable("changes the mode")
