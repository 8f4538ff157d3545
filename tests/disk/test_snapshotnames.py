"""Which of an image's snapshots a text means: as in qemu-img."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.disk.snapshotnames import find_to_delete, find_to_read
from ringzero.errors import InvalidValueError, NotFoundError

MIB = 1 << 20


@dataclass(frozen=True)
class One:
    id: bytes
    name: bytes


# Ids and names that are one another's.
ALL = [One(b"1", b"2"), One(b"2", b"one"), One(b"3", b"snapshot.id=1"), One(b"4", b"a,b")]

READ = {
    "1": 0, "2": 1, "one": 1, "a,b": 3, "snapshot.id=2": 1, "snapshot.name=2": 0,
    "snapshot.id=2,snapshot.name=one": 1, "snapshot.name=one,snapshot.id=2": 1,
    "snapshot.id=1": 0, "snapshot.name=snapshot": None, "snapshot.id=one": None,
    "snapshot.name=3": None, "snapshot.id=2,snapshot.name=2": None, "5": None, "": None,
}  # fmt: skip
DELETED = {
    "2": 0, "one": 1, "a,b": 3, "1": None, "3": None, "": None, "snapshot.id=1": 2,
    "snapshot.id=2": 1, "snapshot.name=2": 0,
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_read(text):
    number = READ[text]
    if number is None:
        with pytest.raises(NotFoundError):
            find_to_read(ALL, text)
    else:
        assert find_to_read(ALL, text) is ALL[number]


@pytest.mark.parametrize("text", DELETED)
def test_deleted(text):
    number = DELETED[text]
    if number is None:
        with pytest.raises(NotFoundError):
            find_to_delete(ALL, text)
    else:
        assert find_to_delete(ALL, text) is ALL[number]


def test_an_id_is_no_name_but_says_how_to_be_one():
    with pytest.raises(NotFoundError) as caught:
        find_to_delete(ALL, "3")
    assert "snapshot.id=3" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["snapshot.", "snapshot.x=1", "snapshot.id", "snapshot.id=1,snapshot.id=2"]
)
def test_no_choice(text):
    with pytest.raises(InvalidValueError):
        find_to_read(ALL, text)


def test_names_that_are_no_text(tmp_path):
    create_disk(tmp_path / "disk", "qcow2", MIB)
    with open_disk(tmp_path / "disk") as disk:
        disk.snapshots.create("b\udcff")
        disk.snapshots.create("other")
        disk.snapshots.delete("b\udcff")
        assert [one.name for one in disk.snapshots.list()] == ["other"]


@pytest.fixture
def image(tmp_path):
    """An image with snapshots that are named by one another's ids, each of other bytes."""
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", MIB)
    with open_disk(path) as disk:
        for number, name in enumerate(["2", "precious", "1", "5", "three"], 1):
            disk.write(0, bytes([number]) * 512)
            disk.snapshots.create(name)
        disk.write(0, b"\xff" * 512)
    return path


WORDS = [
    "1", "2", "3", "4", "5", "6", "three", "precious", "snapshot.id=2", "snapshot.name=2",
    "snapshot.id=3,snapshot.name=1", "snapshot.id=1,snapshot.name=1", "snapshot.id=three",
]  # fmt: skip


def peer(*words):
    return subprocess.run(["qemu-img", *words], capture_output=True, timeout=60, check=False)


@pytest.mark.peer
@pytest.mark.parametrize("text", WORDS)
def test_read_as_qemu_img_reads(text, image, tmp_path, qemu_img):
    theirs = peer("convert", "-l", text, "-O", "raw", image, tmp_path / "raw")
    try:
        with open_disk(image, read_only=True, options={"snapshot": text}) as disk:
            ours = disk.read(0, 512)
    except NotFoundError:
        assert theirs.returncode
        return
    assert not theirs.returncode
    assert ours == (tmp_path / "raw").read_bytes()[:512]


@pytest.mark.peer
@pytest.mark.parametrize("text", [word for word in WORDS if "=" not in word])
@pytest.mark.parametrize("verb", ["apply", "delete"])
def test_changed_as_qemu_img_changes(verb, text, image, tmp_path, qemu_img):
    other = tmp_path / "other.qcow2"
    other.write_bytes(image.read_bytes())
    theirs = peer("snapshot", f"-{verb[0]}", text, other)
    with open_disk(image) as disk:
        try:
            getattr(disk.snapshots, verb)(text)
        except NotFoundError:
            assert theirs.returncode
            return
        assert not theirs.returncode
        ours = [one.id for one in disk.snapshots.list()], disk.read(0, 512)
    with open_disk(other) as disk:
        assert ours == ([one.id for one in disk.snapshots.list()], disk.read(0, 512))
