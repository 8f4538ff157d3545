"""Disks of machines that do not run: saved, and taken back."""

import pytest

from ringzero.control.host import claims, client
from ringzero.control.host.records import save
from ringzero.disk import open_disk
from ringzero.errors import ConflictError, DiskError, RingzeroError, StateError
from ringzero.records import replace
from ringzero.vm.saved.store import Store
from tests.control.fake import config

pytestmark = pytest.mark.usefixtures("root")
SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"one".ljust(SIZE, b"\0"))
    return path


@pytest.fixture
def web(disk):
    claims.define(claims.create("web", config(disks=[f"{disk},format=raw"])))
    return client.machine("web")


def saved(machine, name="s"):
    identifier = machine.snapshot(name, str(Store().root))
    found = Store().get(name)
    assert found.identifier == identifier
    return found


def test_taken_back_without_a_start(web, disk):
    snapshot = saved(web)
    assert snapshot.manifest.memory is None
    assert snapshot.manifest.config["name"] == "web"
    disk.write_bytes(b"two" * (SIZE // 3) + b"!")
    web.revert_disks(str(snapshot.path))
    assert disk.read_bytes() == b"one".ljust(SIZE, b"\0")
    assert web.inspect()["status"] == "defined"
    assert web.directory.machine().revert == ""


def test_what_is_refused_changes_nothing(web, disk, tmp_path):
    snapshot = saved(web)
    now = b"two".ljust(SIZE, b"\0")
    disk.write_bytes(now)
    # In use; of another disk; of another size; none at all.
    with open_disk(disk, "raw"), pytest.raises(DiskError):
        web.revert_disks(str(snapshot.path))
    other = tmp_path / "other.img"
    other.write_bytes(now)
    tree = web.next()
    web.redefine({**tree, "devices": [], "disks": [f"{other},format=raw"]})
    with pytest.raises(StateError, match="is of the disk"):
        web.revert_disks(str(snapshot.path))
    web.redefine(tree)
    disk.write_bytes(now + now)
    with pytest.raises(StateError, match="another size"):
        web.revert_disks(str(snapshot.path))
    with pytest.raises(RingzeroError):
        web.revert_disks(str(tmp_path / "nothing"))
    assert disk.read_bytes() == now + now
    assert other.read_bytes() == now
    assert web.directory.machine().revert == ""


def test_one_that_is_cut_short_is_noted(web, disk, monkeypatch):
    """`start` completes it, another `revert_disks` does, and nothing is saved before."""
    from ringzero.vm.saved import revert

    snapshot = saved(web)
    disk.write_bytes(b"two".ljust(SIZE, b"\0"))

    def full(*_):
        raise StateError("taken back in part only")

    with monkeypatch.context() as patch:
        patch.setattr(revert, "take_back", full)
        with pytest.raises(StateError, match="in part"):
            web.revert_disks(str(snapshot.path))
    assert web.directory.machine().revert == str(snapshot.path)
    with pytest.raises(ConflictError, match="died while"):
        saved(web, "t")
    web.revert_disks(str(snapshot.path))
    assert web.directory.machine().revert == ""
    assert disk.read_bytes()[:3] == b"one"
    saved(web, "t")


@pytest.mark.parametrize("of", ["snapshot", "parent"])
def test_a_copys_disks_went_with_it(web, of):
    snapshot = saved(web)
    path = web.directory.path / "machine.json"
    save(replace(web.directory.machine(), **{of: "some"}), path)
    with pytest.raises(ConflictError, match="was a copy"):
        web.revert_disks(str(snapshot.path))
    with pytest.raises(ConflictError, match="was a copy"):
        saved(web, "t")
