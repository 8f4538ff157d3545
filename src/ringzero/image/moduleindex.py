"""The indexes by which kmod finds modules: modules.dep.bin and its kin, as depmod(8) writes them.

A radix tree (kmod, libkmod/libkmod-index.c), all numbers big-endian:

    magic 0xB007F457, version 2.1, offset of the root, then the nodes, children before parents
    node    prefix and NUL, if there is one; first and last letter of the children and an offset
            for each, if there are any; a count, and values with their priority, if there are any

The upper bits of a node's offset say which of these it has.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import takewhile

_HEADER = struct.Struct(">III")
_MAGIC, _VERSION = 0xB007F457, 2 << 16 | 1
_PREFIX, _VALUES, _CHILDREN = 1 << 31, 1 << 30, 1 << 29
_NUMBER = struct.Struct(">I")

# Each with its priority: of several, those that come first are tried first.
Values = Sequence[tuple[int, str]]


def index(entries: Mapping[str, Values]) -> bytes:
    """Return the index of `entries`: keys and values are ASCII without NUL."""
    out = bytearray(_HEADER.pack(_MAGIC, _VERSION, 0))
    root = _write(out, sorted(entries), entries, 0, prefix="")
    _NUMBER.pack_into(out, 8, root)
    return bytes(out)


def _write(
    out: bytearray, keys: Sequence[str], entries: Mapping[str, Values], at: int, prefix: str | None
) -> int:
    """Write the node of sorted `keys`, which are alike before `at`; return its offset.

    Without a `prefix`, it is what the keys have in common.
    """
    if prefix is None:
        pairs = zip(keys[0][at:], keys[-1][at:], strict=False)
        prefix = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = at + len(prefix)
    own = [key for key in keys[:1] if len(key) == end]
    children: dict[int, list[str]] = {}
    for key in keys[len(own) :]:
        children.setdefault(ord(key[end]), []).append(key)
    first, last = (min(children), max(children)) if children else (1, 0)
    offsets = [
        _write(out, children[letter], entries, end + 1, None) if letter in children else 0
        for letter in range(first, last + 1)
    ]
    offset = len(out)
    if prefix:
        offset |= _PREFIX
        out += prefix.encode("ascii") + b"\0"
    if children:
        offset |= _CHILDREN
        out += bytes((first, last)) + b"".join(map(_NUMBER.pack, offsets))
    if own:
        offset |= _VALUES
        values = entries[own[0]]
        out += _NUMBER.pack(len(values))
        for priority, text in values:
            out += _NUMBER.pack(priority) + text.encode("ascii") + b"\0"
    return offset
