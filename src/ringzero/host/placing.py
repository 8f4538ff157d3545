"""Where a file is to go: looked at before work begins, and filled without surprises.

What a user names as a target may be a link, a file with an owner and rights of
its own, one of several names of a file, or no file at all. `look_at` follows
links and refuses what cannot be filled. A file that is there is replaced by a
new one beside it, which takes over its owner, rights and attributes, wherever
nobody can tell the difference; otherwise it has to be written in place.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import HostError, InvalidValueError, NotFoundError
from ringzero.host.files import PARTIAL, host_error, sweep
from ringzero.records import record

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}
# As many links as the kernel follows (path_resolution(7)).
_MOST_LINKS = 40


@record
class Place:
    """Where a file goes: `path` with links followed, the state of what is there (`old`).

    `in_place` says why a file that is there must be written where it is, when it must:
    another one under its name would not be the same.
    """

    path: Path
    old: os.stat_result | None = None
    in_place: str | None = None

    @property
    def is_device(self) -> bool:
        """Whether it is a block device."""
        return self.old is not None and stat.S_ISBLK(self.old.st_mode)


def look_at(target: Path) -> Place:
    """Look at where a file is to go.

    Raises InvalidValueError for a directory, a FIFO, a socket or a character device,
    NotFoundError without a directory to be in, HostError for a name that cannot be.
    """
    try:
        old = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        old = None
    except OSError as fault:
        raise HostError(
            f"{target} cannot be written: {fault.strerror}", hint="choose another name", path=target
        ) from fault
    path = Path(os.path.realpath(target))
    if old is None:
        _check_directory(target, path.parent)
        return Place(path)
    if stat.S_ISDIR(old.st_mode):
        raise InvalidValueError(f"{target} is a directory", hint="name a file in it")
    kind = _KINDS.get(stat.S_IFMT(old.st_mode))
    if kind is not None:
        raise InvalidValueError(
            f"{target} is {kind}: no file can be put there",
            hint="name a regular file, and send that on when it is whole",
        )
    if _leads_through_proc(target):
        # The name of an open file: the file is meant, whatever it is called.
        return Place(target, old, "it is named by its descriptor")
    return Place(path, old, _why_in_place(path, old))


def take_over(place: Place, new: Path) -> bool:
    """Give the file `new` owner, attributes and rights of the old one; False when it cannot be."""
    old = place.old
    if old is None:
        return True
    try:
        made = new.stat()
        if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
            os.chown(new, old.st_uid, old.st_gid)
        with contextlib.suppress(OSError):
            for name in os.listxattr(place.path):
                with contextlib.suppress(OSError):
                    os.setxattr(new, name, os.getxattr(place.path, name))
        new.chmod(stat.S_IMODE(old.st_mode))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def filled(target: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which `target` holds when the block ends well.

    On any exception nothing has changed, but for a file that must be written in place: it is
    what was written by then. Raises what `look_at` raises, and HostError.
    """
    place = look_at(target)
    if place.is_device:
        raise InvalidValueError(f"{target} is a device", hint="name a regular file")
    temporary = None
    try:
        if place.in_place is None:
            sweep(place.path.parent)
            temporary = place.path.parent / f"{PARTIAL}{os.urandom(8).hex()}"
            rights = 0o666 if place.old is None else 0o600
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, rights))
            if not take_over(place, temporary):
                temporary.unlink()
                temporary = None
        with (temporary or place.path).open("r+b") as file:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if temporary is not None:
            temporary.replace(place.path)
            temporary = None
    except OSError as fault:
        raise host_error(fault, "write", target) from fault
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_directory(target: Path, directory: Path) -> None:
    if not directory.is_dir():
        raise NotFoundError(f"no directory {directory}", hint="make it first", path=target)
    try:
        longest = os.pathconf(directory, "PC_NAME_MAX")
    except OSError:
        return
    if len(os.fsencode(target.name)) > longest:
        raise HostError(
            f"{target} cannot be written: its name has more than {longest} bytes",
            hint="choose a shorter name",
            path=target,
        )


def _leads_through_proc(target: Path) -> bool:
    """Whether a link of /proc is on the way, as it is for /dev/stdout and /dev/fd/3."""
    at = target
    for _ in range(_MOST_LINKS):
        parent = os.path.realpath(at.parent)
        if parent.startswith("/proc/"):
            return True
        try:
            at = Path(parent, at.name).parent / Path(parent, at.name).readlink()
        except OSError:
            return False
    return False


def _why_in_place(path: Path, old: os.stat_result) -> str | None:
    if stat.S_ISBLK(old.st_mode):
        return "it is a device"
    if old.st_nlink > 1:
        return "it has other names"
    if not os.access(path.parent, os.W_OK):
        return "nothing can be made in its directory"
    root = os.geteuid() == 0
    if not root and (
        old.st_uid != os.geteuid() or old.st_gid not in (os.getegid(), *os.getgroups())
    ):
        return "it belongs to somebody else"
    return "it is mounted there" if _is_mount_point(path, old) else None


def _is_mount_point(path: Path, old: os.stat_result) -> bool:
    """Whether a file is mounted at `path` (proc(5), /proc/PID/mountinfo, field 5)."""
    escapes = {" ": "\\040", "\t": "\\011", "\n": "\\012"}
    name = str(path).replace("\\", "\\134")
    for character, escape in escapes.items():
        name = name.replace(character, escape)
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return path.parent.stat().st_dev != old.st_dev
    return any(line.split(b" ", 5)[4] == os.fsencode(name) for line in table.splitlines())
