"""Unified kernel images: kernel, initrd and command line as sections of an EFI program.

UAPI.5 (uapi-group.org/specifications) names the sections; "Microsoft PE and COFF Specification"
says where they lie. Also systemd-boot's entries, which stand beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader import bls
from ringzero.image.bootloader.contract import BootEntry, FileAt, Volume, Volumes, listing
from ringzero.records import replace
from ringzero.units import KIB

_DIRECTORY = "/EFI/Linux"
_MAX_IMAGES = 50
_VERSIONS = ("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID")
_MAX_SECTIONS = 64
_PE = struct.Struct("<4sHHIIIHH")
_AMD64 = 0x8664
_SECTION = struct.Struct("<8sIIII16x")
_LONGEST_TEXT = 64 * KIB


def find(volumes: Volumes) -> list[BootEntry]:
    """Return what systemd-boot's menu has, its default marked.

    That is what the EFI system partition and an extended boot partition have, in one order.
    """
    for top in ("", "/boot"):
        ordered = [
            item
            for volume in volumes
            for item in (*bls.ordered(volume, f"{top}/loader/entries"), *_images(volume, top))
        ]
        if not ordered:
            continue
        found = [_with_sections(entry) for entry in bls.in_order(ordered)]
        chosen = bls.default_entry([(volume, top) for volume in volumes], found)
        return [replace(entry, default=entry is chosen) for entry in found]
    return []


def _images(volume: Volume, top: str) -> Iterator[tuple[bls.Order, BootEntry]]:
    directory = f"{top}{_DIRECTORY}"
    names = [name for name in listing(volume, directory) if name.lower().endswith(".efi")]
    names.sort(key=bls.version_key, reverse=True)
    for name in names[:_MAX_IMAGES]:
        place = FileAt(volume, f"{directory}/{name}")
        try:
            about = sections(place)
        except (FileSystemError, NotFoundError):
            continue
        if ".linux" not in about:
            continue
        # As systemd-boot has it, of the system's release file: what to sort by, and the version.
        system = _fields(text_of(place, ".osrel", about))
        title = system.get("PRETTY_NAME", name)
        sort_key = system.get("IMAGE_ID") or system.get("ID", "")
        version = next((system[k] for k in _VERSIONS if system.get(k)), "")
        order = bls.order(name, sort_key, "", version)
        yield order, BootEntry(name, title, place, (), "", "unified kernel image")


def _with_sections(entry: BootEntry) -> BootEntry:
    """Return an entry whose kernel is a unified image with the image's parts in place."""
    place = entry.kernel
    if not place.path.lower().endswith(".efi"):
        return entry
    try:
        about = sections(place)
    except (FileSystemError, NotFoundError):
        return entry
    if ".linux" not in about:
        return entry
    initrds = tuple(
        FileAt(place.volume, place.path, name) for name in (".ucode", ".initrd") if name in about
    )
    line = entry.command_line or text_of(place, ".cmdline", about)
    kernel = FileAt(place.volume, place.path, ".linux")
    return replace(entry, kernel=kernel, initrds=initrds + entry.initrds, command_line=line)


def sections(place: FileAt) -> dict[str, tuple[int, int]]:
    """Return where the sections of an EFI program lie in its file: (offset, length) by name.

    Raises FileSystemError for what is no such program, NotFoundError.
    """
    files = place.volume.files
    dos = files.read(place.path, 0, 64)
    if dos[:2] != b"MZ" or len(dos) < 64:
        raise FileSystemError(f"{place} is no EFI program")
    (at,) = struct.unpack_from("<I", dos, 60)
    header = files.read(place.path, at, _PE.size)
    if len(header) < _PE.size or header[:4] != b"PE\0\0":
        raise FileSystemError(f"{place} is no EFI program")
    _, machine, count, _, _, _, optional, _ = _PE.unpack(header)
    if machine != _AMD64:
        raise FileSystemError(f"{place} is an EFI program for another machine ({machine:#x})")
    table = files.read(
        place.path, at + _PE.size + optional, min(count, _MAX_SECTIONS) * _SECTION.size
    )
    found: dict[str, tuple[int, int]] = {}
    for name, virtual, _, raw, offset in _SECTION.iter_unpack(
        table[: len(table) // _SECTION.size * _SECTION.size]
    ):
        # On disk a section is padded; its real length is that in memory.
        length = min(virtual, raw) if virtual else raw
        found.setdefault(name.rstrip(b"\0").decode("ascii", "replace"), (offset, length))
    return found


def text_of(place: FileAt, name: str, about: dict[str, tuple[int, int]]) -> str:
    """Return a section of text, such as .cmdline; "" where there is none."""
    if name not in about:
        return ""
    offset, length = about[name]
    data = place.volume.files.read(place.path, offset, min(length, _LONGEST_TEXT))
    return data.partition(b"\0")[0].decode("utf-8", "replace").strip()


def _fields(text: str) -> dict[str, str]:
    """Return the fields of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip().strip("\"'") for key, equals, value in pairs if equals}
