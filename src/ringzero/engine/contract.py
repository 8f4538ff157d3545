"""The engine contract: an Engine makes a Vm, a Vm makes Vcpus, a Vcpu runs until it exits.

An exit is a *value*; the run loop above (`ringzero.vm`) dispatches it to the
buses and runs the vCPU again. Reads are answered with `Vcpu.complete(value)`
before the next `run()`. Nothing here knows a device or a board.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import GuestMemory
from ringzero.errors import EngineError
from ringzero.records import record
from ringzero.registry import Registry


class _Access:
    """A port or MMIO access; made so often that it is no record, but the same to its users."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        names: tuple[str, ...] = type(self).__slots__
        shown = ", ".join(f"{name}={getattr(self, name):#x}" for name in names)
        return f"{type(self).__name__}({shown})"

    def _values(self) -> tuple[int, ...]:
        names: tuple[str, ...] = type(self).__slots__
        return tuple(getattr(self, name) for name in names)


class PortRead(_Access):
    """IN or INS of `width` bytes; answer with `complete`."""

    __slots__ = ("port", "width")

    def __init__(self, port: int, width: int) -> None:
        self.port, self.width = port, width


class PortWrite(_Access):
    """OUT or OUTS of `width` bytes."""

    __slots__ = ("port", "value", "width")

    def __init__(self, port: int, width: int, value: int) -> None:
        self.port, self.width, self.value = port, width, value


class MmioRead(_Access):
    """A load of `width` bytes from a guest-physical address that is not RAM; answer it."""

    __slots__ = ("address", "width")

    def __init__(self, address: int, width: int) -> None:
        self.address, self.width = address, width


class MmioWrite(_Access):
    """A store of `width` bytes to a guest-physical address that is not RAM."""

    __slots__ = ("address", "value", "width")

    def __init__(self, address: int, width: int, value: int) -> None:
        self.address, self.width, self.value = address, width, value


@record
class MsrRead:
    """RDMSR of a register the engine does not keep; answer with `complete`, or None for #GP."""

    index: int


@record
class MsrWrite:
    """WRMSR of a register the engine does not keep; `complete(None)` gives #GP.

    Needs no `complete` when it succeeded.
    """

    index: int
    value: int


@record
class Halt:
    """HLT with nothing pending; run again after `Vcpu.wait`."""


@record
class Shutdown:
    """The vCPU cannot go on (triple fault); `detail` describes its last state."""

    detail: str


@record
class DebugStop:
    """A breakpoint, hook or single step of the host's debugger was reached."""

    address: int


@record
class Kicked:
    """`Vcpu.kick` was called, or the engine wants the run loop to look around."""


Exit = (
    PortRead
    | PortWrite
    | MmioRead
    | MmioWrite
    | MsrRead
    | MsrWrite
    | Halt
    | Shutdown
    | DebugStop
    | Kicked
)


class Usability(enum.Enum):
    """What an engine says of this host."""

    USABLE = "usable"
    SLOW = "slow"
    UNUSABLE = "unusable"


@record
class Availability:
    """Whether an engine can serve here, and the one-line reason for the user."""

    usability: Usability
    reason: str


class Vcpu(ABC):
    """One virtual CPU; `run` is called from one thread, `kick` from any."""

    index: int

    @abstractmethod
    def run(self) -> Exit:
        """Run guest code until something needs the run loop; releases the GIL in guest code."""

    @abstractmethod
    def complete(self, value: int | None) -> None:
        """Answer the read (or MSR write) that the last exit asked for."""

    @abstractmethod
    def kick(self) -> None:
        """Make `run` return `Kicked` soon (or at once when it is next called)."""

    @abstractmethod
    def wait(self, timeout: float | None) -> None:
        """After Halt: sleep until an interrupt is pending, the timer is due, a kick, or timeout."""

    @abstractmethod
    def get_state(self) -> Any:
        """Return the architectural state (`ringzero.isa.x86.state.CpuState`)."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Replace the architectural state."""

    @abstractmethod
    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        """Set what makes `run` return DebugStop: every instruction, or linear addresses.

        Up to four breakpoints; the guest's own use of DR0-7 is suspended while
        any is set. Raises EngineError where the engine cannot.
        """

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """Return counters: instructions, translations, TLB misses ..."""


class Vm(ABC):
    """One machine's engine side: its vCPUs over its memory.

    `on_eoi(vector)` is called, on a vCPU's thread, when a level-triggered
    interrupt was served by one of the engine's own local APICs.
    """

    memory: GuestMemory
    on_eoi: Callable[[int], None] | None = None

    @abstractmethod
    def create_vcpu(self, index: int, interrupts: LocalInterrupts | None) -> Vcpu:
        """Make vCPU number `index`, which takes interrupts from its local APIC.

        `interrupts` is None where the engine keeps the local APICs (`apics` of
        `Engine.create_vm`); then Halt never comes out of `run`, vCPU 0 starts
        runnable and the others wait for INIT and STARTUP within `run`.
        """

    def send_message(self, address: int, data: int) -> bool:
        """Deliver a message-signalled interrupt to the engine's own local APICs.

        Returns False when it is known that nobody took it (SDM vol. 3A, 11.11), which it
        always is of a level-triggered one. From any thread.
        """
        raise NotImplementedError("this engine keeps no local APICs")

    def add_doorbell(self, address: int, width: int, value: int, ring: Callable[[], None]) -> bool:
        """Ask that a guest's MMIO write of `value` call `ring` on a thread of the engine.

        The vCPU does not wait for it and makes no exit. Returns False where the
        engine has no such thing; then the write comes out of `run` as any other.
        """
        return False

    def gather_writes(
        self, port: bool, address: int, size: int, write: Callable[[int, int, int], None]
    ) -> bool:
        """Ask that a guest's writes to `size` bytes at a port or MMIO address make no exit.

        For registers in which a write only leaves a value, as an index register:
        `write(address, width, value)` is called later, in order, before any other
        access of the machine comes out of `run`, and by `settle`. Returns False
        where the engine has no such thing; then they come out of `run` as any other.
        """
        return False

    def settle(self) -> None:  # noqa: B027 - an engine without doorbells has nothing to do
        """With vCPUs stopped: return when all that was rung or gathered has been served."""

    def track_dirty(self, enabled: bool) -> None:
        """Begin or end to note which pages vCPUs write; raises EngineError if it cannot."""
        raise EngineError("this engine does not track dirty pages")

    def take_dirty(self) -> list[int]:
        """Return the numbers of the guest pages that vCPUs wrote since the last call, sorted."""
        raise EngineError("this engine does not track dirty pages")

    def share(self) -> Any:
        """With vCPUs stopped: return what clones in this process may take over, or None.

        It has `hold`, which returns another of it, and `close`, and stays good whatever
        becomes of this machine.
        """
        return None

    def adopt(self, code: Any) -> None:  # noqa: B027 - an engine without anything to share
        """Before the first vCPU is made: take over what the original's `share` returned.

        None is nothing to take over.
        """

    def save(self) -> Any:
        """Return what the engine keeps for the whole machine, as plain state, or None."""
        return None

    def restore(self, state: Any) -> None:  # noqa: B027 - as `save`
        """Put back what `save` returned; raises StateError."""

    @property
    @abstractmethod
    def tsc_hz(self) -> int:
        """Frequency of the guest's time-stamp counter, in hertz."""

    @abstractmethod
    def read_tsc(self) -> int:
        """Return the guest's time-stamp counter now."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; vCPUs must have stopped."""


class Engine(ABC):
    """A way to execute guest code."""

    name: str
    # Whether `create_vm` can be asked for local APICs inside the engine.
    keeps_apics: ClassVar[bool] = False
    # Whether guests run faster in large pages, which costs a machine's first fork a copy.
    likes_large_pages: ClassVar[bool] = False

    @property
    @abstractmethod
    def tsc_hz(self) -> int:
        """Frequency that guests' time-stamp counters will have, in hertz."""

    def supported_cpuid(self) -> tuple[Any, ...] | None:
        """Return the CpuidLeaf entries that bound what a guest may see; None: no bounds."""
        return None

    @abstractmethod
    def availability(self) -> Availability:
        """Say whether this host can run the engine, measured and not guessed."""

    @abstractmethod
    def create_vm(self, memory: GuestMemory, cpuid: Iterable[Any], *, apics: bool = False) -> Vm:
        """Make a Vm; `cpuid` lists the CpuidLeaf entries that the guest is to see.

        The engine itself fills in what differs from vCPU to vCPU (APIC ids) and
        what follows control registers (OSXSAVE). `apics` asks for local APICs
        inside the engine, which only one with `keeps_apics` has.
        """


ENGINES: Registry[type[Engine]] = Registry(
    "engine", "ringzero.engine", support=("contract", "info", "select", "shutdown")
)
