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
from ringzero.engine.contract import Vcpu
from ringzero.engine.exits import DebugStop, Halt, Kicked, MmioRead, MmioWrite, Rested, Shutdown
from ringzero.host.service import serve_as
from ringzero.isa.contract import Architecture
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
        # The one thread that runs while the others stand still, if it is not all.
        self._only: VcpuThread | None = None
        self.exit: Exit | None = None
        # A fault of ours on a vCPU's thread; it is raised to whoever waits.
        self.failure: BaseException | None = None
        self.threads: list[VcpuThread] = []
        self._on_end: Callable[[], None] | None = None
        # When a vCPU first entered the guest: by CLOCK_MONOTONIC, and in CPU time of this
        # process, both in seconds.
        self.first_entry: tuple[float, float] | None = None
        # Set by then, or when it will not come to that.
        self.entered = threading.Event()

    def choose(self, thread: VcpuThread | None) -> None:
        """Have only one thread go on at the next RUN, until the next PAUSE; None: all."""
        with self.changed:
            self._only = thread

    def lets_run(self, thread: VcpuThread) -> bool:
        """Whether a thread is to run guest code; called with `changed` held."""
        return self.wanted is Wanted.RUN and self._only in (None, thread)

    def set(self, wanted: Wanted) -> None:
        """Tell every thread what to do; from any thread. END is final."""
        with self.changed:
            if self.wanted is not Wanted.END:
                self.wanted = wanted
            if wanted is not Wanted.RUN:
                self._only = None
            self.changed.notify_all()
        if wanted is not Wanted.RUN:
            for thread in self.threads:
                thread.vcpu.kick()
        if wanted is Wanted.END:
            self._tell_end()

    def when_ended(self, action: Callable[[], None] | None) -> None:
        """Have `action` called once when the run ends, or has; None calls off the last one.

        Whoever ends the run calls it, on any thread: it must not wait.
        """
        with self.changed:
            self._on_end = action
            ended = self.wanted is Wanted.END
        if ended:
            self._tell_end()

    def _tell_end(self) -> None:
        with self.changed:
            action, self._on_end = self._on_end, None
        if action is not None:
            action()

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
    """Runs one vCPU of `architecture`; the guest starts it through `core.irq.StartControl`.

    `shut_down(detail)` hears of a vCPU that cannot go on. `stopped_at(thread,
    address)` is asked at each debug stop; True lets the machine go on. `rested()` hears
    that the vCPU has done nothing for a while.
    """

    def __init__(
        self,
        control: RunControl,
        vcpu: Vcpu[Any],
        processor: Processor,
        architecture: Architecture[Any],
        shut_down: Callable[[str], None],
        stopped_at: Callable[[VcpuThread, int], bool],
        rested: Callable[[], None],
    ) -> None:
        self.vcpu = vcpu
        self.processor = processor
        self.parked = True
        # Exits that are no access to a device, by their name.
        self.exits = {"halt": 0, "kicked": 0, "debug": 0}
        self._control = control
        self._architecture = architecture
        self._mmio = processor.mmio
        self._shut_down = shut_down
        self._stopped_at = stopped_at
        self._rested = rested
        # A secondary vCPU waits until the guest starts it.
        self._offline = False
        self._reset_received = False
        # The entry and the context of the start that was asked for.
        self._start: tuple[int, int] | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            MmioRead: self._mmio_read,
            MmioWrite: self._mmio_write,
            Halt: self._halt,
            Shutdown: self._shutdown,
            DebugStop: self._debug_stop,
            Kicked: self._kicked,
            Rested: lambda event: self._rested(),
            **processor.handlers(vcpu),
        }
        processor.connect(self)
        self.thread = threading.Thread(
            target=self._main, name=f"vcpu{processor.index}", daemon=True
        )
        control.threads.append(self)

    def set_state(self, state: Any) -> None:
        """Give the vCPU its state; the machine is paused."""
        self._reset_received, self._start = False, None
        # An engine that keeps the interrupt controllers starts its vCPUs itself.
        self._offline = self.processor.interrupts is not None and self._architecture.is_offline(
            state
        )
        if self._offline:
            state = self._architecture.with_offline(state, False)
        self.vcpu.set_state(state)

    def get_state(self) -> Any:
        """Return the vCPU's state; the machine is paused."""
        with self._control.changed:
            # What the guest asked for counts, whether or not the thread has come to it.
            self._take_start()
        state = self.vcpu.get_state()
        return self._architecture.with_offline(state, True) if self._offline else state

    # ---- the loop ---------------------------------------------------------

    def _main(self) -> None:
        control = self._control
        run = self.vcpu.run
        handlers = self._handlers
        running = Wanted.RUN
        try:
            serve_as("vcpu")
            if not self._look_around():
                return
            if control.first_entry is None:
                control.first_entry = time.monotonic(), time.process_time()
                control.entered.set()
            while True:
                interrupted = self._offline or self._reset_received
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
                if control.wanted is Wanted.END:
                    return False
                if control.lets_run(self):
                    self._take_start()
                    if not self._offline:
                        self.parked = False
                        return True
                self.parked = True
                control.changed.notify_all()
                control.changed.wait()

    def _take_start(self) -> None:
        """Do what `reset` and `start` asked for; the vCPU runs no guest code meanwhile."""
        if self._reset_received:
            self._reset_received = False
            self._offline = True
        if self._offline and self._start is not None:
            entry, context = self._start
            self._offline, self._start = False, None
            before = self.vcpu.get_state()
            self.vcpu.set_state(self._architecture.started(before, entry, context))

    def reset(self) -> None:
        with self._control.changed:
            if not self._offline:
                self._reset_received = True
            self._start = None
            self._control.changed.notify_all()
        self.vcpu.kick()

    def start(self, entry: int, context: int = 0) -> None:
        with self._control.changed:
            if (self._offline or self._reset_received) and self._start is None:
                self._start = entry, context
            self._control.changed.notify_all()

    # ---- exits ------------------------------------------------------------

    def _mmio_read(self, event: MmioRead) -> None:
        self.vcpu.complete(self._mmio.read(event.address, event.width))

    def _mmio_write(self, event: MmioWrite) -> None:
        self._mmio.write(event.address, event.width, event.value)

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
