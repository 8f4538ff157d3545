import contextlib
import io
import os
import shutil
import stat
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image import cpio
from ringzero.image.cpio import Entry

ENTRIES = [
    Entry("dir", stat.S_IFDIR | 0o755),
    Entry("dir/empty", stat.S_IFREG | 0o600),
    Entry("dir/odd", stat.S_IFREG | 0o644, b"12345", mtime=1700000000),
    Entry("dir/binary", stat.S_IFREG | 0o4755, bytes(range(256)) * 5),
    Entry("link", stat.S_IFLNK | 0o777, b"dir/odd"),
    Entry("null", stat.S_IFCHR | 0o666, device=(1, 3)),
    Entry("name with blanks, \N{SNOWMAN}", stat.S_IFREG | 0o644, b"x"),
]


def written(entries):
    out = io.BytesIO()
    size = cpio.write(entries, out)
    assert size == len(out.getvalue())
    return out.getvalue()


def test_round_trip():
    assert list(cpio.read(written(ENTRIES))) == ENTRIES


_names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            Entry,
            _names.filter(lambda name: name != "TRAILER!!!"),
            st.integers(0, 0xFFFF),
            st.binary(max_size=50),
            uid=st.integers(0, 0xFFFFFFFF),
        ),
        max_size=5,
    )
)
def test_round_trip_of_anything(entries):
    assert list(cpio.read(written(entries))) == entries


@pytest.mark.peer
@pytest.mark.parametrize("tool", ["cpio", "busybox"])
def test_other_programs_read_it(tool, tmp_path):
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    if os.geteuid() != 0:
        pytest.skip("needs root, for the device node")
    command = [*(["busybox"] if tool == "busybox" else []), "cpio", "-id"]
    subprocess.run(command, input=written(ENTRIES), cwd=tmp_path, check=True, timeout=20)
    for entry in ENTRIES:
        path = tmp_path / entry.name
        found = path.lstat()
        assert found.st_mode == entry.mode
        if stat.S_ISREG(entry.mode):
            assert path.read_bytes() == entry.data
        elif stat.S_ISLNK(entry.mode):
            assert os.fsencode(path.readlink()) == entry.data
        elif stat.S_ISCHR(entry.mode):
            assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == entry.device


@pytest.mark.peer
def test_reads_what_other_programs_write(tmp_path):
    if shutil.which("cpio") is None:
        pytest.skip("needs cpio")
    (tmp_path / "a").write_bytes(b"hello")
    (tmp_path / "b").symlink_to("a")
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc"], input=b"a\nb\n", cwd=tmp_path, capture_output=True, timeout=20
    ).stdout
    assert [(e.name, e.data) for e in cpio.read(archive)] == [("a", b"hello"), ("b", b"a")]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_told_and_never_more(data):
    archive = bytearray(written(ENTRIES))
    for _ in range(data.draw(st.integers(0, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(archive)))
    with contextlib.suppress(GuestImageError):
        list(cpio.read(bytes(archive[:cut])))
