"""Reading .deb files: deb(5), an ar(5) archive with two tar files in it.

Nothing is executed: maintainer scripts stay where they are.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from ringzero.errors import GuestImageError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the outer archive; raises GuestImageError."""
    with deb.open("rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise GuestImageError(f"{deb.name} is not a Debian package", path=deb)
        while header := file.read(_AR_HEADER):
            if len(header) < _AR_HEADER or header[58:60] != b"`\n":
                raise GuestImageError(f"{deb.name}: damaged archive header", path=deb)
            try:
                size = int(header[48:58])
            except ValueError:
                raise GuestImageError(f"{deb.name}: damaged member size", path=deb) from None
            content = file.read(size)
            if size < 0 or len(content) != size:
                raise GuestImageError(f"{deb.name} is cut short", path=deb)
            # Members start at even offsets.
            file.read(size & 1)
            yield header[:16].decode("ascii", "replace").strip().rstrip("/"), content


def files(deb: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield every file, directory and link that the package installs, with its content."""
    yield from _tar(deb, "data.tar")


def control(deb: Path) -> str:
    """Return the package's control file (deb-control(5))."""
    for info, content in _tar(deb, "control.tar"):
        if info.name.removeprefix("./") == "control":
            return content.decode("utf-8", "replace")
    raise GuestImageError(f"{deb.name} has no control file", path=deb)


def _tar(deb: Path, stem: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    found = next((m for m in members(deb) if m[0] == stem or m[0].startswith(stem + ".")), None)
    if found is None:
        raise GuestImageError(f"{deb.name} has no {stem}", path=deb)
    name, content = found
    try:
        with (
            _decompressed(io.BytesIO(content), name) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for info in tar:
                body = tar.extractfile(info) if info.isreg() else None
                yield info, body.read() if body is not None else b""
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as fault:
        raise GuestImageError(f"{deb.name}: damaged {name}: {fault}", path=deb) from fault


def _decompressed(raw: BinaryIO, name: str) -> IO[bytes]:
    if name.endswith(".xz"):
        return lzma.open(raw)
    if name.endswith(".gz"):
        return io.BytesIO(gzip.decompress(raw.read()))
    if name.endswith(".zst"):
        return io.BytesIO(_unzstd(raw))
    if name.endswith(".tar"):
        return raw
    raise GuestImageError(f"unknown compression of {name}")


def _unzstd(raw: BinaryIO) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(raw) as reader:
            return reader.read()
    except zstandard.ZstdError as fault:
        raise OSError(str(fault)) from fault
