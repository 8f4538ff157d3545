"""What the software engine does for guests of every architecture, and what each adds.

A vCPU is a native struct (`isa.execution.MEMBERS`) that compiled code works
on; here is the side of it that Python sees. An architecture derives its own
`SoftVm` and `SoftVcpu`, and registers what makes the first in
`ringzero.engine.soft.guests`, in a module of the architecture's name.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import Vcpu, Vm
from ringzero.engine.exits import DebugStop, Exit, Halt, Kicked, MmioRead, MmioWrite, Shutdown
from ringzero.engine.soft.code import Lookaside
from ringzero.errors import EngineError
from ringzero.isa import execution
from ringzero.isa.contract import Identification, State
from ringzero.isa.execution import NEVER
from ringzero.native.view import view_of
from ringzero.registry import Registry

# Instructions between two looks at requests and the timer: some 20 us of work.
SLICE = 20_000
MASK_64 = (1 << 64) - 1
# Members of the struct by their size in bytes.
_INTEGERS: dict[int, Any] = {4: ctypes.c_uint32, 8: ctypes.c_uint64}


class Counter(Protocol):
    """The counter that a machine's vCPUs share, as one of them sees it."""

    @property
    def counter_hz(self) -> int: ...

    def read_counter(self) -> int: ...

    def read_host_counter(self) -> int:
        """Return the host's time-stamp counter now."""
        ...

    def common_offset(self, vcpu: SoftVcpu[Any]) -> int:
        """Return the counter's offset for a vCPU whose own was just set."""
        ...


class SoftVcpu(Vcpu[State]):
    """One vCPU: its struct, its exits, its interrupts.

    `struct` is the native type; `enter(address)` runs guest code and returns the exit's kind.
    """

    # Kinds of exits after which the guest waits for no value.
    writes: frozenset[int] = frozenset((execution.EXIT_MMIO_WRITE,))

    def __init__(
        self,
        index: int,
        struct: Any,
        enter: Callable[[int], int],
        counter: Counter,
        interrupts: LocalInterrupts,
    ) -> None:
        self.index = index
        self._counter = counter
        self._interrupts = interrupts
        self._memory = mmap.mmap(-1, struct.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.cpu = view_of(struct, self.address)
        cpu = self.cpu
        cpu.deadline = NEVER
        cpu.reported = execution.NOT_REPORTED
        cpu.slice = cpu.budget = SLICE
        cpu.index = index
        self._enter = enter
        self._pending_exit = execution.EXIT_NONE
        # What the next run() returns, found while an access was finished.
        self._early: Exit | None = None
        self._wake = threading.Event()
        self._telling = threading.Lock()
        requests = self.address + struct.offset_of("requests")
        # What every exit reads and writes, so not through the view.
        (
            self._exit_kind,
            self._exit_width,
            self._exit_address,
            self._exit_value,
            self._external_done,
            self._deadline,
            self._exits,
        ) = (
            _INTEGERS[struct.fields[name].kind.size].from_address(
                self.address + struct.offset_of(name)
            )
            for name in (
                "exit_kind",
                "exit_width",
                "exit_address",
                "exit_value",
                "external_done",
                "deadline",
                "count_exits",
            )
        )
        self._kick, self._interrupt_flag, self._flush, self._isa_flag = (
            ctypes.c_uint8.from_address(requests + bit.bit_length() // 8)
            for bit in (
                execution.REQUEST_KICK,
                execution.REQUEST_INTERRUPT,
                execution.REQUEST_FLUSH,
                execution.REQUEST_OF_ISA,
            )
        )
        self._kind_handlers: dict[int, Callable[[], Exit | None]] = {
            execution.EXIT_MMIO_READ: self._mmio_read,
            execution.EXIT_MMIO_WRITE: self._mmio_write,
            execution.EXIT_HALT: self._halt,
            execution.EXIT_SHUTDOWN: self._shutdown,
            execution.EXIT_DEBUG: self._debug_stop,
            execution.EXIT_REQUEST: self._request,
            execution.EXIT_INTERRUPT: self._interrupt,
            execution.EXIT_TIMER: self._timer,
        }
        interrupts.on_change(self._interrupts_changed)

    # --- what an architecture adds ---

    @abstractmethod
    def _read_state(self) -> State:
        """Return the state that the struct holds; no access waits for an answer."""

    @abstractmethod
    def _write_state(self, state: State) -> None:
        """Put a state into the struct, its counter's offset included. Raises StateError."""

    def share(self) -> Lookaside | None:
        """Hand what it has found out on to a clone's, if it does that; the machine stands still."""
        return None

    def close(self) -> None:
        """Give back what it has of the host's memory; it runs no more."""

    @abstractmethod
    def _code_address(self) -> int:
        """Return the virtual address of the next instruction."""

    @abstractmethod
    def _last_words(self) -> str:
        """Return what there is to say of a vCPU that cannot go on."""

    def _after_exit(self) -> None:
        """Do what has to be done between two runs of native code."""

    # --- running ---

    def run(self) -> Exit:
        if self._early is not None:
            early, self._early = self._early, None
            return early
        if self._pending_exit in self.writes:
            self.complete(0)
        elif self._pending_exit != execution.EXIT_NONE:
            raise EngineError("a vCPU cannot run before its read is answered", vcpu=self.index)
        self._before_run()
        while True:
            result = self._run_once()
            if result is not None:
                return result

    def _before_run(self) -> None:
        """Tell native code of the timer, which may have been set since."""
        deadline = self._interrupts.deadline()
        self._deadline.value = NEVER if deadline is None else deadline

    def _run_once(self) -> Exit | None:
        kind = self._enter(self.address)
        self._exits.value += 1
        self._after_exit()
        return self._kind_handlers[kind]()

    def _finish_access(self) -> None:
        """Run an instruction whose outside access was answered to its end, and no further."""
        if self._pending_exit in self.writes:
            self.complete(0)
        cpu = self.cpu
        while (cpu.external_done or cpu.refuse) and self._early is None:
            # Native code looks at requests when the instruction is complete. If it has
            # another access, that is what the next run() returns; else that is Kicked.
            self._kick.value = 1
            self._early = self._run_once()

    def complete(self, value: int | None) -> None:
        self._pending_exit = execution.EXIT_NONE
        if value is None:
            self.cpu.refuse = 1
            self._external_done.value = 0
            return
        done = self._external_done.value
        self.cpu.external_values[done] = value
        self._external_done.value = done + 1

    def kick(self) -> None:
        self._kick.value = 1
        self._wake.set()

    def _wakes(self) -> bool:
        """Whether something waits for which a halted vCPU goes on."""
        return self._interrupts.pending()

    def wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._wake.clear()
            if self._wakes() or self._kick.value:
                return
            pause = None if end is None else end - time.monotonic()
            deadline = self._interrupts.deadline()
            if deadline is not None:
                due = (deadline - self._counter.read_counter()) / self._counter.counter_hz
                if due <= 0:
                    self._timer()
                    return
                pause = due if pause is None else min(pause, due)
            if pause is not None and pause <= 0:
                return
            self._wake.wait(pause)

    def flush(self) -> None:
        """Make the vCPU forget translations before it goes on; from any thread."""
        self._flush.value = 1

    # --- exits ---

    def _access(self) -> tuple[int, int, int]:
        """Return address, width and value of the access that native code exits with."""
        self._pending_exit = self._exit_kind.value
        return self._exit_address.value, self._exit_width.value, self._exit_value.value

    def _mmio_read(self) -> Exit | None:
        address, width, _ = self._access()
        return MmioRead(address, width)

    def _mmio_write(self) -> Exit | None:
        address, width, value = self._access()
        return MmioWrite(address, width, value & ((1 << width * 8) - 1))

    def _halt(self) -> Exit | None:
        # As with KVM: who runs a vCPU again after Halt means it to go on behind it.
        self.cpu.halted = 0
        return Halt()

    def _shutdown(self) -> Exit | None:
        return Shutdown(self._last_words())

    def _debug_stop(self) -> Exit | None:
        return DebugStop(self.cpu.exit_address)

    def _request(self) -> Exit | None:
        return Kicked()

    def _interrupt(self) -> Exit | None:
        number = self._interrupts.acknowledge()
        if number is not None:
            self.cpu.inject = number + 1
        self._interrupts_changed()
        return None

    def _timer(self) -> Exit | None:
        self.cpu.deadline = NEVER
        self._interrupts.expire()
        self._interrupts_changed()
        return None

    def _interrupts_changed(self) -> None:
        # Whoever comes last tells what it sees, and all of it: nothing older may come after.
        with self._telling:
            self._tell_interrupts()

    def _tell_interrupts(self) -> None:
        """Tell native code, and a sleeper, of the interrupts there are; one thread at a time."""
        interrupts = self._interrupts
        pending = interrupts.pending()
        self._interrupt_flag.value = pending
        deadline = interrupts.deadline()
        self._deadline.value = NEVER if deadline is None else deadline
        if pending or deadline is not None:
            self._wake.set()

    # --- state ---

    def get_state(self) -> State:
        self._finish_access()
        return self._read_state()

    def set_state(self, state: State) -> None:
        self._pending_exit = execution.EXIT_NONE
        self._early = None
        self.cpu.refuse = 0
        self._write_state(state)
        self.cpu.counter_offset = self._counter.common_offset(self)
        self.flush()

    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        limit = execution.HOST_BREAKPOINTS
        if len(breakpoints) > limit:
            raise EngineError("too many breakpoints", limit=limit, asked=len(breakpoints))
        self._finish_access()
        cpu = self.cpu
        for number, address in enumerate(breakpoints):
            cpu.breakpoints[number] = address
        every = execution.HOST_STEP if single_step else 0
        stepped = cpu.single_step & every and cpu.reported == execution.NOT_REPORTED
        cpu.single_step = (1 << len(breakpoints)) - 1 | every
        here = self._code_address()
        # A step ends behind the instruction that is next, but for one that was made and not told
        # of yet; what was reported before and left is new.
        if single_step and not stepped:
            cpu.reported = here
        elif cpu.reported != here:
            cpu.reported = execution.NOT_REPORTED

    def statistics(self) -> dict[str, int]:
        cpu = self.cpu
        counts = {name: int(getattr(cpu, f"count_{name}")) for name in ("exits", "interrupts")}
        run = (cpu.count_instructions + cpu.slice - cpu.budget) & MASK_64
        return {"instructions": run, **counts}


class SoftVm(Vm[State]):
    """One machine: its vCPUs and their counter, which follows the host's time-stamp counter.

    `read_host` reads that one.
    """

    def __init__(self, memory: GuestMemory, counter_hz: int, read_host: Callable[[], int]) -> None:
        self.memory = memory
        self._counter_hz = counter_hz
        self._read_host = read_host
        self._offset = -read_host()
        self._vcpus: list[SoftVcpu[State]] = []

    @abstractmethod
    def _make_vcpu(self, index: int, interrupts: LocalInterrupts) -> SoftVcpu[State]:
        """Return vCPU number `index`; raises EngineError."""

    def create_vcpu(self, index: int, interrupts: LocalInterrupts | None) -> SoftVcpu[State]:
        if interrupts is None:
            raise EngineError("the software engine takes its interrupt controllers from the board")
        vcpu = self._make_vcpu(index, interrupts)
        vcpu.cpu.counter_offset = self._offset
        self._vcpus.append(vcpu)
        return vcpu

    def common_offset(self, vcpu: SoftVcpu[Any]) -> int:
        """Return the counter's offset for a vCPU whose own was just set.

        It is another vCPU's when the two counters are less than a second apart:
        then they are meant to be in step, and were only set one after the other.
        """
        wanted = int(vcpu.cpu.counter_offset)
        for other in self._vcpus:
            offset = int(other.cpu.counter_offset)
            apart = (wanted - offset) & MASK_64
            if other is not vcpu and min(apart, (1 << 64) - apart) < self._counter_hz:
                return offset
        return wanted

    @property
    def counter_hz(self) -> int:
        return self._counter_hz

    def read_host_counter(self) -> int:
        """Return the host's time-stamp counter now."""
        return self._read_host()

    def read_counter(self) -> int:
        # A guest may set its counter; all vCPUs are taken to agree with the first one's.
        offset = self._vcpus[0].cpu.counter_offset if self._vcpus else self._offset
        return (self._read_host() + int(offset)) & MASK_64

    def close(self) -> None:
        for vcpu in self._vcpus:
            vcpu.close()
        self._vcpus.clear()


# Makes the machine of one architecture; its arguments are the memory, what the guest sees of
# its processors, and the counter's frequency.
CreateVm = Callable[[GuestMemory, Identification, int], SoftVm[Any]]

GUESTS: Registry[CreateVm] = Registry("guest of the software engine", "ringzero.engine.soft.guests")
