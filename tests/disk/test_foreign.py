"""What is recognisably no disk image is refused by name; what may be a raw disk is not."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.disk.foreign import KINDS
from ringzero.errors import DiskError, DiskUnsupportedError

MIB = 1 << 20


def zipped(names=("disk.vmdk",)):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 5000)
    return held.getvalue()


def lzip(data):
    return b"LZIP\x01\x14" + data


RAW = b"\xeb\x63\x90" + bytes(507) + b"\x55\xaa" + bytes(MIB)
FILES = {
    "gzip": gzip.compress(RAW),
    "xz": lzma.compress(RAW),
    "LZMA": lzma.compress(RAW, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(RAW),
    "empty bzip2": bz2.compress(b""),
    "zstd": b"\x28\xb5\x2f\xfd\x04\x58" + bytes(600),
    "lz4": b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(600),
    "lzip": lzip(bytes(600)),
    "zip": zipped(),
    "empty zip": zipped(()),
    "7-Zip": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(600),
    "RAR": b"Rar!\x1a\x07\x01\x00" + bytes(600),
    "version 1": b"QFI\xfb\0\0\0\x01" + bytes(600),
    "DMG": bytes(4096) + b"koly\0\0\0\x04".ljust(512, b"\0"),
    "Bochs": b"Bochs Virtual HD Image\0".ljust(1024, b"\0"),
    "cloop": b"#!/bin/sh\n#V2.0 Format\nmodprobe".ljust(1024, b"\0"),
    "Android": b"\x3a\xff\x26\xed\x01\0\0\0" + bytes(600),
    "EnCase": b"EVF\x09\x0d\x0a\xff\0" + bytes(600),
    "WIM": b"MSWIM\0\0\0" + bytes(600),
    "OVF": b'<?xml version="1.0"?>\n<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1">\n',
    "OVF description": b'\xef\xbb\xbf<?xml version="1.0"?><ovf:Envelope xmlns:ovf="x">',
    "VirtualBox": b'<?xml version="1.0"?>\n<!-- x -->\n<VirtualBox version="1.16-linux">\n',
    "Parallels": b"<?xml version='1.0'?>\n<Parallels_disk_image Version=\"1.0\">\n",
    "libvirt": b"<domain type='kvm'>\n  <name>x</name>\n",
    "VMware": b'.encoding = "UTF-8"\nconfig.version = "8"\n',
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read_only", [True, False])
def test_refused_by_name(name, read_only, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    with pytest.raises(DiskUnsupportedError, match=name.removeprefix("empty ")) as caught:
        open_disk(path, read_only=read_only)
    assert "format=raw" in caught.value.hint
    with open_disk(path, "raw", read_only=True) as disk:
        assert disk.read(0, 4) == FILES[name][:4].ljust(4, b"\0")


def test_refused_below_an_image_too(tmp_path):
    (tmp_path / "base").write_bytes(FILES["gzip"])
    with pytest.raises(DiskUnsupportedError, match="gzip"):
        create_disk(tmp_path / "top", "qcow2", backing="base")
    assert not (tmp_path / "top").exists()


DISKS = {
    "empty": bytes(MIB),
    "boot sector": RAW,
    "ext4": bytes(1024) + bytes(56) + b"\x53\xef" + bytes(MIB),
    "ISO 9660": bytes(32768) + b"\x01CD001" + bytes(MIB),
    "LVM": bytes(512) + b"LABELONE" + bytes(MIB),
    "XFS": b"XFSB" + bytes(MIB),
    "squashfs": b"hsqs" + bytes(MIB),
    "swap": bytes(4086) + b"SWAPSPACE2" + bytes(MIB),
    "text": b"#!/bin/sh\necho this is a script for the guest\n".ljust(512, b"\n"),
    "half a bzip2": b"BZh9" + bytes(600),
    "half an LZMA": b"\x5d\0\0" + bytes(600),
    "half a cpio": b"070709" + bytes(600),
    "a version": b"# settings\nversion = 1\nname = x\n".ljust(512, b"\n"),
    "domain in binary": b"\0<domain type='kvm'>" + bytes(600),
}


@pytest.mark.parametrize("name", DISKS)
def test_raw_disks_are_still_raw(name, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(DISKS[name])
    with open_disk(path, read_only=True) as disk:
        assert disk.format == "raw"


def test_our_own_images_are_none_of_them(tmp_path):
    for kind in ("qcow2", "vmdk", "vhd", "vhdx", "vdi"):
        create_disk(tmp_path / kind, kind, MIB)
        with open_disk(tmp_path / kind, read_only=True) as disk:
            assert disk.format == kind


def test_every_kind_says_what_to_do():
    for kind in KINDS:
        assert kind.hint
        assert kind.noun.split(" ", 1)[0] in ("a", "an")


@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd", "lz4"])
def test_files_of_the_programs_themselves(program, tmp_path):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packed = subprocess.run(
        [program, "-c"], input=RAW, capture_output=True, check=True, timeout=60
    ).stdout
    (tmp_path / "file").write_bytes(packed)
    with pytest.raises(DiskUnsupportedError, match=program):
        open_disk(tmp_path / "file", read_only=True)


# ---- archives -------------------------------------------------------------


def archive(path, form=tarfile.USTAR_FORMAT, **files):
    with tarfile.open(path, "w", format=form) as made:
        for name, data in files.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))


@pytest.fixture
def inner(tmp_path):
    """An image with something in it, as bytes."""
    path = tmp_path / "inner.qcow2"
    create_disk(path, "qcow2", 4 * MIB)
    with open_disk(path) as disk:
        disk.write(MIB, b"inside" * 1000)
    return path.read_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_disk_in_an_archive(form, inner, tmp_path):
    archive(tmp_path / "x.ova", form, a_ovf=b"<Envelope>", d_qcow2=inner, a_mf=b"SHA1")
    with open_disk(tmp_path / "x.ova", read_only=True) as disk:
        assert disk.format == "qcow2"
        assert disk.read(MIB, 6) == b"inside"
    with pytest.raises(DiskError, match="only read"):
        open_disk(tmp_path / "x.ova")


def test_an_archive_without_magic(inner, tmp_path):
    """As before POSIX: nothing tells it but the sum of its header."""
    archive(tmp_path / "x.tar", d_qcow2=inner)
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "x.tar").write_bytes(data)
    with open_disk(tmp_path / "x.tar", read_only=True) as disk:
        assert disk.read(MIB, 6) == b"inside"
    data[0] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with open_disk(tmp_path / "x.tar", read_only=True) as disk:
        assert disk.format == "raw"


def test_one_of_several_disks_in_an_archive(inner, tmp_path):
    archive(tmp_path / "x.ova", a_vmdk=b"first", b_img=inner)
    with pytest.raises(DiskUnsupportedError, match=r"2 disk images: a\.vmdk, b\.img"):
        open_disk(tmp_path / "x.ova", read_only=True)
    with open_disk(tmp_path / "x.ova", read_only=True, options={"member": "b.img"}) as disk:
        assert disk.read(MIB, 6) == b"inside"
    archive(tmp_path / "y.ova", readme=b"nothing")
    with pytest.raises(DiskUnsupportedError, match="no disk images"):
        open_disk(tmp_path / "y.ova", read_only=True)


def test_a_packed_disk_in_an_archive_is_refused_by_name(inner, tmp_path):
    archive(tmp_path / "x.ova", d_vmdk_gz=gzip.compress(inner))
    with pytest.raises(DiskUnsupportedError, match="gzip"):
        open_disk(tmp_path / "x.ova", read_only=True)


def test_an_image_in_an_archive_names_no_files_beside_the_archive(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret".ljust(MIB))
    create_disk(tmp_path / "top", "qcow2", MIB, backing="secret", backing_format="raw")
    text = b'# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="vmfs"\nRW 2048 FLAT "secret" 0\n'
    for data in ((tmp_path / "top").read_bytes(), text):
        archive(tmp_path / "x.ova", d_vmdk=data)
        with pytest.raises(DiskUnsupportedError, match="has to be whole"):
            open_disk(tmp_path / "x.ova", read_only=True)


@pytest.mark.peer
def test_archives_of_vmdk(tmp_path, qemu_img):
    data = bytes(range(256)) * 8192
    (tmp_path / "raw").write_bytes(data)
    qemu_img(
        "convert", "-O", "vmdk", "-o", "subformat=streamOptimized",
        tmp_path / "raw", tmp_path / "d.vmdk",
    )  # fmt: skip
    archive(tmp_path / "x.ova", a_ovf=b"<Envelope>", d_vmdk=(tmp_path / "d.vmdk").read_bytes())
    with open_disk(tmp_path / "x.ova", read_only=True) as disk:
        assert disk.read(0, disk.size) == data


def test_broken_archives(inner, tmp_path):
    archive(tmp_path / "whole", d_qcow2=inner)
    whole = (tmp_path / "whole").read_bytes()
    for cut in (300, 600, 5000):
        (tmp_path / "x.ova").write_bytes(whole[:cut])
        with pytest.raises(DiskError):
            open_disk(tmp_path / "x.ova", read_only=True)
    for at in range(0, 512, 7):
        (tmp_path / "x.ova").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with contextlib.suppress(DiskError):
            open_disk(tmp_path / "x.ova", "ova", read_only=True).close()
