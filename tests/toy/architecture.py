"""The toy ISA as a value."""

from __future__ import annotations

from ringzero.core.memory import GuestMemory
from ringzero.errors import InvalidValueError
from ringzero.isa.contract import Architecture, Identification, check_width
from ringzero.records import record, replace
from tests.toy.cpu import REGISTERS, ToyState

NAMES = tuple(f"r{n}" for n in range(REGISTERS))
SPECIAL = ("pc", "vector", "epc", "cause")
MODELS = {"plain": frozenset({"base"}), "multiplying": frozenset({"base", "mul"})}


@record
class ToyProcessors(Identification):
    """A model by its name."""

    model: str

    @property
    def architecture(self) -> Toy:
        return TOY

    @property
    def features(self) -> frozenset[str]:
        return MODELS[self.model]


class Toy(Architecture[ToyState]):
    name = "toy"
    state_type = ToyState
    registers = (*NAMES, *SPECIAL)
    default_model = "multiplying"

    def identify(
        self, model: str, *, cpus: int, counter_hz: int, bounds: Identification | None
    ) -> ToyProcessors:
        if model not in MODELS:
            raise InvalidValueError(f"no CPU model {model!r}", hint=f"known: {', '.join(MODELS)}")
        return ToyProcessors(model)

    def read_register(self, state: ToyState, name: str) -> int:
        if name in NAMES:
            return state.regs[NAMES.index(name)]
        if name in SPECIAL:
            return int(getattr(state, name))
        raise KeyError(name)

    def write_register(self, state: ToyState, name: str, value: int) -> ToyState:
        if name not in self.registers:
            raise KeyError(name)
        check_width(name, value, 64)
        if name in NAMES:
            regs = list(state.regs)
            regs[NAMES.index(name)] = value
            return replace(state, regs=tuple(regs))
        return replace(state, **{name: value})

    def advance(self, state: ToyState, ticks: int) -> ToyState:
        return replace(state, counter=state.counter + ticks & (1 << 64) - 1)

    def describe(self, state: ToyState, memory: GuestMemory) -> str:
        values = " ".join(f"{name}={self.read_register(state, name):#x}" for name in self.registers)
        code = memory.read(state.pc, 4).hex() if memory.is_ram(state.pc, 4) else "not in memory"
        return f"{values}\ncode: {code}"

    def is_offline(self, state: ToyState) -> bool:
        return state.offline

    def with_offline(self, state: ToyState, offline: bool) -> ToyState:
        return replace(state, offline=offline)

    def started(self, before: ToyState, entry: int, context: int) -> ToyState:
        return ToyState(regs=(context, *(0,) * (REGISTERS - 1)), pc=entry, counter=before.counter)


TOY = Toy()
