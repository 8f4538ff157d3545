"""Exported disks: what firmware, boot loaders and our own reader find on them."""

import shutil

import pytest

from ringzero.disk import open_disk
from ringzero.errors import InvalidValueError
from ringzero.image import cpio
from ringzero.image.bootable import examine, load
from ringzero.image.export.disk import BootableDisk
from ringzero.image.fs.contract import open_file_system
from ringzero.image.partitions import read_partitions
from ringzero.units import MIB
from tests.image.export import made

FILES = {
    "etc/hello": b"hello",
    "etc/passwd": b"web:x:100:101::/home:/bin/sh\n",
    "bin": None,
    "usr/sbin/halt": b"mine",
    "sbin": ("->", "usr/sbin"),
    "link": ("->", "etc/hello"),
    "hard": ("=", "etc/hello"),
}
CONFIG = {"Entrypoint": ["/bin/it's"], "Cmd": ["a b"], "User": "web", "Env": ["A=1"]}


def exported(tmp_path, files=None, config=None, size=None):
    """Export an image; return the disk's path."""
    cache = tmp_path / "cache"
    image = made.image(tmp_path / "layout", cache, FILES if files is None else files, config)
    path = tmp_path / "disk"
    disk = BootableDisk(image, made.kit(tmp_path / "kit"), cache, size)
    with path.open("wb") as file:
        disk.write(file)
    assert path.stat().st_size == disk.size
    return path


def last_archive(initrd):
    """Return the files of the archive that stands behind the kit's."""
    at = initrd.index(b"070701", initrd.index(b"TRAILER!!!"))
    return {entry.name: entry.data for entry in cpio.read(initrd[at:])}


def test_our_own_machine_finds_what_it_boots(tmp_path):
    path = exported(tmp_path, config=CONFIG)
    with open_disk(path, "raw", read_only=True) as disk:
        bios, esp, root = read_partitions(disk)
        assert [p.purpose for p in (bios, esp)] == ["BIOS boot partition", "EFI system partition"]
        found = examine(disk)
        entry = found.choose()
        boot = load(entry)
        system = open_file_system(root.open(disk))
        firmware = open_file_system(esp.open(disk))
        assert firmware.read_file("/EFI/BOOT/BOOTX64.EFI", limit=MIB)[:2] == b"MZ"
        script = firmware.read_file("/EFI/debian/grub.cfg", limit=MIB).decode()
        assert system.uuid in script
        assert system.read_file("/hard", limit=100) == b"hello"
        assert system.readlink("/link") == "etc/hello"
        # The commands that end the machine: those that the image lacks.
        assert system.readlink("/sbin/poweroff") == "/run/ringzero/disk/bin/busybox"
        assert system.read_file("/sbin/halt", limit=100) == b"mine"
    assert boot.kernel == made.bzimage()
    assert f"root=UUID={system.uuid} rw" in boot.command_line
    assert boot.command_line.endswith("console=ttyS0")
    own = last_archive(boot.initrd)
    assert own["command"] == b"set -- '/bin/it'\"'\"'s' 'a b'\n"
    assert b"export A=1\n" in own["config"] and b"user=100 groups=101" in own["config"]


def test_an_image_with_its_own_system_starts_that(tmp_path):
    path = exported(tmp_path, {**FILES, "usr/sbin/init": b""}, {"Cmd": None})
    with open_disk(path, "raw", read_only=True) as disk:
        own = last_archive(load(examine(disk).choose()).initrd)
    assert own["command"] == b"set -- /sbin/init\n"


def test_equal_images_make_equal_disks(tmp_path):
    one = exported(tmp_path, size=64 * MIB).read_bytes()
    for name in ("layout", "kit", "cache"):
        shutil.rmtree(tmp_path / name)
    assert len(one) == 64 * MIB
    same = exported(tmp_path, size=64 * MIB).read_bytes() == one
    assert same


def test_a_size_that_is_too_small(tmp_path):
    with pytest.raises(InvalidValueError, match="does not fit") as told:
        exported(tmp_path, size=20 * MIB)
    assert "at least" in told.value.hint
