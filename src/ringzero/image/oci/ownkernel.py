"""The kernel that an image brings along (`MachineSpec.kernel`), and the initrd that it boots with.

    images/<digest>/kernel          the kernel, as it is in the image's tree
    images/<digest>/initrd-BASE     the default guest's, with the modules of this kernel

The image's own initrd is for a disk. This one is the default guest's: its init, its programs, and
of the kernel's modules in the image those that the default guest has of its own. What a kernel has
built in needs none.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import GuestImageError, NotFoundError
from ringzero.host.files import atomic_file, host_error
from ringzero.host.progress import QUIET, Progress
from ringzero.image import compression, cpio, micro
from ringzero.image.fs.contract import Node
from ringzero.image.modules import Module, canonical, unsigned, with_dependencies
from ringzero.image.oci.files import Files, open_files
from ringzero.image.oci.store import StoredImage
from ringzero.image.rootfs import Rootfs
from ringzero.units import MIB

KERNEL = "kernel"
# Kernels with all that people switch on have 60 MiB; an uncompressed one 200.
_MOST_KERNEL, _MOST_MODULE = 512 * MIB, 256 * MIB
# Of a bzImage (Documentation/arch/x86/boot.rst): its mark, and where the release stands.
_MARK, _MARK_AT = b"HdrS", 0x202
_RELEASE, _SETUP = struct.Struct("<H"), 0x200
_RELEASE_AT, _MOST_RELEASE = 0x20E, 64
# What every other kernel says of itself.
_BANNER = re.compile(rb"Linux version ([!-~]{1,64}) ")
_MODULES = ("/usr/lib/modules", "/lib/modules")
_SHOWN = 12


def ensure(
    image: StoredImage, base: micro.BootFiles, *, progress: Progress = QUIET
) -> tuple[Path, Path]:
    """Return kernel and initrd of an image that has a kernel of its own, made if need be.

    Raises GuestImageError, HostError.
    """
    place = image.root.parent
    kernel, initrd = place / KERNEL, place / f"initrd-{base.digest[:_SHOWN]}"
    if kernel.exists() and initrd.exists():
        return kernel, initrd
    with open_files(image) as files, progress.step(f"taking the kernel of {image.name}"):
        data = read(files, image.machine.kernel or "")
        with atomic_file(initrd) as file:
            write_initrd(files, release_of(data), base.initrd, file)
        with atomic_file(kernel) as file:
            file.write(data)
    return kernel, initrd


def read(files: Files, path: str) -> bytes:
    """Return an image's kernel. Raises GuestImageError."""
    try:
        data = files.read(path, _MOST_KERNEL)
    except NotFoundError:
        data = b""
    if not data:
        raise GuestImageError(
            f"the image's kernel {path} is not in it",
            hint="the KERNEL of its Vmfile names a file of the image",
        )
    return data


def release_of(kernel: bytes) -> str:
    """Return a kernel's release, as uname(1) tells it; "" where it is not known."""
    if kernel[_MARK_AT : _MARK_AT + len(_MARK)] == _MARK:
        (at,) = _RELEASE.unpack_from(kernel, _RELEASE_AT)
        text = kernel[_SETUP + at : _SETUP + at + _MOST_RELEASE].partition(b"\0")[0]
        return text.partition(b" ")[0].decode("ascii", "replace") if at else ""
    found = _BANNER.search(kernel)
    return found[1].decode("ascii") if found else ""


def write_initrd(files: Files, release: str, base: Path, file: BinaryIO) -> None:
    """Write the initrd `base` with the modules of another kernel. Raises GuestImageError."""
    modules = _Modules(files, release)
    tree = Rootfs()
    micro.add_modules(tree, with_dependencies(micro.MODULES, modules))
    try:
        data = base.read_bytes()
    except OSError as fault:
        raise host_error(fault, "read", base) from fault
    entries = {
        entry.name: entry
        for entry in cpio.read(data)
        if not entry.name.startswith(("usr/lib/modules/", "lib/modules/"))
    }
    for entry in tree.entries():
        entries.setdefault(entry.name, entry)
    cpio.write([entries[name] for name in sorted(entries)], file)


class _Modules(Mapping[str, Module]):
    """The modules of a kernel in an image by name, each read when it is asked for."""

    def __init__(self, files: Files, release: str) -> None:
        self._files = files
        self._found: dict[str, tuple[str, Node]] = {}
        self._read: dict[str, Module] = {}
        for top in _MODULES:
            # A release is one directory's name, and no way out of it.
            if self._found or not release or "/" in release or release in (".", ".."):
                break
            for path, node in files.below(f"{top}/{release}"):
                if node.is_file and ".ko" in path.rpartition("/")[2]:
                    self._found[canonical(path)] = path, node

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __getitem__(self, name: str) -> Module:
        if name not in self._read:
            self._read[name] = self._module(name, *self._found[name])
        return self._read[name]

    def _module(self, name: str, path: str, node: Node) -> Module:
        if node.size > _MOST_MODULE:
            raise GuestImageError(f"the kernel module {path} is too large")
        data = b"".join(self._files.content(node))
        head = data[: compression.HEAD]
        try:
            data = b"".join(compression.pieces(head, io.BytesIO(data)))
        except compression.DamagedError as fault:
            raise GuestImageError(f"the kernel module {path} is damaged: {fault}") from fault
        inside = "lib/modules/" + path.partition("/lib/modules/")[2]
        plain = inside[: inside.rindex(".ko") + len(".ko")]
        return Module(name, plain, unsigned(data))
