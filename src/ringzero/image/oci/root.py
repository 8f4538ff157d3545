"""From an image's layers to the root file system of a machine: one EROFS image.

It holds the merged tree in /rootfs, as a runtime bundle does, and in /config how programs are
to be run (`ringzero.image.oci.process`). Equal layers and configuration make equal bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ringzero.host import blockfile
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import writer
from ringzero.image.erofs.structures import BLOCK
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci import process
from ringzero.image.oci.manifest import ImageConfig
from ringzero.image.oci.unpacking import MAX_FILES, Layer

# Lists of users and groups beyond this are none.
_MAX_LIST = 1 << 20
# Where the guest's own file systems are mounted, and what everybody expects.
_PLACES = ("dev", "proc", "sys", "run", "tmp", "etc")


def build(
    layers: Sequence[Layer],
    config: ImageConfig,
    uuid: bytes,
    target: BinaryIO,
    progress: Progress = QUIET,
) -> int:
    """Complete the root of an image in `target`; return its size in bytes.

    `layers`, from the lowest, have their content there. Raises GuestImageError for damaged and
    hostile layers, HostError for a full disk, OSError.
    """
    with progress.step("writing the root file system"):
        tree = Tree(MAX_FILES)
        for number, layer in enumerate(layers):
            tree.apply(layer.members, number)
        _drop_hidden(tree.root, layers, target)
        script = _complete(tree, config, layers, target).encode()
        end = max((layer.begin + layer.size for layer in layers), default=writer.FIRST)
        top, node = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644)
        node.size, node.layer = len(script), len(layers)
        top.children = {b"rootfs": tree.root, b"config": node}
        os.pwrite(target.fileno(), script, end)
        begins = [*(layer.begin for layer in layers), end]
        end += len(script) + -len(script) % BLOCK
        return writer.write(top, begins, target, end, uuid, "ringzero")


def _complete(tree: Tree, config: ImageConfig, layers: Sequence[Layer], target: BinaryIO) -> str:
    """Make what a start expects to be there; return the script that it sources."""
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
        size, begin = node.size - len(node.tail), layers[node.layer].begin + node.offset
        return os.pread(target.fileno(), min(size, _MAX_LIST), begin) + node.tail

    return process.script(config, process.find_user(config.user, read))


def _drop_hidden(root: Node, layers: Sequence[Layer], target: BinaryIO) -> None:
    """Make holes of content that higher layers hide."""
    kept = {layers[node.layer].begin + node.offset for node in _files(root)}
    for layer in layers:
        for member in layer.members:
            size = member.size - len(member.tail)
            if size and stat.S_ISREG(member.mode) and layer.begin + member.offset not in kept:
                _clear(target.fileno(), layer.begin + member.offset, -(-size // BLOCK) * BLOCK)


def _files(root: Node) -> Iterator[Node]:
    """Yield the regular files of a tree whose content does not lie behind their inodes alone."""
    todo = [root]
    while todo:
        for node in (todo.pop().children or {}).values():
            if node.children is not None:
                todo.append(node)
            elif stat.S_ISREG(node.mode) and node.size > len(node.tail):
                yield node


def _clear(file: int, at: int, size: int) -> None:
    if not blockfile.punch_hole(file, at, size):
        for place in range(at, at + size, _MAX_LIST):
            os.pwrite(file, bytes(min(_MAX_LIST, at + size - place)), place)
