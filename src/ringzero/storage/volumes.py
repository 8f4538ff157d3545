"""Volumes: the files of a storage pool's directory, as disks.

A volume in use is not changed or removed: programs that have a disk image open hold its locks
(`ringzero.disk.storage`), QEMU among them. A new volume gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import (
    ConflictError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.host.files import PARTIAL, host_error, make_directory, open_regular, require_space
from ringzero.records import record
from ringzero.storage.pools import StoragePool

if TYPE_CHECKING:
    from ringzero.disk import DiskInfo

# Of a file's name, in bytes, with the file systems that people use (limits.h).
_NAME_MAX = 255
_SECTOR = 512
# How much is written and read at a time; that many bytes of what is read wait for who takes them.
_PIECE, _READ = 1 << 20, 256 << 10
# The end of the longest file (off_t).
_FARTHEST = (1 << 63) - 1
# Of facts about files that have not changed: how many are remembered.
_REMEMBERED = 4096
# How long nothing is written into what is being made where nobody makes it any more, in seconds.
_ABANDONED = 86400
# A format's name for what is no disk image that we read: an ISO is raw.
UNKNOWN = "unknown"


@record
class Volume:
    """A volume. Sizes are in bytes: `capacity` is what a guest sees, `allocation` what is taken.

    `backing` is the path of the image below it, as the image says. `modified` is in seconds since
    1970, `mode` the file's permissions.
    """

    pool: str
    name: str
    path: Path
    format: str
    capacity: int
    allocation: int
    physical: int
    backing: str | None
    backing_format: str | None
    modified: float
    mode: int
    user: int
    group: int


_facts: dict[tuple[str, int, int, int, int], tuple[str, int, str | None, str | None]] = {}


def volumes(pool: StoragePool) -> list[Volume]:
    """Return the volumes of a pool by name. Raises ConflictError, HostError."""
    pool.require_active()
    try:
        names = sorted(os.listdir(pool.path))  # noqa: PTH208 - names are wanted
    except FileNotFoundError:
        return []
    except OSError as fault:
        raise host_error(fault, "read", pool.path) from fault
    found = []
    for name in names:
        # What goes away meanwhile, what is no file, and what is being made is no volume.
        with contextlib.suppress(NotFoundError, InvalidValueError):
            found.append(find(pool, name))
    return found


def find(pool: StoragePool, name: str) -> Volume:
    """Return a volume by its name. Raises NotFoundError, ConflictError."""
    pool.require_active()
    path = pool.path / check_name(name)
    try:
        status = path.stat()
    except OSError:
        raise _not_found(pool, name) from None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise _not_found(pool, name)
    kind, capacity, backing, backing_format = _look(path, status)
    return Volume(
        pool.name,
        name,
        path,
        kind,
        capacity,
        status.st_blocks * _SECTOR,
        status.st_size,
        backing,
        backing_format,
        status.st_mtime,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
    )


def check_name(name: str) -> str:
    """Return a name if a volume may have it; raises InvalidValueError."""
    if (
        name in ("", ".", "..")
        or name.startswith((".", PARTIAL))
        or any(c in name for c in "/\0\n")
        or not _fits(name)
    ):
        raise InvalidValueError(
            f"a volume cannot be called {name[:64]!r}",
            hint="a file's name, which does not begin with a dot",
        )
    return name


def _fits(name: str) -> bool:
    try:
        return len(os.fsencode(name)) <= _NAME_MAX
    except UnicodeEncodeError:
        # Half of a character, as JSON may have it.
        return False


def create(
    pool: StoragePool,
    name: str,
    capacity: int | None,
    format: str = "raw",
    *,
    backing: Path | None = None,
    backing_format: str | None = None,
    preallocation: str | None = None,
    mode: int = 0o600,
) -> Volume:
    """Make a volume of `capacity` bytes, of its backing image's where that is None.

    `preallocation` is off, metadata, falloc or full, where the format has it.
    Raises ConflictError where the name is taken, InvalidValueError, DiskError, HostError.
    """
    from ringzero.disk import FORMATS, create_disk

    if capacity is not None and capacity < 0:
        raise InvalidValueError(f"a volume of {capacity} bytes")
    kind = FORMATS.get(format)
    known = {option.name for option in kind.create_options}
    options = {}
    if preallocation is not None and "preallocation" in known:
        options["preallocation"] = preallocation
    size = None if capacity is None else -(-capacity // _SECTOR) * _SECTOR
    with _new(pool, name, mode) as path:
        path.unlink()
        create_disk(
            path,
            format,
            size,
            backing=None if backing is None else backing.absolute(),
            backing_format=backing_format,
            options=options,
            # Who makes a volume names what is below it: the image's maker does not.
            backing_roots=() if backing is None else (backing.absolute().parent,),
        )
        path.chmod(mode)
    return find(pool, name)


def clone(
    pool: StoragePool, source: Volume, name: str, format: str | None = None, mode: int = 0o600
) -> Volume:
    """Make a volume with the content of another, which is not in use by a writer."""
    from ringzero.disk import open_disk
    from ringzero.disk.convert import Conversion

    roots = () if source.backing is None else (Path(source.backing).parent,)
    with (
        _new(pool, name, mode) as path,
        open_disk(source.path, source.format, read_only=True, backing_roots=roots) as disk,
    ):
        path.unlink()
        Conversion(path, format or source.format, resumable=False).run(disk)
        path.chmod(mode)
    return find(pool, name)


def resize(volume: Volume, capacity: int, *, shrink: bool = False) -> None:
    """Give a volume that is not in use another capacity, in bytes. Raises InvalidValueError."""
    from ringzero.disk import open_disk

    if capacity < 0:
        raise InvalidValueError(f"a volume of {capacity} bytes")
    size = -(-capacity // _SECTOR) * _SECTOR
    roots = () if volume.backing is None else (Path(volume.backing).parent,)
    with open_disk(volume.path, volume.format, backing_roots=roots) as disk:
        if size < disk.size and not shrink:
            raise InvalidValueError(
                f"the volume {volume.name!r} would lose its last {disk.size - size} bytes",
                hint="make its file systems smaller first, and say that it may shrink",
            )
        disk.resize(size)


def wipe(volume: Volume) -> None:
    """Overwrite what a volume holds by zeros: afterwards it is one without data."""
    with _held(volume) as descriptor:
        size = os.fstat(descriptor).st_size
        zeros = bytes(_PIECE)
        try:
            for at in range(0, size, _PIECE):
                os.pwrite(descriptor, zeros[: min(_PIECE, size - at)], at)
            os.fsync(descriptor)
        except OSError as fault:
            raise host_error(fault, "write", volume.path) from fault


def remove(volume: Volume) -> None:
    """Remove a volume that is not in use. Raises DiskLockedError, HostError."""
    with _held(volume):
        try:
            volume.path.unlink()
        except OSError as fault:
            raise host_error(fault, "remove", volume.path) from fault


def users(pool: StoragePool, volume: Volume) -> list[str]:
    """Return the names of the pool's volumes that lie above this one."""
    here = os.path.realpath(volume.path)
    return [
        other.name
        for other in volumes(pool)
        if other.backing is not None and os.path.realpath(other.path.parent / other.backing) == here
    ]


class Upload:
    """Bytes that come for a volume's file, from `offset` on; to be closed.

    With `length`, more is refused. Raises DiskLockedError, HostError.
    """

    def __init__(self, volume: Volume, offset: int = 0, length: int | None = None) -> None:
        from ringzero.disk.storage import FileStorage

        if offset < 0 or (length is not None and length < 0):
            raise InvalidValueError("an offset or length below 0")
        self._path = volume.path
        self._storage = FileStorage(volume.path)
        self._at, self._left = offset, length
        if length is not None:
            with contextlib.suppress(OSError):
                require_space(volume.path.parent, max(0, length - volume.allocation), "the volume")

    def write(self, data: bytes) -> None:
        """Put bytes behind the others."""
        if self._left is not None:
            if len(data) > self._left:
                raise InvalidValueError("more bytes than the length that was said")
            self._left -= len(data)
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._storage.fd, view, self._at)
                self._at += count
                view = view[count:]
        except OSError as fault:
            raise host_error(fault, "write", self._path) from fault

    def skip(self, length: int) -> None:
        """Leave a hole, which reads as zeros."""
        if self._left is not None:
            if length > self._left:
                raise InvalidValueError("more bytes than the length that was said")
            self._left -= length
        if length > _FARTHEST - self._at:
            raise InvalidValueError(f"a hole of {length} bytes")
        # What was there before goes, too.
        self._storage.write_zeroes(self._at, length)
        self._at += length

    def close(self) -> None:
        """Write all of it to the disk. Raises HostError."""
        try:
            if self._storage.fd >= 0:
                os.fsync(self._storage.fd)
        except OSError as fault:
            raise host_error(fault, "write", self._path) from fault
        finally:
            self._storage.close()


def content(volume: Volume, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a volume's file, in pieces. Raises DiskLockedError, HostError."""
    from ringzero.disk.storage import FileStorage

    if offset < 0 or (length is not None and length < 0):
        raise InvalidValueError("an offset or length below 0")
    storage = FileStorage(volume.path, read_only=True)
    try:
        end = storage.size if length is None else min(storage.size, offset + length)
        while offset < end:
            data = os.pread(storage.fd, min(_READ, end - offset), offset)
            if not data:
                return
            offset += len(data)
            yield data
    except OSError as fault:
        raise host_error(fault, "read", volume.path) from fault
    finally:
        storage.close()


def _look(path: Path, status: os.stat_result) -> tuple[str, int, str | None, str | None]:
    """Return format, capacity and backing image of a file; known again while it does not change."""
    key = (
        os.fspath(path),
        status.st_dev,
        status.st_ino,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    found = _facts.get(key)
    if found is None:
        info = _info(path)
        if info is None:
            found = (UNKNOWN, status.st_size, None, None)
        else:
            found = (
                info.format,
                info.virtual_size,
                info.backing_filename,
                info.backing_format,
            )
        # Other threads look at it, too: it may be empty again by now.
        if len(_facts) >= _REMEMBERED:
            _facts.clear()
        _facts[key] = found
    return found


def _info(path: Path) -> DiskInfo | None:
    """Return what an image says of itself; None for what cannot be read as one."""
    from ringzero.disk import open_disk

    try:
        with open_disk(path, read_only=True, backing=False, lock=False, sync=False) as disk:
            return disk.info()
    except (RingzeroError, OSError):
        return None


@contextlib.contextmanager
def _new(pool: StoragePool, name: str, mode: int) -> Iterator[Path]:
    """Yield a path for a volume that is being made; it gets its name when the block ends well.

    Raises ConflictError where that is taken.
    """
    pool.require_active()
    final = make_directory(pool.path) / check_name(name)
    if os.path.lexists(final):
        raise _taken(pool, name)
    _sweep(pool)
    path = pool.path / f"{PARTIAL}{os.urandom(8).hex()}"
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode))
        yield path
        # Unlike a rename, a link takes no name from another.
        os.link(path, final)
    except FileExistsError:
        raise _taken(pool, name) from None
    except OSError as fault:
        raise host_error(fault, "create", final) from fault
    finally:
        path.unlink(missing_ok=True)


def _sweep(pool: StoragePool) -> None:
    """Remove what a killed process left half made, once nobody can be making it any more."""
    for path in pool.path.glob(PARTIAL + "[0-9a-f]" * 16):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                path.unlink()


@contextlib.contextmanager
def _held(volume: Volume) -> Iterator[int]:
    """Yield a descriptor of a volume's file that nobody else has open as a disk."""
    from ringzero.disk.storage import FileStorage

    # A link leads elsewhere: what is removed or overwritten is a file of the pool.
    try:
        os.close(open_regular(volume.path))
    except OSError as fault:
        raise host_error(fault, "open", volume.path) from fault
    storage = FileStorage(volume.path, sync=False)
    try:
        yield storage.fd
    finally:
        storage.close()


def _not_found(pool: StoragePool, name: str) -> NotFoundError:
    return NotFoundError(
        f"no volume called {name[:64]!r} in the storage pool {pool.name!r}",
        hint=f"`ringzero volume ls --pool {pool.name}` lists them",
    )


def _taken(pool: StoragePool, name: str) -> ConflictError:
    return ConflictError(
        f"there is a volume {name!r} in the storage pool {pool.name!r}",
        hint="choose another name, or remove that one",
    )
