"""Scattered buffers: a request is several pieces of guest memory, never copied together."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import lru_cache

Buffer = bytes | bytearray | memoryview
Buffers = Buffer | Sequence[Buffer]
Views = list[memoryview]

# The source of all zeroes that are written or filled in; large enough that
# the loop over it costs nothing, small enough to stay in the CPU's cache.
_ZEROES = memoryview(bytes(256 * 1024))
_BLANK = bytearray(256 * 1024)
# What is asked for most often.
_PAGE = bytes(4096)


def aligned_buffer(size: int) -> memoryview:
    """Return a writable buffer of `size` bytes that begins on a page, as hosts copy fastest."""
    return memoryview(mmap.mmap(-1, size))


def as_views(buffers: Buffers) -> Views:
    """Return `buffers` as flat byte views, empty ones left out."""
    if type(buffers) is memoryview and buffers.format == "B" and buffers.ndim == 1:
        return [buffers] if len(buffers) else []
    if isinstance(buffers, (list, tuple)):
        return [flat(buffer) for buffer in buffers if len(buffer)]
    return [flat(buffers)] if len(buffers) else []  # type: ignore[arg-type]


def flat(buffer: Buffer) -> memoryview:
    """Return one buffer as a view of bytes."""
    view = buffer if isinstance(buffer, memoryview) else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def total(views: Views) -> int:
    """Return the number of bytes in `views`."""
    return len(views[0]) if len(views) == 1 else sum(map(len, views))


def cut(views: Views, start: int, length: int) -> Views:
    """Return the views of `length` bytes that begin `start` bytes into `views`."""
    if len(views) == 1:
        return [views[0][start : start + length]]
    found: Views = []
    for view in views:
        if start >= len(view):
            start -= len(view)
            continue
        piece = view[start : start + length]
        found.append(piece)
        start = 0
        length -= len(piece)
        if not length:
            break
    return found


def fill_zeroes(views: Views) -> None:
    """Fill `views` with zeroes."""
    for view in views:
        if len(view) == len(_PAGE):
            view[:] = _PAGE
            continue
        for start in range(0, len(view), len(_ZEROES)):
            piece = view[start : start + len(_ZEROES)]
            piece[:] = _ZEROES[: len(piece)]


def fill(views: Views, data: Buffer) -> None:
    """Copy `data` over `views`, which are of the same total length."""
    source = flat(data)
    start = 0
    for view in views:
        view[:] = source[start : start + len(view)]
        start += len(view)


def join(views: Views) -> memoryview:
    """Return the bytes of `views` as one view, copied only when they are scattered."""
    return views[0] if len(views) == 1 else memoryview(b"".join(views))


def zero_views(length: int) -> Views:
    """Return read-only views of `length` zero bytes in all, without allocating them."""
    whole, rest = divmod(length, len(_ZEROES))
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])


def is_zero(data: Buffer) -> bool:
    """Whether `data` holds only zero bytes; tens of GB/s, and stops at the first other byte."""
    view = flat(data)
    if len(view) and (view[0] or view[-1]):
        return False
    # A bytearray compares with memcmp; a memoryview does it item by item.
    if len(view) <= len(_BLANK):
        return _blank(len(view)) == view
    return all(
        _blank(min(len(_BLANK), len(view) - start)) == view[start : start + len(_BLANK)]
        for start in range(0, len(view), len(_BLANK))
    )


@lru_cache(maxsize=16)
def _blank(length: int) -> bytearray:
    """Return zeroes to compare with: runs of data have a few lengths, again and again."""
    return _BLANK[:length]
