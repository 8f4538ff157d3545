"""What a microvm has room for (`ringzero.board.machines.microvm`)."""

from __future__ import annotations

from ringzero.config.board import BOARD_LIMITS, BoardLimits
from ringzero.units import MIB

MICROVM = BOARD_LIMITS.register("microvm")(
    BoardLimits(
        board="microvm",
        # Less does not hold a stock kernel's decompressed code and data.
        minimum_memory=32 * MIB,
        # Physical addresses of the guests' CPUs have 40 bits.
        maximum_memory=1 << 40,
        # xAPIC identifiers have 8 bits, and 255 means everybody.
        cpus=254,
        # x86 Linux cuts a command line at COMMAND_LINE_SIZE (2048) without a word.
        command_line=2047,
        # One interrupt line each; console and entropy source have two of the 19.
        devices=17,
        # Linux has one way from a guest to its host (af_vsock's transport_g2h); a copy's guest
        # can be told the addresses of so many interfaces (`ringzero.vm.guest.identity`).
        of_kind={"balloon": 1, "pmem": 8, "vsock": 1, "net": 8, "share": 64},
    )
)
