"""A scripted engine: its vCPU returns a list of exits instead of running code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import Availability, Engine, Interrupts, Usability, Vcpu, Vm
from ringzero.engine.exits import Exit, Halt, Kicked
from ringzero.isa.contract import Architecture, Identification
from ringzero.isa.x86.state import CpuState

TSC_HZ = 1_000_000_000

# An exit, or a function of the vCPU that does something and returns one.
Step = Exit | Callable[["FakeVcpu"], Exit]


class FakeVcpu(Vcpu):
    """Returns its script's exits in turn, then halts for ever."""

    def __init__(self, vm: FakeVm, index: int, interrupts: LocalInterrupts | None) -> None:
        self.vm = vm
        self.index = index
        self.interrupts = interrupts
        self.script: list[Step] = list(vm.engine.scripts.get(index, ()))
        self.answers: list[int | None] = []
        self.taken: list[int] = []
        self.runs = 0
        self.breakpoints: tuple[int, ...] = ()
        self._state = CpuState()
        self._kick = threading.Event()
        if interrupts is not None:
            interrupts.on_change(self._wake)

    def _wake(self) -> None:
        with self.vm.changed:
            self.vm.changed.notify_all()

    def run(self) -> Exit:
        self.runs += 1
        if self._kick.is_set():
            self._kick.clear()
            return Kicked()
        if self.interrupts is not None:
            vector = self.interrupts.acknowledge()
            if vector is not None:
                self.taken.append(vector)
        if not self.script:
            return Halt()
        step = self.script.pop(0)
        return step(self) if callable(step) else step

    def complete(self, value: int | None) -> None:
        self.answers.append(value)

    def kick(self) -> None:
        self._kick.set()
        self._wake()

    def wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            with self.vm.changed:
                if self._kick.is_set():
                    return
                interrupts = self.interrupts
                left = None if end is None else end - time.monotonic()
                if interrupts is not None:
                    if interrupts.pending():
                        return
                    deadline = interrupts.deadline()
                    if deadline is not None:
                        ahead = max((deadline - self.vm.read_counter()) / TSC_HZ, 0)
                        left = ahead if left is None else min(left, ahead)
                if left is not None and left <= 0:
                    break
                self.vm.changed.wait(left)
            if interrupts is not None:
                interrupts.expire()
        if self.interrupts is not None:
            self.interrupts.expire()

    def get_state(self) -> CpuState:
        return self._state

    def set_state(self, state: Any) -> None:
        self._state = state

    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        self.breakpoints = breakpoints

    def statistics(self) -> dict[str, int]:
        return {"runs": self.runs}


class FakeVm(Vm):
    """Its TSC counts nanoseconds of the host."""

    def __init__(self, engine: FakeEngine, memory: GuestMemory) -> None:
        self.engine = engine
        self.memory = memory
        self.changed = threading.Condition()
        self.vcpus: list[FakeVcpu] = []
        self.closed = False
        self._start = time.monotonic_ns()

    def create_vcpu(self, index: int, interrupts: LocalInterrupts | None) -> FakeVcpu:
        vcpu = FakeVcpu(self, index, interrupts)
        self.vcpus.append(vcpu)
        return vcpu

    @property
    def counter_hz(self) -> int:
        return TSC_HZ

    def read_counter(self) -> int:
        return time.monotonic_ns() - self._start

    def close(self) -> None:
        self.closed = True


class FakeEngine(Engine):
    """`scripts` maps a vCPU's number to its exits."""

    name = "fake"

    def __init__(self, *script: Step, others: dict[int, list[Step]] | None = None) -> None:
        self.scripts: dict[int, list[Step]] = {0: list(script), **(others or {})}
        self.vm: FakeVm | None = None

    @property
    def counter_hz(self) -> int:
        return TSC_HZ

    def availability(self) -> Availability:
        return Availability(Usability.USABLE, "scripted")

    def runs(self, architecture: Architecture[Any]) -> bool:
        return True

    def create_vm(
        self,
        memory: GuestMemory,
        processors: Identification,
        *,
        interrupts: Interrupts = Interrupts.BOARD,
    ) -> FakeVm:
        self.vm = FakeVm(self, memory)
        return self.vm
