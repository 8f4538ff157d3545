"""Owners, times, devices and extended attributes, as file systems' own tools have put them in."""

import contextlib
import os
import stat

import pytest

from ringzero.errors import FileSystemError
from ringzero.image.fs.contract import open_file_system
from tests.image.fs.made import Image, btrfs, erofs, ext, fat, part, xfs

# struct vfs_cap_data (linux/capability.h), revision 2: CAP_NET_RAW.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
MAKERS = {
    "ext4": ext("-t", "ext4", "-I", "256"),
    "ext4-blocks": ext("-t", "ext4", "-I", "128"),
    "erofs": erofs(),
    "erofs-shared": erofs("-x0"),
    "btrfs": btrfs(),
    "xfs": xfs(),
}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "ping").write_bytes(b"program")
    (root / "etc/conf").write_bytes(b"x")
    (root / "link").symlink_to("ping")
    os.utime(root / "ping", (1, 1_500_000_000))
    with contextlib.suppress(OSError):
        os.setxattr(root / "ping", "user.note", b"n" * 40)
        os.setxattr(root / "etc", "user.of-a-folder", b"")
    # As root alone.
    with contextlib.suppress(OSError):
        os.setxattr(root / "ping", "security.capability", CAPABILITY)
        os.chown(root / "ping", 70_000, 5)
        os.chown(root / "link", 3, 4, follow_symlinks=False)
        os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    return root


def told(path):
    """Return what the host says of a file: owner, device, attributes."""
    info = path.lstat()
    device = (0, 0)
    if stat.S_ISBLK(info.st_mode):
        device = os.major(info.st_rdev), os.minor(info.st_rdev)
    names = os.listxattr(path, follow_symlinks=False)
    known = {
        name.encode(): os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if name.startswith(("user.", "security.capability"))
    }
    return info.st_uid, info.st_gid, device, known


@pytest.mark.parametrize("name", MAKERS)
def test_what_the_host_told_is_read(tmp_path, tree, name):
    MAKERS[name](tree, tmp_path / "image")
    source = Image(tmp_path / "image")
    with source.file:
        files = open_file_system(part(source))
        for path in ("/ping", "/etc", "/etc/conf", "/link", "/disk"):
            nodes = dict(files.walk())
            # A device is made by root alone, and none by the prototype for mkfs.xfs.
            if path not in nodes and path == "/disk":
                continue
            node = nodes[path]
            found = files.attributes(node)
            uid, gid, device, xattrs = told(tree / path[1:])
            assert (found.uid, found.gid) == (uid, gid)
            # mkfs.btrfs writes 0 for a device's number.
            assert name == "btrfs" or found.device == device
            # The prototype that mkfs.xfs is given says nothing of them.
            assert name == "xfs" or (found.xattrs or {}) == xattrs
            if path == "/ping" and name not in ("xfs", "erofs", "erofs-shared"):
                assert found.mtime == 1_500_000_000


def test_a_kind_without_owners_is_named(tmp_path, tree):
    (tree / "link").unlink()
    with contextlib.suppress(OSError):
        (tree / "disk").unlink()
    fat("-F", "16", size=16 << 20)(tree, tmp_path / "image")
    source = Image(tmp_path / "image")
    with source.file:
        files = open_file_system(part(source))
        with pytest.raises(FileSystemError, match="owners and attributes"):
            files.attributes(files.root())
