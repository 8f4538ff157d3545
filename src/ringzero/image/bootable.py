"""What a disk image boots: its file systems looked through as boot loaders do.

    with open_disk("cloud.qcow2", read_only=True) as disk:
        bootable = examine(disk)
        entry = bootable.choose()
        files = load(entry)

Nothing is mounted and nothing is written. What stands on the disk is the guest's: damage in one
file system leaves the others readable, and is told where nothing to boot is found.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence

from ringzero.errors import FileSystemError, GuestImageError, NotFoundError
from ringzero.image.bootloader import extlinux, grub, kernels, uki
from ringzero.image.bootloader.contract import (
    BootEntry,
    FileAt,
    Volume,
    Volumes,
    exists,
    listing,
)
from ringzero.image.fs.contract import open_file_system, peek
from ringzero.image.partitions import Partition, read_partitions
from ringzero.image.source import Part, Source
from ringzero.records import record
from ringzero.units import GIB, MIB, format_size

# Kernels have 10 to 40 MiB, unified ones with their initrd 150.
_MAX_KERNEL = 512 * MIB
_MAX_INITRD = 2 * GIB
# Bytes that are read of a disk while it is looked through. Those with ten kernels have some MiB of
# directories and configuration; it bounds the time that hostile bytes cost.
_MOST_READ = 128 * MIB
_ENDLESS = f"its directories and configuration go on without an end: {format_size(_MOST_READ)} read"
# In which of a disk's readers the boot loader is looked for, in this order.
_LOADERS: tuple[Callable[[Volumes], list[BootEntry]], ...] = (
    grub.find,
    uki.find,
    extlinux.find,
    kernels.find,
)
# What a root file system has; a home or a boot partition has none of them.
_OF_ROOT = ("/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/etc/fstab")
# cloud-init's program, and that of Alpine's small one.
_OF_CLOUD_INIT = ("/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/usr/bin/tiny-cloud")
# What is told by name: it is seen, and not read.
_SIGNS = (
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (536, b"LVM2 001", "LVM"),
    (24, b"LVM2 001", "LVM"),
    (0x1000 + 0, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (3, b"NTFS    ", "NTFS"),
    (1024, b"H+\x00\x04", "HFS+"),
    (0x8001, b"CD001", "ISO 9660"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (4096, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), "bcachefs"),
)  # fmt: skip


@record
class BootFiles:
    """What a direct boot needs, in memory."""

    kernel: bytes
    initrd: bytes
    command_line: str


@record
class Bootable:
    """The entries of a disk's boot loader.

    `notes` tell what was seen where nothing was found, `warnings` what to know in any case.
    `cloud_init` says whether the system on it has cloud-init, and has not switched it off.
    """

    entries: tuple[BootEntry, ...]
    volumes: Volumes
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    cloud_init: bool = False

    def choose(self, wanted: str = "") -> BootEntry:
        """Return the entry with an id, a title or a number from 0 on; "" is the loader's default.

        Raises NotFoundError with all entries, GuestImageError where there are none.
        """
        if not self.entries:
            seen = "; ".join(self.notes) or "it has no partition table and no file system"
            raise GuestImageError(
                f"nothing to boot on this disk: {seen}",
                hint="give a kernel (--kernel), or an image that holds an installed Linux",
            )
        if not wanted:
            return next((e for e in self.entries if e.default), self.entries[0])
        for entry in self.entries:
            if wanted in (entry.id, entry.title):
                return entry
        if wanted.isdecimal() and int(wanted[:6]) < len(self.entries):
            return self.entries[int(wanted[:6])]
        lines = "\n".join(f"  {n}  {entry.title}" for n, entry in enumerate(self.entries))
        names = [name for entry in self.entries for name in (entry.id, entry.title)]
        close = difflib.get_close_matches(wanted, names, 1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise NotFoundError(
            f"no boot entry is called {wanted!r}{meant}; there are\n{lines}",
            hint="give one of these numbers, titles or ids (--boot-entry)",
        )


def examine(disk: Source) -> Bootable:
    """Look through a disk's file systems and its boot loader's configuration.

    Raises FileSystemError only where nothing at all can be read.
    """
    notes: list[str] = []
    disk = measured = _Measured(disk)
    partitions = read_partitions(disk)
    found: list[Volume] = []
    places: list[Partition | None] = [*partitions] or [None]
    for place in places:
        volume = _volume(disk, place, notes)
        if volume is not None:
            found.append(volume)
    volumes = Volumes(found, _root(found))
    entries: list[BootEntry] = []
    for loader in _LOADERS:
        try:
            entries = loader(volumes)
        except FileSystemError as fault:
            notes.append(fault.message)
        if entries:
            break
    if not measured.left:
        notes.append(_ENDLESS)
    measured.left = None
    warnings = [f"{v.name}: {warning}" for v in found for warning in v.files.warnings]
    cloud_init = (
        volumes.root is not None
        and any(exists(volumes.root, path) for path in _OF_CLOUD_INIT)
        and not exists(volumes.root, "/etc/cloud/cloud-init.disabled")
    )
    return Bootable(tuple(entries), volumes, tuple(notes), tuple(warnings), cloud_init)


class _Measured:
    """A disk of which `left` bytes more are read; None: any number of them."""

    def __init__(self, disk: Source) -> None:
        self._disk = disk
        self.size = disk.size
        self.left: int | None = _MOST_READ

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk. Raises FileSystemError when too many have been read."""
        if self.left is not None:
            if length > self.left:
                self.left = 0
                raise FileSystemError(_ENDLESS)
            self.left -= length
        return self._disk.read(offset, length)


def _volume(disk: Source, place: Partition | None, notes: list[str]) -> Volume | None:
    if place is not None and place.size < MIB:
        return None
    try:
        source = place.open(disk) if place else Part(disk, 0, disk.size)
        files = open_file_system(source)
    except FileSystemError as fault:
        notes.append(fault.message)
        return None
    if files is None:
        what = _sign(source) or (place.purpose if place else "")
        if what or place:
            notes.append(f"{source.name}: {what or 'no file system that ringzero reads'}")
        return None
    notes.append(f"{source.name}: {files.name}, without a kernel or a boot loader's configuration")
    return Volume(place, files)


def _sign(source: Part) -> str:
    for offset, sign, name in _SIGNS:
        if peek(source, offset, len(sign)) == sign:
            return f"{name}, which ringzero does not read"
    return ""


def _root(volumes: Sequence[Volume]) -> Volume | None:
    """Return the volume with the system, by what it holds."""
    scored = [(sum(exists(v, path) for path in _OF_ROOT), -n) for n, v in enumerate(volumes)]
    best = max(scored, default=(0, 0))
    return volumes[-best[1]] if best[0] else None


def load(entry: BootEntry, memory: int = _MAX_INITRD) -> BootFiles:
    """Read an entry's files, for a guest with so many bytes of memory.

    Raises NotFoundError, FileSystemError where one cannot be read, GuestImageError for initrds
    that do not fit.
    """
    wanted = sum(_length(place, entry) for place in entry.initrds)
    if wanted > min(memory, _MAX_INITRD):
        raise GuestImageError(
            f"the initrd of {entry.title!r} of {format_size(wanted)} does not fit into "
            f"{format_size(memory)} of memory",
            hint="give the machine more memory (--memory)",
        )
    kernel = _read(entry.kernel, entry, _MAX_KERNEL)
    initrd = bytearray()
    for place in entry.initrds:
        initrd += _read(place, entry, _MAX_INITRD)
        # The kernel looks for the next archive at multiples of 4 alone.
        initrd += bytes(-len(initrd) % 4)
    return BootFiles(kernel, bytes(initrd), with_console(entry.command_line))


def _read(place: FileAt, entry: BootEntry, limit: int) -> bytes:
    with _missing(place, entry):
        if place.section:
            offset, length = uki.sections(place)[place.section]
            return place.volume.files.read(place.path, offset, min(length, limit))
        return place.volume.files.read_file(place.path, limit=limit)


def _length(place: FileAt, entry: BootEntry) -> int:
    with _missing(place, entry):
        if place.section:
            return uki.sections(place)[place.section][1]
        return place.volume.files.stat(place.path).size


@contextlib.contextmanager
def _missing(place: FileAt, entry: BootEntry) -> Iterator[None]:
    """Say which entry wants a file that is not there."""
    try:
        yield
    except NotFoundError as fault:
        raise NotFoundError(
            f"{entry.loader} boots {entry.title!r} from {place}, which does not exist",
            hint="choose another entry (--boot-entry)",
        ) from fault


def with_console(command_line: str) -> str:
    """Return a command line whose last console is the first serial line: there we listen."""
    words = command_line.split()
    consoles = [word for word in words if word.startswith("console=")]
    if consoles and consoles[-1].startswith("console=ttyS0"):
        return command_line
    return f"{command_line} console=ttyS0".strip()


def check_transport(entry: BootEntry, volumes: Volumes) -> None:
    """Raise GuestImageError for a kernel without virtio over MMIO, where its modules tell.

    A board without PCI offers its disks by nothing else.
    """
    version = entry.kernel.path.rpartition("/")[2].partition("-")[2]
    root = volumes.root
    if not version or root is None:
        return
    for top in ("/lib/modules", "/usr/lib/modules"):
        directory = f"{top}/{version}"
        names = listing(root, f"{directory}/kernel/drivers/virtio")
        if any(name.startswith("virtio_mmio.ko") for name in names):
            return
        if not exists(root, f"{directory}/modules.builtin"):
            continue
        try:
            built_in = root.files.read_file(f"{directory}/modules.builtin", limit=MIB)
        except FileSystemError:
            return
        if b"virtio_mmio.ko" not in built_in:
            raise GuestImageError(
                f"the kernel {version} of this disk has no driver for virtio over MMIO, and the "
                "board microvm has no PCI",
                hint="install another kernel in the guest, as Debian's linux-image-cloud-amd64",
            )
        return
