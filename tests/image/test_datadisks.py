"""Disks that images ask for: new ones are empty file systems, and take little room."""

import subprocess

import pytest

from ringzero.image import datadisks
from ringzero.image.machinespec import LEAST_DISK, DataDisk
from tests.image.fs.made import tool


def test_new_disks_are_sound_and_sparse(tmp_path, monkeypatch):
    check = tool("e2fsck")
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path))
    sizes = [LEAST_DISK, 16 << 20, (128 << 20) + 4096, 40 << 30]
    paths = datadisks.make([DataDisk(size, f"/{size}") for size in sizes])
    assert len(set(paths)) == len(sizes)
    for path, size in zip(paths, sizes, strict=True):
        assert path.parent == datadisks.directory()
        status = path.stat()
        assert (status.st_size, status.st_mode & 0o777) == (size, 0o600)
        assert status.st_blocks * 512 < 8 << 20
        found = subprocess.run([check, "-fn", path], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout + found.stderr


def test_where_one_cannot_be_made_none_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path))
    with pytest.raises(Exception, match="cannot have"):
        datadisks.make([DataDisk(LEAST_DISK, "/a"), DataDisk(5, "/b")])
    assert list(datadisks.directory().glob("*.img")) == []
