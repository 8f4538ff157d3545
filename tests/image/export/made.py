"""Images of the store to export, and a kit that has GRUB, but neither kernel nor drivers."""

import functools
import io
import stat

from ringzero.image import cpio
from ringzero.image.cpio import Entry
from ringzero.image.export import grub
from ringzero.image.export.kit import Kit
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.oci.images import Image, tar
from tests.image.tools import files_of

GRUB = "usr/lib/grub/i386-pc/"


def bzimage(size=20_000):
    """Return what looks like a kernel (x86 boot protocol, "The Real-Mode Kernel Header")."""
    data = bytearray(size)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    return bytes(data)


@functools.cache
def grub_files():
    """Return GRUB's files for a BIOS, of Debian's package; skips the test where there is none."""
    found = {
        path.removeprefix(GRUB): data
        for path, data in files_of("grub-pc-bin").items()
        if path.startswith(GRUB)
    }
    names = ["boot.img", "diskboot.img", "kernel.img", "lzma_decompress.img", "moddep.lst"]
    names += grub.with_dependencies(found, grub.MODULES)
    return {name: found[name] for name in names}


def kit(place):
    """Write a kit into a folder."""
    (place / "grub").mkdir(parents=True)
    for name, data in grub_files().items():
        (place / "grub" / name).write_bytes(data)
    (place / "vmlinuz").write_bytes(bzimage())
    out = io.BytesIO()
    cpio.write([Entry("init", stat.S_IFREG | 0o755, b"#!/bin/busybox sh\n")], out)
    (place / "initrd").write_bytes(out.getvalue())
    (place / "BOOTX64.EFI").write_bytes(b"MZ" + bytes(5000))
    return Kit(place, ("none=1",))


def image(place, cache, files=None, config=None):
    """Bring an image into the store."""
    layers = [tar(files if files is not None else {"etc/hello": b"hello", "bin": None})]
    Image(layers, config).write_layout(place)
    return pull(parse(f"oci:{place}"), cache=cache, architecture="amd64")
