"""A snapshot as one file, to be carried elsewhere: export, and import of what strangers made.

The file is a tar archive (POSIX ustar headers, GNU sizes) compressed by
Zstandard, with these members in this order: `manifest.json`, `state.json`, and
each blob as `blobs/DIGEST`. Whoever reads it takes no other member, no other
order and no other size than the manifest says, so that an archive can neither
write outside of its directory nor fill the disk by surprise; digests are
verified before the snapshot gets a name.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from ringzero.errors import InvalidValueError, StateError
from ringzero.host.files import host_error
from ringzero.host.placing import filled
from ringzero.vm.saved import blobs, snapshot
from ringzero.vm.saved.snapshot import MANIFEST, MAX_MANIFEST, MAX_STATE, STATE, Manifest, Snapshot
from ringzero.vm.saved.store import Store, check_name, rename

_RECORD = 512
# Level 3: as quick as a disk on one core, and a quarter of a guest's memory is left.
_LEVEL = 3
# The most memory that an archive may ask of whoever reads it: 128 MiB, as `zstd -d` allows.
_WINDOW = 1 << 27
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0")
_BLOBS = "blobs/"


def export(source: Snapshot, path: Path) -> int:
    """Write a snapshot to the file `path`; return its size in bytes.

    Raises InvalidValueError for one that lives on files of this host: read-only disks, or a
    kernel to boot when it has no memory. Raises StateError when it is damaged, HostError.
    """
    manifest = source.manifest
    outside = [part.path for part in manifest.disks if part.blob is None]
    if manifest.memory is None:
        config = manifest.machine_config()
        outside += [str(file) for file in (config.kernel, config.initrd) if file is not None]
    if outside:
        raise InvalidValueError(
            f"{source.name} needs files of this host: {', '.join(outside)}",
            hint="save a machine with memory, whose disks are all writable",
        )
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with filled(path) as raw, compressor.stream_writer(raw, closefd=False) as out:
        _write_member(out, MANIFEST, manifest.to_bytes())
        if manifest.state is not None:
            source.state()
            _write_member(out, STATE, (source.path / STATE).read_bytes())
        for digest, size in sorted(manifest.blobs.items()):
            out.write(_header(_BLOBS + digest, size))
            _copy_blob(source.blob(digest), digest, size, out)
            out.write(_padding(size))
        out.write(bytes(2 * _RECORD))
    return path.stat().st_size


def _copy_blob(path: Path, digest: str, size: int, out: Any) -> None:
    seen, at = blobs.Digest(size), 0
    zeroes = memoryview(bytes(blobs.BLOCK))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            raise StateError(f"{path} is damaged: it has another size", path=path)
        for offset, data in blobs.file_blocks(file.fileno(), size):
            while at < offset:
                out.write(zeroes[: offset - at])
                at += min(blobs.BLOCK, offset - at)
            seen.add(offset, data)
            out.write(data)
            at += len(data)
    while at < size:
        out.write(zeroes[: size - at])
        at += min(blobs.BLOCK, size - at)
    if seen.text() != digest:
        raise StateError(f"{path} is damaged: its content is not what its name says", path=path)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _RECORD)


def _write_member(out: Any, name: str, data: bytes) -> None:
    out.write(_header(name, len(data)) + data + _padding(len(data)))


def import_file(store: Store, path: Path, name: str | None = None) -> Snapshot:
    """Take an exported snapshot into `store`, as `name` or as it was called.

    Raises StateError for a file that is anything else than a whole, sound export,
    InvalidValueError when the name is taken, HostError.
    """
    try:
        with path.open("rb") as file, store.workplace() as work:
            window = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
            manifest = _Reader(window.stream_reader(file), path).take(work)
            name = check_name(name if name is not None else manifest.name)
            taken = any(s.identifier == manifest.identifier for s in store.all()[0])
            identifier = os.urandom(16).hex() if taken else None
            named = rename(manifest, name, identifier=identifier)
            snapshot.write_file(work / MANIFEST, named.to_bytes())
            return store.commit(work, name)
    except zstandard.ZstdError as fault:
        raise StateError(f"{path} is no exported snapshot: {fault}", path=path) from fault
    except OSError as fault:
        raise host_error(fault, "read", path) from fault


class _Reader:
    """Reads the members of an archive in their order, and nothing else."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream = stream
        self._path = path

    def take(self, work: Path) -> Manifest:
        """Put the archive's files into `work`, all but the manifest, which is returned."""
        size = self._expect(MANIFEST, None, MAX_MANIFEST)
        manifest = Manifest.from_bytes(self._member(size), self._path)
        if any(part.blob is None for part in manifest.disks):
            raise self._refusal("it names files of another host")
        if manifest.memory is None:
            config = manifest.machine_config()
            if config.kernel is not None or config.initrd is not None:
                raise self._refusal("it names files of another host")
        if manifest.state is not None:
            state = self._member(self._expect(STATE, None, MAX_STATE))
            if hashlib.sha256(state).hexdigest() != manifest.state:
                raise self._refusal("its state is damaged")
            snapshot.write_file(work / STATE, state)
        for digest, size in sorted(manifest.blobs.items()):
            self._expect(_BLOBS + digest, size, size)
            written = blobs.write_blob(work, size, self._blocks(size))
            self._skip_padding(size)
            if written != digest:
                raise self._refusal(f"the blob {digest} is damaged")
        return manifest

    def _refusal(self, reason: str) -> StateError:
        return StateError(f"{self._path} is no sound export: {reason}", path=self._path)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._stream.read(count - len(data))
            if not more:
                raise self._refusal("it is cut short")
            data += more
        return data

    def _expect(self, name: str, size: int | None, limit: int) -> int:
        """Read the header of the member `name`; return its size."""
        header = self._read(_RECORD)
        seen = header[:100].rstrip(b"\0")
        if seen != name.encode() or header[156:157] not in _REGULAR:
            raise self._refusal(f"{name} is not where it must be")
        blank = header[: _CHECKSUM.start] + b" " * 8 + header[_CHECKSUM.stop :]
        if _number(header[_CHECKSUM]) != sum(blank):
            raise self._refusal(f"the header of {name} is damaged")
        found = _number(header[_SIZE])
        if found is None or not 0 <= found <= limit or (size is not None and found != size):
            raise self._refusal(f"{name} has another size than it must have")
        return found

    def _member(self, size: int) -> bytes:
        data = self._read(size)
        self._skip_padding(size)
        return data

    def _skip_padding(self, size: int) -> None:
        self._read(-size % _RECORD)

    def _blocks(self, size: int) -> Iterator[tuple[int, bytes]]:
        zeroes = bytes(blobs.BLOCK)
        for offset in range(0, size, blobs.BLOCK):
            data = self._read(min(blobs.BLOCK, size - offset))
            if data != zeroes[: len(data)]:
                yield offset, data


def _number(field: bytes) -> int | None:
    """Return a number of a header: octal digits, or (GNU) binary after a set upper bit."""
    if field[0] & 0x80:
        return struct.unpack(">Q", field[-8:])[0] if not any(field[1:-8]) else None
    try:
        return int(field.rstrip(b" \0") or b"x", 8)
    except ValueError:
        return None
