"""Whether an XFS was shut down in order, by its log (XFS' "Journaling Log").

A log is a ring of blocks of 512 bytes, each beginning with the number of the round ("cycle") in
which it was written. A record is a header and data; the last one of an orderly end is one
operation, which says so. All is big-endian.
"""

from __future__ import annotations

import struct

from ringzero.image.source import Source

_BLOCK = 512
_MAGIC = 0xFEED_BABE
# A record has 256 KiB of data at most (xlog_rec_header.h_size), and a header for each 32 KiB.
_MOST_DATA, _DATA_PER_HEADER = 256 << 10, 32 << 10
_FARTHEST = _MOST_DATA // _BLOCK + _MOST_DATA // _DATA_PER_HEADER
_UNMOUNT = 0x20
# Version 2, whose headers say how large a record may be.
_VERSION_2 = 2


def is_dirty(log: Source) -> bool:
    """Tell whether something is in the log that a mount would replay."""
    blocks = log.size // _BLOCK
    if not blocks:
        return False
    head = _head(log, blocks)
    for back in range(1, min(_FARTHEST, blocks) + 1):
        at = (head - back) % blocks
        header = log.read(at * _BLOCK, _BLOCK)
        if int.from_bytes(header[:4], "big") == _MAGIC:
            return not _is_end(log, blocks, header, at, head)
    return True


def _cycle(log: Source, block: int) -> int:
    data = log.read(block * _BLOCK, 8)
    first = int.from_bytes(data[:4], "big")
    return int.from_bytes(data[4:], "big") if first == _MAGIC else first


def _head(log: Source, blocks: int) -> int:
    """Return where the next record would begin: at the first block of an earlier round."""
    newest = _cycle(log, 0)
    low, high = 0, blocks
    while high - low > 1:
        middle = (low + high) // 2
        if _cycle(log, middle) == newest:
            low = middle
        else:
            high = middle
    return high % blocks


def _is_end(log: Source, blocks: int, header: bytes, at: int, head: int) -> bool:
    """Tell whether the record at a block is that of an orderly end, and the last one."""
    version, length = struct.unpack_from(">II", header, 8)
    (operations,) = struct.unpack_from(">I", header, 40)
    (most,) = struct.unpack_from(">I", header, 320)
    headers = -(-most // _DATA_PER_HEADER) if version & _VERSION_2 and most else 1
    data = at + headers
    if operations != 1 or (data + -(-length // _BLOCK)) % blocks != head:
        return False
    operation = log.read(data % blocks * _BLOCK, 12)
    return bool(operation[9] & _UNMOUNT)
