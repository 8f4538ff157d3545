"""What a machine and its network's process say to each other over their socket.

Each message goes behind its length, 4 bytes, the highest first, and a byte for its kind:

    0   a frame behind what is left to do on it (`ringzero.core.frames.Frame`): checksum start
        and offset, segmentation, segment size, 2 bytes each
    1   an object in JSON
"""

from __future__ import annotations

import json
import struct
from typing import Any

from ringzero.core.frames import LARGEST_FRAME, Frame

FRAME, OBJECT = 0, 1
_HEAD = struct.Struct(">IB")
_OPEN = struct.Struct(">HHHH")
_WHOLE = struct.Struct(">IBHHHH")
# Ports and leases of a network, in JSON.
LARGEST_OBJECT = 1 << 20
_LARGEST = {FRAME: _OPEN.size + LARGEST_FRAME, OBJECT: LARGEST_OBJECT}


class WireError(ValueError):
    """Bytes that are no message."""


def frame_message(frame: Frame) -> list[bytes | memoryview]:
    """Return the pieces of a frame's message."""
    head = _WHOLE.pack(
        *(_OPEN.size + frame.size, FRAME, frame.checksum_start, frame.checksum_offset),
        *(frame.gso, frame.gso_size),
    )
    return [head, frame.head, *frame.rest]


def object_message(content: dict[str, Any]) -> bytes:
    """Return the message of an object."""
    data = json.dumps(content).encode()
    return _HEAD.pack(len(data), OBJECT) + data


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame | dict[str, Any]]:
        """Return the messages that `data` completes; raises WireError."""
        self._data += data
        whole, at, found = self._data, 0, list[Frame | dict[str, Any]]()
        while len(whole) - at >= _HEAD.size:
            length, kind = _HEAD.unpack_from(whole, at)
            if kind not in _LARGEST or length > _LARGEST[kind]:
                raise WireError(f"a message of kind {kind} with {length} bytes")
            start, end = at + _HEAD.size, at + _HEAD.size + length
            if end > len(whole):
                break
            found.append(_message(kind, bytes(memoryview(whole)[start:end])))
            at = end
        del self._data[:at]
        return found


def _message(kind: int, body: bytes) -> Frame | dict[str, Any]:
    if kind == FRAME:
        if len(body) < _OPEN.size:
            raise WireError("a frame that is cut off")
        start, offset, gso, size = _OPEN.unpack_from(body)
        return Frame(body[_OPEN.size :], (), start, offset, gso, size)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise WireError("no JSON") from fault
    if not isinstance(content, dict):
        raise WireError("no object")
    return content
