"""Storage pools and volumes, with qemu-img as witness where it is there."""

import json
import os
import shutil
import subprocess

import pytest

from ringzero.disk import open_disk
from ringzero.errors import (
    ConflictError,
    DiskError,
    DiskLockedError,
    HostError,
    InvalidValueError,
    NotFoundError,
    StateError,
)
from ringzero.storage import pools, volumes
from ringzero.units import MIB


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def pool(tmp_path):
    return pools.define("p1", tmp_path / "p1")


def test_there_is_a_default_pool(tmp_path):
    (found,) = pools.pools()
    assert (found.name, found.path, found.active) == ("default", tmp_path / "data/volumes", True)
    assert volumes.volumes(found) == []
    volume = volumes.create(found, "a", MIB)
    assert volume.path == tmp_path / "data/volumes/a"
    with pytest.raises(ConflictError, match="always there"):
        pools.undefine("default")
    assert pools.find("default").uuid == found.uuid


def test_the_life_of_a_pool(tmp_path):
    made = pools.define("p1", tmp_path / "p1", active=False)
    assert made.uuid == pools.find("p1").uuid
    with pytest.raises(ConflictError, match="not active"):
        volumes.volumes(made)
    with pytest.raises(ConflictError, match="not active"):
        volumes.create(made, "a", MIB)
    assert pools.change("p1", active=True, autostart=True).active
    assert (tmp_path / "p1").is_dir()
    assert pools.find("p1").autostart
    # Defined anew it keeps its UUID.
    assert pools.define("p1", tmp_path / "p1").uuid == made.uuid
    with pytest.raises(ConflictError, match="is active"):
        pools.undefine("p1")
    pools.change("p1", active=False)
    pools.undefine("p1")
    with pytest.raises(NotFoundError, match="no storage pool called 'p1'"):
        pools.find("p1")
    assert (tmp_path / "p1").is_dir()


def test_pools_that_cannot_be(pool, tmp_path):
    with pytest.raises(ConflictError, match="is the storage pool 'p1' already"):
        pools.define("p2", tmp_path / "x/../p1")
    with pytest.raises(ConflictError, match="has the UUID"):
        pools.define("p2", tmp_path / "p2", identifier=pool.uuid)
    with pytest.raises(InvalidValueError, match="no UUID"):
        pools.define("p2", tmp_path / "p2", identifier="x")
    for name in ("", ".", "../x", "a/b", "a\nb", "a" * 80):
        with pytest.raises(InvalidValueError):
            pools.define(name, tmp_path / "p2")
        with pytest.raises(NotFoundError):
            pools.find(name)
    (tmp_path / "storage/p1.json").write_text('{"path": 3}')
    with pytest.raises(StateError, match="does not describe"):
        pools.find("p1")


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_volumes_of_every_format(pool, kind):
    from ringzero.disk.formatnames import format_name

    made = volumes.create(pool, "a.img", 3 * MIB + 1, format_name(kind))
    assert made.capacity >= 3 * MIB + 512
    assert made.format == format_name(kind)
    assert made.mode == 0o600
    assert volumes.volumes(pool) == [made]
    volumes.resize(made, 4 * MIB)
    assert volumes.find(pool, "a.img").capacity >= 4 * MIB
    if shutil.which("qemu-img"):
        told = subprocess.run(
            ["qemu-img", "info", "-f", kind, "--output=json", made.path],
            check=True,
            capture_output=True,
        )
        assert json.loads(told.stdout)["virtual-size"] == volumes.find(pool, "a.img").capacity
    volumes.remove(made)
    assert volumes.volumes(pool) == []
    assert os.listdir(pool.path) == []


def test_a_volume_above_another(pool):
    base = volumes.create(pool, "base", 2 * MIB, "qcow2")
    with open_disk(base.path, "qcow2") as disk:
        disk.write(0, b"hello")
    top = volumes.create(pool, "top", None, "qcow2", backing=base.path)
    assert (top.capacity, top.backing_format) == (2 * MIB, "qcow2")
    assert volumes.users(pool, base) == ["top"]
    assert volumes.users(pool, top) == []
    copy = volumes.clone(pool, top, "copy", "raw")
    assert (copy.format, copy.backing) == ("raw", None)
    assert copy.path.read_bytes()[:5] == b"hello"
    assert copy.mode == 0o600


def test_a_volume_in_use_is_left_alone(pool):
    made = volumes.create(pool, "a", 2 * MIB, "qcow2")
    with open_disk(made.path, "qcow2"):
        for act in (
            lambda: volumes.remove(made),
            lambda: volumes.wipe(made),
            lambda: volumes.resize(made, 4 * MIB),
            lambda: volumes.clone(pool, made, "b"),
            lambda: volumes.Upload(made),
            lambda: next(volumes.content(made)),
        ):
            with pytest.raises(DiskLockedError):
                act()
        # It can be looked at.
        assert volumes.find(pool, "a").capacity == 2 * MIB
    with open_disk(made.path, "qcow2", read_only=True), pytest.raises(DiskLockedError):
        volumes.remove(made)
    assert [v.name for v in volumes.volumes(pool)] == ["a"]
    volumes.remove(made)


def test_names(pool):
    volumes.create(pool, "a b.qcow2", MIB)
    with pytest.raises(ConflictError, match="there is a volume"):
        volumes.create(pool, "a b.qcow2", MIB)
    for name in ("", ".", "..", ".hidden", "a/b", "../../etc/passwd", "a\0b", "a" * 300):
        with pytest.raises(InvalidValueError):
            volumes.create(pool, name, MIB)
        with pytest.raises(InvalidValueError):
            volumes.find(pool, name)
    with pytest.raises(NotFoundError, match="no volume"):
        volumes.find(pool, "b")
    (pool.path / "folder").mkdir()
    os.mkfifo(pool.path / "pipe")
    (pool.path / "dangling").symlink_to("nowhere")
    assert [v.name for v in volumes.volumes(pool)] == ["a b.qcow2"]


def test_what_cannot_be_made_leaves_nothing(pool, tmp_path):
    for arguments in (
        {"capacity": None, "format": "raw"},
        {"capacity": MIB, "format": "raw", "backing": tmp_path / "x"},
        {"capacity": MIB, "format": "qcow2", "backing": tmp_path / "x"},
        {"capacity": -1, "format": "raw"},
    ):
        with pytest.raises((InvalidValueError, NotFoundError, DiskError)):
            volumes.create(pool, "a", **arguments)
    with pytest.raises(NotFoundError):
        volumes.create(pool, "a", MIB, "nothing")
    assert os.listdir(pool.path) == []
    made = volumes.create(pool, "a", 2 * MIB)
    with pytest.raises(InvalidValueError, match="would lose"):
        volumes.resize(made, MIB)
    volumes.resize(made, MIB, shrink=True)
    assert volumes.find(pool, "a").capacity == MIB


def test_what_is_no_image_is_shown_as_what_it_is(pool):
    path = pool.path
    path.mkdir(exist_ok=True)
    (path / "text").write_bytes(b"x" * 1000)
    (path / "broken").write_bytes(b"QFI\xfb" + bytes(100))
    kinds = {v.name: (v.format, v.capacity) for v in volumes.volumes(pool)}
    assert kinds["broken"] == (volumes.UNKNOWN, 104)
    assert kinds["text"][0] in ("raw", volumes.UNKNOWN)


def test_bytes_up_and_down(pool, tmp_path):
    image = tmp_path / "a.qcow2"
    from ringzero.disk import create_disk

    create_disk(image, "qcow2", 5 * MIB)
    data = image.read_bytes()
    made = volumes.create(pool, "a", 1024)
    upload = volumes.Upload(made, 0, len(data))
    for at in range(0, len(data), 1000):
        upload.write(data[at : at + 1000])
    with pytest.raises(InvalidValueError, match="more bytes"):
        upload.write(b"x")
    upload.close()
    found = volumes.find(pool, "a")
    assert (found.format, found.capacity) == ("qcow2", 5 * MIB)
    assert b"".join(volumes.content(found)) == data
    assert b"".join(volumes.content(found, 4, 8)) == data[4:12]
    assert b"".join(volumes.content(found, 1 << 40)) == b""
    for wrong in ((-1, None), (0, -1)):
        with pytest.raises(InvalidValueError):
            next(volumes.content(found, *wrong))
        with pytest.raises(InvalidValueError):
            volumes.Upload(found, *wrong)
    volumes.wipe(found)
    assert set(made.path.read_bytes()) == {0}
    hole = volumes.Upload(found)
    hole.skip(1 << 20)
    hole.write(b"end")
    hole.close()
    assert made.path.stat().st_size >= (1 << 20) + 3


def test_a_link_is_not_written_through(pool, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(1024))
    pool.path.mkdir(exist_ok=True)
    (pool.path / "link").symlink_to(outside)
    found = volumes.find(pool, "link")
    for act in (lambda: volumes.wipe(found), lambda: volumes.remove(found)):
        with pytest.raises(HostError):
            act()
    assert outside.exists()


def test_holes_of_an_upload(pool, tmp_path):
    """What was there before is gone; none leads beyond what was said, or what a file can be."""
    volume = volumes.create(pool, "a", MIB, "raw")
    volume.path.write_bytes(b"old" * 4096)
    upload = volumes.Upload(volume)
    upload.write(b"new")
    upload.skip(8192)
    upload.write(b"end")
    upload.close()
    assert volume.path.read_bytes() == (b"new" + bytes(8192) + b"end" + (b"old" * 4096)[8198:])
    upload = volumes.Upload(volume, 0, 100)
    with pytest.raises(InvalidValueError, match="more bytes"):
        upload.skip(101)
    upload.close()
    upload = volumes.Upload(volume, 5)
    with pytest.raises(InvalidValueError, match="hole"):
        upload.skip((1 << 63) - 1)
    upload.close()
    assert volume.path.stat().st_size == 3 * 4096
    with pytest.raises(InvalidValueError):
        volumes.resize(volume, -512, shrink=True)


def test_what_killed_processes_left_goes_at_last(pool):
    volumes.create(pool, "a", MIB)
    old, new, other = (
        pool.path / f".partial-{name}" for name in ("0" * 16, "1" * 16, "of-another-program")
    )
    for path in (old, new, other):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    volumes.create(pool, "b", MIB)
    assert not old.exists()
    assert new.exists()
    assert other.exists()
    # What is being made is no volume, nor does it hide the others.
    assert [volume.name for volume in volumes.volumes(pool)] == ["a", "b"]


def test_one_directory_that_cannot_be_read_hides_no_other_pool(pool, tmp_path, monkeypatch):
    from ringzero.control.host import client

    broken = pools.define("broken", tmp_path / "file")
    broken.path.write_text("no directory")
    found = {each["name"]: each for each in client.host().storage_pools()}
    assert set(found) == {"broken", "default", "p1"}
    assert found["broken"]["volumes"] == 0
