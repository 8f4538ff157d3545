"""What the compiler of engines asks of a guest ISA: how its engine is cut and put together.

A compiled engine serves guests of one ISA. Its units are compiled on their own,
side by side (`ringzero.jit.workers`); each leaves files in the engine's directory,
which `assemble` then completes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from ringzero.jit.compile.llvm import Target
from ringzero.registry import Registry


class GuestCode(ABC):
    """The code of one guest ISA's engine, as its units."""

    # Names of the units with an object NAME.o, which are linked.
    objects: ClassVar[tuple[str, ...]]
    # The guest whose engine this one completes: its files lie in the directory before any unit is
    # compiled.
    base: ClassVar[str | None] = None

    @abstractmethod
    def units(self) -> list[str]:
        """Return the names of all units in the order to begin with them, the slowest first."""

    @abstractmethod
    def compile(self, unit: str, directory: Path, target: Target) -> None:
        """Compile a unit and write its files into the directory. Raises OSError."""

    @abstractmethod
    def assemble(self, directory: Path) -> None:
        """Write what takes all units, and remove what is needed no longer. Raises OSError."""


GUESTS: Registry[type[GuestCode]] = Registry("guest of compiled engines", "ringzero.jit.guests")
