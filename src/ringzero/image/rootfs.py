"""A guest's file tree, put together in memory from packages and single files.

    tree = Rootfs()
    tree.add_package(deb)
    tree.add_file("init", script, mode=0o755)
    with atomic_file(path) as file:
        tree.write_cpio(file)

Packages are unpacked, not installed: no maintainer script runs, so there is no
ld.so.cache and no alternatives link; the dynamic loader's default paths are
enough for Debian's own libraries.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image import cpio, deb
from ringzero.image.archives import Archive, debian
from ringzero.image.cpio import Entry

# Debian's merged /usr: these are links into /usr (Debian policy 4.6.2).
_MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
# Never needed to run a program; it is most of what a small package holds.
_DOCUMENTATION = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/")


class Rootfs:
    """Files by their path, without a leading slash; parents are created as needed."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        for name in _MERGED[:4]:
            self.add_directory(f"usr/{name}")
            self._entries[name] = Entry(name, stat.S_IFLNK | 0o777, f"usr/{name}".encode())

    def __contains__(self, path: str) -> bool:
        return _normal(path) in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[_normal(path)]

    def add_file(self, path: str, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
        """Put a regular file at `path`, replacing what was there."""
        self._add(Entry(_normal(path), stat.S_IFREG | mode, data, mtime=mtime))

    def add_directory(self, path: str, *, mode: int = 0o755) -> None:
        """Make sure that there is a directory at `path`."""
        self._add(Entry(_normal(path), stat.S_IFDIR | mode))

    def add_link(self, path: str, target: str) -> None:
        """Put a symbolic link to `target` at `path`."""
        self._add(Entry(_normal(path), stat.S_IFLNK | 0o777, target.encode()))

    def add_device(self, path: str, kind: str, major: int, minor: int, *, mode: int) -> None:
        """Put a device node at `path`; `kind` is "c" or "b"."""
        bits = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}[kind] | mode
        self._add(Entry(_normal(path), bits, device=(major, minor)))

    def add_package(self, path: Path, *, documentation: bool = False) -> None:
        """Unpack the Debian package file `path` into the tree and list it in dpkg's database.

        Raises GuestImageError when it is damaged.
        """
        names = []
        for info, data in deb.files(path):
            name = _normal(info.name)
            if not name or (not documentation and name.startswith(_DOCUMENTATION)):
                continue
            names.append("/" + name)
            mode, target = info.mode & 0o7777, info.linkname
            if info.isdir():
                kept = self._entries.get(name)
                if kept is None or not stat.S_ISLNK(kept.mode):
                    self._add(Entry(name, stat.S_IFDIR | mode))
            elif info.issym():
                self._add(Entry(name, stat.S_IFLNK | 0o777, target.encode()))
            elif info.islnk():
                original = self._entries.get(_normal(target))
                if original is None:
                    raise GuestImageError(f"{path.name}: hard link to a missing {target}")
                self._add(Entry(name, original.mode, original.data))
            elif info.isreg():
                self.add_file(name, data, mode=mode, mtime=int(info.mtime))
        self._record(deb.control(path), names)

    def _record(self, control: str, names: Sequence[str]) -> None:
        fields = dict(
            line.split(": ", 1) for line in control.splitlines() if ": " in line and line[0] != " "
        )
        head, _, rest = control.strip().partition("\n")
        record = f"{head}\nStatus: install ok installed\n{rest}\n\n".encode()
        status = "var/lib/dpkg/status"
        before = self._entries[status].data if status in self._entries else b""
        self.add_file(status, before + record)
        name = fields["Package"]
        if fields.get("Multi-Arch") == "same":
            name += ":" + fields["Architecture"]
        self.add_file(f"var/lib/dpkg/info/{name}.list", "".join(f"{n}\n" for n in names).encode())

    def _add(self, entry: Entry) -> None:
        parent = str(PurePosixPath(entry.name).parent)
        if parent != "." and parent not in self._entries:
            self._add(Entry(parent, stat.S_IFDIR | 0o755))
        self._entries[entry.name] = entry

    def entries(self) -> list[Entry]:
        """Return all entries, parents before children, in an order that never changes."""
        return [self._entries[name] for name in sorted(self._entries)]

    def write_cpio(self, file: BinaryIO) -> int:
        """Write the tree as an initramfs; return its size in bytes."""
        return cpio.write(self.entries(), file)


def from_packages(
    names: Iterable[str], apt: Archive | None = None, progress: Progress = QUIET
) -> Rootfs:
    """Return a tree that holds the Debian packages `names` with all their dependencies."""
    apt = apt if apt is not None else debian(progress=progress)
    tree = Rootfs()
    paths = apt.download(apt.resolve(list(names)))
    with progress.step(f"unpacking {len(paths)} packages") as step:
        for number, path in enumerate(paths):
            step.update(number / len(paths), path.name)
            tree.add_package(path)
    return tree


def _normal(path: str) -> str:
    """Return `path` relative to the root, with merged-/usr directories resolved.

    Raises GuestImageError when it leads out of the tree.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise GuestImageError(f"path {path!r} leads out of the guest's file tree")
    if len(parts) > 1 and parts[0] in _MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)
