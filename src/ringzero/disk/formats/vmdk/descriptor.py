"""The text that describes a VMDK disk ("The Descriptor File")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ringzero.disk.contract import SECTOR
from ringzero.disk.formats.vmdk import encodings
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.records import field, mutable_record, record

FIRST_LINE = "# Disk DescriptorFile"
# Descriptors are a few hundred bytes; the largest real ones list 2 GiB extents.
MAX_BYTES = 1 << 20
_MAX_EXTENTS = 32768
NO_PARENT = 0xFFFF_FFFF

# The title that VMware writes, and those of VirtualBox, FreeBSD's makevd, LiveView and others.
_TITLE = re.compile(rb"#\s*disk\s*descriptor\s*file", re.IGNORECASE)
_VERSION = re.compile(rb"version\s*=\s*\d+", re.IGNORECASE)
_BELONGS = re.compile(rb"(?mi)^\s*(CID|createType|RW|RDONLY|NOACCESS)\b")
_LINES = re.compile(r"\r\n|\r|\n")
_FIELD = re.compile(r"\s*([\w.]+)\s*=\s*(.*?)\s*")
_EXTENT = re.compile(
    r'\s*(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d{1,18}))?)?.*'
)

# What the heads of the geometry are, by the adapter ("ddb.geometry.heads").
_HEADS = {"ide": 16, "lsilogic": 255, "buslogic": 255, "legacyESX": 255}


def is_descriptor(head: bytes) -> bool:
    """Whether a file that begins with `head` is a descriptor.

    Its title says so; without one, as in QEMU, a version behind nothing but comments.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _TITLE.match(text):
        return True
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return bool(_VERSION.fullmatch(first)) and bool(_BELONGS.search(text))


def quotable(name: str) -> str:
    """Return a name that a descriptor can hold; InvalidValueError for others."""
    if '"' in name or any(ord(letter) < 0x20 for letter in name):
        raise InvalidValueError(
            f"a VMDK descriptor cannot hold the name {name!r}",
            hint="use a name without quotation marks and line ends",
        )
    return name


@record
class ExtentLine:
    """One line of the extent description; `sectors` and `offset` in sectors of 512 bytes."""

    access: str
    sectors: int
    kind: str
    filename: str = ""
    offset: int = 0

    def __str__(self) -> str:
        line = f"{self.access} {self.sectors} {self.kind}"
        if self.filename:
            line += f' "{self.filename}"'
        return f"{line} {self.offset}" if self.kind == "FLAT" else line


@mutable_record
class Descriptor:
    """A descriptor. `cid` changes whenever the disk is opened and written to.

    `encoding` is how it names its encoding, `codec` what that is in Python.
    """

    create_type: str
    cid: int
    parent_cid: int = NO_PARENT
    parent_name: str | None = None
    extents: list[ExtentLine] = field(default_factory=list)
    database: dict[str, str] = field(default_factory=dict)
    encoding: str = encodings.UTF8
    codec: str = "utf-8"

    @classmethod
    def parse(cls, raw: bytes, name: str) -> Descriptor:
        """Read a descriptor; DiskFormatError."""
        raw = raw.split(b"\0", 1)[0]
        encoding = encodings.label_of(raw)
        codec = encodings.codec_for(raw, encoding, name)
        fields: dict[str, str] = {}
        database: dict[str, str] = {}
        extents = []
        for line in _LINES.split(encodings.decode(raw, codec)):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            extent = _EXTENT.fullmatch(line)
            if extent:
                access, sectors, kind, filename, offset = extent.groups()
                extents.append(
                    ExtentLine(access, int(sectors), kind, filename or "", int(offset or 0))
                )
                continue
            found = _FIELD.fullmatch(line)
            if found:
                value = found[2].strip('"')
                fields[found[1].lower()] = value
                if found[1].startswith("ddb."):
                    database[found[1]] = value
        if len(extents) > _MAX_EXTENTS or sum(e.sectors for e in extents) >= 1 << 54:
            raise DiskFormatError(f"{name}: its extents are too many or too long", path=name)
        if "encryption.keysafe" in fields:
            raise DiskUnsupportedError(f"{name}: encrypted VMDK images", path=name)
        try:
            cid = int(fields["cid"], 16)
            parent_cid = int(fields.get("parentcid", "ffffffff"), 16)
            create_type = fields["createtype"]
        except (KeyError, ValueError) as fault:
            raise DiskFormatError(
                f"{name}: the descriptor lacks {fault}, or it makes no sense", path=name
            ) from fault
        parent = fields.get("parentfilenamehint") if parent_cid != NO_PARENT else None
        return cls(create_type, cid, parent_cid, parent, extents, database, encoding, codec)

    def spellings(self, name: str) -> list[str]:
        """Return what a file may be called here that the descriptor calls `name`."""
        return encodings.spellings(name, self.codec, self.encoding)

    def to_bytes(self) -> bytes:
        text = self._text()
        if text.isascii():
            return text.encode()
        try:
            return encodings.encode(self._text(self.encoding), self.codec)
        except UnicodeEncodeError:
            self.encoding, self.codec = encodings.UTF8, "utf-8"
            return encodings.encode(self._text(self.encoding), self.codec)

    def _text(self, encoding: str | None = None) -> str:
        lines = [FIRST_LINE, "version=1"]
        if encoding is not None:
            lines.append(f'encoding="{encoding}"')
        lines += [
            f"CID={self.cid:08x}",
            f"parentCID={self.parent_cid:08x}",
            f'createType="{self.create_type}"',
        ]
        if self.parent_name is not None:
            lines.append(f'parentFileNameHint="{self.parent_name}"')
        lines += ["", "# Extent description", *map(str, self.extents)]
        lines += ["", "# The Disk Data Base", "#DDB", ""]
        lines += [f'{key} = "{value}"' for key, value in self.database.items()]
        return "\n".join([*lines, ""])


def geometry(size: int, adapter: str, hardware: str) -> dict[str, str]:
    """Return the disk data base of a disk of `size` bytes."""
    heads = _HEADS[adapter]
    return {
        "ddb.virtualHWVersion": hardware,
        "ddb.geometry.cylinders": str(size // SECTOR // (heads * 63)),
        "ddb.geometry.heads": str(heads),
        "ddb.geometry.sectors": "63",
        "ddb.adapterType": adapter,
    }


def with_cid(raw: bytes, cid: int) -> bytes:
    """Return the text with another CID of the same width, all else as it was."""
    return re.sub(
        rb'(?mi)^(\s*CID\s*=\s*"?)[0-9a-f]{1,8}',
        lambda match: match[1] + f"{cid:0{len(match[0]) - len(match[1])}x}".encode()[-8:],
        raw,
        count=1,
    )


def with_extents(raw: bytes, extents: Sequence[ExtentLine], sectors: int, codec: str) -> bytes:
    """Return the text with other extents, and the cylinders of a disk of `sectors`.

    DiskUnsupportedError when the text's encoding has no such names.
    """
    text = encodings.decode(raw, codec)
    lines: list[str] = []
    done = False
    for line in _LINES.split(text.rstrip("\r\n")):
        if not _EXTENT.fullmatch(line):
            lines.append(line)
        elif not done:
            lines += map(str, extents)
            done = True
    matches = filter(None, map(_FIELD.fullmatch, lines))
    fields = {found[1]: found[2] for found in matches}
    track = [fields.get(f"ddb.geometry.{name}", "").strip('"') for name in ("heads", "sectors")]
    if all(value.isdecimal() and int(value) for value in track):
        cylinders = sectors // (int(track[0]) * int(track[1]))
        lines = [
            re.sub(r'^(\s*ddb\.geometry\.cylinders\s*=\s*)"?\d+"?', rf'\1"{cylinders}"', line)
            for line in lines
        ]
    try:
        return encodings.encode("\n".join([*lines, ""]), codec)
    except UnicodeEncodeError as fault:
        raise DiskUnsupportedError(
            "the descriptor's encoding has no such file names",
            hint="rename the disk with letters of ASCII, or convert it",
        ) from fault
