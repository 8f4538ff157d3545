"""What boards of x86 share: a vCPU's ports, model-specific registers and local APIC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ringzero.board.contract import Processor
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import StartControl
from ringzero.devices.interrupts.lapic import Lapic
from ringzero.engine.contract import Vcpu
from ringzero.engine.exits import Exit
from ringzero.engine.x86 import MsrRead, MsrWrite, PortRead, PortWrite


class X86Processor(Processor):
    """One vCPU of a board with I/O ports; `lapic` is None where the engine keeps it.

    `mmio` is the vCPU's own view of memory-mapped devices, in which its local
    APIC lies, and may be the board's.
    """

    def __init__(
        self, index: int, mmio: Bus, pio: Bus, msrs: MsrBus, lapic: Lapic | None = None
    ) -> None:
        super().__init__(index, mmio, lapic)
        self.msrs = msrs
        self._pio = pio
        self._lapic = lapic

    @property
    def buses(self) -> Sequence[Bus | MsrBus]:
        return (self.mmio, self.msrs) if self._lapic is not None else (self.msrs,)

    def connect(self, control: StartControl) -> None:
        if self._lapic is not None:
            self._lapic.on_init = control.reset
            self._lapic.on_startup = control.start

    def handlers(self, vcpu: Vcpu[Any]) -> Mapping[type[Exit], Callable[[Any], None]]:
        pio, msrs, complete = self._pio, self.msrs, vcpu.complete

        def port_read(event: PortRead) -> None:
            complete(pio.read(event.port, event.width))

        def port_write(event: PortWrite) -> None:
            pio.write(event.port, event.width, event.value)

        def msr_read(event: MsrRead) -> None:
            complete(msrs.read(event.index))

        def msr_write(event: MsrWrite) -> None:
            if not msrs.write(event.index, event.value):
                complete(None)

        return {
            PortRead: port_read,
            PortWrite: port_write,
            MsrRead: msr_read,
            MsrWrite: msr_write,
        }
