"""Layers: equal files make equal bytes, and another reader finds what was put in."""

import io
import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.build.entries import Entry, write
from ringzero.errors import GuestImageError
from ringzero.image.layers import tar


def entry(name: bytes, data: bytes = b"", **fields):
    return Entry(
        name, stat.S_IFREG | 0o644, size=len(data), content=lambda: iter((data,)), **fields
    )


def written(entries, epoch=1000):
    file = io.BytesIO()
    layer = write(entries, file, epoch)
    assert layer.size == len(file.getvalue())
    return layer, file


def test_the_order_does_not_matter_and_the_digest_is_the_files():
    import hashlib

    some = [entry(b"b", b"2"), Entry(b"a", stat.S_IFDIR | 0o755), entry(b"a/c", b"1")]
    layer, file = written(some)
    other, _ = written(some[::-1])
    assert layer == other
    assert layer.digest == f"sha256:{hashlib.sha256(file.getvalue()).hexdigest()}"


def test_another_reader_finds_all_of_it():
    long = b"d/" + b"x" * 200
    _, file = written(
        [
            Entry(b"d", stat.S_IFDIR | 0o1777, 1, 2, mtime=5),
            entry(long, b"data" * 1000, xattrs={b"user.a": b"\xff\0"}),
            Entry(b"d/link", stat.S_IFLNK | 0o777, link=b"../x"),
            Entry(b"d/hard", 0, link=long),
            Entry(b"null", stat.S_IFCHR | 0o666, device=(1, 3)),
        ]
    )
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        members = {member.name: member for member in archive}
        assert members["d"].mode == 0o1777
        assert (members["d"].uid, members["d"].gid, members["d"].mtime) == (1, 2, 5)
        assert archive.extractfile(long.decode()).read() == b"data" * 1000
        assert members["d/link"].linkname == "../x"
        assert members["d/hard"].islnk()
        assert (members["null"].devmajor, members["null"].devminor) == (1, 3)
    own = {member.name: member for member in tar.read(memoryview(file.getvalue()))}
    assert own[long].xattrs == {b"user.a": b"\xff\0"}


def test_times_end_at_the_epoch():
    _, file = written([entry(b"a", mtime=50), entry(b"b", mtime=5000), entry(b"c")])
    times = [m.mtime // 10**9 for m in tar.read(memoryview(file.getvalue()))]
    assert times == [50, 1000, 1000]


def test_a_file_that_changes_is_told():
    bad = entry(b"a", b"123")
    bad.size = 4
    with pytest.raises(GuestImageError, match="changed while it was read"):
        written([bad])


@given(st.binary(min_size=1, max_size=300).map(lambda b: b.replace(b"\0", b"x").strip(b"/")))
def test_any_name_comes_back(name):
    parts = [p for p in name.split(b"/") if p not in (b"", b".", b"..")]
    if not parts:
        return
    name = b"/".join(parts)
    _, file = written([entry(name, b"x")])
    assert [m.name for m in tar.read(memoryview(file.getvalue()))] == [name]
