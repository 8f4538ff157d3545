"""Many throw-away layers over one image that does not change: what a forked machine's disk is."""

from __future__ import annotations

import random
import time

import pytest

from ringzero.disk import OverlayDisk, create_disk, open_disk
from ringzero.disk.mapped import SPOT_ABSENT

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.fixture
def base(tmp_path):
    """A chain of two qcow2 layers; returns its path and what it holds."""
    dice = random.Random(1)
    model = bytearray(SIZE)
    create_disk(tmp_path / "below", "qcow2", SIZE)
    create_disk(tmp_path / "base", "qcow2", backing="below", backing_format="qcow2")
    for name, start in (("below", 0), ("base", 5 * MIB)):
        with open_disk(tmp_path / name) as disk:
            for at in range(start, start + 20 * MIB, 3 * MIB):
                data = dice.randbytes(1000) * 900
                disk.write(at, data)
                model[at : at + len(data)] = data
    return tmp_path / "base", model


def test_many_overlays_are_cheap_and_apart(base):
    path, model = base
    before = path.read_bytes()
    begun = time.process_time()
    disks = [open_disk(path, throw_away=True) for _ in range(32)]
    # Milliseconds each, and no memory for what is not written.
    assert time.process_time() - begun < 1
    assert sum(disk.storage.allocated() for disk in disks) == 0
    dice = random.Random(2)
    models = [bytearray(model) for _ in disks]
    for disk, mine in zip(disks, models, strict=True):
        for _ in range(20):
            at = dice.randrange(SIZE - 200_000)
            data = dice.randbytes(dice.choice([1, 512, 4096, 150_000]))
            disk.write(at, data)
            mine[at : at + len(data)] = data
        at = dice.randrange(0, SIZE - 4 * MIB)
        disk.write_zeroes(at, 3 * MIB)
        mine[at : at + 3 * MIB] = bytes(3 * MIB)
    for disk, mine in zip(disks, models, strict=True):
        assert disk.read(0, SIZE) == mine
        disk.close()
    assert path.read_bytes() == before


def test_overlays_in_a_row(base):
    path, model = base
    with OverlayDisk(OverlayDisk(OverlayDisk(open_disk(path, read_only=True)))) as disk:
        layers = disk.chain()
        for number, layer in enumerate(layers[:3]):
            layer.write(number * MIB, b"own" * 100_000)
        for number in (2, 1, 0):
            model[number * MIB : number * MIB + 300_000] = b"own" * 100_000
        assert disk.read(0, SIZE) == model
        assert [extent.depth for extent in disk.block_status(0, 65536)] == [0]


def test_small_requests_reach_what_was_written_at_once(base):
    path, model = base
    with open_disk(path, throw_away=True) as disk:
        disk.write(7 * MIB + 512, b"here" * 128)
        assert disk._spot(7 * MIB + 512, 512, True) is not None
        assert disk._spot(8 * MIB, 512, False) == SPOT_ABSENT
        model[7 * MIB + 512 : 7 * MIB + 1024] = b"here" * 128
        for at in range(7 * MIB - 512, 7 * MIB + 4096, 512):
            assert disk.read(at, 512) == model[at : at + 512]
