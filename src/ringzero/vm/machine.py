"""`Machine`: a whole virtual machine as a Python object.

    with ringzero.Machine(image="micro", memory="256M") as vm:
        result = vm.run("uname -a")
        print(result.stdout.decode(), result.exit_code)

Life: built (paused, nothing runs) → `start` → paused and resumed at will →
ended, by the guest or by `stop`. Built machines hold memory and threads until
`stop`, which the `with` statement calls.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ringzero.board.contract import BOARDS, Board, BoardEvents, BoardParts
from ringzero.config.machine import MachineConfig
from ringzero.core.state import from_tree, to_tree
from ringzero.devices.contract import Device
from ringzero.devices.virtio.kinds.console import ConsolePort
from ringzero.engine.contract import Engine, Interrupts
from ringzero.errors import (
    DeviceError,
    InvalidValueError,
    StateError,
    TimeoutExpiredError,
)
from ringzero.records import record
from ringzero.vm import boot, statistics
from ringzero.vm.debugger import Debugger
from ringzero.vm.exit import PANIC_MARK, Exit, ExitReason
from ringzero.vm.groundwork import Groundwork
from ringzero.vm.guest.agent import (
    MAX_SLOTS,
    PORTS,
    STDIN,
    TTY,
    Agent,
    port_name,
    slot_ports,
)
from ringzero.vm.guest.channels import PortChannels
from ringzero.vm.guest.identity import Identity
from ringzero.vm.guest.line import Console, Line
from ringzero.vm.guest.output import OutputBatch
from ringzero.vm.inspect import Cpu, MemoryAccess
from ringzero.vm.runloop import RunControl, VcpuThread, Wanted
from ringzero.vm.seed import Seed
from ringzero.vm.state import AgentLink, MachineState, ProcessorKind, restore_parts, save_parts

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk, LiveDisk
    from ringzero.vm.ends.links import Links
    from ringzero.vm.ends.vsock import VsockSockets
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Store

# The longest that `start` waits for a vCPU to enter the guest, in seconds.
_FIRST_ENTRY = 0.1
# The name that Linux gives port 0 of the console device is hvc0, whatever we call it.
CONSOLE_PORT_NAME = "org.ringzero.console"
# Where ringzero's own guests wait to be told who a copy is (`ringzero.vm.guest.identity`).
IDENTITY_PORT = "org.ringzero.identity"
# The longest time, in nanoseconds, by which a clone's time-stamp counter is moved on. Linux
# lets real-time threads run 0.95 s of a second and logs it when one seems to have had more, and
# clones of clones may follow each other within that second; and it makes up for every tick that
# it missed: 1.4 s of work for 20 minutes, minutes for days. Beyond this, its monotonic time goes
# on where it stood and only the wall clock is set.
LONGEST_STEP = 100_000_000
# What Linux says before it reboots, by a triple fault if it was told reboot=t.
RESTART_MARK = "reboot: Restarting system"

# Guest code runs in threads of its own, which may not outlive what they run in.
_RUNNING: weakref.WeakSet[Machine] = weakref.WeakSet()


@functools.cache
def _stop_all_at_exit() -> None:
    """Stop the machines that a program forgot before the interpreter takes itself down.

    What is registered last runs first: a machine calls this once it is built, when
    all that it stands on has registered its own end.
    """
    atexit.register(_stop_all)


def _stop_all() -> None:
    for machine in list(_RUNNING):
        machine.stop()


@record
class CommandResult:
    """What a command in the guest printed, and its exit status."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class Machine:
    """One machine, built from a MachineConfig or from its fields by name.

    Machine(config), Machine(image="micro", memory="256M", cpus=2),
    Machine(kernel="vmlinuz", initrd="initrd.img", command_line="console=ttyS0").
    `engine` may be an Engine object instead of a name. Raises ConfigError,
    NotFoundError, GuestImageError, DiskError, EngineError, HostError.
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        image: str | None = None,
        engine: str | Engine | None = None,
        **fields: Any,
    ) -> None:
        if isinstance(engine, str):
            fields["engine"] = engine
        self._create(
            boot.complete(config, image, fields), engine if isinstance(engine, Engine) else None
        )

    @classmethod
    def from_seed(
        cls, seed: Seed, identity: Identity | None = None, *, engine: Engine | None = None
    ) -> Self:
        """Return a paused copy of the machine that `seed` was taken from.

        Raises StateError where the seed does not fit (another engine, other
        devices), and what building a machine raises. The seed stays the caller's.
        """
        identity = identity or Identity()
        machine = cls.__new__(cls)
        machine._create(identity.adopt(seed.config), engine, seed, identity)
        return machine

    @classmethod
    def on_disks(
        cls,
        config: MachineConfig,
        disks: Sequence[InstantDisk],
        identity: Identity | None = None,
        *,
        engine: Engine | None = None,
    ) -> Self:
        """Return a machine that boots on disks of its own with the content of `disks`."""
        identity = identity or Identity()
        machine = cls.__new__(cls)
        machine._create(identity.adopt(config), engine, None, identity, disks)
        return machine

    @classmethod
    def on_groundwork(cls, ground: Groundwork) -> Self:
        """Return the machine that `ground` was laid for, whose owner it becomes."""
        machine = cls.__new__(cls)
        machine._create(ground.config, ground.engine, ground=ground)
        return machine

    def _create(
        self,
        config: MachineConfig,
        engine: Engine | None,
        seed: Seed | None = None,
        identity: Identity | None = None,
        disks: Sequence[InstantDisk] | None = None,
        ground: Groundwork | None = None,
    ) -> None:
        self.identity = identity or Identity(config.name)
        self.config = self.identity.complete(config)
        # Identifiers of the snapshots that the machine comes from, the latest first.
        self.lineage: tuple[str, ...] = ()
        self._closing = contextlib.ExitStack()
        self.control = RunControl()
        self._freezing = threading.RLock()
        self._started = self._stopped = self._newborn = False
        # By how much a clone's wall clock, once it is set, is ahead of the host's.
        self._clock_ahead: int | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._closing.close)
            if ground is None:
                ground = Groundwork(
                    self.config,
                    engine if engine is not None else _choose_engine(config.engine),
                    seed.memory if seed is not None else None,
                )
            self._closing.callback(ground.close)
            self._build(ground, seed, seed.disks if seed is not None else disks)
            if seed is not None:
                self._grow(seed)
            undo.pop_all()

    # ---- building ---------------------------------------------------------

    def _build(
        self, ground: Groundwork, seed: Seed | None, instants: Sequence[InstantDisk] | None
    ) -> None:
        config = self.config
        self._ground = ground
        self._engine = ground.engine
        self._memory = memory = ground.memory
        self.memory = MemoryAccess(memory)
        disks = self._open_disks() if instants is None else self._grow_disks(instants)
        self.disks = tuple(disks)
        board_type = BOARDS.get(config.board)
        processors = board_type.architecture.identify(
            config.cpu,
            cpus=config.cpus,
            counter_hz=self._engine.counter_hz,
            bounds=self._engine.processor_bounds(),
        )
        interrupts = self._engine.interrupts[0]
        self._vm = self._engine.create_vm(memory, processors, interrupts=interrupts)
        self._processor = ProcessorKind.of(processors, self._vm.counter_hz)
        self._closing.callback(self._vm.close)
        if seed is not None:
            self._vm.adopt(seed.code)
        self._make_lines()
        self._links = self._make_links()
        self.board: Board = board_type(
            BoardParts(
                cpus=config.cpus,
                memory=memory,
                clock=self._vm.read_counter,
                counter_hz=self._vm.counter_hz,
                events=BoardEvents(self._powered_off, self._rebooted, self._panicked),
                serial=self._serial_output.write,
                ports=self._ports,
                disks=disks,
                messages=self._vm.send_message if interrupts is Interrupts.ENGINE else None,
                devices=self._links.devices if self._links is not None else {},
            )
        )
        self._closing.callback(self._close_devices)
        self.serial.connect(self.board.serial.push)
        self.board.serial.on_room = self.serial.room
        self._vm.on_eoi = self.board.end_of_interrupt
        for latch in self.board.latches():
            bus = self.board.pio if latch.port else self.board.mmio
            assert bus is not None
            self._vm.gather_writes(latch.port, latch.address, latch.size, bus.write)
        self._debugger = Debugger(self)
        self._make_threads()
        self._booted = ground.kernel is None
        if ground.loading is not None:
            # Whoever has a machine may write to its memory.
            ground.loading.join()

    def _open_disks(self) -> list[LiveDisk]:
        if not self.config.disks:
            return []
        from ringzero.disk import open_disk
        from ringzero.disk.instant import LiveDisk

        disks = []
        for disk in self.config.disks:
            opened = open_disk(disk.path, format=disk.format, read_only=disk.read_only)
            live = LiveDisk(opened)
            self._closing.callback(live.close)
            disks.append(live)
        return disks

    def _grow_disks(self, instants: Sequence[InstantDisk]) -> list[LiveDisk]:
        disks = []
        for instant in instants:
            disk = instant.grow()
            self._closing.callback(disk.close)
            disks.append(disk)
        return disks

    def _grow(self, seed: Seed) -> None:
        """Become what the seed holds, as somebody else."""
        now, state, elapsed = self.identity.now, seed.state, 0
        self._clock_ahead = None
        stood_still = 0 if now is None else max(0, now - seed.taken)
        if stood_still <= LONGEST_STEP:
            elapsed = stood_still
        elif now is not None:
            self._clock_ahead = now - time.time_ns()
        self._restore(state, elapsed)
        self.board.renew_generation(self.identity.generation)
        if self._links is not None:
            self._links.renew(self.identity)
        self._newborn = True

    def _introduce(self) -> None:
        """Tell the guest of a clone who it is; its vCPUs have not run yet."""
        self._newborn = False
        if self._channels is None:
            return
        if self._identity_port.guest_open:
            self._agent.await_adoption()
        ahead = self._clock_ahead
        clock = None if ahead is None else time.time_ns() + ahead
        # A guest that has not come so far yet finds the record when it has.
        macs = [net.mac for net in self.config.nets if net.mac is not None]
        self._identity_port.push(self.identity.record(clock, macs))

    def _make_lines(self) -> None:
        self.serial = Line()
        self.console = Console()
        self._serial_output = OutputBatch(self.serial.emit)
        self._closing.callback(self._serial_output.close)
        port = ConsolePort(CONSOLE_PORT_NAME, lambda data: console_output.write(data))  # noqa: PLW0108 - bound below
        console_output = OutputBatch(
            self.console.emit, lambda: port.hold(True), lambda: port.hold(False)
        )
        self._console_output = console_output
        self._closing.callback(console_output.close)
        port.on_room = self.console.room
        self.console.connect(port.push)
        self._ports = [port]
        self._channels: PortChannels | None = None
        if self.config.agent:
            further = range(1, MAX_SLOTS)
            channels = PortChannels(
                PORTS,
                closed=[port_name(STDIN, slot) for slot in range(MAX_SLOTS)],
                slots=[slot_ports(slot) for slot in further],
                terminals=[port_name(TTY, slot) for slot in further],
            )
            self._agent = Agent(channels)
            channels.receive = self._agent.receive
            self._channels = channels
            self._identity_port = ConsolePort(IDENTITY_PORT, lambda data: None)
            self._ports += [*channels.ports, self._identity_port]
            self._closing.callback(self._agent.close)
            self._closing.callback(channels.close)

    def _make_links(self) -> Links | None:
        if self.config.vsock is None and not self.config.nets:
            return None
        from ringzero.vm.ends.links import Links

        links = Links(self.config)
        self._closing.callback(links.close)
        return links

    @property
    def vsock(self) -> VsockSockets | None:
        """The host's end of the socket device, where there is one."""
        return self._links.vsock if self._links is not None else None

    def _make_threads(self) -> None:
        threads = []
        for processor in self.board.processors:
            vcpu = self._vm.create_vcpu(processor.index, processor.interrupts)
            thread = VcpuThread(
                self.control,
                vcpu,
                processor,
                self.board.architecture,
                self._shut_down,
                self._debugger.stopped_at,
            )
            threads.append(thread)
        self.threads = threads
        self.cpus = tuple(Cpu(thread, self.board.architecture, self.frozen) for thread in threads)
        self.console.connect_size(self.board.resize_console)

    @property
    def cpu(self) -> Cpu:
        """The boot processor."""
        return self.cpus[0]

    @property
    def agent(self) -> Agent:
        """The host's side of the guest's agent. Raises InvalidValueError where there is none."""
        if self._channels is None:
            raise InvalidValueError(
                "this machine has no agent", hint="build it from an image, or with agent=True"
            )
        return self._agent

    def attach(
        self,
        name: str,
        device: Device[Any],
        *,
        mmio: int | None = None,
        pio: int | None = None,
        size: int = 0x1000,
    ) -> None:
        """Attach a device of your own at a guest-physical address or a port, before `start`.

        Raises DeviceError when the range is taken or the machine has started.
        """
        if self._started:
            raise DeviceError("devices are attached before the machine starts")
        if name in self.board.parts:
            raise DeviceError(f"two devices are called {name!r}")
        if (mmio is None) == (pio is None):
            raise InvalidValueError("give either mmio=ADDRESS or pio=PORT")
        if mmio is not None:
            if self._memory.is_ram(mmio) or self._memory.is_ram(mmio + size - 1):
                raise DeviceError(f"{name} at {mmio:#x} lies in RAM")
            self.board.mmio.attach(name, mmio, size, device)
        elif pio is not None:
            if self.board.pio is None:
                raise DeviceError("this board has no I/O ports", hint="give mmio=ADDRESS")
            self.board.pio.attach(name, pio, size, device)
        self.board.parts[name] = device

    # ---- life -------------------------------------------------------------

    def start(self) -> None:
        """Boot the kernel, if one was given, and let the guest run. Raises GuestImageError."""
        if self._stopped:
            raise InvalidValueError("the machine was stopped; build a new one")
        if self._started:
            return
        self._boot()
        if self._newborn:
            self._introduce()
        self._started = True
        _RUNNING.add(self)
        _stop_all_at_exit()
        for thread in self.threads:
            thread.thread.start()
        if self._links is not None:
            self._links.start()
        if self._channels is not None:
            self._channels.start()
            threading.Thread(target=self._abandon_commands, name="end", daemon=True).start()
        # Devices whose state was restored go on with what they had in hand.
        self.resume()
        # The vCPU first: what we do next would keep the interpreter's lock from it.
        self.control.entered.wait(_FIRST_ENTRY)
        # To unmap files of some tens of megabytes takes milliseconds.
        self._ground.loaded()
        # Whatever the guest rings before arrives as any other write to a device does.
        for bell in self.board.doorbells():
            self._vm.add_doorbell(bell.address, bell.width, bell.value, bell.ring)

    def _boot(self) -> None:
        """Load the kernel unless that was done, or a state restored."""
        ground = self._ground
        if self._booted or ground.kernel is None:
            return
        states = self.board.boot(
            ground.kernel, self.config.command_line, ground.initrd, ground.loading
        )
        for thread, state in zip(self.threads, states, strict=True):
            thread.set_state(state)
        self._booted = True

    def pause(self) -> None:
        """Stop all vCPUs and let requests in flight end; returns when the state stands still."""
        with self._freezing:
            self.control.set(Wanted.PAUSE)
            self.control.wait_parked()
            # What was rung still reaches the devices; then they finish it.
            self._vm.settle()
            for part in self.board.parts.values():
                part.pause()

    def resume(self) -> None:
        """Go on after `pause` or a breakpoint. Raises InvalidValueError before `start`."""
        if not self._started:
            raise InvalidValueError("the machine has not been started", hint="call start()")
        with self._freezing:
            for part in self.board.parts.values():
                part.resume()
            self.control.set(Wanted.RUN)

    @property
    def running(self) -> bool:
        """Whether vCPUs run guest code, or wait for interrupts."""
        return self._started and self.control.wanted is Wanted.RUN

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the machine paused for a `with` block; it goes on afterwards if it ran before."""
        if self._on_vcpu_thread():
            # A hook calls: its own vCPU stands still, and nobody may wait for it here.
            yield
            return
        with self._freezing:
            if not self.running:
                yield
                return
            self.pause()
            try:
                yield
            finally:
                self.resume()

    def _on_vcpu_thread(self) -> bool:
        """Whether the caller is a hook, or a device."""
        return any(t.thread is threading.current_thread() for t in self.threads)

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the run; None when `timeout` seconds are over.

        Raises what went wrong on our side (EngineError and others).
        """
        if not self.control.wait_end(timeout):
            return None
        self._serial_output.flush()
        self._console_output.flush()
        if self.control.failure is not None:
            raise self.control.failure
        return self.control.exit

    def stop(self) -> None:
        """End the guest at once and free everything; may be called twice.

        A hook only ends the guest by it: what its vCPU stands on is freed by the
        next call, from another thread.
        """
        self.control.finish(Exit(ExitReason.STOPPED))
        if self._stopped or self._on_vcpu_thread():
            return
        self._stopped = True
        _RUNNING.discard(self)
        self._serial_output.release()
        for thread in self.threads:
            if thread.thread.is_alive():
                thread.thread.join()
        self._closing.close()

    def _close_devices(self) -> None:
        for part in self.board.parts.values():
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ---- what the guest does; on a vCPU's thread --------------------------

    def _powered_off(self) -> None:
        self.control.finish(Exit(ExitReason.POWEROFF))

    def _rebooted(self) -> None:
        self._end_unless_panic(ExitReason.REBOOT, "")

    def _shut_down(self, detail: str) -> None:
        self._end_unless_panic(ExitReason.TRIPLE_FAULT, detail)

    def _panicked(self) -> None:
        self.control.finish(Exit(ExitReason.PANIC, self._serial_output.tail()))

    def _end_unless_panic(self, reason: ExitReason, detail: str) -> None:
        """End the run; a kernel that panicked without a driver for the panic device reboots."""
        tail = self._serial_output.tail()
        if PANIC_MARK in tail:
            reason, detail = ExitReason.PANIC, tail
        elif RESTART_MARK in tail[-200:]:
            reason, detail = ExitReason.REBOOT, ""
        self.control.finish(Exit(reason, detail))

    # ---- commands in the guest --------------------------------------------

    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        input: bytes = b"",
        timeout: float | None = None,
    ) -> CommandResult:
        """Run a command in the guest: words, or a string for its shell.

        Starts the machine if need be. Raises TimeoutExpiredError, GuestError when the
        guest ended before the command did.
        """
        out, err = bytearray(), bytearray()
        request = self.agent.run(
            command,
            takes_input=bool(input),
            on_stdout=out.extend,
            on_stderr=err.extend,
        )
        if input:
            request.write(input)
            request.close_input()
        self.start()
        status = request.wait(timeout)
        if status is None:
            request.signal("KILL")
            raise TimeoutExpiredError(f"the command did not end within {timeout} seconds")
        return CommandResult(bytes(out), bytes(err), status)

    def _abandon_commands(self) -> None:
        """Tell those who wait for a command when the guest is gone."""
        self.control.wait_end(None)
        self.agent.close()

    # ---- debugging --------------------------------------------------------

    @property
    def debugger(self) -> Debugger:
        """Breakpoints and hooks."""
        return self._debugger

    # ---- state ------------------------------------------------------------

    def save(self) -> MachineState:
        """Return the state of everything but memory and disks, as plain data."""
        with self.frozen():
            return self._save()

    def _save(self) -> MachineState:
        kind = {"processor": to_tree(self._processor)}
        if self._channels is None:
            state = save_parts(self.board, self.threads, self._vm)
            return MachineState({**state.tree, **kind})
        with self._channels.still():
            state = save_parts(self.board, self.threads, self._vm)
            agent = AgentLink(self._agent.save(), self._channels.save())
        return MachineState({**state.tree, **kind, "agent": to_tree(agent)})

    def restore(self, state: MachineState) -> None:
        """Put a saved state back, instead of booting. Raises StateError."""
        with self.frozen():
            self._restore(state)

    def _restore(self, state: MachineState, elapsed: int = 0) -> None:
        agent = state.tree.get("agent") if isinstance(state.tree, dict) else None
        if (agent is None) != (self._channels is None):
            raise StateError("only one of the saved machine and this one has an agent")
        kind = state.tree.get("processor") if isinstance(state.tree, dict) else None
        from_tree(ProcessorKind, kind, "processor").check(self._processor)
        link = from_tree(AgentLink, agent, "agent") if agent is not None else None
        restore_parts(state, self.board, self.threads, self._vm, elapsed)
        if link is not None and self._channels is not None:
            with self._channels.still():
                self._channels.restore(link.channels)
                self._agent.restore(link.agent)
        self._booted = True

    def seed(self) -> Seed:
        """Return what the machine is now, for clones to grow from; close it after use.

        The guest stands still for some milliseconds and goes on where it was. Raises
        InvalidValueError when the guest has ended, StateError, HostError.
        """
        self._refuse_ended_and_hooks()
        with self.frozen(), contextlib.ExitStack() as undo:
            self._boot()
            state = self._save()
            taken = time.time_ns()
            memory = self._memory.host.freeze()
            undo.callback(memory.close)
            disks = []
            for disk in self.disks:
                instant = disk.instant()
                undo.callback(instant.close)
                disks.append(instant)
            code = self._vm.share()
            undo.pop_all()
        return Seed(self.config, state, memory, disks, taken, code)

    def _refuse_ended_and_hooks(self) -> None:
        if self._stopped or self.control.wanted is Wanted.END:
            raise InvalidValueError("the guest has ended; there is nothing to copy, or to revert")
        if self._on_vcpu_thread():
            raise InvalidValueError(
                "a hook cannot copy or revert its machine",
                hint="pause in the hook, copy outside of it",
            )

    def grow(self, seed: Seed, identity: Identity) -> Self:
        """Return a paused copy from `seed`, on this machine's engine.

        It may be called in a forked process, whose only machine the copy is then.
        """
        copy = type(self).from_seed(seed, identity, engine=self._engine)
        copy.lineage = self.lineage
        return copy

    def keep_from_children(self) -> None:
        """Leave this machine's memory out of processes forked from now on; after `seed`."""
        self._memory.host.keep_from_children()

    def leave(self) -> None:
        """In a forked process: let go of the host's sockets, which stay the original's."""
        if self._links is not None:
            self._links.leave()

    def fork(self, count: int = 1, *, start: bool = False) -> list[Self]:
        """Return `count` copies of this machine, as it is now; each is stopped on its own.

        They share all memory and disk content that none of them writes to.
        `start` lets them run at once. Raises as `seed` and `from_seed` do.
        """
        if count < 1:
            raise InvalidValueError(f"{count} copies of a machine are not possible")
        children: list[Self] = []
        with contextlib.ExitStack() as undo, self.seed() as seed:
            for _ in range(count):
                child = type(self).from_seed(seed, engine=self._engine)
                child.lineage = self.lineage
                undo.callback(child.stop)
                children.append(child)
            if start:
                for child in children:
                    child.start()
            undo.pop_all()
        return children

    def snapshot(
        self,
        name: str,
        *,
        memory: bool = True,
        compress: bool = False,
        store: Store | None = None,
    ) -> Snapshot:
        """Save the machine as it is now under a name of its own; it runs on meanwhile.

        `memory` False saves the disks only; `compress` takes less space, and is read as a whole
        at a restore instead of page by page. Raises InvalidValueError where the name is
        taken, and what `seed` raises.
        """
        from ringzero.vm.saved.store import Store

        return (store or Store()).save(self, name, memory=memory, compress=compress)

    def revert(self, snapshot: Snapshot, identity: Identity | None = None) -> None:
        """Go back to a snapshot, in place: memory, state, and what the disks hold.

        What the machine became since then is lost, and images of its disks are written to where
        they differ. It goes on if it ran, with new random numbers and the clock set; from a
        snapshot without memory it boots. Commands in the guest end with GuestError.

        Raises StateError, with nothing changed, where the snapshot is of another machine or
        damaged. The machine ends when a disk cannot be written to.
        """
        from ringzero.vm.saved import revert

        self._refuse_ended_and_hooks()
        with self.frozen(), revert.seed_for(self, snapshot) as seed:
            try:
                revert.take_back(self.disks, seed.disks)
                for thread in self.threads:
                    # An access that a vCPU has begun is ended before it is another's.
                    thread.get_state()
                self._memory.become(seed.memory)
                self.identity = identity or Identity()
                self._grow(seed)
            except BaseException as fault:
                self.control.fail(fault)
                raise
            self._newborn = snapshot.manifest.memory is not None
            self.lineage = (snapshot.identifier, *snapshot.manifest.lineage)
            if self._started and self._newborn:
                self._introduce()

    def boot_seed(self, disks: Sequence[InstantDisk]) -> Seed:
        """Return what a machine like this one is before its first instruction, with such disks."""
        fresh = self.on_disks(self.config, disks, engine=self._engine)
        try:
            return fresh.seed()
        finally:
            fresh.stop()

    @property
    def engine_name(self) -> str:
        """The name of the CPU engine that the machine runs on."""
        return self._engine.name

    # ---- statistics -------------------------------------------------------

    def stats(self) -> Mapping[str, Any]:
        """Where the time went: the engine's counters per vCPU, accesses per device, exits."""
        return statistics.of(self.board, self.threads, self.control, self._engine.name)


def _choose_engine(name: str) -> Engine:
    from ringzero.engine import select

    return select.choose(name)
