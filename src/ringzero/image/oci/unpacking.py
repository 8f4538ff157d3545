"""Layers on their way into an image's root file system, each unpacked while it still comes.

    with Unpacking(manifest.layers, file) as unpacking:
        blobs.fetch(descriptor, ..., follower=unpacking.follow(descriptor))
        layers = unpacking.finish(diff_ids, blobs)

The content of their files lies in `file` then, the lowest layer's first, whatever the order is in
which they come: the lowest that is not there yet is unpacked into it, those above to files without
names, and copied. Nothing of it is anybody's until `finish` has compared the digests of what came
with those of the image's configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import content, writer
from ringzero.image.layers.plain import Budget, Headed, kind_of, pieces
from ringzero.image.layers.tar import Member, Stream
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor
from ringzero.records import mutable_record, record
from ringzero.settings import IMAGE_LIMIT

# Layers at the same time: as many as Docker's client has, and one more for the small ones.
THREADS = 4
# Files of all layers of one image: each takes some hundred bytes here while they are merged.
MAX_FILES = 4_000_000
_SHA256 = "sha256:"


class StoppedError(Exception):
    """Something else failed, or the user wants no more."""


class _RestartedError(Exception):
    """The blob begins anew."""


@record
class Layer:
    """What is in a layer; the content of its files lies from `begin` on, and has `size` bytes."""

    members: list[Member]
    begin: int
    size: int


@mutable_record
class _Part:
    """Where a layer's content is: from `begin` on in the image's file, or in one of its own."""

    file: BinaryIO
    begin: int
    size: int = 0

    def clear(self) -> None:
        """Forget what is there."""
        os.ftruncate(self.file.fileno(), self.begin)


class Unpacking:
    """The layers of one image, whose file is empty; files of their own lie in its folder."""

    def __init__(self, layers: Sequence[Descriptor], file: BinaryIO) -> None:
        self._layers = layers
        self._file = file
        self._place = Path(file.name).parent
        self._budget = Budget(IMAGE_LIMIT.get(), MAX_FILES, self._place)
        self._pool = ThreadPoolExecutor(THREADS, "unpack")
        self._coming: list[Coming] = []
        self._work: dict[str, Future[tuple[list[Member], str]]] = {}
        self._files = contextlib.ExitStack()
        # For what follows: digests in their order, how many of them have their place in the image,
        # which ends there, and those that are unpacked.
        self._lock = threading.Lock()
        self._order = list(dict.fromkeys(layer.digest for layer in layers))
        self._settled, self._end = 0, writer.FIRST
        self._parts: dict[str, _Part] = {}

    def __enter__(self) -> Unpacking:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.stop()
        for blob in self._coming:
            blob.stop()
        self._pool.shutdown(cancel_futures=True)
        self._files.close()
        for blob in self._coming:
            blob.close()

    def follow(self, descriptor: Descriptor) -> Coming:
        """Return who is to be told of a layer's bytes; they are unpacked as they come."""
        blob = Coming(descriptor.size)
        self._coming.append(blob)
        self._work[descriptor.digest] = self._pool.submit(self._unpack, descriptor.digest, blob)
        return blob

    def finish(
        self, diff_ids: Sequence[str], blobs: Blobs, progress: Progress = QUIET
    ) -> list[Layer]:
        """Return the layers, which are all in the store, when they are in the image's file.

        Raises GuestImageError where one is not what `diff_ids` say, or damaged; HostError, OSError.
        """
        if len(self._layers) != len(diff_ids):
            raise GuestImageError(
                f"the image has {len(self._layers)} layers, but its configuration tells of "
                f"{len(diff_ids)}"
            )
        for layer in self._layers:
            if layer.digest not in self._work:
                with blobs.open(layer.digest) as file:
                    self.follow(layer).begin(file.fileno(), layer.size)
        found = []
        with progress.step("unpacking the layers") as step:
            for number, (layer, wanted) in enumerate(zip(self._layers, diff_ids, strict=True), 1):
                members, digest = self._work[layer.digest].result()
                if digest != wanted:
                    raise GuestImageError(
                        f"layer {number} of the image unpacks to {digest}, but its configuration "
                        f"says {wanted}",
                        hint="the image is damaged; build or push it again",
                    )
                found.append(members)
                step.update(number / len(self._layers))
        parts = [self._parts[layer.digest] for layer in self._layers]
        return [
            Layer(members, part.begin, part.size)
            for members, part in zip(found, parts, strict=True)
        ]

    def _unpack(self, digest: str, blob: Coming) -> tuple[list[Member], str]:
        """Return what is in a layer, and the digest of its plain tar."""
        part = self._part(digest)
        while True:
            try:
                file = Headed(blob.reader())
                same = kind_of(file.head) == "tar" and digest.startswith(_SHA256)
                plain = _Plain(file, self._budget, hashed=not same)
                members, part.size = content.place(
                    Stream(iter(plain)), part.file.fileno(), part.begin, self._budget.spend_file
                )
                found = plain.digest()
                break
            except _RestartedError:
                part.clear()
        self._settle(digest, part)
        return members, digest if same else found

    def _part(self, digest: str) -> _Part:
        """Return where a layer goes: to its place, where that is known."""
        with self._lock:
            if self._order[self._settled] == digest:
                return _Part(self._file, self._end)
        made = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115 - closed with the others
        return _Part(self._files.enter_context(made), 0)

    def _settle(self, digest: str, part: _Part) -> None:
        """Give a layer its place in the image, and others that have waited for it."""
        with self._lock:
            self._parts[digest] = part
            while self._settled < len(self._order):
                part_ = self._parts.get(self._order[self._settled])
                if part_ is None:
                    return
                if part_.file is not self._file:
                    with part_.file as file:
                        file.truncate(part_.size)
                        content.copy(file.fileno(), self._file.fileno(), self._end, part_.size)
                    part_.file, part_.begin = self._file, self._end
                self._end += part_.size
                self._settled += 1


class _Plain:
    """A layer's plain tar, and its digest."""

    def __init__(self, file: Headed, budget: Budget, *, hashed: bool) -> None:
        self._pieces = pieces(file, budget)
        self._hash = hashlib.sha256() if hashed else None

    def __iter__(self) -> Iterator[bytes]:
        for data in self._pieces:
            if self._hash is not None:
                self._hash.update(data)
            yield data

    def digest(self) -> str:
        """Return the digest, of what was not asked for, too; "" where none was wanted."""
        for _ in self:
            pass
        return f"{_SHA256}{self._hash.hexdigest()}" if self._hash is not None else ""


class Coming:
    """A blob of `size` bytes in a file that grows: told of by one thread, read by another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._there = 0
        # How often it has begun anew; None: it is over.
        self._turn: int | None = 0
        self._file = -1
        self._changed = threading.Condition()

    def begin(self, descriptor: int, size: int) -> None:
        """The blob is on its way into an open file, which has `size` bytes of it."""
        with self._changed:
            self._file = os.dup(descriptor)
            self._there = size
            self._changed.notify_all()

    def tell(self, size: int) -> None:
        """The file has `size` bytes now."""
        with self._changed:
            self._there = size
            self._changed.notify_all()

    def restart(self) -> None:
        """What was there is not to be trusted; the file will be empty."""
        with self._changed:
            self._there = 0
            if self._turn is not None:
                self._turn += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let whoever reads hear that no more comes."""
        with self._changed:
            self._turn = None
            self._changed.notify_all()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def reader(self) -> Reader:
        """Return what reads the blob from its beginning."""
        with self._changed:
            return Reader(self, self._turn)

    def read(self, at: int, size: int, turn: int | None) -> bytes:
        """Return the bytes at an offset, as many as there are, up to `size`; none at the end.

        Waits for the first. Raises StoppedError, _RestartedError.
        """
        with self._changed:
            while self._turn == turn and self._turn is not None and at >= self._there:
                if self._there >= self.size:
                    return b""
                self._changed.wait()
            if self._turn is None:
                raise StoppedError
            if self._turn != turn:
                raise _RestartedError
            length = min(size, self._there - at)
        data = os.pread(self._file, length, at)
        with self._changed:
            # It may have begun anew meanwhile, and what was read be a mixture.
            if self._turn is not None and self._turn != turn:
                raise _RestartedError
        if not data:
            raise GuestImageError("a layer of the image is cut short while it is read")
        return data


class Reader:
    """Reads a blob that comes, waiting where there is no more of it yet."""

    def __init__(self, blob: Coming, turn: int | None) -> None:
        self._blob, self._turn, self._at = blob, turn, 0

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        data = self._blob.read(self._at, size, self._turn)
        self._at += len(data)
        return data
