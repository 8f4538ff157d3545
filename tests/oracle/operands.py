"""Pools of operand values: the corners of each type first, random ones between them."""

from __future__ import annotations

import random
import struct
from typing import Final

from tests.oracle.model import fx_image

_MASK64: Final = (1 << 64) - 1


def corner_integers() -> list[int]:
    """0, 1, -1, min and max of each width, powers of two and their neighbours, as u64."""
    values = {0, 1, 2, 3, 5, 7, 10, 99, 100, 0x0F, 0xF0, 0x99, 0x9A}
    for bit in range(64):
        values |= {(1 << bit) - 1, 1 << bit, (1 << bit) + 1}
    values |= {0x5555_5555_5555_5555, 0x0123_4567_89AB_CDEF, 0x8080_8080_8080_8080}
    return sorted({v & _MASK64 for v in values} | {-v & _MASK64 for v in values})


def corner_floats(exponent_bits: int, fraction_bits: int) -> list[int]:
    """The encodings of an IEEE 754 format worth trying, as integers."""
    top = (1 << exponent_bits) - 1
    bias = top >> 1
    quiet = 1 << fraction_bits - 1
    full = (1 << fraction_bits) - 1
    positive = {
        0, 1, 2, full, quiet,                                         # zero, denormals
        1 << fraction_bits, (1 << fraction_bits) | full,              # smallest normals
        (top - 1) << fraction_bits | full, (top - 1) << fraction_bits,  # largest
        top << fraction_bits,                                         # infinity
        top << fraction_bits | quiet, top << fraction_bits | full,    # QNaN
        top << fraction_bits | quiet | 5, top << fraction_bits | quiet >> 1 | 9,
        top << fraction_bits | 1, top << fraction_bits | full >> 1,   # SNaN
    }  # fmt: skip
    for shift in (0, 1, 2, 3, 7, 8, 15, 16, 23, 24, 30, 31, 32, 33, 52, 53, 62, 63, 64):
        for exponent in (bias + shift, bias - shift):
            if 0 < exponent < top:
                base = exponent << fraction_bits
                positive |= {base, base | 1, base | full, base | quiet, base | quiet >> 1, base - 1}
    sign = 1 << exponent_bits + fraction_bits
    return sorted(positive | {value | sign for value in positive})


def corner_extended() -> list[bytes]:
    """80-bit values: the usual ones, then pseudo-denormals, unnormals, pseudo-NaNs."""
    integer = 1 << 63
    quiet = 1 << 62
    full = integer - 1
    values = [
        (0, 0), (0, 1), (0, full), (0, quiet),                       # zero, denormals
        (0, integer), (0, integer | 1), (0, integer | full),         # pseudo-denormals
        (1, integer), (0x7FFE, integer | full),                      # limits
        (0x7FFF, integer), (0x7FFF, integer | quiet),                # infinity, default NaN
        (0x7FFF, integer | quiet | 0x1234), (0x7FFF, integer | 1),   # QNaN, SNaN
        (0x7FFF, integer | full), (0x7FFF, integer | quiet >> 3),
        (0x7FFF, 0), (0x7FFF, 1), (0x7FFF, quiet), (0x7FFF, full),   # pseudo-infinity, -NaN
        (0x3FFF, 0), (0x3FFF, 1), (0x4000, quiet), (0x7FFE, full),   # unnormals
        (0x3FFF, integer), (0x4000, 0xC90FDAA22168C235),             # 1, pi
        (0x3FFE, 0xC90FDAA22168C235), (0x3FFE, integer),             # pi/4, 1/2
        (0x3FFF, integer | 1), (0x3FFE, integer | full),
    ]  # fmt: skip
    for shift in (1, 7, 14, 15, 16, 23, 24, 30, 31, 32, 52, 53, 61, 62, 63, 64, 65, 1022, 16000):
        for exponent in (0x3FFF + shift, 0x3FFF - shift):
            values += [(exponent, integer), (exponent, integer | full), (exponent, integer | quiet)]
            values.append((exponent, integer | 1 << 10))
    return [
        struct.pack("<QH", mantissa, exponent | sign)
        for exponent, mantissa in values
        for sign in (0, 0x8000)
    ]


INTEGERS: Final = tuple(corner_integers())
SINGLES: Final = tuple(struct.pack("<I", v) for v in corner_floats(8, 23))
DOUBLES: Final = tuple(struct.pack("<Q", v) for v in corner_floats(11, 52))
EXTENDED: Final = tuple(corner_extended())


class Operands:
    """Random draws from the corners, reproducible from the seed."""

    def __init__(self, rng: random.Random, images: int = 512) -> None:
        self.rng = rng
        self.integers = [self._integer() for _ in range(2048)]
        self.vectors = [self._vector() for _ in range(2048)]
        self.images = [self._image() for _ in range(images)]

    def gprs(self) -> list[int]:
        """Sixteen register values."""
        return self.rng.choices(self.integers, k=16)

    def vector(self) -> bytes:
        """Sixteen bytes: packed floats, packed integers, an 80-bit value or noise."""
        return self.rng.choice(self.vectors)

    def fxsave(self) -> bytes:
        """An FXSAVE image: x87 or MMX registers, XMM registers, control words."""
        return self.rng.choice(self.images)

    def _integer(self) -> int:
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(INTEGERS)
        if kind < 0.75:
            return rng.getrandbits(64)
        if kind < 0.85:
            return rng.getrandbits(rng.randrange(1, 64))
        return rng.randrange(256)

    def _single(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(SINGLES)
        return struct.pack("<I", rng.getrandbits(1) << 31 | rng.randrange(100, 155) << 23
                           | rng.getrandbits(23))  # fmt: skip

    def _double(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(DOUBLES)
        return struct.pack("<Q", rng.getrandbits(1) << 63 | rng.randrange(960, 1090) << 52
                           | rng.getrandbits(52))  # fmt: skip

    def _extended(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(EXTENDED)
        sign = rng.getrandbits(1) << 15
        if kind < 0.85:
            return struct.pack("<QH", 1 << 63 | rng.getrandbits(63),
                               sign | rng.randrange(0x3FD0, 0x4045))  # fmt: skip
        if kind < 0.95:
            return struct.pack("<QH", rng.getrandbits(64), sign | rng.getrandbits(15))
        return self._vector()[:8] + b"\xff\xff"

    def _vector(self) -> bytes:
        rng = self.rng
        kind = rng.random()
        if kind < 0.3:
            return b"".join(self._single() for _ in range(4))
        if kind < 0.55:
            return self._double() + self._double()
        if kind < 0.65:
            return rng.choice(EXTENDED) + rng.randbytes(6)
        if kind < 0.75:
            return struct.pack("<QQ", self._integer(), self._integer())
        if kind < 0.85:
            corners = (0, 1, 0x7F, 0x80, 0xFF, 0xFE, 0x81)
            return bytes(rng.choice(corners) for _ in range(16))
        if kind < 0.92:
            corners = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFE, 0x8001, 0x80)
            return struct.pack("<8H", *(rng.choice(corners) for _ in range(8)))
        if kind < 0.95:
            return bytes(rng.randrange(10) | rng.randrange(10) << 4 for _ in range(9)) + bytes(
                [rng.choice((0, 0x80, 0x7F)), *rng.randbytes(6)]
            )
        return rng.randbytes(16)

    def _image(self) -> bytes:
        rng = self.rng
        mxcsr = rng.getrandbits(2) << 13 | rng.choice((0, rng.getrandbits(6)))
        mxcsr |= 0x1F80 if rng.random() < 0.85 else rng.getrandbits(6) << 7
        if rng.random() < 0.15:
            mxcsr |= rng.choice((0x8000, 0x0040, 0x8040))
        fcw = 0x40 | rng.choice((0, 2, 3, 3, 3, 3)) << 8 | rng.getrandbits(2) << 10
        fcw |= 0x3F if rng.random() < 0.85 else rng.getrandbits(6)
        fsw = rng.getrandbits(16) & 0x4700 | rng.getrandbits(3) << 11
        flags = rng.choice((0, rng.getrandbits(6)))
        if flags & ~fcw and rng.random() < 0.3:
            fsw |= 0x8080 | flags
        else:
            fsw |= flags & fcw
        if flags & 1 and rng.random() < 0.3:
            fsw |= 0x40
        ftw = 0xFF if rng.random() < 0.6 else rng.getrandbits(8)
        if rng.random() < 0.25:
            st = [self._vector()[:8] + b"\xff\xff" for _ in range(8)]
        else:
            st = [self._extended() for _ in range(8)]
        xmm = [self._vector() for _ in range(16)]
        return fx_image(fcw=fcw, fsw=fsw, ftw=ftw, mxcsr=mxcsr, st=st, xmm=xmm)
