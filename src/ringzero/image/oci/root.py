"""From an image's layers to the root file system of a machine: one EROFS image, in several files.

It holds the merged tree in /rootfs, as a runtime bundle does, and in /config how programs are
to be run (`ringzero.image.oci.process`). Equal layers and configuration make equal bytes.

    root.erofs    the image's first block, /config, and behind them all inodes
    content-N     the content of a layer's files: another name of the one file with it (`contents`)
    root.vmdk     the disk: the first part of root.erofs, the contents, and the rest

A descriptor of the VMDK format says where each part of the disk is; qemu-img reads it, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ringzero.digest import blake2b
from ringzero.disk.formats.vmdk.descriptor import Descriptor, ExtentLine
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import content, writer
from ringzero.image.erofs.structures import BLOCK
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci import process
from ringzero.image.oci.contents import CONTENT, Layer
from ringzero.image.oci.manifest import ImageConfig
from ringzero.image.oci.store import METADATA, ROOT
from ringzero.image.oci.unpacking import MAX_FILES

# Lists of users and groups beyond this are none.
_MAX_LIST = 1 << 20
# Where the guest's own file systems are mounted, and what everybody expects.
_PLACES = ("dev", "proc", "sys", "run", "tmp", "etc")
_SECTOR = 512
# Of VMDK: a disk of several files, of which each has a part as it is.
_FLAT_PARTS = "twoGbMaxExtentFlat"


def build(
    layers: Sequence[Layer],
    config: ImageConfig,
    uuid: bytes,
    work: Path,
    progress: Progress = QUIET,
) -> int:
    """Write the root of an image into its directory `work`; return the disk's size in bytes.

    Raises GuestImageError for hostile layers, HostError for a full disk, OSError.
    """
    with progress.step("writing the root file system"), (work / METADATA).open("wb") as file:
        tree = Tree(MAX_FILES)
        for number, layer in enumerate(layers):
            tree.apply(layer.members, number)
        script = _complete(tree, config, layers).encode()
        own = writer.FIRST + len(script) + -len(script) % BLOCK
        begins, end, parts = _placed(layers, own, work)
        top, node = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644)
        node.size, node.layer = len(script), len(layers)
        top.children = {b"rootfs": tree.root, b"config": node}
        file.seek(writer.FIRST)
        file.write(script)
        whole = [*begins, writer.FIRST]
        size = writer.write(top, whole, file, end, uuid, "ringzero", place=own)
        lines = [_line(METADATA, 0, own), *parts, _line(METADATA, own, size - end)]
        # Equal disks have equal ones; 0 and "no parent" are none.
        digest = blake2b("".join(map(str, lines)).encode(), digest_size=3).digest()
        descriptor = Descriptor(_FLAT_PARTS, int.from_bytes(digest) + 1, extents=lines)
        (work / ROOT).write_bytes(descriptor.to_bytes())
    return size


def _placed(
    layers: Sequence[Layer], at: int, work: Path
) -> tuple[list[int], int, list[ExtentLine]]:
    """Put the layers' contents into `work`, each once.

    Returns where in the image, from `at` on, that of each layer begins, where the last one ends,
    and the lines of a descriptor for them.
    """
    found: dict[Path, int] = {}
    lines = list[ExtentLine]()
    for layer in layers:
        if layer.content in found:
            continue
        found[layer.content] = at
        if layer.size:
            name = f"{CONTENT}-{len(lines) + 1}"
            _share(layer, work / name)
            lines.append(_line(name, 0, layer.size))
        at += layer.size
    return [found[layer.content] for layer in layers], at, lines


def _share(layer: Layer, target: Path) -> None:
    """Give a layer's content another name; where the host has none to give, copy it."""
    try:
        target.hardlink_to(layer.content)
    except OSError:
        with layer.content.open("rb") as source, target.open("wb") as file:
            file.truncate(layer.size)
            content.copy(source.fileno(), file.fileno(), 0, layer.size)


def _line(name: str, begin: int, size: int) -> ExtentLine:
    # QEMU passes over parts that are RDONLY; machines open the disk so.
    return ExtentLine("RW", size // _SECTOR, "FLAT", name, begin // _SECTOR)


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
