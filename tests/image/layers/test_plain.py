"""Layers without their compression: ISA-L and zlib agree, also about what is damaged."""

import gzip
import io
import os
import random
import sys

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.layers.plain import Budget, Headed, pieces

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


def unpacked(data, place):
    return b"".join(pieces(Headed(io.BytesIO(data)), Budget(1 << 30, 0, place).spend))


def outcome(data, place):
    try:
        return unpacked(data, place)
    except GuestImageError:
        return None


@pytest.fixture(params=["isal", "zlib"])
def module(request, monkeypatch):
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)


@pytest.mark.usefixtures("module")
def test_members_and_what_is_behind_them(tmp_path):
    random_ = random.Random(1)
    parts = [b"", random_.randbytes(700_000), bytes(3 << 20), b"end"]
    data = b"".join(
        gzip.compress(part, level) for part, level in zip(parts, (9, 0, 6, 1), strict=True)
    )
    for behind in (b"", bytes(1000), b"garbage"):
        assert unpacked(data + behind, tmp_path) == b"".join(parts)
    for cut in (2, 5, 9, 200_000, len(data) - 4):
        with pytest.raises(GuestImageError, match="damaged"):
            unpacked(data[:cut], tmp_path)


def test_fuzz_both_say_the_same_of_damage(tmp_path, monkeypatch):
    pytest.importorskip("isal")
    random_ = random.Random(2)
    for _ in range(300 * FUZZ):
        plain = random_.randbytes(random_.choice((0, 5, 700))) * random_.randrange(1, 9)
        data = bytearray(gzip.compress(plain, random_.choice((0, 1, 6, 9))))
        # Behind the flags, of which ISA-L passes over those that nobody has given a meaning.
        data[random_.randrange(4, len(data))] ^= 1 << random_.randrange(8)
        data = bytes(data[: random_.choice((len(data), random_.randrange(2, len(data) + 1)))])
        one = outcome(data, tmp_path)
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "isal", None)
            assert outcome(data, tmp_path) == one
        assert one in (None, plain)
