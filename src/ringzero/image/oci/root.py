"""From an image's layers to the root file system of a machine: one EROFS image.

It holds the merged tree in /rootfs, as a runtime bundle does, and in /config how programs are
to be run (`ringzero.image.oci.process`). Equal layers and configuration make equal bytes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.erofs import writer
from ringzero.image.layers import tar
from ringzero.image.layers.plain import Budget, map_whole, unpack
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci import process
from ringzero.image.oci.manifest import ImageConfig
from ringzero.settings import IMAGE_LIMIT

# Files of all layers of one image: each takes some hundred bytes here while they are merged.
_MAX_FILES = 4_000_000
# Lists of users and groups beyond this are none.
_MAX_LIST = 1 << 20
# Decompression releases the interpreter's lock; more threads than this wait for the disk.
_THREADS = 4
# Where the guest's own file systems are mounted, and what everybody expects.
_PLACES = ("dev", "proc", "sys", "run", "tmp", "etc")


def build(
    layers: Sequence[Path],
    config: ImageConfig,
    uuid: bytes,
    target: BinaryIO,
    progress: Progress = QUIET,
) -> int:
    """Write the root of an image to `target`; return its size in bytes.

    `layers` are the blobs from the lowest. Raises GuestImageError for damaged and hostile
    layers, HostError for a full disk, OSError.
    """
    if len(layers) != len(config.diff_ids):
        raise GuestImageError(
            f"the image has {len(layers)} layers, but its configuration tells of "
            f"{len(config.diff_ids)}"
        )
    place = Path(target.name).parent
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(tempfile.TemporaryFile(dir=place)) for _ in range(len(layers) + 1)
        ]
        with progress.step("unpacking the layers") as step:
            _unpack(layers, config, files, place, step.update)
        with progress.step("writing the root file system"):
            tree = Tree(_MAX_FILES)
            for number, file in enumerate(files[:-1]):
                tree.apply(tar.read(map_whole(file.fileno())), number)
            root = _bundle(tree, config, files)
            sources = [file.fileno() for file in files]
            return writer.write(root, sources, target, uuid, "ringzero")


def _unpack(
    layers: Sequence[Path],
    config: ImageConfig,
    files: Sequence[BinaryIO],
    place: Path,
    told: Callable[[float], object],
) -> None:
    """Unpack all layers at the same time, each into its file, and check their digests."""
    budget = Budget(IMAGE_LIMIT.get(), place)
    lock = threading.Lock()
    total = sum(layer.stat().st_size for layer in layers) or 1
    done = 0

    def count(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            told(done / total)

    def one(number: int) -> None:
        found = unpack(layers[number], files[number], budget, count)
        if found != config.diff_ids[number]:
            raise GuestImageError(
                f"layer {number + 1} of the image unpacks to {found}, but its configuration "
                f"says {config.diff_ids[number]}",
                hint="the image is damaged; build or push it again",
            )

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "unpack") as pool:
        work = [pool.submit(one, number) for number in range(len(layers))]
        try:
            for each in work:
                each.result()
        except BaseException:
            budget.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _bundle(tree: Tree, config: ImageConfig, files: Sequence[BinaryIO]) -> Node:
    """Return the image's top directory, with what a start expects to be there."""
    for name in _PLACES:
        found = tree.directory(name.encode())
        if name == "tmp" and not found.mode & 0o002:
            found.mode |= 0o1777
    if config.workdir:
        tree.directory(config.workdir.encode("utf-8", "surrogateescape"))

    def read(path: str) -> bytes:
        node = tree.find(path.encode())
        if node is None or not stat.S_ISREG(node.mode):
            return b""
        return os.pread(files[node.layer].fileno(), min(node.size, _MAX_LIST), node.offset)

    text = process.script(config, process.find_user(config.user, read))
    data = text.encode("utf-8", "surrogateescape")
    files[-1].write(data)
    files[-1].flush()
    top, script = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644)
    script.size, script.layer = len(data), len(files) - 1
    top.children = {b"rootfs": tree.root, b"config": script}
    return top
