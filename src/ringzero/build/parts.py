"""The layers of steps as those of an image: cut into parts (`partition`), and packed.

    with blobs.in_use():
        for parts in pack([(layer, path), ...], below=3, builds=builds, blobs=blobs): ...

Packing is by zstd (RFC 8878), which all runtimes of these years read. Its bytes are the same
wherever its library is of the same version; the digests of the plain parts are the same anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

from ringzero.build import entries, partition
from ringzero.build.archives import members
from ringzero.build.cache import BuildCache, key
from ringzero.build.entries import Layer
from ringzero.host.progress import QUIET, Progress
from ringzero.image.layers.plain import map_whole
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor
from ringzero.image.oci.reference import is_digest
from ringzero.records import record

# Of how layers are cut and packed: with another one they are anew.
_FORMAT = "1"
_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
# zstd's own default: higher levels take twice the time and more for some per cent.
_LEVEL = 3
# Of an image: Docker takes no more than 125, and whoever builds on it adds some. Of a layer: as
# many as two steps of one image may have.
_MOST_LAYERS, _MOST_PARTS = 110, 64
_THREADS = 4


@record
class Part:
    """A layer of an image: its packed blob, which is in the store, and its plain tar's digest.

    `owner` is whose files it has, "" where they are of several.
    """

    blob: Descriptor
    diff_id: str
    owner: str = ""

    def plain(self) -> list[str | int]:
        """Return it as the cache keeps it."""
        return [self.blob.digest, self.blob.size, self.diff_id, self.owner]


def pack(
    layers: Sequence[tuple[Layer, Path]],
    below: int,
    *,
    builds: BuildCache,
    blobs: Blobs,
    progress: Progress = QUIET,
) -> list[list[Part]]:
    """Return the parts of layers, which lie in files as plain tars, above `below` others.

    What is known of them is not done again. Call it while `blobs` are in use. Raises
    GuestImageError, HostError.
    """
    whole = [_Whole(layer, path, builds, blobs) for layer, path in layers]
    most = _MOST_PARTS
    while most > 1 and below + sum(one.count(most) for one in whole) > _MOST_LAYERS:
        most //= 2
    with progress.step("packing the layers") as step, ThreadPoolExecutor(_THREADS, "pack") as pool:
        found = []
        for number, one in enumerate(whole, 1):
            found.append(one.parts(most, pool))
            step.update(number / len(whole))
        return found


class _Whole:
    """A layer as a step made it."""

    def __init__(self, layer: Layer, path: Path, builds: BuildCache, blobs: Blobs) -> None:
        self._layer, self._path = layer, path
        self._builds, self._blobs = builds, blobs
        self._entries: list[entries.Entry] | None = None
        self._cuts: dict[int, list[partition.Part]] = {}

    def count(self, most: int) -> int:
        """Return how many parts it has where it may have `most`."""
        known = self._known(most)
        return len(known) if known is not None else max(1, len(self._cut(most)))

    def parts(self, most: int, pool: ThreadPoolExecutor) -> list[Part]:
        """Return its parts, at most so many."""
        known = self._known(most)
        if known is not None:
            return known
        work = [
            pool.submit(self._packed, _written(part.entries), part.owner)
            for part in self._cut(most)
        ]
        if not work:
            work = [pool.submit(self._packed, self._copied, "")]
        try:
            found = [each.result() for each in work]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        self._builds.keep_parts(self._key(most), [part.plain() for part in found])
        return found

    def _cut(self, most: int) -> list[partition.Part]:
        if self._entries is None:
            with self._path.open("rb") as file:
                self._entries = list(members(map_whole(file.fileno())))
        if most not in self._cuts:
            self._cuts[most] = partition.partition(self._entries, most)
        return self._cuts[most]

    def _packed(self, write: Callable[[BinaryIO], Layer], owner: str) -> Part:
        layer: Layer | None = None

        def make(file: BinaryIO) -> Descriptor:
            nonlocal layer
            target = _Hashed(file)
            with _packer(target) as packing:
                layer = write(cast(BinaryIO, packing))
            return Descriptor(_MEDIA_TYPE, target.digest, target.size)

        blob = self._blobs.add(make)
        assert layer is not None
        return Part(blob, layer.digest, owner)

    def _copied(self, file: BinaryIO) -> Layer:
        with self._path.open("rb") as plain:
            while data := plain.read(1 << 20):
                file.write(data)
        return self._layer

    def _known(self, most: int) -> list[Part] | None:
        """Return its parts where all of them are there already."""
        try:
            found = [
                Part(Descriptor(_MEDIA_TYPE, digest, size), diff_id, owner)
                for digest, size, diff_id, owner in self._builds.parts(self._key(most)) or ()
            ]
            sound = all(is_digest(p.blob.digest) and is_digest(p.diff_id) for p in found)
        except (ValueError, TypeError):
            return None
        return found if found and sound and all(self._blobs.has(p.blob) for p in found) else None

    def _key(self, most: int) -> str:
        return key("PARTS", _FORMAT, _version(), self._layer.digest, str(most))


def told(
    history: Sequence[dict[str, Any]], parts: Sequence[Sequence[Part]]
) -> list[dict[str, Any]]:
    """Return a history (config.md) with an entry for each part of its last layers."""
    left, found = list(parts), list[dict[str, Any]]()
    for entry in reversed(history):
        if entry.get("empty_layer") or not left:
            found.append(entry)
            continue
        layer = left.pop()
        if len(layer) == 1:
            found.append(entry)
            continue
        for number, part in reversed(list(enumerate(layer, 1))):
            note = f"part {number} of {len(layer)}" + (f": {part.owner}" if part.owner else "")
            found.append({**entry, "comment": note})
    return found[::-1]


def _written(found: Sequence[entries.Entry]) -> Callable[[BinaryIO], Layer]:
    return lambda file: entries.write(found, file, entries.KEEP)


class _Hashed:
    """A file that is written to, its size and digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)


def _packer(target: _Hashed) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL).stream_writer(cast(Any, target), closefd=False)


def _version() -> str:
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))
