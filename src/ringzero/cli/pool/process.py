"""The process of a pool: it has one idle guest, and forks machines from it ahead of time.

It is started by `ringzero pool start` with the description on its standard input. The guest, which
has answered a command, stands still for good; each machine is a fork of this process that grows
one from it (`ringzero.control.machine.fork` tells what makes that safe), and waits on the pool's
socket. One that was taken is its client's, and outlives the pool.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ringzero.cli.pool import line as lines
from ringzero.cli.pool import place
from ringzero.cli.pool.place import CONTROL, LOCK
from ringzero.cli.pool.protocol import MACHINES, MESSAGE, is_ours
from ringzero.cli.pool.worker import PATIENCE, Worker
from ringzero.config.tree import config_from_tree
from ringzero.errors import (
    ConflictError,
    ControlError,
    GuestError,
    HostError,
    InvalidValueError,
    RingzeroError,
)
from ringzero.host.files import host_error
from ringzero.host.process import set_title
from ringzero.host.progress import QUIET
from ringzero.settings import BOOT_TIMEOUT
from ringzero.vm.machine import Machine

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.vm.seed import Seed

# More are more processes than a user may have on many hosts.
MAX_SIZE = 200
# Clients that wait for a machine while others are being made.
_BACKLOG = 256
# So many machines in a row that did not come to be end the pool.
_FAILURES = 3
# How long a client of the control socket may take, in seconds.
_CONTROL_PATIENCE = 1.0
# How long a machine that was taken has the processor, in seconds, before another is made; unless
# there is none for the next client.
_REST = 0.05
# How often the guest answers before it is copied: what every command needs is translated then.
_WARM = 2


class Pool:
    """The machines that are ready, being made, and lent, and the sockets.

    `idle` is after how many seconds without a client the pool ends; 0: never.
    """

    def __init__(self, directory: Path, machine: Machine, size: int, idle: float) -> None:
        self._directory = directory
        self._machine = machine
        self._size = size
        self._idle = idle
        self._words = ("--", "true") if machine.config.disks else ("true",)
        self._began = time.time()
        self._last = time.monotonic()
        self._served = self._failed = 0
        self._ending = False
        # Processes by number, each with its pidfd.
        self._making: dict[int, int] = {}
        self._ready: dict[int, int] = {}
        self._lent: dict[int, int] = {}
        # Those that have become machines of their own, and are none of the pool's any more.
        self._kept: dict[int, int] = {}
        self._reports, self._report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Of this only the other end's fate counts: it is closed when we are gone.
        self._life, self._living = os.pipe2(os.O_CLOEXEC)
        self._text = b""
        self._machines = _listen(directory / MACHINES, _BACKLOG)
        self._control = _listen(directory / CONTROL, 8)

    def serve(self, seed: Seed, tell_ready: Callable[[], None]) -> None:
        """Keep machines ready until somebody, or the time, ends it. Raises ControlError.

        `tell_ready` is called once, when as many are there as there shall be.
        """
        told = False
        while not self._ending and self._left() > 0:
            pause = self._left()
            if not self._making and len(self._ready) < self._size:
                rest = self._last + _REST - time.monotonic()
                if told and self._ready and rest > 0:
                    pause = min(pause, rest)
                else:
                    self._fork(seed)
            if not told and len(self._ready) >= self._size:
                told = True
                tell_ready()
            self._wait(pause)
            if self._failed >= _FAILURES:
                raise ControlError(
                    "machines of the pool do not come up",
                    hint=f"see {self._directory / place.LOG}",
                )

    def _left(self) -> float:
        """Return for how many seconds the pool goes on if nobody comes."""
        if not self._idle or self._lent:
            return math.inf
        return self._last + self._idle - time.monotonic()

    def close(self) -> None:
        """End the machines that nobody has, and take the sockets away."""
        for name in (MACHINES, CONTROL):
            (self._directory / name).unlink(missing_ok=True)
        for found in (self._making, self._ready):
            for descriptor in found.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            for number in found:
                os.waitpid(number, 0)

    # ---- inside -----------------------------------------------------------

    def _fork(self, seed: Seed) -> None:
        readers = seed.share()
        try:
            number = os.fork()
            if number == 0:
                self._work(seed)
        finally:
            for reader in readers:
                reader.complete()
        self._making[number] = os.pidfd_open(number)

    def _work(self, seed: Seed) -> NoReturn:
        """In a machine's process: let go of what is the pool's alone."""
        for descriptor in (
            *(self._living, self._reports),
            *(self._making | self._ready | self._lent | self._kept).values(),
        ):
            os.close(descriptor)
        self._control.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        worker = Worker(self._machines, self._report, self._life, self._directory.name)
        worker.work(self._machine, seed, self._words)

    def _wait(self, limit: float) -> None:
        """Wait until something happens, for `limit` seconds at most, and see to it."""
        poller = select.poll()
        known = self._making | self._ready | self._lent | self._kept
        for descriptor in (self._reports, self._control.fileno(), *known.values()):
            poller.register(descriptor, select.POLLIN)
        pause = None if limit == math.inf else max(0.0, limit) * 1000
        woken = {descriptor for descriptor, _ in poller.poll(pause)}
        if self._reports in woken:
            self._hear()
        for number, descriptor in known.items():
            if descriptor in woken:
                self._bury(number)
        if self._control.fileno() in woken:
            self._answer()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._text += os.read(self._reports, 4096)
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            what, _, text = line.partition(b" ")
            number = int(text)
            if what == b"ready" and number in self._making:
                self._ready[number] = self._making.pop(number)
                self._failed = 0
            elif what in (b"taken", b"kept") and number in self._ready:
                taken = self._lent if what == b"taken" else self._kept
                taken[number] = self._ready.pop(number)
                self._served += 1
                self._last = time.monotonic()

    def _bury(self, number: int) -> None:
        os.waitpid(number, 0)
        for found in (self._making, self._ready, self._lent, self._kept):
            descriptor = found.pop(number, None)
            if descriptor is None:
                continue
            os.close(descriptor)
            if found is self._making:
                self._failed += 1
            elif found is self._lent:
                self._last = time.monotonic()

    def _answer(self) -> None:
        """Hear one client of the control socket."""
        with contextlib.suppress(OSError), contextlib.closing(self._control.accept()[0]) as link:
            link.settimeout(_CONTROL_PATIENCE)
            if not is_ours(link):
                return
            asked = place.decode(link.recv(MESSAGE)).get("ask")
            if asked == "stop":
                self._ending = True
            link.send(place.encode(**self.facts()))

    def facts(self) -> dict[str, Any]:
        """Return the pool as plain data."""
        config = self._machine.config
        return {
            "id": self._directory.name,
            "pid": os.getpid(),
            "image": config.name,
            "engine": self._machine.engine_name,
            "memory": config.memory,
            "cpus": config.cpus,
            "size": self._size,
            "ready": len(self._ready),
            "making": len(self._making),
            "lent": len(self._lent),
            "served": self._served,
            "since": self._began,
            "idle_timeout": self._idle,
        }


def _listen(path: Path, backlog: int) -> socket.socket:
    """Return a listening socket in the place of a dead pool's, for this user only."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError as fault:
        listening.close()
        raise host_error(fault, "listen on", path) from fault
    return listening


@contextlib.contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Be the pool of that directory for the block. Raises ConflictError where another is."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(directory / LOCK, flags, 0o600)
    except OSError as fault:
        raise host_error(fault, "open", directory / LOCK) from fault
    try:
        # Of the process, not of the file that its forks have open, too.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        raise ConflictError(
            "there is such a pool already", hint="`ringzero pool status` shows it"
        ) from fault
    try:
        yield
    finally:
        os.close(descriptor)


def build(config: MachineConfig) -> Machine:
    """Return the running machine from which all others grow. Raises InvalidValueError."""
    from ringzero.board.contract import BOARDS
    from ringzero.engine import select as engines
    from ringzero.vm import builder
    from ringzero.vm.saved import templates

    architecture = BOARDS.get(config.board).architecture
    engine = engines.choose(config.engine, architecture)
    key = templates.key_of(config, engine)
    why = key if isinstance(key, str) else ""
    for net in config.nets:
        if net.network not in ("user", "none") or net.ports or net.mac is not None:
            why = "one alone can have such a network, port or address"
    if why:
        raise InvalidValueError(f"no pool can have such machines: {why}")
    machine = builder.build(config, QUIET, lasting=True)
    try:
        machine.start()
        if not machine.agent.wait_ready(BOOT_TIMEOUT.get() or None):
            raise GuestError("the pool's first guest took no command")
        return machine
    except BaseException:
        machine.stop()
        raise


def main(arguments: list[str]) -> int:
    """Be the pool in the directory that is named, with so many machines, for so long unused.

    What comes of it is told on descriptor `arguments[3]`, in one line.
    """
    name, size, idle, report = arguments
    directory, told = Path(name), [int(report)]

    def tell(**content: Any) -> None:
        if told:
            with contextlib.suppress(OSError):
                os.write(told[0], place.encode(**content) + b"\n")
            os.close(told.pop())

    asked = place.decode(sys.stdin.buffer.read())
    # The parent's end is what the command that started us waits for.
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    set_title("rz-pool")
    os.set_inheritable(int(report), False)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    try:
        config = config_from_tree(asked["config"])
        with _claimed(directory):
            # All that it loads is there, then, in each machine's process.
            lines.read(["run", *asked["words"], "--", "true"], directory.name)
            place.remember(directory.name, asked["words"])
            # As one that stays would have it, so that each may become such a machine.
            machine = build(config.with_room_for_shares())
            _keep(directory, machine, int(size), float(idle), tell)
    except RingzeroError as fault:
        print(f"ringzero: {fault.message}", file=sys.stderr)
        tell(error=fault.to_dict())
        return fault.exit_code
    return 0


def _keep(
    directory: Path, machine: Machine, size: int, idle: float, tell: Callable[..., None]
) -> None:
    with machine:
        for _ in range(_WARM):
            machine.run(("--", "true") if machine.config.disks else ("true",), timeout=PATIENCE)
        machine.rehearse()
        # It never goes on: a fork is sure to find no device at work, and no lock held.
        machine.pause()
        with machine.seed() as seed:
            machine.keep_from_children()
            gc.freeze()
            pool = Pool(directory, machine, size, idle)
            try:
                pool.serve(seed, lambda: tell(pool=pool.facts()))
            finally:
                pool.close()


def _end(*_: object) -> None:
    raise HostError("the pool was told to end by SIGTERM")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
