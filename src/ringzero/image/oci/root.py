"""From an image's layers to the root file system of a machine: one EROFS image, in several files.

It holds the merged tree in /rootfs, as a runtime bundle does, and in /config how programs are
to be run (`ringzero.image.oci.process`). Equal layers and configuration make equal bytes.

    root.erofs    the image's first block, /config, and behind them all inodes
    root.vmdk     the disk: the first part of that file, the contents of the layers, and the rest

The layers' contents are those that all images with these layers have (`contents`). A descriptor
of the VMDK format says where each part of the disk is; qemu-img reads it, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ringzero.digest import blake2b
from ringzero.disk.formats.vmdk.descriptor import Descriptor, ExtentLine
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import writer
from ringzero.image.erofs.structures import BLOCK
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci import process
from ringzero.image.oci.contents import Layer
from ringzero.image.oci.manifest import ImageConfig
from ringzero.image.oci.store import METADATA, ROOT
from ringzero.image.oci.unpacking import MAX_FILES

# Lists of users and groups beyond this are none.
_MAX_LIST = 1 << 20
# Where the guest's own file systems are mounted, and what everybody expects.
_PLACES = ("dev", "proc", "sys", "run", "tmp", "etc")
_SECTOR = 512


def build(
    layers: Sequence[Layer],
    config: ImageConfig,
    uuid: bytes,
    work: Path,
    progress: Progress = QUIET,
) -> int:
    """Write the root of an image into its directory `work`; return the disk's size in bytes.

    The directory lies two below that of the layers, as it will. Raises GuestImageError for
    hostile layers, HostError for a full disk, OSError.
    """
    with progress.step("writing the root file system"), (work / METADATA).open("wb") as file:
        tree = Tree(MAX_FILES)
        for number, layer in enumerate(layers):
            tree.apply(layer.members, number)
        script = _complete(tree, config, layers).encode()
        own = writer.FIRST + len(script) + -len(script) % BLOCK
        begins, end = _placed(layers, own)
        top, node = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644)
        node.size, node.layer = len(script), len(layers)
        top.children = {b"rootfs": tree.root, b"config": node}
        file.seek(writer.FIRST)
        file.write(script)
        whole = [*begins, writer.FIRST]
        size = writer.write(top, whole, file, end, uuid, "ringzero", place=own)
        _describe(work / ROOT, layers, begins, own, end, size)
    return size


def _placed(layers: Sequence[Layer], at: int) -> tuple[list[int], int]:
    """Return where in the image each layer's content begins, and where the last one ends."""
    found: dict[Path, int] = {}
    for layer in layers:
        if layer.content not in found:
            found[layer.content] = at
            at += layer.size
    return [found[layer.content] for layer in layers], at


def _describe(
    path: Path, layers: Sequence[Layer], begins: Sequence[int], own: int, end: int, size: int
) -> None:
    """Write the descriptor of the disk."""
    parts = {begin: layer for begin, layer in zip(begins, layers, strict=True) if layer.size}
    lines = [_line(METADATA, 0, own)]
    for _, layer in sorted(parts.items()):
        name = "/".join(layer.content.parts[-3:])
        lines.append(_line(f"../../{name}", 0, layer.size))
    lines.append(_line(METADATA, own, size - end))
    # Equal disks have equal ones; 0 and "no parent" are none.
    cid = int.from_bytes(blake2b("".join(map(str, lines)).encode(), digest_size=3).digest()) + 1
    descriptor = Descriptor("twoGbMaxExtentFlat", cid, extents=lines)
    path.write_bytes(descriptor.to_bytes())


def _line(name: str, begin: int, size: int) -> ExtentLine:
    return ExtentLine("RDONLY", size // _SECTOR, "FLAT", name, begin // _SECTOR)


def _complete(tree: Tree, config: ImageConfig, layers: Sequence[Layer]) -> str:
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
        return content_of(node, layers, _MAX_LIST)

    return process.script(config, process.find_user(config.user, read))


def content_of(node: Node, layers: Sequence[Layer], limit: int) -> bytes:
    """Return the beginning of a regular file of a merged tree. Raises OSError."""
    size = node.size - len(node.tail)
    with layers[node.layer].content.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), min(size, limit), node.offset)
    return data + (node.tail if size <= limit else b"")
