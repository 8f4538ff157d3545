"""Unified kernel images: of a program written here, and of systemd's stub by objcopy."""

import struct
import subprocess

import pytest

from ringzero.errors import FileSystemError
from ringzero.image.bootable import load
from ringzero.image.bootloader import uki
from ringzero.image.bootloader.contract import FileAt
from tests.image.bootloader.made import volume, volumes
from tests.image.fs.made import tool
from tests.image.tools import packaged

OS_RELEASE = b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n'


def program(machine=0x8664, **sections):
    """Return an EFI program with sections, each padded to 512 bytes on the disk."""
    header = bytearray(b"MZ".ljust(64, b"\0"))
    struct.pack_into("<I", header, 60, 64)
    optional = 240
    header += struct.pack("<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, optional, 0)
    header += bytes(optional)
    offset = 4096
    body = bytearray()
    for name, data in sections.items():
        padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
        header += struct.pack(
            "<8sIIII16x", f".{name}".encode(), len(data), 0x1000, len(padded), offset + len(body)
        )
        body += padded
    return bytes(header).ljust(offset, b"\0") + bytes(body)


def image(**more):
    parts = {"osrel": OS_RELEASE, "cmdline": b"root=LABEL=x quiet\n\0", "initrd": b"I" * 700}
    return program(**{**parts, "linux": b"K" * 5000, **more})


def menu(files, **names):
    found = uki.find(volumes(volume(1, files, **names)))
    return found, next((e for e in found if e.default), None)


def test_the_parts_of_an_image():
    found, chosen = menu({"EFI/Linux/debian-6.1.efi": image(ucode=b"U" * 5)})
    assert found == [chosen]
    assert (chosen.id, chosen.title) == ("debian-6.1.efi", "Debian GNU/Linux 12")
    files = load(chosen)
    assert files.kernel == b"K" * 5000
    # Each archive begins at a multiple of 4.
    assert files.initrd == b"U" * 5 + bytes(3) + b"I" * 700
    assert files.command_line == "root=LABEL=x quiet console=ttyS0"


def test_the_newest_image_is_the_default():
    found, chosen = menu(
        {
            "EFI/Linux/os_1.9.efi": image(osrel=b"ID=os\nVERSION_ID=1.9\n"),
            "EFI/Linux/os_1.10.efi": image(osrel=b"ID=os\nVERSION_ID=1.10\n"),
            "EFI/Linux/os_2.0+0-3.efi": image(osrel=b"ID=os\nVERSION_ID=2.0\n"),
        }
    )
    assert [e.id for e in found] == ["os_1.10.efi", "os_1.9.efi", "os_2.0+0-3.efi"]
    assert chosen is found[0]


def test_images_and_entries_are_one_menu():
    entry = "title Other\nsort-key zzz\nlinux /k\n"
    found, _ = menu({"EFI/Linux/a.efi": image(), "loader/entries/b.conf": entry, "k": b""})
    assert [e.id for e in found] == ["a.efi", "b"]


def test_an_entry_that_names_an_image():
    entry = "title Own\nuki /EFI/own.efi\n"
    _, chosen = menu({"loader/entries/own.conf": entry, "EFI/own.efi": image()})
    assert load(chosen).kernel == b"K" * 5000
    entry += "options init=/bin/sh\n"
    _, chosen = menu({"loader/entries/own.conf": entry, "EFI/own.efi": image()})
    assert load(chosen).command_line == "init=/bin/sh console=ttyS0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ",
        b"MZ".ljust(64, b"\xff"),
        image()[:80],
        image(linux=b"")[:400],
        program(osrel=OS_RELEASE),
        program(0xAA64, linux=b"K"),
        b"\x7fELF" + bytes(100),
    ],
)
def test_what_is_no_image_is_left_out(data):
    assert menu({"EFI/Linux/x.efi": data})[0] == []


def test_sections_that_reach_beyond_the_file_end_with_it():
    data = bytearray(image())
    at = data.index(b".linux")
    struct.pack_into("<II", data, at + 16, 0xFFFF_FFF0, struct.unpack_from("<I", data, at + 20)[0])
    struct.pack_into("<I", data, at + 8, 0xFFFF_FFF0)
    _, chosen = menu({"EFI/Linux/x.efi": bytes(data)})
    try:
        kernel = load(chosen).kernel
    except FileSystemError:
        return
    assert len(kernel) <= len(data)


@pytest.mark.peer
def test_an_image_that_objcopy_made_of_systemds_stub(tmp_path):
    """As the manual of systemd-stub(7) has it made, before there was ukify."""
    stub = packaged("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
    contents = {
        "osrel": OS_RELEASE,
        "cmdline": b"root=UUID=aa-bb ro console=ttyS0",
        "linux": bytes(range(256)) * 40,
        "initrd": b"initrd" * 1000,
    }
    (tmp_path / "stub").write_bytes(stub)
    command = [tool("objcopy")]
    for number, (name, data) in enumerate(contents.items()):
        (tmp_path / name).write_bytes(data)
        command += [f"--add-section=.{name}={tmp_path / name}"]
        command += [f"--change-section-vma=.{name}={0x2000000 + 0x1000000 * number:#x}"]
    subprocess.run([*command, tmp_path / "stub", tmp_path / "made.efi"], check=True)
    made = (tmp_path / "made.efi").read_bytes()
    found, chosen = menu({"EFI/Linux/made.efi": made})
    assert chosen.title == "Debian GNU/Linux 12"
    files = load(chosen)
    assert files.kernel[: len(contents["linux"])] == contents["linux"]
    assert files.initrd[: len(contents["initrd"])] == contents["initrd"]
    assert files.command_line == "root=UUID=aa-bb ro console=ttyS0"
    place = FileAt(found[0].kernel.volume, "/EFI/Linux/made.efi")
    assert {".osrel", ".cmdline", ".linux", ".initrd", ".sdmagic"} <= set(uki.sections(place))
