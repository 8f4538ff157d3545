"""An image's tree as one tar, as `docker export` gives it: its layers merged, nothing run."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ringzero.build import entries, system
from ringzero.build.entries import Entry
from ringzero.host.progress import QUIET, Progress
from ringzero.image.layers.tree import Node
from ringzero.image.oci.contents import Layer
from ringzero.image.oci.files import open_system
from ringzero.image.oci.merged import merged, pieces
from ringzero.image.oci.store import StoredImage

_NANOSECONDS = 10**9


def flatten(
    image: StoredImage, file: BinaryIO, *, cache: Path, progress: Progress = QUIET
) -> entries.Layer:
    """Write the tree of an image of the store; return the tar's digest and size.

    Equal images make equal bytes. Raises GuestImageError, OSError.
    """
    if image.disks:
        with progress.step(f"writing the files of {image.name}"), open_system(image) as files:
            return entries.write(system.entries(files), file, entries.KEEP)
    tree, layers = merged(image, cache)
    with progress.step(f"writing the files of {image.name}"):
        return entries.write(_entries(tree.root, layers), file, entries.KEEP)


def _entries(root: Node, layers: Sequence[Layer]) -> Iterator[Entry]:
    """Yield all files; of those with several names the first in their order has the content."""
    known: dict[int, bytes] = {}
    todo = [(b"", root)]
    while todo:
        above, directory = todo.pop()
        for name, node in sorted((directory.children or {}).items(), reverse=True):
            path = above + name
            if node.children is not None:
                yield _entry(path + b"/", node, layers)
                todo.append((path + b"/", node))
            elif id(node) in known:
                yield Entry(path, 0, node.uid, node.gid, link=known[id(node)])
            else:
                known[id(node)] = path
                yield _entry(path, node, layers)


def _entry(path: bytes, node: Node, layers: Sequence[Layer]) -> Entry:
    content: Callable[[], Iterator[bytes]] | None = None
    if stat.S_ISREG(node.mode):
        content = partial(pieces, node, layers)
    return Entry(
        name=path,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime=node.mtime // _NANOSECONDS,
        link=node.target,
        device=node.device,
        xattrs=node.xattrs,
        size=node.size if content is not None else 0,
        content=content,
    )
