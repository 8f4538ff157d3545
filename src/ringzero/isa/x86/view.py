"""The vCPU's struct as Python sees it."""

from __future__ import annotations

from ringzero.isa.x86.cpu import Cpu
from ringzero.native.view import StructView


class CpuView(StructView):
    """A vCPU's struct at a host address."""

    __slots__ = ()

    def __init__(self, address: int) -> None:
        super().__init__(Cpu, address)
