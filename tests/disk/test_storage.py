"""The ground below the formats: storages, scattered buffers, tables, holes and locks."""

from __future__ import annotations

import errno
import os
import random
import threading
from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.mapped import Gate
from ringzero.disk.storage import FileStorage, MemoryStorage, Window
from ringzero.disk.tables import Table, ranges
from ringzero.disk.vectors import as_views, cut, fill, fill_zeroes, is_zero, join, total, zero_views
from ringzero.errors import DiskError, DiskReadOnlyError, InvalidValueError, NotFoundError
from ringzero.host import blockfile
from tests.disk.lossy import LossyStorage, create_in, open_in


@pytest.fixture(params=["file", "memory", "lossy"])
def storage(request, tmp_path):
    if request.param == "file":
        made = FileStorage(tmp_path / "file", create=True)
    else:
        made = MemoryStorage() if request.param == "memory" else LossyStorage()
    yield made
    made.close()


def test_bytes_past_the_end_read_as_zeroes(storage):
    storage.write(100, b"hello")
    assert storage.size == 105
    assert storage.read(98, 20) == b"\0\0hello".ljust(20, b"\0")


def test_zeroes_grow_and_holes_are_found(tmp_path):
    storage = FileStorage(tmp_path / "file", create=True)
    storage.write(0, b"x" * (1 << 20))
    storage.write_zeroes(1 << 18, 1 << 18)
    storage.write_zeroes(1 << 20, 1 << 20)
    assert storage.size == 2 << 20
    assert storage.read(0, 1 << 20) == b"x" * (1 << 18) + bytes(1 << 18) + b"x" * (1 << 19)
    runs = list(storage.extents(0, 3 << 20))
    assert sum(length for length, _ in runs) == 3 << 20
    assert not runs[-1][1]
    before = storage.allocated()
    storage.write_zeroes(0, 1 << 18, keep_space=True)
    assert storage.allocated() == before
    assert storage.read(0, 1 << 18) == bytes(1 << 18)
    storage.close()


def test_more_pieces_than_one_system_call_takes(tmp_path):
    storage = FileStorage(tmp_path / "file", create=True)
    pieces = [bytes([n % 251]) * 3 for n in range(2 * blockfile.IOV_MAX + 7)]
    storage.write(5, pieces)
    back = [memoryview(bytearray(3)) for _ in pieces]
    storage.read_into(5, back)
    assert b"".join(back) == b"".join(pieces)
    storage.close()


def test_closed_storage_and_missing_file(tmp_path):
    with pytest.raises(NotFoundError):
        FileStorage(tmp_path / "none")
    with pytest.raises(DiskError, match="neither a file"):
        FileStorage(tmp_path, read_only=True)
    storage = FileStorage(tmp_path / "file", create=True)
    with pytest.raises(DiskError, match="exists"):
        FileStorage(tmp_path / "file", create=True)
    storage.close()
    with pytest.raises(DiskError, match="cannot write"):
        storage.write(0, b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_file_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o444)
    with pytest.raises(DiskReadOnlyError):
        FileStorage(tmp_path / "file")


def test_full_host_disk_is_a_clear_error():
    storage = FileStorage.__new__(FileStorage)
    storage.name = storage.path = "/dev/full"
    storage.fd = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(DiskError, match="No space left") as caught:
        storage.write(0, b"x" * 512)
    assert "room" in caught.value.hint
    storage.close()


def test_window_stays_in_its_bounds():
    whole = MemoryStorage()
    whole.write(0, bytes(range(256)) * 8)
    window = Window(whole, 512, 1024)
    assert window.read(0, 4) == bytes(range(4))
    with pytest.raises(DiskError):
        window.write(1020, b"12345")
    with pytest.raises(DiskError):
        window.truncate(4096)
    window.write(0, b"abc")
    assert whole.read(511, 5) == b"\xffabc\x03"


def test_raw_windows(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096) + b"A" * 512 + b"B" * 512 + bytes(1000))
    with open_disk(path, "raw", options={"offset": "4096", "size": 1024}) as disk:
        assert disk.size == 1024
        disk.write(512, b"C" * 512)
        with pytest.raises(InvalidValueError):
            disk.write(1024, b"D")
    assert path.read_bytes()[4096:5120] == b"A" * 512 + b"C" * 512
    with pytest.raises(InvalidValueError):
        open_disk(path, "raw", options={"offset": "1M"})


def test_raw_file_that_ends_inside_a_sector(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 700)
    with open_disk(path, read_only=True) as disk:
        assert disk.size == 1024
        assert disk.read(512, 512) == b"x" * 188 + bytes(324)


def test_failed_creation_leaves_nothing(tmp_path):
    with pytest.raises(InvalidValueError):
        create_disk(tmp_path / "disk", "qcow2", 1 << 62, options={"cluster_size": "512"})
    with pytest.raises(NotFoundError):
        create_disk(tmp_path / "disk", "qcow2", backing="nowhere")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_scattered_buffers_are_cut_like_one(pieces, data):
    whole = b"".join(pieces)
    views = as_views([bytearray(piece) for piece in pieces])
    assert total(views) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    part = cut(views, start, length) if views else []
    assert b"".join(part) == whole[start : start + length]
    if part:
        assert bytes(join(part)) == whole[start : start + length]
    fill_zeroes(part)
    after = whole[:start] + bytes(length) + whole[start + length :]
    assert b"".join(views) == after
    if views:
        fill(views, whole)
        assert b"".join(views) == whole


@given(st.integers(0, 1_200_000), st.integers(0, 1_200_000), st.integers(1, 255))
def test_zero_is_found_exactly(length, at, value):
    data = bytearray(length)
    assert is_zero(data)
    assert total(zero_views(length)) == length
    if at < length:
        data[at] = value
        assert not is_zero(data)


@given(
    st.sampled_from(["B", "H", "I", "Q"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=20),
)
def test_tables_write_back_what_changed(typecode, big_endian, changes):
    storage = LossyStorage()
    table = Table.blank(storage, 1024, 1000, typecode, big_endian=big_endian)
    table.write_back()
    assert not table.dirty
    expected = [0] * 1000
    for index, value in changes:
        table.set(index, value)
        expected[index] = value
    table.write_back()
    again = Table.load(storage, 1024, 1000, typecode, big_endian=big_endian)
    assert list(again.items) == expected
    size = table.items.itemsize
    order = "big" if big_endian else "little"
    raw = storage.read(1024, 1000 * size)
    assert [int.from_bytes(raw[n : n + size], order) for n in range(0, len(raw), size)] == expected


@given(st.sets(st.integers(0, 60)))
def test_ranges(numbers):
    found = list(ranges(sorted(numbers)))
    assert {n for first, count in found for n in range(first, first + count)} == numbers
    assert all(a + b < c for (a, b), (c, _) in pairwise(found))


class Device(LossyStorage):
    """As a block device: of one size, and full of old bytes."""

    is_device = True

    def __init__(self, size):
        super().__init__(random.Random(1).randbytes(size))

    def truncate(self, size):
        raise DiskError("a device cannot be resized")


@pytest.mark.parametrize("options", [{}, {"cluster_size": "512"}, {"extended_l2": "on"}], ids=str)
def test_qcow2_in_a_block_device(options):
    device = Device(3_000_000 // 512 * 512)
    create_in(device, "qcow2", 2 << 20, options)
    model = bytearray(2 << 20)
    for turn in range(3):
        disk = open_in(device, "qcow2")
        assert disk.read(0, disk.size) == model
        disk.write(70_000 * turn + 1000, b"x" * 60_000)
        model[70_000 * turn + 1000 : 70_000 * turn + 61_000] = b"x" * 60_000
        disk.flush()
        assert disk.read(0, disk.size) == model
        assert disk.check().clean
        disk.close()
    small = Device(65536)
    with pytest.raises(DiskError):
        create_in(small, "qcow2", 2 << 20, {})


def test_gate_lets_one_alone_and_many_together():
    gate, order = Gate(), []
    gate.enter()
    gate.enter()

    def close() -> None:
        with gate.alone():
            order.append("alone")

    thread = threading.Thread(target=close)
    thread.start()
    gate.leave()
    thread.join(0.05)
    assert not order
    order.append("last leaves")
    gate.leave()
    thread.join(5)
    assert order == ["last leaves", "alone"]
    gate.enter()
    gate.leave()


def test_a_window_ends_where_it_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before" + b"inside" + b"behind")
    window = Window(FileStorage(path, read_only=True), 6, 6)
    assert window.read(0, 6) == b"inside"
    assert window.read(4, 6) == b"de\0\0\0\0"
    assert window.read(100, 2) == b"\0\0"
    assert not window.read_cached(4, [memoryview(bytearray(6))])
    with pytest.raises(DiskError, match="cannot grow"):
        window.write(4, b"much more")
    window.close()


def test_what_is_appended_in_long_runs_takes_its_size_and_no_more(tmp_path):
    run = 1 << 20
    with closing(FileStorage(tmp_path / "file", create=True)) as storage:
        for number in range(40):
            storage.write(number * run, bytes([number]) * run)
            assert os.fstat(storage.fd).st_size == storage.size == (number + 1) * run
        # A hole between runs stays one.
        storage.write(60 * run, b"x" * run)
        assert storage.allocated() <= 41 * run + 65536
        for number in range(40):
            assert storage.read(number * run, run) == bytes([number]) * run
        assert storage.read(50 * run, 512) == bytes(512)


@pytest.mark.parametrize("answer", [False, OSError(errno.ENOSPC, "full")])
def test_what_cannot_be_reserved_is_written_all_the_same(tmp_path, monkeypatch, answer):
    calls = []

    def reserve(fd, offset, length):
        calls.append(offset)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(blockfile, "is_faster_reserved", lambda fd: True)
    monkeypatch.setattr(blockfile, "reserve", reserve)
    with closing(FileStorage(tmp_path / "file", create=True)) as storage:
        for number in range(20):
            storage.write(number << 20, b"x" * (1 << 20))
        assert storage.read(19 << 20, 1 << 20) == b"x" * (1 << 20)
    assert len(calls) == 1
