"""Assembling a machine: what it is made of, joined together and standing still.

`assemble` takes a description; `Assembly` takes a groundwork that was laid before.
`ringzero.vm.machine.Machine` gives an assembly its life.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ringzero.api.command import takes_options
from ringzero.board.contract import BOARDS, Board, BoardEvents, BoardParts
from ringzero.config.machine import MachineConfig
from ringzero.devices.contract import Device
from ringzero.devices.virtio.kinds.console import Console
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.engine.contract import Engine, Interrupts
from ringzero.errors import DeviceError, GuestError, InvalidValueError, RingzeroError
from ringzero.host.memory import MemoryBase, MemoryImage
from ringzero.host.service import OnFault, ServiceThread
from ringzero.vm import boot
from ringzero.vm.ends.devices import Devices
from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.groundwork import Groundwork
from ringzero.vm.guest.identity import Identity
from ringzero.vm.guest.ports import AgentPorts, Lines
from ringzero.vm.runloop import RunControl, VcpuThread
from ringzero.vm.state import ProcessorKind

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk


def assemble(
    config: MachineConfig,
    engine: Engine | None = None,
    *,
    identity: Identity | None = None,
    content: MemoryImage | None = None,
    disks: Sequence[InstantDisk] | None = None,
    code: Any = None,
    later: bool = False,
) -> Assembly:
    """Return what the machine of `config` is made of, on `engine` or the one that it names.

    With `content` the memory holds that, and no kernel is loaded; with `disks` they are new
    ones with that content. `code` is what the engine takes over from another machine
    (`Vm.share`). `later` has the kernel read at the start only. Raises ConfigError,
    NotFoundError, GuestImageError, DiskError, EngineError, HostError.
    """
    identity = identity or Identity(config.name)
    engine = engine or choose_engine(config)
    ground = Groundwork(identity.complete(config), engine, content, later=later)
    return Assembly(ground, identity, disks=disks, code=code)


class Assembly:
    """The parts of one machine; it owns them, and its groundwork. `close` frees all.

    Its vCPUs' threads are made, not started. How the guest ends goes to `control`;
    `stopped_at` is asked at debug stops, `rested` called when a vCPU has long done nothing.
    """

    def __init__(
        self,
        ground: Groundwork,
        identity: Identity | None = None,
        *,
        disks: Sequence[InstantDisk] | None = None,
        code: Any = None,
    ) -> None:
        self.ground = ground
        self.engine = ground.engine
        self.memory = ground.memory
        self.identity = identity or Identity(ground.config.name)
        self.config = self.identity.complete(ground.config)
        self.control = RunControl()
        # Hears of an exception that ends a thread which serves the machine.
        self.on_fault: OnFault | None = self.control.fail
        self.stopped_at: Callable[[VcpuThread, int], bool] = lambda thread, address: False
        self.rested: Callable[[], None] = lambda: None
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._closing.close)
            self._closing.callback(ground.close)
            self.devices = Devices(self.config, disks)
            self._closing.callback(self.devices.close)
            self.devices.place(ground.memory, ground.files)
            self.disks = self.devices.disks
            board_type = BOARDS.get(self.config.board)
            architecture = board_type.architecture
            processors = architecture.identify(
                self.config.cpu or architecture.default_model,
                cpus=self.config.cpus,
                counter_hz=self.engine.counter_hz,
                bounds=self.engine.processor_bounds(),
            )
            interrupts = self.engine.interrupts[0]
            self.vm = self.engine.create_vm(self.memory, processors, interrupts=interrupts)
            self._closing.callback(self.vm.close)
            self.vm.on_fault = self.control.fail
            self.processor = ProcessorKind.of(processors, self.vm.counter_hz)
            self.vm.adopt(code)
            self.lines = Lines(self.control.fail)
            self._closing.callback(self.lines.close)
            self.guest = AgentPorts(self.control.fail) if self.config.agent else None
            if self.guest is not None:
                setups = {net.guest_setup(n) for n, net in enumerate(self.config.nets)}
                self.guest.agent.takes_options = takes_options(self.config.command_line)
                self.guest.agent.asks_for_addresses = bool(setups & {"dhcp", "later"})
            self._closing.callback(self.abandon_commands)
            self.board = self._make_board(board_type, interrupts)
            self.threads = self._make_threads()
            if ground.loading is not None:
                # Whoever has a machine may write to its memory.
                ground.loading.join()
            undo.pop_all()
        # Whether the kernel is in place, or whatever a saved memory holds.
        self.booted = ground.kernel is None and not ground.waits

    def close(self) -> None:
        """Free everything; the vCPUs' threads have ended, or were never started."""
        self._closing.close()

    # ---- parts ------------------------------------------------------------

    def _make_board(self, board_type: type[Board], interrupts: Interrupts) -> Board:
        vm, lines = self.vm, self.lines
        ports = [lines.console_port]
        if self.guest is not None:
            ports += self.guest.ports
        console = Console(ports)
        board = board_type(
            BoardParts(
                cpus=self.config.cpus,
                memory=self.memory,
                clock=vm.read_counter,
                counter_hz=vm.counter_hz,
                events=BoardEvents(self._powered_off, self._rebooted, self._panicked),
                serial=lines.serial_output.write,
                messages=vm.send_message if interrupts is Interrupts.ENGINE else None,
                devices={"console": console, "rng": Rng(), **self.devices.devices},
            )
        )
        self._closing.callback(_close_devices, board)
        lines.serial.connect(board.serial.push)
        board.serial.on_room = lines.serial.room
        lines.console.connect_size(console.resize)
        vm.on_eoi = board.end_of_interrupt
        for shadow in board.shadows():
            show = vm.shadow_port(shadow.port, shadow.read)
            if show is not None:
                shadow.connect(show)
        for register in board.status_registers():
            shared = vm.share_status(register.status, register.acknowledge)
            if shared is not None:
                register.share(shared)
        for queue in board.transmit_queues():
            drain = vm.drain_queue(queue.address, queue.number, queue.ready)
            if drain is not None:
                queue.share(drain)
        for latch in board.latches():
            bus = board.pio if latch.port else board.mmio
            assert bus is not None
            vm.gather_writes(
                latch.port,
                latch.address,
                latch.size,
                bus.write_all,
                prompt=latch.prompt,
                then=latch.then,
                changes=latch.changes,
                clears=latch.clears,
                hold=latch.hold,
            )
        return board

    def _make_threads(self) -> list[VcpuThread]:
        return [
            VcpuThread(
                self.control,
                self.vm.create_vcpu(processor.index, processor.interrupts),
                processor,
                self.board.architecture,
                self._shut_down,
                self._debug_stop,
                self._rested,
            )
            for processor in self.board.processors
        ]

    def attach(
        self, name: str, device: Device[Any], mmio: int | None, pio: int | None, size: int
    ) -> None:
        """Attach a device at a guest-physical address or a port. Raises DeviceError."""
        board = self.board
        if name in board.parts:
            raise DeviceError(f"two devices are called {name!r}")
        if (mmio is None) == (pio is None):
            raise InvalidValueError("give either mmio=ADDRESS or pio=PORT")
        if mmio is not None:
            if self.memory.is_ram(mmio) or self.memory.is_ram(mmio + size - 1):
                raise DeviceError(f"{name} at {mmio:#x} lies in RAM")
            board.mmio.attach(name, mmio, size, device)
        elif pio is not None:
            if board.pio is None:
                raise DeviceError("this board has no I/O ports", hint="give mmio=ADDRESS")
            board.pio.attach(name, pio, size, device)
        board.parts[name] = device

    # ---- on the way -------------------------------------------------------

    def boot(self) -> None:
        """Load the kernel unless that was done, or a state restored. Raises GuestImageError."""
        ground = self.ground
        if self.booted:
            return
        ground.read()
        if ground.kernel is None:
            return
        command_line = ground.command_line
        if self.guest is not None and boot.has_own_agent(command_line):
            command_line = boot.own_command_line(self.config, command_line, self.config.name)
        if self.board.console:
            command_line = boot.with_console(command_line, self.board.console)
        if self.guest is not None and any(share.target for share in self.config.shares):
            command_line += " ringzero.shares"
        states = self.board.boot(ground.kernel, command_line, ground.initrd, ground.loading)
        for thread, state in zip(self.threads, states, strict=True):
            thread.set_state(state)
        self.booted = True

    def power_on(self) -> None:
        """Be as after power-on, whatever a saved state has left; nothing has run. HostError."""
        blank = MemoryBase(
            os.memfd_create("guest-ram", os.MFD_CLOEXEC), self.memory.size, owned=True
        )
        try:
            os.ftruncate(blank.fd, blank.size)
            self.memory.become(MemoryImage(blank))
        finally:
            blank.release()
        for _, part in self.board.stateful():
            part.reset()
        self.booted = False

    def start_threads(self, run: Callable[[], None]) -> None:
        """Start everything that works for the guest, and have it go on by `run`.

        The vCPUs then find that they are to run, and need not be woken for it.
        """
        self.devices.start(self.control.fail)
        run()
        for thread in self.threads:
            thread.thread.start()
        if self.guest is not None:
            self.guest.start()

    def add_doorbells(self) -> None:
        """Have the engine ring the devices; what the guest rings before arrives as other writes."""
        for bell in self.board.doorbells():
            if not self.vm.add_doorbell(bell.address, bell.width, bell.value, bell.ring):
                return

    def watch_end(self) -> None:
        """Tell those who wait for a command when the guest is gone."""
        if self.guest is not None:
            self.control.when_ended(self._ended)

    def _ended(self) -> None:
        # On a thread of its own, as who ends the guest may be one that commands wait for.
        try:
            ServiceThread(self, self.abandon_commands, "end").start()
        except RuntimeError:
            # The host has no thread left, or the interpreter is about to go.
            self.abandon_commands()

    def stop(self) -> None:
        """End the guest at once and free everything; never on a thread of the machine's own."""
        self.control.when_ended(None)
        self.control.finish(Exit(ExitReason.STOPPED))
        # Before: a vCPU's thread may wait for a command itself.
        self.abandon_commands()
        self.join_threads()
        self.close()

    def join_threads(self) -> None:
        """Return when the vCPUs' threads, which were told to, have ended."""
        self.lines.serial_output.release()
        for thread in self.threads:
            if thread.thread.is_alive():
                thread.thread.join()

    def abandon_commands(self) -> None:
        """Tell those who wait for something of the guest why it will not come any more."""
        if self.guest is not None:
            self.guest.close(self._interruption())

    def _interruption(self) -> GuestError:
        control = self.control
        failure = control.failure
        if failure is not None:
            named = str(failure) if isinstance(failure, RingzeroError) else repr(failure)
            return GuestError(f"the machine failed: {named}")
        return (control.exit or Exit(ExitReason.STOPPED)).interruption()

    # ---- what the guest does; on a vCPU's thread --------------------------

    def _powered_off(self) -> None:
        self.control.finish(Exit(ExitReason.POWEROFF))

    def _rebooted(self) -> None:
        self._reset(ExitReason.REBOOT, "")

    def _shut_down(self, detail: str) -> None:
        self._reset(ExitReason.TRIPLE_FAULT, detail)

    def _panicked(self) -> None:
        self.control.finish(Exit.of_panic(self.lines.serial_output.tail()))

    def _debug_stop(self, thread: VcpuThread, address: int) -> bool:
        return self.stopped_at(thread, address)

    def _rested(self) -> None:
        self.rested()

    def _reset(self, reason: ExitReason, detail: str) -> None:
        self.control.finish(Exit.of_reset(reason, detail, self.lines.serial_output.tail()))


def _close_devices(board: Board) -> None:
    for part in board.parts.values():
        part.close()


def choose_engine(config: MachineConfig) -> Engine:
    """Return the engine that a description names. Raises NotFoundError, EngineError."""
    from ringzero.engine import select

    return select.choose(config.engine, BOARDS.get(config.board).architecture)
