"""One thread per vCPU: run the guest, send its exits to the buses, stop when told.

`RunControl` is what all of a machine's threads share: whether to run, pause
or end, and how the run ended. `VcpuThread` is the loop itself.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from typing import Any

from ringzero.board.contract import Processor
from ringzero.core.bus import Bus
from ringzero.engine.contract import (
    DebugStop,
    Halt,
    Kicked,
    MmioRead,
    MmioWrite,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
    Shutdown,
    Vcpu,
)
from ringzero.errors import EngineError
from ringzero.isa.x86.state import MP_RUNNABLE, MP_UNINITIALIZED, CpuState, Segment
from ringzero.records import replace
from ringzero.vm.exit import Exit


class Wanted(enum.Enum):
    """What the vCPU threads are to do."""

    PAUSE = "pause"
    RUN = "run"
    END = "end"


class RunControl:
    """The common will of a machine's vCPU threads, and the result of the run."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wanted = Wanted.PAUSE
        self.exit: Exit | None = None
        # A fault of ours on a vCPU's thread; it is raised to whoever waits.
        self.failure: BaseException | None = None
        self.threads: list[VcpuThread] = []
        # When a vCPU first entered the guest: by CLOCK_MONOTONIC, and in CPU time of this
        # process, both in seconds.
        self.first_entry: tuple[float, float] | None = None
        # Set by then, or when it will not come to that.
        self.entered = threading.Event()

    def set(self, wanted: Wanted) -> None:
        """Tell every thread what to do; from any thread. END is final."""
        with self.changed:
            if self.wanted is not Wanted.END:
                self.wanted = wanted
            self.changed.notify_all()
        if wanted is not Wanted.RUN:
            for thread in self.threads:
                thread.vcpu.kick()

    def finish(self, result: Exit) -> None:
        """End the run; the first result counts."""
        with self.changed:
            if self.exit is None and self.failure is None:
                self.exit = result
        self.set(Wanted.END)

    def fail(self, failure: BaseException) -> None:
        """End the run because of a fault of ours."""
        with self.changed:
            if self.exit is None and self.failure is None:
                self.failure = failure
        self.set(Wanted.END)

    def wait_parked(self) -> None:
        """Return when no vCPU thread runs guest code any more."""
        with self.changed:
            own = threading.current_thread()
            self.changed.wait_for(lambda: all(t.parked or t.thread is own for t in self.threads))

    def wait_end(self, timeout: float | None) -> bool:
        """Return whether the run has ended, waiting up to `timeout` seconds."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self.exit is not None or self.failure is not None, timeout
            )


class VcpuThread:
    """Runs one vCPU.

    `shut_down(detail)` hears of a vCPU that cannot go on. `stopped_at(thread,
    address)` is asked at each debug stop; True lets the machine go on.
    """

    def __init__(
        self,
        control: RunControl,
        vcpu: Vcpu,
        processor: Processor,
        pio: Bus,
        shut_down: Callable[[str], None],
        stopped_at: Callable[[VcpuThread, int], bool],
    ) -> None:
        self.vcpu = vcpu
        self.processor = processor
        self.parked = True
        # Exits that are no access to a device, by their name.
        self.exits = {"halt": 0, "kicked": 0, "debug": 0}
        self._control = control
        self._pio = pio
        self._mmio = processor.mmio
        self._msrs = processor.msrs
        self._shut_down = shut_down
        self._stopped_at = stopped_at
        # An application processor waits for INIT and STARTUP (SDM vol. 3A, 9.4).
        self._waits_for_startup = False
        self._init_received = False
        self._startup_vector: int | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            PortRead: self._port_read,
            PortWrite: self._port_write,
            MmioRead: self._mmio_read,
            MmioWrite: self._mmio_write,
            MsrRead: self._msr_read,
            MsrWrite: self._msr_write,
            Halt: self._halt,
            Shutdown: self._shutdown,
            DebugStop: self._debug_stop,
            Kicked: self._kicked,
        }
        if processor.lapic is not None:
            processor.lapic.on_init = self._on_init
            processor.lapic.on_startup = self._on_startup
        self.thread = threading.Thread(
            target=self._main, name=f"vcpu{processor.index}", daemon=True
        )
        control.threads.append(self)

    def set_state(self, state: CpuState) -> None:
        """Give the vCPU its state; the machine is paused."""
        self._init_received, self._startup_vector = False, None
        self._waits_for_startup = (
            self.processor.lapic is not None and state.mp_state == MP_UNINITIALIZED
        )
        if self._waits_for_startup:
            state = replace(state, mp_state=MP_RUNNABLE)
        self.vcpu.set_state(state)

    def get_state(self) -> CpuState:
        """Return the vCPU's state; the machine is paused."""
        state: CpuState = self.vcpu.get_state()
        if self._waits_for_startup:
            return replace(state, mp_state=MP_UNINITIALIZED)
        return state

    # ---- the loop ---------------------------------------------------------

    def _main(self) -> None:
        control = self._control
        run = self.vcpu.run
        handlers = self._handlers
        running = Wanted.RUN
        try:
            if not self._look_around():
                return
            if control.first_entry is None:
                control.first_entry = time.monotonic(), time.process_time()
                control.entered.set()
            while True:
                interrupted = self._waits_for_startup or self._init_received
                if (interrupted or control.wanted is not running) and not self._look_around():
                    return
                event = run()
                handlers[event.__class__](event)
        except BaseException as failure:
            control.fail(failure)
        finally:
            control.entered.set()
            with control.changed:
                self.parked = True
                control.changed.notify_all()

    def _look_around(self) -> bool:
        """Wait until there is guest code to run; False when the thread is to end."""
        control = self._control
        with control.changed:
            while True:
                if self._init_received:
                    self._init_received = False
                    self._waits_for_startup = True
                if control.wanted is Wanted.END:
                    return False
                vector = self._startup_vector
                if control.wanted is Wanted.RUN and self._waits_for_startup and vector is not None:
                    self._waits_for_startup = False
                    self._startup_vector = None
                    state = startup_state(vector)
                    # A processor's time-stamp counter goes on across INIT (SDM vol. 3B, 18.17).
                    self.vcpu.set_state(replace(state, tsc=self.vcpu.get_state().tsc))
                if control.wanted is Wanted.RUN and not self._waits_for_startup:
                    self.parked = False
                    return True
                self.parked = True
                control.changed.notify_all()
                control.changed.wait()

    def _on_init(self) -> None:
        with self._control.changed:
            if not self._waits_for_startup:
                self._init_received = True
            self._startup_vector = None
            self._control.changed.notify_all()
        self.vcpu.kick()

    def _on_startup(self, vector: int) -> None:
        with self._control.changed:
            # Only the first STARTUP after an INIT counts.
            if (self._waits_for_startup or self._init_received) and self._startup_vector is None:
                self._startup_vector = vector
            self._control.changed.notify_all()

    # ---- exits ------------------------------------------------------------

    def _port_read(self, event: PortRead) -> None:
        self.vcpu.complete(self._pio.read(event.port, event.width))

    def _port_write(self, event: PortWrite) -> None:
        self._pio.write(event.port, event.width, event.value)

    def _mmio_read(self, event: MmioRead) -> None:
        self.vcpu.complete(self._mmio.read(event.address, event.width))

    def _mmio_write(self, event: MmioWrite) -> None:
        self._mmio.write(event.address, event.width, event.value)

    def _msr_read(self, event: MsrRead) -> None:
        self.vcpu.complete(self._msrs.read(event.index))

    def _msr_write(self, event: MsrWrite) -> None:
        if not self._msrs.write(event.index, event.value):
            self.vcpu.complete(None)

    def _halt(self, event: Halt) -> None:
        self.exits["halt"] += 1
        self.vcpu.wait(None)

    def _shutdown(self, event: Shutdown) -> None:
        self._shut_down(event.detail)

    def _debug_stop(self, event: DebugStop) -> None:
        self.exits["debug"] += 1
        if not self._stopped_at(self, event.address):
            self._control.set(Wanted.PAUSE)

    def _kicked(self, event: Kicked) -> None:
        self.exits["kicked"] += 1


def startup_state(vector: int) -> CpuState:
    """Return the state in which a STARTUP message lets a processor begin (SDM vol. 3A, 9.4.4)."""
    if not 0 <= vector <= 0xFF:
        raise EngineError(f"a STARTUP vector is a page below 1 MiB, not {vector:#x}")
    reset = CpuState()
    code = Segment(vector << 8, vector << 12, 0xFFFF, reset.cs.attributes)
    return replace(reset, cs=code, rip=0)
