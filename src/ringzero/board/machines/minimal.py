"""The `minimal` board: console, disks, networks and entropy by virtio, and nothing of a PC's."""

from __future__ import annotations

from ringzero.board.contract import BOARDS
from ringzero.board.machines.reduced import ReducedBoard


@BOARDS.register("minimal")
class Minimal(ReducedBoard):
    """A microvm without serial port, clock and keyboard; its kernel speaks on the console.

    Ports: power, reset and the word of a panic, each of a byte.
    """

    table_id = b"MINIMAL "
    console = "hvc0"
