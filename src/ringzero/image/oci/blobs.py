"""Blobs by their digests, in the cache:

    blobs/sha256/HEX            whole and checked
    blobs/partial/sha256-HEX    what has come so far of one; its lock beside it
    blobs/lock                  held by who uses blobs (shared), and who removes them

A blob gets its name only when its digest is right, by rename; a transfer that broke off goes on
from where it ended, in this process or another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ringzero.errors import GuestImageError
from ringzero.host.files import PARTIAL, host_error, locked, make_directory, sweep
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci.manifest import Descriptor

_CHUNK = 1 << 20


class Blobs:
    """The blobs below the cache directory `cache`."""

    def __init__(self, cache: Path) -> None:
        self._place = cache / "blobs"

    @contextlib.contextmanager
    def in_use(self, progress: Progress = QUIET) -> Iterator[None]:
        """Keep all blobs from being removed for the block."""
        with locked(self._place / "lock", progress, shared=True):
            yield

    def path(self, digest: str) -> Path:
        """Return where the blob with a digest, checked by the caller, lies or will lie."""
        algorithm, _, text = digest.partition(":")
        return self._place / algorithm / text

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there."""
        try:
            return self.path(descriptor.digest).stat().st_size == descriptor.size
        except OSError:
            return False

    def read(self, digest: str) -> bytes:
        """Return a blob's content. Raises HostError."""
        path = self.path(digest)
        try:
            return path.read_bytes()
        except OSError as fault:
            raise host_error(fault, "read", path) from fault

    def put(self, data: bytes, digest: str) -> None:
        """Store a small blob. Raises GuestImageError when it is not what `digest` says."""
        descriptor = Descriptor("", digest, len(data))
        if not self.has(descriptor):
            self.fetch(descriptor, lambda partial: partial.write(data))

    def add(self, make: Callable[[BinaryIO], Descriptor]) -> Descriptor:
        """Have `make` write a blob and tell what it is, and keep it. Raises HostError."""
        place = make_directory(self._place / "partial")
        sweep(place)
        try:
            descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=place)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    made = make(file)
                    file.flush()
                    if not self.has(made):
                        os.fsync(file.fileno())
                        final = self.path(made.digest)
                        make_directory(final.parent)
                        temporary.replace(final)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as fault:
            raise host_error(fault, "write", place) from fault
        return made

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading. Raises HostError."""
        path = self.path(digest)
        try:
            return path.open("rb", buffering=0)
        except OSError as fault:
            raise host_error(fault, "read", path) from fault

    def fetch(
        self,
        descriptor: Descriptor,
        fill: Callable[[Partial], object],
        progress: Progress = QUIET,
        follower: Follower | None = None,
    ) -> None:
        """Have a blob in the store: `fill` appends what is missing of it.

        `follower` is told of what comes, while it comes, checked or not. Raises GuestImageError
        when what came is not what the digest says, and what `fill` raises.
        """
        final = self.path(descriptor.digest)
        name = descriptor.digest.replace(":", "-")
        partial = self._place / "partial" / name
        with locked(self._place / "partial" / f"{name}.lock", progress):
            if self.has(descriptor):
                # Somebody else was first.
                if follower is not None:
                    with self.open(descriptor.digest) as file:
                        follower.begin(file.fileno(), descriptor.size)
                    follower.finish()
                return
            make_directory(final.parent)
            try:
                with partial.open("a+b", buffering=0) as file:
                    sink = Partial(file, descriptor, follower)
                    fill(sink)
                    sink.check()
                    os.fsync(file.fileno())
                partial.replace(final)
                partial.with_name(f"{name}.lock").unlink(missing_ok=True)
            except OSError as fault:
                raise host_error(fault, "write", partial) from fault
            finally:
                # Nothing of it is worth keeping.
                with contextlib.suppress(OSError):
                    if not partial.stat().st_size:
                        partial.unlink()


class Follower(Protocol):
    """Who reads a blob while it comes, before it is checked."""

    def begin(self, descriptor: int, size: int) -> None:
        """The blob is on its way into an open file, which has `size` bytes of it."""
        ...

    def tell(self, size: int) -> None:
        """The file has `size` bytes now."""
        ...

    def restart(self) -> None:
        """What was there is not to be trusted; the file will be empty."""
        ...

    def finish(self) -> None:
        """The blob is whole, and its digest right."""
        ...


class Partial:
    """The file of a blob that is on its way, and the hash of what is there."""

    def __init__(self, file: Any, descriptor: Descriptor, follower: Follower | None = None) -> None:
        self._file: BinaryIO = file
        self._descriptor = descriptor
        self._follower = follower
        self._restart_hash()
        self.size = 0
        self._file.seek(0)
        while data := self._file.read(_CHUNK):
            self._hash.update(data)
            self.size += len(data)
        if self.size > descriptor.size:
            self.restart()
        if follower is not None:
            follower.begin(file.fileno(), self.size)

    def _restart_hash(self) -> None:
        self._hash = hashlib.new(self._descriptor.digest.partition(":")[0])

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises GuestImageError when there are more than there should be."""
        self.size += len(data)
        if self.size > self._descriptor.size:
            self.restart()
            raise GuestImageError(
                f"more than the {self._descriptor.size} bytes come that "
                f"{self._descriptor.digest} should have",
                hint="the registry or the image is damaged",
            )
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        if self._follower is not None:
            self._follower.tell(self.size)

    def restart(self) -> None:
        """Forget all that has come."""
        if self._follower is not None:
            # Before the bytes go that it may be reading.
            self._follower.restart()
        self._file.truncate(0)
        self.size = 0
        self._restart_hash()

    def check(self) -> None:
        """Raise GuestImageError unless the blob is whole and right; a wrong one is forgotten."""
        if self.size < self._descriptor.size:
            size = self.size
            self.restart()
            raise GuestImageError(
                f"{self._descriptor.digest} is cut short: {size} of {self._descriptor.size} bytes",
                hint="the image is damaged; build or push it again",
            )
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            self.restart()
            raise _wrong(found, self._descriptor.digest)
        if self._follower is not None:
            self._follower.finish()


def check_digest(data: bytes, digest: str) -> None:
    """Raise GuestImageError unless `data` has a digest."""
    made = hashlib.new(digest.partition(":")[0], data)
    found = f"{made.name}:{made.hexdigest()}"
    if found != digest:
        raise _wrong(found, digest)


def _wrong(found: str, digest: str) -> GuestImageError:
    return GuestImageError(
        f"the digest of what came is wrong: {found} instead of {digest}",
        hint="the registry, a mirror or a proxy on the way is damaged or lies; try again",
    )


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
