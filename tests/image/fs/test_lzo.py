"""LZO1X: what the library of its maker packs comes back; wrong bytes are told."""

import ctypes
import ctypes.util
import os
import random

import pytest

from ringzero.image.fs.lzo import LzoError, unpack

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# LZO1X_1_MEM_COMPRESS on 64 bits, and what a block grows by at most.
_WORK, _ROOM = 16384 * 8, 128


@pytest.fixture(scope="module")
def pack():
    """Return what packs bytes with liblzo2."""
    name = ctypes.util.find_library("lzo2")
    if name is None:
        pytest.skip("needs liblzo2")
    library = ctypes.CDLL(name)
    work = ctypes.create_string_buffer(_WORK)

    def packed(data):
        out = ctypes.create_string_buffer(len(data) + len(data) // 16 + _ROOM)
        size = ctypes.c_size_t(len(out))
        status = library.lzo1x_1_compress(data, len(data), out, ctypes.byref(size), work)
        assert status == 0
        return out.raw[: size.value]

    return packed


def texts(seed, count):
    """Yield bytes that pack well, badly, and in turns, of many lengths."""
    random_ = random.Random(seed)
    for number in range(count):
        pieces, length = [], random_.choice((1, 3, 4, 20, 300, 4096, 70_000))
        while sum(map(len, pieces)) < length:
            kind = random_.randrange(4)
            if kind == 0:
                pieces.append(random_.randbytes(random_.randrange(1, 400)))
            elif kind == 1:
                pieces.append(bytes([random_.randrange(256)]) * random_.randrange(1, 3000))
            elif kind == 2 and pieces:
                pieces.append(random_.choice(pieces))
            else:
                pieces.append(b"%d the same words again " % random_.randrange(number + 1))
        yield b"".join(pieces)[:length]


def test_random_texts_come_back(pack):
    for data in texts(1, 60 * FUZZ):
        assert unpack(pack(data), len(data)) == data
        if len(data) > 1:
            with pytest.raises(LzoError):
                unpack(pack(data), len(data) - 1)


def test_fuzz_damaged_streams_are_told(pack):
    random_ = random.Random(2)
    for data in texts(3, 40 * FUZZ):
        packed = bytearray(pack(data))
        for _ in range(random_.choice((1, 2, 10))):
            packed[random_.randrange(len(packed))] = random_.randrange(256)
        for stream in (packed, packed[: random_.randrange(len(packed))]):
            try:
                found = unpack(bytes(stream), len(data))
            except LzoError:
                continue
            assert len(found) <= len(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00" * 500, b"\x12", b"\x40\x00", b"\xff" * 9])
def test_what_is_no_stream(data):
    with pytest.raises(LzoError):
        unpack(data, 4096)
