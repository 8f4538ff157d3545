"""An image of the store as a disk that boots by itself, by a BIOS and by UEFI.

    sector 0        GRUB's boot.img and a protective MBR, then a GPT
    partition 1     1 MiB: GRUB's core for a BIOS
    partition 2     an EFI system partition (FAT) with GRUB
    partition 3     the root (ext4): the image's files, /boot with kernel, initrd and grub.cfg

Kernel and drivers are Debian's (`kit`); the first process is ours, and runs what the image says.
Equal images with equal kits make equal bytes.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shlex import join
from typing import BinaryIO
from uuid import UUID

from ringzero.digest import blake2b
from ringzero.errors import GuestImageError, InvalidValueError
from ringzero.host.progress import QUIET, Progress
from ringzero.image import cpio
from ringzero.image.cpio import Entry
from ringzero.image.export import gpt, grub
from ringzero.image.export.kit import Kit
from ringzero.image.ext4 import writer
from ringzero.image.fatimage import fat_image
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci.contents import Layer
from ringzero.image.oci.files import open_root
from ringzero.image.oci.merged import merged, pieces
from ringzero.image.oci.store import StoredImage
from ringzero.units import GIB, MIB, TIB, format_size

_SECTOR = gpt.SECTOR
# Partitions begin at whole MiB, as all partitioners have it.
_BIOS_AT, _BIOS_SIZE = 1 * MIB, 1 * MIB
_ESP_AT, _ESP_SIZE = 2 * MIB, 14 * MIB
_ROOT_AT = 16 * MIB
# What stays free for the guest unless a size is given.
_FREE = 1 * GIB
MAX_SIZE = 2 * TIB
LABEL = "ringzero"
_MAX_CONFIG = 1 << 20
# Emulated timers may be late on a busy host, which the kernel would take for a broken board.
_OPTIONS = "rw net.ifnames=0 no_timer_check quiet console=tty0 console=ttyS0"
# What a person, and our agent, end the machine by; the kit's busybox is there as it runs.
_ENDING = ("poweroff", "reboot", "halt")
_BUSYBOX = b"/run/ringzero/disk/bin/busybox"
# Where a system has its own first process.
_INIT = (b"sbin/init", b"usr/sbin/init")
_GRUB = """\
# Written by ringzero: the kernel and initrd of an exported image.
set timeout=1
set default=0
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
search --no-floppy --fs-uuid --set=root {uuid}
menuentry "{title}" {{
    linux /boot/vmlinuz root=UUID={uuid} {options}
    initrd /boot/initrd.img
}}
"""
_FIND = "search.fs_uuid {uuid} root\nset prefix=($root)/boot/grub\n"
_FIND_EFI = """\
search --no-floppy --fs-uuid --set=root {uuid}
set prefix=($root)/boot/grub
configfile ($root)/boot/grub/grub.cfg
"""


class BootableDisk:
    """A disk with an image's files: `size` is what it will have, in bytes."""

    def __init__(self, image: StoredImage, kit: Kit, cache: Path, size: int | None = None) -> None:
        """Put together what goes into it; `size` None: what is needed, and 1 GiB.

        Raises GuestImageError, InvalidValueError where the image does not fit into `size`.
        """
        self._image, self._kit = image, kit
        tree, self._layers = merged(image, cache)
        self._root = tree.root
        self._uuids = [
            UUID(bytes=blake2b(f"{image.digest} {n}".encode(), digest_size=16).digest(), version=4)
            for n in range(5)
        ]
        _add(tree, b"boot/vmlinuz", kit.kernel)
        _add(tree, b"boot/initrd.img", _initrd(image, tree, kit))
        _add_ending(tree)
        text = _GRUB.format(uuid=self._uuids[3], title=_title(image), options=_OPTIONS)
        _add(tree, b"boot/grub/grub.cfg", text.encode())
        least = _ROOT_AT + writer.least_size(self._root) + MIB
        wanted = least + _FREE if size is None else size
        self.size = -(-wanted // MIB) * MIB
        if self.size < least:
            raise InvalidValueError(
                f"{image.name} does not fit into {format_size(self.size)}",
                hint=f"it needs {format_size(least)} at least: --size",
            )
        if self.size > MAX_SIZE:
            raise InvalidValueError(f"an exported disk has {format_size(MAX_SIZE)} at most")

    def write(self, file: BinaryIO, progress: Progress = QUIET) -> None:
        """Write it into an empty file, whose holes are zeros. Raises GuestImageError, OSError."""
        disk, *uuids, _ = self._uuids
        kinds = (gpt.BIOS_BOOT, gpt.EFI_SYSTEM, gpt.ROOT_X86_64)
        end = self.size - MIB
        spans = ((_BIOS_AT, _BIOS_SIZE), (_ESP_AT, _ESP_SIZE), (_ROOT_AT, end - _ROOT_AT))
        parts = [
            gpt.NewPartition(kind, uuid, at // _SECTOR, length // _SECTOR, name)
            for kind, uuid, (at, length), name in zip(
                kinds, uuids, spans, ("BIOS boot", "EFI system", "root"), strict=True
            )
        ]
        files, sector = self._kit.grub(), _BIOS_AT // _SECTOR
        boot = grub.boot_code(files.get("boot.img", b""), sector)
        find = _FIND.format(uuid=self._uuids[3])
        core = grub.core_image(files, find, "/boot/grub", sector)
        esp = fat_image(
            {
                "EFI/BOOT/BOOTX64.EFI": self._kit.efi,
                "EFI/debian/grub.cfg": _FIND_EFI.format(uuid=self._uuids[3]).encode(),
            },
            "EFI",
        )
        if len(core) > _BIOS_SIZE or len(esp) > _ESP_SIZE:
            raise GuestImageError("GRUB is larger than its partitions on an exported disk")
        head, tail = gpt.tables(parts, self.size // _SECTOR, disk, boot)
        with progress.step(f"writing the files of {self._image.name}"):
            file.truncate(self.size)
            for at, data in ((0, head), (_BIOS_AT, core), (_ESP_AT, esp)):
                file.seek(at)
                file.write(data)
            file.seek(self.size - len(tail))
            file.write(tail)
            file.flush()
            writer.write(
                *(self._root, end - _ROOT_AT, file),
                at=_ROOT_AT,
                uuid=self._uuids[3].bytes,
                label=LABEL,
                content=partial(_pieces, layers=self._layers),
            )


def _pieces(node: Node, layers: list[Layer]) -> Iterator[bytes]:
    return pieces(node, layers)


def _add(tree: Tree, path: bytes, data: bytes) -> None:
    """Put a file of root's into a tree, whatever was there."""
    folder, _, name = path.rpartition(b"/")
    node = Node(stat.S_IFREG | 0o644)
    node.size, node.tail = len(data), data
    children = tree.directory(folder).children
    assert children is not None
    children[name] = node


def _add_ending(tree: Tree) -> None:
    """Put commands that end the machine into a tree, where it has none."""
    folder = tree.directory(b"sbin").children
    assert folder is not None
    for name in _ENDING:
        if any(tree.find(place + name.encode()) for place in (b"sbin/", b"bin/", b"usr/sbin/")):
            continue
        node = folder[name.encode()] = Node(stat.S_IFLNK | 0o777)
        node.size, node.target = len(_BUSYBOX), _BUSYBOX


def _initrd(image: StoredImage, tree: Tree, kit: Kit) -> bytes:
    """Return the initrd: the kit's, and behind it what this image says of its programs."""
    with open_root(image.root) as system:
        config = system.read_file("/config", limit=_MAX_CONFIG)
    words = [*image.entrypoint, *image.cmd]
    if not words and not image.machine.services and any(map(tree.find, _INIT)):
        words = ["/sbin/init"]
    command = f"set -- {join(words)}\n".encode()
    own = io.BytesIO()
    files = {"config": config, "command": command}
    cpio.write([Entry(name, stat.S_IFREG | 0o644, data) for name, data in files.items()], own)
    whole = kit.initrd
    # The kernel finds an archive behind another one at multiples of 4 bytes.
    return whole + bytes(-len(whole) % 4) + own.getvalue()


def _title(image: StoredImage) -> str:
    """Return an image's name as GRUB takes it between quotes."""
    return "".join(c for c in image.name if c.isascii() and (c.isalnum() or c in " .:/@_-"))
