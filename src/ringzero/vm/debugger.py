"""Breakpoints, hooks and single steps on a machine's vCPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from ringzero.errors import EngineError, InvalidValueError
from ringzero.vm.inspect import Cpu, Frozen, MemoryAccess
from ringzero.vm.runloop import RunControl, VcpuThread

# As many as every engine has (`ringzero.engine.contract.Vcpu.debug`).
_MOST_BREAKPOINTS = 4


class Debugged(Protocol):
    """What the debugger needs of a machine."""

    @property
    def control(self) -> RunControl: ...

    @property
    def threads(self) -> Sequence[VcpuThread]: ...

    @property
    def cpus(self) -> Sequence[Cpu]: ...

    @property
    def frozen(self) -> Frozen: ...

    @property
    def memory(self) -> MemoryAccess: ...

    def pause(self) -> None: ...


M = TypeVar("M", bound=Debugged)


class Debugger(Generic[M]):
    """`break_at` stops the machine at a virtual address, `hook` calls a function there.

    After a stop the machine is paused: look at it, then `machine.resume()`, or `step`.
    """

    def __init__(self, machine: M) -> None:
        self._machine = machine
        self._breakpoints: set[int] = set()
        self._hooks: dict[int, Callable[[M, Cpu], None]] = {}
        # Ranges of physical memory that are watched, as (start, size), and what they held.
        self._watched: dict[tuple[int, int], bytes] = {}
        # The range whose change the last stop tells of, and those of stops that wait, by vCPU.
        self.changed: tuple[int, int] | None = None
        self._changes: dict[int, tuple[int, int]] = {}
        # Which vCPUs stopped, and where; one may have before it heard of another's stop.
        self._stops: deque[tuple[Cpu, int]] = deque()
        # Whoever waits is to wait no more.
        self._dismissed = False
        # Those that were there before a step began: told after it.
        self._earlier: list[tuple[Cpu, int]] = []
        # Whether a debugger program has the machine (`ringzero.vm.gdb`).
        self.taken = False
        # The vCPU that makes a single step while the others stand still.
        self._stepping: VcpuThread | None = None
        # vCPUs that stand on a breakpoint: they get past it by a single step without it.
        self._standing: dict[VcpuThread, int] = {}

    @property
    def waits(self) -> bool:
        """Whether there is any breakpoint or hook."""
        return bool(self._breakpoints or self._hooks or self._watched)

    def break_at(self, address: int) -> None:
        """Pause the machine when a vCPU comes to `address`. Raises EngineError if it cannot."""
        self._check_room(address)
        self._change(address, lambda: self._breakpoints.add(address))

    def hook(self, address: int, function: Callable[[M, Cpu], None]) -> None:
        """Call `function(machine, cpu)` when a vCPU comes to `address`, then go on.

        It runs on the vCPU's thread; an exception from it ends the run. Raises EngineError.
        """
        self._check_room(address)
        self._change(address, lambda: self._hooks.__setitem__(address, function))

    def watch(self, start: int, size: int) -> None:
        """Pause the machine when physical memory from `start` on has changed; `changed` tells.

        Every vCPU makes single steps meanwhile, and is slow. Raises GuestAddressError for what
        is not RAM, EngineError where no interrupt would come meanwhile.
        """
        if not all(thread.vcpu.steps_with_interrupts for thread in self._machine.threads):
            raise EngineError(
                "no watchpoints on this engine: a guest that makes single steps has no interrupts",
                hint="run the machine with --engine soft",
            )
        with self._machine.frozen():
            self._watched[start, size] = self._machine.memory[start : start + size]
            for thread in self._machine.threads:
                self._arm(thread)

    def unwatch(self, start: int, size: int) -> None:
        """Watch that no more."""
        with self._machine.frozen():
            self._watched.pop((start, size), None)
            for thread in self._machine.threads:
                self._arm(thread)

    def _find_change(self) -> tuple[int, int] | None:
        """Return a range that has changed; each change is told once."""
        for (start, size), before in self._watched.items():
            now = self._machine.memory[start : start + size]
            if now != before:
                self._watched[start, size] = now
                return start, size
        return None

    def clear(self, address: int) -> None:
        """Forget the breakpoint and the hook at `address`."""

        def forget() -> None:
            self._breakpoints.discard(address)
            self._hooks.pop(address, None)

        self._change(address, forget)

    def wait(self, timeout: float | None = None) -> tuple[Cpu, int] | None:
        """Wait for a stop; return (vCPU, address), or None after `timeout` or at the end.

        None at `dismiss`, too.
        """
        control = self._machine.control
        with control.changed:
            control.changed.wait_for(
                lambda: self._stops or self._dismissed or control.exit or control.failure, timeout
            )
            stop = self._stops.popleft() if self._stops else None
            self.changed = None if stop is None else self._changes.pop(stop[0].index, None)
            self._stops.extend(self._earlier)
            self._earlier.clear()
        if stop is not None:
            self._machine.pause()
        return stop

    def pending(self) -> bool:
        """Whether another vCPU's stop is still to be told; the machine is paused."""
        control = self._machine.control
        with control.changed:
            stops = tuple(self._stops)
        there = {
            (cpu.index, address)
            for cpu, address in stops
            if cpu.index in self._changes
            or (
                address in self._breakpoints
                and cpu.architecture.debug_target().where(cpu.state) == address
            )
        }
        with control.changed:
            kept = [stop for stop in self._stops if (stop[0].index, stop[1]) in there]
            self._stops = deque(kept)
        return bool(kept)

    def interrupt(self) -> None:
        """Pause the machine; to who waits it is a stop of vCPU 0, unless there was another."""
        machine = self._machine
        machine.pause()
        self._end_step()
        cpu = machine.cpus[0]
        target = cpu.architecture.debug_target()
        with machine.control.changed:
            if not self._stops:
                self._stops.append((cpu, target.where(cpu.state)))
            machine.control.changed.notify_all()

    def dismiss(self) -> None:
        """Have who waits hear None; a machine of which one vCPU ran goes on with all of them."""
        with self._machine.frozen():
            self._stepping = None
            for thread in self._machine.threads:
                self._arm(thread)
        with self._machine.control.changed:
            self._dismissed = True
            self._machine.control.changed.notify_all()

    def leave(self) -> None:
        """Have no debugger any more; nobody waits."""
        self._dismissed = self.taken = False

    def choose(self, index: int, *, steps: bool) -> None:
        """Have vCPU `index` alone go on when a paused machine does; with `steps`, one instruction.

        That is a stop when the step is made: `wait` tells. One that waits for an interrupt makes
        its step when that comes.
        """
        thread = self._machine.threads[index]
        self._earlier.extend(self._stops)
        self._stops.clear()
        if steps:
            self._stepping = thread
            self._arm(thread)
        self._machine.control.choose(thread)

    def _end_step(self) -> None:
        thread, self._stepping = self._stepping, None
        if thread is not None:
            with self._machine.frozen():
                self._arm(thread)

    def _check_room(self, address: int) -> None:
        # Here, for a vCPU that stands on one of them would take one more, and fail behind it.
        asked = len(self._breakpoints | set(self._hooks) | {address})
        if asked > _MOST_BREAKPOINTS:
            raise EngineError("too many breakpoints", limit=_MOST_BREAKPOINTS, asked=asked)

    def _change(self, address: int, change: Callable[[], object]) -> None:
        if not 0 <= address < 1 << 64:
            raise InvalidValueError(f"an address has 64 bits, not {address:#x}")
        with self._machine.frozen():
            change()
            for thread in self._machine.threads:
                self._arm(thread)

    def _arm(self, thread: VcpuThread) -> None:
        addresses = self._breakpoints | set(self._hooks)
        standing = self._standing.get(thread)
        if standing is not None:
            addresses.discard(standing)
        single = standing is not None or self._stepping is thread or bool(self._watched)
        thread.vcpu.debug(single, tuple(sorted(addresses)))

    def stopped_at(self, thread: VcpuThread, address: int) -> bool:
        """Serve a debug stop on its vCPU's thread; True when the machine goes on."""
        cpu = self._machine.cpus[thread.processor.index]
        hook = self._hooks.get(address)
        stops = address in self._breakpoints
        if hook is not None or stops:
            self._standing[thread] = address
        else:
            self._standing.pop(thread, None)
        changed = self._find_change()
        if changed is not None:
            stops = True
        if self._stepping is thread:
            self._stepping, stops = None, True
        self._arm(thread)
        if hook is not None:
            hook(self._machine, cpu)
        if stops:
            with self._machine.control.changed:
                self._stops.append((cpu, address))
                if changed is not None:
                    self._changes[cpu.index] = changed
                self._machine.control.changed.notify_all()
        return not stops
