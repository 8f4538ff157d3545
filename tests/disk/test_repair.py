"""Damage that `check` finds in VDI, VHD, VHDX and VMDK images, and that `repair` mends."""

from __future__ import annotations

import random
import struct

import pytest

from ringzero.disk import Repair, create_disk, open_disk

MIB = 1 << 20

# (format, options, bytes of a block); sizes that make a dozen blocks.
BLOCKY = [
    ("vdi", {}, MIB),
    ("vhd", {"block_size": "512K"}, MIB // 2),
    ("vhdx", {"block_size": "1M"}, MIB),
]
every_block_format = pytest.mark.parametrize(("kind", "options", "block"), BLOCKY, ids=str)


def make(path, kind, options, size=16 * MIB, seed=1):
    """Make an image with data in some places; return what it holds."""
    dice = random.Random(seed)
    create_disk(path, kind, size, options=options)
    model = bytearray(size)
    with open_disk(path, kind) as disk:
        for at in (0, 3 * MIB, 3 * MIB + 600_000, 7 * MIB, 11 * MIB + 512):
            data = dice.randbytes(3000) * 100
            model[at : at + len(data)] = data
            disk.write(at, data)
    return model


def check(path, kind, repair=Repair.NOTHING):
    with open_disk(path, kind, read_only=repair is Repair.NOTHING) as disk:
        return disk.check(repair)


@every_block_format
def test_blocks_that_share_their_space_are_separated(kind, options, block, tmp_path):
    path = tmp_path / "disk"
    model = make(path, kind, options)
    first, second = 3 * MIB // block, 7 * MIB // block
    with open_disk(path, kind) as disk:
        disk._begin()
        disk._set_block(second, disk._block(first))
        disk._bitmaps = {}
    model[second * block : (second + 1) * block] = model[first * block : (first + 1) * block]
    report = check(path, kind)
    assert report.errors == 1
    assert not report.errors_fixed
    report = check(path, kind, Repair.ALL)
    assert report.errors == report.errors_fixed == 1
    assert check(path, kind).errors == 0
    with open_disk(path, kind) as disk:
        assert disk.read(0, disk.size) == model
        disk.write(second * block, b"own" * 1000)
        model[second * block : second * block + 3000] = b"own" * 1000
        assert disk.read(0, disk.size) == model


@every_block_format
def test_blocks_that_lead_nowhere_are_given_up(kind, options, block, tmp_path):
    path = tmp_path / "disk"
    model = make(path, kind, options)
    index = 7 * MIB // block
    with open_disk(path, kind) as disk:
        disk._begin()
        # 1 TiB behind the end of the file.
        disk._set_block(index, disk._block(index) + (1 << 40))
        if kind == "vdi":
            disk._next = None
        disk._end = 0
    report = check(path, kind)
    assert report.errors >= 1
    report = check(path, kind, Repair.ALL)
    assert report.clean, report.messages
    assert check(path, kind).clean
    model[index * block : (index + 1) * block] = bytes(block)
    with open_disk(path, kind) as disk:
        assert disk.read(0, disk.size) == model


@every_block_format
def test_space_of_nobody_is_given_back_and_used(kind, options, block, tmp_path):
    path = tmp_path / "disk"
    model = make(path, kind, options)
    index = 3 * MIB // block
    with open_disk(path, kind) as disk:
        disk._begin()
        disk._set_block(index, -1)
    model[index * block : (index + 1) * block] = bytes(block)
    # It is not the last block, so the count of a VDI image stays.
    report = check(path, kind)
    assert (report.errors, report.leaks) == (0, 1), report.messages
    used = path.stat().st_blocks
    report = check(path, kind, Repair.LEAKS)
    assert report.leaks == report.leaks_fixed == 1
    assert path.stat().st_blocks < used
    assert check(path, kind).clean
    size = path.stat().st_size
    with open_disk(path, kind) as disk:
        disk.write(14 * MIB, b"new" * 1000)
        model[14 * MIB : 14 * MIB + 3000] = b"new" * 1000
    assert path.stat().st_size == size
    assert check(path, kind).clean
    with open_disk(path, kind) as disk:
        assert disk.read(0, disk.size) == model


@pytest.mark.parametrize(("kind", "options", "block"), BLOCKY[1:], ids=str)
def test_discarded_blocks_are_used_again_at_once_and_later(kind, options, block, tmp_path):
    path = tmp_path / "disk"
    model = make(path, kind, options)
    size = path.stat().st_size
    for turn in range(3):
        with open_disk(path, kind) as disk:
            disk.discard(3 * MIB, MIB)
            model[3 * MIB : 4 * MIB] = bytes(MIB)
            disk.flush()
            if turn:
                disk.write(3 * MIB, b"again" * 1000)
                model[3 * MIB : 3 * MIB + 5000] = b"again" * 1000
            assert disk.read(0, disk.size) == model
    assert path.stat().st_size == size
    assert check(path, kind).clean


@pytest.mark.parametrize("options", [{}, {"zeroed_grain": "on"}], ids=str)
def test_discarded_grains_are_used_again_at_once_and_later(options, tmp_path):
    path = tmp_path / "disk.vmdk"
    size = 64 * MIB
    create_disk(path, "vmdk", size, options=options)
    data = random.Random(3).randbytes(MIB)
    lengths = []
    for turn in range(4):
        with open_disk(path, "vmdk") as disk:
            for at in range(0, 40 * MIB, MIB):
                disk.write(at, data)
            assert disk.read(39 * MIB, MIB) == data
            disk.flush()
            disk.discard(0, size)
            disk.flush()
            if turn == 1:
                # In the same session.
                disk.write(0, data * 40)
                assert disk.read(0, 40 * MIB) == data * 40
                disk.discard(0, size)
        lengths.append(path.stat().st_size)
        assert path.stat().st_blocks * 512 < 4 * MIB
        assert check(path, "vmdk").clean
    assert lengths == lengths[:1] * 4


def test_vhd_footers_are_mended(tmp_path):
    path = tmp_path / "disk.vhd"
    model = make(path, "vhd", {})
    whole = path.read_bytes()
    for at, fault in ((0, "errors"), (len(whole) - 512, "leaks")):
        path.write_bytes(whole[:at] + bytes(512) + whole[at + 512 :])
        report = check(path, "vhd")
        assert getattr(report, fault) == 1, report.messages
        assert not report.clean
        assert check(path, "vhd", Repair.ALL).clean
        assert check(path, "vhd").messages == []
        with open_disk(path, "vhd") as disk:
            assert disk.read(0, disk.size) == model
    # Cut off with the end of the last block: a reader has all that is there.
    path.write_bytes(whole[:-512])
    assert check(path, "vhd", Repair.LEAKS).clean
    assert path.read_bytes() == whole


def test_vdi_count_is_mended(tmp_path):
    path = tmp_path / "disk.vdi"
    make(path, "vdi", {})
    raw = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<I", raw, 388)
    for value, fault in ((count - 1, "errors"), (count + 2, "leaks")):
        struct.pack_into("<I", raw, 388, value)
        path.write_bytes(raw)
        assert getattr(check(path, "vdi"), fault) in (1, 2)
        assert check(path, "vdi", Repair.ALL).clean
        assert check(path, "vdi").messages == []


# ---- VMDK ------------------------------------------------------------------------


GRAIN = 65536


def grains(path):
    """Return (disk, its extent, the first grain table) of an image that is open for writing."""
    disk = open_disk(path, "vmdk")
    part = disk.parts[0]
    return disk, part, part._table_to_change(0)


def test_vmdk_grains_that_share_their_space_are_separated(tmp_path):
    path = tmp_path / "disk.vmdk"
    model = make(path, "vmdk", {})
    disk, _, table = grains(path)
    table.set(48, table.items[0])
    table.set(49, table.items[1] + 8)
    model[48 * GRAIN : 49 * GRAIN] = model[:GRAIN]
    model[49 * GRAIN : 50 * GRAIN] = model[GRAIN + 4096 : 2 * GRAIN + 4096]
    with disk:
        assert disk.read(0, disk.size) == model
    report = check(path, "vmdk")
    # What the two grains held before is nobody's now.
    assert (report.errors, report.leaks) == (2, 2), report.messages
    assert check(path, "vmdk", Repair.ALL).clean
    assert check(path, "vmdk").messages == []
    with open_disk(path, "vmdk") as disk:
        assert disk.read(0, disk.size) == model


def test_vmdk_grains_and_tables_are_taken_from_the_second_copy(tmp_path):
    path = tmp_path / "disk.vmdk"
    model = make(path, "vmdk", {})
    whole = path.read_bytes()
    with open_disk(path, "vmdk", read_only=True) as disk:
        part = disk.parts[0]
        first, second = part.directory[0] * 512, part.redundant[0] * 512
        directory, spare = part.directory.offset, part.redundant.offset
    for at, value, fault in (
        (first, 1 << 30, "errors"),
        (first + 4 * 48, 1, "errors"),
        (directory, 1 << 30, "errors"),
        (second + 40, 77, "leaks"),
        (spare, 1 << 30, "leaks"),
    ):
        bad = bytearray(whole)
        struct.pack_into("<I", bad, at, value)
        path.write_bytes(bad)
        report = check(path, "vmdk")
        assert getattr(report, fault) >= 1, (at, report.messages)
        assert not report.clean
        assert check(path, "vmdk", Repair.ALL).clean
        assert check(path, "vmdk").messages == []
        with open_disk(path, "vmdk") as disk:
            assert disk.read(0, disk.size) == model


def test_vmdk_grains_over_structures_are_never_written(tmp_path):
    path = tmp_path / "disk.vmdk"
    make(path, "vmdk", {})
    disk, part, table = grains(path)
    table.set(48, part.directory[0])
    disk.close()
    before = path.read_bytes()
    with open_disk(path, "vmdk") as disk, pytest.raises(Exception, match="over its structures"):
        disk.write(48 * GRAIN + 512, b"x" * 512)
    after = path.read_bytes()
    # The content id in the descriptor aside.
    assert [n for n in range(0, len(before), 512) if before[n : n + 512] != after[n : n + 512]] in (
        [],
        [512],
    )
    # Given up or copied, but not leading there.
    assert check(path, "vmdk", Repair.ALL).clean
    assert check(path, "vmdk").messages == []


def test_vmdk_tables_over_one_another_are_not_written(tmp_path):
    path = tmp_path / "disk.vmdk"
    make(path, "vmdk", {}, size=64 * MIB)
    with open_disk(path, "vmdk") as disk:
        part = disk.parts[0]
        part._table_to_change(0).mark(0, 1)
        part.directory[1] = part.directory[0]
        part._new.add(0)
    with open_disk(path, "vmdk") as disk:
        assert disk.check().errors
        with pytest.raises(Exception, match="lie over one another"):
            disk.write(60 * MIB, b"x" * 512)


# ---- nothing is written over structures ----------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("vhd", {}), ("vhdx", {"block_size": "1M"})])
def test_a_block_over_structures_is_refused(kind, options, tmp_path):
    path = tmp_path / "disk"
    make(path, kind, options)
    with open_disk(path, kind) as disk:
        disk._begin()
        if kind == "vhd":
            disk.table[0] = 1
        else:
            disk.table[0] = disk._regions[next(iter(disk._regions))].offset | 6
    before = path.read_bytes()
    with open_disk(path, kind, sync=False) as disk:
        for call in (lambda: disk.write(0, b"x" * 512), lambda: disk.read(0, 512)):
            with pytest.raises(Exception, match="over its structures"):
                call()
    # The session's own marks aside, nothing changed.
    after = path.read_bytes()
    changed = {n // 65536 for n in range(len(before)) if before[n] != after[n]}
    assert changed <= ({1, 2} if kind == "vhdx" else set())


def test_a_vhdx_block_over_a_sector_bitmap_is_refused(tmp_path):
    base, path = tmp_path / "base.vhdx", tmp_path / "disk.vhdx"
    make(base, "vhdx", {"block_size": "1M"})
    create_disk(path, "vhdx", backing="base.vhdx", options={"block_size": "1M"})
    with open_disk(path) as disk:
        disk.write(5 * MIB, b"x" * 4096)
        disk.flush()
        disk.table[1] = disk._bitmap_hosts[0] | 6
    with open_disk(path) as disk:
        bitmap = disk.storage.read(disk._bitmap_hosts[0], MIB)
        with pytest.raises(Exception, match="over its structures"):
            disk.write(MIB, b"y" * 4096)
        assert disk.storage.read(disk._bitmap_hosts[0], MIB) == bitmap


# ---- other sizes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vhd", {"block_size": "512K"}),
        ("vhd", {}),
        ("vdi", {}),
        ("vhdx", {"block_size": "1M"}),
        ("vmdk", {}),
        ("vmdk", {"zeroed_grain": "on"}),
        ("vmdk", {"subformat": "monolithicFlat"}),
        ("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
        ("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    ],
    ids=str,
)
@pytest.mark.peer
def test_resized_images_by_qemu(kind, options, tmp_path, qemu_img):
    path = tmp_path / f"disk.{kind}"
    model = make(path, kind, options)
    sparse = tmp_path / "model"
    # Farther than any table reaches that was made for 16 MiB, then back, then forth again.
    far = (5000 if options.get("subformat", "")[:3] == "two" else 600) * MIB + 4096
    for size in (far, 9 * MIB + 512, 40 * MIB):
        with open_disk(path, kind) as disk:
            disk.resize(size)
            assert disk.size == size
        del model[size:]
        with open_disk(path, kind) as disk:
            assert disk.size == size
            end = size - 4096
            disk.write(end, b"end!" * 1024)
            if len(model) < size < far:
                model.extend(bytes(size - len(model)))
            if len(model) == size:
                model[end:] = b"end!" * 1024
                assert disk.read(0, size) == model
            else:
                assert disk.read(0, len(model)) == model
                assert disk.read(end - 4096, 8192) == bytes(4096) + b"end!" * 1024
                disk.write_zeroes(end, 4096)
            report = disk.check() if options.get("subformat", "")[-4:] != "Flat" else None
            assert report is None or report.clean, report.messages
        sparse.write_bytes(model)
        with sparse.open("r+b") as file:
            file.truncate(size)
        peer = "vpc" if kind == "vhd" else kind
        qemu_img("compare", "-f", "raw", "-F", peer, sparse, path)


@pytest.mark.peer
def test_vdi_grows_past_its_block_map(tmp_path, qemu_img, qemu_io):
    path = tmp_path / "disk.vdi"
    model = make(path, "vdi", {})
    # The map has 1 MiB, for 256 GiB.
    size = 700 << 30
    with open_disk(path) as disk:
        disk.resize(size)
        assert disk.header.map_offset > MIB
        assert disk.read(0, len(model)) == model
        disk.write(size - 8192, b"far!" * 2048)
        assert disk.check().clean
    assert check(path, "vdi").messages == []
    with open_disk(path) as disk:
        assert disk.read(0, len(model)) == model
        assert disk.read(size - 8192, 8192) == b"far!" * 2048
        disk.write(20 * MIB, b"more" * 2048)
        assert disk.read(0, len(model)) == model
    assert "No errors" in qemu_img("check", "-f", "vdi", path)
    for at in (0, 3 * MIB + 600_000 // 512 * 512, 11 * MIB + 512):
        raw = tmp_path / "piece"
        raw.unlink(missing_ok=True)
        qemu_img(
            "dd", "-f", "vdi", f"if={path}", f"of={raw}", "bs=512", f"skip={at // 512}", "count=999"
        )
        # qemu-img counts from the beginning, skipped or not.
        there = raw.read_bytes()[: 998 * 512]
        assert there == model[at : at + len(there)]
