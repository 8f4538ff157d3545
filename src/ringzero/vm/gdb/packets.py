"""The frames of gdb's remote serial protocol (Debugging with GDB, appendix E.1); no I/O.

    $DATA#CC   a packet: CC is the sum of DATA's bytes in two hexadecimal digits
    + -        the last packet came whole, or is to be sent again
    0x03       the user wants the target to stop

In DATA, "}" escapes: the byte behind it is XORed with 0x20.
"""

from __future__ import annotations

from collections.abc import Iterator

from ringzero.errors import ProtocolError

# The longest packet that either side sends, in bytes without its frame: 8 KiB of memory in
# hexadecimal, and its own words.
PACKET_SIZE = 0x4000
INTERRUPT = b"\x03"
ACK, NAK = b"+", b"-"
# Bytes that mean something else to the wire where they are not escaped.
_SPECIAL = frozenset(b"#$}*")
_ESCAPE, _FLIP = 0x7D, 0x20


def encode(data: bytes) -> bytes:
    """Return the packet that holds `data`."""
    escaped = bytearray()
    for byte in data:
        if byte in _SPECIAL:
            escaped += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            escaped.append(byte)
    return b"$%b#%02x" % (bytes(escaped), sum(escaped) & 0xFF)


class Decoder:
    """Bytes in, packets out."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what has come whole: ACK, NAK, INTERRUPT, or "$" and the data of a packet.

        A packet whose checksum is wrong comes as "!" alone. Raises ProtocolError for one
        that is longer than was said, and for a checksum that is no number.
        """
        self._data += data
        while self._data:
            first = bytes(self._data[:1])
            if first != b"$":
                del self._data[:1]
                if first in (ACK, NAK, INTERRUPT):
                    yield first
                continue
            end = self._data.find(b"#")
            if end < 0 or len(self._data) < end + 3:
                if len(self._data) > 2 * PACKET_SIZE + 4:
                    raise ProtocolError("the debugger's packet is too long")
                return
            body, given = bytes(self._data[1:end]), bytes(self._data[end + 1 : end + 3])
            del self._data[: end + 3]
            try:
                right = int(given, 16) == sum(body) & 0xFF
            except ValueError:
                right = False
            yield b"$" + _plain(body) if right else b"!"


def _plain(body: bytes) -> bytes:
    """Return a packet's data without escapes."""
    if _ESCAPE not in body:
        return body
    found, escaped = bytearray(), False
    for byte in body:
        if byte == _ESCAPE and not escaped:
            escaped = True
            continue
        found.append(byte ^ _FLIP if escaped else byte)
        escaped = False
    return bytes(found)
