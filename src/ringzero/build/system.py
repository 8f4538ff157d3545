"""The files of an installed system, read from its root file system, as those of a layer."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial

from ringzero.build.entries import Entry
from ringzero.image.fs.contract import FileSystem, Node

_PIECE = 1 << 20
# What is in these is of a system that runs, or of its file system.
_LEFT_OUT = ("dev", "proc", "run", "sys", "tmp", "lost+found")


def entries(system: FileSystem) -> Iterator[Entry]:
    """Yield all files with owners, times and attributes, hard links as such; sockets are left out.

    Other file systems of the machine, as of /boot or /home, are not looked at. Raises
    FileSystemError, also for a kind of which owners are not read.
    """
    top, known = _top(system), dict[object, bytes]()
    for path, node in system.walk(top or "/"):
        name = path.removeprefix(top).strip("/")
        if stat.S_ISSOCK(node.mode) or ("/" in name and name.split("/", 1)[0] in _LEFT_OUT):
            continue
        entry = _entry(system, os.fsencode(name), node)
        if not node.is_directory and node.key in known:
            yield Entry(entry.name, 0, entry.uid, entry.gid, link=known[node.key])
            continue
        known[node.key] = entry.name
        yield entry


def _top(system: FileSystem) -> str:
    """Return where a system is in its file system: "" or, of btrfs, in a subvolume below."""
    names = system.listing("/")
    if "etc" in names:
        return ""
    # Each is a directory that paths are looked for in, too.
    return next((f"/{name}" for name in names if system.exists(f"/{name}/etc")), "")


def _entry(system: FileSystem, name: bytes, node: Node) -> Entry:
    about = system.attributes(node)
    return Entry(
        name + b"/" * node.is_directory,
        node.mode,
        about.uid,
        about.gid,
        about.mtime,
        system.content(node, 0, node.size) if node.is_link else b"",
        about.device,
        about.xattrs,
        node.size if node.is_file else 0,
        partial(_pieces, system, node) if node.is_file else None,
    )


def _pieces(system: FileSystem, node: Node) -> Iterator[bytes]:
    for at in range(0, node.size, _PIECE):
        yield system.content(node, at, min(_PIECE, node.size - at))
