"""Files that appear whole or not at all, and locks between processes.

Everything that lands in the cache goes through here, so that a kill -9, a
full disk or a second ringzero at the same moment leaves nothing half made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ringzero.errors import HostError, MissingFileError
from ringzero.units import format_size

if TYPE_CHECKING:
    from ringzero.host.progress import Steps

CACHE_HINT = (
    "the disk is full: free some space (`ringzero image ls` shows what the cache "
    "holds) or set RINGZERO_CACHE_DIR to another disk"
)
_PLACE_HINT = "set RINGZERO_CACHE_DIR to a directory that you can write to"
# What an unfinished file or directory is called until it is renamed.
PARTIAL = ".partial-"
# Age in seconds after which an unfinished entry cannot belong to a live
# process any more: no single download or build takes a day.
_ABANDONED = 86400


def file_size_limit() -> str:
    """Return what the process's limit of file sizes (RLIMIT_FSIZE) is, for people."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return "none" if limit == resource.RLIM_INFINITY else format_size(limit)


def too_large(what: str, **context: object) -> HostError:
    """Return the error for what is larger than the process's limit of file sizes allows."""
    return HostError(
        f"{what}: more than the limit of file sizes here, which is {file_size_limit()}",
        hint="raise it (`ulimit -f unlimited`; RLIMIT_FSIZE); guest memory counts as a file, too",
        errno=errno.EFBIG,
        **context,
    )


def host_error(
    fault: OSError, action: str, path: Path | str, place: str = _PLACE_HINT
) -> HostError:
    """Return the HostError that tells a user what `fault` means for `action`.

    `place` is the hint where one may not write there.
    """
    reason = fault.strerror or str(fault)
    message = f"cannot {action} {path}: {reason}"
    if fault.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingFileError(message, hint="check the path", path=path, errno=fault.errno)
    hint = None
    if fault.errno == errno.EFBIG:
        return too_large(f"cannot {action} {path}", path=path)
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = CACHE_HINT
    elif fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = place
    return HostError(message, hint=hint, path=path, errno=fault.errno)


def require_space(path: Path, needed: int, what: str) -> None:
    """Raise HostError where fewer than `needed` bytes are free for `what` below `path`.

    Before the work begins: many programs wait, or leave halves behind, on a disk that is full.
    """
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = free_space(place)
    except OSError:
        return  # whoever writes hears what is wrong
    if free < needed:
        raise HostError(
            f"{what} takes about {format_size(needed)} on the disk of {path}, "
            f"which has {format_size(free)} left",
            hint="free some space, or set RINGZERO_CACHE_DIR to another disk",
            path=path,
            needed=needed,
            free=free,
        )


def free_space(path: Path) -> int:
    """Return how many bytes this user may still write on the disk of `path`; raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def make_directory(path: Path) -> Path:
    """Create `path` with its parents if it is missing; raises HostError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        if fault.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
            raise host_error(fault, "create", path) from fault
        # Nobody has asked for a file that is not there: a parent is none, or takes nothing.
        in_way = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
        reason = f"{in_way} is no directory" if in_way else fault.strerror
        raise HostError(f"cannot create {path}: {reason}", hint=_PLACE_HINT, path=path) from fault
    return path


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file. Raises OSError, also for a link, FIFO or device.

    It never waits, whatever stands there.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Yield a file to write; it gets the name `path`, and `mode`, when the block ends well.

    On any exception, KeyboardInterrupt included, nothing remains. OSError
    (disk full, read-only) becomes HostError with a hint.
    """
    import tempfile

    make_directory(path.parent)
    sweep(path.parent)
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        temporary = None
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory; it gets the name `path` when the block ends well.

    When `path` exists by then (somebody else was first), that one stays.
    """
    import shutil
    import tempfile

    make_directory(path.parent)
    sweep(path.parent)
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
        yield temporary
        temporary.chmod(0o755)
        if not path.is_dir():
            temporary.rename(path)
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove unfinished entries that killed processes left in `directory` long ago."""
    import shutil

    now = time.time()
    for entry in directory.glob(PARTIAL + "*"):
        with contextlib.suppress(OSError):
            if now - entry.stat().st_mtime < _ABANDONED:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()


def map_file(path: Path) -> tuple[memoryview, os.stat_result]:
    """Return a file's content without reading it, and its status; raises OSError.

    The file must not be cut shorter while the content is in use. What is written to the
    content stays with this process; that it can be is what tells others its address.
    """
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            return memoryview(b""), status
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)), status


def read_soon(path: Path, length: int) -> None:
    """Tell the host that the first `length` bytes of a regular file will be read; never raises."""
    with contextlib.suppress(OSError):
        # Not to wait for the other end, should the file be a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Have a file, or a directory's names, on the disk; raises HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise host_error(fault, "write", path) from fault


@contextlib.contextmanager
def locked(
    path: Path,
    steps: Steps | None = None,
    waiting: str = "waiting for another ringzero",
    *,
    shared: bool = False,
) -> Iterator[int]:
    """Hold the lock file `path` for the block, waiting for others; yield its descriptor.

    With `shared`, others may hold it as well that want no more than this.
    A wait that takes long is told to `steps` as `waiting`, and ends with the user's Ctrl-C.
    The kernel drops the lock when its last holder ends, however it ends. A
    child that inherits the descriptor holds the lock too.
    """
    make_directory(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as fault:
        raise host_error(fault, "open", path) from fault
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"{waiting} (it holds {path})"
            with steps.step(told) if steps else contextlib.nullcontext():
                fcntl.flock(descriptor, mode)
        except OSError as fault:
            raise host_error(fault, "lock", path) from fault
        yield descriptor
    finally:
        os.close(descriptor)


def files_below(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield all files below a directory, with lstat(2); what vanishes meanwhile is left out."""
    for place, _, names in os.walk(top):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                yield path, path.lstat()


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Return files by the time of their last change of any kind, without those that vanish."""
    found = list[tuple[float, Path]]()
    for path in paths:
        with contextlib.suppress(OSError):
            found.append((path.stat().st_ctime, path))
    return [path for _, path in sorted(found, reverse=True)]


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a directory with what is in it; what resists stays."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
