"""Hostile images and names: a clear error, bounded memory and time, no other file touched."""

from __future__ import annotations

import os
import random
import struct
import time
import zlib

import pytest

from ringzero.disk import Repair, create_disk, open_disk
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskUnsupportedError,
    NotFoundError,
    RingzeroError,
)
from tests.disk.flavours import FLAVOURS
from tests.disk.lossy import ROUNDS, LossyStorage, create_in, open_in

MIB = 1 << 20


def patched(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", 4 * MIB)
    with open_disk(path) as disk:
        disk.write(0, b"data" * 50_000)
    return path


HEADERS = {
    "version 9": (4, ">I", 9),
    "cluster_bits 8": (20, ">I", 8),
    "cluster_bits 22": (20, ">I", 22),
    "cluster_bits huge": (20, ">I", 0xFFFFFFFF),
    "size 2^63": (24, ">Q", 1 << 63),
    "size 2^64-1": (24, ">Q", (1 << 64) - 1),
    "size beyond L1": (24, ">Q", 1 << 50),
    "AES": (32, ">I", 1),
    "LUKS": (32, ">I", 2),
    "crypt 77": (32, ">I", 77),
    "l1_size 0": (36, ">I", 0),
    "l1_size huge": (36, ">I", 0xFFFFFFFF),
    "l1 misaligned": (40, ">Q", 513),
    "l1 beyond": (40, ">Q", (1 << 64) - 65536),
    "reftable misaligned": (48, ">Q", 1),
    "reftable huge": (56, ">I", 0xFFFFFFFF),
    "snapshots huge": (60, ">I", 0xFFFFFFFF),
    "unknown feature": (72, ">Q", 1 << 40),
    "refcount_order 7": (96, ">I", 7),
    "header_length 8": (100, ">I", 8),
    "header_length huge": (100, ">I", 0xFFFFFFF8),
    "compression 9": (104, ">B", 9),
    "backing beyond": (8, ">QI", 1 << 40, 20),
    "backing long": (8, ">QI", 500, 5000),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("read_only", [True, False])
def test_qcow2_headers_are_refused(name, read_only, image):
    offset, form, *values = HEADERS[name]
    patched(image, offset, struct.pack(form, *values))
    before = image.read_bytes()
    with pytest.raises((DiskFormatError, DiskUnsupportedError)) as caught:
        open_disk(image, "qcow2", read_only=read_only)
    assert "disk.qcow2" in caught.value.message
    assert image.read_bytes() == before


def test_unknown_feature_is_refused_by_its_name(image):
    header = image.read_bytes()[:65536]
    at = header.index(struct.pack(">I", 0x6803F857)) + 8
    patched(image, at, struct.pack(">BB46s", 0, 50, b"time travel"))
    patched(image, 72, struct.pack(">Q", 1 << 50))
    with pytest.raises(DiskUnsupportedError, match="time travel"):
        open_disk(image)


def test_luks_is_refused_by_name(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"LUKS\xba\xbe\0\2".ljust(MIB, b"\0"))
    with pytest.raises(DiskUnsupportedError, match="LUKS"):
        open_disk(path)
    with pytest.raises(DiskUnsupportedError):
        create_disk(tmp_path / "new", "luks", MIB)
    assert not (tmp_path / "new").exists()


def test_corrupt_images_are_opened_for_reading_only(image):
    patched(image, 72, struct.pack(">Q", 2))
    with pytest.raises(DiskFormatError, match="corrupt"):
        open_disk(image)
    with open_disk(image, read_only=True) as disk:
        assert disk.info().corrupt
        assert disk.read(0, 4) == b"data"


def test_unknown_autoclear_bits_are_cleared_by_the_first_writer(image):
    patched(image, 88, struct.pack(">Q", 1 << 20))
    open_disk(image, read_only=True).close()
    assert image.read_bytes()[88:96] == struct.pack(">Q", 1 << 20)
    open_disk(image).close()
    assert image.read_bytes()[88:96] == bytes(8)


def test_a_raw_image_is_not_guessed_for_writing(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    with pytest.raises(DiskFormatError, match="no known format"):
        open_disk(path)
    with open_disk(path, read_only=True) as disk:
        assert disk.format == "raw"


def test_l2_entry_far_away_makes_no_huge_file(image):
    """A guest that writes there must not get a file of petabytes."""
    with open_disk(image, read_only=True) as disk:
        table = disk.map.table(0).offset
    patched(image, table, struct.pack(">Q", 1 << 63 | 1 << 54))
    with open_disk(image) as disk:
        assert disk.read(0, 512) == bytes(512)
        disk.write(0, b"x" * 512)
        assert disk.read(0, 512) == b"x" * 512
        assert disk.read(512, 512) == bytes(512)
    assert image.stat().st_size < 10 * MIB


METADATA = {
    "the header": lambda disk: 0,
    "the L1 table": lambda disk: disk.header.l1_offset,
    "the L2 table": lambda disk: disk.map.table(0).offset,
    "the refcount table": lambda disk: disk.header.reftable_offset,
    "a refcount block": lambda disk: disk.refcounts.table.items[0],
    "the snapshots": lambda disk: disk.header.snapshots_offset,
}


@pytest.mark.parametrize("name", METADATA)
def test_data_never_lands_on_metadata(name, image):
    """An L2 entry that leads there, and counts that call it free."""
    with open_disk(image) as disk:
        disk.snapshots.create("one")
        disk.write(0, b"own" * 100_000)
    with open_disk(image, read_only=True) as disk:
        table, place = disk.map.table(0).offset, METADATA[name](disk)
        block = disk.refcounts.table.items[0]
    whole = image.read_bytes()
    # Without the offset (the header) an entry says that nothing is there.
    if place:
        patched(image, table + 8, struct.pack(">Q", 1 << 63 | place))
        before = image.read_bytes()
        with open_disk(image) as disk, pytest.raises(DiskFormatError, match="over the metadata"):
            disk.write(65536 + 512, b"x" * 512)
        with open_disk(image) as disk, pytest.raises(DiskFormatError, match="over the metadata"):
            disk.write(65536, b"x" * 65536)
        assert image.read_bytes() == before
    image.write_bytes(whole)
    patched(image, block + 2 * (place >> 16), bytes(2))
    with open_disk(image) as disk, pytest.raises(DiskFormatError, match="over the metadata"):
        for at in range(8, 60):
            disk.write(at * 65536, b"x" * 65536)
    now = image.read_bytes()
    assert now[place : place + 512] == whole[place : place + 512] or name in (
        # These change with the writes before.
        "the L2 table",
        "a refcount block",
    )
    with open_disk(image, options={"for_repair": True}) as disk:
        assert disk.check(Repair.ALL).clean
    with open_disk(image) as disk:
        assert disk.read(0, 300_000) == b"own" * 100_000


def test_compressed_bombs_are_bounded(tmp_path):
    for method, packed in (
        ("zlib", zlib.compress(bytes(200 * MIB), 9)[2:-4]),
        ("zstd", _zstd_bomb()),
    ):
        path = tmp_path / f"{method}.qcow2"
        create_disk(path, "qcow2", 4 * MIB, options={"compression_type": method})
        with open_disk(path) as disk:
            disk.compression.store(0, packed[:60_000])
        begun = time.monotonic()
        with open_disk(path, read_only=True) as disk:
            assert disk.read(0, 65536) == bytes(65536)
        assert time.monotonic() - begun < 5


def _zstd_bomb():
    import zstandard

    return zstandard.ZstdCompressor(level=19).compress(bytes(50 * MIB))


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 3000, b"\0" * 3000])
def test_broken_compressed_cluster(garbage, image):
    with open_disk(image) as disk:
        disk.compression.store(0, garbage or b"\x03")
        with pytest.raises(DiskFormatError, match="compressed cluster"):
            disk.read(0, 512)


def with_backing(path, name, format_name="raw"):
    create_disk(
        path,
        "qcow2",
        MIB,
        backing=name,
        backing_format=format_name,
        check_backing=False,
        overwrite=True,
    )


@pytest.mark.parametrize(
    "name",
    [
        "/dev/null",
        "/dev/zero",
        "/dev/mem",
        "/proc/self/environ",
        "/sys/kernel/notes",
        "../../../../../../etc/shadow",
        "/etc/passwd",
        "nbd://localhost/disk",
        "https://example.invalid/disk",
        'json:{"driver":"nbd","host":"x"}',
        'json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/null"}}',
        'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
        "json:" + "[" * 900,
        "fat:rw:/etc",
    ],
)
@pytest.mark.parametrize("format_name", ["raw", "qcow2"])
def test_backing_names_of_other_files_are_refused(name, format_name, tmp_path):
    with_backing(tmp_path / "top", name, format_name)
    with pytest.raises((DiskError, NotFoundError)) as caught:
        open_disk(tmp_path / "top")
    assert caught.value.kind in ("disk", "disk-format", "disk-unsupported", "not-found")
    with open_disk(tmp_path / "top", backing=False) as disk:
        assert disk.info().backing_filename == name


def test_fifo_as_backing_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with_backing(tmp_path / "top", "fifo")
    with pytest.raises(DiskError, match="special file"):
        open_disk(tmp_path / "top")


def test_link_out_of_the_directory_is_followed_before_it_is_judged(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret".ljust(512))
    (tmp_path / "in" / "base").symlink_to("../secret")
    with_backing(tmp_path / "in" / "top", "base")
    with pytest.raises(DiskError, match="outside its directory"):
        open_disk(tmp_path / "in" / "top")
    with open_disk(tmp_path / "in" / "top", backing_roots=[tmp_path]) as disk:
        assert disk.read(0, 6) == b"secret"


def test_disk_images_elsewhere_are_allowed_when_they_are_ours(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    create_disk(tmp_path / "b" / "base", "qcow2", MIB)
    with_backing(tmp_path / "a" / "top", "../b/base", "qcow2")
    with open_disk(tmp_path / "a" / "top") as disk:
        assert len(disk.chain()) == 2
    if os.geteuid() == 0:
        os.chown(tmp_path / "b" / "base", 12345, 12345)
        with pytest.raises(DiskError, match="somebody else"):
            open_disk(tmp_path / "a" / "top")
        monkeypatch.setenv("RINGZERO_BACKING_DIRS", str(tmp_path / "b"))
        open_disk(tmp_path / "a" / "top").close()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_chains_that_loop(length, tmp_path):
    for n in range(length):
        with_backing(tmp_path / str(n), str((n + 1) % length), "qcow2")
    with pytest.raises(DiskFormatError, match="one of the layers above"):
        open_disk(tmp_path / "0")


def test_chain_without_end(tmp_path):
    for n in range(150):
        with_backing(tmp_path / str(n), str(n + 1), "qcow2")
    create_disk(tmp_path / "150", "qcow2", MIB)
    with pytest.raises(DiskFormatError, match="more than 100"):
        open_disk(tmp_path / "0")


def test_the_longest_chain_works(tmp_path):
    create_disk(tmp_path / "0", "qcow2", MIB)
    with open_disk(tmp_path / "0") as disk:
        disk.write(0, b"bottom")
    for n in range(1, 100):
        with_backing(tmp_path / str(n), str(n - 1), "qcow2")
    with open_disk(tmp_path / "99") as disk:
        assert disk.read(0, 6) == b"bottom"
        assert next(disk.block_status()).depth == 99
        disk.write(1000, b"top")
        assert disk.read(0, 6) == b"bottom"


def test_data_file_elsewhere_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "disk"
    create_disk(path, "qcow2", MIB, options={"data_file": "data"})
    victim = tmp_path / "sth"
    victim.write_bytes(b"precious")
    whole = path.read_bytes()
    patched(path, whole.index(b"data", 112), b"../s")
    at = whole.index(struct.pack(">I", 0x44415441)) + 4
    patched(path, at, struct.pack(">I", 6))
    patched(path, at + 4, b"../sth")
    with pytest.raises(DiskError, match="outside its directory"):
        open_disk(path)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if "data_file" not in f.options], ids=str)
def test_mutated_images(flavour):
    """Fuzz: flipped, copied and cut metadata. Any outcome but a RingzeroError or success fails."""
    if flavour.format not in ("raw", "qcow2"):
        pytest.skip("these formats have their own targets")
    base = LossyStorage()
    create_in(base, flavour.format, MIB, flavour.options)
    disk = open_in(base, flavour.format)
    disk.write(1000, b"x" * 300_000)
    if disk.snapshots is not None and flavour.options.get("refcount_bits") != "1":
        disk.snapshots.create("one")
        disk.write(0, b"y" * 100_000)
    disk.flush()
    disk.close()
    # Data of the guest is of no interest: aim at what is not "x" or "y".
    good = bytes(base.now)
    aims = [n for n in range(0, len(good), 8) if good[n : n + 8].strip(b"xy\0")]
    dice = random.Random(1)
    begun = time.monotonic()
    rounds = 10 if flavour.options.get("cluster_size") == "2M" else 60
    for _ in range(rounds * ROUNDS):
        bad = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at = dice.choice(aims or [0]) + dice.randrange(8)
            how = dice.randrange(4)
            if how == 0:
                bad[at] ^= 1 << dice.randrange(8)
            elif how == 1:
                bad[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif how == 2:
                source = dice.choice(aims or [0])
                bad[at // 8 * 8 : at // 8 * 8 + 8] = good[source : source + 8]
            else:
                bad[at // 8 * 8 : at // 8 * 8 + 8] = dice.randbytes(8)
        if dice.random() < 0.1:
            del bad[dice.randrange(len(bad)) :]
        _exercise(bytes(bad), flavour.format, dice)
    assert time.monotonic() - begun < 60 * ROUNDS


def _exercise(content, format_name, dice):
    read_only = dice.random() < 0.5
    storage = LossyStorage(content)
    steps = [
        lambda d: [d.read(at, min(65536, d.size - at)) for at in range(0, min(d.size, MIB), 65536)],
        lambda d: list(zip(d.block_status(), range(1000), strict=False)),
        lambda d: d.info(),
        lambda d: d.check(),
        lambda d: d.write(0, b"z" * min(d.size, 70_000)),
        lambda d: d.write_zeroes(0, min(d.size, 200_000)),
        lambda d: d.snapshots and d.snapshots.create("two"),
        lambda d: d.flush(),
        lambda d: d.close(),
    ]
    try:
        disk = open_in(storage, format_name, read_only=read_only)
    except RingzeroError:
        return
    for step in steps:
        try:
            step(disk)
        except RingzeroError:
            continue
    assert len(storage.now) < len(content) + 64 * MIB
    if read_only:
        assert bytes(storage.now) == content
