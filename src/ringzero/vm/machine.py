"""`Machine`: a whole virtual machine as a Python object.

    with ringzero.Machine(image="micro", memory="256M") as vm:
        result = vm.run("uname -a")
        print(result.stdout.decode(), result.exit_code)

Life: built (paused, nothing runs) → `start` → paused and resumed at will →
ended, by the guest or by `stop`. Built machines hold memory and threads until
`stop`, which the `with` statement calls. What it is made of is put together in
`ringzero.vm.build`; how it is copied and taken back, in `ringzero.vm.copies`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, Unpack, overload

from ringzero.config.machine import MachineConfig
from ringzero.devices.contract import Device
from ringzero.engine.contract import Engine
from ringzero.errors import DeviceError, GuestError, InvalidValueError
from ringzero.records import replace
from ringzero.vm import copies
from ringzero.vm.boot import complete
from ringzero.vm.build import Assembly, assemble, choose_engine
from ringzero.vm.debugger import Debugger
from ringzero.vm.exit import Exit, ExitReason
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.identity import Identity
from ringzero.vm.inspect import Cpu, MemoryAccess
from ringzero.vm.nets import Nets
from ringzero.vm.runloop import Wanted
from ringzero.vm.seed import Seed
from ringzero.vm.start import Start
from ringzero.vm.state import MachineState

if TYPE_CHECKING:
    from ringzero.api.command import CommandResult
    from ringzero.api.options import RunOptions
    from ringzero.config.fields import MachineFields
    from ringzero.vm.blocks import Blocks
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Store
    from ringzero.vm.shares import Shares

# The longest that `start` waits for a vCPU to enter the guest, in seconds.
_FIRST_ENTRY = 0.1

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


def _stop_forgotten(parts: Assembly) -> None:
    """Stop the machine of which only `parts` are left, and say so."""
    warnings.warn(
        f"the machine {parts.config.name!r} was forgotten before it was stopped; "
        "use it in a `with` statement, or call stop()",
        ResourceWarning,
        stacklevel=2,
    )
    # Garbage is collected on any thread: it may be one of those that end now.
    threading.Thread(target=parts.stop, name="stop", daemon=True).start()


def _frozen_weakly(machine: weakref.ref[Machine]) -> Callable[[], AbstractContextManager[None]]:
    """Return `Machine.frozen` for the machine's own parts, which must not keep it alive."""

    def frozen() -> AbstractContextManager[None]:
        found = machine()
        return contextlib.nullcontext() if found is None else found.frozen()

    return frozen


def _settled_weakly(machine: weakref.ref[Machine]) -> Callable[[], None]:
    """Return what has `Machine.settle` called, on another thread, while there is the machine."""

    def rested() -> None:
        # Loaded when it is first needed: most machines never rest.
        from ringzero.vm import resting

        resting.settle_soon(machine)

    return rested


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Look for no garbage in the block: what is made there stays, and much of it is made."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _own_disks(config: MachineConfig | None) -> Iterator[None]:
    """Have the disks that were made for a machine open in the block; they go with the machine."""
    try:
        yield
    finally:
        if config is not None and (config.boot_entry is not None or len(config.disks) > 1):
            from ringzero.image import datadisks

            for disk in config.disks:
                if disk.path.parent == datadisks.directory():
                    disk.path.unlink(missing_ok=True)


class Machine:
    """One machine, built from a MachineConfig or from its fields by name.

    Machine(config), Machine(image="micro", memory="256M", cpus=2),
    Machine(kernel="vmlinuz", initrd="initrd.img", command_line="console=ttyS0").
    `engine` may be an Engine object instead of a name. Raises ConfigError,
    NotFoundError, GuestImageError, DiskError, EngineError, HostError.

    One of an `image` goes on from a template where there is one: from an idle guest that has
    booted. With `boot` it boots; without, one that was given by a config or a kernel may resume.
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        image: str | None = None,
        engine: str | Engine | None = None,
        boot: bool | None = None,
        **fields: Unpack[MachineFields],
    ) -> None:
        values: dict[str, Any] = {**fields}
        if isinstance(engine, str):
            values["engine"] = engine
        config = complete(config, image, values)
        chosen = engine if isinstance(engine, Engine) else choose_engine(config)
        booted = boot if boot is not None else image is None
        start = Start.plan(config, chosen, boot=booted)
        with _own_disks(config if image is not None else None):
            self._take(assemble(config, chosen, later=start.may_resume), start=start)

    @classmethod
    def of(
        cls,
        parts: Assembly,
        introduction: copies.Introduction | None = None,
        *,
        start: Start | None = None,
    ) -> Self:
        """Return the machine of `parts`, whose owner it becomes.

        `introduction` is what its guest, a copy, is told before it runs; `start` is how another
        is to come to run.
        """
        machine = cls.__new__(cls)
        machine._take(parts, introduction, start)
        return machine

    @classmethod
    def from_seed(
        cls, seed: Seed, identity: Identity | None = None, *, engine: Engine | None = None
    ) -> Self:
        """Return a paused copy of the machine that `seed` was taken from.

        Raises StateError where the seed does not fit (another engine, other
        devices), and what building a machine raises. The seed stays the caller's.
        """
        return cls.of(*copies.grow(seed, identity or Identity(), engine))

    def _take(
        self,
        parts: Assembly,
        introduction: copies.Introduction | None = None,
        start: Start | None = None,
    ) -> None:
        self.parts = parts
        self._start = start or Start(copied=introduction is not None)
        self._attached = self._mounts = False
        self.identity = parts.identity
        # Identifiers of the snapshots that the machine comes from, the latest first.
        self.lineage: tuple[str, ...] = ()
        self.control = parts.control
        self.memory = MemoryAccess(parts.memory)
        self.disks = parts.disks
        self.board = parts.board
        self.threads = parts.threads
        self.serial = parts.lines.serial
        self.console = parts.lines.console
        # The network interfaces: ports, networks, counters.
        self.nets = Nets(parts)
        # The host's end of the socket device, where there is one.
        self.vsock = parts.devices.vsock
        # One per vCPU; `cpu` is the boot processor.
        frozen = _frozen_weakly(weakref.ref(self))
        self.cpus = tuple(Cpu(thread, parts.board.architecture, frozen) for thread in parts.threads)
        self.cpu = self.cpus[0]
        # The name of the CPU engine that the machine runs on.
        self.engine_name = parts.engine.name
        # Breakpoints and hooks.
        self.debugger = Debugger(weakref.proxy(self))
        # Called by `start` instead of letting the guest run: whoever takes it over resumes it.
        self.hand_over: Callable[[], None] | None = None
        parts.stopped_at = self.debugger.stopped_at
        parts.rested = _settled_weakly(weakref.ref(self))
        self._freezing = threading.RLock()
        self._started = self._stopped = False
        # Whether there were copies, and their first work was rehearsed.
        self._forked = self._rehearsed = False
        self._introduction = introduction
        self._forgotten = weakref.finalize(self, _stop_forgotten, parts)
        # At the interpreter's end `_stop_all` does it, which warns of nothing.
        self._forgotten.atexit = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a machine is threads and memory of this process, and cannot be pickled or copied: "
            "fork() makes a copy, snapshot() writes one down for other processes"
        )

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped" if self._stopped else "paused"
        state = state if self._started else "not started"
        return f"<{type(self).__name__} {self.parts.config.name!r}: {state}>"

    @property
    def config(self) -> MachineConfig:
        """The machine's description, as it is now."""
        return self.parts.config

    @property
    def agent(self) -> Agent:
        """The host's side of the guest's agent. Raises InvalidValueError where there is none."""
        if self.parts.guest is None:
            raise InvalidValueError(
                "this machine has no agent", hint="build it from an image, or with agent=True"
            )
        return self.parts.guest.agent

    @functools.cached_property
    def shares(self) -> Shares:
        """The shared folders: which there are, others, and fewer."""
        from ringzero.vm.shares import Shares

        return Shares(self.parts)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Block jobs on the disks, and exports of them."""
        from ringzero.vm.blocks import Blocks

        return Blocks(self.parts)

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
        self.parts.attach(name, device, mmio, pio, size)
        self._attached = True

    # ---- life -------------------------------------------------------------

    def start(self) -> None:
        """Go on from a template, or boot the kernel, and let the guest run. GuestImageError."""
        if self._stopped:
            raise InvalidValueError("the machine was stopped; build a new one")
        if self._started:
            return
        self._begin()
        # Folders that come in afterwards are there when a command begins.
        try:
            with self.agent.kept_waiting() if self._mounts else contextlib.nullcontext():
                self._run()
                if self._mounts:
                    self.shares.mount_all()
        except GuestError as fault:
            # Whoever waits for a command hears why none runs.
            self.agent.close(fault)
            self.stop()
            raise
        if self._mounts:
            self.agent.proceed()

    def _run(self, *, waits: bool = True) -> None:
        """Let the guest run, for the first time here; it `waits` for a vCPU to have begun."""
        self._introduce()
        self._started = True
        _RUNNING.add(self)
        _stop_all_at_exit()
        self._start.watch(self.parts.guest.agent if self.parts.guest else None)
        self.parts.watch_end()
        # Devices whose state was restored go on with what they had in hand.
        self.parts.start_threads(self.hand_over or self.resume)
        if waits and self.hand_over is None:
            # The vCPU first: what we do next would keep the interpreter's lock from it.
            self.control.entered.wait(_FIRST_ENTRY)
        # To unmap files of some tens of megabytes takes milliseconds.
        self.parts.ground.loaded()
        self.parts.add_doorbells()

    def _begin(self) -> None:
        """Have the guest booted, or gone on from its template; its vCPUs have not run yet."""
        start = self._start
        if start.may_resume and not self.parts.booted:
            changes = (
                (self._attached, "a device was attached"),
                (self.memory.written, "its memory was written to"),
                (self.debugger.waits, "a breakpoint or hook is set"),
                (self.hand_over is not None, "a debugger has it before its first instruction"),
            )
            why = next((text for changed, text in changes if changed), None)
            if why is not None:
                start.give_up(why)
            else:
                self._introduction = start.resume(self.parts)
                # What comes in afterwards, and commands have to find there.
                self._mounts = start.resumed and any(s.target for s in self.config.shares)
        self.parts.boot()

    def _introduce(self) -> None:
        """Tell the guest of a copy who it is; its vCPUs have not run yet."""
        if self._introduction is not None:
            self._introduction.tell(self.parts)
            self._introduction = None

    def pause(self) -> None:
        """Stop all vCPUs and let requests in flight end; returns when the state stands still."""
        with self._freezing:
            self.control.set(Wanted.PAUSE)
            self.control.wait_parked()
            # What was rung still reaches the devices; then they finish it.
            self.parts.vm.settle()
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

    def settle(self) -> None:
        """Give memory back that the guest has written to and left as it was, if it sleeps.

        Nothing happens where anybody else has the machine stand still.
        """
        if not self._freezing.acquire(blocking=False):
            return
        try:
            if self.running and all(thread.vcpu.asleep for thread in self.threads):
                with self.frozen():
                    self.parts.memory.host.forget_same()
        except Exception as fault:
            # What is stopped meanwhile has nothing to give back any more.
            if not self._stopped:
                self.control.fail(fault)
        finally:
            self._freezing.release()

    def _on_vcpu_thread(self) -> bool:
        """Whether the caller is a hook, or a device."""
        return any(t.thread is threading.current_thread() for t in self.threads)

    def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the run; None when `timeout` seconds are over.

        Raises what went wrong on our side (EngineError and others).
        """
        if not self.control.wait_end(timeout):
            return None
        self.parts.lines.flush()
        if self.control.failure is not None:
            raise self.control.failure
        return self.control.exit

    def press_power_button(self) -> bool:
        """Ask the guest's system to shut down, as a person would; `wait` tells when it has.

        False where the board has no such button. A system that heeds none goes on.
        """
        return self.parts.board.press_power_button()

    def stop(self) -> None:
        """End the guest at once and free everything; may be called twice.

        A hook only ends the guest by it: what its vCPU stands on is freed by the
        next call, from another thread.
        """
        if self._stopped or self._on_vcpu_thread():
            self.control.finish(Exit(ExitReason.STOPPED))
            return
        self._stopped = True
        self._forgotten.detach()
        _RUNNING.discard(self)
        self.parts.stop()
        # What never took a command is no start for others.
        if self.parts.guest is None or not self.parts.guest.agent.release:
            self._start.give_up("")
        self._start.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- commands in the guest --------------------------------------------

    @overload
    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes]: ...

    @overload
    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: Literal[True],
        **options: Unpack[RunOptions],
    ) -> CommandResult[str]: ...

    @overload
    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: bool,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes] | CommandResult[str]: ...

    def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: bool = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes] | CommandResult[str]:
        """Run a command in the guest: words, or a string for its shell.

        Options are input=, timeout=, env=, cwd=, user= and check=, as
        `ringzero.api.command.Invocation` tells; with `text` the output is str. Starts the
        machine if need be. Raises TimeoutExpiredError, CommandError, InvalidValueError, and
        GuestError when the guest ended before the command did.
        """
        from ringzero.api.command import invocation
        from ringzero.vm.guest.execution import Execution

        agent, asked = self.agent, invocation(command, text=text, options=options)
        # A copy is told who it is as it starts: its first command waits for that.
        self.start()
        return Execution(agent, asked).finish()

    def copy_in(
        self,
        source: str | Path | Sequence[str | Path],
        target: str,
        *,
        follow: bool = False,
        owners: bool = False,
    ) -> None:
        """Copy files and folders of the host to `target` of the guest, as cp(1) would.

        Modes, times and symbolic links stay; `follow` copies what links lead to, `owners` keeps
        users and groups by number. Raises HostError, GuestError, InvalidValueError.
        """
        from ringzero.vm.guest import archive

        sources = [source] if isinstance(source, str | PurePath) else source
        agent = self.agent
        self.start()
        archive.copy_in(agent, sources, target, follow=follow, owners=owners)

    def copy_out(
        self, source: str, target: str | Path, *, follow: bool = False, owners: bool = False
    ) -> None:
        """Copy a file or folder of the guest to `target` of the host, as cp(1) would.

        Nothing is written outside of it, whatever the guest sends. Raises as `copy_in` does.
        """
        from ringzero.vm.guest import archive

        agent = self.agent
        self.start()
        archive.copy_out(agent, source, Path(target), follow=follow, owners=owners)

    # ---- state and copies -------------------------------------------------

    def save(self) -> MachineState:
        """Return the state of everything but memory and disks, as plain data."""
        with self.frozen():
            return copies.save(self.parts)

    def restore(self, state: MachineState) -> None:
        """Put a saved state back, instead of booting. Raises StateError."""
        with self.frozen():
            copies.restore(self.parts, state)

    def seed(self, clones: int = 1, *, same_files: bool = False) -> Seed:
        """Return what the machine is now, for clones to grow from; close it after use.

        How many it will be decides what they share, and how. With `same_files` a copy takes this
        machine's place: persistent memory that is written to is its own then. The guest stands
        still for some milliseconds and goes on where it was. Raises InvalidValueError when the
        guest has ended, StateError, HostError.
        """
        self._refuse_ended_and_hooks()
        with self.frozen():
            self.parts.devices.check_copied(same_files=same_files)
            return copies.take_seed(self.parts, clones)

    def _refuse_ended_and_hooks(self) -> None:
        if self._stopped or self.control.wanted is Wanted.END:
            raise InvalidValueError("the guest has ended; there is nothing to copy, or to revert")
        if self._on_vcpu_thread():
            raise InvalidValueError(
                "a hook cannot copy or revert its machine",
                hint="pause in the hook, copy outside of it",
            )

    def grow(self, seed: Seed, identity: Identity | None = None) -> Self:
        """Return a paused copy from `seed`, on this machine's engine.

        It may be called in a forked process, whose only machine the copy is then.
        """
        copy = type(self).from_seed(seed, identity, engine=self.parts.engine)
        copy.lineage = self.lineage
        return copy

    def rehearse(self) -> None:
        """Have the guest do what copies do first, so that they do it faster; once, if it runs."""
        if self.running and not self._on_vcpu_thread():
            self._rehearsed = copies.rehearse(self.parts)

    def keep_from_children(self) -> None:
        """Leave this machine's memory out of processes forked from now on; after `seed`."""
        self.parts.memory.host.keep_from_children()

    @contextlib.contextmanager
    def disks_still(self) -> Iterator[None]:
        """Have nobody use the disks in a `with` block: no guest, block job or export."""
        with contextlib.ExitStack() as stack:
            for disk in self.disks:
                stack.enter_context(disk.still())
            yield

    def prepare_confinement(self) -> None:
        """Start what the process cannot start any more once it is confined; before `start`."""
        self._start.prepare()

    def leave(self) -> None:
        """In a forked process: let go of the host's sockets, which stay the original's."""
        self.parts.devices.leave()
        if "blocks" in vars(self):
            self.blocks.leave()

    def fork(self, count: int = 1, *, start: bool = False) -> list[Self]:
        """Return `count` copies of this machine, as it is now; each is stopped on its own.

        They share all memory and disk content that none of them writes to.
        `start` lets them run at once. Raises as `seed` and `from_seed` do.
        """
        if count < 1:
            raise InvalidValueError(f"{count} copies of a machine are not possible")
        # Once it pays: of a machine that is forked once, one copy would gain less than it takes.
        if (count > 1 or self._forked) and not self._rehearsed:
            self.rehearse()
        self._forked = True
        children: list[Self] = []
        with contextlib.ExitStack() as undo, self.seed(count) as seed, _without_collection():
            for _ in range(count):
                child = self.grow(seed)
                undo.callback(child.stop)
                children.append(child)
            if start:
                for child in children:
                    # Of many none is waited for before the others run.
                    child._run(waits=count == 1)
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
        with self.frozen(), revert.seed_for(self.parts, snapshot) as seed:
            try:
                revert.take_back(self.disks, seed.disks)
                self.identity = identity or Identity()
                introduction = copies.take_back(self.parts, seed, self.identity)
            except BaseException as fault:
                self.control.fail(fault)
                raise
            # One that boots is nobody's copy.
            self._introduction = introduction if snapshot.manifest.memory is not None else None
            self.lineage = (snapshot.identifier, *snapshot.manifest.lineage)
            if self._started:
                self._introduce()

    def rename(self, name: str) -> None:
        """Call a machine that runs, and its guest, otherwise; commands begin when that knows it.

        As any copy, the guest gets new random numbers with it. Raises InvalidValueError.
        """
        known = self.identity
        self.identity = self.parts.identity = Identity(
            name, generation=known.generation, now=None, mac=known.mac, cid=known.cid
        )
        with self.frozen():
            self.parts.config = replace(self.parts.config, name=name)
            copies.Introduction(self.identity, None).tell(self.parts)

    # ---- statistics -------------------------------------------------------

    def stats(self) -> Mapping[str, Any]:
        """Where the time went: the engine's counters per vCPU, accesses per device, exits."""
        from ringzero.vm import statistics

        found = {
            "started": self._start.outcome,
            **statistics.of(self.board, self.threads, self.control, self.engine_name),
        }
        counted = {f"eth{n}": backend.counters() for n, backend in enumerate(self.nets)}
        return {**found, "net": counted} if counted else found
