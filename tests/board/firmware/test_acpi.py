"""The tables: sums and fields by the specification, the rest by ACPICA's own disassembler."""

import shutil
import struct
import subprocess

import pytest

from ringzero.board import microvm_map as memmap
from ringzero.board.firmware import acpi
from ringzero.errors import DeviceError

PLAN = acpi.AcpiPlan(
    table_id=b"SAMPLE  ",
    cpus=3,
    lapic_base=0xFEE00000,
    ioapic_base=0xFEC00000,
    power_port=0x600,
    reset_value=1,
    sleep_type_off=5,
    serial=(0x3F8, 8, 4),
    rtc=(0x70, 2),
    panic_port=0x505,
    generation_id=0xFE000,
    clock_page=0xFD000,
    event_gsi=3,
    button_gsi=2,
    windows=[(0xD0000000 + 0x1000 * n, 0x1000, 5 + n) for n in range(18)],
)


def tables():
    """Follow the pointers as a guest does; return the tables by signature."""
    base, block = acpi.build(PLAN, memmap.ACPI_TABLES, memmap.ACPI_TABLES_END)

    def at(address):
        offset = address - memmap.ACPI_TABLES
        length = struct.unpack_from("<I", block, offset + 4)[0]
        return block[offset : offset + length]

    rsdp = block[:36]
    assert base == memmap.ACPI_TABLES and base % 16 == 0
    assert rsdp[:8] == b"RSD PTR " and sum(rsdp[:20]) % 256 == 0 and sum(rsdp) % 256 == 0
    xsdt = at(struct.unpack_from("<Q", rsdp, 24)[0])
    found = {b"XSDT": xsdt}
    for (entry,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = at(entry)
        found[table[:4]] = table
    found[b"DSDT"] = at(struct.unpack_from("<Q", found[b"FACP"], 140)[0])
    return found


def test_checksums():
    found = tables()
    assert set(found) == {b"XSDT", b"FACP", b"APIC", b"DSDT"}
    for table in found.values():
        assert sum(table) % 256 == 0


def test_fadt_fields():
    fadt = tables()[b"FACP"]
    assert len(fadt) == 276
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & 1 << 20 and flags & 1 << 10
    assert struct.unpack_from("<BBBBQ", fadt, 116) == (1, 8, 0, 1, 0x602)
    assert fadt[128] == 1
    assert struct.unpack_from("<BBBBQ", fadt, 244) == (1, 8, 0, 1, 0x600)
    assert struct.unpack_from("<BBBBQ", fadt, 256) == (1, 8, 0, 1, 0x601)


def test_too_many_tables():
    with pytest.raises(DeviceError):
        acpi.build(PLAN, 0x1000, 0x1100)


def test_processors_beyond_254_use_the_x2apic_form():
    many = acpi.AcpiPlan(**{**PLAN.__dict__, "cpus": 300})
    body = acpi.madt(many)[44:]
    kinds = []
    while body:
        kinds.append(body[0])
        body = body[body[1] :]
    assert kinds.count(0) == 255 and kinds.count(9) == 45 and kinds.count(1) == 1


@pytest.mark.peer
def test_acpica_reads_the_tables(tmp_path):
    if shutil.which("iasl") is None:
        pytest.skip("needs iasl (acpica-tools)")
    text = {}
    for signature, table in tables().items():
        if signature == b"XSDT":
            continue
        name = signature.decode().lower()
        (tmp_path / f"{name}.dat").write_bytes(table)
        run = subprocess.run(
            ["iasl", "-d", f"{name}.dat"], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert "rror" not in run.stderr.replace("0 Errors", ""), run.stderr
        text[name] = (tmp_path / f"{name}.dsl").read_text()
    # What was disassembled compiles again, without errors and to the same devices.
    again = subprocess.run(
        ["iasl", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0 and " 0 Errors" in again.stdout, again.stdout + again.stderr
    body = tables()[b"DSDT"][36:]
    assert (tmp_path / "again.aml").read_bytes()[36:] == body
    dsdt = text["dsdt"]
    assert dsdt.count('"LNRO0005"') == 18
    assert dsdt.count('"ACPI0007"') == 3
    assert 'EisaId ("PNP0501")' in dsdt and 'EisaId ("PNP0B00")' in dsdt
    assert '"QEMU0001"' in dsdt
    assert '"VM_Gen_Counter"' in dsdt and '"ACPI0013"' in dsdt
    assert 'EisaId ("PNP0C0C")' in dsdt and "Notify (PWRB, 0x80)" in dsdt
    assert "Notify (VGEN, 0x80)" in dsdt and "Method (_EVT, 1, Serialized)" in dsdt
    assert '"AMZNC10C"' in dsdt and '"VMCLOCK"' in dsdt and "0x000FD000" in dsdt
    assert "Notify (VCLK, 0x80)" in dsdt
    assert "0xD0011000" in dsdt and "0x00000016" in dsdt
    assert "Hardware Reduced (V5) : 1" in text["facp"]
    assert "Reset Register Supported (V2) : 1" in text["facp"]
    assert text["apic"].count("Processor Local APIC") >= 3
