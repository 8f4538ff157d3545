"""What a board has room for, as far as a description can break it.

A board's limits are known without the board: a description is checked where no device is loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from ringzero.config.device import DeviceConfig
from ringzero.records import field, record
from ringzero.registry import Registry
from ringzero.units import format_size


@record
class BoardLimits:
    """What the board of this name has room for. Sizes are in bytes.

    `devices` counts all that a user attaches, `of_kind` those of one kind.
    """

    board: str
    minimum_memory: int
    maximum_memory: int
    cpus: int
    command_line: int
    devices: int
    of_kind: dict[str, int] = field(default_factory=dict)

    def faults(
        self, memory: int, cpus: int, command_line: str, devices: Sequence[DeviceConfig]
    ) -> list[str]:
        """Return what of a description does not fit on the board, for a list of all faults."""
        found = []
        if not self.minimum_memory <= memory <= self.maximum_memory:
            found.append(
                f"memory of {format_size(memory)} is outside "
                f"{format_size(self.minimum_memory)} to {format_size(self.maximum_memory)}"
            )
        if not 1 <= cpus <= self.cpus:
            found.append(f"{cpus} CPUs are outside 1 to {self.cpus}")
        length = len(os.fsencode(command_line))
        if length > self.command_line:
            found.append(
                f"a kernel command line of {length} bytes; it may have {self.command_line}"
            )
        kinds = dict.fromkeys(type(device) for device in devices)
        places = sum(kind.places([d for d in devices if type(d) is kind]) for kind in kinds)
        if places > self.devices:
            found.append(
                f"{places} disks and other devices; a {self.board} has room for {self.devices}"
            )
        counts = Counter(device.kind for device in devices)
        found += [
            f"{counts[kind]} devices of the kind {kind}; a {self.board} takes {limit or 'none'}"
            for kind, limit in self.of_kind.items()
            if counts[kind] > limit
        ]
        return found


BOARD_LIMITS: Registry[BoardLimits] = Registry("board", "ringzero.config.boards")
