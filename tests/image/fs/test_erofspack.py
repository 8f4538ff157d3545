"""Pieces of EROFS, packed: beside zlib and zstandard, and what does not unpack."""

import contextlib
import random
import zlib

import pytest
import zstandard

from ringzero.image.fs import erofspack
from ringzero.image.fs.erofspack import NAMES, BadPackError, unpack

PLAIN = b"".join(b"%d\n" % n for n in range(2000))
_DEFLATE = zlib.compressobj(9, zlib.DEFLATED, -15)
PACKED = {
    "DEFLATE": _DEFLATE.compress(PLAIN) + _DEFLATE.flush(),
    "zstd": zstandard.ZstdCompressor().compress(PLAIN),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("length", [1, 100, len(PLAIN)])
def test_as_much_as_is_asked_for(name, length):
    assert unpack(NAMES.index(name), PACKED[name], length) == PLAIN[:length]


@pytest.mark.parametrize("name", PACKED)
def test_what_ends_too_soon(name):
    number = NAMES.index(name)
    with pytest.raises(BadPackError):
        unpack(number, PACKED[name][: len(PACKED[name]) // 2], len(PLAIN))
    with pytest.raises(BadPackError, match="ends too soon"):
        unpack(number, PACKED[name], len(PLAIN) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_fuzz_bytes_that_are_no_packed_data(name):
    random_ = random.Random(name)
    for raw in (b"", b"\xff", b"\0" * 40, *(random_.randbytes(n) for n in range(1, 200))):
        with contextlib.suppress(BadPackError):
            assert len(unpack(NAMES.index(name), raw, 10_000)) <= 10_000


def test_zeros_without_end_are_not_unpacked():
    """What would fill the memory: no more is unpacked than is asked for."""
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    assert unpack(NAMES.index("zstd"), bomb, 4096) == bytes(4096)
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    frame = wide.compress(b"x" * 1000) + wide.flush()
    with pytest.raises(BadPackError):
        unpack(NAMES.index("zstd"), frame, 1000)


def test_every_packing_has_a_name():
    assert len(erofspack._UNPACKERS) == len(NAMES)
