"""Where a machine's time went, as plain data for `Machine.stats` and `--stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ringzero.board.contract import Board
from ringzero.vm.runloop import RunControl, VcpuThread


def of(
    board: Board, threads: Sequence[VcpuThread], control: RunControl, engine: str
) -> Mapping[str, Any]:
    """Return the engine's counters per vCPU, accesses per device, exits."""
    devices: dict[str, dict[str, int]] = {}
    unclaimed: dict[str, int] = {}
    for bus in board.buses():
        for attachment in bus.attachments:
            counts = devices.setdefault(attachment.name, {"reads": 0, "writes": 0})
            counts["reads"] += attachment.reads
            counts["writes"] += attachment.writes
        for name, count in bus.unclaimed_by_name().items():
            unclaimed[name] = unclaimed.get(name, 0) + count
    cpus = {
        f"cpu{thread.processor.index}": {**thread.vcpu.statistics(), **thread.exits}
        for thread in threads
    }
    faults = {name: slot.failure for name, slot in board.slots.items() if slot.failure}
    entry = control.first_entry
    return {
        "engine": engine,
        # What our own process took before the guest ran at all; and when that was, by
        # CLOCK_MONOTONIC in seconds.
        "cpu_ms_before_guest": round(entry[1] * 1000, 1) if entry else None,
        "guest_entered_at": entry[0] if entry else None,
        **cpus,
        "devices": {name: c for name, c in devices.items() if c["reads"] or c["writes"]},
        "unclaimed": {name: count for name, count in unclaimed.items() if count},
        "faults": faults,
    }
