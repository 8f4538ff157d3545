"""The engine's cache on a disk that is full."""

import errno
import os
import subprocess
import sys

import pytest

from ringzero.errors import HostError
from ringzero.jit import build
from ringzero.jit.compile import llvm
from tests.boot.process import ENVIRONMENT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return tmp_path


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_the_tables_are_written(cache, monkeypatch):
    monkeypatch.setattr(build, "_compile_all", full)
    with pytest.raises(HostError, match="No space left") as caught:
        build.ensure()
    assert "RINGZERO_CACHE_DIR" in caught.value.hint
    assert list((cache / "engine").iterdir()) == []


def test_directory_that_cannot_be_made(cache):
    (cache / "engine").write_bytes(b"")
    with pytest.raises(HostError, match="cannot write"):
        build.ensure()


def test_full_disk_while_a_unit_is_written(cache, tmp_path):
    """The compiler of a unit says so by its exit code; its directory is missing here."""
    command = [sys.executable, "-m", "ringzero.jit.compile_unit", "core", str(tmp_path / "none")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == build.NO_ROOM
    assert done.stderr == "No such file or directory\n"
    with pytest.raises(HostError, match="No such file or directory"):
        build._compile_all(["core"], tmp_path / "none", None)


def test_objects_that_cannot_be_kept_are_used_all_the_same(cache):
    (cache / "objects").write_bytes(b"")
    code = llvm.cached_object("define i32 @f() {\n ret i32 7\n}\n")
    assert code.startswith(b"\x7fELF")
