"""External data representation (RFC 4506): what libvirt's packets are made of.

All is big-endian and in units of four bytes. Text and opaque data have a length and are filled
up with zeros. Every length is checked against a limit and against what is there, before anything
is made of it; what breaks a rule is a ProtocolError.
"""

from __future__ import annotations

import struct

from ringzero.errors import ProtocolError

UNIT = 4
_INT, _UINT = struct.Struct(">i"), struct.Struct(">I")
_HYPER, _UHYPER, _DOUBLE = struct.Struct(">q"), struct.Struct(">Q"), struct.Struct(">d")


class Reader:
    """Reads values from the bytes of one packet, in order."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._data) - self._at

    def end(self) -> None:
        """Raise ProtocolError when there is more."""
        if self.left:
            raise ProtocolError(f"{self.left} bytes too many", offset=self._at)

    def _number(self, form: struct.Struct) -> int:
        try:
            number: int = form.unpack_from(self._data, self._at)[0]
        except struct.error as fault:
            raise self._short(form.size) from fault
        self._at += form.size
        return number

    def _short(self, size: int) -> ProtocolError:
        return ProtocolError(f"{size} bytes are needed where {self.left} are left", offset=self._at)

    def int32(self) -> int:
        """Read a signed number of 32 bits."""
        return self._number(_INT)

    def uint32(self) -> int:
        """Read a number of 32 bits."""
        return self._number(_UINT)

    def int64(self) -> int:
        """Read a signed number of 64 bits."""
        return self._number(_HYPER)

    def uint64(self) -> int:
        """Read a number of 64 bits."""
        return self._number(_UHYPER)

    def small(self, low: int, high: int) -> int:
        """Read a number that is narrower in memory than its 32 bits here."""
        number = self._number(_INT)
        if not low <= number <= high:
            raise ProtocolError(f"{number} is outside {low} to {high}", offset=self._at - UNIT)
        return number

    def double(self) -> float:
        """Read a floating-point number of 64 bits."""
        if self.left < _DOUBLE.size:
            raise self._short(_DOUBLE.size)
        self._at += _DOUBLE.size
        number: float = _DOUBLE.unpack_from(self._data, self._at - _DOUBLE.size)[0]
        return number

    def present(self) -> bool:
        """Read whether an optional value follows: any number but 0, as XDR libraries take it.

        RFC 4506 has 1 alone; go-libvirt writes 01 00 00 00.
        """
        return bool(self._number(_UINT))

    def length(self, limit: int) -> int:
        """Read how many of something follow, at most `limit`."""
        count = self._number(_UINT)
        if count > limit:
            raise ProtocolError(f"a length of {count}", limit=limit, offset=self._at - UNIT)
        return count

    def fixed(self, size: int) -> bytes:
        """Read `size` bytes, and what fills them up."""
        begin, end = self._at, self._at + size
        filled = end + -size % UNIT
        if filled > len(self._data):
            raise self._short(filled - begin)
        self._at = filled
        if any(self._data[end:filled]):
            raise ProtocolError("bytes that are filled up with something", offset=end)
        return bytes(self._data[begin:end])

    def opaque(self, limit: int) -> bytes:
        """Read bytes with their length before them, at most `limit`."""
        return self.fixed(self.length(limit))

    def string(self, limit: int) -> str:
        """Read text of at most `limit` bytes; what is not UTF-8 in it becomes surrogates."""
        data = self.opaque(limit)
        if 0 in data:
            raise ProtocolError("text with a NUL in it", offset=self._at)
        return data.decode("utf-8", "surrogateescape")


class Writer:
    """Writes values one behind the other; `data` has them."""

    def __init__(self) -> None:
        self.data = bytearray()

    def _number(self, form: struct.Struct, value: float) -> None:
        try:
            self.data += form.pack(value)
        except (struct.error, OverflowError) as fault:
            raise ProtocolError(f"{value!r} is no number of {8 * form.size} bits") from fault

    def int32(self, value: int) -> None:
        """Write a signed number of 32 bits."""
        self._number(_INT, value)

    def uint32(self, value: int) -> None:
        """Write a number of 32 bits."""
        self._number(_UINT, value)

    def int64(self, value: int) -> None:
        """Write a signed number of 64 bits."""
        self._number(_HYPER, value)

    def uint64(self, value: int) -> None:
        """Write a number of 64 bits."""
        self._number(_UHYPER, value)

    def small(self, value: int, low: int, high: int) -> None:
        """Write a number that is narrower in memory than its 32 bits here."""
        if not low <= value <= high:
            raise ProtocolError(f"{value} is outside {low} to {high}")
        self._number(_INT, value)

    def double(self, value: float) -> None:
        """Write a floating-point number of 64 bits."""
        self._number(_DOUBLE, value)

    def present(self, there: bool) -> None:
        """Write whether an optional value follows."""
        self._number(_UINT, there)

    def length(self, count: int, limit: int) -> None:
        """Write how many of something follow."""
        if count > limit:
            raise ProtocolError(f"a length of {count}", limit=limit)
        self._number(_UINT, count)

    def fixed(self, value: bytes, size: int) -> None:
        """Write exactly `size` bytes, filled up."""
        if len(value) != size:
            raise ProtocolError(f"{len(value)} bytes in the place of {size}")
        self.data += value
        self.data += bytes(-size % UNIT)

    def opaque(self, value: bytes, limit: int) -> None:
        """Write bytes with their length before them."""
        self.length(len(value), limit)
        self.fixed(value, len(value))

    def string(self, value: str, limit: int) -> None:
        """Write text."""
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as fault:
            raise ProtocolError(f"text that has no bytes: {value!r}") from fault
        if 0 in data:
            raise ProtocolError("text with a NUL in it")
        self.opaque(data, limit)
