"""Partition tables as sfdisk writes them, and damaged ones."""

import json
import os
import random
import struct
import zlib

import pytest

from ringzero.errors import FileSystemError
from ringzero.image.partitions import read_partitions
from tests.image.fs.made import Bytes, run, sized

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
GPT = """label: gpt
start=2048, size=4096, type=U, name=boot
start=8192, size=20000, type=L, name="the root"
"""
MBR = """label: dos
label-id: 0xcafe1234
start=2048, size=4096, type=83, bootable
start=8192, size=30000, type=5
start=10240, size=2048, type=83
start=14336, size=4096, type=82
"""


def made(tmp_path, script):
    path = sized(tmp_path / "disk", 32 << 20)
    run("sfdisk", "-q", path, input=script.encode())
    return bytearray(path.read_bytes()), json.loads(run("sfdisk", "--json", path))["partitiontable"]


@pytest.mark.peer
@pytest.mark.parametrize("script", [GPT, MBR], ids=["gpt", "mbr"])
def test_the_table_is_as_sfdisk_reads_it(tmp_path, script):
    data, table = made(tmp_path, script)
    found = read_partitions(Bytes(data))
    extended = [p for p in table["partitions"] if p["type"] != "5"]
    assert [(p.start // 512, p.size // 512) for p in found] == [
        (p["start"], p["size"]) for p in extended
    ]
    assert [str(p.number) for p in found] == [p["node"][-1] for p in extended]
    assert [p.type.lstrip("0") for p in found] == [p["type"].lower().lstrip("0") for p in extended]
    if script == GPT:
        assert [p.label for p in found] == ["boot", "the root"]
        assert [p.uuid.lower() for p in found] == [p["uuid"].lower() for p in extended]
        assert found[0].purpose == "EFI system partition"
    else:
        assert found[0].active
        assert found[0].uuid == "cafe1234-01"


@pytest.mark.peer
def test_a_damaged_gpt_is_read_from_its_copy(tmp_path):
    data, _ = made(tmp_path, GPT)
    whole = read_partitions(Bytes(data))
    data[512 + 40] ^= 1
    assert read_partitions(Bytes(data)) == whole
    data[-512 + 40] ^= 1
    with pytest.raises(FileSystemError, match="GPT and its copy are damaged"):
        read_partitions(Bytes(data))


@pytest.mark.peer
def test_a_chain_of_logical_partitions_may_loop(tmp_path):
    data, _ = made(tmp_path, MBR)
    # The second link leads back to the first.
    data[12288 * 512 + 446 + 16 + 4] = 5
    data[12288 * 512 + 446 + 16 + 8 : 12288 * 512 + 446 + 16 + 12] = bytes(4)
    assert len(read_partitions(Bytes(data))) <= 3


@pytest.mark.peer
@pytest.mark.parametrize("script", [GPT, MBR], ids=["gpt", "mbr"])
def test_fuzz_wrong_bytes_end(tmp_path, script):
    whole, _ = made(tmp_path, script)
    random_ = random.Random(7)
    for _ in range(300 * FUZZ):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 5, 40))):
            data[random_.randrange(40 * 512)] = random_.randrange(256)
        try:
            found = read_partitions(Bytes(data))
        except FileSystemError:
            continue
        assert all(p.start >= 0 and p.start + p.size <= len(data) for p in found)


def test_no_more_partitions_than_linux_has():
    """Each is looked through, and a table has room for thousands."""
    entry = struct.pack("<16s16sQQQ72s", b"L" * 16, b"u" * 16, 2048, 4095, 0, b"")
    table = entry * 4096
    fields = (1, 100, 2048, 4096, b"d" * 16, 2, 4096, 128, zlib.crc32(table))
    head = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
    found = read_partitions(Bytes((bytes(512) + head.ljust(512, b"\0") + table).ljust(4 << 20)))
    assert [p.number for p in found] == list(range(1, 257))


def test_no_table():
    assert read_partitions(Bytes(b"")) == []
    assert read_partitions(Bytes(bytes(1 << 20))) == []
