"""The catalogue of stencils: which exist, how each is generated, how it is found.

Two kinds. *Instruction* stencils come from the semantic functions of forms
marked `fast`, one for each way in which operands can be bound. *Glue*
stencils (addresses, flags, jumps, exits) are written here.

An instruction's stencil is found by arithmetic: the form's `Lowering` has the
number of its first key, and register operands are digits to base 9 (the eight
pinned registers, and a register in memory). Key k is stencil 2k while its
flags are wanted and 2k + 1 while they are dead.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ringzero.isa.caches import JumpCacheEntry, jump_index
from ringzero.isa.x86 import flags as lazy
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.table.forms import Form, Operand
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.compile.module import Module
from ringzero.jit.compile.staging import Execution, StagingError
from ringzero.jit.x86.handlers import operation_size
from ringzero.jit.x86.operands import (
    CONVENTION,
    PARAMETERS,
    PINNED,
    Binding,
    Generated,
    StencilOperation,
    Unsuitable,
)
from ringzero.native import boolean, load, pointer, signed, store, u32, u64, unsigned
from ringzero.native.generation import as_value, building, convert
from ringzero.native.types import Int
from ringzero.native.values import Value

SLOT = 8  # class of a register that is not pinned
CLASSES = 9
WEIGHTS = '!0 = !{!"branch_weights", i32 1000, i32 1}'
# Block ends, as the translator tells them apart (Lowering.end).
END_NONE, END_JUMP, END_CONDITIONAL, END_CALL, END_INDIRECT, END_GENERIC = range(6)
# Their immediate counts are masked by the translator, which leaves a count of 0 to the handler.
SHIFTS = ("shl", "shr", "sar", "rol", "ror")
END_BY_NAME = {"jmp": END_JUMP, "call": END_CALL, "jcc": END_CONDITIONAL}


@dataclass(frozen=True)
class Key:
    """One way to bind the operands of one semantic function."""

    form: Form
    size: int
    memory: bool
    mode64: bool
    bindings: tuple[Binding, ...]

    @property
    def identity(self) -> tuple[Any, ...]:
        """What the generated code depends on; forms that share it share stencils."""
        widths = tuple(o.bits(self.size) for o in self.form.operands)
        kinds = tuple(o.letter in "VWU" for o in self.form.operands)
        rmw = bool(self.form.attributes.get("rmw"))
        function: Any = self.form.function
        if "condition" in self.form.attributes:
            # The condition is in the temporary, whichever it was.
            function = function.__qualname__
        return (function, self.size, self.mode64, self.bindings, widths, kinds, rmw)


@dataclass
class Lowering:
    """How the translator treats one form, size and kind of ModRM operand."""

    form: Form
    size: int
    memory: bool
    base: int = 0
    end: int = END_NONE
    # Operand indices that are digits of the key, most significant first.
    digits: tuple[int, ...] = ()
    # Operand indices of XMM registers, whose offsets go into H0 and H1.
    vectors: tuple[int, ...] = ()
    immediate: int = -1
    shift: bool = False
    keys: list[int] = field(default_factory=list)


def _choices(operand: Operand, memory: bool, size: int) -> list[str] | None:
    """Return the kinds of binding an operand can have; None when it cannot be a stencil's."""
    if operand.fixed:
        return {"AL": ["p0"], "rAX": ["p0"], "EAX": ["p0"], "CL": ["p1"], "1": ["c1"]}.get(
            operand.fixed
        )
    letter = operand.letter
    if (letter in "EW" and memory) or letter == "M":
        return ["m"]
    if letter in "EGZR":
        return [*(f"p{n}" for n in range(8)), "s"]
    if letter in "VWU":
        return ["s"]
    if letter in "IJ":
        return ["i"]
    return None


def _bind(combination: tuple[str, ...]) -> tuple[Binding, ...]:
    slots = itertools.count()
    bindings = []
    for text in combination:
        if text[0] == "p":
            bindings.append(Binding("pinned", int(text[1:])))
        elif text == "s":
            bindings.append(Binding("slot", next(slots)))
        elif text == "m":
            bindings.append(Binding("memory"))
        elif text == "i":
            bindings.append(Binding("immediate"))
        else:
            bindings.append(Binding("constant", int(text[1:])))
    return tuple(bindings)


def _sizes(form: Form) -> tuple[int, ...]:
    if not form.sized:
        return (operation_size(form, 32),)
    if form.attributes.get("d64"):
        return (32, 64)  # 32: outside 64-bit mode
    return (16, 32, 64)


class Catalogue:
    """All keys and lowerings, in an order that depends on the instruction table alone."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.lowerings: list[Lowering] = []
        known: dict[tuple[Any, ...], int] = {}
        for form in all_forms():
            if not form.attributes.get("fast") or any(
                o.letter in tuple("PQNO") for o in form.operands
            ):
                continue
            for size in _sizes(form):
                for memory in (False, True):
                    if memory and not (form.has_modrm and form.may_be_memory):
                        continue
                    if not memory and form.has_modrm and not form.may_be_register:
                        continue
                    self._add(form, size, memory, known)

    def _add(self, form: Form, size: int, memory: bool, known: dict[tuple[Any, ...], int]) -> None:
        lowering = Lowering(form, size, memory)
        name = form.function.__name__
        mode64 = not (form.attributes.get("d64") and size == 32)
        if form.attributes.get("ends"):
            lowering.end = END_BY_NAME.get(name, END_INDIRECT)
        operands = form.operands
        if lowering.end in (END_JUMP, END_CONDITIONAL):
            self.lowerings.append(lowering)
            return
        choices = []
        for n, operand in enumerate(operands):
            found = _choices(operand, memory, size)
            if found is None:
                return
            if len(found) == CLASSES:
                lowering.digits += (n,)
            if operand.letter in "VWU" and found == ["s"]:
                lowering.vectors += (n,)
            if found == ["i"]:
                lowering.immediate = n
            choices.append(found)
        if memory and form.attributes.get("atomic"):
            return
        lowering.shift = form.mnemonic in SHIFTS
        for combination in itertools.product(*choices):
            key = Key(form, size, memory, mode64, _bind(combination))
            identity = key.identity
            number = known.get(identity)
            if number is None:
                number = known[identity] = len(self.keys)
                self.keys.append(key)
            lowering.keys.append(number)
        self.lowerings.append(lowering)


# --- generating --------------------------------------------------------------


def define_key(module: Module, number: int, key: Key) -> Generated | None:
    """Add the stencils of a key to a module; None when it cannot be one."""
    live = _define(module, f"s{number * 2}", key, flags_live=True)
    if live is None:
        return None
    dead = live
    if live.flags.defines or live.flags.changes:
        dead = _define(module, f"s{number * 2 + 1}", key, flags_live=False) or live
    return Generated(live.flags, dead.flags, live.slow)


def _define(module: Module, name: str, key: Key, *, flags_live: bool) -> Generated | None:
    builder, finish = begin_stencil(module, name)
    with building(builder):
        operation = StencilOperation(
            builder,
            key.form,
            key.size,
            key.bindings,
            memory=key.memory,
            mode64=key.mode64,
            flags_live=flags_live,
        )
        try:
            Execution(builder, key.form.function).run([operation], {})
        except Unsuitable:
            return None
        except StagingError as fault:
            if isinstance(fault.__cause__, Unsuitable) or isinstance(
                getattr(fault.__cause__, "__cause__", None), Unsuitable
            ):
                return None
            raise
        target = operation.jump_target
        if target is not None and END_BY_NAME.get(key.form.function.__name__) == END_CALL:
            tail(builder, "TARGET", operation.arguments())
        elif target is not None:
            tail(builder, "NEXT", operation.arguments(target.ref))
        else:
            tail(builder, "NEXT", operation.arguments())
        if operation.uses_slow:
            slow_exit(builder)
    finish()
    return Generated(operation.flag_use, operation.flag_use, operation.uses_slow)


def begin_stencil(module: Module, name: str) -> tuple[Any, Callable[[], None]]:
    """Begin a stencil; returns its builder and what to call when it is complete."""
    builder, _, finish_plain = module.function(name, [], None)

    def finish() -> None:
        lines = [f"define {CONVENTION} void @{name}({PARAMETERS}) nounwind optsize {{", "entry:"]
        lines += [*builder.entry, " br label %body", "body:", *builder.body, "}"]
        module.define("\n".join(lines))

    del finish_plain
    return builder, finish


def tail(builder: Any, name: str, arguments: str) -> None:
    """End a stencil in a tail call of a symbol that the translator fills in."""
    builder.module.declare(name, f"declare {CONVENTION} void @{name}({PARAMETERS})")
    builder.line(f"musttail call {CONVENTION} void @{name}({arguments})")
    builder.ret(None)


def slow_exit(builder: Any) -> None:
    """Add the block for TLB misses: everything as it was at the start of the stencil."""
    builder.start("slow")
    untouched = ", ".join(["ptr %cpu", "i64 %n", "i64 poison", *(f"i64 %g{n}" for n in PINNED)])
    tail(builder, "SLOW", untouched)


# --- glue --------------------------------------------------------------------


class Glue(StencilOperation):
    """A StencilOperation of no instruction, for glue."""

    def __init__(self, builder: Any) -> None:
        form = all_forms()[0]
        super().__init__(builder, form, 64, (), memory=False, mode64=True, flags_live=True)

    def flag_inputs(self, cc_op: int) -> tuple[int, Any, Any, Any]:
        """Return kind, dst, src, aux of the last operation, known to be `cc_op`."""
        kind, log2 = divmod(cc_op, 4)
        T = unsigned(8 << log2)
        cpu = self.cpu
        where = u64(cpu)

        def member(name: str) -> Any:
            return load(T, where + Cpu.offset_of(name))

        return kind, member("cc_dst"), member("cc_src"), member("cc_aux")


def cc_ops() -> Iterator[int]:
    """Every cc_op there is: STATUS, and each kind at each width."""
    yield lazy.STATUS
    for kind in lazy.KINDS:
        for log2 in range(4):
            yield kind * 4 + log2


def _condition(m: Glue, code: int, cc_op: int) -> Any:
    if cc_op == lazy.STATUS:
        return lazy.condition_of_status(code, m.cpu.cc_src)
    return lazy.condition(code, *m.flag_inputs(cc_op))


def _as_boolean(value: Any) -> Any:
    return value if isinstance(value, Value) else as_value(value, boolean)


Body = Callable[[Any, Glue], None]


def glue() -> dict[str, Body]:
    """Return every glue stencil by name, each as a function that emits its body."""
    bodies: dict[str, Body] = {}

    def plain(name: str, compute: Callable[[Glue], Any]) -> None:
        """A stencil whose result becomes the temporary, or that has none."""

        def body(builder: Any, m: Glue) -> None:
            result = compute(m)
            reference = "poison" if result is None else convert(Int(64), result).ref
            tail(builder, "NEXT", m.arguments(reference))

        bodies[name] = body

    _addresses(plain, bodies)
    _flag_glue(plain, bodies)
    _moves(plain)
    _exits(bodies, plain)
    return bodies


def _gpr(m: Glue, number: int, hole: str) -> Any:
    if number < SLOT:
        return m.register(number)
    return load(u64, u64(m.cpu) + m.hole(hole))


def _addresses(
    plain: Callable[[str, Callable[[Glue], Any]], None], bodies: dict[str, Body]
) -> None:
    def based(base: int, m: Glue) -> Any:
        return _gpr(m, base, "HB") + m.hole("HD")

    def indexed(index: int, scale: int, m: Glue) -> Any:
        return (_gpr(m, index, "HX") << scale) + m.hole("HD")

    def both(base: int, index: int, scale: int, m: Glue) -> Any:
        return _gpr(m, base, "HB") + (_gpr(m, index, "HX") << scale) + m.hole("HD")

    for base in range(CLASSES):
        plain(f"ea.b{base}", partial(based, base))
        for index, scale in itertools.product(range(CLASSES), range(4)):
            plain(f"ea.b{base}.i{index}.s{scale}", partial(both, base, index, scale))
    for index, scale in itertools.product(range(CLASSES), range(4)):
        plain(f"ea.i{index}.s{scale}", partial(indexed, index, scale))
    plain("ea.disp", lambda m: m.hole("HD"))
    plain("ea.rip", lambda m: m.cpu.page_base + m.hole("HD"))
    plain("ea.segment", lambda m: m.temporary + load(u64, u64(m.cpu) + m.hole("HS")))
    plain("ea.mask32", lambda m: u64(u32(m.temporary)))

    def segment32(builder: Any, m: Glue) -> None:
        """Add the base of a 4 GiB segment to an operand that does not wrap in it."""
        inside = builder.fresh("inside")
        builder.branch((m.temporary + m.hole("HD")) >> 32 == 0, inside, "slow", ", !prof !0")
        builder.start(inside)
        linear = m.temporary + load(u64, u64(m.cpu) + m.hole("HS"))
        result = convert(Int(64), u32(linear))
        tail(builder, "NEXT", m.arguments(result.ref))
        slow_exit(builder)

    bodies["ea.segment32"] = segment32


def _flag_glue(
    plain: Callable[[str, Callable[[Glue], Any]], None], bodies: dict[str, Body]
) -> None:
    for op in cc_ops():

        def carry(m: Glue, op: int = op) -> None:
            if op == lazy.STATUS:
                value = m.cpu.cc_src & 1
            else:
                value = u64(_as_boolean(lazy.carry(*m.flag_inputs(op))))
            m._put("cc_aux", value)

        def status(m: Glue, op: int = op) -> None:
            if op != lazy.STATUS:
                m._put("cc_src", lazy.status_of(*m.flag_inputs(op)))
                m._put("cc_op", lazy.STATUS)

        plain(f"carry.{op}", carry)
        plain(f"status.{op}", status)
        for code in range(16):

            def condition(m: Glue, op: int = op, code: int = code) -> Any:
                return _as_boolean(_condition(m, code, op))

            def jump(builder: Any, m: Glue, op: int = op, code: int = code) -> None:
                taken, stays = builder.fresh("taken"), builder.fresh("stays")
                builder.branch(_as_boolean(_condition(m, code, op)), taken, stays)
                builder.start(taken)
                tail(builder, "TARGET", m.arguments())
                builder.start(stays)
                tail(builder, "NEXT", m.arguments())

            plain(f"cond.{code}.{op}", condition)
            bodies[f"jcc.{code}.{op}"] = jump

    def call_materialize(builder: Any, m: Glue) -> None:
        address = m.cpu.status_code
        builder.call_address(address, None, [m.cpu])
        tail(builder, "NEXT", m.arguments())

    bodies["status.any"] = call_materialize


def _moves(plain: Callable[[str, Callable[[Glue], Any]], None]) -> None:
    def wide(number: int, m: Glue) -> None:
        m._builder.module.declare("HQ", '@HQ = external hidden global i8, code_model "large"')
        value = m._builder.emit("ptrtoint ptr @HQ to i64", u64)
        if number < SLOT:
            m.set_register(number, value)
        else:
            store(u64, u64(m.cpu) + m.hole("H0"), value)

    for number in range(CLASSES):
        plain(f"movabs.{number}", partial(wide, number))


def _exits(bodies: dict[str, Body], plain: Callable[[str, Callable[[Glue], Any]], None]) -> None:
    def through(builder: Any, m: Glue, member: str, temporary: str = "poison") -> None:
        pointer = builder.emit(
            f"load ptr, ptr {builder.offset(m.cpu, Cpu.offset_of(member)).ref}, align 8", Cpu
        )
        builder.line(f"musttail call {CONVENTION} void {pointer.ref}({m.arguments(temporary)})")
        builder.ret(None)

    def head(builder: Any, m: Glue) -> None:
        left: Any = Value(u64, "%n") - m.hole("HC")
        spent, go = builder.fresh("spent"), builder.fresh("go")
        builder.branch(signed(64)(left) < 0, spent, go, ", !prof !1")
        arguments = m.arguments().replace("i64 %n", f"i64 {left.ref}")
        builder.start(spent)
        tail(builder, "TARGET", arguments)
        builder.start(go)
        tail(builder, "NEXT", arguments)

    def refund(builder: Any, m: Glue) -> None:
        """Leave a block early or before it began: give back instructions not run."""
        left = Value(u64, "%n") + m.hole("HC")
        tail(builder, "NEXT", m.arguments().replace("i64 %n", f"i64 {left.ref}"))

    def leave(builder: Any, m: Glue) -> None:
        """Exit to the run loop with RIP inside this page."""
        m._put("rip", m.cpu.page_base + m.hole("HO"))
        through(builder, m, "exit_code")

    def leave_linked(builder: Any, m: Glue) -> None:
        """The same, and tell which jump would go there directly."""
        m._put("rip", m.cpu.page_base + m.hole("HO"))
        m._put("link_site", m.hole("HR"))
        through(builder, m, "exit_code")

    def slow(builder: Any, m: Glue) -> None:
        m._put("slow_offset", m.hole("HO"))
        m._put("resume", m.hole("HR"))
        through(builder, m, "slow_code")

    def generic(builder: Any, m: Glue) -> None:
        m._put("generic_insn", m.hole("HG"))
        m._put("resume", m.hole("HR"))
        through(builder, m, "generic_code")

    def goto(builder: Any, m: Glue) -> None:
        tail(builder, "TARGET", m.arguments())

    def dispatch(key_bit: int) -> Body:
        def body(builder: Any, m: Glue) -> None:
            """Go to the address in the temporary: by the jump cache, else by the run loop."""
            target = m.temporary
            tag = target | key_bit
            index = jump_index(target)
            where = m.cpu.jump_cache + index * JumpCacheEntry.size
            entry = pointer(JumpCacheEntry, where)
            hit, miss = builder.fresh("hit"), builder.fresh("miss")
            builder.branch(entry.address == tag, hit, miss, ", !prof !0")
            builder.start(hit)
            m._put("page_base", target & ~0xFFF & ((1 << 64) - 1))
            code = builder.emit(f"inttoptr i64 {entry.code.ref} to ptr", Cpu)
            builder.line(f"musttail call {CONVENTION} void {code.ref}({m.arguments()})")
            builder.ret(None)
            builder.start(miss)
            m._put("rip", target)
            if not key_bit:
                m._put("branch_offset", m.hole("HF"))
            through(builder, m, "exit_code")

        return body

    bodies["head"] = head
    bodies["refund"] = refund
    bodies["leave"] = leave
    bodies["leave.linked"] = leave_linked
    bodies["slow"] = slow
    bodies["generic"] = generic
    bodies["goto"] = goto
    bodies["dispatch64"] = dispatch(0)
    bodies["dispatch32"] = dispatch(1 << 62)
    plain("target", lambda m: m.cpu.page_base + m.hole("HD"))
    plain("target32", lambda m: u64(u32(m.cpu.page_base + m.hole("HD"))))


def define_glue(module: Module, number: int, body: Body) -> None:
    """Add one glue stencil, called s<number>, to a module."""
    builder, finish = begin_stencil(module, f"s{number}")
    with building(builder):
        body(builder, Glue(builder))
    finish()
