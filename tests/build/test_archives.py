"""ADD: archives are unpacked, by what they are and not by their names."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import tarfile

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ringzero.build.archives import unpacked
from ringzero.build.copying import Placement, plan
from ringzero.build.entries import Entry
from ringzero.build.origin import Context
from ringzero.build.view import View
from ringzero.errors import GuestImageError, RingzeroError

PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def archive(name="d/f", data=b"data"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for path, kind, link in (
            ("d", tarfile.DIRTYPE, ""),
            (name, tarfile.REGTYPE, ""),
            ("d/hard", tarfile.LNKTYPE, name),
            ("d/soft", tarfile.SYMTYPE, "f"),
        ):
            info = tarfile.TarInfo(path)
            info.type, info.linkname, info.uid, info.mtime = kind, link, 7, 99
            info.mode = 0o750
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            made.addfile(info, io.BytesIO(data))
    return file.getvalue()


def entry(data):
    return Entry(b"", stat.S_IFREG | 0o644, size=len(data), content=lambda: iter((data,)))


def added(place, data, **placement):
    (place / "a").write_bytes(data)
    where = Placement("/to", unpack=True, **placement)
    found = plan(Context(place), ["a"], {}, where, View(None))
    return {os.fsdecode(entry.name): entry for entry in found}


@pytest.mark.parametrize("packer", PACKERS)
def test_archives_are_unpacked(tmp_path, packer):
    found = added(tmp_path, PACKERS[packer](archive()))
    assert sorted(found) == ["to", "to/d", "to/d/f", "to/d/hard", "to/d/soft"]
    assert b"".join(found["to/d/f"].content()) == b"data"
    assert (found["to/d/f"].uid, found["to/d/f"].mtime) == (7, 99)
    assert stat.S_IMODE(found["to/d"].mode) == 0o750
    assert found["to/d/hard"].link == b"to/d/f"
    assert found["to/d/soft"].link == b"f"
    assert added(tmp_path, PACKERS[packer](archive()), owner=(1, 2))["to/d/f"].uid == 1


@pytest.mark.parametrize("data", [b"", b"text", gzip.compress(b"text"), gzip.compress(b"x" * 999)])
def test_other_files_are_copied(tmp_path, data):
    found = added(tmp_path, data)
    assert list(found) == ["to"]
    assert b"".join(found["to"].content()) == data


def test_names_that_lead_out_and_damage():
    with pytest.raises(GuestImageError, match="leads out"):
        unpacked(entry(archive("d/../../x")))
    with pytest.raises(GuestImageError, match="damaged"):
        unpacked(entry(gzip.compress(archive())[:20] + b"\xff" * 60))


def test_a_limit(monkeypatch):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    with pytest.raises(GuestImageError, match="more than 1048576 bytes"):
        unpacked(entry(gzip.compress(archive(data=bytes(2 << 20)))))


@given(st.binary(max_size=600), st.integers(0, 599))
def test_hostile_archives_are_refused_or_read(noise, at):
    data = bytearray(archive())
    data[at : at + len(noise)] = noise
    for packed in (bytes(data), gzip.compress(bytes(data))):
        with contextlib.suppress(RingzeroError):
            unpacked(entry(packed))
