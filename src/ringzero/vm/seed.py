"""What a machine is at one instant, from which others grow: the value behind fork and snapshot.

A `Seed` shares its memory's pages with the machine that it was taken from and
with those that grow from it; each writes to pages of its own. It stays as it
is, whatever they do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from ringzero.config.machine import MachineConfig
from ringzero.host.memory import MemoryImage
from ringzero.records import field, record

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk, Readers
    from ringzero.vm.state import MachineState


@record
class Seed:
    """Configuration, state, memory and disks of a machine at `taken`, UTC in nanoseconds.

    `code` is what the engine hands on to clones in the same process. Whoever
    has a seed closes it; machines that have grown from it stay good.
    """

    config: MachineConfig
    state: MachineState
    memory: MemoryImage
    disks: Sequence[InstantDisk] = ()
    taken: int = field(default_factory=time.time_ns)
    code: Any = None

    def share(self) -> list[Readers]:
        """Be good in processes forked from now on, until the answers are told `complete`.

        The machine stands still at each such fork.
        """
        self.memory.share()
        if self.code is not None:
            self.code.share()
        return [disk.share() for disk in self.disks]

    def close(self) -> None:
        """Let go of memory and disks."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.memory.close)
            for disk in self.disks:
                closing.callback(disk.close)
            if self.code is not None:
                closing.callback(self.code.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
