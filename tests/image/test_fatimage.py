"""FAT as it is written: fsck.fat finds nothing wrong, our reader finds what went in."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import InvalidValueError
from ringzero.image.fatimage import fat_image
from ringzero.image.fs.contract import open_file_system
from tests.image.fs.made import part, tool

FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"x" * 70_000,
    "EFI/debian/grub.cfg": b"search\n",
    "a file with a long name.txt": b"1",
    "empty": b"",
    **{f"many/{'n' * 40}{n}": b"%d" % n for n in range(100)},
}


def opened(files):
    return open_file_system(part(fat_image(files, "EFI")))


def test_files_are_where_they_should_be():
    found = opened(FILES)
    for path, data in FILES.items():
        assert found.read_file("/" + path, limit=1 << 20) == data
    assert sorted(found.listing("/EFI")) == ["BOOT", "debian"]


@pytest.mark.peer
def test_fsck_finds_nothing_wrong(tmp_path):
    program = tool("fsck.fat")
    for number, files in enumerate((FILES, {}, {"a/b/c/d/e/f": b"deep"})):
        path = tmp_path / str(number)
        path.write_bytes(fat_image(files, "EFI"))
        done = subprocess.run([program, "-nv", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_root_has_room_for_so_many():
    with pytest.raises(InvalidValueError, match="too many"):
        fat_image({f"{'n' * 60}{n}": b"" for n in range(200)}, "EFI")


NAMES = st.text("abcdefgh. é", min_size=1, max_size=20).filter(lambda n: n.strip(". ") == n)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=3000), max_size=8), NAMES, NAMES)
def test_any_files(files, folder, inner):
    # FAT does not tell apart names by case, nor a file from a folder of the same name.
    paths = {f"d/{folder}/x{n}": d for n, d in enumerate(files.values())}
    paths |= {f"f-{n}": d for n, d in files.items()} | {f"d/{folder}/y/{inner}": b"i"}
    found = opened(paths)
    for path, data in paths.items():
        assert found.read_file("/" + path, limit=1 << 20) == data
