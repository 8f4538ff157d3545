"""A machine's interrupt status registers (`isa.x86.irqstatus`), Python's side."""

from __future__ import annotations

import ctypes

from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.isa.x86.irqstatus import REGISTERS, IrqStatus, IrqStatusTable
from ringzero.native.view import view_of


class SharedStatus:
    """Implements `ringzero.core.irq.SharedStatus` over the IrqStatus at a host address.

    `table` keeps the memory. What Python does here is done while it holds the interpreter's
    lock, native code's part included: a route is never changed while one is taken.
    """

    def __init__(self, engine: NativeEngine, address: int, table: IrqStatuses) -> None:
        self._address = address
        self._table = table
        self._raise, self._clear = engine.raise_reasons, engine.clear_reasons
        self._register = view_of(IrqStatus, address)
        self._reasons = ctypes.c_uint32.from_address(address + IrqStatus.offset_of("reasons"))

    @property
    def value(self) -> int:
        return self._reasons.value

    @value.setter
    def value(self, value: int) -> None:
        self._reasons.value = value

    def set(self, reasons: int) -> bool:
        return bool(self._raise(self._address, reasons))

    def clear(self, reasons: int) -> int:
        return self._clear(self._address, reasons & 0xFFFF_FFFF)

    def route(self, receiver: int, vector: int) -> None:
        if self._table.closed:
            receiver = 0
        self._register.receiver = 0
        self._register.vector = vector
        self._register.receiver = receiver


class IrqStatuses:
    """A view of the IrqStatusTable at a host address, which is all zeros at first.

    `memory` is kept as long as this.
    """

    def __init__(self, engine: NativeEngine, address: int, memory: object) -> None:
        self.address = address
        self.closed = False
        self._engine = engine
        self._memory = memory
        self._view = view_of(IrqStatusTable, address)
        self._shared: list[SharedStatus] = []

    def add(self, status: int, acknowledge: int) -> SharedStatus | None:
        """Serve a register; None when there is no room for more."""
        number = len(self._shared)
        if number == REGISTERS:
            return None
        register = self._view.registers[number]
        register.status, register.acknowledge = status, acknowledge
        self._shared.append(SharedStatus(self._engine, register.address, self))
        self._view.count = number + 1
        return self._shared[number]

    def close(self) -> None:
        """Reach the vCPUs no more, which are about to go."""
        self.closed = True
        for shared in self._shared:
            shared.route(0, 0)
