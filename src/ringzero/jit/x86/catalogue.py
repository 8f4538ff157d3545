"""The catalogue of instructions' stencils: which exist, how each is generated and found.

They come from the semantic functions of forms marked `fast`, one for each way in
which operands can be bound. Other stencils are written out in `glue`.

An instruction's stencil is found by arithmetic: the form's `Lowering` has the
number of its first key, and register operands are digits to base 9 (the eight
pinned registers, and a register in memory). Key k is stencil 2k while its
flags are wanted and 2k + 1 while they are dead. Some have two more, with the conditional
jump that stands behind the instruction in them; `Catalogue.fused` tells which.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from ringzero.isa.x86.table.forms import IN_HANDLER, VECTORS, Form, Operand
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.compile.builder import FunctionBuilder
from ringzero.jit.compile.module import Module
from ringzero.jit.compile.staging import Execution, StagingError
from ringzero.jit.stencil import define_stencil
from ringzero.jit.x86.handlers import operation_size
from ringzero.jit.x86.operands import (
    FRAME,
    FUSED,
    FUSED_NARROW,
    Binding,
    Generated,
    StencilOperation,
    Unsuitable,
)
from ringzero.jit.x86.tables import (
    CLASSES,
    END_CALL,
    END_CONDITIONAL,
    END_INDIRECT,
    END_JUMP,
    END_NONE,
    PINNED_REGISTERS,
)

# Their immediate counts are masked by the translator, which leaves a count of 0 to the handler.
SHIFTS = ("shl", "shr", "sar", "rol", "ror", "shld", "shrd")
# No compiler makes them of 16 bits, where they are handlers: a twelfth of all stencils.
WIDE_ONLY = (
    *("adc", "bsf", "bsr", "cmov", "crc32", "movsxd", "popcnt", "sbb", "shld", "shrd"),
    *("lzcnt", "tzcnt"),
)
# The bit strings of kernels and programs are of 64 bits; locked operands are of 32 or 64.
BIT_STRING, LOCKED_LEAST = "in_memory", 32
# Two registers of which programs hardly have instructions, by operation size. They share one
# stencil, which finds both in the vCPU's struct, where 81 would each take a registers' pair:
# a third of all stencils, for one in 1,500 instructions of a Linux and two dozen programs.
_SELDOM_ANYWHERE = ("bsr", "bts", "btr", "btc", "crc32", "shld", "shrd", "xchg")
_SELDOM = {
    8: (*_SELDOM_ANYWHERE, "adc", "add", "and", "or", "sbb", "sub", "xor"),
    16: (
        *(*_SELDOM_ANYWHERE, "add", "and", "bt", "cmp", "imul", "mov", "movsx", "movzx", "or"),
        *("sub", "test", "xor"),
    ),
    32: (*_SELDOM_ANYWHERE, "adc", "bsf", "movsxd", "popcnt", "sbb"),
    64: (*_SELDOM_ANYWHERE, "movsx", "movzx"),
}
# They have a meaning of their own with one register twice, which is frequent.
_TWICE = ("adc", "sbb", "test", "xor")
END_BY_NAME = {
    "jmp": END_JUMP, "call": END_CALL, "jcc": END_CONDITIONAL, "jrcxz": END_CONDITIONAL,
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One way to bind the operands of one semantic function."""

    form: Form
    size: int
    memory: bool
    locked: bool
    mode64: bool
    bindings: tuple[Binding, ...]

    @property
    def spilled(self) -> bool:
        """Whether the registers are stored before, and loaded again behind it."""
        return any(binding.kind == "spilled" for binding in self.bindings)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What the generated code depends on; forms that share it share stencils."""
        widths = tuple(o.bits(self.size) for o in self.form.operands)
        kinds = tuple(o.letter in VECTORS for o in self.form.operands)
        rmw = bool(self.form.attributes.get("rmw"))
        function: Any = self.form.function
        if "condition" in self.form.attributes:
            # The condition was computed before, whichever it was.
            function = function.__qualname__
        bindings = self.bindings
        if self.form.mnemonic == "test" and not self.memory and bindings[1].kind == "pinned":
            # Which is which makes no difference.
            bindings = tuple(sorted(bindings, key=lambda b: (b.kind, b.value)))
        return (function, self.size, self.mode64, self.locked, bindings, widths, kinds, rmw)


@dataclass
class Lowering:
    """How the translator treats one form, size and kind of ModRM operand."""

    form: Form
    size: int
    memory: bool
    locked: bool = False
    # Those of the form that are looked at.
    operands: tuple[Operand, ...] = ()
    base: int = 0
    end: int = END_NONE
    # Operand indices that are digits of the key, most significant first.
    digits: tuple[int, ...] = ()
    # Operand indices of XMM registers, whose offsets go into H0, H1 and H2.
    vectors: tuple[int, ...] = ()
    immediate: int = -1
    # Operand index of a register that is copied into the temporary.
    temporary: int = -1
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
    if letter in "EGZRB":
        return [*(f"p{n}" for n in range(PINNED_REGISTERS)), "s"]
    if letter in "VWUH":
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
        elif text in ("s", "v"):
            bindings.append(Binding("slot" if text == "s" else "spilled", next(slots)))
        elif text == "m":
            bindings.append(Binding("memory"))
        elif text == "t":
            bindings.append(Binding("temporary"))
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
    if form.function.__name__ == BIT_STRING:
        return (64,)
    if form.function.__name__ in WIDE_ONLY or form.vex is not None:
        return (32, 64)
    return (16, 32, 64)


def _memories(form: Form) -> list[bool]:
    """Return whether ModRM names memory, for each way that has stencils."""
    fast = form.attributes.get("fast")
    found = []
    if fast != "m" and (not form.has_modrm or form.may_be_register):
        found.append(False)
    if fast != "r" and form.has_modrm and form.may_be_memory:
        found.append(True)
    return found


def _locks(form: Form, memory: bool, size: int) -> list[bool]:
    """Return whether the instruction is locked, for each way that there is."""
    wide = not form.operands or form.operands[0].bits(size) >= LOCKED_LEAST
    if memory and form.attributes.get("atomic"):
        return [True] if wide else []
    lockable = memory and form.attributes.get("lock") and form.operands[0].is_modrm_rm
    return [False, True] if lockable and wide else [False]


def _spilled(lowering: Lowering, combination: tuple[str, ...]) -> tuple[str, ...]:
    """Return the same way to bind operands, or that by which registers are spilled for it."""
    form = lowering.form
    wanted = form.attributes.get("spilled")
    if wanted is True or (wanted == "m" and lowering.memory):
        return tuple("v" if n in lowering.digits else text for n, text in enumerate(combination))
    if len(lowering.digits) < 2:
        return combination
    registers = {combination[n] for n in lowering.digits}
    twice = len(registers) == 1 and form.mnemonic in _TWICE
    size = form.operands[0].bits(lowering.size)
    if form.mnemonic not in _SELDOM.get(size, ()) or (twice and registers != {"s"}):
        return combination
    return tuple("v" if n in lowering.digits else text for n, text in enumerate(combination))


def _jumps(key: Key) -> bool:
    """Return whether a key has stencils with the conditional jump behind it."""
    name = key.form.function.__name__
    bits = key.form.operands[0].bits(key.size) if key.form.operands else 0
    allowed = name in FUSED and not key.locked and not key.spilled
    return allowed and (bits >= 32 or name in FUSED_NARROW)


class Catalogue:
    """All keys and lowerings of `forms`, by default those of x86-64-v2.

    Their order depends on the instruction table alone.
    """

    def __init__(self, forms: list[Form] | None = None) -> None:
        self.keys: list[Key] = []
        self.lowerings: list[Lowering] = []
        # Keys with stencils that jump, in the order of those.
        self.fused: list[int] = []
        known: dict[tuple[Any, ...], int] = {}
        for form in all_forms() if forms is None else forms:
            if not form.attributes.get("fast") or any(
                o.letter in tuple("PQNO") for o in form.operands
            ):
                continue
            for size in _sizes(form):
                for memory in _memories(form):
                    for locked in _locks(form, memory, size):
                        self._add(Lowering(form, size, memory, locked), known)

    def _add(self, lowering: Lowering, known: dict[tuple[Any, ...], int]) -> None:
        form, size, memory = lowering.form, lowering.size, lowering.memory
        name = form.function.__name__
        mode64 = not (form.attributes.get("d64") and size == 32)
        if form.attributes.get("ends") not in (None, IN_HANDLER):
            lowering.end = END_BY_NAME.get(name, END_INDIRECT)
        operands = () if form.attributes.get("unread") else form.operands
        lowering.operands = operands
        if lowering.end in (END_JUMP, END_CONDITIONAL):
            self.lowerings.append(lowering)
            return
        choices = []
        if not memory:
            lowering.temporary = form.attributes.get("temporary", -1)
        for n, operand in enumerate(operands):
            found = ["t"] if n == lowering.temporary else _choices(operand, memory, size)
            if found is None:
                return
            if len(found) == CLASSES:
                lowering.digits += (n,)
            if operand.letter in VECTORS and found == ["s"]:
                lowering.vectors += (n,)
            if found == ["i"]:
                lowering.immediate = n
            choices.append(found)
        lowering.shift = form.mnemonic in SHIFTS
        ways = [_spilled(lowering, combination) for combination in itertools.product(*choices)]
        numbers: dict[tuple[str, ...], int] = {}
        for way in ways:
            if way not in numbers:
                key = Key(form, size, memory, lowering.locked, mode64, _bind(way))
                numbers[way] = self._number(key, known)
            lowering.keys.append(numbers[way])
        self.lowerings.append(lowering)

    def _number(self, key: Key, known: dict[tuple[Any, ...], int]) -> int:
        """Return the number of a key, a new one where there is none like it."""
        identity = key.identity
        number = known.get(identity)
        if number is None:
            number = known[identity] = len(self.keys)
            self.keys.append(key)
            if _jumps(key):
                self.fused.append(number)
        return number


# --- generating --------------------------------------------------------------


def define_key(module: Module, number: int, key: Key) -> Generated | None:
    """Add the stencils of a key to a module; None when it cannot be one."""
    live = _define(module, f"s{number * 2}", key, flags_live=True)
    if live is None:
        return None
    dead = live
    if live.flags.defines or live.flags.changes:
        dead = _define(module, f"s{number * 2 + 1}", key, flags_live=False) or live
    return replace(live, dead=dead.flags, moves=live.moves | dead.moves)


def define_fused(module: Module, number: int, key: Key) -> None:
    """Add the stencils of a key that jump: s<number> leaves the flags, the next one does not."""
    _define(module, f"s{number}", key, flags_live=True, fused=True)
    _define(module, f"s{number + 1}", key, flags_live=False, fused=True)


def _define(
    module: Module, name: str, key: Key, *, flags_live: bool, fused: bool = False
) -> Generated | None:
    found: list[Generated] = []

    def write(builder: FunctionBuilder) -> bool:
        m = StencilOperation(
            builder,
            key.form,
            key.size,
            key.bindings,
            memory=key.memory,
            locked=key.locked,
            mode64=key.mode64,
            flags_live=flags_live,
            fused=fused,
        )
        if not _run(m, key.form.function):
            return False
        target = m.jump_target
        if fused:
            m.jump_on_host_flags()
        elif target is not None and END_BY_NAME.get(key.form.function.__name__) == END_CALL:
            m.tail("TARGET", m.arguments())
        elif target is not None:
            m.tail("NEXT", m.arguments(target.ref))
        else:
            m.tail("NEXT", m.arguments())
        if m.uses_slow:
            m.slow_exit()
        found.append(Generated(m.flag_use, m.flag_use, m.uses_slow, m.access, m.displaces, m.moves))
        return True

    define_stencil(module, name, FRAME, write)
    return found[0] if found else None


def _run(m: StencilOperation, function: Any) -> bool:
    """Run a semantic function on `m`; False when it cannot be a stencil."""
    try:
        m.check_privilege()
        Execution(m.builder, function).run([m], {})
    except Unsuitable:
        return False
    except StagingError as fault:
        if isinstance(fault.__cause__, Unsuitable) or isinstance(
            getattr(fault.__cause__, "__cause__", None), Unsuitable
        ):
            return False
        raise
    return True
