"""QED and Parallels images, which are only read: against qemu-img, by hand, and broken."""

from __future__ import annotations

import json
import random
import struct
import subprocess

import pytest

from ringzero.disk import Kind, Repair, create_disk, open_disk, qemujson
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskReadOnlyError,
    DiskUnsupportedError,
    RingzeroError,
)
from tests.disk.lossy import ROUNDS, LossyStorage, open_in

MIB = 1 << 20
SIZE = 24 * MIB + 512 * 7


def qed(size=MIB, cluster=4096, tables=1, features=0, l1=None, entries=(), backing=b"", head=1):
    """Return a QED image of one L2 table; `entries` are clusters' offsets, in clusters."""
    l1 = head * cluster if l1 is None else l1
    header = struct.pack(
        "<4sIIIQQQQQII", b"QED\0", cluster, tables, head, features, 0, 0, l1, size, 64,
        len(backing),
    )  # fmt: skip
    l2 = (head + tables) * cluster
    image = bytearray((header + backing).ljust(head * cluster, b"\0"))
    image += struct.pack("<Q", l2).ljust(tables * cluster, b"\0")
    offsets = [n * cluster if n > 1 else n for n in entries]
    image += struct.pack(f"<{len(offsets)}Q", *offsets).ljust(tables * cluster, b"\0")
    for number in range(len(image) // cluster, max([*entries, 0]) + 1):
        image += bytes([number]) * cluster
    return bytes(image)


def parallels(entries, magic=b"WithouFreSpacExt", tracks=8, sectors=None, version=2, length=40):
    """Return a Parallels image whose table is `entries`; the file has `length` sectors."""
    sectors = len(entries) * tracks if sectors is None else sectors
    header = struct.pack(
        "<16sIIIIIQIIIQ", magic, version, 16, 1, tracks, len(entries), sectors, 0, tracks, 0, 0
    )
    image = header + struct.pack(f"<{len(entries)}I", *entries)
    return image + b"".join(
        bytes([at]) * (512 - (len(image) % 512 if at == len(image) // 512 else 0))
        for at in range(len(image) // 512, length)
    )


def opened(tmp_path, data, kind, **more):
    path = tmp_path / f"disk.{kind}"
    path.write_bytes(data)
    return open_disk(path, kind, read_only=True, **more)


def test_qed_entries(tmp_path):
    with opened(tmp_path, qed(entries=(3, 1, 0, 5, 4)), "qed") as disk:
        assert disk.size == MIB
        assert disk.cluster_size == 4096
        assert disk.read(0, 5 * 4096) == b"".join(bytes([n]) * 4096 for n in (3, 0, 0, 5, 4))
        assert disk.read(4095, 2) == b"\x03\0"
        assert disk.read(5 * 4096, 4096) == bytes(4096)
        kinds = [(e.kind, e.length) for e in disk.block_status(0, 8 * 4096)]
        assert kinds == [
            (Kind.DATA, 4096), (Kind.ZERO, 4096), (Kind.ABSENT, 4096), (Kind.DATA, 4096),
            (Kind.DATA, 4096), (Kind.ABSENT, 3 * 4096),
        ]  # fmt: skip


def test_qed_over_a_backing_file(tmp_path):
    (tmp_path / "base").write_bytes(b"B" * MIB)
    with opened(tmp_path, qed(entries=(3, 1), features=5, backing=b"base"), "qed") as disk:
        assert disk.backing.format == "raw"
        assert disk.read(0, 3 * 4096) == b"\x03" * 4096 + bytes(4096) + b"B" * 4096
        assert disk.info().backing_format == "raw"
    with opened(
        tmp_path, qed(entries=(3,), features=1, backing=b"base"), "qed", backing=False
    ) as disk:
        assert disk.read(4096, 4) == bytes(4)


def test_qed_that_was_not_closed_is_read(tmp_path):
    with opened(tmp_path, qed(entries=(3,), features=2), "qed") as disk:
        assert disk.info().dirty
        assert disk.read(0, 1) == b"\x03"


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 8}, {"cluster": 2048}, {"cluster": 128 * MIB}, {"cluster": 4097},
        {"tables": 3}, {"tables": 32}, {"size": 1000}, {"size": 1 << 40}, {"l1": 512},
        {"l1": 1 << 40}, {"l1": 0}, {"head": 0},
    ],
    ids=str,
)  # fmt: skip
def test_qed_headers_that_make_no_sense(wrong, tmp_path):
    good = {"entries": (3,)}
    if wrong.get("cluster", 4096) > MIB or wrong.get("tables", 1) > 16 or "head" in wrong:
        data = bytearray(qed(**good))
        at = {"cluster": 4, "tables": 8, "head": 12}[next(iter(wrong))]
        struct.pack_into("<I", data, at, next(iter(wrong.values())))
    else:
        data = qed(**good, **wrong)
    with pytest.raises((DiskFormatError, DiskUnsupportedError)):
        opened(tmp_path, bytes(data), "qed")


@pytest.mark.parametrize("entry", [0x1234, 1 << 50, 4096 * 900])
def test_qed_entries_outside_the_file(entry, tmp_path):
    data = bytearray(qed(entries=(3, 4)))
    struct.pack_into("<Q", data, 2 * 4096 + 8, entry)
    with opened(tmp_path, bytes(data), "qed") as disk:
        assert disk.read(0, 1) == b"\x03"
        with pytest.raises(DiskFormatError, match="outside"):
            disk.read(4096, 1)
    struct.pack_into("<Q", data, 4096, entry)
    with opened(tmp_path, bytes(data), "qed") as disk, pytest.raises(DiskFormatError):
        disk.read(0, 1)


@pytest.mark.parametrize(
    ("magic", "entries"),
    [(b"WithouFreSpacExt", (2, 0, 1)), (b"WithoutFreeSpace", (16, 0, 8))],
    ids=["in clusters", "in sectors"],
)
def test_parallels_entries(magic, entries, tmp_path):
    with opened(tmp_path, parallels(entries, magic), "parallels") as disk:
        expected = b"".join(bytes([n]) * 512 for n in range(16, 24))
        assert disk.read(0, 4096) == expected
        assert disk.read(4096, 4096) == bytes(4096)
        assert disk.read(8192, 512) == b"\x08" * 512
        assert disk.cluster_size == 4096


def test_parallels_of_any_cluster_and_any_size(tmp_path):
    data = parallels((63, 0, 126), b"WithoutFreeSpace", tracks=63, sectors=150, length=200)
    with opened(tmp_path, data, "parallels") as disk:
        assert disk.size == 150 * 512
        assert disk.read(0, 512) == bytes([63]) * 512
        assert disk.read(149 * 512, 512) == bytes([126 + 149 - 126]) * 512
    # The upper half of the disk's size did not count then.
    data = parallels((63,), b"WithoutFreeSpace", tracks=63, sectors=(7 << 32) + 63, length=200)
    with opened(tmp_path, data, "parallels") as disk:
        assert disk.size == 63 * 512


@pytest.mark.parametrize(
    "wrong",
    [{"version": 3}, {"tracks": 0}, {"tracks": 1 << 23}, {"sectors": 9999}, {"sectors": 1 << 60}],
    ids=str,
)
def test_parallels_headers_that_make_no_sense(wrong, tmp_path):
    data = bytearray(parallels((1, 2)))
    for name, value in wrong.items():
        form, at = {"version": ("<I", 16), "tracks": ("<I", 28), "sectors": ("<Q", 36)}[name]
        struct.pack_into(form, data, at, value)
    with pytest.raises((DiskFormatError, DiskUnsupportedError)):
        opened(tmp_path, bytes(data), "parallels")


def test_parallels_entries_outside_the_file(tmp_path):
    for entry in (0xFFFF_FFFF, 100):
        disk = opened(tmp_path, parallels((2, entry)), "parallels")
        with disk, pytest.raises(DiskFormatError, match="outside"):
            disk.read(4096, 1)
    with pytest.raises(DiskFormatError):
        opened(tmp_path, parallels((2, 1))[:70], "parallels")


@pytest.mark.parametrize("kind", ["qed", "parallels"])
def test_only_read(kind, tmp_path):
    data = qed(entries=(3,)) if kind == "qed" else parallels((1, 2))
    path = tmp_path / "disk"
    path.write_bytes(data)
    with pytest.raises(DiskReadOnlyError, match="only read"):
        open_disk(path)
    with open_disk(path, read_only=True) as disk:
        assert disk.format == kind
        for change in (
            lambda: disk.write(0, b"x"),
            lambda: disk.write_zeroes(0, 512),
            lambda: disk.discard(0, 512),
            lambda: disk.resize(512),
            lambda: disk.change_backing("x", "raw"),
        ):
            with pytest.raises(DiskReadOnlyError):
                change()
        disk.flush()
        assert disk.check().errors == 0
    with pytest.raises(DiskUnsupportedError, match="does not create"):
        create_disk(tmp_path / "new", kind, MIB)
    assert not (tmp_path / "new").exists()
    assert path.read_bytes() == data
    create_disk(tmp_path / "top", "qcow2", backing="disk")
    with open_disk(tmp_path / "top") as disk:
        disk.write(0, b"over")
        assert disk.read(0, 5) == b"over" + data[3 * 4096 : 3 * 4096 + 1] if kind == "qed" else True


@pytest.mark.parametrize("kind", ["qed", "parallels"])
def test_mutated_images(kind):
    """An error or some bytes, in bounded time, whatever the headers and tables say."""
    dice = random.Random(11)
    whole = qed(entries=(3, 1, 0, 4)) if kind == "qed" else parallels((2, 0, 1, 3))
    room = 3 * 4096 if kind == "qed" else 128
    for _ in range(150 * ROUNDS):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 5)):
            data[dice.choice([dice.randrange(96), dice.randrange(room)])] = dice.randrange(256)
        storage = LossyStorage(bytes(data[: dice.choice([len(data)] * 3 + [3000])]))
        try:
            disk = open_in(storage, kind, read_only=True)
            for at in (0, 4096, disk.size // 2, disk.size - 512):
                if 0 <= at < disk.size:
                    disk.read(at, min(disk.size - at, 20_000))
        except RingzeroError:
            continue
        assert storage.now == data[: len(storage.now)]


def counts(report):
    return (
        report.errors, report.leaks, report.allocated_clusters, report.fragmented_clusters,
        report.total_clusters,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (qed(entries=(3, 1, 0, 4, 6, 5)), (0, 0, 4, 2, 256)),
        # Cluster 4 is nobody's, 3 is named twice.
        (qed(entries=(3, 3, 5)), (1, 1, 3, 2, 256)),
        # The table itself is named as data; outside the file; misaligned.
        (qed(entries=(2, 3)), (1, 0, 2, 0, 256)),
        (qed(entries=(3,)) + bytes(4097), (0, 1, 1, 0, 256)),
        (qed(entries=(3, 4))[: 4 * 4096], (1, 0, 2, 0, 256)),
    ],
)
def test_check_of_qed(image, expected, tmp_path):
    with opened(tmp_path, image, "qed") as disk:
        assert counts(disk.check()) == expected


def test_check_of_qed_tables(tmp_path):
    image = bytearray(qed(entries=(3,)))
    # Two entries for one L2 table, one outside the file, one inside a cluster.
    image[4096:4128] = struct.pack("<4Q", 8192, 8192, 1 << 40, 8193)
    with opened(tmp_path, bytes(image), "qed") as disk:
        assert counts(disk.check()) == (3, 0, 1, 0, 256)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (parallels((1, 2, 0, 3), length=32), (0, 0, 3, 0, 4)),
        (parallels((2, 1, 0, 3), length=32), (0, 0, 3, 1, 4)),
        (parallels((1, 1, 0, 0), length=16), (1, 0, 2, 1, 4)),
        (parallels((1, 9, 0, 0), length=17), (1, 1, 1, 0, 4)),
        (parallels((0, 0), length=8), (0, 0, 0, 0, 2)),
    ],
)
def test_check_of_parallels(image, expected, tmp_path):
    with opened(tmp_path, image, "parallels") as disk:
        assert counts(disk.check()) == expected
    with opened(tmp_path, image[:44] + b"Ynot" + image[48:], "parallels") as disk:
        assert disk.check().errors == expected[0] + 1


@pytest.mark.parametrize("kind", ["qed", "parallels"])
def test_they_are_checked_and_not_mended(kind, tmp_path):
    data = qed(entries=(3,)) if kind == "qed" else parallels((1, 2))
    with opened(tmp_path, data, kind) as disk, pytest.raises(DiskReadOnlyError):
        disk.check(Repair.ALL)


# ---- against qemu-img -----------------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qed", []),
        ("qed", ["-o", "cluster_size=4096,table_size=8"]),
        ("qed", ["-o", "cluster_size=1M,table_size=16"]),
        ("parallels", []),
        ("parallels", ["-o", "cluster_size=64k"]),
    ],
    ids=str,
)
def test_written_by_qemu(kind, options, tmp_path, qemu_img, qemu_io):
    path, dice = tmp_path / "disk", random.Random(4)
    qemu_img("create", "-f", kind, *options, path, str(SIZE))
    for _ in range(25):
        length = dice.choice([512, 4096, 70_144, 1_300_480])
        at = dice.randrange(0, SIZE - length) // 512 * 512
        verb = "write -z" if dice.random() < 0.2 else f"write -P {dice.randrange(1, 256)}"
        qemu_io("-f", kind, "-c", f"{verb} {at} {length}", path)
    qemu_img("convert", "-f", kind, "-O", "raw", path, tmp_path / "raw")
    expected = (tmp_path / "raw").read_bytes()
    with open_disk(path, read_only=True) as disk:
        assert disk.format == kind
        assert disk.size == SIZE == len(expected)
        assert disk.read(0, SIZE) == expected
        for extent in disk.block_status():
            if extent.reads_zero:
                assert not any(expected[extent.offset : extent.offset + extent.length])


@pytest.mark.peer
@pytest.mark.parametrize(("kind", "seed"), [("qed", 1), ("parallels", 2), ("qed", 3)])
def test_check_says_what_qemu_says(kind, seed, tmp_path, qemu_img, qemu_io):
    """Of images with tables that have been changed at random."""
    path, dice = tmp_path / "disk", random.Random(seed)
    options = ["-o", "cluster_size=64k"]
    qemu_img("create", "-f", kind, *options, path, "4M")
    writes = [word for n in (5, 0, 3, 40, 9, 1) for word in ("-c", f"write {n * 65536} 64k")]
    qemu_io("-f", kind, *writes, path)
    whole = path.read_bytes()
    width, tables = (8, range(64, len(whole), 8)) if kind == "qed" else (4, range(64, 320, 4))
    entries = {at: int.from_bytes(whole[at : at + width], "little") for at in tables}
    unit = 65536 if kind == "qed" else 1
    entries = {at: n for at, n in entries.items() if 0 < n < len(whole) and n % unit == 0}
    seen = set()
    for _ in range(30):
        data = bytearray(whole)
        for at in dice.sample(sorted(entries), min(len(entries), dice.randrange(3))):
            entry = dice.choice([0, 1 << 24, *entries.values()])
            data[at : at + width] = entry.to_bytes(width, "little")
        data += bytes(dice.choice([0, 0, 512, 200_000]))
        path.write_bytes(data)
        done = subprocess.run(
            ["qemu-img", "check", "-f", kind, "--output", "json", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode not in (0, 2, 3):
            continue
        told = json.loads(done.stdout)
        with open_disk(path, kind, read_only=True) as disk:
            report = disk.check()
        ours = qemujson.check(str(path), kind, report)
        if kind == "parallels":
            # QEMU 7.2 does not see what is used twice, and counts what lies outside as there.
            twice = sum("more than once" in message for message in report.messages)
            if twice or any("outside" in message for message in report.messages):
                assert report.errors == told.get("corruptions", 0) + twice
                continue
        seen.add((told.get("corruptions", 0), told.get("leaks", 0)))
        assert ours == told
    assert len(seen) > 2


@pytest.mark.peer
def test_qed_chain_by_qemu(tmp_path, qemu_img, qemu_io):
    qemu_img("create", "-f", "qed", tmp_path / "base", "4M")
    qemu_io("-f", "qed", "-c", "write -P 1 0 2M", tmp_path / "base")
    qemu_img("create", "-f", "qed", "-b", tmp_path / "base", "-F", "qed", tmp_path / "top", "6M")
    qemu_io("-f", "qed", "-c", "write -P 2 1M 64k", "-c", "write -z 64k 64k", tmp_path / "top")
    qemu_img("convert", "-f", "qed", "-O", "raw", tmp_path / "top", tmp_path / "raw")
    with open_disk(tmp_path / "top", read_only=True) as disk:
        assert len(disk.chain()) == 2
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "qed", "parallels"])
def test_overlays_by_either_open_in_the_other(kind, tmp_path, qemu_img, qemu_io):
    """The backing format is written and read by QEMU's names."""
    theirs = {"vhd": "vpc"}.get(kind, kind)
    qemu_img("create", "-f", theirs, tmp_path / "base", "4M")
    qemu_io("-f", theirs, "-c", "write -P 7 1M 64k", tmp_path / "base")
    size = 4 * MIB
    create_disk(tmp_path / "ours", "qcow2", backing="base", backing_format=kind)
    create_disk(tmp_path / "by_name", "qcow2", size, backing="base", backing_format=theirs)
    qemu_img("create", "-f", "qcow2", "-F", theirs, "-b", tmp_path / "base", tmp_path / "theirs")
    contents = set()
    for name in ("ours", "by_name", "theirs"):
        qemu_img("convert", "-O", "raw", tmp_path / name, tmp_path / f"{name}.raw")
        contents.add((tmp_path / f"{name}.raw").read_bytes()[:size])
        with open_disk(tmp_path / name) as disk:
            assert disk.backing_format == disk.backing.format == kind
            contents.add(disk.read(0, size))
            disk.change_backing("base", kind)
        assert f"backing file format: {theirs}" in qemu_img("info", tmp_path / name)
    assert len(contents) == 1


def test_no_file_of_these_formats_is_taken_for_raw(tmp_path):
    (tmp_path / "x").write_bytes(qed(entries=(3,)))
    with pytest.raises(DiskError):
        open_disk(tmp_path / "x", "parallels", read_only=True)
    (tmp_path / "x").write_bytes(parallels((1,)))
    with pytest.raises(DiskError):
        open_disk(tmp_path / "x", "qed", read_only=True)
