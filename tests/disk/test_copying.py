"""Copies: pieces that gather what is far apart, batches of writes, faults and interrupts."""

import random
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.copying import Copy, gathered, pieces_of_data, stored
from ringzero.disk.storage import Holes, MemoryStorage
from ringzero.disk.workers import Workers
from ringzero.errors import DiskError
from ringzero.units import KIB, MIB
from tests.disk.flavours import FLAVOURS, Flavour

SIZE = 20 * MIB
NOISE = random.Random(3).randbytes(SIZE)
TARGETS = [
    Flavour("raw"), Flavour("qcow2"), Flavour("qcow2", {"cluster_size": "512"}),
    Flavour("qcow2", {"cluster_size": "2M", "refcount_bits": "64"}),
    Flavour("qcow2", {"extended_l2": "on"}), Flavour("qcow2", {"data_file": "data"}),
    Flavour("vmdk"), Flavour("vdi"), Flavour("vhdx"), Flavour("vhd"),
]  # fmt: skip
# A fixed VHD has no structures.
NOTHING_TO_CHECK = ("fixed",)
# Pieces of data: sector, sectors.
PIECES = st.lists(
    st.tuples(
        st.integers(0, SIZE // 512 - 1), st.sampled_from([1, 7, 8, 16, 100, 128, 129, 2048, 9000])
    ),
    max_size=30,
)


def fill(path, pieces):
    expected = bytearray(SIZE)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for sector, count in pieces:
            length = min(count * 512, SIZE - sector * 512)
            file.seek(sector * 512)
            file.write(NOISE[:length])
            expected[sector * 512 : sector * 512 + length] = NOISE[:length]
    return bytes(expected)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_scattered_data_arrives(target):
    @settings(max_examples=15, deadline=None)
    @given(PIECES, st.sampled_from([1, 2, 3]), st.sampled_from([0, 4096, 65536]))
    def check(pieces, threads, sparse):
        with tempfile.TemporaryDirectory() as name:
            expected = fill(Path(name, "source"), pieces)
            out = Path(name, "out")
            target.create(out, SIZE)
            seen = []
            with open_disk(Path(name, "source"), "raw", read_only=True) as source:
                with target.open(out) as disk:
                    Copy(
                        source, disk, threads=threads, sparse=sparse, on_progress=seen.append
                    ).run()
                with target.open(out, read_only=True) as disk:
                    assert disk.read(0, SIZE) == expected
                    if target.format != "raw":
                        assert disk.check().clean
            assert seen == sorted(seen) and seen[-1] == SIZE

    check()


@settings(max_examples=60, deadline=None)
@given(PIECES, st.sampled_from([64 * KIB, MIB, 4 * MIB]), st.sampled_from([0, 64 * KIB]))
def test_pieces_hold_all_data_in_order(pieces, size, join):
    with tempfile.TemporaryDirectory() as name:
        expected = fill(Path(name, "source"), pieces)
        with open_disk(Path(name, "source"), "raw", read_only=True) as source:
            found = list(gathered(source, 0, SIZE, size, join))
    assert [piece.start for piece in found[1:]] == [piece.end for piece in found[:-1]]
    assert (found[0].start, found[-1].end) == (0, SIZE)
    at, rest = 0, bytearray(expected)
    for piece in found:
        assert sum(length for _, length in piece.parts) <= size
        for offset, length in piece.parts:
            assert piece.start <= offset and at <= offset and offset + length <= piece.end
            at = offset + length
            rest[offset:at] = bytes(length)
    assert not any(rest)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([0, 512, 4096]))
def test_pieces_of_data_are_cut_at_units(blocks, shift):
    data = b"".join((b"\1" if held else b"\0") * 512 for held in blocks)
    found = pieces_of_data(memoryview(data), shift, 4096)
    rest = bytearray(data)
    for offset, view in found:
        place = offset - shift
        assert bytes(view) == data[place : place + len(view)]
        assert any(view)
        assert offset % 4096 == 0 or place == 0
        rest[place : place + len(view)] = bytes(len(view))
    assert not any(rest)


BLANK = bytes(4096)
UNITS = [BLANK, b"\1" * 4096, BLANK[1:] + b"\1", b"\1" + BLANK[1:], BLANK[:9] + b"\1" + BLANK[10:]]


@given(st.lists(st.sampled_from(UNITS), min_size=1, max_size=40))
def test_whole_units_are_data_or_zero(units):
    found = pieces_of_data(memoryview(b"".join(units)), 4 * 4096, 4096)
    rest = [BLANK] * len(units)
    last = -1
    for offset, view in found:
        assert offset > last
        last = offset + len(view)
        for at in range(0, len(view), 4096):
            rest[(offset + at) // 4096 - 4] = bytes(view[at : at + 4096])
    assert rest == units
    assert sum(len(view) for _, view in found) == 4096 * sum(unit != BLANK for unit in units)


@pytest.mark.parametrize("directory", [None, "/dev/shm"])
def test_cached_data_with_gaps_is_not_waited_for(tmp_path, directory):
    place = Path(tempfile.mkdtemp(dir=directory or tmp_path))
    try:
        create_disk(place / "source", "qcow2", SIZE)
        with open_disk(place / "source") as disk:
            for at in (0, 2 * 65536, 3 * 65536, 6 * 65536):
                disk.write(at, b"x" * 4096)
        create_disk(place / "target", "raw", SIZE)
        with open_disk(place / "source", read_only=True) as source:
            with open_disk(place / "target", "raw") as target:
                copy = Copy(source, target)
                copy.run()
                assert target.read(0, SIZE) == source.read(0, SIZE)
            found = source.read_ready([(0, memoryview(bytearray(8 * 65536)))])
    finally:
        shutil.rmtree(place)
    if source.storage._cached_views >= 0 or source.storage._in_memory:
        assert not copy.waits
        assert found == []


@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if f.format != "raw"], ids=str)
def test_a_batch_of_writes_is_as_good_as_one_after_the_other(flavour):
    """Also where requests lie in one cluster, over one another's, or in no order."""
    # Apart, so that their order does not matter.
    places = st.lists(st.integers(0, 2 * MIB // 512 - 1), unique=True, max_size=40)

    @settings(max_examples=10, deadline=None)
    @given(st.lists(places, min_size=1, max_size=3), st.sampled_from([512, 4096, 70_144]))
    def check(batches, length):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "disk")
            flavour.create(path, 2 * MIB)
            expected = bytearray(2 * MIB)
            with flavour.open(path) as disk:
                for sectors in batches:
                    requests, taken = [], set()
                    for sector in sectors:
                        start = sector * 512
                        end = min(start + length, 2 * MIB)
                        if taken.isdisjoint(range(start // 512, end // 512)):
                            taken.update(range(start // 512, end // 512))
                            requests.append((start, NOISE[start:end]))
                            expected[start:end] = NOISE[start:end]
                    disk.write_batch(requests)
                    assert disk.read(0, 2 * MIB) == expected
                disk.flush()
                if flavour.options.get("subformat") not in NOTHING_TO_CHECK:
                    assert disk.check().clean
            with flavour.open(path, read_only=True) as disk:
                assert disk.read(0, 2 * MIB) == expected

    check()


def test_a_batch_in_a_chain_shows_what_lies_below(tmp_path):
    create_disk(tmp_path / "base", "qcow2", MIB)
    with open_disk(tmp_path / "base") as disk:
        disk.write(0, NOISE[:MIB])
    create_disk(tmp_path / "top", "qcow2", backing="base")
    expected = bytearray(NOISE[:MIB])
    with open_disk(tmp_path / "top") as disk:
        requests = [(start, bytes(512)) for start in range(0, MIB, 40_960)]
        disk.write_batch(requests)
        for start, _ in requests:
            expected[start : start + 512] = bytes(512)
        assert disk.read(0, MIB) == expected


class Failing(MemoryStorage):
    """Memory that cannot be read, or written, behind some place."""

    limit = 3 * MIB

    def write(self, offset, buffers):
        if offset >= self.limit:
            raise DiskError("cannot write")
        super().write(offset, buffers)


def test_a_failed_write_ends_the_copy(tmp_path, monkeypatch):
    fill(tmp_path / "source", [(n * 400, 300) for n in range(100)])
    create_disk(tmp_path / "out", "raw", SIZE)
    with (
        open_disk(tmp_path / "source", "raw", read_only=True) as source,
        open_disk(tmp_path / "out", "raw") as target,
    ):
        monkeypatch.setattr(target.storage, "write", Failing("x").write)
        with pytest.raises(DiskError, match="cannot write"):
            Copy(source, target).run()
    assert not [t for t in threading.enumerate() if t.name.startswith("ringzero-copy")]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_tells_how_far_it_came(tmp_path, threads):
    expected = fill(tmp_path / "source", [(0, SIZE // 512)])
    create_disk(tmp_path / "out", "raw", SIZE)
    reached = []

    def progress(done):
        reached.append(done)
        if len(reached) == 1:
            raise KeyboardInterrupt

    with (
        open_disk(tmp_path / "source", "raw", read_only=True) as source,
        open_disk(tmp_path / "out", "raw") as target,
    ):
        with pytest.raises(KeyboardInterrupt):
            Copy(source, target, threads=threads, on_progress=progress).run()
        assert target.read(0, reached[-1]) == expected[: reached[-1]]
        Copy(source, target, threads=threads).run(reached[-1])
        assert target.read(0, SIZE) == expected


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_holes_inside_of_clusters_are_not_read(tmp_path, monkeypatch, kind):
    path = tmp_path / f"source.{kind}"
    create_disk(path, kind, 8 * MIB)
    with open_disk(path, kind) as disk:
        for at in range(0, 8 * MIB, MIB):
            disk.write(at + 12 * KIB, NOISE[: 4 * KIB])
    create_disk(tmp_path / "out", "raw", 8 * MIB)
    with open_disk(path, kind, read_only=True) as source, open_disk(tmp_path / "out", "raw") as out:
        file = source.sparse_files()[0]
        assert file.allocated() < file.size
        # The layer knows of clusters; the host of what is in them.
        assert sum(e.length for e in source.block_status() if not e.reads_zero) == 512 * KIB
        assert list(stored(source, 0, source.size)) == [
            (at + 12 * KIB, 4 * KIB, False) for at in range(0, 8 * MIB, MIB)
        ]
        assert list(stored(source, 13 * KIB, 14 * KIB)) == [(13 * KIB, KIB, False)]
        Copy(source, out).run()
        assert out.read(0, out.size) == source.read(0, source.size)
    with path.open("r+b") as full:
        data = full.read()
        full.seek(0)
        full.write(data)
    with open_disk(path, kind, read_only=True) as source:
        assert sum(length for _, length, _ in stored(source, 0, source.size)) == 512 * KIB


def test_the_end_of_a_stretch_of_data_is_looked_for_once(monkeypatch):
    storage = MemoryStorage()
    storage.write(0, NOISE[:MIB])
    storage.truncate(3 * MIB)
    storage.write(2 * MIB, NOISE[:MIB])
    asked = []
    extents = storage.extents
    monkeypatch.setattr(
        storage, "extents", lambda *range_: asked.append(range_) or extents(*range_)
    )
    holes = Holes(storage)
    for at in range(0, MIB, 64 * KIB):
        assert list(holes.extents(at, 64 * KIB)) == [(64 * KIB, True)]
    assert len(asked) == 1
    assert list(holes.extents(MIB - 1, MIB + 3)) == [(1, True), (MIB, False), (2, True)]
    assert list(holes.extents(3 * MIB - 1, 5)) == [(1, True), (4, False)]


def test_workers_return_raise_and_skip():
    begun = threading.Event()
    go = threading.Event()

    def wait():
        begun.set()
        go.wait(10)
        return "waited"

    with Workers(1, "test") as pool:
        slow = pool.submit(wait)
        cancelled = pool.submit(lambda: "never")
        faulty = pool.submit(lambda: 1 // 0)
        begun.wait(10)
        cancelled.cancel()
        go.set()
        assert slow.result() == "waited" and slow.made
        assert cancelled.result() is None and not cancelled.made
        with pytest.raises(ZeroDivisionError):
            faulty.result()
        assert pool.submit(max, 1, 2).result() == 2
