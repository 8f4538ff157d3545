"""Persistent memory over the API, with the default guest's kernel and its drivers: as a root,
written to, in a snapshot, and shared by machines.
"""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ringzero.image import cpio, kernelmodules, micro
from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs (e2fsprogs) is not there"),
]
DRIVERS = ("libnvdimm", "nd_btt", "nd_pmem", "nd_virtio", "virtio_pmem")
SIZE = 48 << 20
INIT = """#!/bin/busybox sh
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe -a virtio_mmio ext4 2>/dev/null
for name in DRIVERS; do insmod /$name.ko; done
until [ -b /dev/pmem0 ]; do usleep 10000; done
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
if grep -q root=/dev/pmem0 /proc/cmdline; then
  mount -t ext4 -o ro,noload,dax /dev/pmem0 /mnt
  mount --move /dev /mnt/dev
  exec switch_root /mnt /bin/busybox sh -c 'echo MICROVM-UP; while :; do /bin/busybox sh; done'
fi
mount -t ext4 -o dax /dev/pmem0 /mnt
echo MICROVM-UP
while :; do sh; done
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """The default guest's kernel, and its initrd with the drivers of persistent memory."""
    image = micro.ensure()
    modules = kernelmodules.ensure(image)
    if modules is None:
        pytest.skip("the kernel's package cannot be had")
    initrd = tmp_path_factory.mktemp("guest") / "initrd"
    entries = [
        cpio.Entry("mnt", stat.S_IFDIR | 0o755),
        cpio.Entry(
            "microvm", stat.S_IFREG | 0o755, INIT.replace("DRIVERS", " ".join(DRIVERS)).encode()
        ),
    ]
    for name in DRIVERS:
        driver = next(Path(modules).rglob(f"{name}.ko"))
        entries.append(cpio.Entry(f"{name}.ko", stat.S_IFREG | 0o644, driver.read_bytes()))
    with initrd.open("wb") as file:
        data = image.initrd.read_bytes()
        file.write(data + bytes(-len(data) % 4))
        cpio.write(entries, file)
    return image.kernel, initrd


@pytest.fixture
def disk(tmp_path):
    """A file with an empty ext4, in blocks of a page, as DAX wants it."""
    path = tmp_path / "pmem"
    with path.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", path], check=True)
    return path


def boot(vm, guest, disk, **fields):
    kernel, initrd = guest
    vm.put("/machine-config", vcpu_count=1, mem_size_mib=256)
    vm.put(
        *("/boot-source",),
        kernel_image_path=str(kernel),
        initrd_path=str(initrd),
        boot_args=BOOT_ARGS,
    )
    vm.put("/pmem/data", id="data", path_on_host=str(disk), **fields)
    vm.put("/actions", action_type="InstanceStart")
    vm.expect(UP)


def place(tmp_path, name):
    found = tmp_path / name
    found.mkdir()
    return found


def content(disk, name):
    words = ["debugfs", "-R", f"cat {name}", str(disk)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_life(guest, disk, tmp_path):
    """Written to, saved, gone on with, and then the root of two machines that share it."""
    files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    with MicroVm(place(tmp_path, "first")) as vm:
        boot(vm, guest, disk)
        assert "dax" in vm.shell("grep /mnt /proc/mounts")
        vm.shell("mkdir /mnt/bin /mnt/dev; cp /bin/busybox /mnt/bin; echo one > /mnt/note; sync")
        assert content(disk, "note") == "one\n"
        vm.patch("/vm", state="Paused")
        vm.put("/snapshot/create", **files)
        # The file is the client's, not the snapshot's.
        assert (tmp_path / "m").stat().st_size == 256 << 20
        # One machine has a file that is written to.
        with MicroVm(place(tmp_path, "other")) as other:
            status, answer = other.ask("PUT", "/snapshot/load", files)
            assert status == 400
            assert "in use by another process" in answer["fault_message"]
    with MicroVm(place(tmp_path, "second")) as vm:
        vm.put("/snapshot/load", **files, resume_vm=True)
        assert vm.shell("cat /mnt/note; echo two > /mnt/note; sync; cat /mnt/note") == "one\ntwo\n"
        vm.shell("umount /mnt")
    assert content(disk, "note") == "two\n"
    before = disk.read_bytes()
    with MicroVm(place(tmp_path, "third")) as vm, MicroVm(place(tmp_path, "fourth")) as more:
        for one in (vm, more):
            boot(one, guest, disk, root_device=True, read_only=True)
            assert one.shell("/bin/busybox cat /note; echo x > /note; :") == (
                "two\nsh: can't create /note: Read-only file system\n"
            )
        vm.patch("/vm", state="Paused")
        vm.put("/snapshot/create", **files)
        with MicroVm(place(tmp_path, "fifth")) as copy:
            copy.put("/snapshot/load", **files, resume_vm=True)
            assert copy.shell("/bin/busybox cat /note") == "two\n"
    assert disk.read_bytes() == before


def test_what_the_guest_writes_to_a_read_only_one_is_gone_with_it(guest, disk, tmp_path):
    before = disk.read_bytes()
    files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    with MicroVm(place(tmp_path, "first")) as vm:
        boot(vm, guest, disk, read_only=True)
        assert vm.shell("echo own > /mnt/note; sync; cat /mnt/note") == "own\n"
        vm.patch("/vm", state="Paused")
        status, answer = vm.ask("PUT", "/snapshot/create", files)
        assert status == 400
        assert "read-only, which no copy has" in answer["fault_message"]
    assert disk.read_bytes() == before
