"""A root of a process's own: a directory with what a Python program needs, and nothing else.

The interpreter, its modules and libraries are bound into it read-only, in a mount namespace of the
process's own (mount_namespaces(7)); the rest of the host is out of sight. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.jail import kernel
from ringzero.records import record

# <linux/mount.h>.
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE, _SLAVE = 0x4000, 1 << 18, 1 << 19
_MNT_DETACH = 2
_OLD = ".old-root"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@record
class Device:
    """A device node: its place, and its numbers, as mknod(2) takes them."""

    path: str
    major: int
    minor: int


# What a machine's process opens; of them, /dev/kvm and /dev/net/tun may be missing on the host.
DEVICES = (
    Device("/dev/kvm", 10, 232),
    Device("/dev/net/tun", 10, 200),
    Device("/dev/null", 1, 3),
    Device("/dev/zero", 1, 5),
    Device("/dev/urandom", 1, 9),
)


def prepare(root: Path, visible: Iterable[Path], owner: tuple[int, int]) -> None:
    """Make `root` a place to live in: `visible` paths read-only, devices, /proc, /run, /tmp.

    In a mount namespace of the process's own. `owner` is the user and group who gets the devices
    and what is written to. Raises HostError.
    """
    try:
        # Nothing that is mounted from here on is seen by others.
        kernel.mount(None, "/", None, _REC | _SLAVE)
        kernel.mount(str(root), str(root), None, _BIND | _REC)
        paths = sorted(set(visible))
        links = {path for path in paths if path.is_symlink()}
        for path in paths:
            # What is behind a link of the new root is shown where that leads to.
            _show(root, path if links.isdisjoint(path.parents) else path.resolve())
        for device in DEVICES:
            _make_device(root, device, owner)
        for name in ("run", "tmp"):
            give(root, Path(name), owner)
        with _directory(root, Path("proc")) as place:
            flags = _NOSUID | _NODEV | _NOEXEC
            kernel.mount("proc", _path(place), "proc", flags, "subset=pid")
    except OSError as fault:
        what = f" ({fault.filename})" if fault.filename else ""
        raise HostError(f"cannot make {root} a root: {fault.strerror}{what}") from fault


def enter(root: Path) -> None:
    """Have `root` be the root from now on; the old one is gone. Raises HostError."""
    try:
        os.chdir(root)
        os.mkdir(_OLD, 0o700)  # noqa: PTH102 - relative to the directory that we are in
        old = str(Path(_OLD))
        kernel.call(kernel.NR_PIVOT_ROOT, b".", os.fsencode(old))
        os.chdir("/")
        kernel.unmount(f"/{_OLD}", _MNT_DETACH)
        os.rmdir(f"/{_OLD}")  # noqa: PTH106 - as it was made
    except OSError as fault:
        raise HostError(f"cannot change the root to {root}: {fault.strerror}") from fault


def give(root: Path, path: Path, owner: tuple[int, int]) -> None:
    """Make a directory of the new root its user's. Raises OSError."""
    with _directory(root, path) as place:
        os.chown(place, *owner)


@contextlib.contextmanager
def _directory(root: Path, path: Path) -> Iterator[int]:
    """Have a descriptor of a directory of the new root, made where it is missing.

    The root is its user's, and may hold what an earlier machine has left: no link is followed.
    """
    here = os.open(root, _DIRECTORY)
    try:
        for name in path.relative_to(path.anchor).parts:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                os.mkdir(name, 0o755, dir_fd=here)
                below = os.open(name, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def _path(descriptor: int) -> str:
    """Return a path of what is open, for calls that take no descriptor."""
    return f"/proc/self/fd/{descriptor}"


def _show(root: Path, path: Path) -> None:
    """Have a path of the host in the new root, read-only; a link stays one."""
    if not os.path.lexists(path):
        return
    with _directory(root, path.parent) as folder:
        if path.is_symlink():
            with contextlib.suppress(FileExistsError):
                os.symlink(path.readlink(), path.name, dir_fd=folder)
            return
        with contextlib.suppress(FileExistsError):
            if path.is_dir():
                os.mkdir(path.name, 0o755, dir_fd=folder)
            else:
                os.close(os.open(path.name, _NEW_FILE, 0o644, dir_fd=folder))
        _mount_at(folder, path.name, str(path), _BIND)
        # By its name once more: that is what was mounted now.
        _mount_at(folder, path.name, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def _mount_at(folder: int, name: str, source: str | None, flags: int) -> None:
    place = os.open(name, _PLACE, dir_fd=folder)
    try:
        kernel.mount(source, _path(place), None, flags)
    finally:
        os.close(place)


def _make_device(root: Path, device: Device, owner: tuple[int, int]) -> None:
    path = Path(device.path)
    if not path.exists():
        return
    with _directory(root, path.parent) as folder, contextlib.suppress(FileExistsError):
        mode = stat.S_IFCHR | 0o600
        os.mknod(path.name, mode, os.makedev(device.major, device.minor), dir_fd=folder)
        os.chown(path.name, *owner, dir_fd=folder, follow_symlinks=False)
