"""Partition tables as they are written: our reader, and sfdisk, which has none of our code."""

import json
import subprocess
from uuid import UUID

import pytest

from ringzero.image.export import gpt
from ringzero.image.partitions import read_partitions
from tests.image.fs.made import Bytes, tool

PARTS = [
    gpt.NewPartition(gpt.BIOS_BOOT, UUID(int=1), 2048, 2048, "BIOS boot"),
    gpt.NewPartition(gpt.ROOT_X86_64, UUID(int=2), 4096, 8192, "root"),
]
SECTORS = 16384


def disk():
    head, tail = gpt.tables(PARTS, SECTORS, UUID(int=9), b"code")
    assert (len(head), len(tail)) == (34 * 512, 33 * 512)
    return head + bytes(SECTORS * 512 - len(head) - len(tail)) + tail


def test_our_reader_finds_them():
    found = read_partitions(Bytes(disk()))
    assert [(p.start, p.size, p.label, p.type) for p in found] == [
        (1 << 20, 1 << 20, "BIOS boot", str(gpt.BIOS_BOOT)),
        (2 << 20, 4 << 20, "root", str(gpt.ROOT_X86_64)),
    ]
    # The copy at the end does as well.
    damaged = bytearray(disk())
    damaged[512:1024] = bytes(512)
    assert read_partitions(Bytes(damaged)) == found


@pytest.mark.peer
def test_sfdisk_finds_nothing_wrong(tmp_path):
    (tmp_path / "disk").write_bytes(disk())
    assert (tmp_path / "disk").read_bytes()[:4] == b"code"
    done = subprocess.run(
        [tool("sfdisk"), "--json", tmp_path / "disk"], capture_output=True, check=True
    )
    assert done.stderr == b""
    told = json.loads(done.stdout)["partitiontable"]
    assert (told["label"], told["id"]) == ("gpt", str(UUID(int=9)).upper())
    assert [(p["start"], p["size"], p["uuid"]) for p in told["partitions"]] == [
        (2048, 2048, str(UUID(int=1)).upper()),
        (4096, 8192, str(UUID(int=2)).upper()),
    ]
    said = subprocess.run(
        [tool("sfdisk"), "--verify", tmp_path / "disk"], capture_output=True, text=True, check=True
    )
    assert "No errors detected" in said.stdout
