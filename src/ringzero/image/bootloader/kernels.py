"""Without a boot loader's configuration: the newest kernel in /boot, with the initrd beside it."""

from __future__ import annotations

import re

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader.bls import version_key
from ringzero.image.bootloader.contract import BootEntry, FileAt, Volume, Volumes, exists, listing

_KERNEL = re.compile(r"(?:vmlinuz|vmlinux|linux|bzImage)(?:-(.+))?")
# By distribution: Debian, Fedora, Arch, Alpine, openSUSE.
_INITRDS = (
    "initrd.img-{}", "initramfs-{}.img", "initramfs-{}", "initrd-{}", "initrd-{}.img",
    "initrd.img", "initrd",
)  # fmt: skip
_MAX_KERNELS = 100
# What the kernel calls the file systems that a root may be; ext4's driver has ext2 and ext3, too.
_DRIVERS = {"ext": "ext4", "XFS": "xfs", "btrfs": "btrfs", "EROFS": "erofs", "SquashFS": "squashfs"}


def find(volumes: Volumes) -> list[BootEntry]:
    """Return one entry for every kernel file, the newest first and the default."""
    found: list[tuple[tuple[bool, object], BootEntry]] = []
    root = _root_argument(volumes)
    for volume in volumes:
        for directory in ("/boot", "/"):
            names = [name for name in listing(volume, directory) if _KERNEL.fullmatch(name)]
            for name in names[:_MAX_KERNELS]:
                path = f"{directory.rstrip('/')}/{name}"
                version = (_KERNEL.fullmatch(name) or [None, None])[1] or ""
                if not _is_file(volume, path):
                    continue
                initrd = _initrd(volume, directory.rstrip("/"), version)
                entry = BootEntry(
                    name,
                    f"{name} in {volume.name}",
                    FileAt(volume, path),
                    (initrd,) if initrd else (),
                    f"{root} ro".strip(),
                    "kernel files",
                )
                order = (not version.endswith(("rescue", "fallback")), version_key(version))
                found.append((order, entry))
    return [entry for _, entry in sorted(found, key=lambda item: item[0], reverse=True)]


def _initrd(volume: Volume, directory: str, version: str) -> FileAt | None:
    for pattern in _INITRDS:
        path = f"{directory}/{pattern.format(version)}"
        if exists(volume, path):
            return FileAt(volume, path)
    return None


def _is_file(volume: Volume, path: str) -> bool:
    try:
        return volume.files.stat(path).is_file
    except (NotFoundError, FileSystemError):
        return False


def _root_argument(volumes: Volumes) -> str:
    """Return the kernel's root= and rootfstype= for the system's own file system.

    Alpine's initrd loads the file system's module by that type alone.
    """
    root = volumes.root
    if root is None:
        return ""
    place = "root=/dev/vda" + ("" if root.partition is None else str(root.partition.number))
    if root.files.uuid:
        place = f"root=UUID={root.files.uuid}"
    elif root.partition is not None and root.partition.uuid:
        place = f"root=PARTUUID={root.partition.uuid}"
    kind = _DRIVERS.get(root.files.name)
    return f"{place} rootfstype={kind}" if kind else place
