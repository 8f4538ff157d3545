"""A root of a process's own: a directory with what a Python program needs, and nothing else.

The interpreter, its modules and libraries are bound into it read-only, in a mount namespace of the
process's own (mount_namespaces(7)); the rest of the host is out of sight. Needs root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ringzero.errors import HostError
from ringzero.host.jail import kernel
from ringzero.records import record

# <linux/mount.h>.
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND = 1, 2, 4, 8, 32, 4096
_REC, _PRIVATE, _SLAVE = 0x4000, 1 << 18, 1 << 19
_MNT_DETACH = 2
_OLD = ".old-root"


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
        for path in sorted(set(visible)):
            _show(root, path)
        for device in DEVICES:
            _make_device(root, device, owner)
        for name in ("run", "tmp"):
            (root / name).mkdir(exist_ok=True)
            os.chown(root / name, *owner)
        (root / "proc").mkdir(exist_ok=True)
        kernel.mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid")
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


def _show(root: Path, path: Path) -> None:
    """Have a path of the host in the new root, read-only; a link stays one."""
    if not os.path.lexists(path):
        return
    inside = Path(f"{root}{path}")
    inside.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        if not os.path.lexists(inside):
            inside.symlink_to(path.readlink())
        return
    if path.is_dir():
        inside.mkdir(exist_ok=True)
    else:
        inside.touch()
    kernel.mount(str(path), str(inside), None, _BIND)
    kernel.mount(None, str(inside), None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def _make_device(root: Path, device: Device, owner: tuple[int, int]) -> None:
    path = Path(f"{root}{device.path}")
    if path.exists() or not Path(device.path).exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(device.major, device.minor))
    os.chown(path, *owner)
