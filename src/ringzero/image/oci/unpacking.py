"""Layers without their compression, each unpacked while it still comes.

    with Unpacking(place) as unpacking:
        blobs.fetch(descriptor, ..., follower=unpacking.follow(descriptor.digest))
        files = unpacking.finish(descriptors, diff_ids, blobs)

Unpacked bytes go to files without names, and are nobody's until `finish` has compared their
digests with those of the image's configuration.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.layers.plain import Budget, Headed, kind_of, unpack
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor
from ringzero.settings import IMAGE_LIMIT

# Layers at the same time: as many as Docker's client has, and one more for the small ones.
THREADS = 4
_SHA256 = "sha256:"


class StoppedError(Exception):
    """Something else failed, or the user wants no more."""


class _RestartedError(Exception):
    """The blob begins anew."""


class Unpacking:
    """The layers of one image on their way to plain tars; files lie below the folder `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._budget = Budget(IMAGE_LIMIT.get(), place)
        self._pool = ThreadPoolExecutor(THREADS, "unpack")
        self._coming: list[Coming] = []
        self._work: dict[str, Future[tuple[BinaryIO | None, str]]] = {}
        self._files = contextlib.ExitStack()

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
        self,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
        blobs: Blobs,
        progress: Progress = QUIET,
    ) -> list[BinaryIO]:
        """Return the plain tars of `layers`, which are all in the store.

        They are open until the end of the block. Raises GuestImageError where one is not what
        `diff_ids` say, or damaged; HostError.
        """
        if len(layers) != len(diff_ids):
            raise GuestImageError(
                f"the image has {len(layers)} layers, but its configuration tells of "
                f"{len(diff_ids)}"
            )
        for layer in layers:
            if layer.digest not in self._work:
                with blobs.open(layer.digest) as file:
                    self.follow(layer).begin(file.fileno(), layer.size)
        found = []
        with progress.step("unpacking the layers") as step:
            for number, (layer, wanted) in enumerate(zip(layers, diff_ids, strict=True), 1):
                plain, digest = self._work[layer.digest].result()
                if digest != wanted:
                    raise GuestImageError(
                        f"layer {number} of the image unpacks to {digest}, but its configuration "
                        f"says {wanted}",
                        hint="the image is damaged; build or push it again",
                    )
                found.append(plain or self._files.enter_context(blobs.open(layer.digest)))
                step.update(number / len(layers))
        return found

    def _unpack(self, digest: str, blob: Coming) -> tuple[BinaryIO | None, str]:
        """Return the plain tar and its digest; None for a blob that is one."""
        while True:
            try:
                file = Headed(blob.reader())
                if kind_of(file.head) == "tar" and digest.startswith(_SHA256):
                    self._budget.spend(blob.size)
                    return None, digest
                made = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115 - closed with the others
                target = self._files.enter_context(made)
                return target, unpack(file, target, self._budget)
            except _RestartedError:
                continue


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
