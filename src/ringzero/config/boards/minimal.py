"""What a minimal board has room for (`ringzero.board.machines.minimal`)."""

from __future__ import annotations

from ringzero.config.board import BOARD_LIMITS
from ringzero.config.boards.microvm import MICROVM
from ringzero.records import replace

# Disks and networks: folders, sockets of the host, memory from it and to it are not there.
MINIMAL = BOARD_LIMITS.register("minimal")(
    replace(
        MICROVM,
        board="minimal board",
        of_kind={"balloon": 0, "pmem": 0, "vsock": 0, "net": 8, "share": 0},
    )
)
