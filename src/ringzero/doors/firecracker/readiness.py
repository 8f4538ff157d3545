"""What a start or a load needs, made ready while nobody has asked for one yet.

A process waits for its client most of the time before its guest runs: it loads its modules then,
does once what it will do, and copies the kernel that it was told of into a guest's memory.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import RingzeroError

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.vm.groundwork import Groundwork

# Memory of a machine that only shows how it is done, in bytes.
_REHEARSED = 32 << 20
_Stamps = list[tuple[int, int, int, int]]


class Readiness:
    """A thread beside the first requests; `begin`, then `expect`, then `take` or `close`.

    What goes wrong on it is told when the machine is to start.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._over = False
        self._expected: MachineConfig | None = None
        self._ground: Groundwork | None = None
        # What the kernel's file and the initrd's were when they were read.
        self._stamps: _Stamps = []

    def begin(self) -> None:
        """Begin to load what a start needs."""
        self._thread = threading.Thread(target=self._work, name="ready", daemon=True)
        self._thread.start()

    def expect(self, config: MachineConfig) -> None:
        """Take a machine of this description to be started soon, or one that differs little."""
        with self._changed:
            self._expected = config
            self._changed.notify_all()

    def take(self, config: MachineConfig) -> Groundwork | None:
        """Wait for what is in hand; return what was laid for a machine, where it is this one's."""
        self.wait()
        ground, self._ground = self._ground, None
        if ground is None:
            return None
        if _stamps(ground.config) == self._stamps and ground.adapt(config):
            return ground
        ground.close()
        return None

    def wait(self) -> None:
        """Begin nothing more, and return when what is in hand is done."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Free what was laid for a machine that was never started."""
        self.wait()
        if self._ground is not None:
            self._ground.close()
            self._ground = None

    # ---- on the thread ----------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(RingzeroError):
            self._load()
        if not self._over:
            with contextlib.suppress(RingzeroError):
                _rehearse()
            # What is there by now stays to the end: nobody looks through it for garbage again.
            gc.freeze()
        while (config := self._next()) is not None:
            with contextlib.suppress(RingzeroError, OSError):
                self._lay(config)

    def _load(self) -> None:
        from ringzero.board.contract import BOARDS
        from ringzero.config.machine import MachineConfig
        from ringzero.engine import select
        from ringzero.host.progress import Progress
        from ringzero.settings import ENGINE

        architecture = BOARDS.get(MachineConfig.board).architecture
        engine = select.choose(ENGINE.get(), architecture)
        engine.prepare(Progress(enabled=False), architecture, architecture.default_model)
        from ringzero.board.boot import kernel  # noqa: F401 - for the start
        from ringzero.vm import build, builder, machine  # noqa: F401 - for the start

    def _next(self) -> MachineConfig | None:
        """Return what is expected next; None where nothing is to be begun any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._expected is not None)
            config, self._expected = self._expected, None
            return None if self._over else config

    def _lay(self, config: MachineConfig) -> None:
        from ringzero.vm.build import choose_engine
        from ringzero.vm.groundwork import Groundwork

        stamps = _stamps(config)
        if self._ground is not None:
            if stamps == self._stamps and self._ground.adapt(config):
                return
            self._ground.close()
            self._ground = None
        self._ground, self._stamps = Groundwork(config, choose_engine(config)), stamps


def _stamps(config: MachineConfig) -> _Stamps:
    """Return what no write to what a machine boots from, and no other file there, leaves."""
    found = []
    for path in (config.kernel, config.initrd):
        if path is not None:
            with contextlib.suppress(OSError):
                status = Path(path).stat()
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _rehearse() -> None:
    """Put a small machine together and save and restore it, so that the real one takes less."""
    from ringzero.config.machine import MachineConfig
    from ringzero.doors.firecracker import snapshots
    from ringzero.settings import ENGINE
    from ringzero.vm import copies
    from ringzero.vm.build import assemble
    from ringzero.vm.state import MachineState

    parts = assemble(MachineConfig(memory=_REHEARSED, engine=ENGINE.get()))
    try:
        data = snapshots.encode({}, parts.config, parts.engine.name, 0, copies.save(parts))
        saved = snapshots.decode(data, Path("rehearsal"))
        copies.restore(parts, MachineState(saved.state))
        parts.start_threads(lambda: None)
    finally:
        parts.stop()
