"""Compressed files: all members, damage, and what is none."""

import bz2
import contextlib
import gzip
import io
import lzma

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ringzero.image import compression

PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def plain(data):
    head = data[: compression.HEAD]
    return b"".join(compression.pieces(head, io.BytesIO(data)))


@pytest.mark.parametrize("packer", PACKERS)
def test_a_round(packer):
    pack = PACKERS[packer]
    assert compression.is_compressed(pack(b"x"))
    # Several members or frames, as pigz and `cat` make them.
    assert plain(pack(b"one") + pack(b"two" * 999_999)) == b"one" + b"two" * 999_999


@pytest.mark.parametrize("data", [b"", b"text", b"\x1f", b"BZ"])
def test_what_is_not_compressed_comes_as_it_is(data):
    assert not compression.is_compressed(data)
    assert plain(data) == data


@pytest.mark.parametrize("packer", ["gzip", "bzip2", "xz"])
def test_what_is_cut_short(packer):
    packed = PACKERS[packer](bytes(range(256)) * 64)
    with pytest.raises(compression.DamagedError):
        plain(packed[:-5])


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=40), st.integers(0, 99))
def test_damage_is_told_and_nothing_else(packer, noise, at):
    data = bytearray(PACKERS[packer](b"some text that is packed" * 20))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(compression.DamagedError):
        plain(bytes(data))


def test_a_fault_of_the_host_is_no_damage():
    class Broken(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, _):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(compression.pieces(b"\x1f\x8b", io.BufferedReader(Broken())))
