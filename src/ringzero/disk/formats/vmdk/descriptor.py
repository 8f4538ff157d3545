"""The text that describes a VMDK disk ("The Descriptor File")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ringzero.disk.contract import SECTOR
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.records import field, mutable_record, record

FIRST_LINE = b"# Disk DescriptorFile"
# Descriptors are a few hundred bytes; the largest real ones list 2 GiB extents.
MAX_BYTES = 1 << 20
_MAX_EXTENTS = 32768
NO_PARENT = 0xFFFF_FFFF

_FIELD = re.compile(r"\s*([\w.]+)\s*=\s*(.*?)\s*")
_EXTENT = re.compile(
    r'\s*(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+(\w+)(?:\s+"([^"]*)"(?:\s+(\d{1,18}))?)?.*'
)

# What the heads of the geometry are, by the adapter ("ddb.geometry.heads").
_HEADS = {"ide": 16, "lsilogic": 255, "buslogic": 255, "legacyESX": 255}


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
    """A descriptor. `cid` changes whenever the disk is opened and written to."""

    create_type: str
    cid: int
    parent_cid: int = NO_PARENT
    parent_name: str | None = None
    extents: list[ExtentLine] = field(default_factory=list)
    database: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: bytes, name: str) -> Descriptor:
        """Read a descriptor; DiskFormatError."""
        text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        fields: dict[str, str] = {}
        extents = []
        for line in text.splitlines():
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
                fields[found[1]] = found[2].strip('"')
        if len(extents) > _MAX_EXTENTS or sum(e.sectors for e in extents) >= 1 << 54:
            raise DiskFormatError(f"{name}: its extents are too many or too long", path=name)
        if fields.get("encoding", "").lower() not in ("", "utf-8", "windows-1252", "gbk"):
            raise DiskUnsupportedError(f"{name}: encoding {fields['encoding']!r}", path=name)
        if "encryption.keySafe" in fields:
            raise DiskUnsupportedError(f"{name}: encrypted VMDK images", path=name)
        try:
            cid = int(fields["CID"], 16)
            parent_cid = int(fields.get("parentCID", "ffffffff"), 16)
            create_type = fields["createType"]
        except (KeyError, ValueError) as fault:
            raise DiskFormatError(
                f"{name}: the descriptor lacks {fault}, or it makes no sense", path=name
            ) from fault
        parent = fields.get("parentFileNameHint") if parent_cid != NO_PARENT else None
        if parent_cid != NO_PARENT and not parent:
            raise DiskFormatError(f"{name} does not say where its parent is", path=name)
        database = {key: value for key, value in fields.items() if key.startswith("ddb.")}
        return cls(create_type, cid, parent_cid, parent, extents, database)

    def to_bytes(self) -> bytes:
        lines = [
            FIRST_LINE.decode(),
            "version=1",
            f"CID={self.cid:08x}",
            f"parentCID={self.parent_cid:08x}",
            f'createType="{self.create_type}"',
        ]
        if self.parent_name is not None:
            lines.append(f'parentFileNameHint="{self.parent_name}"')
        lines += ["", "# Extent description", *map(str, self.extents)]
        lines += ["", "# The Disk Data Base", "#DDB", ""]
        lines += [f'{key} = "{value}"' for key, value in self.database.items()]
        return "\n".join([*lines, ""]).encode()


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
        rb"(?mi)^(\s*CID\s*=\s*)[0-9a-f]{1,8}",
        lambda match: match[1] + f"{cid:0{len(match[0]) - len(match[1])}x}".encode()[-8:],
        raw,
        count=1,
    )


def with_extents(raw: bytes, extents: Sequence[ExtentLine], sectors: int) -> bytes:
    """Return the text with other extents, and the cylinders of a disk of `sectors`."""
    text = raw.decode("utf-8", "surrogateescape")
    lines: list[str] = []
    done = False
    for line in text.splitlines():
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
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")
