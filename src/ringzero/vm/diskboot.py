"""What a machine boots from its first disk: kernel, initrd and command line of an entry there.

The disk is looked through at every start, so that a guest that has been given a newer kernel boots
that one. Apart from what a start from files needs: most starts need none of this.
"""

from __future__ import annotations

import hashlib
import warnings

from ringzero.board.boot.kernel import load_kernel
from ringzero.board.boot.kernelimage import KernelImage
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.machine import MachineConfig
from ringzero.disk import open_disk
from ringzero.errors import GuestImageError
from ringzero.host.files import atomic_file, make_directory, newest_first
from ringzero.image.bootable import Bootable, check_transport, examine, load
from ringzero.settings import CACHE_DIR

# Kernels taken from disks that are kept in the cache: those used last.
_KEPT = 8


def look(disk: DiskConfig) -> Bootable:
    """Return what can be booted on a disk. Its files cannot be read any more.

    Raises DiskError, FileSystemError, NotFoundError.
    """
    with open_disk(disk.path, format=disk.format, read_only=True) as image:
        return examine(image)


def read(config: MachineConfig) -> tuple[KernelImage, memoryview, str]:
    """Return what `boot_entry` of the first disk is: kernel, initrd, command line.

    Raises what `look` does, and GuestImageError.
    """
    assert config.boot_entry is not None
    disk = config.disks[0]
    with open_disk(disk.path, format=disk.format, read_only=True) as image:
        bootable = examine(image)
        entry = bootable.choose(config.boot_entry)
        check_transport(entry, bootable.volumes)
        files = load(entry, config.memory)
    for warning in bootable.warnings:
        warnings.warn(f"{disk.path}: {warning}", RuntimeWarning, stacklevel=2)
    line = f"{files.command_line} {config.command_line}".strip()
    try:
        kernel = _kernel(files.kernel)
    except GuestImageError as fault:
        _, _, why = fault.message.rpartition(": ")
        raise GuestImageError(
            f"{disk.path} boots {entry.title!r} from {entry.kernel}: {why}",
            hint="choose another entry (--boot-entry), or give a kernel (--kernel)",
        ) from fault
    return kernel, memoryview(files.initrd), line


def _kernel(data: bytes) -> KernelImage:
    """Return a kernel; it is kept as a file, of which the unpacked form is kept too.

    Raises GuestImageError for what is none; of that nothing is kept.
    """
    cache = CACHE_DIR.get()
    directory = make_directory(cache / "diskboot")
    path = directory / hashlib.sha256(data).hexdigest()
    if path.exists():
        return load_kernel(path, cache / "kernels")
    with atomic_file(path) as file:
        file.write(data)
    try:
        found = load_kernel(path, cache / "kernels")
    except GuestImageError:
        path.unlink(missing_ok=True)
        raise
    kept = newest_first(directory.iterdir())
    for old in kept[_KEPT:]:
        old.unlink(missing_ok=True)
    return found
