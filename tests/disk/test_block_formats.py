"""VDI, VMDK, VHD, VHDX: loss of power, damage and hostility, logs, and sizes beyond small."""

from __future__ import annotations

import random
import struct
import time
import uuid

import pytest

from ringzero.disk import Kind, Repair, create_disk, open_disk
from ringzero.disk.crc32c import crc32c
from ringzero.disk.formats.vhdx.log import Replayed
from ringzero.disk.storage import FileStorage
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskReadOnlyError,
    DiskUnsupportedError,
    RingzeroError,
)
from tests.disk.lossy import ROUNDS, LossyStorage, create_in, open_in
from tests.disk.test_crash import crash_once

MIB = 1 << 20

FLAVOURS = [
    ("vdi", {}),
    ("vhd", {"block_size": "512K"}),
    ("vhd", {"subformat": "fixed"}),
    ("vhdx", {"block_size": "1M"}),
    ("vmdk", {}),
    ("vmdk", {"zeroed_grain": "on"}),
]
every_flavour = pytest.mark.parametrize(("kind", "options"), FLAVOURS, ids=str)


@every_flavour
def test_random_loss_of_power(kind, options):
    for seed in range(6 * ROUNDS):
        try:
            crash_once(kind, options, False, seed)
        except BaseException as fault:
            fault.add_note(f"seed {seed}")
            raise


# ---- fuzz --------------------------------------------------------------------


def resealed(kind: str, content: bytearray) -> bytearray:
    """Set the checksums right, so that what is behind them is reached."""
    if kind == "vhdx":
        for at, size in ((65536, 4096), (131072, 4096), (196608, 65536), (262144, 65536)):
            if len(content) >= at + size:
                content[at + 4 : at + 8] = bytes(4)
                content[at + 4 : at + 8] = struct.pack("<I", crc32c(content[at : at + size]))
    if kind == "vhd":
        for at, size, place in ((0, 512, 64), (512, 1024, 36), (len(content) - 512, 512, 64)):
            if at >= 0 and content[at : at + 2] in (b"co", b"cx"):
                content[at + place : at + place + 4] = bytes(4)
                total = ~sum(content[at : at + size]) & 0xFFFFFFFF
                content[at + place : at + place + 4] = struct.pack(">I", total)
    return content


def mend(disk) -> None:
    """Repair an image; what is mended stays so."""
    if disk.size < 1 << 36 and disk.check(Repair.ALL).clean:
        again = disk.check()
        assert again.errors == 0, again.messages


def exercise(content: bytes, kind: str, dice: random.Random) -> None:
    """Do everything with an image; nothing but a RingzeroError may come of it."""
    read_only = dice.random() < 0.5
    storage = LossyStorage(content)
    steps = [
        lambda d: [d.read(at, min(65536, d.size - at)) for at in range(0, min(d.size, MIB), 65536)],
        lambda d: list(zip(d.block_status(0, min(d.size, 1 << 40)), range(500), strict=False)),
        lambda d: d.info(),
        lambda d: d.size < 1 << 36 and d.check(),
        lambda d: d.write(0, b"z" * min(d.size, 70_000)),
        lambda d: d.write_zeroes(0, min(d.size, 200_000)),
        lambda d: d.flush(),
        mend,
        lambda d: d.size < 1 << 36 and d.resize(d.size + 5 * MIB),
        lambda d: d.write(max(0, d.size - 70_000), b"z" * min(d.size, 70_000)),
        lambda d: d.resize(MIB),
        lambda d: d.close(),
    ]
    try:
        disk = open_in(storage, kind, read_only=read_only)
    except RingzeroError:
        return
    except NotImplementedError:
        # A descriptor with another extent's name: the surroundings here have no files.
        return
    for step in steps:
        try:
            step(disk)
        except RingzeroError:
            continue
    assert len(storage.now) < len(content) + 300 * MIB
    if read_only:
        assert bytes(storage.now) == content


@every_flavour
def test_mutated_images(kind, options):
    base = LossyStorage()
    create_in(base, kind, 4 * MIB, options)
    disk = open_in(base, kind)
    disk.write(1000, b"x" * 600_000)
    disk.write(3 * MIB, b"x" * 1000)
    disk.flush()
    disk.close()
    good = bytes(base.now)
    aims = [n for n in range(0, len(good), 8) if good[n : n + 8].strip(b"x\0")]
    dice = random.Random(1)
    begun = time.monotonic()
    for _ in range(40 * ROUNDS):
        bad = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at = dice.choice(aims)
            how = dice.randrange(5)
            if how == 0:
                bad[at + dice.randrange(8)] ^= 1 << dice.randrange(8)
            elif how == 1:
                bad[at + dice.randrange(8)] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])
            elif how == 2:
                source = dice.choice(aims)
                bad[at : at + 8] = good[source : source + 8]
            elif how == 3:
                bad[at : at + 4] = dice.choice([b"\xff" * 4, b"\x7f" + b"\xff" * 3, bytes(4)])
            else:
                bad[at : at + 8] = dice.randbytes(8)
        if dice.random() < 0.1:
            del bad[dice.randrange(len(bad)) :]
        if dice.random() < 0.8:
            bad = resealed(kind, bad)
        exercise(bytes(bad), kind, dice)
    assert time.monotonic() - begun < 100 * ROUNDS


@pytest.mark.parametrize("kind", ["vdi", "vhd", "vhdx", "vmdk"])
def test_garbage_is_refused(kind):
    dice = random.Random(2)
    for length in (0, 1, 511, 512, 513, 4096, 1 << 20):
        for content in (bytes(length), dice.randbytes(length)):
            with pytest.raises(RingzeroError):
                open_in(LossyStorage(content), kind)


VMDK_TEXTS = {
    "a device": 'RW 2048 FLAT "/dev/zero" 0',
    "another directory": 'RW 2048 FLAT "../../etc/passwd" 0',
    "an absolute name": 'RW 2048 FLAT "/etc/passwd" 0',
    "a missing file": 'RW 2048 FLAT "nowhere" 0',
    "longer than the file": 'RW 204800 FLAT "data" 0',
    "an offset past the end": 'RW 8 FLAT "data" 999999999999',
    "a size past everything": 'RW 999999999999999999 FLAT "data" 0',
    "a kind unknown": 'RW 2048 QUANTUM "data" 0',
    "no access": 'NOACCESS 2048 FLAT "data" 0',
    "itself as sparse": 'RW 2048 SPARSE "disk.vmdk"',
    "nothing": "",
    "a long line": 'RW 1 FLAT "' + "x" * 100_000 + '" 0',
}


@pytest.mark.parametrize("name", VMDK_TEXTS)
def test_vmdk_descriptors_that_lie(name, tmp_path):
    (tmp_path / "data").write_bytes(bytes(MIB))
    text = f'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n' \
        f'createType="monolithicFlat"\n{VMDK_TEXTS[name]}\n'  # fmt: skip
    (tmp_path / "disk.vmdk").write_text(text)
    for read_only in (True, False):
        with pytest.raises(RingzeroError):
            open_disk(tmp_path / "disk.vmdk", read_only=read_only)
    assert (tmp_path / "data").read_bytes() == bytes(MIB)


def test_vmdk_many_extents_of_nothing(tmp_path):
    lines = "RW 1 ZERO\n" * 40_000
    text = f'# Disk DescriptorFile\nCID=1\ncreateType="custom"\n{lines}'
    (tmp_path / "disk.vmdk").write_text(text)
    with pytest.raises(DiskFormatError, match="too many"):
        open_disk(tmp_path / "disk.vmdk", read_only=True)
    (tmp_path / "disk.vmdk").write_text(text.replace(lines, "RW 2048 ZERO\n" * 3))
    with open_disk(tmp_path / "disk.vmdk") as disk:
        assert disk.read(0, disk.size) == bytes(3 * MIB)
        with pytest.raises(DiskReadOnlyError):
            disk.write(0, b"x")


@pytest.mark.parametrize("kind", ["vdi", "vhd", "vhdx"])
def test_huge_empty_disks_take_little_memory_and_time(kind, tmp_path):
    size = {"vdi": 1 << 40, "vhd": 2040 << 30, "vhdx": 64 << 40}[kind]
    begun = time.monotonic()
    create_disk(tmp_path / "disk", kind, size, sync=False)
    with open_disk(tmp_path / "disk", sync=False) as disk:
        disk.write(size - 512, b"end" * 100)
        assert disk.read(size - 512, 3) == b"end"
        assert disk.read(size // 2, 512) == bytes(512)
    assert time.monotonic() - begun < 20
    assert (tmp_path / "disk").stat().st_size < 300 * MIB


# ---- the VHDX log --------------------------------------------------------------


def with_log(tmp_path, monkeypatch):
    """Return an image that was left between its log and its tables, and its bytes."""
    path = tmp_path / "disk.vhdx"
    create_disk(path, "vhdx", 8 * MIB, options={"block_size": "1M"})
    disk = open_disk(path)
    disk.write(0, b"first" * 1000)
    disk.flush()
    disk.write(3 * MIB, b"second" * 1000)
    expected = disk.read(0, 8 * MIB)
    # The tables never arrive in their places; the log does.
    places = {offset for offset, _ in disk.table.changed()}
    write = FileStorage.write

    def lose(self, offset, buffers):
        if not any(place & ~4095 == offset for place in places):
            write(self, offset, buffers)

    monkeypatch.setattr(FileStorage, "write", lose)
    disk.flush()
    monkeypatch.undo()
    left = path.read_bytes()
    disk.storage.close()
    path.write_bytes(left)
    return path, expected


def test_vhdx_log_is_replayed_for_reading_without_writing(tmp_path, monkeypatch):
    path, expected = with_log(tmp_path, monkeypatch)
    before = path.read_bytes()
    with open_disk(path, read_only=True) as disk:
        assert isinstance(disk.storage, Replayed)
        assert disk.info().dirty
        assert disk.read(0, 8 * MIB) == expected
    assert path.read_bytes() == before


def test_vhdx_log_is_replayed_into_the_file_for_writing(tmp_path, monkeypatch):
    path, expected = with_log(tmp_path, monkeypatch)
    with open_disk(path) as disk:
        assert disk.read(0, 8 * MIB) == expected
    with open_disk(path, read_only=True) as disk:
        assert not disk.info().dirty
        assert disk.read(0, 8 * MIB) == expected


@pytest.mark.peer
def test_vhdx_log_is_replayed_by_qemu(tmp_path, monkeypatch, qemu_img):
    path, expected = with_log(tmp_path, monkeypatch)
    (tmp_path / "model").write_bytes(expected)
    assert "No errors" in qemu_img("check", "-r", "all", "-f", "vhdx", path)
    qemu_img("compare", "-f", "raw", "-F", "vhdx", tmp_path / "model", path)


def test_vhdx_damaged_log_is_refused(tmp_path, monkeypatch):
    path, _ = with_log(tmp_path, monkeypatch)
    content = bytearray(path.read_bytes())
    for at in range(MIB, 2 * MIB, 4096):
        if content[at : at + 4] == b"loge":
            content[at + 100] ^= 1
    path.write_bytes(content)
    for read_only in (True, False):
        with pytest.raises(DiskFormatError, match="log is damaged"):
            open_disk(path, read_only=read_only)
    assert path.read_bytes() == content


def test_vhdx_unknown_required_items_are_refused_by_name(tmp_path):
    path = tmp_path / "disk.vhdx"
    create_disk(path, "vhdx", MIB)
    content = bytearray(path.read_bytes())
    at = content.index(b"metadata")
    guid = uuid.uuid4()
    count = struct.unpack_from("<H", content, at + 10)[0]
    struct.pack_into("<H", content, at + 10, count + 1)
    struct.pack_into("<16sIII4x", content, at + 32 + 32 * count, guid.bytes_le, 65536, 4, 4)
    path.write_bytes(content)
    with pytest.raises(DiskUnsupportedError, match=str(guid)):
        open_disk(path, read_only=True)


def test_vhdx_grows_past_its_table(tmp_path):
    """One region of 1 MiB holds 131072 entries; a longer one has to move."""
    path = tmp_path / "disk.vhdx"
    create_disk(path, "vhdx", 100 * MIB, options={"block_size": "1M"}, sync=False)
    with open_disk(path, sync=False) as disk:
        disk.write(50 * MIB, b"keep" * 1000)
        disk.resize(200_000 * MIB)
        disk.write(199_999 * MIB, b"end")
    with open_disk(path, sync=False) as disk:
        assert disk.read(50 * MIB, 4000) == b"keep" * 1000
        assert disk.read(199_999 * MIB, 3) == b"end"
        assert disk.check().errors == 0


@pytest.mark.peer
def test_vhdx_with_large_sectors_by_qemu(tmp_path, qemu_img):
    path = tmp_path / "disk.vhdx"
    create_disk(path, "vhdx", 8 * MIB, options={"logical_sector_size": "4096"})
    with open_disk(path) as disk:
        disk.write(MIB, b"4k" * 2048)
    # qemu-img 7.2 knows sectors of 512 only, and says so.
    assert "sector" in qemu_img("info", path, check=False).lower()


# ---- VMDK: split and stream-optimized -------------------------------------------


@pytest.mark.peer
@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_vmdk_over_several_extents(subformat, tmp_path, qemu_img):
    path = tmp_path / "disk.vmdk"
    size = (5 << 30) + 512
    create_disk(path, "vmdk", size, options={"subformat": subformat}, sync=False)
    assert len(list(tmp_path.iterdir())) == 4
    with open_disk(path, sync=False) as disk:
        assert disk.size == size
        for edge in (2 << 30, 4 << 30):
            disk.write(edge - 70_000, b"edge" * 35_000)
        disk.write(size - 512, b"e" * 512)
    with open_disk(path, read_only=True) as disk:
        for edge in (2 << 30, 4 << 30):
            assert disk.read(edge - 70_000, 140_000) == b"edge" * 35_000
    with (tmp_path / "model").open("wb") as file:
        file.truncate(size)
        for edge in (2 << 30, 4 << 30):
            file.seek(edge - 70_000)
            file.write(b"edge" * 35_000)
        file.seek(size - 512)
        file.write(b"e" * 512)
    qemu_img("compare", "-f", "raw", "-F", "vmdk", tmp_path / "model", path)


@pytest.mark.peer
def test_vmdk_stream_optimized_both_ways(tmp_path, qemu_img):
    from ringzero.disk.convert import Conversion

    dice = random.Random(4)
    model = bytearray(70 * MIB)
    for at in (0, 10 * MIB, 33 * MIB, 69 * MIB):
        model[at : at + 300_000] = dice.randbytes(1000) * 300
    (tmp_path / "model").write_bytes(model)
    options = {"subformat": "streamOptimized"}
    with open_disk(tmp_path / "model", "raw", read_only=True) as source:
        Conversion(tmp_path / "ours.vmdk", "vmdk", options=options).run(source)
    qemu_img("compare", "-f", "raw", "-F", "vmdk", tmp_path / "model", tmp_path / "ours.vmdk")
    qemu_img(
        "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
        tmp_path / "model", tmp_path / "theirs.vmdk",
    )  # fmt: skip
    with open_disk(tmp_path / "theirs.vmdk", read_only=True) as disk:
        assert disk.read(0, len(model)) == model
        assert disk.check().errors == 0
        assert disk.info().compressed
    for name in ("ours", "theirs"):
        with pytest.raises(DiskReadOnlyError, match="stream-optimized"):
            open_disk(tmp_path / f"{name}.vmdk")


def test_vmdk_unfinished_stream_does_not_open(tmp_path):
    path = tmp_path / "disk.vmdk"
    create_disk(path, "vmdk", 4 * MIB, options={"subformat": "streamOptimized"})
    disk = open_disk(path)
    with pytest.raises(DiskUnsupportedError):
        disk.write(0, b"x")
    disk.compression.store(0, disk.compression.pack(b"grain" * 100))
    left = path.read_bytes()
    disk.close()
    with open_disk(path, read_only=True) as whole:
        assert whole.read(0, 5) == b"grain"
    path.write_bytes(left)
    with pytest.raises(DiskError):
        open_disk(path, read_only=True)


def test_vmdk_compressed_bomb_is_bounded(tmp_path):
    import zlib

    path = tmp_path / "disk.vmdk"
    create_disk(path, "vmdk", 4 * MIB, options={"subformat": "streamOptimized"})
    with open_disk(path) as disk:
        disk.compression.store(0, zlib.compress(bytes(100 * MIB))[:60_000])
        disk.compression.store(65536, b"\xff" * 100)
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, 65536) == bytes(65536)
        with pytest.raises(DiskFormatError, match="compressed grain"):
            disk.read(65536, 512)


@pytest.mark.parametrize("format_name", ["vdi", "vhd", "vhdx"])
def test_holes_that_the_host_has_in_a_block_are_zeroes(tmp_path, format_name):
    path = tmp_path / "disk"
    create_disk(path, format_name, 16 * MIB)
    with open_disk(path, format_name) as disk:
        disk.write(4 * MIB, b"D" * 65536)
        for write in (False, True):
            found = list(disk.block_status())
            data = [extent for extent in found if not extent.reads_zero]
            assert sum(extent.length for extent in found) == 16 * MIB
            assert sum(extent.length for extent in data) < MIB // 2
            for extent in found:
                held = disk.read(extent.offset, extent.length)
                assert extent.kind is Kind.DATA or not any(held)
                if extent.kind is Kind.DATA:
                    assert path.read_bytes()[extent.host :][: extent.length] == held
            if not write:
                disk.write(4 * MIB + 131072, b"E" * 512)
