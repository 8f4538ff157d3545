"""Instructions of a guest by name: those the software engine does not know, those it is slow at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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


# Mnemonics that the statistics name.
MOST_HANDLED = 10


def handled_instructions(counts: Sequence[int], mnemonics: Sequence[str]) -> dict[str, int]:
    """Return how often translated code called handlers, of the mnemonics that did so most.

    `counts` has a number for each form, in the order of `mnemonics`.
    """
    by_name: Counter[str] = Counter()
    for mnemonic, count in zip(mnemonics, counts, strict=False):
        if count:
            by_name[mnemonic] += count
    most = by_name.most_common(MOST_HANDLED)
    return {f"handled {mnemonic}": count for mnemonic, count in most}
