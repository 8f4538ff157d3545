import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.errors import HostError
from ringzero.host import files

SOURCE = str(Path(files.__file__).parents[2])


def test_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with files.atomic_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b"half")
    assert path.read_bytes() == b"halfhalf"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_nothing_remains_of_a_failure(tmp_path, fault):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(fault), files.atomic_file(path) as file:
        file.write(b"after")
        raise fault
    with pytest.raises(fault), files.atomic_directory(tmp_path / "directory") as work:
        (work / "x").write_text("x")
        raise fault
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_directory_appears_whole_and_the_first_one_stays(tmp_path):
    path = tmp_path / "directory"
    with files.atomic_directory(path) as work:
        (work / "x").write_text("first")
        assert not path.exists()
    with files.atomic_directory(path) as work:
        (work / "x").write_text("second")
    assert (path / "x").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_system_says_comes_with_a_hint():
    fault = OSError(28, "No space left on device")
    assert "disk is full" in files.host_error(fault, "write", "x").hint
    assert "RINGZERO_CACHE_DIR" in files.host_error(PermissionError(13, "no"), "write", "x").hint


def test_write_error_inside_the_block(tmp_path):
    path = tmp_path / "file"
    with (
        pytest.raises(HostError, match="No space left"),
        files.atomic_file(path),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_processes_are_swept(tmp_path):
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for place in (old, new):
        place.mkdir()
        (place / "x").write_text("x")
    long_ago = time.time() - 10 * 86400
    os.utime(old, (long_ago, long_ago))
    with files.atomic_file(tmp_path / "file"):
        pass
    assert not old.exists()
    assert new.exists()


def test_lock_is_held_and_freed_by_death(tmp_path):
    path = tmp_path / "lock"
    program = (
        "import sys, time, pathlib\nfrom ringzero.host.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SOURCE},
    )
    assert child.stdout.readline() == b"held\n"
    began = time.monotonic()
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {child.pid}"])
    with files.locked(path):
        assert time.monotonic() - began > 0.3
    killer.wait()
    child.wait()
    child.stdout.close()


def test_whatever_is_read_soon_nothing_is_raised_and_nobody_waits(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 10000)
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo", "none", "."):
        files.read_soon(tmp_path / name, 1 << 30)
    assert not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, tmp_path)]


def _leads_to(fd, directory):
    try:
        return Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(directory)
    except FileNotFoundError:
        return False


def test_parent_that_is_no_directory_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HostError, match=r"file is no directory") as caught:
        files.make_directory(tmp_path / "file" / "cache" / "images")
    assert caught.value.exit_code == HostError.exit_code
    assert "RINGZERO_CACHE_DIR" in caught.value.hint


def test_long_wait_for_another_is_told(tmp_path):
    told = []

    class Steps:
        def step(self, text):
            told.append(text)
            holder.communicate("\n")  # now the other one may go
            return contextlib.nullcontext()

    code = (
        "import sys; from pathlib import Path; from ringzero.host.files import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SOURCE},
        text=True,
    )
    holder.stdout.readline()
    with files.locked(tmp_path / "lock", Steps()):
        pass
    assert "waiting for another ringzero" in told[0]


def test_files_that_vanish_while_they_are_listed(tmp_path, monkeypatch):
    for name in ("a/b/one", "a/two", "three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"xy")
    found = files.files_below(tmp_path)
    path, status = next(found)
    assert path == tmp_path / "three" and status.st_size == 2
    shutil.rmtree(tmp_path / "a" / "b")
    assert [path.name for path, _ in found] == ["two"]
    assert list(files.files_below(tmp_path / "none")) == []
    assert files.newest_first([tmp_path / "gone", tmp_path / "three"]) == [tmp_path / "three"]


def test_newest_first(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(b"")
        time.sleep(0.02)
    assert [p.name for p in files.newest_first(tmp_path.iterdir())] == ["new", "old"]
