"""Instants of a disk: whatever is written afterwards, they read as they were."""

import os
import random
import threading

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.disk.instant import CLUSTER, LiveDisk
from ringzero.errors import DiskLockedError, DiskReadOnlyError, InvalidValueError

SIZE = 9 * CLUSTER + 512


@pytest.fixture(params=["raw", "qcow2"])
def live(request, tmp_path):
    path = tmp_path / "disk"
    create_disk(path, request.param, SIZE)
    disk = LiveDisk(open_disk(path, request.param))
    yield disk
    disk.close()


def change(disk, model, dice):
    """Do something to a disk and to the bytes that it is to hold."""
    start = dice.randrange(SIZE // 512)
    count = dice.randrange(1, min(3 * CLUSTER // 512, SIZE // 512 - start) + 1)
    start, count = start * 512, count * 512
    match dice.randrange(4):
        case 0:
            disk.write_zeroes(start, count)
            model[start : start + count] = bytes(count)
        case 1:
            disk.discard(start, count)
            model[start : start + count] = disk.disk.read(start, count)
        case _:
            data = dice.randbytes(count)
            disk.write(start, [memoryview(data)[:512], memoryview(data)[512:]])
            model[start : start + count] = data


@pytest.mark.parametrize("number", range(12))
def test_every_instant_stays_what_it_was(live, number):
    dice = random.Random(number)
    live.write(0, dice.randbytes(SIZE))
    # Each machine is a disk, what it is to hold, and the instants taken of it.
    machines = [(live, bytearray(live.disk.read(0, SIZE)))]
    instants = []
    for _ in range(60):
        disk, model = dice.choice(machines)
        match dice.randrange(8):
            case 0:
                instants.append((disk.instant(), bytes(model)))
            case 1 if instants:
                instant, content = dice.choice(instants)
                machines.append((instant.grow(), bytearray(content)))
            case 2 if len(instants) > 2:
                instants.pop(dice.randrange(len(instants)))[0].close()
            case 3 if len(machines) > 3:
                machines.pop(dice.randrange(1, len(machines)))[0].close()
            case _:
                change(disk, model, dice)
        for instant, content in instants:
            assert instant.read(0, SIZE) == content
            for extent in instant.block_status():
                if extent.reads_zero:
                    assert not any(content[extent.offset : extent.offset + extent.length])
        for disk, model in machines:
            at = dice.randrange(SIZE // 512) * 512
            assert disk.disk.read(at, SIZE - at) == model[at:]
    for instant, _ in instants:
        instant.close()
    for disk, _ in machines[1:]:
        disk.close()


def test_an_instant_of_what_was_not_written_to_is_the_last_one(live):
    first, second = live.instant(), live.instant()
    assert first is second
    live.write(0, b"x" * 512)
    third = live.instant()
    assert third is not first
    for instant in (first, second, third):
        instant.close()


def test_the_image_is_closed_with_the_last_reader(tmp_path):
    path = tmp_path / "disk"
    create_disk(path, "qcow2", SIZE)
    live = LiveDisk(open_disk(path, "qcow2"))
    live.write(0, b"a" * 512)
    with live.instant() as instant:
        child = instant.grow()
    live.write(0, b"b" * 512)
    live.close()
    with pytest.raises(DiskLockedError):
        open_disk(path, "qcow2")
    # What the machine wrote is in its image even so.
    with open_disk(path, "qcow2", read_only=True, lock=False) as image:
        assert image.read(0, 512) == b"b" * 512
    assert child.disk.read(0, 512) == b"a" * 512
    child.write(0, b"c" * 512)
    child.close()
    with open_disk(path, "qcow2") as image:
        assert image.read(0, 512) == b"b" * 512


def test_a_read_only_disk_is_shared(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"z" * SIZE)
    live = LiveDisk(open_disk(path, "raw", read_only=True))
    with live.instant() as instant:
        child = instant.grow()
    assert child.read_only and child.disk.read(512, 512) == b"z" * 512
    with pytest.raises(DiskReadOnlyError):
        child.write(0, b"x" * 512)
    child.close()
    live.close()


def test_reading_beside_a_writer(live):
    live.write(0, b"\1" * SIZE)
    ended = threading.Event()

    def scribble():
        dice = random.Random(5)
        while not ended.is_set():
            live.write(dice.randrange(SIZE // 512) * 512, dice.randbytes(512))

    with live.instant() as instant:
        writer = threading.Thread(target=scribble)
        writer.start()
        try:
            for _ in range(200):
                assert instant.read(0, SIZE) == b"\1" * SIZE
        finally:
            ended.set()
            writer.join()


def test_another_process_reads(live):
    """What the original overwrites after a fork, or after newer instants, a child still reads."""
    live.write(0, b"\1" * SIZE)
    old = live.instant()
    live.write(CLUSTER, b"\2" * CLUSTER)
    with live.instant() as instant:
        chain = [(old, b"\1" * SIZE)]
        chain.append((instant, b"\1" * CLUSTER + b"\2" * CLUSTER + b"\1" * (SIZE - 2 * CLUSTER)))
        readers = [one.share() for one, _ in chain]
        children = []
        for one, content in chain:
            go, wait = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.write(wait[1], b"x")
                    os.read(go[0], 1)
                    disk = one.grow()
                    status = 0 if disk.disk.read(0, SIZE) == content else 2
                    os.write(wait[1], b"x")
                    os.read(go[0], 1)
                finally:
                    os._exit(status)
            children.append((child, go, wait))
        for one in readers:
            one.complete()
        for _, _, wait in children:
            os.read(wait[0], 1)
        dice = random.Random(1)
        model = bytearray(live.disk.read(0, SIZE))
        newer = []
        for _ in range(40):
            newer.append((live.instant(), bytes(model)))
            change(live, model, dice)
        for _, go, wait in children:
            os.write(go[1], b"x")
            os.read(wait[0], 1)
            os.write(go[1], b"x")
        for child, go, wait in children:
            assert os.waitpid(child, 0)[1] == 0
            for end in (*go, *wait):
                os.close(end)
        assert old.read(0, SIZE) == b"\1" * SIZE
    old.close()
    for one, content in newer:
        assert one.read(0, SIZE) == content
        one.close()
    # The readers are gone: nothing is kept for them any more.
    live.write(0, b"x" * 512)
    assert not live._readers and live._newest is None


def test_another_disk_in_its_place(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path, byte in zip(paths, (b"a", b"b"), strict=True):
        path.write_bytes(byte * CLUSTER)
    disk = LiveDisk(open_disk(paths[0], format="raw"))
    instant = disk.instant()
    other = open_disk(paths[1], format="raw")
    with pytest.raises(InvalidValueError, match="still read"):
        disk.exchange(other)
    instant.close()
    disk.exchange(other)
    disk.write(0, [memoryview(b"new")])
    buffer = bytearray(4)
    disk.read_into(0, [memoryview(buffer)])
    assert buffer == b"newb"
    # The first one is anybody's again.
    open_disk(paths[0], format="raw").close()
    disk.close()
    assert paths[0].read_bytes() == b"a" * CLUSTER
    assert paths[1].read_bytes()[:4] == b"newb"
