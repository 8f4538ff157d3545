"""Where a machine's time went, as plain data for `Machine.stats` and `--stats`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ringzero.board.contract import Board
from ringzero.devices.virtio.mmio import VirtioMmio
from ringzero.vm.runloop import RunControl, VcpuThread


def of(
    board: Board, threads: Sequence[VcpuThread], control: RunControl, engine: str
) -> Mapping[str, Any]:
    """Return the engine's counters per vCPU, accesses per device, exits."""
    devices: dict[str, dict[str, int]] = {}
    buses = [board.mmio, board.pio]
    attachments: list[Any] = [a for bus in buses for a in bus.attachments]
    for processor in board.processors:
        if processor.mmio is not board.mmio:
            attachments += processor.mmio.attachments
        attachments += processor.msrs.attachments
    for attachment in attachments:
        counts = devices.setdefault(attachment.name, {"reads": 0, "writes": 0})
        counts["reads"] += attachment.reads
        counts["writes"] += attachment.writes
    unclaimed: dict[str, int] = {bus.name: bus.unclaimed for bus in buses}
    for processor in board.processors:
        for index, count in processor.msrs.unclaimed.items():
            unclaimed[f"msr {index:#x}"] = unclaimed.get(f"msr {index:#x}", 0) + count
    cpus = {
        f"cpu{thread.processor.index}": {**thread.vcpu.statistics(), **thread.exits}
        for thread in threads
    }
    faults = {
        name: part.failure
        for name, part in board.parts.items()
        if isinstance(part, VirtioMmio) and part.failure
    }
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
