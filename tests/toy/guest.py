"""Toy guests of the software engine: the interpreter compiled, its struct filled and read."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.contract import SoftVcpu, SoftVm
from ringzero.isa.contract import Identification
from ringzero.jit.compile.llvm import Library, cached_object
from ringzero.jit.compile.module import Module
from ringzero.jit.entry import define_entry
from tests.toy.architecture import TOY, ToyProcessors
from tests.toy.cpu import Cpu, ToyState
from tests.toy.insn import EXECUTION, host_counter, interpret

RUN = "run_toy"
MASK_64 = (1 << 64) - 1


@functools.cache
def library() -> Library:
    """Return the compiled interpreter, which is one unit."""
    module = Module("toy")
    define_entry(module, RUN, EXECUTION, interpret)
    module.require(host_counter)
    return Library([cached_object(module.text())], [RUN, host_counter.name])


class ToyVcpu(SoftVcpu[ToyState]):
    def __init__(
        self,
        vm: ToyVm,
        index: int,
        enter: Callable[[int], int],
        interrupts: LocalInterrupts,
    ) -> None:
        super().__init__(index, Cpu, enter, vm, interrupts)
        self._vm = vm
        self.cpu.ram = vm.memory.host.address
        self.cpu.ram_end = vm.memory.size

    def _read_state(self) -> ToyState:
        cpu = self.cpu
        return ToyState(
            regs=tuple(cpu.regs),
            pc=cpu.pc,
            vector=cpu.vector,
            epc=cpu.epc,
            cause=cpu.cause,
            enabled=bool(cpu.enabled),
            counter=(self._vm.read_host_counter() + cpu.counter_offset) & MASK_64,
            halted=bool(cpu.halted),
            interrupt=cpu.inject - 1 if cpu.inject else None,
        )

    def _write_state(self, state: ToyState) -> None:
        cpu = self.cpu
        for number, value in enumerate(state.regs):
            cpu.regs[number] = value
        for name in ("pc", "vector", "epc", "cause", "enabled", "halted"):
            setattr(cpu, name, getattr(state, name))
        cpu.inject = 0 if state.interrupt is None else state.interrupt + 1
        cpu.counter_offset = state.counter - self._vm.read_host_counter()
        cpu.external_done = cpu.external_cursor = 0

    def _code_address(self) -> int:
        return int(self.cpu.pc)

    def _last_words(self) -> str:
        state = self._read_state()
        return f"exception {state.cause} has no handler\n{TOY.describe(state, self._vm.memory)}"


class ToyVm(SoftVm[ToyState]):
    def __init__(self, memory: GuestMemory, counter_hz: int) -> None:
        compiled = library()
        # CFUNCTYPE releases the GIL for the time of the call.
        self._enter = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(compiled.address(RUN))
        read = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(
            compiled.address(host_counter.name)
        )
        super().__init__(memory, counter_hz, lambda: int(read(0)))

    def _make_vcpu(self, index: int, interrupts: LocalInterrupts) -> ToyVcpu:
        return ToyVcpu(self, index, self._enter, interrupts)


def create_vm(memory: GuestMemory, processors: Identification, counter_hz: int) -> ToyVm:
    """Made for `ringzero.engine.soft.contract.GUESTS`."""
    assert isinstance(processors, ToyProcessors)
    return ToyVm(memory, counter_hz)
