"""Layers on their way into the store, each unpacked while it still comes.

    with Unpacking(manifest.layers, config.diff_ids, Layers(cache)) as unpacking:
        blobs.fetch(descriptor, ..., follower=unpacking.follow(descriptor))
        layers = unpacking.finish(blobs)

What a layer unpacks to is nobody's until the blob is whole and its digest right; then it is kept
(`contents`). A layer that is there is not unpacked again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ringzero.errors import GuestImageError
from ringzero.host.files import atomic_directory, make_directory, remove_tree
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import content
from ringzero.image.layers.plain import Budget, Headed, kind_of, pieces
from ringzero.image.layers.tar import Member, Stream
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.contents import CONTENT, Layer, Layers, write_members
from ringzero.image.oci.manifest import Descriptor
from ringzero.settings import IMAGE_LIMIT

# Layers at the same time: as many as Docker's client has, and one more for the small ones.
THREADS = 4
# Files of all layers of one image: each takes some hundred bytes here while they are merged.
MAX_FILES = 4_000_000


class StoppedError(Exception):
    """Something else failed, or the user wants no more."""


class _RestartedError(Exception):
    """The blob begins anew."""


class Unpacking:
    """The layers of one image, whose plain tars have the digests `diff_ids`, into a store.

    A plain layer is compared with that of `diff_ids`; of a packed one its own digest, which the
    manifest has, is enough: what it unpacks to is hashed by who asks for it (`verify`).
    """

    def __init__(
        self, layers: Sequence[Descriptor], diff_ids: Sequence[str], store: Layers
    ) -> None:
        self._layers, self._diff_ids, self._store = layers, diff_ids, store
        self._wanted = dict(zip((layer.digest for layer in layers), diff_ids, strict=False))
        self._budget = Budget(IMAGE_LIMIT.get(), MAX_FILES, make_directory(store.folder))
        self._pool = ThreadPoolExecutor(THREADS, "unpack")
        self._coming: list[Coming] = []
        self._work: dict[str, Future[Layer]] = {}

    def __enter__(self) -> Unpacking:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.stop()
        for blob in self._coming:
            blob.stop()
        self._pool.shutdown(cancel_futures=True)
        for blob in self._coming:
            blob.close()

    def follow(self, descriptor: Descriptor) -> Coming | None:
        """Return who is to be told of a layer's bytes; they are unpacked as they come.

        None for one that is not to be unpacked.
        """
        digest = descriptor.digest
        wanted = self._wanted.get(digest)
        if wanted is None or any(self._store.size(d) is not None for d in (digest, wanted)):
            return None
        return self._begin(descriptor, wanted)

    def finish(self, blobs: Blobs, progress: Progress = QUIET) -> list[Layer]:
        """Return the layers, whose blobs are all in the store, when they are unpacked.

        Raises GuestImageError where one is not what `diff_ids` say, or damaged; HostError, OSError.
        """
        if len(self._layers) != len(self._diff_ids):
            raise GuestImageError(
                f"the image has {len(self._layers)} layers, but its configuration tells of "
                f"{len(self._diff_ids)}"
            )
        here: dict[str, Layer] = {}
        for layer, wanted in zip(self._layers, self._diff_ids, strict=True):
            if layer.digest in self._work or layer.digest in here:
                continue
            found = self._store.find(layer.digest, wanted)
            if found is not None:
                here[layer.digest] = found
                continue
            for digest in (layer.digest, wanted):
                remove_tree(self._store.place(digest))
            with blobs.open(layer.digest) as file:
                blob = self._begin(layer, wanted)
                blob.begin(file.fileno(), layer.size)
                blob.finish()
        unpacked = []
        with progress.step("unpacking the layers") as step:
            for number, layer in enumerate(self._layers, 1):
                try:
                    found = here.get(layer.digest) or self._work[layer.digest].result()
                except _OtherDigestError as fault:
                    raise GuestImageError(
                        f"layer {number} of the image is the tar {fault}, but its configuration "
                        f"says {self._wanted[layer.digest]}",
                        hint="the image is damaged; build or push it again",
                    ) from None
                unpacked.append(found)
                step.update(number / len(self._layers))
        return unpacked

    def _begin(self, descriptor: Descriptor, wanted: str) -> Coming:
        blob = Coming(descriptor.size)
        self._coming.append(blob)
        work = self._pool.submit(self._unpack, descriptor.digest, wanted, blob)
        self._work[descriptor.digest] = work
        return blob

    def _unpack(self, digest: str, wanted: str, blob: Coming) -> Layer:
        """Keep a layer. Raises _OtherDigestError for one that `wanted` does not mean."""
        place = self._store.place(digest)
        with atomic_directory(place) as work:
            with (work / CONTENT).open("wb", buffering=0) as file:
                while True:
                    try:
                        members, packed = self._place(blob, file.fileno())
                        break
                    except _RestartedError:
                        file.truncate(0)
                size = os.fstat(file.fileno()).st_size
            if not packed and not _agree(digest, wanted):
                raise _OtherDigestError(digest)
            write_members(work, members, size)
        return Layer(members, place / CONTENT, size)

    def _place(self, blob: Coming, file: int) -> tuple[list[Member], bool]:
        """Write a layer's content; return what is in it, and whether it came packed.

        The blob is whole then, and its digest right.
        """
        reader = blob.reader()
        headed = Headed(reader)
        plain = pieces(headed, self._budget.spend)
        members, size = content.place(Stream(plain), file, 0, self._budget.spend_file)
        for _ in plain:
            # What lies behind the archive's end is to be undamaged, too.
            pass
        os.ftruncate(file, size)
        reader.wait()
        return members, kind_of(headed.head) != "tar"


class _OtherDigestError(Exception):
    """A plain layer is something else, whose digest is told."""


def _agree(one: str, other: str) -> bool:
    """Whether two digests may be of the same bytes: those of two algorithms may always."""
    return one == other or one.partition(":")[0] != other.partition(":")[0]


class Coming:
    """A blob of `size` bytes in a file that grows: told of by one thread, read by another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._there = 0
        self._right = False
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

    def finish(self) -> None:
        """It is whole, and its digest right."""
        with self._changed:
            self._right = True
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

    def wait(self, turn: int | None) -> None:
        """Wait until it is known to be right. Raises StoppedError, _RestartedError."""
        with self._changed:
            self._changed.wait_for(lambda: self._right or self._turn != turn or turn is None)
            if self._turn is None:
                raise StoppedError
            if self._turn != turn:
                raise _RestartedError


class Reader:
    """Reads a blob that comes, waiting where there is no more of it yet."""

    def __init__(self, blob: Coming, turn: int | None) -> None:
        self._blob, self._turn, self._at = blob, turn, 0

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        data = self._blob.read(self._at, size, self._turn)
        self._at += len(data)
        return data

    def wait(self) -> None:
        """Return when the whole blob is there, and its digest right."""
        self._blob.wait(self._turn)
