"""Images over parents of their own kind: VDI, VMDK, VHD, VHDX, also seen by a second reader.

qemu-img makes VMDK deltas only; `dissect.hypervisor` reads the others, and
the on-disk structures are held against the specifications' own words.
"""

from __future__ import annotations

import random
import shutil

import pytest

from ringzero.disk import Kind, create_disk, open_disk
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError

SIZE = 9 * 1024 * 1024 + 512 * 9
KINDS = {
    "vmdk": [{}, {"zeroed_grain": "on"}, {"subformat": "twoGbMaxExtentSparse"}],
    "vdi": [{}],
    "vhd": [{}, {"block_size": "512K"}],
    "vhdx": [{}, {"block_size": "1M"}, {"block_size": "1M", "logical_sector_size": "4096"}],
}
CASES = [(kind, options) for kind, found in KINDS.items() for options in found]
every_case = pytest.mark.parametrize(("kind", "options"), CASES, ids=str)


def make_chain(directory, kind, options, count=3, align=1):
    """Make a chain of images with random writes in each; return the top and its bytes."""
    dice = random.Random(3)
    model = bytearray(SIZE)
    below = None
    for number in range(count):
        path = directory / f"layer{number}.{kind}"
        create_disk(
            path, kind, SIZE, options=options, backing=below, backing_format=below and kind,
            sync=False,
        )  # fmt: skip
        with open_disk(path, kind, sync=False) as disk:
            if disk.size > len(model):
                model.extend(bytes(disk.size - len(model)))
            for _ in range(12):
                length = dice.choice([512, 4096, 5000, 70_000, 1_300_000])
                length = -(-length // align) * align
                offset = dice.randrange(0, SIZE - length) // align * align
                if dice.random() < 0.25:
                    disk.write_zeroes(offset, length)
                    model[offset : offset + length] = bytes(length)
                else:
                    data = dice.randbytes(length)
                    disk.write(offset, data)
                    model[offset : offset + length] = data
                assert disk.read(offset, length) == model[offset : offset + length]
        below = path.name
    return path, bytes(model)


@every_case
def test_chain_reads_as_written(kind, options, tmp_path):
    top, model = make_chain(tmp_path, kind, options)
    with open_disk(top, read_only=True) as disk:
        assert disk.read(0, disk.size) == model
        assert len(disk.chain()) == 3
        assert disk.info().backing_filename == f"layer1.{kind}"
        at = 0
        for extent in disk.block_status():
            assert extent.offset == at
            at += extent.length
            if extent.reads_zero:
                assert not any(model[extent.offset : at])
        assert at == disk.size
        assert disk.check().errors == 0
        depths = {extent.depth for extent in disk.block_status() if extent.kind is Kind.DATA}
        assert 0 in depths
        assert depths <= {0, 1, 2}


@every_case
def test_chain_elsewhere_by_absolute_name(kind, options, tmp_path):
    (tmp_path / "parents").mkdir()
    (tmp_path / "children").mkdir()
    base = tmp_path / "parents" / f"base.{kind}"
    create_disk(base, kind, SIZE, options=options)
    with open_disk(base) as disk:
        disk.write(0, b"parent" * 1000)
    top = tmp_path / "children" / "top"
    create_disk(top, kind, backing=base, backing_format=kind)
    with open_disk(top, kind, backing_roots=[tmp_path]) as disk:
        assert disk.read(0, 6) == b"parent"
        disk.write(6, b"child")
        assert disk.read(0, 12) == b"parentchildt"
    create_disk(tmp_path / "children" / "up", kind, backing=f"../parents/base.{kind}")
    with open_disk(tmp_path / "children" / "up", kind, backing_roots=[tmp_path]) as disk:
        assert disk.read(0, 6) == b"parent"


@every_case
def test_copy_on_read(kind, options, tmp_path):
    create_disk(tmp_path / "base", kind, SIZE, options=options)
    data = random.Random(1).randbytes(300_000)
    with open_disk(tmp_path / "base") as disk:
        disk.write(4096, data)
    create_disk(tmp_path / "top", kind, backing="base", options=options)
    with open_disk(tmp_path / "top", copy_on_read=True) as disk:
        assert disk.read(4096, 200_192) == data[:200_192]
    with open_disk(tmp_path / "top", backing=False) as disk:
        assert disk.read(4096, 200_192) == data[:200_192]


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx"])
def test_a_parent_that_was_written_to_is_refused(kind, tmp_path):
    make_chain(tmp_path, kind, {}, count=2)
    with open_disk(tmp_path / f"layer0.{kind}") as disk:
        disk.write(0, b"changed")
    with pytest.raises(DiskFormatError, match="has been changed"):
        open_disk(tmp_path / f"layer1.{kind}", read_only=True)
    open_disk(tmp_path / f"layer1.{kind}", read_only=True, backing=False).close()
    with open_disk(tmp_path / f"layer1.{kind}", backing=False) as disk:
        disk.change_backing(f"layer0.{kind}", kind)
    open_disk(tmp_path / f"layer1.{kind}", read_only=True).close()


@pytest.mark.parametrize("kind", KINDS)
def test_another_parent_is_refused(kind, tmp_path):
    make_chain(tmp_path, kind, {}, count=2)
    (tmp_path / f"layer0.{kind}").unlink()
    create_disk(tmp_path / f"layer0.{kind}", kind, SIZE)
    with pytest.raises(DiskFormatError):
        open_disk(tmp_path / f"layer1.{kind}", read_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parent_of_another_kind_is_refused(kind, tmp_path):
    create_disk(tmp_path / "base", "qcow2", SIZE)
    with pytest.raises(InvalidValueError, match="parent"):
        create_disk(tmp_path / "top", kind, backing="base")
    assert not (tmp_path / "top").exists()


def test_vdi_without_a_name_needs_the_option(tmp_path):
    top, model = make_chain(tmp_path, "vdi", {}, count=2)
    with top.open("r+b") as file:
        file.seek(84)
        file.write(bytes(256))
    with pytest.raises(DiskUnsupportedError, match="parent"):
        open_disk(top, read_only=True)
    with open_disk(top, read_only=True, options={"parent": "layer0.vdi"}) as disk:
        assert disk.read(0, SIZE) == model


@pytest.mark.peer
def test_vmdk_delta_by_qemu(tmp_path, qemu_img, qemu_io):
    create_disk(tmp_path / "base.vmdk", "vmdk", SIZE)
    with open_disk(tmp_path / "base.vmdk") as disk:
        disk.write(0, b"\x11" * 300_000)
    qemu_img("create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", tmp_path / "top.vmdk")
    qemu_io("-f", "vmdk", "-c", "write -P 0x22 65536 512", tmp_path / "top.vmdk")
    with open_disk(tmp_path / "top.vmdk") as disk:
        assert disk.read(65_535, 514) == b"\x11" + b"\x22" * 512 + b"\x11"
        disk.write(131_072, b"\x33" * 512)
    qemu_io("-r", "-f", "vmdk", "-c", "read -P 0x22 65536 512", tmp_path / "top.vmdk")
    out = qemu_io("-r", "-f", "vmdk", "-c", "read -P 0x33 131072 512", tmp_path / "top.vmdk")
    assert "Pattern verification failed" not in out


@pytest.mark.peer
@pytest.mark.parametrize("options", KINDS["vmdk"], ids=str)
def test_vmdk_delta_by_ringzero(options, tmp_path, qemu_img):
    if options:
        pytest.skip("qemu-img reads deltas of monolithicSparse only")
    top, model = make_chain(tmp_path, "vmdk", options)
    (tmp_path / "model").write_bytes(model)
    qemu_img("compare", "-f", "raw", "-F", "vmdk", tmp_path / "model", top)


def by_blocks(stream, size, block=1 << 20):
    """Read block by block: dissect mixes blocks up in reads that cross them."""
    parts = []
    for at in range(0, size, block):
        stream.seek(at)
        parts.append(stream.read(min(block, size - at)))
    return b"".join(parts)


def test_vmdk_delta_by_dissect(tmp_path):
    vmdk = pytest.importorskip("dissect.hypervisor.disk.vmdk")
    top, model = make_chain(tmp_path, "vmdk", {})
    disk = vmdk.VMDK(top)
    # It loses its way in the last, unaligned piece.
    there = 2 << 20
    assert disk.read(there) == model[:there]


def test_vdi_by_dissect(tmp_path):
    vdi = pytest.importorskip("dissect.hypervisor.disk.vdi")
    _, model = make_chain(tmp_path, "vdi", {})
    below = None
    for number in range(3):
        below = vdi.VDI(tmp_path / f"layer{number}.vdi", parent=below).open()
    assert by_blocks(below, len(model)) == model


@pytest.mark.parametrize("options", KINDS["vhdx"], ids=str)
def test_vhdx_by_dissect(options, tmp_path):
    vhdx = pytest.importorskip("dissect.hypervisor.disk.vhdx")
    # It reads bitmaps wrongly where a run does not begin on a whole byte of it.
    top, model = make_chain(tmp_path, "vhdx", options, align=32768)
    disk = vhdx.VHDX(top)
    assert by_blocks(disk, len(model)) == model


@pytest.mark.parametrize("options", KINDS["vhd"], ids=str)
def test_vhd_by_an_independent_walk(options, tmp_path):
    """dissect has no differencing VHD: read it here as the specification tells."""
    _, model = make_chain(tmp_path, "vhd", options)
    found = bytearray(SIZE)
    for number in range(3):
        raw = (tmp_path / f"layer{number}.vhd").read_bytes()
        footer = raw[-512:]
        assert footer == raw[:512]
        assert footer[:8] == b"conectix"
        assert int.from_bytes(footer[60:64], "big") == (4 if number else 3)
        assert _sum(footer, 64) == int.from_bytes(footer[64:68], "big")
        header = raw[512:1536]
        assert header[:8] == b"cxsparse"
        assert _sum(header, 36) == int.from_bytes(header[36:40], "big")
        table = int.from_bytes(header[16:24], "big")
        block = int.from_bytes(header[32:36], "big")
        if number:
            parent = (tmp_path / f"layer{number - 1}.vhd").read_bytes()
            assert header[40:56] == parent[-512:][68:84]
            code, length = header[576:580], int.from_bytes(header[584:588], "big")
            at = int.from_bytes(header[592:600], "big")
            assert code == b"W2ru"
            assert raw[at : at + length].decode("utf-16-le") == f".\\layer{number - 1}.vhd"
        bitmap = max(512, block // 512 // 8)
        for index in range(-(-SIZE // block)):
            entry = int.from_bytes(raw[table + 4 * index : table + 4 * index + 4], "big")
            if entry == 0xFFFFFFFF:
                continue
            start = entry * 512
            for sector in range(min(block, SIZE - index * block) // 512):
                if raw[start + sector // 8] & (0x80 >> sector % 8):
                    at = start + bitmap + sector * 512
                    data = raw[at : at + 512]
                    place = index * block + sector * 512
                    found[place : place + 512] = data
    assert found == model


def _sum(data, at):
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF


def test_vhdx_structures_as_specified(tmp_path):
    """[MS-VHDX] 2.2 and 2.6, checked with code of the test's own."""
    import struct
    import uuid

    top, _ = make_chain(tmp_path, "vhdx", {"block_size": "1M"}, count=2)
    raw = top.read_bytes()
    assert raw[:8] == b"vhdxfile"
    heads = [raw[at : at + 4096] for at in (65536, 131072)]
    for head in heads:
        assert head[:4] == b"head"
        assert struct.unpack_from("<I", head, 4)[0] == _crc(head[:4] + bytes(4) + head[8:])
    newest = max(heads, key=lambda head: struct.unpack_from("<Q", head, 8)[0])
    # Closed cleanly: no log to replay.
    assert newest[48:64] == bytes(16)
    text = raw.find("parent_linkage".encode("utf-16-le"))
    assert text > 0
    parent = (tmp_path / "layer0.vhdx").read_bytes()
    heads = [parent[at : at + 4096] for at in (65536, 131072)]
    newest = max(heads, key=lambda head: struct.unpack_from("<Q", head, 8)[0])
    linkage = "{" + str(uuid.UUID(bytes_le=newest[32:48])) + "}"
    assert raw.find(linkage.encode("utf-16-le")) > 0


def _crc(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_backing_files_across_formats(tmp_path):
    """qcow2 over each of them, and back: the chain of the issue."""
    for kind in KINDS:
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        (tmp_path / kind).mkdir()
        path, model = make_chain(tmp_path / kind, kind, {}, count=2)
        top = tmp_path / kind / "top.qcow2"
        create_disk(top, "qcow2", backing=path.name, backing_format=kind)
        with open_disk(top) as disk:
            disk.write(100, b"top")
            assert disk.read(0, SIZE) == model[:100] + b"top" + model[103:SIZE]
