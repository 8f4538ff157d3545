"""The `microvm` board: a reduced one with the serial port, clock and keyboard reset of a PC."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ringzero.board import microvm_map as memmap
from ringzero.board.contract import BOARDS, BoardParts, Latch, Shadow
from ringzero.board.machines.reduced import ReducedBoard
from ringzero.devices.chips import serial
from ringzero.devices.chips.i8042 import I8042
from ringzero.devices.chips.rtc import Rtc
from ringzero.devices.chips.serial import Serial


@BOARDS.register("microvm")
class Microvm(ReducedBoard):
    """Built once per machine; `serial` is its end for the host."""

    table_id = b"MICROVM "
    serial_ports = memmap.COM1_BASE, memmap.COM1_SIZE, memmap.COM1_GSI
    clock_ports = memmap.RTC_BASE, memmap.RTC_SIZE

    def build_legacy(self, parts: BoardParts) -> None:
        self.serial = self._serial = Serial(self.irq_line_of(memmap.COM1_GSI), parts.serial)
        self.pio.attach(
            "serial", memmap.COM1_BASE, memmap.COM1_SIZE, self._serial, self._serial.write_all
        )
        self.parts["serial"] = self._serial
        self.add_port("rtc", memmap.RTC_BASE, memmap.RTC_SIZE, Rtc(parts.now))
        self.add_port("i8042", memmap.I8042_COMMAND, 1, I8042(parts.events.reboot))

    def latches(self) -> Iterator[Latch]:
        yield from super().latches()
        # The clock's index.
        yield Latch(True, memmap.RTC_BASE, 1)
        transmitter = memmap.COM1_BASE + serial.TRANSMIT
        identification = memmap.COM1_BASE + serial.IDENTIFICATION
        yield Latch(
            True,
            transmitter,
            1,
            prompt=True,
            then=self._serial.settle,
            changes=identification,
        )
        enable = memmap.COM1_BASE + serial.INTERRUPT_ENABLE
        hold = self._serial.hold_enabled
        off = serial.IER_TRANSMIT
        yield Latch(True, enable, 1, changes=identification, clears=off, hold=hold)

    def shadows(self) -> Iterator[Shadow]:
        for offset in serial.STATUS:
            yield Shadow(
                memmap.COM1_BASE + offset,
                partial(self._serial.shadow, offset),
                self._serial.identified if offset == serial.IDENTIFICATION else None,
            )
