"""Lists of buffers, taken as one run of bytes."""

from __future__ import annotations

from collections.abc import Sequence

Buffers = Sequence[memoryview]


def split(buffers: Buffers, count: int) -> tuple[bytes, list[memoryview]]:
    """Return a copy of the first `count` bytes, or all that there are, and views of the rest."""
    if buffers and len(buffers[0]) == count:
        # A header in a buffer of its own, as drivers have it.
        return bytes(buffers[0]), list(buffers[1:])
    head = b""
    rest: list[memoryview] = []
    for buffer in buffers:
        missing = count - len(head)
        if missing:
            head += bytes(buffer[:missing])
        if len(buffer) > missing:
            rest.append(buffer[missing:] if missing else buffer)
    return head, rest


def limited(buffers: Buffers, count: int) -> list[memoryview]:
    """Return views of the first `count` bytes, or of all that there are."""
    found: list[memoryview] = []
    for buffer in buffers:
        if count <= 0:
            break
        piece = buffer if len(buffer) <= count else buffer[:count]
        found.append(piece)
        count -= len(piece)
    return found


def fill(buffers: Buffers, data: bytes | memoryview) -> None:
    """Copy `data` into `buffers` as far as it fits."""
    if buffers and len(data) <= len(buffers[0]):
        buffers[0][: len(data)] = data
        return
    done = 0
    for buffer in buffers:
        piece = data[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
        if done >= len(data):
            break
