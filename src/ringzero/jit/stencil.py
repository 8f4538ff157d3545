"""What a stencil is made of, whatever the guest: values in host registers, holes, exits.

A stencil is a function that gets the vCPU, the instruction budget, one temporary (an
address, a value, a jump target) and the guest's pinned registers in host registers. It
ends in a tail call of the next one, with the same arguments. What the translator fills
in when it copies a stencil are *holes*: external symbols named in `tables.HOLES`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ringzero.isa.caches import TlbEntry, page_of_last, tlb_offset
from ringzero.jit.compile.builder import FunctionBuilder
from ringzero.jit.compile.module import Module
from ringzero.jit.host.x86_64 import ARGUMENT_REGISTERS, CONVENTION
from ringzero.native import pointer, u64
from ringzero.native.generation import as_value, building, convert
from ringzero.native.types import Int, StructType
from ringzero.native.values import Value

# Arguments before the pinned registers: vCPU, budget, temporary.
COMMON = ("cpu", "n", "t")
# What stencils get for the vCPU is the address of its struct and this much more, so that a
# displacement of one byte reaches its first 256 bytes.
CPU_BIAS = 128
# Metadata of branches that are nearly always, and nearly never, taken.
LIKELY, UNLIKELY = ", !prof !0", ", !prof !1"
WEIGHTS = '!0 = !{!"branch_weights", i32 1000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 1000}'


# How a stencil with one access to memory tells the slow path of it, so that a TLB miss is filled
# without the interpreter: log2 of its size, whether it writes, that it must be aligned, and what
# its address is: the temporary, or one of the guest's stack (`jit.x86.operands`).
ACCESS_SIZE, ACCESS_WRITE, ACCESS_ALIGNED, ACCESS_BASE = 0x7, 0x8, 0x10, 0x60
BY_TEMPORARY, BY_PUSH, BY_POP = 0x20, 0x40, 0x60


@dataclass(frozen=True)
class Frame:
    """Which guest registers are pinned, and in which order they are arguments.

    `cpu` is the struct of a vCPU, with members `regs`, `budget`, `tlb`, `resume`; `stack` the
    pinned register by which BY_PUSH and BY_POP go.
    """

    cpu: StructType
    pinned: tuple[int, ...]
    stack: int

    @functools.cached_property
    def parameters(self) -> str:
        """The parameter list of every stencil, as IR."""
        names = (*COMMON[1:], *(f"g{n}" for n in self.pinned))
        return "ptr %cpu, " + ", ".join(f"i64 %{name}" for name in names)

    def arguments(self, name: Callable[[int], str], budget: str, temporary: str) -> str:
        """Return the argument list of a call; `name` returns that of a pinned register."""
        registers = (f"i64 {name(n)}" for n in self.pinned)
        return ", ".join(["ptr %cpu", f"i64 {budget}", f"i64 {temporary}", *registers])


def pinned_by_name(names: tuple[str, ...]) -> tuple[int, ...]:
    """Return guest registers in the order of the host's argument registers behind COMMON.

    A register lands in the host's of the same name where that is one of them; the others
    take what is left. So a shift's count is where the host's shifts want it.
    """
    places = ARGUMENT_REGISTERS[len(COMMON) :][: len(names)]
    others = iter(n for n, name in enumerate(names) if name not in places)
    return tuple(names.index(place) if place in names else next(others) for place in places)


class StencilWriter:
    """Writes one stencil."""

    def __init__(self, builder: FunctionBuilder, frame: Frame) -> None:
        self.builder = builder
        self.frame = frame
        self.cpu: Any = Value(frame.cpu, "%vcpu")
        builder.entry.append(f" %vcpu = getelementptr i8, ptr %cpu, i64 -{CPU_BIAS}")
        self.temporary = Value(u64, "%t")
        self.budget = Value(u64, "%n")
        # Whether the stencil may leave to the slow path.
        self.uses_slow = False
        # What `access` is made of, for each access.
        self._accesses: list[int] = []
        self._changed: dict[int, str] = {}

    def hole(self, name: str) -> Value:
        """Return the value of a hole, 64 bits sign-extended from 32."""
        self.builder.module.declare(
            name,
            f"@{name} = external hidden global i8, "
            "!absolute_symbol !{i64 -2147483648, i64 2147483648}",
        )
        return self.builder.emit(f"ptrtoint ptr @{name} to i64", u64)

    def moved_hole(self, name: str, *, wide: bool) -> Value:
        """Return the value of a hole, its 32 bits sign-extended if `wide`, by a move of its own.

        Shorter than what LLVM makes of `hole` where the value is no operand.
        """
        self.hole(name)
        text = "movq $1, $0" if wide else "movl $1, ${0:k}"
        given = f"i64 ptrtoint (ptr @{name} to i64)"
        return self.builder.emit(f'call i64 asm "{text}", "=r,i"({given})', u64)

    def wide_hole(self, name: str) -> Value:
        """Return the value of a hole of 64 bits."""
        self.builder.module.declare(
            name, f'@{name} = external hidden global i8, code_model "large"'
        )
        return self.builder.emit(f"ptrtoint ptr @{name} to i64", u64)

    # --- registers and members ---

    def register(self, number: int) -> Value:
        """Return a pinned register, 64 bits."""
        slot = self._changed.get(number)
        if slot is not None:
            return self.builder.get_variable(u64, slot)
        return Value(u64, f"%g{number}")

    def set_register(self, number: int, value: Value) -> None:
        """Set a pinned register."""
        slot = self._changed.get(number)
        if slot is None:
            slot = self.builder.variable(u64)
            self.builder.entry.append(f" store i64 %g{number}, ptr {slot}")
            self._changed[number] = slot
        self.builder.set_variable(slot, value)

    def put(self, name: str, value: Any) -> None:
        """Store a member of the vCPU's struct."""
        member = self.frame.cpu.fields[name]
        self.builder.store(member.kind, self.cpu, member.offset, as_value(value, member.kind))

    def translated(self, va: Value, size: int, *, write: bool, aligned: bool = False) -> Value:
        """Return the host address behind `va`, leaving to the slow path on a TLB miss.

        With `aligned` an address that is no multiple of `size` goes there too.
        """
        builder = self.builder
        self.uses_slow = True
        base = self.base_of(va, size)
        kind = size.bit_length() - 1 | ACCESS_WRITE * write | ACCESS_ALIGNED * aligned
        self._accesses.append(base | kind if base else 0)
        if aligned:
            multiple = builder.fresh("aligned")
            builder.branch((va & (size - 1)) == 0, multiple, "slow", LIKELY)
            builder.start(multiple)
        offset = tlb_offset(va)
        entry = pointer(TlbEntry, self.cpu.tlb + offset)
        tag = entry.write if write else entry.read
        hit = builder.fresh("hit")
        builder.branch(tag == page_of_last(va, size), hit, "slow", LIKELY)
        builder.start(hit)
        host: Value = va + entry.addend
        return host

    def base_of(self, va: Value, size: int) -> int:
        """Return which ACCESS_BASE the address `va` is; 0 for none of them."""
        return BY_TEMPORARY if va.ref == "%t" else 0

    @property
    def access(self) -> int:
        """How the slow path finds the address of the only access; 0 where that cannot be told."""
        return self._accesses[0] if len(self._accesses) == 1 else 0

    # --- ends ---

    def arguments(self, temporary: str = "poison", budget: str = "%n") -> str:
        """Return the argument list for the tail call of the next stencil."""
        return self.frame.arguments(lambda n: self.register(n).ref, budget, temporary)

    def _call(self, callee: str, arguments: str) -> None:
        self.builder.line(f"musttail call {CONVENTION} void {callee}({arguments})")
        self.builder.ret(None)

    def tail(self, name: str, arguments: str) -> None:
        """End in a tail call of a symbol that the translator fills in."""
        text = f"declare {CONVENTION} void @{name}({self.frame.parameters})"
        self.builder.module.declare(name, text)
        self._call(f"@{name}", arguments)

    def tail_near(self, name: str, arguments: str) -> None:
        """End in a tail call of a function of the same module."""
        self._call(f"@{name}", arguments)

    def tail_address(self, address: Value) -> None:
        """End in a tail call of the code at a host address."""
        code = self.builder.emit(f"inttoptr i64 {address.ref} to ptr", self.frame.cpu)
        self._call(code.ref, self.arguments())

    def tail_member(self, name: str, temporary: str = "poison") -> None:
        """End in a tail call of the code whose host address a member of the vCPU holds."""
        where = self.builder.offset(self.cpu, self.frame.cpu.offset_of(name)).ref
        code = self.builder.emit(f"load ptr, ptr {where}, align 8", self.frame.cpu)
        self._call(code.ref, self.arguments(temporary))

    def slow_exit(self) -> None:
        """Add the block `slow`, where everything is as it was at the start of the stencil."""
        self.builder.start("slow")
        # A stencil that is tried again finds its address there.
        temporary = "%t" if self.access & ACCESS_BASE == BY_TEMPORARY else "poison"
        self.tail("SLOW", self.frame.arguments(lambda n: f"%g{n}", "%n", temporary))


Body = Callable[[StencilWriter], None]


def plain(compute: Callable[[Any], Any]) -> Any:
    """Return the body of a stencil whose result becomes the temporary, or that has none."""

    def body(m: StencilWriter) -> None:
        result = compute(m)
        reference = "poison" if result is None else convert(Int(64), result).ref
        m.tail("NEXT", m.arguments(reference))

    return body


def define_stencil(
    module: Module, name: str, frame: Frame, write: Callable[[FunctionBuilder], bool]
) -> None:
    """Add a stencil to a module, if `write` says that it became one."""
    builder = FunctionBuilder(module)
    with building(builder):
        if not write(builder):
            return
    lines = [f"define {CONVENTION} void @{name}({frame.parameters}) nounwind optsize {{", "entry:"]
    lines += [*builder.entry, " br label %body", "body:", *builder.body, "}"]
    module.define("\n".join(lines))
