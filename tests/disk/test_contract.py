"""The contract suite: every flavour of every format behaves the same."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.disk import Disk, Kind, Repair, create_disk, open_disk
from ringzero.disk.overlay import OverlayDisk
from ringzero.errors import (
    DiskError,
    DiskLockedError,
    DiskReadOnlyError,
    DiskUnsupportedError,
    InvalidValueError,
)
from tests.disk.flavours import FLAVOURS

SIZE = 3 * 1024 * 1024 + 512
every_flavour = pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
with_backing = pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f.takes_backing], ids=str)


@pytest.fixture
def image(flavour, tmp_path):
    path = tmp_path / f"disk.{flavour.format}"
    flavour.create(path, SIZE)
    return path


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def assert_sound(disk: Disk) -> None:
    try:
        report = disk.check()
    except DiskUnsupportedError:
        return
    assert report.errors == 0, report.messages
    assert report.leaks == 0, report.messages


@every_flavour
def test_new_image_is_all_zero_and_says_so(flavour, image):
    with flavour.open(image) as disk:
        assert disk.size >= SIZE
        assert disk.format == flavour.format
        assert disk.read(0, disk.size) == bytes(disk.size)
        if flavour.blank:
            assert all(extent.reads_zero for extent in disk.block_status())
        assert disk.info().virtual_size == disk.size
        assert_sound(disk)


@every_flavour
def test_probe_finds_the_format(flavour, image):
    with open_disk(image, read_only=True) as disk:
        assert disk.format == flavour.format


@every_flavour
def test_what_is_written_is_read_also_after_reopening(flavour, image):
    data = pattern(200_000)
    with flavour.open(image) as disk:
        disk.write(70_001, data)
        disk.write(SIZE - 512, data[:512])
        assert disk.read(70_001, len(data)) == data
        assert disk.read(0, 70_001) == bytes(70_001)
    with flavour.open(image, read_only=True) as disk:
        assert disk.read(70_001, len(data)) == data
        assert disk.read(SIZE - 512, 512) == data[:512]
        assert_sound(disk)


@every_flavour
def test_scattered_buffers(flavour, image):
    data = pattern(150_000)
    memory = bytearray(data)
    view = memoryview(memory)
    pieces = [view[:1], view[1:512], view[512:100_000], view[100_000:100_000], view[100_000:]]
    with flavour.open(image) as disk:
        disk.write(12_345, pieces)
        for position in range(len(memory)):
            memory[position] = 0
        disk.read_into(12_345, pieces)
        assert bytes(memory) == data


@every_flavour
def test_batches(flavour, image):
    dice = random.Random(8)
    model = bytearray(SIZE)
    requests = []
    for at in range(0, SIZE - 70_000, 100_000):
        data = dice.randbytes(dice.choice([512, 4096, 65_536]))
        model[at : at + len(data)] = data
        requests.append((at, [data[:100], data[100:]]))
    with flavour.open(image) as disk:
        disk.write_batch(requests)
        disk.write_batch([])
        with pytest.raises(InvalidValueError):
            disk.write_batch([(0, b"x" * 512), (SIZE, b"x")])
    with flavour.open(image, read_only=True) as disk:
        for size in (5 * 512, SIZE // 5):
            buffers = [bytearray(size) for _ in range(0, SIZE, size)]
            # Dropped from the cache the second time, where there is a file.
            for _ in range(2):
                disk.read_batch([(n * size, buffer) for n, buffer in enumerate(buffers)])
                assert b"".join(buffers) == model
                for name in image.parent.iterdir():
                    with name.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(InvalidValueError):
            disk.read_batch([(0, bytearray(512)), (SIZE - 1, bytearray(2))])


@every_flavour
def test_many_small_buffers_in_one_request(flavour, image):
    data = pattern(3000 * 64)
    view = memoryview(data)
    pieces = [view[at : at + 64] for at in range(0, len(data), 64)]
    with flavour.open(image) as disk:
        disk.write(1000, pieces)
        assert disk.read(1000, len(data)) == data


@every_flavour
def test_zeroes_and_discard(flavour, image):
    data = pattern(1_000_000)
    model = bytearray(SIZE)
    with flavour.open(image) as disk:
        disk.write(0, data)
        model[: len(data)] = data
        for offset, length, unmap in (
            (1000, 100, True),
            (65_536, 262_144, True),
            (511, 300_000, False),
        ):
            disk.write_zeroes(offset, length, unmap=unmap)
            model[offset : offset + length] = bytes(length)
            assert disk.read(0, SIZE) == model
        disk.discard(500_000, 400_000)
        after = disk.read(500_000, 400_000)
        assert all(new in (0, old) for new, old in zip(after, data[500_000:900_000], strict=True))
        disk.write(600_000, b"again")
        assert disk.read(600_000, 5) == b"again"
        assert disk.read(0, 500_000) == model[:500_000]
    with flavour.open(image, read_only=True) as disk:
        assert disk.read(0, 500_000) == model[:500_000]
        assert_sound(disk)


@every_flavour
def test_block_status_covers_the_disk_and_tells_the_truth(flavour, image):
    with flavour.open(image) as disk:
        disk.write(1_000_000, pattern(300_000))
        disk.flush()
        at = 0
        for extent in disk.block_status():
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
            data = disk.read(extent.offset, extent.length)
            if extent.reads_zero:
                assert data == bytes(extent.length)
            if extent.kind is Kind.DATA and extent.host is not None:
                with Path(extent.path).open("rb") as file:
                    file.seek(extent.host)
                    assert file.read(extent.length) == data
        assert at == disk.size


@every_flavour
@pytest.mark.parametrize("call", ["read", "write", "zero", "discard", "status"])
def test_ranges_outside_the_disk_are_refused(flavour, image, call):
    with flavour.open(image) as disk:
        calls = {
            "read": disk.read,
            "write": lambda at, n: disk.write(at, bytes(n)),
            "zero": disk.write_zeroes,
            "discard": disk.discard,
            "status": lambda at, n: list(disk.block_status(at, n)),
        }
        for offset, length in ((disk.size, 1), (disk.size - 1, 2), (1 << 70, 1)):
            with pytest.raises(InvalidValueError):
                calls[call](offset, length)
        with pytest.raises(InvalidValueError):
            calls[call](-1, 1)


@every_flavour
def test_read_only_changes_not_one_byte(flavour, image):
    with flavour.open(image) as disk:
        disk.write(5000, pattern(100_000))
    before, stat_before = image.read_bytes(), image.stat()
    image.chmod(0o444)
    with flavour.open(image, read_only=True) as disk:
        disk.read(0, SIZE)
        list(disk.block_status())
        assert_sound(disk)
        disk.flush()
        for attempt in (
            lambda: disk.write(0, b"x"),
            lambda: disk.write_zeroes(0, 512),
            lambda: disk.discard(0, 512),
            lambda: disk.resize(SIZE + 512),
        ):
            with pytest.raises(DiskReadOnlyError):
                attempt()
    assert image.read_bytes() == before
    assert image.stat().st_mtime_ns == stat_before.st_mtime_ns


@every_flavour
def test_resize(flavour, image):
    data = pattern(100_000)
    with flavour.open(image) as disk:
        disk.write(SIZE - 100_000, data)
        try:
            disk.resize(SIZE + 5 * 1024 * 1024)
        except DiskUnsupportedError:
            pytest.skip("this format cannot")
        assert disk.size == SIZE + 5 * 1024 * 1024
        assert disk.read(SIZE - 100_000, 100_000) == data
        assert disk.read(SIZE, disk.size - SIZE) == bytes(disk.size - SIZE)
        disk.write(disk.size - 512, data[:512])
        with pytest.raises(InvalidValueError):
            disk.resize(1000)
    with flavour.open(image) as disk:
        assert disk.size == SIZE + 5 * 1024 * 1024
        assert disk.read(disk.size - 512, 512) == data[:512]
        assert_sound(disk)
        try:
            disk.resize(1024 * 1024 + 512)
        except DiskUnsupportedError:
            pytest.skip("this format cannot shrink")
        disk.resize(SIZE)
        assert disk.read(1024 * 1024 + 512, SIZE - 1024 * 1024 - 512) == bytes(
            SIZE - 1024 * 1024 - 512
        )
        assert_sound(disk)


@every_flavour
def test_a_second_writer_is_locked_out_and_readers_share(flavour, image):
    with flavour.open(image):
        with pytest.raises(DiskLockedError):
            flavour.open(image)
        with pytest.raises(DiskLockedError):
            flavour.open(image, read_only=True)
        flavour.open(image, read_only=True, lock=False).close()
    first, second = flavour.open(image, read_only=True), flavour.open(image, read_only=True)
    with pytest.raises(DiskLockedError):
        flavour.open(image)
    first.close()
    second.close()
    flavour.open(image).close()


@every_flavour
def test_creating_over_an_image_must_be_asked_for(flavour, image):
    with pytest.raises(DiskError):
        flavour.create(image, SIZE)
    with flavour.open(image), pytest.raises(DiskLockedError):
        flavour.create(image, SIZE, overwrite=True)
    flavour.create(image, SIZE * 2 + 512, overwrite=True)
    with flavour.open(image) as disk:
        assert disk.size >= SIZE * 2


@every_flavour
def test_unknown_options_are_refused(flavour, tmp_path):
    with pytest.raises(InvalidValueError):
        create_disk(tmp_path / "x", flavour.format, SIZE, options={"nonsense": "1"})
    assert not (tmp_path / "x").exists()


@every_flavour
def test_threads(flavour, image):
    """Each thread owns every fourth 3 KiB: neighbours meet in the same clusters."""
    step, faults = 3072, []
    model = bytearray(SIZE)

    def work(number: int, disk: Disk) -> None:
        dice = random.Random(number)
        try:
            for _ in range(60):
                slot = dice.randrange(SIZE // step // 4) * 4 + number
                data = dice.randbytes(step)
                if dice.random() < 0.1:
                    data = bytes(step)
                    disk.write_zeroes(slot * step, step)
                else:
                    disk.write(slot * step, data)
                model[slot * step : slot * step + step] = data
                if disk.read(slot * step, step) != data:
                    faults.append((number, slot))
                if dice.random() < 0.05:
                    disk.flush()
        except Exception as fault:
            faults.append(fault)

    with flavour.open(image, sync=False) as disk:
        threads = [threading.Thread(target=work, args=(n, disk)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert disk.read(0, SIZE) == model
    with flavour.open(image, read_only=True) as disk:
        assert disk.read(0, SIZE) == model
        assert_sound(disk)


@every_flavour
def test_throw_away_overlay(flavour, image):
    data = pattern(300_000)
    with flavour.open(image) as disk:
        disk.write(100, data)
    before = image.read_bytes()
    model = bytearray(SIZE)
    model[100 : 100 + len(data)] = data
    with flavour.open(image, throw_away=True) as disk:
        assert isinstance(disk, OverlayDisk)
        disk.write(200_000, b"scratch")
        model[200_000:200_007] = b"scratch"
        disk.write_zeroes(10, 150_000)
        model[10:150_010] = bytes(150_000)
        assert disk.read(0, SIZE) == model
        assert {extent.depth for extent in disk.block_status()} >= {0}
        disk.resize(SIZE // 1024 * 512)
        disk.resize(SIZE + 512)
        half = SIZE // 1024 * 512
        assert disk.read(0, SIZE + 512) == model[:half] + bytes(SIZE + 512 - half)
    assert image.read_bytes() == before


@with_backing
@pytest.mark.parametrize("below", ["raw", "same"])
def test_backing_file(flavour, below, tmp_path):
    base_format = "raw" if below == "raw" else flavour.format
    data = pattern(1_000_000)
    create_disk(tmp_path / "base", base_format, 1024 * 1024)
    with open_disk(tmp_path / "base", base_format) as base:
        base.write(1000, data)
    model = bytearray(SIZE)
    model[1000 : 1000 + len(data)] = data
    top = tmp_path / "top"
    flavour.create(top, SIZE, backing="base", backing_format=base_format)
    with flavour.open(top) as disk:
        assert disk.backing is not None
        assert disk.info().backing_filename == "base"
        assert disk.read(0, SIZE) == model
        for offset, length in ((5000, 100), (900_000, 300_000), (65_536, 65_536)):
            disk.write(offset, data[:length])
            model[offset : offset + length] = data[:length]
        disk.write_zeroes(200_000, 200_000)
        model[200_000:400_000] = bytes(200_000)
        assert disk.read(0, SIZE) == model
    with flavour.open(top, read_only=True) as disk:
        assert disk.read(0, SIZE) == model
        depths = {extent.depth for extent in disk.block_status() if not extent.reads_zero}
        assert 0 in depths
        assert depths <= {0, 1}
        assert_sound(disk)
    with open_disk(tmp_path / "base", base_format) as base:
        assert base.read(1000, len(data)) == data


@with_backing
def test_copy_on_read(flavour, tmp_path):
    data = pattern(1_000_000)
    (tmp_path / "base").write_bytes(data + bytes(24))
    flavour.create(tmp_path / "top", SIZE, backing="base", backing_format="raw")
    with flavour.open(tmp_path / "top", copy_on_read=True) as disk:
        assert disk.read(100_000, 300_000) == data[100_000:400_000]
    with flavour.open(tmp_path / "top", backing=False) as disk:
        assert disk.read(100_000, 300_000) == data[100_000:400_000]
        assert_sound(disk)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=st.data())
def test_model(flavour, plan, tmp_path_factory):
    """Random operations, with reopening in between, against a plain byte array."""
    directory = tmp_path_factory.mktemp("model")
    size = 512 * plan.draw(st.integers(1, 3000))
    path = directory / "disk"
    more = {}
    model = bytearray(size)
    if flavour.takes_backing and plan.draw(st.booleans()):
        base = pattern(512 * plan.draw(st.integers(1, 2000)), 7)
        (directory / "base").write_bytes(base)
        more = {"backing": "base", "backing_format": "raw"}
        model[: len(base)] = base[:size]
    flavour.create(path, size, **more, sync=False)
    disk = flavour.open(path, sync=False)
    try:
        size = disk.size
        model.extend(bytes(size - len(model)))
        for step in range(plan.draw(st.integers(1, 12))):
            offset = plan.draw(st.integers(0, size - 1))
            length = plan.draw(st.integers(1, min(size - offset, 700_000)))
            action = plan.draw(st.sampled_from(["write", "zero", "flush", "reopen", "read"]))
            if action == "write":
                data = pattern(length, step)
                disk.write(offset, data)
                model[offset : offset + length] = data
            elif action == "zero":
                disk.write_zeroes(offset, length, unmap=plan.draw(st.booleans()))
                model[offset : offset + length] = bytes(length)
            elif action == "flush":
                disk.flush()
            elif action == "reopen":
                disk.close()
                disk = flavour.open(path, sync=False)
            else:
                assert disk.read(offset, length) == model[offset : offset + length]
        assert disk.read(0, size) == model
        assert_sound(disk)
    finally:
        disk.close()
    with flavour.open(path, read_only=True) as disk:
        assert disk.read(0, size) == model


def test_check_report_counts():
    assert Repair("leaks") is Repair.LEAKS
