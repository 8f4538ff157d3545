"""The engine contract: an Engine makes a Vm, a Vm makes Vcpus, a Vcpu runs until it exits.

An exit is a *value*; the run loop above (`ringzero.vm`) dispatches it to the
buses and runs the vCPU again. Reads are answered with `Vcpu.complete(value)`
before the next `run()`. Nothing here knows a device, a board or an ISA: what
differs between ISAs is in the `Identification` that a Vm is made with, and in
the exits and interrupts of a module of the ISA's name beside this one.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self

from ringzero.core.bus import Show
from ringzero.core.irq import LocalInterrupts, SharedStatus
from ringzero.core.memory import GuestMemory
from ringzero.engine.exits import Exit
from ringzero.errors import EngineError
from ringzero.host.progress import Steps
from ringzero.isa.contract import Architecture, Identification, State
from ringzero.records import record
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.core.transmit import TransmitDrain


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


class Interrupts(enum.Enum):
    """Who keeps the vCPUs' own interrupt controllers (local APICs), and starts vCPUs."""

    BOARD = "board"
    ENGINE = "engine"


class SharedCode(Protocol):
    """What an engine hands on to clones in the same process (`Vm.share`)."""

    def hold(self) -> Self:
        """Return another of it, to be closed on its own."""
        ...

    def share(self) -> None:
        """Be good in processes forked from now on."""
        ...

    def close(self) -> None:
        """Let go of it; what has taken it over stays good."""
        ...


class Vcpu(ABC, Generic[State]):
    """One virtual CPU; `run` is called from one thread, `kick` from any.

    `State` is the state type of its architecture.
    """

    index: int
    # Whether the guest takes interrupts while `debug` has it make single steps.
    steps_with_interrupts = True

    @property
    def asleep(self) -> bool:
        """Whether it waits within `run` for an interrupt; False where the engine cannot tell."""
        return False

    @abstractmethod
    def run(self) -> Exit:
        """Run guest code until something needs the run loop; releases the GIL in guest code."""

    @abstractmethod
    def complete(self, value: int | None) -> None:
        """Answer the access that the last exit asked for; None refuses it, where it can be."""

    @abstractmethod
    def kick(self) -> None:
        """Make `run` return `Kicked` soon (or at once when it is next called)."""

    @abstractmethod
    def wait(self, timeout: float | None) -> None:
        """After Halt: sleep until an interrupt is pending, the timer is due, a kick, or timeout."""

    @abstractmethod
    def get_state(self) -> State:
        """Return the architectural state."""

    @abstractmethod
    def set_state(self, state: State) -> None:
        """Replace the architectural state."""

    @abstractmethod
    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        """Set what makes `run` return DebugStop: every instruction, or virtual addresses.

        Up to four breakpoints; the guest's own debug registers are suspended
        while any is set. Raises EngineError where the engine cannot.
        """

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """Return counters: instructions, translations, TLB misses ..."""


class Vm(ABC, Generic[State]):
    """One machine's engine side: its vCPUs over its memory.

    `on_eoi(number)` is called, on a vCPU's thread, when a level-triggered
    interrupt was served by one of the engine's own interrupt controllers.
    """

    memory: GuestMemory
    on_eoi: Callable[[int], None] | None = None
    # Hears of an exception that ends a thread of the engine's.
    on_fault: Callable[[BaseException], None] | None = None

    @abstractmethod
    def create_vcpu(self, index: int, interrupts: LocalInterrupts | None) -> Vcpu[State]:
        """Make vCPU number `index`, which takes interrupts from its own controller.

        That is the board's (of the kind that the ISA has, as
        `ringzero.engine.x86.LocalApic`), or None where the engine keeps them
        (`Interrupts.ENGINE`); then Halt never comes out of `run`, vCPU 0 starts
        runnable and the others wait within `run` until the guest starts them.
        """

    def send_message(self, address: int, data: int) -> bool:
        """Deliver a message-signalled interrupt to the engine's own interrupt controllers.

        Returns False when it is known that nobody took it, which it always is of
        a level-triggered one. From any thread.
        """
        raise NotImplementedError("this engine keeps no interrupt controllers")

    def add_doorbell(self, address: int, width: int, value: int, ring: Callable[[], None]) -> bool:
        """Ask that a guest's MMIO write of `value` call `ring` on a thread of the engine.

        The vCPU does not wait for it and makes no exit. Returns False where the
        engine has no such thing; then the write comes out of `run` as any other.
        """
        return False

    def gather_writes(
        self,
        port: bool,
        address: int,
        size: int,
        write: Callable[[int, int, Sequence[int]], None],
        *,
        prompt: bool = False,
        then: Callable[[], None] | None = None,
        changes: int | None = None,
        clears: int = 0,
        hold: Callable[[Callable[[int], None]], None] | None = None,
    ) -> bool:
        """Ask that a guest's writes to `size` bytes at a port or MMIO address make no exit.

        For registers in which a write only leaves a value, as an index register:
        `write(address, width, values)` is called later with values that came one after the
        other, in order, before any other access of the machine comes out of `run`, and by
        `settle`. With `prompt` it is called within a millisecond of guest code even where
        nothing else happens, as for what leaves the machine. `then` is called after `write`
        and the access before which that was, before the guest goes on.

        A write that is gathered changes the register that is shadowed at the port `changes`:
        its reads come out of `run`, or, with `clears`, give what it was shown as `then`. With
        `clears` only those writes are gathered that clear these bits of the register, and leave
        the others as they are; `hold` is called with what is to be told of its value when that
        has come by another way.

        Returns False where the engine has no such thing; then they come out of `run` as any
        other.
        """
        return False

    def shadow_port(self, address: int, read: Callable[[], None] | None = None) -> Show | None:
        """Ask that a guest's reads of the byte at a port make no exit.

        They are answered with the value that the returned function was last shown, from any
        thread; with None, as at first, they come out of `run`, and so they do where the engine
        has no such thing and returns None. `read` is called for each read that changed the
        register, in its place among the writes that are gathered.
        """
        return None

    def share_status(self, status: int, acknowledge: int) -> SharedStatus | None:
        """Ask that a guest's accesses to an interrupt status register make no exit.

        It is a register of 32 bits, read at the MMIO address `status`; writes to `acknowledge`
        clear the bits that are set in them. Returns what holds it from now on, or None where
        the engine has no such thing; then they come out of `run` as any other, and so does a
        write that leaves bits set.
        """
        return None

    def drain_queue(
        self, address: int, number: int, ready: Callable[[], None]
    ) -> TransmitDrain | None:
        """Ask that a driver's notifications of a transmit virtqueue make no exit.

        A notification is a write of `number` to the register of 32 bits at the MMIO address.
        What is returned drains the queue whenever the queue is lent to it. `ready` is called
        when output waits in it: on a vCPU's thread, within a millisecond of guest code, before
        any other access comes out of `run`, and by `settle`. What the engine cannot serve comes
        out of `run` as any other write; None where it has no such thing.
        """
        return None

    def settle(self) -> None:
        """With vCPUs stopped: return when all that was rung or gathered has been served."""

    def track_dirty(self, enabled: bool) -> None:
        """Begin or end to note which pages vCPUs write; raises EngineError if it cannot."""
        raise EngineError("this engine does not track dirty pages")

    def take_dirty(self) -> list[int]:
        """Return the numbers of the guest pages that vCPUs wrote since the last call, sorted."""
        raise EngineError("this engine does not track dirty pages")

    def share(self) -> SharedCode | None:
        """With vCPUs stopped: return what clones in this process may take over, or None.

        It stays good whatever becomes of this machine.
        """
        return None

    def adopt(self, code: SharedCode | None) -> None:
        """Before the first vCPU is made: take over what the original's `share` returned.

        None is nothing to take over.
        """

    def translate_at_once(self) -> AbstractContextManager[None] | None:
        """Return what has guest code translated the first time that it runs, for a block.

        None where no code is translated.
        """
        return None

    def code_pages(self) -> bytes:
        """Return what is known of the pages of RAM with code that ran; for `expect`."""
        return b""

    def expect(self, known: bytes) -> bytes | None:
        """Before the first vCPU runs: make ready for what `code_pages` told of the same RAM.

        What has been changed since, by whomever, is passed over. Returns what is to be told the
        next time, where that is something else.
        """
        return None

    def save(self) -> dict[str, Any] | None:
        """Return what the engine keeps for the whole machine, as plain data, or None."""
        return None

    def restore(self, state: Any, elapsed: int = 0) -> None:
        """Put back what `save` returned, `elapsed` nanoseconds later; raises StateError.

        `state` may be anything that a file held.
        """

    @property
    @abstractmethod
    def counter_hz(self) -> int:
        """Frequency of the guest's counter (TSC, system counter), in hertz."""

    @abstractmethod
    def read_counter(self) -> int:
        """Return the guest's counter now."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; vCPUs must have stopped."""


class Engine(ABC):
    """A way to execute guest code."""

    name: str
    # Who can keep the interrupt controllers of a machine's vCPUs; a machine takes the first.
    interrupts: ClassVar[tuple[Interrupts, ...]] = (Interrupts.BOARD,)
    # Whether guests run faster in large pages, which costs a machine's first fork a copy.
    likes_large_pages: ClassVar[bool] = False
    # Whether machines go on from templates; where booting takes a moment, they need none.
    keeps_templates: ClassVar[bool] = False
    # Of the engines that are usable on a host, `auto` takes the one of the highest rank.
    rank: ClassVar[int] = 0
    # The device node that `availability` measures, which takes a while: its verdict is
    # remembered for this node until the host boots again. None: it costs nothing.
    device: ClassVar[Path | None] = None

    @abstractmethod
    def runs(self, architecture: Architecture[Any]) -> bool:
        """Return whether the engine runs guests of `architecture`."""

    @property
    @abstractmethod
    def counter_hz(self) -> int:
        """Frequency that guests' counters will have, in hertz."""

    def processor_bounds(self) -> Identification | None:
        """Return what bounds the processors that a guest may be shown; None: no bounds."""
        return None

    @abstractmethod
    def availability(self) -> Availability:
        """Say whether this host can run the engine, measured and not guessed."""

    def code_version(self) -> str:
        """Return what tells the code of this engine from that of another version; "" if nothing.

        A guest's memory may bear the marks of an engine's fault: what was saved by other code is
        not gone on from unasked.
        """
        return ""

    def prepare(  # noqa: B027 - an engine that needs no preparation
        self, steps: Steps, architecture: Architecture[Any], model: str
    ) -> None:
        """Make what is made once on a host for processors of a model, reporting to `steps`.

        Nothing to do where it was made before; whoever does not call this waits for it
        without a word when the first machine is made. Raises EngineError, HostError.
        """

    def offers(self) -> dict[str, Any]:
        """Return what `ringzero info` says of a usable engine, as plain data. Raises HostError."""
        return {}

    @abstractmethod
    def create_vm(
        self,
        memory: GuestMemory,
        processors: Identification,
        *,
        interrupts: Interrupts = Interrupts.BOARD,
    ) -> Vm[Any]:
        """Make a Vm of the architecture whose `processors` the guest is to see.

        The engine itself fills in what differs from vCPU to vCPU and what
        follows the guest's own settings (on x86: APIC ids, OSXSAVE). Raises
        EngineError for an architecture that it does not run, and for interrupt
        controllers that it does not keep.
        """


ENGINES: Registry[type[Engine]] = Registry("engine", "ringzero.engine", nested=True)
