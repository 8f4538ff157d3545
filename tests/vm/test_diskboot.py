"""Disks that are booted by what they hold: a kernel of ours on ext4 or btrfs, and Debian itself."""

import threading

import pytest

from ringzero.errors import ConfigError, GuestImageError, NotFoundError
from ringzero.image.names import IMAGES
from ringzero.vm.machine import Machine
from tests.image.fs.made import btrfs, ext, run

GRUB = """
set default="{default}"
menuentry 'Ours' --id ours {{
  search --fs-uuid --set=root $nothing
  linux /boot/vmlinuz {line} quiet-not marker=ours
  initrd /boot/initrd
}}
menuentry 'Other' --id other {{
  linux /boot/vmlinuz {line} marker=other
  initrd /boot/initrd
}}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    image = IMAGES.get("micro")()
    top = tmp_path_factory.mktemp("disk") / "tree"
    (top / "boot" / "grub").mkdir(parents=True)
    (top / "etc").mkdir()
    (top / "etc" / "os-release").write_text("ID=ours\n")
    (top / "boot" / "vmlinuz").write_bytes(image.kernel.read_bytes())
    (top / "boot" / "initrd").write_bytes(image.initrd.read_bytes())
    line = "panic=-1 reboot=a"
    (top / "boot" / "grub" / "grub.cfg").write_text(GRUB.format(default="ours", line=line))
    return top


def disk(tree, folder, make):
    """Return a raw disk: GPT, and one partition with the tree."""
    part = folder / "part"
    make(tree, part)
    size = part.stat().st_size
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(size + (2 << 20))
    script = f"label: gpt\nstart=2048, size={size // 512}, type=L\n"
    run("sfdisk", "-q", path, input=script.encode())
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(part.read_bytes())
    part.unlink()
    return path


def said(machine, wanted, timeout=120):
    """Run a machine until its serial line has said `wanted`; return all that it said."""
    heard, found = bytearray(), threading.Event()

    def hear(data):
        heard.extend(data)
        if wanted in heard:
            found.set()

    machine.serial.on_output = hear
    machine.start()
    found.wait(timeout)
    return bytes(heard)


@pytest.mark.boot
@pytest.mark.peer
@pytest.mark.engine
@pytest.mark.parametrize("make", [ext("-t", "ext4", size=96 << 20), btrfs()], ids=["ext4", "btrfs"])
def test_the_kernel_on_the_disk_runs(tree, tmp_path, make):
    path = disk(tree, tmp_path, make)
    for entry, marker in (("", b"marker=ours"), ("other", b"marker=other")):
        with Machine(disk=f"{path},ro", boot_entry=entry, memory="256M") as machine:
            heard = said(machine, b"Memory: ", 100)
            assert b"Linux version" in heard
            assert marker in heard


def test_what_makes_no_sense_is_told(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(GuestImageError, match="nothing to boot"):
        Machine(disk=f"{path},ro", boot_entry="")
    with pytest.raises(ConfigError, match="without a disk"):
        Machine(boot_entry="")
    with pytest.raises(ConfigError, match="and a kernel"):
        Machine(disk=f"{path},ro", kernel="vmlinuz", boot_entry="")


@pytest.mark.peer
def test_an_entry_that_is_not_there_is_told_with_all_others(tree, tmp_path):
    path = disk(tree, tmp_path, ext("-t", "ext4", size=96 << 20))
    with pytest.raises(
        NotFoundError, match=r"no boot entry is called 'x'(.|\n)*0  Ours\n  1  Other"
    ):
        Machine(disk=f"{path},ro", boot_entry="x")
