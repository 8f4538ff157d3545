"""Kernels without a boot loader's configuration, under the names that distributions use."""

import pytest

from ringzero.image.bootloader import kernels
from ringzero.image.fs.contract import FILE_SYSTEMS
from tests.image.bootloader.made import volume, volumes


@pytest.mark.parametrize(
    ("kernel", "initrd"),
    [
        ("vmlinuz-6.1.0-9-amd64", "initrd.img-6.1.0-9-amd64"),
        ("vmlinuz-6.8.5-301.fc40.x86_64", "initramfs-6.8.5-301.fc40.x86_64.img"),
        ("vmlinuz-linux", "initramfs-linux.img"),
        ("vmlinuz-virt", "initramfs-virt"),
        ("vmlinuz-6.4.0-default", "initrd-6.4.0-default"),
    ],
)
def test_by_distribution(kernel, initrd):
    root = volume(2, {f"boot/{kernel}": b"k", f"boot/{initrd}": b"i", "etc/fstab": ""}, uuid="aa")
    (found,) = kernels.find(volumes(root))
    assert found.kernel.path == f"/boot/{kernel}"
    assert [place.path for place in found.initrds] == [f"/boot/{initrd}"]
    assert found.command_line == "root=UUID=aa ro"


@pytest.mark.parametrize(("name", "kind"), [("ext", "ext4"), ("XFS", "xfs"), ("btrfs", "btrfs")])
def test_the_type_of_the_root_is_told(name, kind):
    """Alpine's initrd loads no module of a file system without it."""
    root = volume(2, {"boot/vmlinuz-virt": b"k"}, uuid="aa")
    root.files.name = name
    (found,) = kernels.find(volumes(root))
    assert found.command_line == f"root=UUID=aa rootfstype={kind} ro"


def test_every_type_is_one_that_is_read():
    assert {kind.name for _, kind in FILE_SYSTEMS} - {"FAT"} == set(kernels._DRIVERS)


def test_the_newest_is_the_first_and_a_rescue_kernel_the_last():
    names = ("6.9.1", "6.10.0-rc1", "6.10.0", "0-rescue", "5.19")
    root = volume(1, {f"boot/vmlinuz-{name}": b"" for name in names}, uuid="aa")
    found = [e.id.removeprefix("vmlinuz-") for e in kernels.find(volumes(root))]
    assert found[-1] == "0-rescue"
    assert found[:2] in (["6.10.0-rc1", "6.10.0"], ["6.10.0", "6.10.0-rc1"])
    assert found[2:4] == ["6.9.1", "5.19"]


def test_directories_and_other_files_are_no_kernels():
    root = volume(1, {"boot/vmlinuz-6": {}, "boot/config-6": b"", "boot/System.map-6": b""})
    assert kernels.find(volumes(root)) == []
