"""One of every device, for the contract suite and the fuzz targets.

`specimens()` covers the two registries; a test fails when one is missing.
"""

from __future__ import annotations

import importlib
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ringzero.core.frames import Frame
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.chips.boottimer import BOOTED, BootTimer
from ringzero.devices.chips.i8042 import I8042
from ringzero.devices.chips.kvmclock import MSRS as CLOCK_MSRS
from ringzero.devices.chips.kvmclock import Kvmclock
from ringzero.devices.chips.power import Power
from ringzero.devices.chips.pvpanic import Pvpanic
from ringzero.devices.chips.rtc import Rtc
from ringzero.devices.chips.serial import Serial
from ringzero.devices.chips.vmclock import VmClock
from ringzero.devices.chips.vmgenid import VmGenerationId
from ringzero.devices.interrupts.ioapic import Ioapic
from ringzero.devices.interrupts.lapic import MSRS as LAPIC_MSRS
from ringzero.devices.interrupts.lapic import ApicBus, Lapic
from ringzero.devices.virtio.device import VIRTIO_DEVICES
from ringzero.devices.virtio.kinds.block import Block
from ringzero.devices.virtio.kinds.console import Console, ConsolePort
from ringzero.devices.virtio.kinds.net import Net
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.devices.virtio.kinds.vsock import HEADER, REQUEST, Endpoint, Vsock
from tests.devices.virtio.driver import Driver
from tests.devices.virtio.kinds.test_block import MemoryDisk

FIXED_TIME = 1_700_000_000.0


@dataclass
class Specimen:
    """A device with its surroundings. `parts` have states; `work` leaves it in mid-work."""

    name: str
    device: Any
    size: int
    parts: list[Any]
    work: Callable[[], None]
    line: IrqLine | None = None
    levels: list[bool] = field(default_factory=list)
    msrs: Any = None
    msr_indices: tuple[int, ...] = ()
    memory: GuestMemory | None = None
    driver: Driver | None = None


def _nothing() -> None:
    pass


def _legacy(name: str, device: Any, size: int, work: Callable[[], None], **more: Any) -> Specimen:
    return Specimen(name, device, size, [device], work, **more)


def serial() -> Specimen:
    levels: list[bool] = []
    line = IrqLine(levels.append)
    device = Serial(line, lambda data: None)

    def work() -> None:
        for offset, value in ((2, 1), (1, 0xF), (7, 0x5A)):
            device.write(offset, 1, value)
        device.push(b"half read" * 10)
        device.read(0, 1)

    return _legacy("serial", device, 8, work, line=line, levels=levels)


def rtc() -> Specimen:
    device = Rtc(lambda: FIXED_TIME)

    def work() -> None:
        for register, value in ((0x0B, 0x82), (9, 0x30), (0x0B, 2), (0x50, 7), (0x0B, 0x82)):
            device.write(0, 1, register)
            device.write(1, 1, value)

    return _legacy("rtc", device, 2, work)


def power() -> Specimen:
    device = Power(_nothing, _nothing)
    return _legacy("power", device, 3, lambda: device.write(0, 1, 0x1C))


def pvpanic() -> Specimen:
    return _legacy("pvpanic", Pvpanic(_nothing), 1, _nothing)


def boottimer() -> Specimen:
    device = BootTimer(_nothing)
    return _legacy("boottimer", device, 0x1000, lambda: device.write(0, 1, BOOTED))


def i8042() -> Specimen:
    return _legacy("i8042", I8042(_nothing), 1, _nothing)


def lapic() -> Specimen:
    bus = ApicBus()
    device = Lapic(0, bus, lambda: 10**6, 2 * 10**9)
    Lapic(1, bus, lambda: 10**6, 2 * 10**9)

    def work() -> None:
        device.write(0xF0, 4, 0x1FF)
        bus.send([device], 0, 0x55, level=True)
        bus.send([device], 0, 0x66)
        device.acknowledge()
        device.write(0x320, 4, 0x20040)
        device.write(0x380, 4, 1000)
        device.write_msr(0x1B, device.read_msr(0x1B) | 0x400)
        device.write_msr(0x830, 1 << 32 | 0x30)

    return _legacy("lapic", device, 0x1000, work, msrs=device, msr_indices=LAPIC_MSRS)


def ioapic() -> Specimen:
    device = Ioapic(ApicBus())
    line = device.line(3)

    def work() -> None:
        device.write(0, 4, 0x16)
        device.write(0x10, 4, 0x8031)
        line.set(True)
        device.line(9).set(True)

    return _legacy("ioapic", device, 0x1000, work, line=line)


def kvmclock() -> Specimen:
    memory = GuestMemory([(0, 1 << 16)])
    device = Kvmclock(memory, 1, lambda: 10**6, 10**9, lambda: FIXED_TIME)

    def work() -> None:
        device.port(0).write_msr(CLOCK_MSRS[3], 0x2001)
        device.port(0).write_msr(CLOCK_MSRS[2], 0x3000)

    return _legacy(
        "kvmclock", device, 0, work, msrs=device.port(0), msr_indices=CLOCK_MSRS, memory=memory
    )


def vmgenid() -> Specimen:
    levels: list[bool] = []
    line = IrqLine(levels.append)
    memory = GuestMemory([(0, 1 << 16)])
    device = VmGenerationId(memory, 0x8000, line, lambda count: bytes(range(count)))
    return _legacy("vmgenid", device, 0, _nothing, line=line, levels=levels, memory=memory)


def vmclock() -> Specimen:
    levels: list[bool] = []
    line = IrqLine(levels.append)
    memory = GuestMemory([(0, 1 << 16)])
    device = VmClock(
        *(memory, 0x8000, line, lambda: 10**6, 10**9, lambda: FIXED_TIME),
        source=lambda count: bytes(range(count)),
    )
    return _legacy("vmclock", device, 0, _nothing, line=line, levels=levels, memory=memory)


def virtio(name: str, device: Any, work: Callable[[Driver], None]) -> Specimen:
    driver = Driver(device)
    return Specimen(
        name,
        driver.transport,
        0x1000,
        [driver.transport, device],
        lambda: work(driver),
        line=driver.line,
        memory=driver.memory,
        driver=driver,
    )


def rng() -> Specimen:
    def work(driver: Driver) -> None:
        driver.start()
        driver.add(0, writable=[16])
        driver.add(0, writable=[16], notify=False)

    return virtio("rng", Rng(), work)


def block() -> Specimen:
    disk = MemoryDisk()

    def work(driver: Driver) -> None:
        driver.start()
        for sector in range(5):
            header = struct.pack("<IIQ", 0, 0, sector)
            driver.add(0, readable=[header], writable=[512, 1])
        time.sleep(0.002)

    return virtio("block", Block(disk), work)


def console() -> Specimen:
    ports = [ConsolePort(name, lambda data: None) for name in ("a", "b")]
    device = Console(ports)

    def work(driver: Driver) -> None:
        driver.features |= 3
        driver.start()
        driver.add(3, readable=[struct.pack("<IHH", 0, 0, 1)])
        driver.add(3, readable=[struct.pack("<IHH", 1, 3, 1)])
        driver.add(3, readable=[struct.pack("<IHH", 1, 6, 1)])
        ports[1].push(b"typed ahead")
        driver.add(4, writable=[4])
        driver.add(2, writable=[64])

    return virtio("console", device, work)


class _Listener:
    """Takes every connection, and what comes by it."""

    def requested(self, connection: Any) -> Endpoint:
        return self

    def opened(self) -> None:
        pass

    def receive(self, data: bytes) -> None:
        pass

    def shut(self, flags: int) -> None:
        pass

    def room(self) -> None:
        pass

    def closed(self) -> None:
        pass


def vsock() -> Specimen:
    host = _Listener()
    device = Vsock(77, host)

    def work(driver: Driver) -> None:
        driver.start()
        driver.add(2, writable=[8])
        header = HEADER.pack(77, 2, 1024, 5, 0, 1, REQUEST, 0, 4096, 0)
        driver.add(1, readable=[header])
        device.connect(22, host)
        driver.add(0, writable=[44, 4096])

    return virtio("vsock", device, work)


class _Wire:
    """Drops every frame."""

    device: Net

    def connections(self) -> tuple[bytes, ...]:
        return ()

    def wake(self) -> None:
        while self.device.fetch(lambda frame: None, 64):
            pass


def net() -> Specimen:
    wire = _Wire()
    device = wire.device = Net(bytes.fromhex("020000000001"), wire, pairs=2)

    def work(driver: Driver) -> None:
        # A MAC address, an MTU, a status, a control queue and several pairs of queues.
        driver.features |= 1 << 3 | 1 << 5 | 1 << 16 | 1 << 17 | 1 << 22
        driver.start()
        driver.add(4, readable=[bytes((4, 0, 2, 0))], writable=[1])
        device.set_link(True)
        driver.add(3, readable=[bytes(12), bytes(60)])
        driver.add(1, readable=[bytes(12), bytes(60)])
        device.deliver([Frame(bytes(60))])
        driver.add(0, writable=[12, 1518], notify=False)

    return virtio("net", device, work)


def _from_its_test(name: str) -> Callable[[], Specimen]:
    """Return the builder that a virtio device's own test has."""

    def build() -> Specimen:
        test = importlib.import_module(f"tests.devices.virtio.kinds.test_{name}")
        specimen: Specimen = test.specimen()
        return specimen

    return build


BUILDERS: dict[str, Callable[[], Specimen]] = {
    maker.__name__: maker
    for maker in (
        *(serial, rtc, power, pvpanic, boottimer, i8042, lapic, ioapic, kvmclock, vmgenid, vmclock),
        *(rng, block, console, net, vsock),
    )
}
BUILDERS |= {name: _from_its_test(name) for name in VIRTIO_DEVICES.names() if name not in BUILDERS}
