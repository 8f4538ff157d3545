"""VEX-encoded instructions as their SSE twins, lane by lane of 128 bits.

What AVX and AVX2 add to an SSE instruction is a third operand, a second lane, and that
the rest of the destination is cleared (SDM vol. 1, 14.1). So the semantic function of
the SSE instruction runs for each lane, on an `Operation` that shows it that lane; what it
writes is kept until all lanes are done, as a fault leaves the destination as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ringzero.isa.x86.insn.mxcsr import begin, end
from ringzero.isa.x86.insn.sse_operands import Semantic, constant, low
from ringzero.isa.x86.table.forms import FORMS, VEX_MAPS, Form, Operand, instruction, parse_operand
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm, staged, u32, v128


@dataclass(frozen=True)
class Shape:
    """How the operands of a VEX-encoded form are those of its SSE twin.

    shift: the twin's operand n is operand n + shift here, its destination operand 0
    lanes: of 128 bits each
    twin: the twin's operands
    operands: those of the form
    step: how many more bits of the immediate are skipped for the second lane
    aligned: whether its operand in memory must be aligned
    together: whether SSE exceptions are raised by all lanes together
    """

    shift: int
    lanes: int
    twin: tuple[Operand, ...]
    operands: tuple[Operand, ...]
    step: int = 0
    aligned: bool = False
    together: bool = False


class _Memory:
    """The address of an operand in memory, as `Lane.address` gives it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Lane:
    """`Operation` on one lane; whatever is not about vector operands is the instruction's own."""

    def __init__(
        self, m: Operation, shape: Shape, number: int, known: dict[int, Any], results: list[Any]
    ) -> None:
        self._m = m
        self._shape = shape
        self._number = number
        # Operands that all lanes see the same of, once they were read.
        self._known = known
        self._results = results
        self.nested = shape.together

    def __getattr__(self, name: str) -> Any:
        return getattr(self._m, name)

    def is_memory(self, n: int) -> bool:
        return self._m.is_memory(n + self._shape.shift)

    def read(self, n: int) -> Any:
        shape, m = self._shape, self._m
        place = n + shape.shift
        operand = shape.operands[place]
        if operand.bits(32) == 256:
            half = m.read_half(place, self._number, shape.aligned)
            return low(half) if shape.twin[n].bits(32) == 64 else half
        if place not in self._known:
            aligned = shape.aligned and m.is_memory(place)
            self._known[place] = (
                m.load(v128, m.address(place, 16, 16), aligned=True) if aligned else m.read(place)
            )
        value = self._known[place]
        return value >> self._number * shape.step if operand.is_immediate else value

    def write(self, n: int, value: Any) -> None:
        operand = self._shape.operands[0]
        if value.kind == v128:
            self._results.append(value)
        elif operand.letter in "VUH" and not self._m.is_memory(0):
            scalar = "movss" if value.kind == u32 else "movsd"
            first = self._m.read_half(self._shape.shift, 0)
            self._results.append(host_asm(v128, f"{scalar} $2, $0", "=x,0,x", first, value))
        else:
            self._m.write(0, value)

    def address(self, n: int, size: int = 1, alignment: int = 1) -> Any:
        return _Memory(n)

    def load(self, kind: Any, address: Any, aligned: bool = False) -> Any:
        if isinstance(address, _Memory):
            return self.read(address.number)
        return self._m.load(kind, address, aligned)

    def store(self, kind: Any, address: Any, value: Any, aligned: bool = False) -> None:
        if isinstance(address, _Memory):
            self._results.append(value)
        else:
            self._m.store(kind, address, value, aligned)


@staged
def write_vector(m: Operation, results: list[Any], aligned: bool) -> None:
    """Write the lanes of operand 0, and clear what is above them in a register."""
    if len(results) == 2:
        m.write_halves(0, results[0], results[1], aligned)
    elif not m.is_memory(0):
        m.write_halves(0, results[0], constant(0))
    elif aligned:
        m.store(v128, m.address(0, 16, 16), results[0], aligned=True)
    else:
        m.write(0, results[0])


def _nothing() -> tuple[dict[int, Any], list[Any]]:
    return {}, []


def by_lanes(semantic: Semantic, shape: Shape) -> Semantic:
    """Return the semantic function of a VEX-encoded form with a twin's `semantic`."""
    lane = staged(semantic)

    def whole(m: Operation) -> None:
        known, results = _nothing()
        if shape.together:
            begin(m)
        for number in range(shape.lanes):
            lane(Lane(m, shape, number, known, results))
        if shape.together:
            end(m)
        if len(results) != 0:
            write_vector(m, results, shape.aligned)

    return whole


def enter_vex(
    home: str, mnemonic: str, encoding: str, operands: str, semantic: Semantic, **attributes: Any
) -> None:
    """Enter a semantic function for a form with a VEX prefix, as one of the module `home`."""
    semantic.__module__ = home
    semantic.__name__ = semantic.__qualname__ = mnemonic
    semantic.__doc__ = f"{mnemonic.upper()} (Intel SDM vol. 2)."
    text = f"{encoding} : {operands}" if operands else encoding
    instruction(text, name=mnemonic, avx=True, **attributes)(semantic)


# Words of an encoding for VEX.L, the lanes that there are then, and the size of operands.
LENGTHS = (("128", 1, "x"), ("256", 2, "qq"))


@staged
def read_lane(m: Operation, n: int, lane: int, lanes: int) -> Any:
    """Return lane `lane` of operand `n`, which has `lanes`."""
    return m.read(n) if lanes == 1 else m.read_half(n, lane)


def host_lanes(mnemonic: str, lanes: int) -> Semantic:
    """Return what does with each lane what the host's instruction of three operands does."""

    def semantic(m: Operation) -> None:
        results = []
        for lane in range(lanes):
            second = read_lane(m, 2, lane, lanes)
            first = read_lane(m, 1, lane, lanes)
            results.append(host_asm(v128, f"{mnemonic} $2, $1, $0", "=x,x,x", first, second))
        write_vector(m, results, False)

    return semantic


# --- twins -----------------------------------------------------------------

_MAP_NAMES = {number: name for name, number in VEX_MAPS.items()}
# Sizes of an operand in a form of 256 bits, by that in its twin. Half of 64 bits: see MOVDDUP.
_WIDE = {"x": "qq", "q": "qq"}
# VEX.W, the operand that it stands for, and whether it is for 64-bit mode alone.
_WIDTHS = (("W0", "Ed", False), ("W1", "Eq", True))


@dataclass(frozen=True)
class Twins:
    """What must be known of a module's SSE instructions to have their VEX-encoded forms.

    unary: without a further source, which the others have in VEX.vvvv
    both: with a second form, of 256 bits
    narrow: those of `both` whose last vector operand stays at 128 bits (counts of shifts)
    by_width: VEX.W chooses their operand size, and 1 is #UD outside 64-bit mode
    steps, aligned, together: see `Shape`
    left_out: mnemonics that have no such form, or one that differs
    """

    unary: frozenset[str] = frozenset()
    both: frozenset[str] = frozenset()
    narrow: frozenset[str] = frozenset()
    aligned: frozenset[str] = frozenset()
    together: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    by_width: frozenset[str] = frozenset()
    steps: dict[str, int] | None = None


def operands_named(text: str) -> tuple[Operand, ...]:
    """Return the operands that a text names."""
    return tuple(map(parse_operand, text.split()))


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def enter_twins(home: str, module: str, twins: Twins) -> None:
    """Enter in the module `home` VEX-encoded forms of the instructions of `module`."""
    for form in list(FORMS):
        if form.function.__module__.rpartition(".")[2] != module:
            continue
        if form.mnemonic not in twins.left_out:
            _enter_twin(home, form, twins, 1)
            if form.mnemonic in twins.both:
                _enter_twin(home, form, twins, 2)


def _enter_twin(home: str, form: Form, twins: Twins, lanes: int) -> None:
    name = form.mnemonic
    words = [_word(operand) for operand in form.operands]
    by_immediate = form.digit is not None
    scalar = name[0] != "p" and (name.endswith(("ss", "sd")) or "ss2" in name or "sd2" in name)
    shift = 0
    if name not in twins.unary:
        # The destination of a shift by an immediate is in VEX.vvvv.
        words = ["Hx", *words] if by_immediate else ["Vx", "H" + words[0][1:], *words[1:]]
        shift = 1
    if lanes == 2:
        words = [_widened(word) for word in words]
        if name in twins.narrow and not by_immediate:
            words[-1] = "Wx"
    length = "256" if lanes == 2 else "LIG" if scalar else "128"
    prefix = f".{form.prefix:02X}" if form.prefix else ""
    modrm = next(word for word in form.text.split() if word.startswith("/"))
    kept = {k: v for k, v in form.attributes.items() if k in ("fast", "sized", "needs")}
    for width, size, only64 in _WIDTHS if name in twins.by_width else (("WIG", "Ey", False),):
        text = " ".join(size if word == "Ey" else word for word in words)
        shape = Shape(
            *(shift, lanes, form.operands, operands_named(text)),
            step=(twins.steps or {}).get(name, 0),
            aligned=name in twins.aligned,
            together=lanes == 2 and name in twins.together,
        )
        code = f"VEX.{length}{prefix}.{_MAP_NAMES[form.opcode_map]}.{width} {form.opcode:02X}"
        semantic = by_lanes(form.function, shape)
        enter_vex(home, "v" + name, f"{code} {modrm}", text, semantic, only64=only64, **kept)


def _word(operand: Operand) -> str:
    return operand.fixed or operand.letter + operand.size


def _widened(word: str) -> str:
    """Return an operand of 256 bits for a vector or memory operand."""
    size = _WIDE.get(word[1:])
    return word[0] + size if size and word[0] in "VWUHM" else word
