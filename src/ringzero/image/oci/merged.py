"""The tree that the layers of an image of the store make together, and its files' content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ringzero.errors import GuestImageError
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci.contents import Layer, Layers
from ringzero.image.oci.store import StoredImage
from ringzero.image.oci.unpacking import MAX_FILES
from ringzero.units import MIB


def merged(image: StoredImage, cache: Path) -> tuple[Tree, list[Layer]]:
    """Return an image's tree and its layers, by whose numbers the tree's nodes have their content.

    Raises GuestImageError.
    """
    store = Layers(cache)
    tree, layers = Tree(MAX_FILES), list[Layer]()
    for number, digests in enumerate(zip(image.layers, image.diff_ids, strict=True)):
        layer = store.find(*digests)
        if layer is None:
            raise GuestImageError(
                f"a layer of {image.name} is not in the store any more",
                hint=f"ringzero image rm {image.name}, and pull or build it again",
            )
        tree.apply(layer.members, number)
        layers.append(layer)
    return tree, layers


def pieces(node: Node, layers: Sequence[Layer]) -> Iterator[bytes]:
    """Yield the bytes of a regular file of a merged tree. Raises OSError."""
    end = node.offset + node.size - len(node.tail)
    if node.offset < end:
        with layers[node.layer].content.open("rb", buffering=0) as file:
            for at in range(node.offset, end, MIB):
                yield os.pread(file.fileno(), min(MIB, end - at), at)
    if node.tail:
        yield node.tail
