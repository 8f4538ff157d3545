"""The microVM of this process: what clients ask of it, before it has started and after."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ringzero.doors.firecracker import balloon, faults, limits
from ringzero.doors.firecracker.configuration import Configuration, checked_drive, disk_config
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.logs import Log
from ringzero.doors.firecracker.metadata import Metadata
from ringzero.doors.firecracker.metrics import Metrics
from ringzero.doors.firecracker.readiness import Readiness
from ringzero.doors.firecracker.table import API_VERSION, Operation
from ringzero.errors import RingzeroError, StateError

if TYPE_CHECKING:
    from ringzero.host.memory import MemoryImage
    from ringzero.vm.build import Assembly
    from ringzero.vm.exit import Exit
    from ringzero.vm.machine import Machine


class Console(Protocol):
    """Where the guest's serial line leads."""

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Take what PUT /serial says. Raises ApiFault."""
        ...

    def write(self, data: bytes) -> None:
        """Take what the guest prints."""
        ...


NOT_STARTED, RUNNING, PAUSED = "Not started", "Running", "Paused"
APPLICATION = "Firecracker"
# After these it is known what the guest's memory begins with.
_OF_MEMORY = frozenset(("set_machine", "update_machine", "set_boot_source"))
_NO_MEMORY = "missing field: either `mem_backend` or `mem_file_path` is required"
_TWO_MEMORIES = "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"
_NO_DEVICE = "Failed perform action on device: Device not found."


class Instance:
    """One microVM. `handle` is called by one thread at a time.

    `console` takes what the guest prints on its serial line; `ended` hears of its end, on a thread
    of its own; `confine` is called before a machine's first instruction.
    """

    def __init__(
        self,
        identifier: str,
        configuration: Configuration,
        log: Log,
        metrics: Metrics,
        metadata: Metadata,
        *,
        console: Console,
        ended: Callable[[Exit | None], None] = lambda end: None,
        confine: Callable[[Machine], None] = lambda machine: None,
    ) -> None:
        self.identifier = identifier
        self.configuration = configuration
        self.metadata = metadata
        self.machine: Machine | None = None
        self._log, self._metrics = log, metrics
        self._console, self._ended, self._confine = console, ended, confine
        self._state = NOT_STARTED
        # The memory at the last snapshot, or that of the one that was loaded.
        self._since: MemoryImage | None = None
        # A machine that was loaded has not run yet.
        self._waits = False
        self._readiness = Readiness()
        # Who supplies the memory of a machine that was loaded.
        self._supply = contextlib.ExitStack()
        self._closing = False

    # ---- requests ---------------------------------------------------------

    def handle(self, operation: Operation, identifier: str, fields: Any) -> Any:
        """Do what is asked; return what is answered, None for nothing. Raises ApiFault."""
        self._check(operation.before, operation.after)
        name, configuration = operation.name, self.configuration
        if operation.name == "unplug":
            raise faults.not_supported(f"PCI is not enabled; {identifier} stays plugged")
        own = getattr(self, f"_{name}", None)
        if own is not None:
            return own(fields)
        if name in balloon.ANSWERS:
            return balloon.ANSWERS[name](configuration, self._running(), fields)
        setter = getattr(configuration, name, None)
        if setter is None or not operation.before:
            raise faults.not_supported(f"{operation.method} {operation.path}")
        setter(fields)
        if name in _OF_MEMORY:
            with contextlib.suppress(RingzeroError):
                self._readiness.expect(configuration.describe(self.identifier))
        return None

    def _check(self, before: bool, after: bool) -> None:
        started = self._state != NOT_STARTED
        if started and not after:
            raise ApiFault(faults.AFTER_START)
        if not started and not before:
            raise ApiFault(faults.BEFORE_START)

    def _instance_info(self, _: Any) -> Mapping[str, Any]:
        return {
            "id": self.identifier,
            "state": self._state,
            "vmm_version": API_VERSION,
            "app_name": APPLICATION,
        }

    def _version(self, _: Any) -> Mapping[str, Any]:
        return {"firecracker_version": API_VERSION}

    def _full_config(self, _: Any) -> Mapping[str, Any]:
        return self.configuration.full()

    def _balloon(self, _: Any) -> Mapping[str, Any]:
        if self.configuration.balloon is None:
            raise ApiFault("Balloon config error: No balloon device found.")
        return self.configuration.balloon

    def _machine_config(self, _: Any) -> Mapping[str, Any]:
        return self.configuration.machine

    def _set_logger(self, fields: Mapping[str, Any]) -> None:
        self._log.configure(fields)

    def _set_metrics(self, fields: Mapping[str, Any]) -> None:
        self._metrics.configure(fields)

    def _act(self, fields: Mapping[str, Any]) -> None:
        action = fields["action_type"]
        if action == "InstanceStart":
            self._check(before=True, after=False)
            self.start()
            return
        self._check(before=False, after=True)
        if action == "FlushMetrics":
            self._metrics.flush()
        elif self.machine is not None and not self.machine.press_power_button():
            raise faults.not_supported("SendCtrlAltDel: the board has no button")

    # ---- metadata ---------------------------------------------------------

    def _metadata(self, _: Any) -> Any:
        return self.metadata.value

    def _put_metadata(self, value: Any) -> None:
        self.metadata.put(value)

    def _patch_metadata(self, value: Any) -> None:
        self.metadata.patch(value)

    def _set_metadata_config(self, fields: Mapping[str, Any]) -> None:
        self.configuration.set_metadata_config(dict(fields))
        assert self.configuration.metadata is not None
        self.metadata.configure(self.configuration.metadata)

    # ---- life -------------------------------------------------------------

    def make_ready(self) -> None:
        """Load what a start needs, beside the first requests."""
        self._readiness.begin()

    def start(self) -> None:
        """Build the machine and let it boot. Raises ApiFault."""
        from ringzero.host.progress import Progress
        from ringzero.vm import builder

        begun = time.monotonic_ns(), time.process_time_ns()
        self._readiness.wait()
        config = self.configuration.describe(self.identifier)
        self._console.configure(self.configuration.serial)
        try:
            config.check_files()
            ground = self._readiness.take(config)
            machine = builder.build(config, Progress(enabled=False), boot=True, ground=ground)
            self._attach(machine.parts, begun)
            self._take(machine)
            try:
                self._confine(machine)
                machine.start()
            except BaseException:
                self._give_up()
                raise
        except RingzeroError as fault:
            raise ApiFault(f"Start microvm error: {faults.told(fault)}") from fault
        self._state = RUNNING

    def _attach(self, parts: Assembly, begun: tuple[int, int]) -> None:
        """Attach the boot timer, where there is one, to a machine that was `begun` then."""
        if not self.configuration.boot_timer:
            return
        from ringzero.devices.chips.boottimer import ADDRESS, SIZE, BootTimer

        def booted() -> None:
            took = (time.monotonic_ns() - begun[0]) // 1000
            used = (time.process_time_ns() - begun[1]) // 1000
            self._log.info(
                f"Guest-boot-time = {took:>6} us {took // 1000} ms, {used:>6} CPU us "
                f"{used // 1000} CPU ms"
            )

        parts.attach("boottimer", BootTimer(booted), ADDRESS, None, SIZE)

    def _take(self, machine: Machine) -> None:
        """Be the machine's owner."""
        self.machine = machine
        machine.serial.on_output = self._console.write
        limits.apply(machine, self.configuration)
        self.metadata.serve(machine, self.configuration)
        self._metrics.collect = partial(limits.counters, machine)
        threading.Thread(target=self._await_end, args=(machine,), name="end", daemon=True).start()

    def _give_up(self) -> None:
        machine, self.machine = self.machine, None
        if machine is not None:
            machine.stop()

    def _await_end(self, machine: Machine) -> None:
        end: Exit | None = None
        try:
            end = machine.wait()
        except RingzeroError as fault:
            self._log.error(f"the machine failed: {faults.told(fault)}")
        except Exception as fault:
            self._log.error(f"the machine failed: {fault!r}")
        if machine is self.machine and not self._closing:
            self._ended(end)

    def _set_state(self, fields: Mapping[str, Any]) -> None:
        machine = self._running()
        if fields["state"] == "Paused":
            if not self._waits:
                with self._timed("pause_vm"):
                    machine.pause()
            self._state = PAUSED
        else:
            with self._timed("resume_vm"):
                self._resume(machine)

    def _resume(self, machine: Machine) -> None:
        if self._waits:
            self._waits = False
            self._confine(machine)
            machine.start()
        else:
            machine.resume()
        self._state = RUNNING

    def _running(self) -> Machine:
        if self.machine is None:
            raise ApiFault(faults.BEFORE_START)
        return self.machine

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Note how long the block took, in microseconds."""
        begun = time.monotonic_ns()
        yield
        took = (time.monotonic_ns() - begun) // 1000
        for named in (name, f"vmm_{name}"):
            self._metrics.store("latencies_us", named, took)
        self._log.info(f"'{name.replace('_', ' ')}' VMM action took {took} us.")

    def close(self) -> None:
        """End the machine and free all of it."""
        self._closing = True
        self._readiness.close()
        # Nothing waits for memory any more that nobody brings.
        self._supply.close()
        machine, self.machine = self.machine, None
        if machine is not None:
            machine.stop()
        self._note_memory(None)

    # ---- snapshots --------------------------------------------------------

    def _create_snapshot(self, fields: Mapping[str, Any]) -> None:
        from ringzero.doors.firecracker import snapshots

        machine = self._running()
        if self._state != PAUSED:
            raise ApiFault(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: "
                "save/restore unavailable while running"
            )
        diff = fields.get("snapshot_type") == "Diff"
        state, memory = Path(fields["snapshot_path"]), Path(fields["mem_file_path"])
        with self._timed("diff_create_snapshot" if diff else "full_create_snapshot"):
            try:
                since = self._since if diff else None
                self._note_memory(
                    snapshots.save(machine, self.configuration.kept(), state, memory, since)
                )
            except RingzeroError as fault:
                raise ApiFault(f"Create snapshot error: {faults.told(fault)}") from fault

    def _load_snapshot(self, fields: Mapping[str, Any]) -> None:
        backend = fields.get("mem_backend")
        if (backend is None) == ("mem_file_path" not in fields):
            raise faults.not_json(_TWO_MEMORIES if backend else _NO_MEMORY)
        if self.configuration.touched:
            raise ApiFault(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring "
                "boot-specific resources."
            )
        if fields.get("huge_pages", "Snapshot") not in ("Snapshot", "None", "Transparent"):
            raise faults.not_supported("guest memory in hugetlbfs")
        before = self.configuration
        # What was laid for a start is nobody's now.
        self._readiness.close()
        with self._timed("load_snapshot"):
            try:
                machine = self._load_machine(Path(fields["snapshot_path"]), fields)
                if fields.get("resume_vm"):
                    self._resume(machine)
            except (RingzeroError, LookupError, TypeError, ValueError, AttributeError) as fault:
                self._supply.close()
                self._give_up()
                self._note_memory(None)
                self.configuration = before
                self._waits, self._state = False, NOT_STARTED
                reason = fault if isinstance(fault, RingzeroError) else StateError(repr(fault))
                raise ApiFault(
                    f"Load snapshot error: Failed to restore from snapshot: {faults.told(reason)}"
                ) from fault

    def _load_machine(self, state: Path, fields: Mapping[str, Any]) -> Machine:
        """Be the owner of the machine that was saved, paused."""
        from ringzero.doors.firecracker import snapshots

        saved = snapshots.read(state)
        configuration = self.configuration.loaded(
            saved.configuration, fields.get("network_overrides", []), fields.get("vsock_override")
        )
        config = configuration.adapt(saved.machine)
        self._console.configure(configuration.serial)
        before, self.configuration = self.configuration, configuration
        image = self._memory(config.memory, fields)
        try:
            begun = time.monotonic_ns(), time.process_time_ns()
            attach = partial(self._attach, begun=begun)
            machine = snapshots.grow(saved, config, image, attach)
        except BaseException:
            self.configuration = before
            image.close()
            raise
        if image.supplied is not None:
            # A Diff would have to ask for all of it: it has all of it.
            image.close()
        else:
            self._note_memory(image)
        self._waits, self._state = True, PAUSED
        if configuration.metadata is not None:
            self.metadata.configure(configuration.metadata)
        self._take(machine)
        return machine

    def _memory(self, size: int, fields: Mapping[str, Any]) -> MemoryImage:
        """Return the memory that a load names: in a file, or supplied by another process."""
        from ringzero.doors.firecracker import snapshots

        backend = fields.get("mem_backend")
        path = Path(backend["backend_path"] if backend else fields["mem_file_path"])
        if backend is None or backend["backend_type"] == "File":
            return snapshots.map_memory(path, size)
        supply = snapshots.Supply(path)
        self._supply.callback(supply.close)
        return supply.memory(size)

    def _note_memory(self, image: MemoryImage | None) -> None:
        """Keep a memory that the next Diff is made against."""
        if self._since is not None:
            self._since.close()
        self._since = image

    # ---- devices ----------------------------------------------------------

    def _put_drive(self, fields: dict[str, Any]) -> None:
        self._refuse_hot_plug()
        self.configuration.put_drive(fields)

    def _put_net(self, fields: dict[str, Any]) -> None:
        self._refuse_hot_plug()
        self.configuration.put_net(fields)

    def _put_pmem(self, fields: dict[str, Any]) -> None:
        self._refuse_hot_plug()
        self.configuration.put_pmem(fields)

    def _update_pmem(self, fields: dict[str, Any]) -> None:
        self.configuration.update_pmem(fields)

    def _refuse_hot_plug(self) -> None:
        if self._state != NOT_STARTED:
            raise ApiFault("PCI is not enabled")

    def _update_drive(self, fields: dict[str, Any]) -> None:
        from ringzero.vm import disks

        machine, drives = self._running(), self.configuration.drives
        number = next((n for n, d in enumerate(drives) if d["drive_id"] == fields["drive_id"]), -1)
        sentence = "Drive config error: Unable to patch the block device: "
        if number < 0:
            raise ApiFault(f"{sentence}{_NO_DEVICE} Please verify the request arguments.")
        if "path_on_host" in fields:
            changed = checked_drive({**drives[number], "path_on_host": fields["path_on_host"]})
            try:
                disks.exchange(machine, number, disk_config(changed))
            except RingzeroError as fault:
                raise ApiFault(
                    f"{sentence}{faults.told(fault)} Please verify the request arguments."
                ) from fault
            drives[number] = changed
        if "rate_limiter" in fields:
            limiter = limits.merged(drives[number]["rate_limiter"], fields["rate_limiter"])
            drives[number] = {**drives[number], "rate_limiter": limiter}
            limits.limit_drive(machine, self.configuration, number)

    def _update_net(self, fields: dict[str, Any]) -> None:
        machine, nets = self._running(), self.configuration.nets
        number = next((n for n, d in enumerate(nets) if d["iface_id"] == fields["iface_id"]), -1)
        if number < 0:
            raise ApiFault(f"Network config error: Unable to update the net device: {_NO_DEVICE}")
        names = ("rx_rate_limiter", "tx_rate_limiter")
        changed = {name: limits.merged(nets[number].get(name), fields.get(name)) for name in names}
        nets[number] = {**nets[number], **changed}
        limits.limit_net(machine, self.configuration, number)
