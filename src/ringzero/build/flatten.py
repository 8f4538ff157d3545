"""An image's tree as one tar, as `docker export` gives it: its layers merged, nothing run."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ringzero.build import entries
from ringzero.build.entries import Entry
from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci.contents import Layer, Layers
from ringzero.image.oci.store import StoredImage
from ringzero.image.oci.unpacking import MAX_FILES
from ringzero.units import MIB

_NANOSECONDS = 10**9
# Later than any file's time: none is changed.
_NEVER = 1 << 62


def flatten(
    image: StoredImage, file: BinaryIO, *, cache: Path, progress: Progress = QUIET
) -> entries.Layer:
    """Write the tree of an image of the store; return the tar's digest and size.

    Equal images make equal bytes. Raises GuestImageError, OSError.
    """
    store = Layers(cache)
    tree, layers = Tree(MAX_FILES), list[Layer]()
    for number, diff_id in enumerate(image.diff_ids):
        layer = store.load(diff_id)
        if layer is None:
            raise GuestImageError(
                f"a layer of {image.name} is not in the store any more",
                hint=f"ringzero image rm {image.name}, and pull or build it again",
            )
        tree.apply(layer.members, number)
        layers.append(layer)
    with progress.step(f"writing the files of {image.name}"):
        return entries.write(_entries(tree.root, layers), file, _NEVER)


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
        content = partial(_content, node, layers)
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


def _content(node: Node, layers: Sequence[Layer]) -> Iterator[bytes]:
    end = node.offset + node.size - len(node.tail)
    with layers[node.layer].content.open("rb", buffering=0) as file:
        for at in range(node.offset, end, MIB):
            yield os.pread(file.fileno(), min(MIB, end - at), at)
    yield node.tail
