"""CRC-32C (Castagnoli, RFC 3720 appendix B.4), which VHDX uses for its structures.

Trailing zeroes, of which those structures are nearly all made, cost nothing.
"""

from __future__ import annotations

from functools import cache

# The reflected polynomial.
_POLYNOMIAL = 0x82F6_3B78


@cache
def _table() -> tuple[int, ...]:
    values = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901 - the register
        values.append(value)
    return tuple(values)


def _apply(rows: list[int], value: int) -> int:
    result = 0
    for row in rows:
        if value & 1:
            result ^= row
        value >>= 1
        if not value:
            break
    return result


@cache
def _zero_operators() -> list[list[int]]:
    """Return, for 1, 2, 4 ... zero bytes, what they do to each bit of the register."""
    table = _table()
    operator = [table[1 << bit & 0xFF] ^ (1 << bit) >> 8 for bit in range(32)]
    found = []
    for _ in range(32):
        found.append(operator)
        operator = [_apply(operator, row) for row in operator]
    return found


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of `data`."""
    whole = bytes(data)
    head = whole.rstrip(b"\0")
    register = 0xFFFF_FFFF
    table = _table()
    for byte in head:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    zeroes = len(whole) - len(head)
    for operator in _zero_operators():
        if not zeroes:
            break
        if zeroes & 1:
            register = _apply(operator, register)
        zeroes >>= 1
    return register ^ 0xFFFF_FFFF
