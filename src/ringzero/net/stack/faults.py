"""Faults of our own while something of one guest's is dealt with: they end that, and no more."""

from __future__ import annotations

import traceback
import warnings

# How many are told; a guest that has found one may repeat it at will.
_TOLD = 8


class Faults:
    """Counts faults; the first ones are told by `warnings`, with where they came from."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, what: str, fault: Exception) -> None:
        """Count a fault that has ended `what`."""
        self.count += 1
        if self.count <= _TOLD:
            last = traceback.extract_tb(fault.__traceback__)[-1]
            place = f"{last.filename}:{last.lineno}"
            kind = type(fault).__name__
            warnings.warn(
                f"the network has ended {what} for a fault of its own: {kind}: {fault} ({place})",
                RuntimeWarning,
                stacklevel=2,
            )
