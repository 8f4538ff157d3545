"""What builds keep, below the cache directory:

    build/steps/KEY.json        what a step made: its layer, or that it failed to be one
    build/layers/HEX            a layer's tar, by its sha256
    build/machines/KEY/         the machine after a RUN, as a snapshot
    build/caches/HEX.tar        what a RUN has left in a mount of type cache
    build/parts/KEY.json        the layers of an image that a step's layer became (`parts`)
    build/users/KEY.json        who an image's user is, by its files
    build/paths/KEY.json        where an image's kernel lies, by its files
    build/downloads/            what ADD has fetched
    build/failed/, failures/    the machines of steps that failed (`failures`)
    build/lock                  held by builds (shared), and by who prunes

KEY covers all that went into a step and those before it. A record gets its name when all that it
speaks of is on the disk, so that a build that is killed leaves nothing wrong behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ringzero.build.entries import Layer
from ringzero.build.failures import Failures
from ringzero.digest import blake2b
from ringzero.host.files import (
    PARTIAL,
    atomic_file,
    files_below,
    host_error,
    locked,
    make_directory,
    remove_tree,
    sweep,
)
from ringzero.host.progress import QUIET, Progress
from ringzero.image import machinespec
from ringzero.image.oci.process import User
from ringzero.image.oci.reference import is_digest
from ringzero.vm.saved.store import Store

# Of the records, and of how layers are made: another one finds nothing.
_FORMAT = "3"
# All that is removed when all of it is, which is all but the lock.
_PARTS = (
    *("steps", "machines", "layers", "caches", "users", "downloads"),
    *("failed", "failures", "paths", "parts"),
)


def key(*parts: str | bytes) -> str:
    """Return a step's key from all that goes into it, that of the step before included."""
    digest = blake2b(digest_size=32)
    for part in (_FORMAT, *parts):
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class BuildCache:
    """The steps of builds below the cache directory `cache`."""

    def __init__(self, cache: Path) -> None:
        self._place = cache / "build"
        self.machines = Store(self._place / "machines")
        self.failures = Failures(self._place)
        self.downloads = self._place / "downloads"

    @contextlib.contextmanager
    def in_use(self, progress: Progress = QUIET) -> Iterator[None]:
        """Keep all from being pruned for the block."""
        with locked(self._place / "lock", progress, shared=True):
            yield

    def layer(self, digest: str) -> Path:
        """Return where a layer lies."""
        return self._place / "layers" / digest.partition(":")[2]

    def add(self, make: Callable[[BinaryIO], Layer]) -> Layer:
        """Have `make` write a layer, and keep it. Raises HostError, and what `make` raises."""
        place = make_directory(self._place / "layers")
        sweep(place)
        try:
            descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=place)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "w+b") as file:
                    made = make(file)
                    file.flush()
                    os.fsync(descriptor)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            temporary.replace(self.layer(made.digest))
        except OSError as fault:
            raise host_error(fault, "write", place) from fault
        return made

    def find(self, step: str) -> Layer | None:
        """Return the layer that a step made, where all of it is there."""
        try:
            value = json.loads((self._place / "steps" / f"{step}.json").read_bytes())
            layer = Layer(value["digest"], value["size"])
            if not is_digest(layer.digest) or self.layer(layer.digest).stat().st_size != layer.size:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return layer

    def keep(self, step: str, layer: Layer) -> None:
        """Say what a step made. Raises HostError."""
        with atomic_file(self._place / "steps" / f"{step}.json") as file:
            file.write(json.dumps({"digest": layer.digest, "size": layer.size}).encode())

    def user(self, step: str) -> User | None:
        """Return who an image's user is, where that is known."""
        try:
            value = json.loads((self._place / "users" / f"{step}.json").read_bytes())
            uid, home, gids = value["uid"], value["home"], tuple(value["gids"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = type(uid) is int and isinstance(home, str) and all(type(n) is int for n in gids)
        return User(uid, gids, home) if whole and gids else None

    def keep_user(self, step: str, user: User) -> None:
        """Say who an image's user is. Raises HostError."""
        with atomic_file(self._place / "users" / f"{step}.json") as file:
            value = {"uid": user.uid, "gids": user.gids, "home": user.home}
            file.write(json.dumps(value).encode())

    def path(self, step: str) -> str | None:
        """Return the path that a step found in the image, where that is known."""
        try:
            path = json.loads((self._place / "paths" / f"{step}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return path if machinespec.is_path(path) else None

    def keep_path(self, step: str, path: str) -> None:
        """Say which path a step found. Raises HostError."""
        with atomic_file(self._place / "paths" / f"{step}.json") as file:
            file.write(json.dumps(path).encode())

    def parts(self, step: str) -> list[Any] | None:
        """Return what `keep_parts` was given, where that is known."""
        try:
            value = json.loads((self._place / "parts" / f"{step}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return value if isinstance(value, list) else None

    def keep_parts(self, step: str, parts: Sequence[Sequence[str | int]]) -> None:
        """Say what a step's layer became, in plain data. Raises HostError."""
        with atomic_file(self._place / "parts" / f"{step}.json") as file:
            file.write(json.dumps(parts).encode())

    def kept(self, name: str) -> Path:
        """Return where the content of a mount of type cache lies, or will lie."""
        return self._place / "caches" / f"{key('cache', name)[:40]}.tar"

    def machine(self, step: str) -> str | None:
        """Return the name of the snapshot of the machine after a step, where there is one."""
        name = _snapshot(step)
        return name if name in self.machines.names() else None

    def snapshot(self, step: str) -> str:
        """Return what the snapshot after a step is to be called."""
        return _snapshot(step)

    def size(self) -> int:
        """Return how many bytes of the disk all of it takes."""
        return sum(status.st_blocks * 512 for _, status in files_below(self._place))

    def prune(self, progress: Progress = QUIET) -> int:
        """Remove all of it, once no build runs; return how many bytes that frees."""
        with locked(self._place / "lock", progress, "waiting for a build"):
            freed = self.size()
            for name in _PARTS:
                remove_tree(self._place / name)
        return freed


def _snapshot(step: str) -> str:
    return f"step-{step[:40]}"
