"""Where it is kept what the guest has set and the host's files cannot have.

In an attribute of the file. Where there is none (a file system without user attributes, a
symbolic link), in a file beside, which all machines that share the folder read and append to:

    ringzero owners 1 PATH                    once, at the beginning
    DEVICE INODE BIRTH OVERRIDE               numbers in hexadecimal; the last for a file counts
    DEVICE INODE BIRTH -                      nothing any more

The device is 0 for that of the folder itself, whose number may be another after a start of the
host's; the time of birth, in nanoseconds, tells a file from a later one with its inode number.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from ringzero.host import beneath
from ringzero.share.host.nodes import HostNode, proc_path
from ringzero.share.host.owners import ATTRIBUTE, Override

# Types that the host makes itself, and that may have attributes.
MADE = (stat.S_IFREG, stat.S_IFDIR)
_HEAD = b"ringzero owners 1 "
_NOTHING = b"-"
# A change time that lies so far back, in nanoseconds, is none of a file's that changes right now:
# a change within the same tick of the host's clock would not show.
_SETTLED = 1_000_000_000
# Of how many files it is remembered that they have no attribute.
_REMEMBERED = 1 << 16
# Where a file has so many lines, and three of four say nothing any more, it is written anew.
_MANY, _USEFUL = 4096, 4
Key = tuple[int, int, int]


class SideFile:
    """What is kept of the files below `root`, a directory's path, in the directory `place`.

    Without a place, or where nothing can be written there, it is kept as long as this object.
    """

    def __init__(self, root: bytes, place: Path | None) -> None:
        self._head = _HEAD + root.replace(b"\n", b"\0") + b"\n"
        # No cryptographic hash, whose library takes milliseconds to load: the head is compared.
        name = f"{binascii.crc32(root):08x}-{len(root)}"
        self._path = None if place is None else place / name
        self._fd: int | None = None
        # How many bytes of it have been read, and lines.
        self._read = self._lines = 0
        self._known: dict[Key, Override] = {}
        self._open(make=False)

    def get(self, key: Key) -> Override | None:
        """Return what was set last, by any machine."""
        if self._fd is None:
            self._open(make=False)
        self._refresh()
        return self._known.get(key)

    def set(self, key: Key, override: Override | None) -> None:
        """Keep what the guest has set; None: nothing any more."""
        if override is None:
            if self._known.pop(key, None) is None:
                return
        else:
            self._known[key] = override
        if self._fd is None and override is not None:
            self._open(make=True)
        if self._fd is not None:
            self._append(_line(key, override))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look for."""
        return self._fd is None and not self._known

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self, *, make: bool) -> None:
        if self._path is None:
            return
        try:
            if make:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags | (os.O_CREAT if make else 0), 0o600)
            alone = True
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
                fcntl.flock(self._fd, fcntl.LOCK_SH)
            self._begin(alone)
            # Kept as long as it is open: whoever is alone may write it anew.
            fcntl.flock(self._fd, fcntl.LOCK_SH)
        except FileNotFoundError:
            # Nothing yet.
            return
        except OSError:
            # Kept in memory alone; another's file, or a disk without room.
            self.close()
            self._path = None

    def _begin(self, alone: bool) -> None:
        """Read what is there, and add what is known already."""
        assert self._fd is not None
        if not os.fstat(self._fd).st_size:
            self._append(self._head)
        elif os.pread(self._fd, len(self._head), 0) != self._head:
            raise OSError(errno.EEXIST, "another folder's")
        self._read = len(self._head)
        mine = dict(self._known)
        self._refresh()
        if alone and self._lines > _MANY and len(self._known) * _USEFUL < self._lines:
            os.ftruncate(self._fd, len(self._head))
            self._read, self._lines = len(self._head), 0
            mine = self._known | mine
        for key, override in mine.items():
            self._append(_line(key, override))
        self._known |= mine

    def _append(self, line: bytes) -> None:
        assert self._fd is not None
        # What does not get there is known as long as the machine runs.
        with contextlib.suppress(OSError):
            os.write(self._fd, line)

    def _refresh(self) -> None:
        """Read what was appended since, here or by others."""
        if self._fd is None:
            return
        size = os.fstat(self._fd).st_size
        if size <= self._read:
            return
        data = os.pread(self._fd, size - self._read, self._read)
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for line in data[:whole].splitlines():
            self._lines += 1
            self._take(line)

    def _take(self, line: bytes) -> None:
        *numbers, value = line.split(b" ")
        try:
            device, inode, birth = (int(number, 16) for number in numbers)
        except ValueError:
            return
        override = Override.parse(value)
        if override is None:
            self._known.pop((device, inode, birth), None)
        else:
            self._known[device, inode, birth] = override


def _line(key: Key, override: Override | None) -> bytes:
    value = _NOTHING if override is None else override.pack()
    return b"%x %x %x %b\n" % (*key, value)


class Overrides:
    """What the guest has set of the nodes of one tree, whose root is on `device`."""

    def __init__(self, device: int, side: SideFile) -> None:
        self._device = device
        self._side = side
        # The change times of nodes without an attribute, by their keys: a guest that keeps nothing
        # asks for the same ones again and again.
        self._without: dict[tuple[int, ...], int] = {}

    def of(self, node: HostNode, found: os.stat_result) -> Override | None:
        """Return what the guest has set; setting it changes the change time."""
        changed = found.st_ctime_ns
        if node.known_ctime == changed:
            return node.known_override
        override = None
        beside = not self._side.empty
        if not beside and self._without.get(node.key) == changed:
            node.known_ctime, node.known_override = changed, None
            return None
        if node.host_kind in MADE and node.fd is not None:
            try:
                override = Override.parse(os.getxattr(proc_path(node.fd), ATTRIBUTE))
            except OSError as fault:
                beside = beside or fault.errno == errno.ENOTSUP
                if not beside and fault.errno == errno.ENODATA:
                    self._remember(node.key, changed)
        else:
            beside = True
        if override is None and beside:
            override = self._side.get(self._key(node))
        node.known_ctime, node.known_override = changed, override
        return override

    def _remember(self, key: tuple[int, ...], changed: int) -> None:
        """Remember that a node has no attribute, as long as its change time is this one."""
        if time.time_ns() - changed > _SETTLED:
            if len(self._without) >= _REMEMBERED:
                self._without.clear()
            self._without[key] = changed

    def store(self, node: HostNode, place: bytes, override: Override) -> None:
        """Keep what the guest has set of the node that `place` leads to."""
        node.known_ctime = -1
        self._without.pop(node.key, None)
        if node.host_kind in MADE:
            try:
                os.setxattr(place, ATTRIBUTE, override.pack())
            except OSError as fault:
                # Where the host has no attributes, or no room for one.
                if fault.errno not in (errno.ENOTSUP, errno.ENOSPC, errno.EDQUOT, errno.EPERM):
                    raise
            else:
                self.forget(node)
                return
        self._side.set(self._key(node), override)

    def clear(self, node: HostNode, place: bytes) -> None:
        """The host's own owner and mode count again."""
        self.forget(node)
        if node.host_kind in MADE and node.known_override is not None:
            with contextlib.suppress(OSError):
                os.removexattr(place, ATTRIBUTE)
        node.known_ctime = -1

    def forget(self, node: HostNode) -> None:
        """Keep nothing beside the node's file: it goes away, or has an attribute."""
        if not self._side.empty:
            self._side.set(self._key(node), None)

    def leave(self, node: HostNode) -> None:
        """The guest forgets a node, whose names may have gone: then nothing need be kept."""
        if not self._side.empty and node.fd is not None and not os.fstat(node.fd).st_nlink:
            self._side.set(self._key(node), None)

    def close(self) -> None:
        """Close the file beside."""
        self._side.close()

    def _key(self, node: HostNode) -> Key:
        device, inode = node.key
        birth = 0 if node.fd is None else beneath.birth_time(node.fd)
        return 0 if device == self._device else device, inode, birth
