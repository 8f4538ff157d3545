"""Disks made for machines: kept as long as something names them, and no longer."""

import os
import time

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, directory, owndisks
from ringzero.image.cloudinit import Seed


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    return tmp_path


def machine(tmp_path, name, seed):
    config = MachineConfig.create(
        disks=[f"{tmp_path / 'disk'},format=raw", f"{seed},ro,format=raw"],
        boot_entry="",
        cloud_init=True,
    )
    claim = claims.create(name, config)
    claim.release()
    return claim.directory


def keep():
    return owndisks.keep(Seed.read(hostname="web"), directory.descriptions())


def test_a_disk_is_its_owners_alone():
    one, other = keep(), keep()
    assert one != other and one.read_bytes() == other.read_bytes()
    assert one.stat().st_mode & 0o777 == 0o600


def test_a_disk_goes_with_the_last_machine_that_names_it(tmp_path):
    path = keep()
    original, copy = machine(tmp_path, "web", path), machine(tmp_path, "web-1", path)
    owndisks.release([path], directory.descriptions())
    original.remove()
    assert path.exists()
    copy = copy.rename("other")
    assert path.exists()
    copy.remove()
    assert not path.exists()
    assert (tmp_path / "disk").exists()


def test_a_disk_that_a_snapshot_names_stays(tmp_path):
    path = keep()
    manifest = tmp_path / "data/snapshots/before/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(f'{{"disks": [{{"path": "{path}"}}]}}')
    machine(tmp_path, "web", path).remove()
    assert path.exists()


def test_what_nothing_names_goes_when_the_next_one_is_made(tmp_path):
    left, new = keep(), keep()
    old = time.time() - 7200
    os.utime(left, (old, old))
    named = keep()
    os.utime(named, (old, old))
    machine(tmp_path, "web", named)
    keep()
    assert not left.exists()
    assert new.exists() and named.exists()


def test_a_machine_without_such_a_disk_has_none(tmp_path):
    config = MachineConfig.create(disks=[f"{tmp_path / 'disk'},format=raw"], boot_entry="")
    assert owndisks.of(config) == []
    owndisks.release([], directory.descriptions())
