"""What the fields of an image say, where most writers have one value: places and odd sizes."""

from __future__ import annotations

import os
import struct

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.disk.formats.vdi import Header as VdiHeader
from ringzero.disk.formats.vhd.structures import checksum
from ringzero.errors import DiskFormatError

MIB = 1 << 20


def dynamic_vhd(size, blocks, *, header=512, table=None, block=2 * MIB, late=False, parts=None):
    """Return a dynamic VHD of another writer; `blocks` maps numbers to letters.

    The header is at the byte `header`, or behind the data when `late`.
    """
    entries = -(-size // block)
    room = -(-4 * entries // 512) * 512
    table = (512 if late else -(-(header + 1024) // 512) * 512) if table is None else table
    start = table + room if late else max(table + room, -(-(header + 1024) // 512) * 512)
    body = bytearray(start)
    numbers = [0xFFFF_FFFF] * (room // 4)
    for number, letter in blocks.items():
        numbers[number] = len(body) // 512
        body += b"\xff" * max(512, block // 4096) + letter * block
    if late:
        header = len(body)
        body += bytes(1024)
    footer = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB", b"conectix", 2, 0x10000, header, 0, b"win ", 0x60001, b"Wi2k",
        size, size, 120, 4, 17, 3, 0, os.urandom(16), 0,
    ).ljust(512, b"\0")  # fmt: skip
    footer = footer[:64] + struct.pack(">I", checksum(footer, 64)) + footer[68:]
    head = struct.pack(
        ">8sQQIIII16sII512s", b"cxsparse", (1 << 64) - 1, table, 0x10000, entries, block, 0,
        bytes(16), 0, 0, b"",
    ).ljust(1024, b"\0")  # fmt: skip
    head = head[:36] + struct.pack(">I", checksum(head, 36)) + head[40:]
    body[table : table + room] = struct.pack(f">{room // 4}I", *numbers)
    body[header : header + 1024] = head
    body[:512] = footer
    return bytes(body) + footer


PLACES = {
    "usual": {},
    "513": {"header": 513},
    "1536": {"header": 1536},
    "4096": {"header": 4096},
    "65536": {"header": 65536},
    "behind the table": {"header": 8192, "table": 512},
    "far behind the table": {"header": MIB, "table": 2048},
    "behind the data": {"late": True},
}


@pytest.mark.parametrize("name", PLACES)
def test_the_header_of_a_vhd_is_where_the_footer_says(name, tmp_path):
    path = tmp_path / "disk.vhd"
    path.write_bytes(dynamic_vhd(8 * MIB, {0: b"A", 2: b"C"}, **PLACES[name]))
    expected = b"A" * 2 * MIB + bytes(2 * MIB) + b"C" * 2 * MIB + bytes(2 * MIB)
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, 8 * MIB) == expected
        assert disk.check().clean
    with open_disk(path) as disk:
        disk.write(2 * MIB, b"B" * 2 * MIB)
        disk.resize(200 * MIB)
        disk.write(100 * MIB, b"far")
    with open_disk(path) as disk:
        assert disk.read(0, 6 * MIB) == b"A" * 2 * MIB + b"B" * 2 * MIB + b"C" * 2 * MIB
        assert disk.read(100 * MIB, 4) == b"far\0"
        assert disk.check().errors == 0


@pytest.mark.peer
@pytest.mark.parametrize("name", PLACES)
def test_vhd_headers_by_qemu(name, tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.vhd"
    path.write_bytes(dynamic_vhd(8 * MIB, {0: b"A", 2: b"C"}, **PLACES[name]))
    with open_disk(path) as disk:
        disk.write(3 * MIB, b"B" * MIB)
        disk.resize(64 * MIB)
        disk.write(40 * MIB, b"far")
    qemu_img("convert", "-f", "vpc", "-O", "raw", path, tmp_path / "raw")
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


def test_vhd_headers_that_lead_nowhere(tmp_path):
    path = tmp_path / "disk.vhd"
    good = dynamic_vhd(8 * MIB, {0: b"A"})
    for place in (0, 100, 511, len(good) - 500, 1 << 40, (1 << 64) - 1, (1 << 64) - 1024):
        data = bytearray(good)
        for at in (0, len(data) - 512):
            data[at + 16 : at + 24] = struct.pack(">Q", place)
            total = struct.pack(">I", checksum(bytes(data[at : at + 512]), 64))
            data[at + 64 : at + 68] = total
        path.write_bytes(data)
        with pytest.raises(DiskFormatError, match="dynamic header"):
            open_disk(path, read_only=True)


def test_a_vhd_table_over_its_header(tmp_path):
    path = tmp_path / "disk.vhd"
    for place in (512, 1024, 2048):
        data = bytearray(dynamic_vhd(8 * MIB, {0: b"A"}, header=1024, table=4096))
        head = bytearray(data[1024:2048])
        head[16:24] = struct.pack(">Q", place)
        head[28:32] = struct.pack(">I", 200)
        head[36:40] = struct.pack(">I", checksum(bytes(head), 36))
        data[1024:2048] = head
        path.write_bytes(data)
        if place == 2048:
            open_disk(path, read_only=True).close()
            continue
        with pytest.raises(DiskFormatError, match="over the headers"):
            open_disk(path, read_only=True)


# ---- sizes that are no whole sectors --------------------------------------

SIZES = [1, 100, 511, 513, MIB - 1, 3 * MIB + 1, 4 * MIB - 100, 4 * MIB - 511]


def odd_vdi(path, size):
    create_disk(path, "vdi", 4 * MIB)
    with open_disk(path) as disk:
        disk.write(0, b"V" * 4 * MIB)
    with path.open("r+b") as file:
        file.seek(368)
        file.write(struct.pack("<Q", size))


@pytest.mark.parametrize("size", SIZES)
def test_vdi_of_odd_size(size, tmp_path):
    path = tmp_path / "disk.vdi"
    odd_vdi(path, size)
    whole = -(-size // 512) * 512
    with open_disk(path, read_only=True) as disk:
        assert disk.size == disk.info().virtual_size == whole
        assert disk.read(0, whole) == b"V" * whole
    with open_disk(path) as disk:
        disk.write(whole - 512, b"W" * 512)
        disk.resize(8 * MIB)
        assert disk.read(whole - 512, 512) == b"W" * 512
        assert disk.read(4 * MIB, 4 * MIB) == bytes(4 * MIB)
    with path.open("rb") as file:
        assert struct.unpack_from("<Q", file.read(512), 368) == (8 * MIB,)


@pytest.mark.peer
@pytest.mark.parametrize("size", SIZES)
def test_vdi_of_odd_size_by_qemu(size, tmp_path, qemu_img):
    path = tmp_path / "disk.vdi"
    odd_vdi(path, size)
    qemu_img("convert", "-f", "vdi", "-O", "raw", path, tmp_path / "raw")
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


def test_vdi_odd_size_needs_its_blocks(tmp_path):
    path = tmp_path / "disk.vdi"
    odd_vdi(path, 4 * MIB + 1)
    with pytest.raises(DiskFormatError, match="blocks for"):
        open_disk(path)
    assert VdiHeader(5).size == 5


def odd_qcow2(path, size):
    create_disk(path, "qcow2", 4 * MIB)
    with open_disk(path) as disk:
        disk.write(0, b"Q" * 4 * MIB)
    with path.open("r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", size))


@pytest.mark.parametrize("size", SIZES)
def test_qcow2_of_odd_size(size, tmp_path):
    path = tmp_path / "disk.qcow2"
    odd_qcow2(path, size)
    whole = size // 512 * 512
    with open_disk(path) as disk:
        assert disk.size == whole
        assert disk.read(0, disk.size) == b"Q" * whole
        if whole:
            disk.write(whole - 512, b"W" * 512)
        disk.snapshots.create("one")
        disk.snapshots.apply("one")
        assert disk.size == whole
        assert disk.check().errors == 0


@pytest.mark.peer
@pytest.mark.parametrize("size", SIZES)
def test_qcow2_of_odd_size_by_qemu(size, tmp_path, qemu_img):
    path = tmp_path / "disk.qcow2"
    odd_qcow2(path, size)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "raw")
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("size", [2 * MIB + 100, 4 * MIB - 1])
def test_vhd_of_odd_size_by_qemu(size, tmp_path, qemu_img):
    path = tmp_path / "disk.vhd"
    path.write_bytes(dynamic_vhd(size, {0: b"A", 1: b"B"}))
    qemu_img("convert", "-f", "vpc", "-O", "raw", path, tmp_path / "raw")
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


@pytest.mark.parametrize("size", [2 * MIB + 100, 5_000_000, 4 * MIB - 1])
def test_vhd_of_odd_size(size, tmp_path):
    path = tmp_path / "disk.vhd"
    path.write_bytes(dynamic_vhd(size, {0: b"A", 1: b"B"}))
    whole = size // 512 * 512
    with open_disk(path) as disk:
        assert disk.size == whole
        tail = disk.read(whole - 512, 512)
        assert tail in (b"A" * 512, b"B" * 512, bytes(512))
        disk.write(whole - 512, b"W" * 512)
    # In a fixed image the footer is where the rest of the last sector would be.
    footer = bytearray(path.read_bytes()[:512])
    footer[16:24], footer[60:64] = b"\xff" * 8, struct.pack(">I", 2)
    footer[64:68] = struct.pack(">I", checksum(bytes(footer), 64))
    path.write_bytes(b"F" * size + footer)
    with open_disk(path) as disk:
        assert disk.size == size // 512 * 512
        disk.write(disk.size - 512, b"W" * 512)
    assert path.read_bytes()[-512:] == bytes(footer)
