"""Files that are recognisably no disk image that is read here, so that they are refused by name.

A raw image has no signature, and whatever has none of ours would be read as one: an archive
or another program's image would give bytes that are not the disk's. What a machine may well
have at the start of a raw disk (boot sectors, file systems, partition tables) is not listed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ringzero.disk.contract import Sample
from ringzero.errors import DiskUnsupportedError


class Foreign(NamedTuple):
    """A kind of file, known by `magic` at the byte `at` (negative: of the last 512 bytes).

    `noun` is what a user calls it; `hint` is how to come to a disk image from it.
    """

    noun: str
    magic: bytes
    hint: str
    at: int = 0

    def matches(self, sample: Sample) -> bool:
        where = sample.head if self.at >= 0 else sample.tail
        return where[self.at :].startswith(self.magic)


def _packed(noun: str, magic: bytes, command: str) -> Foreign:
    return Foreign(noun, magic, f"unpack it first: {command}")


def _by_qemu(noun: str, magic: bytes, driver: str, at: int = 0) -> Foreign:
    return Foreign(noun, magic, f"convert it with qemu-img convert -f {driver} -O qcow2", at)


_ARCHIVE = "take the disk image out of it first"

KINDS = (
    _packed("a gzip file", b"\x1f\x8b\x08", "gunzip -k FILE"),
    _packed("an xz file", b"\xfd7zXZ\0", "xz -dk FILE"),
    _packed("a bzip2 file", b"BZh", "bunzip2 -k FILE"),
    _packed("a zstd file", b"\x28\xb5\x2f\xfd", "zstd -d FILE"),
    _packed("an lz4 file", b"\x04\x22\x4d\x18", "lz4 -d FILE"),
    _packed("an lz4 file", b"\x02\x21\x4c\x18", "lz4 -d FILE"),
    _packed("an lzip file", b"LZIP\x01", "lzip -dk FILE"),
    _packed("an lzop file", b"\x89LZO\0\r\n\x1a\n", "lzop -d FILE"),
    _packed("an LZMA file", b"\x5d\0\0", "xz -dk FILE"),
    _packed("a compress (.Z) file", b"\x1f\x9d\x90", "uncompress FILE"),
    Foreign("a zip archive", b"PK\x03\x04", _ARCHIVE),
    Foreign("a zip archive", b"PK\x05\x06", _ARCHIVE),
    Foreign("a zip archive", b"PK\x07\x08PK", _ARCHIVE),
    Foreign("a 7-Zip archive", b"7z\xbc\xaf\x27\x1c", _ARCHIVE),
    Foreign("a RAR archive", b"Rar!\x1a\x07", _ARCHIVE),
    Foreign("a cabinet archive", b"MSCF\0\0\0\0", _ARCHIVE),
    Foreign("an ar archive", b"!<arch>\n", _ARCHIVE),
    Foreign("a cpio archive", b"07070", _ARCHIVE),
    Foreign("an RPM package", b"\xed\xab\xee\xdb", _ARCHIVE),
    _by_qemu("a qcow image (version 1)", b"QFI\xfb\0\0\0\x01", "qcow"),
    _by_qemu("an Apple disk image (DMG)", b"koly", "dmg", -512),
    _by_qemu("a Bochs image", b"Bochs Virtual HD Image", "bochs"),
    _by_qemu("a cloop image", b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
    Foreign("an Apple sparse image", b"sprs", "convert it with hdiutil"),
    Foreign("an Apple sparse image (ASIF)", b"shdw", "convert it with diskutil image"),
    Foreign("an encrypted Apple disk image", b"encrcdsa", "decrypt it with hdiutil"),
    Foreign("an Android sparse image", b"\x3a\xff\x26\xed", "unpack it with simg2img"),
    Foreign("an EnCase image", b"EVF\x09\x0d\x0a\xff\0", "export it as raw with ewfexport"),
    Foreign("an EnCase image", b"EVF2\x0d\x0a\x81\0", "export it as raw with ewfexport"),
    Foreign("an AFF image", b"AFF10\r\n\0", "export it as raw with affconvert"),
    Foreign("a Windows image (WIM)", b"MSWIM\0\0\0", "apply it with wimlib-imagex"),
    Foreign("a partclone image", b"partclone-image", "restore it with partclone"),
    Foreign("a Partimage file", b"PaRtImAgE-VoLuMe", "restore it with partimage"),
    Foreign("an FSArchiver file", b"FsArCh_0", "restore it with fsarchiver"),
)  # fmt: skip

# Texts that describe a machine or a disk, and name the images. Patterns are compiled when they
# are needed: most raw images have no text at their start.
_TEXTS = (
    (rb"<(\w+:)?Envelope\b", "an OVF description", "name the disk image beside it"),
    (rb"<VirtualBox\b", "a VirtualBox machine", "name its .vdi or .vmdk image"),
    (rb"<Parallels_disk_image\b", "a Parallels disk's description",
     "name the .hds image beside it"),
    (rb"<domain\b", "a libvirt domain", "name the image in its <source>"),
    (rb'(?m)^\s*\.encoding\s*=\s*"', "a VMware machine (.vmx)",
     "name the .vmdk image beside it"),
)  # fmt: skip
_BZIP2 = rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"
# "lc/lp/pb", a dictionary of a power of two, and a size that is unknown or below 1 TiB.
_LZMA = (
    rb"(?s)\x5d\0\0(?:[\x01\x02\x04\x08\x10\x20\x40\x80]\0|\0[\x01\x02\x04\x08])"
    rb"(?:\xff{8}|.{5}\0{3})"
)


def refuse_foreign(sample: Sample) -> None:
    """Raise DiskUnsupportedError when `sample` is of a known kind that is no disk image."""
    found = next((kind for kind in KINDS if kind.matches(sample)), None)
    noun, hint = (found.noun, found.hint) if found and _certain(found, sample) else _text(sample)
    if noun:
        raise DiskUnsupportedError(
            f"{sample.name} is {noun}, not a disk image that ringzero reads",
            hint=f"{hint}; or say format=raw (`-f raw`) to take its bytes as they are",
            path=sample.name,
        )


def _certain(kind: Foreign, sample: Sample) -> bool:
    """Whether a short signature is confirmed by what follows it."""
    if kind.magic == b"BZh":
        return bool(re.match(_BZIP2, sample.head))
    if kind.magic == b"\x5d\0\0":
        return bool(re.match(_LZMA, sample.head))
    if kind.magic == b"07070":
        return sample.head[5:6] in (b"1", b"2", b"7")
    return True


def _text(sample: Sample) -> tuple[str, str]:
    head = sample.head.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in head:
        return "", ""
    return next(((noun, hint) for form, noun, hint in _TEXTS if re.search(form, head)), ("", ""))
