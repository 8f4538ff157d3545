"""A root file system on a drive, as Firecracker's users have it: ext4, and an ELF vmlinux.

The default guest's kernel has the drivers of both as modules, so an initrd loads them and goes
over to the root that the command line names.
"""

import os
import shutil
import stat
import struct
import subprocess

import pytest

from ringzero.board.boot.kernel import decompress
from ringzero.image import cpio
from tests.doors.firecracker import microvm
from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs (e2fsprogs) is not there"),
]
SIZE = 32 << 20
INIT = b"""#!/bin/busybox sh
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
modprobe -a virtio_mmio virtio_blk virtio_net ext4
for word in $(cat /proc/cmdline); do
  case $word in
    root=*) root=${word#root=} ;;
    ro|rw) how=$word ;;
  esac
done
case $root in PARTUUID=*) root=/dev/vda1 ;; esac
until [ -b $root ]; do usleep 10000; done
mount -t ext4 -o $how,noload $root /mnt || mount -t ext4 -o $how $root /mnt
cp -a /bin/busybox /mnt/bin/ 2>/dev/null
mount --move /dev /mnt/dev
exec switch_root /mnt /sbin/init
"""
# What the root file system has; the guest itself brings the busybox.
FIRST = """#!/bin/busybox sh
export PATH=/bin:/sbin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
busybox mount -t proc proc /proc
busybox stty -echo
echo MICROVM-UP
while :; do busybox sh; done
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """A vmlinux, as the bzImage has it in itself (boot protocol 2.08 on), and the initrd."""
    place = tmp_path_factory.mktemp("guest")
    kernel, initrd = microvm.guest(place, INIT, [cpio.Entry("mnt", stat.S_IFDIR | 0o755)])
    data = kernel.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    begin = (data[0x1F1] or 4) * 512 + 512 + offset
    vmlinux = place / "vmlinux"
    vmlinux.write_bytes(decompress(data[begin : begin + length]))
    assert vmlinux.read_bytes()[:4] == b"\x7fELF"
    return vmlinux, initrd


@pytest.fixture
def root(tmp_path):
    tree = tmp_path / "tree"
    for name in ("bin", "sbin", "dev", "proc"):
        (tree / name).mkdir(parents=True)
    (tree / "sbin/init").write_text(FIRST)
    (tree / "sbin/init").chmod(0o755)
    path = tmp_path / "rootfs.ext4"
    with path.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path], check=True)
    return path


def boot(vm, guest, root, **fields):
    vmlinux, initrd = guest
    vm.put(
        *("/boot-source",),
        kernel_image_path=str(vmlinux),
        initrd_path=str(initrd),
        boot_args=BOOT_ARGS,
    )
    drive = {"path_on_host": str(root), "is_root_device": True, **fields}
    vm.put("/drives/rootfs", drive_id="rootfs", **drive)
    vm.put("/machine-config", vcpu_count=2, mem_size_mib=256)
    vm.put("/actions", action_type="InstanceStart")
    vm.expect(UP)


def place(tmp_path, name):
    found = tmp_path / name
    found.mkdir()
    return found


def test_a_root_that_is_written_to_and_then_only_read(guest, root, tmp_path):
    with MicroVm(place(tmp_path, "first")) as vm:
        boot(vm, guest, root, is_read_only=False)
        assert "/dev/vda / ext4 rw" in vm.shell("busybox grep ' / ext4' /proc/mounts")
        vm.shell("echo kept > /note; busybox sync")
        assert vm.shell("busybox nproc") == "2\n"
    before = root.read_bytes()
    with MicroVm(place(tmp_path, "second")) as vm, MicroVm(place(tmp_path, "third")) as other:
        for one in (vm, other):
            boot(one, guest, root, is_read_only=True)
            assert one.shell("busybox cat /note") == "kept\n"
            assert "Read-only" in one.shell("echo more > /note")
    assert root.read_bytes() == before


@pytest.mark.skipif(
    not os.access("/dev/net/tun", os.R_OK | os.W_OK) or os.geteuid() != 0,
    reason="taps need root and /dev/net/tun",
)
def test_a_tap(guest, root, tmp_path):
    """An interface on a tap of the host's: its frames come out there."""
    name = "rzfctest0"
    made = subprocess.run(
        ["ip", "tuntap", "add", "dev", name, "mode", "tap"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no tap can be made: {made.stderr}")
    try:
        subprocess.run(["ip", "addr", "add", "172.31.255.1/30", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", "dev", name, "up"], check=True)
        with MicroVm(place(tmp_path, "vm")) as vm:
            vm.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name=name)
            boot(vm, guest, root, is_read_only=False)
            vm.shell("busybox ip addr add 172.31.255.2/30 dev eth0; busybox ip link set eth0 up")
            assert "1 packets received" in vm.shell("busybox ping -c 1 -W 5 172.31.255.1")
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)
