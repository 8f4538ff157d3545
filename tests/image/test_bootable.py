"""What a disk boots, found on disks that are made here: nothing of it runs."""

import contextlib
import os
import random
import subprocess
import time

import pytest

from ringzero.cli.main import main
from ringzero.disk import open_disk
from ringzero.errors import FileSystemError, GuestImageError, NotFoundError
from ringzero.image import bootable
from ringzero.image.bootable import examine, load
from tests.image.bootloader.test_fuzz import program
from tests.image.fs.made import Image, btrfs, erofs, ext, fat, gpt, run, squashfs, xfs

pytestmark = pytest.mark.peer
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
MIB = 1 << 20
KERNEL, INITRD = b"the kernel" * 50_000, b"the initrd" * 70_001
GRUB = """set default=0
search --no-floppy --fs-uuid --set=root $nothing
menuentry 'Linux' --id one {
  linux /boot/vmlinuz-6.1 root=LABEL=made ro console=tty0
  initrd /boot/initrd.img-6.1
}
menuentry 'Gone' --id gone { linux /boot/vmlinuz-5.10; }
"""
ENTRY = "title Linux\nversion 6.1\nlinux /vmlinuz-6.1\ninitrd /initrd.img-6.1\noptions quiet\n"
EXTLINUX = "DEFAULT one\nLABEL one\n LINUX /boot/vmlinuz-6.1\n INITRD /boot/initrd.img-6.1\n"
FEDORA = "load_env\nset boot=${root}\nblscfg\n"
# What a root has, of which some is cloud-init.
ROOT = {"etc/os-release": b"ID=debian\n", "sbin/init": b"", "usr/bin/cloud-init": b""}
FILES = {"boot/vmlinuz-6.1": KERNEL, "boot/initrd.img-6.1": INITRD}
ON_BOOT = {path.removeprefix("boot/"): data for path, data in FILES.items()}
WITH_GRUB = ROOT | FILES | {"boot/grub/grub.cfg": GRUB.encode()}
EXT, BTRFS = ext("-t", "ext4", size=16 << 20), btrfs("--mixed", size=24 << 20)
XFS, ESP = xfs(size=32 << 20), fat(size=8 << 20)
# By what finds the entry: file systems with what is in each.
DISKS = {
    "grub-ext4": [("L", EXT, WITH_GRUB)],
    "grub-btrfs": [("L", BTRFS, WITH_GRUB)],
    "grub-xfs": [("L", XFS, WITH_GRUB)],
    "grub-erofs": [("L", erofs("-zlz4hc"), WITH_GRUB)],
    "grub-squashfs": [("L", squashfs("-comp", "xz"), WITH_GRUB)],
    "grub-fedora": [
        ("U", ESP, {"EFI/fedora/grub.cfg": b"configfile (hd0,gpt2)/grub2/grub.cfg\n"}),
        ("L", EXT, ON_BOOT | {"grub2/grub.cfg": FEDORA.encode(), "loader/entries/1.conf": ENTRY}),
        ("L", BTRFS, ROOT),
    ],
    "systemd-boot": [
        ("U", ESP, ON_BOOT | {"loader/entries/one.conf": ENTRY}),
        ("L", XFS, ROOT),
    ],
    "extlinux": [("L", EXT, ROOT | FILES | {"extlinux/extlinux.conf": EXTLINUX})],
    "kernels": [("L", XFS, ROOT | FILES)],
}


def filled(top, files):
    for path, data in files.items():
        place = top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.encode() if isinstance(data, str) else data)
    return top


def made(tmp_path, parts):
    """Return a raw disk with such partitions."""
    found = []
    for number, (kind, make, files) in enumerate(parts):
        tree, part = filled(tmp_path / f"tree{number}", files), tmp_path / f"part{number}"
        make(tree, part)
        # Some tools end their file with their data, and not with a sector.
        part.open("r+b").truncate(-(-part.stat().st_size // MIB) * MIB)
        found.append((kind, part))
    return gpt(tmp_path / "disk.img", *found)


@pytest.mark.parametrize("name", DISKS)
def test_kernel_and_initrd_are_found_and_read(tmp_path, name):
    path = made(tmp_path, DISKS[name])
    packed = tmp_path / "disk.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", path, packed)
    for file, form in ((path, "raw"), (packed, "qcow2")):
        with open_disk(file, format=form, read_only=True) as disk:
            found = examine(disk)
            entry = found.choose()
            files = load(entry)
        assert (files.kernel, files.initrd.rstrip(b"\0")) == (KERNEL, INITRD)
        assert len(files.initrd) % 4 == 0
        assert files.command_line.endswith("console=ttyS0")
        assert found.cloud_init
        assert found.warnings == ()
    if name.startswith("grub-") and name != "grub-fedora":
        assert entry.id == "one" and "root=LABEL=made" in files.command_line


def test_a_unified_image_is_read(tmp_path):
    path = made(tmp_path, [("U", ESP, {"EFI/Linux/one.efi": program()}), ("L", EXT, ROOT)])
    found = examine(Image(path))
    files = load(found.choose())
    assert (files.kernel, files.command_line) == (b"kernel", "quiet console=ttyS0")


def test_an_entry_whose_kernel_is_gone(tmp_path):
    found = examine(Image(made(tmp_path, DISKS["grub-ext4"])))
    with pytest.raises(NotFoundError, match=r"'Gone' from /boot/vmlinuz-5.10 in partition 1"):
        load(found.choose("gone"))
    with pytest.raises(NotFoundError, match=r"did you mean 'gone'"):
        found.choose("gome")


def test_an_initrd_that_the_guest_has_no_room_for(tmp_path):
    """It is not read first: it may have gigabytes."""
    entry = examine(Image(made(tmp_path, DISKS["grub-ext4"]))).choose()
    with pytest.raises(GuestImageError, match=r"initrd of 'Linux' of .* does not fit into"):
        load(entry, len(INITRD) - 1)
    assert load(entry, len(INITRD)).initrd.startswith(INITRD)


def test_looking_through_a_disk_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(bootable, "_MOST_READ", 30_000)
    found = examine(Image(made(tmp_path, DISKS["grub-ext4"])))
    with pytest.raises(GuestImageError, match=r"nothing to boot.*without an end"):
        found.choose()


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "cut", "other", "unreadable"])
def test_what_is_no_disk_of_a_system_is_told(tmp_path, what, capsys, monkeypatch):
    """One line that says what to do, and nothing is left behind."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    path = tmp_path / "image"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "cut":
        whole = made(tmp_path, DISKS["grub-ext4"]).read_bytes()
        path.write_bytes(whole[: 3 * MIB])
    elif what == "other":
        path.write_bytes(b"PK\3\4" + bytes(3 * MIB))
    elif what == "unreadable":
        path.symlink_to(path)
    status = main(["run", "--boot-entry", "", "--disk", f"{path},format=raw,ro"])
    told = capsys.readouterr().err
    assert status in (2, 3, 5)
    assert "Traceback" not in told and told.count("ringzero: error:") == 1, told
    assert subprocess.run(["ls", "-A", tmp_path / "machines"], capture_output=True).stdout == b""


@pytest.mark.parametrize("name", DISKS)
def test_fuzz_damaged_disks(tmp_path, name):
    """Partitions, file systems and configuration with wrong bytes: an entry or an error, soon."""
    path, random_ = made(tmp_path, DISKS[name]), random.Random(name)
    data = path.read_bytes()
    used = [at for at in range(0, len(data), 512) if any(data[at : at + 512])]
    # The kernel's and the initrd's own bytes change nothing: they are the most.
    used = [at for at in used if b"the " not in data[at : at + 512]]
    for _ in range(20 * FUZZ):
        changes = {}
        for _ in range(random_.choice((1, 3, 30, 200))):
            at = random_.choice(used) + random_.randrange(512)
            changes[at] = random_.choice((0, 0xFF, random_.randrange(256)))
        began = time.process_time()
        with contextlib.suppress(FileSystemError, GuestImageError, NotFoundError):
            load(examine(Image(path, changes)).choose())
        assert time.process_time() - began < 20, changes
