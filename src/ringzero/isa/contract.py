"""What a guest ISA gives to the layers above it, as one value: an `Architecture`.

Engines, boards and `ringzero.vm` take what differs between ISAs from it: the
state of a vCPU, its registers' names, how a vCPU is started, what a guest finds
out of its processors. `ringzero.isa.x86.architecture.X86_64` is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from ringzero.core.memory import GuestMemory
from ringzero.errors import EngineError, InvalidValueError
from ringzero.records import record

State = TypeVar("State")


class Identification(ABC):
    """What a guest finds out of its processors: CPUID leaves, identification registers.

    Immutable, and the same for all vCPUs of a machine; an engine fills in what
    differs between them.
    """

    @property
    @abstractmethod
    def architecture(self) -> Architecture[Any]:
        """Whose processors these are."""

    @property
    @abstractmethod
    def features(self) -> frozenset[str]:
        """Names of the features shown, as the guest's Linux calls them."""


@record
class ProcessorModel:
    """A model of processors that users can ask for, on this host.

    `asks` names the features of the host's processor that an engine which translates needs for
    it, `lacks` those of them that this host has not. A model that is `partial` is there without
    them, less what they are needed for. `translated`: not by hardware's help alone.
    """

    name: str
    summary: str
    asks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    partial: bool = False
    translated: bool = True


@record
class DebugRegister:
    """A register as debuggers name it, and its width."""

    name: str
    bits: int


class DebugTarget(ABC, Generic[State]):
    """One guest ISA as gdb sees it: registers by gdb's numbers and names, addresses."""

    @abstractmethod
    def registers(self, state: State) -> tuple[DebugRegister, ...]:
        """Return the registers in the order of their numbers; the same for all of a machine's."""

    @abstractmethod
    def describe(self, state: State) -> str:
        """Return gdb's target description, as XML."""

    @abstractmethod
    def read(self, state: State, name: str) -> int:
        """Return a register; raises KeyError."""

    @abstractmethod
    def write(self, state: State, name: str, value: int) -> State:
        """Return `state` with a register changed.

        Raises KeyError, and InvalidValueError for one that cannot be changed.
        """

    @abstractmethod
    def where(self, state: State) -> int:
        """Return the virtual address of the next instruction."""

    @abstractmethod
    def physical(self, state: State, memory: GuestMemory, address: int) -> int | None:
        """Return where a virtual address leads, rights aside, or None."""


class Architecture(ABC, Generic[State]):
    """One guest ISA. `State` is the record of all that one vCPU is (see `core.state`)."""

    # As `uname -m` says it in a guest.
    name: ClassVar[str]
    state_type: type[State]
    # The model of processors that a machine has which asks for none.
    default_model: ClassVar[str]
    # Registers that `read_register` and `write_register` know, in the order to show them.
    registers: Sequence[str]

    # ---- processors -------------------------------------------------------

    @abstractmethod
    def identify(
        self, model: str, *, cpus: int, counter_hz: int, bounds: Identification | None
    ) -> Identification:
        """Return what a machine with `cpus` processors of `model` shows to its guest.

        `counter_hz` is the frequency of the guest's counter; `bounds` is what
        the engine can give, None: everything that is known. Raises
        InvalidValueError for an unknown model.
        """

    def models(self) -> Sequence[ProcessorModel]:
        """Return the models that there are, the default first."""
        return ()

    def compiled_guest(self, model: str) -> str:
        """Return the guest of compiled engines (`jit.guest`) that has what `model` has."""
        return self.name

    # ---- state ------------------------------------------------------------

    @abstractmethod
    def read_register(self, state: State, name: str) -> int:
        """Return one of `registers`; raises KeyError."""

    @abstractmethod
    def write_register(self, state: State, name: str, value: int) -> State:
        """Return `state` with one of `registers` changed; raises KeyError.

        Raises InvalidValueError for a value that the register has no room for.
        """

    @abstractmethod
    def advance(self, state: State, ticks: int) -> State:
        """Return `state` with its counter moved on, and all that is derived from it."""

    @abstractmethod
    def describe(self, state: State, memory: GuestMemory) -> str:
        """Return what a user is told of a vCPU that cannot go on: registers, code, in lines."""

    def debug_target(self) -> DebugTarget[State]:
        """Return what debuggers are told of it. Raises EngineError where that is not known."""
        raise EngineError(f"no debugger is told of {self.name} processors")

    # ---- starting secondary processors ------------------------------------

    @abstractmethod
    def is_offline(self, state: State) -> bool:
        """Return whether a vCPU in `state` runs nothing until another one starts it."""

    @abstractmethod
    def with_offline(self, state: State, offline: bool) -> State:
        """Return `state`, waiting to be started or not."""

    @abstractmethod
    def started(self, before: State, entry: int, context: int) -> State:
        """Return the state in which a vCPU begins that was `before` (`core.irq.StartControl`).

        Raises EngineError for an entry that the ISA has not.
        """


def check_width(name: str, value: int, bits: int) -> None:
    """Raise InvalidValueError unless register `name` of `bits` bits has room for `value`."""
    if not 0 <= value < 1 << bits:
        raise InvalidValueError(f"{name} takes {bits} bits, not {value:#x}")
