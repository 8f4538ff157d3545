"""Moving data between the layers of a backing chain: commit and rebase."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.disk.contract import Disk, Kind
from ringzero.disk.copying import WINDOW
from ringzero.disk.vectors import is_zero
from ringzero.errors import DiskError, InvalidValueError

Progress = Callable[[int], None]


def commit(top: Disk, base: Disk, *, on_progress: Progress = lambda done: None) -> None:
    """Write into `base` what the layers above it in the chain of `top` hold.

    `base` is the same file as one of the layers below `top`, opened for
    writing. Flushed when it returns; `top` is not changed.
    """
    depth = next((n for n, layer in enumerate(top.chain()) if n and _same(layer, base)), None)
    if depth is None:
        raise InvalidValueError(f"{base.path} is not a backing file of {top.path}")
    if top.size > base.size:
        base.resize(top.size)
    data = memoryview(bytearray(WINDOW))
    for extent in top.block_status(layers=depth):
        stop = extent.offset + extent.length
        if extent.kind is Kind.ZERO:
            base.write_zeroes(extent.offset, extent.length)
        elif extent.kind is not Kind.ABSENT:
            for start in range(extent.offset, stop, WINDOW):
                view = data[: min(WINDOW, stop - start)]
                top.read_into(start, view)
                base.write(start, view)
                on_progress(start)
        on_progress(stop)
    base.flush()


def rebase(
    top: Disk, old: Disk | None, new: Disk | None, *, on_progress: Progress = lambda done: None
) -> None:
    """Make `top` hold whatever `old` and `new` backing file differ in, where it holds nothing.

    Afterwards `top` reads the same over `new` as it did over `old`. Flushed
    when it returns; the name of the backing file is not changed.
    """
    size = top.size
    for extent in list(top.block_status(layers=1)):
        if extent.kind is not Kind.ABSENT:
            continue
        stop = extent.offset + extent.length
        for start in range(extent.offset, stop, WINDOW):
            length = min(WINDOW, stop - start)
            before, after = _bytes(old, start, length), _bytes(new, start, length)
            if before != after:
                _write_differences(top, start, before, after)
            on_progress(start + length)
    on_progress(size)
    top.flush()


def _write_differences(top: Disk, start: int, before: bytearray, after: bytearray) -> None:
    unit = max(4096, min(top.cluster_size or 4096, WINDOW))
    view = memoryview(before)
    for at in range(0, len(before), unit):
        piece = view[at : at + unit]
        if after[at : at + unit] != piece:
            if is_zero(piece):
                top.write_zeroes(start + at, len(piece))
            else:
                top.write(start + at, piece)


def _bytes(disk: Disk | None, offset: int, length: int) -> bytearray:
    data = bytearray(length)
    there = max(0, min(length, disk.size - offset)) if disk is not None else 0
    if disk is not None and there:
        disk.read_into(offset, memoryview(data)[:there])
    return data


def _same(one: Disk, other: Disk) -> bool:
    if one.path is None or other.path is None:
        return False
    try:
        return one.path.samefile(other.path)
    except OSError as fault:
        raise DiskError(f"cannot look at {one.path}: {fault.strerror}") from fault
