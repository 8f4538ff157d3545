"""What a boot protocol is: how a guest's kernel is put into memory, and in which state it begins.

A protocol knows no board. Where its structures lie, a board tells its constructor; where the
firmware's tables lie, `boot` is told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from ringzero.board.boot.kernelimage import KernelImage
from ringzero.board.boot.loading import Loading
from ringzero.core.memory import GuestMemory

State = TypeVar("State")


class BootProtocol(ABC, Generic[State]):
    """One way to start a kernel; `State` is what a vCPU of its ISA is."""

    @abstractmethod
    def load(
        self,
        memory: GuestMemory,
        kernel: KernelImage,
        command_line: str,
        initrd: bytes | memoryview,
        tables: int,
        loading: Loading | None = None,
    ) -> State:
        """Put everything into `memory` and return the boot CPU's first state.

        `tables` is the address of the firmware tables' root. `loading` is given where kernel and
        initrd are already being copied. Raises GuestImageError when kernel and initrd do not
        fit or the command line is too long.
        """
