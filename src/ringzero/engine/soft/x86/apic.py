"""The registers of a vCPU's local APIC in its struct, as the device in Python sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.isa.execution import NEVER
from ringzero.isa.x86.apic import VECTOR_WORDS

_WORD = (1 << 64) - 1
_BANKS = ("isr", "irr", "tmr")


class SharedRegisters:
    """Implements `ringzero.engine.x86.ApicRegisters` over a view of a vCPU's struct.

    `exclusive` is the host address of the machine's Exclusive.
    """

    def __init__(self, engine: NativeEngine, cpu: Any, exclusive: int) -> None:
        own = {"_engine": engine, "_cpu": cpu, "_apic": cpu.apic, "_exclusive": exclusive}
        self.__dict__.update(own, lvt=cpu.apic.lvt, receiver=cpu.address)

    def __getattr__(self, name: str) -> Any:
        if name in _BANKS:
            words = getattr(self._apic, name)
            return sum(words[n] << 64 * n for n in range(VECTOR_WORDS))
        if name == "deadline":
            deadline = self._cpu.deadline
            return None if deadline == NEVER else deadline
        value = getattr(self._apic, name)
        return bool(value) if name == "nmi" else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _BANKS:
            words = getattr(self._apic, name)
            for n in range(VECTOR_WORDS):
                words[n] = value >> 64 * n & _WORD
        elif name == "deadline":
            self._cpu.deadline = NEVER if value is None else value
        else:
            setattr(self._apic, name, value)

    def request(self, vector: int, level: bool) -> None:
        self._engine.post(self._cpu.address, vector, level)

    def standing_still(self) -> AbstractContextManager[None]:
        stopped: AbstractContextManager[None] = self._engine.stopped(self._exclusive)
        return stopped
