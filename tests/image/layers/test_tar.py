"""Tar archives, as the standard library and tar(1) write them, and as nobody should."""

import io
import os
import stat
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.layers import tar as archives
from ringzero.image.layers.tar import Stream, read
from tests.image.oci.images import tar

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


def members(data):
    return list(read(memoryview(data)))


def streamed(data, size):
    """Return the members of an archive that comes in pieces, each with its content as `tail`."""
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    stream, found = Stream(pieces), []
    for number, member in enumerate(archives.members(stream)):
        if number % 3 != 2:
            # Or leave it: then it is passed over.
            member.tail = b"".join(bytes(piece) for piece in stream.pieces(member.size))
        found.append(member)
    return found


def test_all_kinds():
    data = tar({"d": None, "d/f": b"content", "l": ("->", "d/f"), "h": ("=", "d/f")})
    directory, file, link, hard = members(data)
    assert stat.S_ISDIR(directory.mode) and directory.name == b"d/"
    assert data[file.offset : file.offset + file.size] == b"content"
    assert stat.S_ISLNK(link.mode) and link.link == b"d/f"
    assert hard.mode == 0 and hard.link == b"d/f"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms(form):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        info = tarfile.TarInfo("a/" * 60 + "file")
        info.uid, info.gid, info.mtime, info.mode = 1000, 100, 1700000000, 0o4755
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    (member,) = members(file.getvalue())
    assert member.name.decode() == info.name
    assert (member.uid, member.gid, member.mode & 0o7777) == (1000, 100, 0o4755)
    assert member.mtime == 1700000000 * 10**9


def test_long_names_links_numbers_and_attributes():
    info = tarfile.TarInfo("n" * 300)
    info.type, info.linkname = tarfile.SYMTYPE, "t" * 300
    info.uid = 3_000_000_000
    info.mtime = 1.25
    info.pax_headers = {"SCHILY.xattr.user.a": "b\n=c", "SCHILY.xattr.security.capability": "x"}
    (member,) = members(tar({"n" * 300: info}))
    assert (len(member.name), len(member.link), member.uid) == (300, 300, 3_000_000_000)
    assert member.mtime == 1_250_000_000
    assert member.xattrs == {b"user.a": b"b\n=c", b"security.capability": b"x"}


def test_devices():
    info = tarfile.TarInfo("null")
    info.type, info.devmajor, info.devminor, info.mode = tarfile.CHRTYPE, 1, 3, 0o666
    (member,) = members(tar({"null": info}))
    assert stat.S_ISCHR(member.mode) and member.device == (1, 3)


def test_what_tar_itself_writes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 5000)
    (tmp_path / "a" / "link").symlink_to("file")
    (tmp_path / "a" / "hard").hardlink_to(tmp_path / "a" / "file")
    for form in ("gnu", "pax", "ustar", "v7"):
        data = subprocess.run(
            ["tar", "-C", tmp_path, f"--format={form}", "-c", "a"], capture_output=True, check=True
        ).stdout
        assert {m.name.rstrip(b"/") for m in members(data)} == {
            b"a", b"a/file", b"a/link", b"a/hard"
        }  # fmt: skip


def change(data, at, new):
    """Return an archive's first header with bytes changed, and its checksum made right again."""
    header = bytearray(data[:512])
    header[at : at + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (124, b"\xff" * 12),  # a negative size: readers have hung in it
        (124, b"\x80" + b"\xff" * 11),
        (124, b"77777777777\0"),
        (124, b"9999\0"),
        (108, b"\xff" * 8),
        (156, b"S"),
    ],
)
def test_numbers_that_lie(at, new):
    with pytest.raises(GuestImageError):
        members(change(tar({"f": b"content"}), at, new))


def test_damaged_and_cut_short():
    data = tar({"f": b"c" * 2000})
    with pytest.raises(GuestImageError, match="checksum"):
        members(b"x" + data[1:])
    with pytest.raises(GuestImageError, match="cut short"):
        members(data[:1024])
    assert members(b"") == []
    with pytest.raises(GuestImageError):
        members(b"\x1f\x8b" * 512)


@settings(max_examples=100 * FUZZ)
@given(st.data())
def test_fuzz_damage_is_told_or_harmless(data):
    info = tarfile.TarInfo("long" * 40)
    info.pax_headers = {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}
    whole = bytearray(tar({"d": None, "long" * 40: info, "d/f": b"c" * 700}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    archive = bytes(whole[:cut])
    try:
        found = members(archive)
    except GuestImageError as fault:
        with pytest.raises(GuestImageError) as other:
            streamed(archive, data.draw(st.integers(1, 2000)))
        # A stream ends where its bytes do, and not where padding should.
        same = other.value.message.partition(" (at")[0] == fault.message.partition(" (at")[0]
        assert same or "cut short" in fault.message
        return
    assert all(m.offset >= 0 and m.offset + m.size <= cut for m in found)
    same = streamed(archive, data.draw(st.integers(1, 2000)))
    for number, (one, two) in enumerate(zip(found, same, strict=True)):
        if number % 3 != 2:
            assert two.tail == archive[one.offset : one.offset + one.size]
        two.tail = b""
        assert one == two
