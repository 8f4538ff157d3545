"""Disks of machines of other systems: a root file system that boots by its look."""

import stat

from ringzero.disk.convert import Conversion
from ringzero.disk.opening import open_disk
from ringzero.image.ext4 import writer
from ringzero.image.layers.tree import Node, Tree
from ringzero.units import MIB
from tests.image.export.made import bzimage

SIZE = 32 * MIB
GRUB = b"""\
menuentry "Old server" {
    linux /boot/vmlinuz-6.1 root=/dev/vda ro
    initrd /boot/initrd.img
}
"""
FILES = {
    "etc/os-release": b"ID=debian\n",
    "etc/fstab": b"/dev/vda / ext4\n",
    "etc/hello": b"hello",
    "sbin/init": b"#!",
    "boot/vmlinuz-6.1": bzimage(),
    "boot/initrd.img": b"initrd",
    "boot/grub/grub.cfg": GRUB,
}


def system(path, kind="raw", files=FILES, xattrs=None, size=SIZE, **options):
    """Write the disk of a system with `files`, all of which belong to user 7 and group 8."""
    tree = Tree(1000)
    for name, data in files.items():
        folder, _, own = name.rpartition("/")
        node = Node(stat.S_IFREG | 0o640)
        node.uid, node.gid, node.mtime = 7, 8, 1_000_000_000 * 10**9
        node.size, node.tail = len(data), data
        node.xattrs = (xattrs or {}).get(name, {})
        tree.directory(folder.encode()).children[own.encode()] = node
    raw = path if kind == "raw" else path.with_name(f"{path.name}.raw")
    with raw.open("wb") as file:
        file.truncate(size)
        writer.write(
            *(tree.root, size, file), at=0, uuid=bytes(16), label="", content=lambda n: [n.tail]
        )
    if kind != "raw":
        with open_disk(raw, "raw", read_only=True) as disk:
            Conversion(path, kind, options).run(disk)
        raw.unlink()
    return path
