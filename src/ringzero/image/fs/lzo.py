"""LZO1X as the kernel's btrfs writes it; no I/O.

Documentation/staging/lzo.rst of Linux describes the stream: literals and matches, each match a
distance back and a length. Lengths that do not fit go on in zeros of 255 each.
"""

from __future__ import annotations

# Where the distances of matches begin that come after a run of literals, and of far ones.
_NEAR, _FAR = 0x0800, 0x4000


class LzoError(ValueError):
    """Bytes that are no stream of LZO1X."""


def unpack(data: bytes, limit: int) -> bytes:
    """Return what `data` unpacks to, `limit` bytes at most. Raises LzoError."""
    try:
        return _unpack(data, limit)
    except IndexError:
        raise LzoError("LZO data that is cut short") from None


def _unpack(data: bytes, limit: int) -> bytes:
    out = bytearray()
    at = 0
    # How many literals came with the last instruction: 0 to 3, or 4 for a run of them.
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        out += _literals(data, 1, count)
        at = 1 + count
        state = min(count, 4)
    while True:
        if len(out) > limit:
            raise LzoError("LZO data that unpacks to more than it says")
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            # A run of literals.
            count, at = _length(data, at, code, 15)
            count += 3
            out += _literals(data, at, count)
            at += count
            state = 4
            continue
        if code < 16:
            low = data[at]
            at += 1
            distance = (code >> 2) + (low << 2) + 1
            length = 2
            if state == 4:
                distance += _NEAR
                length = 3
            follow = code & 3
        elif code < 32:
            length, at = _length(data, at, code & 7, 7)
            length += 2
            low = data[at] | data[at + 1] << 8
            at += 2
            distance = ((code & 8) << 11) + (low >> 2) + _FAR
            follow = low & 3
            if distance == _FAR:
                # No distance at all is the end.
                break
        elif code < 64:
            length, at = _length(data, at, code & 31, 31)
            length += 2
            low = data[at] | data[at + 1] << 8
            at += 2
            distance = (low >> 2) + 1
            follow = low & 3
        else:
            low = data[at]
            at += 1
            length = (code >> 5) + 1
            distance = (low << 3) + (code >> 2 & 7) + 1
            follow = code & 3
        _copy(out, distance, length, limit)
        if follow:
            out += _literals(data, at, follow)
            at += follow
        state = follow
    if len(out) > limit:
        raise LzoError("LZO data that unpacks to more than it says")
    return bytes(out)


def _length(data: bytes, at: int, value: int, most: int) -> tuple[int, int]:
    """Return a length and where it ends: 0 stands for `most` and what follows."""
    if value:
        return value, at
    begin = at
    while not data[at]:
        at += 1
    return most + 255 * (at - begin) + data[at], at + 1


def _literals(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise LzoError("LZO data that is cut short")
    return data[at : at + count]


def _copy(out: bytearray, distance: int, length: int, limit: int) -> None:
    begin = len(out) - distance
    if begin < 0 or len(out) + length > limit:
        raise LzoError("LZO data that refers to what is not there")
    if distance >= length:
        out += out[begin : begin + length]
    else:
        pattern = bytes(out[begin:])
        out += (pattern * (length // distance + 1))[:length]
