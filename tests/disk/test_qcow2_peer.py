"""qcow2 against qemu-img and qemu-io: each makes what the other reads, changes and checks."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ringzero.disk import Kind, Repair, create_disk, open_disk
from ringzero.disk.formats.qcow2 import compression
from ringzero.errors import DiskLockedError
from tests.disk.lossy import ROUNDS

pytestmark = pytest.mark.peer

SIZE = 8 * 1024 * 1024 + 512

VARIANTS = [
    {},
    {"compat": "0.10"},
    {"compat": "0.10", "cluster_size": "512"},
    {"compat": "0.10", "cluster_size": "2M"},
    # All of them in the long run, the edges and the usual ones in the quick one.
    *[{"cluster_size": str(512 << n)} for n in (range(13) if ROUNDS > 1 else (0, 3, 12))],
    *[{"refcount_bits": str(1 << n)} for n in (range(7) if ROUNDS > 1 else (0, 2, 6))],
    {"cluster_size": "512", "refcount_bits": "64"},
    {"cluster_size": "2M", "refcount_bits": "1"},
    {"lazy_refcounts": "on"},
    {"compression_type": "zstd"},
    {"extended_l2": "on"},
    {"extended_l2": "on", "cluster_size": "16K"},
    {"extended_l2": "on", "cluster_size": "2M", "refcount_bits": "8"},
    {"preallocation": "metadata"},
    {"preallocation": "falloc"},
    {"preallocation": "full", "extended_l2": "on"},
]
every_variant = pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "default"
)


def flags(options):
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


class Model:
    """A byte array and the same writes sent to an image by either program."""

    def __init__(self, size, seed):
        self.bytes = bytearray(size)
        self.dice = random.Random(seed)

    def writes(self, count):
        for _ in range(count):
            length = self.dice.choice([512, 4096, 70_000, 400_000])
            offset = self.dice.randrange(0, len(self.bytes) - length) // 512 * 512
            length = length // 512 * 512
            value = self.dice.choice([0, 0x11, 0x5A, 0xE7])
            self.bytes[offset : offset + length] = bytes([value]) * length
            yield offset, length, value

    def by_ringzero(self, path, count=8):
        with open_disk(path, "qcow2") as disk:
            for offset, length, value in self.writes(count):
                if value:
                    disk.write(offset, bytes([value]) * length)
                else:
                    disk.write_zeroes(offset, length)

    def by_qemu(self, path, qemu_io, count=8):
        commands = []
        for offset, length, value in self.writes(count):
            how = f"-P {value}" if value else "-z"
            commands += ["-c", f"write {how} {offset} {length}"]
        out = qemu_io("-f", "qcow2", *commands, path)
        assert "rror" not in out, out

    def seen_by_ringzero(self, path):
        with open_disk(path, read_only=True) as disk:
            assert disk.read(0, disk.size) == self.bytes
            report = disk.check()
            assert (report.errors, report.leaks) == (0, 0), report.messages

    def seen_by_qemu(self, path, qemu_img):
        model = path.with_suffix(".model")
        model.write_bytes(self.bytes)
        assert "No errors were found" in qemu_img("check", path)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", model, path)


@every_variant
def test_made_by_ringzero(options, tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE, options=options)
    model = Model(SIZE, 1)
    model.seen_by_qemu(path, qemu_img)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)
    model.by_qemu(path, qemu_io)
    model.seen_by_ringzero(path)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)


@every_variant
def test_made_by_qemu(options, tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", *flags(options), path, SIZE)
    model = Model(SIZE, 2)
    model.seen_by_ringzero(path)
    model.by_qemu(path, qemu_io)
    model.seen_by_ringzero(path)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)


@pytest.mark.parametrize("raw", ["off", "on"])
def test_external_data_file(raw, tmp_path, qemu_img, qemu_io):
    for maker in ("ringzero", "qemu"):
        path = tmp_path / f"{maker}.qcow2"
        data = tmp_path / f"{maker}.data"
        options = {"data_file": str(data), "data_file_raw": raw}
        if maker == "ringzero":
            create_disk(path, "qcow2", SIZE, options=options)
        else:
            qemu_img("create", "-f", "qcow2", *flags(options), path, SIZE)
        model = Model(SIZE, 3)
        model.by_ringzero(path)
        model.seen_by_qemu(path, qemu_img)
        model.by_qemu(path, qemu_io)
        model.seen_by_ringzero(path)
        model.by_ringzero(path)
        model.seen_by_qemu(path, qemu_img)
        if raw == "on":
            # QEMU writes the last cluster in full.
            assert data.read_bytes()[:SIZE] == model.bytes


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize(
    ("cluster_size", "more"),
    [("512", {}), ("64K", {}), ("2M", {}), ("64K", {"refcount_bits": "1"})],
    ids=str,
)
def test_compressed(kind, cluster_size, more, tmp_path, request):
    qemu_img, qemu_io = map(request.getfixturevalue, ("qemu_img", "qemu_io"))
    dice = random.Random(5)
    size = SIZE // 8 // 512 * 512 if cluster_size == "512" else SIZE
    data = bytearray(size)
    for at in range(0, size - 200_000, 300_000):
        data[at : at + 150_000] = dice.randbytes(300) * 500
        data[at + 150_000 : at + 190_000] = dice.randbytes(40_000)
    raw = tmp_path / "raw"
    raw.write_bytes(data)
    options = {"compression_type": kind, "cluster_size": cluster_size, **more}
    theirs, ours = tmp_path / "theirs.qcow2", tmp_path / "ours.qcow2"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *flags(options), raw, theirs)
    create_disk(ours, "qcow2", size, options=options)
    with open_disk(ours) as disk:
        writer = disk.compression
        for at in range(0, size, writer.unit):
            piece = bytes(data[at : at + writer.unit])
            packed = writer.pack(piece)
            if packed is None:
                disk.write(at, piece)
            elif any(piece):
                writer.store(at, packed)
    for path in (theirs, ours):
        with open_disk(path, read_only=True) as disk:
            kinds = {extent.kind for extent in disk.block_status()}
            assert Kind.COMPRESSED in kinds
            assert all(e.host is None for e in disk.block_status() if e.kind is Kind.COMPRESSED)
        model = Model(size, 6)
        model.bytes[:] = data
        model.seen_by_ringzero(path)
        model.seen_by_qemu(path, qemu_img)
        model.by_ringzero(path, 6)
        model.seen_by_qemu(path, qemu_img)
        model.by_qemu(path, qemu_io, 6)
        model.seen_by_ringzero(path)
        with open_disk(path) as disk:
            disk.make_empty()
            assert disk.check().clean
        model.bytes[:] = bytes(size)
        model.seen_by_qemu(path, qemu_img)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "0.10"},
        {"cluster_size": "512"},
        {"extended_l2": "on"},
        {"refcount_bits": "4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("maker", ["ringzero", "qemu"])
def test_snapshots(options, maker, tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", *flags(options), path, SIZE)
    model = Model(SIZE, 7)

    def create(name):
        if maker == "qemu":
            qemu_img("snapshot", "-c", name, path)
        else:
            with open_disk(path) as disk:
                assert disk.snapshots.create(name).name == name

    def apply(name):
        if maker == "ringzero":
            qemu_img("snapshot", "-a", name, path)
        else:
            with open_disk(path) as disk:
                disk.snapshots.apply(name)

    model.by_ringzero(path)
    create("one")
    model.seen_by_qemu(path, qemu_img)
    model.seen_by_ringzero(path)
    first = bytes(model.bytes)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)
    create("two")
    second = bytes(model.bytes)
    model.by_qemu(path, qemu_io)
    model.seen_by_ringzero(path)
    apply("one")
    model.bytes[:] = first
    model.seen_by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)
    apply("two")
    model.bytes[:] = second
    model.seen_by_qemu(path, qemu_img)
    with open_disk(path) as disk:
        assert [snapshot.name for snapshot in disk.snapshots.list()] == ["one", "two"]
        disk.snapshots.delete("one")
        assert disk.check().clean
    qemu_img("snapshot", "-d", "two", path)
    model.seen_by_qemu(path, qemu_img)
    model.seen_by_ringzero(path)
    with open_disk(path) as disk:
        assert not disk.snapshots.list()


def test_chain(tmp_path, qemu_img, qemu_io):
    model = Model(SIZE, 8)
    layers = [tmp_path / f"layer{n}.qcow2" for n in range(5)]
    create_disk(layers[0], "qcow2", SIZE)
    for n, path in enumerate(layers):
        if n and n % 2:
            create_disk(path, "qcow2", backing=layers[n - 1].name, backing_format="qcow2")
        elif n:
            qemu_img("create", "-f", "qcow2", "-b", layers[n - 1].name, "-F", "qcow2", path)
        model.by_ringzero(path, 5)
        model.by_qemu(path, qemu_io, 5)
        model.seen_by_ringzero(path)
        model.seen_by_qemu(path, qemu_img)
    with open_disk(layers[-1], read_only=True) as disk:
        assert len(disk.chain()) == 5
        told = json.loads(qemu_img("map", "--output=json", layers[-1]))
        ours = {}
        for extent in disk.block_status():
            for at in range(extent.offset, extent.offset + extent.length, 512):
                ours[at] = (extent.reads_zero, extent.host)
        for entry in told:
            for at in range(entry["start"], entry["start"] + entry["length"], 512):
                zero, host = ours[at]
                if entry["data"]:
                    assert not zero
                    assert host is not None
                else:
                    assert zero


def test_resize(tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE, options={"cluster_size": "1K"})
    model = Model(SIZE, 9)
    model.by_ringzero(path)
    with open_disk(path) as disk:
        disk.resize(SIZE * 40)
    model.bytes.extend(bytes(SIZE * 39))
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)
    with open_disk(path) as disk:
        disk.resize(SIZE // 1024 * 512)
    del model.bytes[SIZE // 1024 * 512 :]
    model.seen_by_qemu(path, qemu_img)
    qemu_img("resize", path, SIZE)
    model.bytes.extend(bytes(SIZE - len(model.bytes)))
    model.by_qemu(path, qemu_io)
    model.seen_by_ringzero(path)


def test_bitmaps_stay_true(tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE)
    model = Model(SIZE, 10)
    model.by_ringzero(path)
    qemu_img("bitmap", "--add", "-g", "64K", path, "on")
    qemu_img("bitmap", "--add", "--disable", "-g", "4K", path, "off")
    with open_disk(path) as disk:
        disk.write(1_000_000, b"x" * 200_000)
        disk.flush()
        # "in use": what it holds is not to be relied on until the disk is closed.
        told = json.loads(qemu_img("info", "-U", "--output=json", path))
        flags = {b["name"]: b["flags"] for b in told["format-specific"]["data"]["bitmaps"]}
        assert "in-use" in flags["on"]
        assert "in-use" not in flags["off"]
    model.bytes[1_000_000:1_200_000] = b"x" * 200_000
    model.seen_by_qemu(path, qemu_img)
    model.seen_by_ringzero(path)
    told = json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]["bitmaps"]
    assert {(b["name"], tuple(b["flags"])) for b in told} == {("on", ("auto",)), ("off", ())}
    qemu_img("bitmap", "--merge", "on", path, "off")
    with open_disk(path) as disk:
        bitmaps = {bitmap.name: bitmap for bitmap in disk.bitmaps.read()}
        table = disk.bitmaps.table(bitmaps["on"])
        page = disk.storage.read(table.items[0], disk.cluster_size)
    dirty = {n for n in range(len(page) * 8) if page[n // 8] >> n % 8 & 1}
    assert dirty == set(range(1_000_000 >> 16, (1_199_999 >> 16) + 1))


def test_lazy_refcounts_of_a_crashed_qemu(tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", path, SIZE)
    qemu_io("-c", "write -P 0x33 0 300k", "-c", "flush", "-c", "abort", path, check=False)
    with open_disk(path, read_only=True) as disk:
        assert disk.info().dirty
    with open_disk(path) as disk:
        assert not disk.info().dirty
        assert disk.read(0, 300 * 1024) == b"\x33" * (300 * 1024)
        assert disk.check().clean
    assert "No errors were found" in qemu_img("check", path)


def test_repair_of_leaks_and_errors(tmp_path, qemu_img):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE)
    model = Model(SIZE, 11)
    model.by_ringzero(path)
    with open_disk(path, read_only=True) as disk:
        block = disk.refcounts.table.items[0]
    with path.open("r+b") as file:
        file.seek(block + 2 * 5)
        file.write(b"\0\0\0\0\0\0")
        file.seek(block + 2 * 3000)
        file.write(b"\0\1\0\1")
    with open_disk(path, options={"for_repair": True}) as disk:
        report = disk.check()
        assert report.errors >= 3
        assert report.leaks == 2
        assert disk.check(Repair.LEAKS).leaks_fixed == 2
        assert disk.check(Repair.ALL).clean
        assert disk.check().clean
    model.seen_by_qemu(path, qemu_img)
    with path.open("r+b") as file:
        file.seek(65536)
        file.write(bytes(65536))
    with open_disk(path, options={"for_repair": True}) as disk:
        assert disk.check().errors
        assert disk.check(Repair.ALL).clean
    model.seen_by_qemu(path, qemu_img)
    model.by_ringzero(path)
    model.seen_by_qemu(path, qemu_img)


@pytest.mark.parametrize("step", ["counted", "retagged"])
def test_a_snapshot_that_was_cut_short_leaves_leaks(step, tmp_path, qemu_img):
    """Version 2 cannot say that it was being changed, so nothing is put right at opening."""
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE, options={"compat": "0.10", "cluster_size": "4K"})
    model = Model(SIZE, 12)
    model.by_ringzero(path)
    with open_disk(path) as disk:
        snapshots = disk.snapshots
        if step == "retagged":
            snapshots.create("one")
            table = disk.map.l1.items
            snapshots._write_table([])
            snapshots._count(table, -1)
        else:
            snapshots._count(disk.map.l1.items, 1)
    with open_disk(path) as disk:
        report = disk.check()
        assert report.leaks
        assert not report.errors
        assert disk.check(Repair.LEAKS).clean
        assert disk.check().clean
    model.seen_by_qemu(path, qemu_img)


def test_threads_that_begin_to_compress_at_once_share_one_place(tmp_path, monkeypatch):
    """Two of them once had a place each, and one of those was the header's."""
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE, options={"cluster_size": "4K"})
    build = compression.Qcow2Compression.__init__

    def slow(self, disk):
        time.sleep(0.05)
        build(self, disk)

    monkeypatch.setattr(compression.Qcow2Compression, "__init__", slow)
    with open_disk(path) as disk:
        ready = threading.Barrier(4)

        def work(number):
            ready.wait()
            writer = disk.compression
            for at in range(number * 64, number * 64 + 64):
                writer.store(at * 4096, writer.pack(bytes([number + 1]) * 4096))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert disk.check().clean
    with open_disk(path, read_only=True) as disk:
        for number in range(4):
            assert disk.read(number * 64 * 4096, 64 * 4096) == bytes([number + 1]) * (64 * 4096)


def test_locks_are_those_of_qemu(tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", SIZE)
    with open_disk(path):
        assert "lock" in qemu_img("info", path, check=False)
        assert "lock" in qemu_io("-c", "write 0 512", path, check=False)
        qemu_img("info", "-U", path)
    with open_disk(path, read_only=True):
        qemu_img("info", path)
        assert "lock" in qemu_io("-c", "write 0 512", path, check=False)
    for flags, readable in (([], False), (["-r"], True)):
        command = ["qemu-io", *flags, "-f", "qcow2", "-c", "sleep 20000", str(path)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as holder:
            try:
                wait_for_lock(path)
                with pytest.raises(DiskLockedError, match="in use"):
                    open_disk(path)
                if readable:
                    open_disk(path, read_only=True).close()
                else:
                    with pytest.raises(DiskLockedError, match="in use"):
                        open_disk(path, read_only=True)
                    open_disk(path, read_only=True, lock=False).close()
            finally:
                holder.kill()
    open_disk(path).close()


def wait_for_lock(path):
    """Wait until another process has the image open."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            open_disk(path).close()
        except DiskLockedError:
            return
        time.sleep(0.01)
    raise AssertionError("nobody has locked the image")
