"""From an image's layers to the root file system of a machine: one EROFS image.

It holds the merged tree in /rootfs, as a runtime bundle does, and in /config how programs are
to be run (`ringzero.image.oci.process`). Equal layers and configuration make equal bytes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import writer
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci import process
from ringzero.image.oci.manifest import ImageConfig

# Files of all layers of one image: each takes some hundred bytes here while they are merged.
_MAX_FILES = 4_000_000
# Lists of users and groups beyond this are none.
_MAX_LIST = 1 << 20
# Where the guest's own file systems are mounted, and what everybody expects.
_PLACES = ("dev", "proc", "sys", "run", "tmp", "etc")


def build(
    layers: Sequence[BinaryIO],
    config: ImageConfig,
    uuid: bytes,
    target: BinaryIO,
    progress: Progress = QUIET,
) -> int:
    """Write the root of an image to `target`; return its size in bytes.

    `layers` are plain tars from the lowest. Raises GuestImageError for damaged and hostile
    layers, HostError for a full disk, OSError.
    """
    place = Path(target.name).parent
    with (
        tempfile.TemporaryFile(dir=place) as script,
        progress.step("writing the root file system"),
    ):
        files = [*layers, script]
        tree = Tree(_MAX_FILES)
        for number, file in enumerate(layers):
            tree.apply(tar.read(map_whole(file.fileno())), number)
        root = _bundle(tree, config, files)
        sources = [file.fileno() for file in files]
        return writer.write(root, sources, target, uuid, "ringzero")


def _bundle(tree: Tree, config: ImageConfig, files: Sequence[BinaryIO]) -> Node:
    """Return the image's top directory, with what a start expects to be there."""
    for name in _PLACES:
        found = tree.directory(name.encode())
        if name == "tmp" and not found.mode & 0o002:
            found.mode |= 0o1777
    for place in (config.workdir, *config.volumes):
        if place:
            tree.directory(place.encode())

    def read(path: str) -> bytes:
        node = tree.find(path.encode())
        if node is None or not stat.S_ISREG(node.mode):
            return b""
        return os.pread(files[node.layer].fileno(), min(node.size, _MAX_LIST), node.offset)

    text = process.script(config, process.find_user(config.user, read))
    data = text.encode()
    files[-1].write(data)
    files[-1].flush()
    top, script = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644)
    script.size, script.layer = len(data), len(files) - 1
    top.children = {b"rootfs": tree.root, b"config": script}
    return top
