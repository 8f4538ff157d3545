"""Where files go: links are followed, rights are kept, what is no file is left alone."""

import contextlib
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from ringzero.errors import HostError, InvalidValueError, NotFoundError, RingzeroError
from ringzero.host.placing import filled, look_at, take_over


def fill(path, data=b"new"):
    with filled(path) as file:
        file.write(data)


@contextlib.contextmanager
def mounted(path, tmp_path):
    """Have another file lie over `path`."""
    over = tmp_path / "over"
    over.write_bytes(b"old")
    if subprocess.run(["mount", "--bind", over, path], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield over
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_new_file_has_the_rights_that_the_user_likes(tmp_path):
    before = os.umask(0o27)
    try:
        fill(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["new"]


def test_owner_rights_and_attributes_stay(tmp_path):
    path = tmp_path / "private"
    path.write_bytes(b"old")
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 1000, 1001)
    with contextlib.suppress(OSError):
        os.setxattr(path, "user.note", b"mine")
    before, attributes = path.stat(), os.listxattr(path)
    assert look_at(path).in_place is None
    fill(path)
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert os.listxattr(path) == attributes


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    if there:
        real.write_bytes(b"old")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("elsewhere/real")
    fill(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()
    assert (tmp_path / "two").is_symlink()
    assert real.read_bytes() == b"new"


def test_all_names_of_a_file_lead_to_the_new_content(tmp_path):
    (tmp_path / "a").write_bytes(b"something old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    fill(tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == b"new"
    assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_mounted_file_is_written_where_it_is(tmp_path):
    path = tmp_path / "a b\\c"
    path.write_bytes(b"below")
    with mounted(path, tmp_path) as over:
        fill(path)
        assert over.read_bytes() == b"new"
    assert path.read_bytes() == b"below"


def test_a_descriptor_means_its_file(tmp_path):
    with (tmp_path / "out").open("w+b") as file:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        fill(tmp_path / "link")
        fill(Path(f"/dev/fd/{file.fileno()}"), b"newer")
        assert file.read() == b"newer"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "directory"])
def test_what_is_no_file_is_left_alone(tmp_path, kind):
    import socket

    path = tmp_path / "special"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as held:
            held.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = path.stat()
    with pytest.raises(InvalidValueError, match=r"directory|FIFO|socket|device"):
        fill(path)
    assert path.stat().st_mode == before.st_mode


def test_names_that_cannot_be(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    fill(tmp_path / ("x" * longest))
    with pytest.raises(HostError, match="cannot be written"):
        fill(tmp_path / ("x" * (longest + 1)))
    with pytest.raises(NotFoundError, match="no directory"):
        fill(tmp_path / "missing" / "file")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError, match="no directory"):
        fill(tmp_path / "file" / "below")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(HostError, match="cannot be written"):
        fill(tmp_path / "loop")


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), filled(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old"]


def test_a_full_disk_is_an_error_of_the_host(tmp_path):
    with pytest.raises(RingzeroError), filled(tmp_path / "x"):
        raise OSError(28, "No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be somebody else")
def test_a_file_of_somebody_else_is_written_in_place():
    # Not below pytest's directory, which others may not enter.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        path = Path(directory, "shared")
        path.write_bytes(b"old")
        path.chmod(0o666)
        os.chown(path, 1000, 1000)
        os.seteuid(1001)
        try:
            place = look_at(path)
            assert place.in_place == "it belongs to somebody else"
            assert not take_over(place, Path(directory, "missing"))
            fill(path)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == b"new"
        assert path.stat().st_uid == 1000
