"""The contract of a disk format, as tests: derive from `DiskContract` and run pytest.

class TestMine(DiskContract):
    def create(self, path, size):
        create_disk(path, "mine", size)

    def open(self, path, *, read_only=False):
        return open_disk(path, "mine", read_only=read_only)
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from ringzero.disk.contract import SECTOR, Disk
from ringzero.errors import DiskReadOnlyError, DiskUnsupportedError, InvalidValueError

# Requests of the random test; a model in memory tells what must be read.
_REQUESTS = 200
_LONGEST = 100_000


class DiskContract:
    """What every `ringzero.disk.Disk` keeps to; a subclass says which format.

    `size` is that of the disks, in bytes; at least 1 MiB.
    """

    size: ClassVar[int] = 3 * 1024 * 1024 + SECTOR

    def create(self, path: Path, size: int) -> None:
        """Make an empty image of `size` bytes."""
        raise NotImplementedError("a DiskContract gives `create`, which makes an image")

    def open(self, path: Path, *, read_only: bool = False) -> Disk:
        """Open an image that `create` has made."""
        raise NotImplementedError("a DiskContract gives `open`, which returns a Disk")

    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        """Return the path of a new image."""
        path = tmp_path / "disk.img"
        self.create(path, self.size)
        return path

    def test_new_image_is_all_zero(self, image: Path) -> None:
        with self.open(image) as disk:
            assert disk.size >= self.size
            assert disk.info().virtual_size == disk.size
            assert disk.read(0, disk.size) == bytes(disk.size)
            _assert_sound(disk)

    def test_what_is_written_is_read_also_after_reopening(self, image: Path) -> None:
        data = random.Random(1).randbytes(200_000)
        with self.open(image) as disk:
            disk.write(70_001, data)
            disk.write(self.size - SECTOR, data[:SECTOR])
            assert disk.read(70_001, len(data)) == data
            assert disk.read(0, 70_001) == bytes(70_001)
        with self.open(image, read_only=True) as disk:
            assert disk.read(70_001, len(data)) == data
            assert disk.read(self.size - SECTOR, SECTOR) == data[:SECTOR]
            _assert_sound(disk)

    def test_scattered_buffers(self, image: Path) -> None:
        data = random.Random(2).randbytes(150_000)
        memory = bytearray(data)
        view = memoryview(memory)
        pieces = [view[:1], view[1:512], view[512:100_000], view[100_000:100_000], view[100_000:]]
        with self.open(image) as disk:
            disk.write(12_345, pieces)
            memory[:] = bytes(len(memory))
            disk.read_into(12_345, pieces)
        assert bytes(memory) == data

    def test_batches(self, image: Path) -> None:
        dice = random.Random(8)
        model = bytearray(self.size)
        requests = []
        for at in range(0, self.size - 70_000, 100_000):
            data = dice.randbytes(dice.choice([512, 4096, 65_536]))
            model[at : at + len(data)] = data
            requests.append((at, [data[:100], data[100:]]))
        with self.open(image) as disk:
            disk.write_batch(requests)
            disk.write_batch([])
        with self.open(image, read_only=True) as disk:
            assert disk.read(0, self.size) == model

    def test_random_requests_against_a_model(self, image: Path) -> None:
        dice = random.Random(4)
        model = bytearray(self.size)
        with self.open(image) as disk:
            for _ in range(_REQUESTS):
                at = dice.randrange(self.size)
                length = min(dice.randrange(_LONGEST), self.size - at)
                kind = dice.choice(("write", "zeroes", "read", "flush"))
                if kind == "write":
                    data = dice.randbytes(length)
                    disk.write(at, data)
                    model[at : at + length] = data
                elif kind == "zeroes":
                    disk.write_zeroes(at, length, unmap=dice.random() < 0.5)
                    model[at : at + length] = bytes(length)
                elif kind == "read":
                    assert disk.read(at, length) == model[at : at + length]
                else:
                    disk.flush()
        with self.open(image, read_only=True) as disk:
            assert disk.read(0, self.size) == model
            _assert_sound(disk)

    def test_ranges_outside_are_refused(self, image: Path) -> None:
        with self.open(image) as disk:
            for offset, length in ((disk.size, 1), (disk.size - 1, 2), (-1, 1)):
                with pytest.raises(InvalidValueError):
                    disk.read(offset, length)
                with pytest.raises(InvalidValueError):
                    disk.write(offset, bytes(length))
            assert disk.read(disk.size, 0) == b""

    def test_image_opened_to_read_is_not_written(self, image: Path) -> None:
        with self.open(image, read_only=True) as disk:
            with pytest.raises(DiskReadOnlyError):
                disk.write(0, b"x")
            with pytest.raises(DiskReadOnlyError):
                disk.write_zeroes(0, 1)
            with pytest.raises(DiskReadOnlyError):
                disk.discard(0, SECTOR)

    def test_status_of_blocks_covers_the_disk_and_tells_the_truth(self, image: Path) -> None:
        with self.open(image) as disk:
            disk.write(1_000_000, random.Random(5).randbytes(100_000))
            at = 0
            for extent in disk.block_status():
                assert extent.offset == at and extent.length > 0
                if extent.reads_zero:
                    assert disk.read(at, extent.length) == bytes(extent.length)
                at += extent.length
            assert at == disk.size

    def test_threads_write_beside_one_another(self, image: Path) -> None:
        part = self.size // 4 // SECTOR * SECTOR
        contents = [random.Random(n).randbytes(part) for n in range(4)]
        faults: list[Exception] = []
        with self.open(image) as disk:

            def work(number: int) -> None:
                try:
                    for at in range(0, part, 50_000):
                        disk.write(number * part + at, contents[number][at : at + 50_000])
                except Exception as fault:  # it belongs to the test, not to the thread
                    faults.append(fault)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert faults == []
            assert disk.read(0, 4 * part) == b"".join(contents)
            _assert_sound(disk)


def _assert_sound(disk: Disk) -> None:
    try:
        report = disk.check()
    except DiskUnsupportedError:
        return
    assert (report.errors, report.leaks) == (0, 0), report.messages
