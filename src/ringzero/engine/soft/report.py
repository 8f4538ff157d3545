"""The instructions of a guest that the software engine does not know, by name."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import UNKNOWN_KINDS


def unknown_instructions(cpu: Any) -> dict[str, int]:
    """Return how often each encoding raised #UD that no instruction has, by its bytes."""
    found = {}
    for n in range(UNKNOWN_KINDS):
        record = cpu.unknown[n]
        if record.length:
            code = record.code.to_bytes(8, "little")[: record.length]
            found[code.hex(" ")] = int(record.count)
    return found
