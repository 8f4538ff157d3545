"""Exported snapshots: a round trip, and archives that strangers made."""

import io
import os
import random
import tarfile

import pytest
import zstandard

from ringzero.config.machine import MachineConfig
from ringzero.errors import InvalidValueError, RingzeroError, StateError
from ringzero.vm.saved import transfer
from ringzero.vm.saved.snapshot import MANIFEST
from ringzero.vm.saved.store import Store
from tests.vm.seeds import ancestors, content, save

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "snapshots")


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "elsewhere")


@pytest.fixture
def exported(store, tmp_path):
    """A snapshot with a delta, and its export."""
    one = save(store, tmp_path, "one", b"one")
    two = save(store, tmp_path, "two", b"two", ancestors(one))
    assert two.manifest.memory.delta is not None
    path = tmp_path / "two.rzs"
    assert transfer.export(two, path) == path.stat().st_size < 1 << 20
    return two, path


def members(path):
    """Return the archive's members, as (name, bytes)."""
    data = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive]


def pack(path, items, kind=tarfile.REGTYPE):
    """Write an archive; an item's third value, if there is one, is the size that it claims."""
    raw = io.BytesIO()
    for name, data, *claim in items:
        info = tarfile.TarInfo(name)
        info.size, info.type = (claim or [len(data)])[0], kind
        if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info.linkname = "/etc/passwd"
        raw.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    path.write_bytes(zstandard.ZstdCompressor().compress(raw.getvalue() + bytes(1024)))


def refused(store, path):
    with pytest.raises(StateError) as caught:
        transfer.import_file(store, path)
    assert store.names() == [] and not list(store.root.glob(".partial-*"))
    assert list(store.blobs.iterdir()) == []
    return caught.value


def test_round_trip(exported, other):
    two, path = exported
    taken = transfer.import_file(other, path)
    assert taken.check() == [] and taken.identifier == two.identifier
    with taken.seed() as ours, two.seed() as theirs:
        assert content(ours.memory) == content(theirs.memory)
        assert ours.state == theirs.state and ours.config == theirs.config
        assert ours.disks[0].read(0, 1 << 20) == theirs.disks[0].read(0, 1 << 20)


def test_what_an_export_replaces(exported, other, tmp_path):
    two, _ = exported
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    transfer.export(two, link)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o600
    assert transfer.import_file(other, real).identifier == two.identifier
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "snapshots"):
        before = (tmp_path / name).stat()
        with pytest.raises(InvalidValueError):
            transfer.export(two, tmp_path / name)
        assert (tmp_path / name).stat().st_ino == before.st_ino


def test_into_the_same_store_it_is_another_one(exported, store):
    two, path = exported
    with pytest.raises(InvalidValueError, match="two"):
        transfer.import_file(store, path)
    again = transfer.import_file(store, path, "again")
    assert again.identifier != two.identifier and again.manifest.blobs == two.manifest.blobs
    store.remove("two")
    assert again.check() == []


def test_standard_tools_read_it(exported):
    two, path = exported
    names = [name for name, _ in members(path)]
    assert names == [
        "manifest.json",
        "state.json",
        *(f"blobs/{d}" for d in sorted(two.manifest.blobs)),
    ]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "blobs/../../x", "a/b", "lock"])
def test_the_name_inside_leads_nowhere(exported, other, tmp_path, name):
    _, path = exported
    items = members(path)
    forged = tmp_path / "forged.rzs"
    pack(forged, [(name, b"x"), *items])
    refused(other, forged)
    pack(forged, [items[0], (name, b"x"), *items[1:]])
    refused(other, forged)
    with pytest.raises(InvalidValueError):
        transfer.import_file(other, path, name)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"x", b"L"]
)
def test_members_of_other_kinds(exported, other, tmp_path, kind):
    forged = tmp_path / "forged.rzs"
    pack(forged, members(exported[1]), kind)
    refused(other, forged)


def test_sizes_that_lie(exported, other, tmp_path):
    items = members(exported[1])
    forged = tmp_path / "forged.rzs"
    for index in range(len(items)):
        for claim in (1 << 50, len(items[index][1]) + 1):
            pack(forged, [(*item, claim) if i == index else item for i, item in enumerate(items)])
            refused(other, forged)


def test_other_content_under_a_digest(exported, other, tmp_path):
    items = members(exported[1])
    forged = tmp_path / "forged.rzs"
    for index in range(1, len(items)):
        name, data = items[index]
        pack(forged, [*items[:index], (name, b"!" + data[1:]), *items[index + 1 :]])
        refused(other, forged)


def test_missing_and_swapped_members(exported, other, tmp_path):
    items = members(exported[1])
    forged = tmp_path / "forged.rzs"
    for index in range(len(items)):
        pack(forged, items[:index] + items[index + 1 :])
        refused(other, forged)
    pack(forged, [*items[:2], *reversed(items[2:])])
    refused(other, forged)


def test_damaged_archives(exported, other, tmp_path):
    """Cut or with a flipped bit anywhere: refused, and nothing is left."""
    whole = exported[1].read_bytes()
    generator = random.Random(3)
    forged = tmp_path / "forged.rzs"
    forged.write_bytes(b"")
    refused(other, forged)
    for _ in range(6 * FUZZ):
        at = generator.randrange(len(whole))
        forged.write_bytes(whole[:at])
        refused(other, forged)
        flipped = bytearray(whole)
        flipped[at] ^= 1 << generator.randrange(8)
        forged.write_bytes(flipped)
        try:
            taken = transfer.import_file(other, forged)
        except RingzeroError:
            assert other.names() == []
        else:  # a bit that means nothing, in the frame's header
            assert taken.check() == []
            other.remove(taken.name)


def test_a_bomb_does_not_go_off(other, tmp_path):
    """A gigabyte of zeroes where the manifest must be is not read."""
    path = tmp_path / "bomb.rzs"
    compressor = zstandard.ZstdCompressor(level=1)
    with path.open("wb") as raw, compressor.stream_writer(raw) as out:
        info = tarfile.TarInfo(MANIFEST)
        info.size = 1 << 30
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(1 << 6):
            out.write(bytes(1 << 20))
    refused(other, path)


def test_what_lives_on_files_of_the_host_stays(store, tmp_path):
    fixed = tmp_path / "fixed.img"
    fixed.write_bytes(bytes(1 << 20))
    config = MachineConfig.create(memory="32M", disks=[f"{fixed},ro,format=raw"])
    snapshot = store.save_disks(config, "cold")
    with pytest.raises(InvalidValueError, match="fixed"):
        transfer.export(snapshot, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_snapshot_is_not_exported(exported, tmp_path):
    two, _ = exported
    blob = two.blob(two.manifest.memory.base)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(0x1000)
        file.write(b"S")
    with pytest.raises(StateError):
        transfer.export(two, tmp_path / "out")
    assert not (tmp_path / "out").exists()
