"""The machine as an object: its memory by slices, its vCPUs' registers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from ringzero.core.memory import GuestMemory
from ringzero.errors import InvalidValueError
from ringzero.host.memory import HostMemory
from ringzero.isa.contract import Architecture
from ringzero.vm.runloop import VcpuThread

Frozen = Callable[[], AbstractContextManager[None]]


class MemoryAccess:
    """Guest-physical memory: `memory[a:b]` is bytes, `memory[a]` one byte; both can be set.

    Raises GuestAddressError for addresses that are not RAM.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        # Whether a program has written there.
        self.written = False

    @property
    def host(self) -> HostMemory:
        """What it is mapped from."""
        return self._memory.host

    def __getitem__(self, where: int | slice) -> Any:
        if isinstance(where, slice):
            start, stop = self._range(where)
            return self._open().read(start, stop - start)
        return self._open().read(where, 1)[0]

    def __setitem__(self, where: int | slice, value: int | bytes) -> None:
        self.written = True
        if isinstance(where, slice):
            start, stop = self._range(where)
            if isinstance(value, int) or len(value) != stop - start:
                raise InvalidValueError(f"a range of {stop - start} bytes takes as many bytes")
            self._open().write(start, value)
        elif isinstance(value, int) and 0 <= value <= 0xFF:
            self._open().write(where, bytes((value,)))
        else:
            raise InvalidValueError("a byte is a number from 0 to 255")

    @property
    def guest(self) -> GuestMemory:
        """The memory itself. Raises InvalidValueError when the machine was stopped."""
        return self._open()

    def _open(self) -> GuestMemory:
        if self._memory.host.fd < 0:
            raise InvalidValueError("the machine was stopped, and its memory given back")
        return self._memory

    def __len__(self) -> int:
        """Return the size of RAM in bytes, which is not its highest address."""
        return self._memory.size

    def _range(self, where: slice) -> tuple[int, int]:
        start, stop = where.start or 0, where.stop
        if stop is None or where.step not in (None, 1) or start < 0 or stop < start:
            raise InvalidValueError("give a range of addresses: memory[0x1000:0x1010]")
        return start, stop

    @property
    def regions(self) -> list[tuple[int, int]]:
        """The ranges of RAM, as (base, size)."""
        return [(region.base, region.size) for region in self._memory.regions]


class Registers(MutableMapping[str, int]):
    """One vCPU's registers by the names of its ISA: `registers["x0"]` or `registers.pc`.

    To read and to set. A running machine is paused for the moment of the access.
    """

    _cpu: Cpu

    def __init__(self, cpu: Cpu) -> None:
        object.__setattr__(self, "_cpu", cpu)

    def __getitem__(self, name: str) -> int:
        return self._cpu.architecture.read_register(self._cpu.state, name)

    def __setitem__(self, name: str, value: int) -> None:
        cpu = self._cpu
        with cpu.frozen():
            cpu.state = cpu.architecture.write_register(cpu.state, name, value)

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no register called {name!r}") from None

    def __setattr__(self, name: str, value: int) -> None:
        try:
            self[name] = value
        except KeyError:
            raise AttributeError(f"no register called {name!r}") from None

    def __delitem__(self, name: str) -> None:
        raise TypeError("registers cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        yield from self._cpu.architecture.registers

    def __contains__(self, name: object) -> bool:
        return name in self._cpu.architecture.registers

    def __len__(self) -> int:
        return len(self._cpu.architecture.registers)

    def __repr__(self) -> str:
        return " ".join(f"{name}={value:#x}" for name, value in self.items())


class Cpu:
    """One vCPU as the user's program sees it."""

    def __init__(self, thread: VcpuThread, architecture: Architecture[Any], frozen: Frozen) -> None:
        self._thread = thread
        self.architecture = architecture
        self.frozen = frozen
        self.index = thread.processor.index
        self.registers = Registers(self)

    @property
    def state(self) -> Any:
        """The whole state, of its architecture's type; a running machine is paused for it."""
        with self.frozen():
            return self._thread.get_state()

    @state.setter
    def state(self, state: Any) -> None:
        with self.frozen():
            self._thread.set_state(state)

    def statistics(self) -> dict[str, int]:
        """Return the engine's counters of this vCPU."""
        return self._thread.vcpu.statistics()
