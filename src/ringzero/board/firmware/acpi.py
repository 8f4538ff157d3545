"""The ACPI tables of a hardware-reduced machine (ACPI 6.5 chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringzero.board.firmware import aml
from ringzero.errors import DeviceError
from ringzero.records import record

OEM_ID = b"RZERO "
CREATOR_ID = b"RZRO"
HEADER = struct.Struct("<4sIBB6s8sI4sI")
LENGTH_OFFSET, CHECKSUM_OFFSET = 4, 9

# Section 5.2.9: table 5.9 and 5.10.
FADT_REVISION, FADT_MINOR = 6, 5
FADT_SIZE = 276
FLAG_WBINVD, FLAG_SLEEP_BUTTON_NONE, FLAG_POWER_BUTTON_NONE = 1 << 0, 1 << 5, 1 << 4
FLAG_RESET_REGISTER, FLAG_HW_REDUCED = 1 << 10, 1 << 20
# IA-PC boot architecture flags: no VGA to probe for, no MSI (there is no PCI), no clock of a PC's.
BOOT_NO_VGA, BOOT_NO_MSI, BOOT_NO_RTC = 1 << 2, 1 << 3, 1 << 5
SPACE_IO = 1
ACCESS_BYTE = 1

MADT_REVISION = 5
LAPIC_ENABLED = 1
# "Status change" of a virtual machine's generation identifier (Microsoft's paper of that name).
GENERATION_CHANGED = 0x80
# Its VMClock device's sequence count changed (UAPI.13).
CLOCK_CHANGED = 0x80
CLOCK_PAGE_SIZE = 4096
# "S0 power button pressed" (table 5.211, "Control Method Power Button").
BUTTON_PRESSED = 0x80
# Table 5.23: identifiers below 255 go into the short form.
MAX_SHORT_APIC_ID = 254


@record
class AcpiPlan:
    """What the tables tell: processors, controllers, registers and devices of a board.

    `power_port` is the sleep-control register; sleep status and reset follow.
    `serial` and `rtc` are None where there is none.
    `windows` are the (base, size, interrupt) of virtio devices over MMIO.
    `table_id` (8 bytes) names the board in every table's header.
    `generation_id` is where the generation identifier lies in memory, `clock_page` the page of
    VMClock, `event_gsi` the interrupt by which the board says that they changed, `button_gsi`
    that of the power button.
    """

    table_id: bytes
    cpus: int
    lapic_base: int
    ioapic_base: int
    power_port: int
    reset_value: int
    sleep_type_off: int
    serial: tuple[int, int, int] | None
    rtc: tuple[int, int] | None
    panic_port: int
    generation_id: int
    clock_page: int
    event_gsi: int
    button_gsi: int
    windows: Sequence[tuple[int, int, int]]


def table(signature: bytes, revision: int, table_id: bytes, body: bytes) -> bytes:
    """Return a system description table with header and checksum (5.2.6)."""
    header = HEADER.pack(
        signature, HEADER.size + len(body), revision, 0, OEM_ID, table_id, 1, CREATOR_ID, 1
    )
    return _checksummed(header + body, CHECKSUM_OFFSET)


def _checksummed(data: bytes, offset: int, count: int | None = None) -> bytes:
    """Return `data` with the byte at `offset` such that the first `count` sum up to 0."""
    total = sum(data[:count]) & 0xFF
    return data[:offset] + bytes((-total & 0xFF,)) + data[offset + 1 :]


def rsdp(xsdt: int) -> bytes:
    """Return the root pointer, revision 2, without an RSDT (5.2.5.3)."""
    data = struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt, 0)
    return _checksummed(_checksummed(data, 8, 20), 32)


def _port_register(port: int) -> bytes:
    """Return the generic address of an 8-bit register in I/O space (5.2.3.2)."""
    return struct.pack("<BBBBQ", SPACE_IO, 8, 0, ACCESS_BYTE, port)


def fadt(plan: AcpiPlan, dsdt: int) -> bytes:
    """Return the fixed description table of a hardware-reduced machine (5.2.9)."""
    data = bytearray(FADT_SIZE - HEADER.size)

    def put(offset: int, value: bytes) -> None:
        data[offset - HEADER.size : offset - HEADER.size + len(value)] = value

    flags = FLAG_WBINVD | FLAG_SLEEP_BUTTON_NONE | FLAG_POWER_BUTTON_NONE
    flags |= FLAG_RESET_REGISTER | FLAG_HW_REDUCED
    absent = BOOT_NO_VGA | BOOT_NO_MSI | (0 if plan.rtc is not None else BOOT_NO_RTC)
    put(109, struct.pack("<H", absent))
    put(112, struct.pack("<I", flags))
    put(116, _port_register(plan.power_port + 2))
    put(128, bytes((plan.reset_value,)))
    put(131, bytes((FADT_MINOR,)))
    put(140, struct.pack("<Q", dsdt))
    put(244, _port_register(plan.power_port))
    put(256, _port_register(plan.power_port + 1))
    put(268, b"RINGZERO")
    return table(b"FACP", FADT_REVISION, plan.table_id, bytes(data))


def madt(plan: AcpiPlan) -> bytes:
    """Return the interrupt-controller table: local APICs and one I/O APIC (5.2.12)."""
    parts = [struct.pack("<II", plan.lapic_base, 0)]
    for cpu in range(plan.cpus):
        if cpu <= MAX_SHORT_APIC_ID:
            parts.append(struct.pack("<BBBBI", 0, 8, cpu, cpu, LAPIC_ENABLED))
        else:
            parts.append(struct.pack("<BBHIII", 9, 16, 0, cpu, LAPIC_ENABLED, cpu))
    parts.append(struct.pack("<BBBBII", 1, 12, 0, 0, plan.ioapic_base, 0))
    return table(b"APIC", MADT_REVISION, plan.table_id, b"".join(parts))


def dsdt(plan: AcpiPlan) -> bytes:
    """Return the differentiated description table: every device and how to switch off."""
    devices = []
    if plan.serial is not None:
        port, size, gsi = plan.serial
        resources = aml.io_ports(port, size), aml.interrupt(gsi)
        devices.append(_device("COM1", "PNP0501", 0, *resources))
    if plan.rtc is not None:
        devices.append(_device("RTC", "PNP0B00", 0, aml.io_ports(*plan.rtc)))
    devices += [
        _device("PEVT", "QEMU0001", 0, aml.io_ports(plan.panic_port, 1)),
        _device("PWRB", "PNP0C0C", 0),
        _generation_id(plan),
        _clock(plan),
        _events(plan),
    ]  # fmt: skip
    devices += [_device(f"CP{cpu:02X}", "ACPI0007", cpu) for cpu in range(plan.cpus)]
    # "LNRO0005" is the name under which Linux knows virtio over MMIO.
    devices += [
        _device(f"VR{index:02X}", "LNRO0005", index, aml.memory_32(base, size),
                aml.interrupt(gsi))
        for index, (base, size, gsi) in enumerate(plan.windows)
    ]  # fmt: skip
    off = aml.integer(plan.sleep_type_off)
    body = aml.scope("_SB", *devices) + aml.name(
        "_S5", aml.package(off, aml.ZERO, aml.ZERO, aml.ZERO)
    )
    return table(b"DSDT", 2, plan.table_id, body)


def _generation_id(plan: AcpiPlan) -> bytes:
    """Return the device of the VM generation identifier, under the names that systems look for."""
    address = aml.package(
        aml.integer(plan.generation_id & 0xFFFF_FFFF), aml.integer(plan.generation_id >> 32)
    )
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("RZRO0001")),
        # The paper's name is longer than ACPI allows; Hyper-V gives the short one beside it.
        aml.name("_CID", aml.package(aml.string("VM_Gen_Counter"), aml.string("VMGENCTR"))),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", address),
    )


def _clock(plan: AcpiPlan) -> bytes:
    """Return the VMClock device (UAPI.13, "Discovery via ACPI")."""
    return aml.device(
        "VCLK",
        aml.name("_HID", aml.string("AMZNC10C")),
        aml.name("_CID", aml.string("VMCLOCK")),
        aml.name("_DDN", aml.string("VMCLOCK")),
        aml.name("_CRS", aml.resources(aml.memory_32(plan.clock_page, CLOCK_PAGE_SIZE))),
    )


def _events(plan: AcpiPlan) -> bytes:
    """Return the generic event device (5.6.9): interrupts that become notifications."""
    events = {
        plan.event_gsi: aml.notify("VGEN", GENERATION_CHANGED) + aml.notify("VCLK", CLOCK_CHANGED),
        plan.button_gsi: aml.notify("PWRB", BUTTON_PRESSED),
    }
    return aml.device(
        "GED",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.ZERO),
        aml.name("_CRS", aml.resources(*map(aml.interrupt, events))),
        aml.method(
            "_EVT",
            1,
            *(aml.if_equal(aml.ARG0, aml.integer(gsi), then) for gsi, then in events.items()),
        ),
    )


def _device(name: str, hardware_id: str, unique: int, *resources: bytes) -> bytes:
    if hardware_id.startswith("PNP"):
        identity = aml.eisa_id(hardware_id)
    else:
        identity = aml.string(hardware_id)
    body = [
        aml.name("_HID", identity),
        aml.name("_UID", aml.integer(unique)),
    ]
    if resources:
        body.append(aml.name("_CRS", aml.resources(*resources)))
    return aml.device(name, *body)


def build(plan: AcpiPlan, base: int, end: int) -> tuple[int, bytes]:
    """Return (address of the RSDP, all tables as one block to be placed at `base`).

    Raises DeviceError when they do not fit below `end`.
    """
    block = bytearray(rsdp(0).ljust(64, b"\0"))

    def place(data: bytes) -> int:
        address = base + len(block)
        block.extend(data.ljust(-(-len(data) // 64) * 64, b"\0"))
        return address

    description = place(dsdt(plan))
    entries = [place(fadt(plan, description)), place(madt(plan))]
    root = place(table(b"XSDT", 1, plan.table_id, struct.pack(f"<{len(entries)}Q", *entries)))
    pointer = rsdp(root)
    block[: len(pointer)] = pointer
    if base + len(block) > end:
        raise DeviceError("the ACPI tables do not fit", expected=end - base, seen=len(block))
    return base, bytes(block)
