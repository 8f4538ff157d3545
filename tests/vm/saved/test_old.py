"""A snapshot that an older ringzero wrote (data/86469b2/README.md) is read and goes on."""

import shutil
import threading
from pathlib import Path

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.records import replace
from ringzero.vm.boot import OWN_AGENT
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store
from tests.board.kernels import elf
from tests.engine.fake import FakeEngine

OLD = Path(__file__).parent / "data" / "86469b2"
# Devices that the board has got since.
SINCE = {"vmclock"}


@pytest.fixture
def snapshot(tmp_path):
    """Return the snapshot in a store of its own: a restore writes beside it."""
    shutil.copytree(OLD, tmp_path / "store")
    return Store(tmp_path / "store").get("old")


def test_its_manifest(snapshot):
    config = snapshot.manifest.machine_config()
    assert (config.name, config.memory, config.agent) == ("old", 32 << 20, True)
    assert config.command_line == "quiet"
    (disk,) = config.disks
    assert (disk.path, disk.format, disk.read_only) == (Path("disk.img"), "raw", False)
    assert (config.vsock.path, config.vsock.cid) == (Path("/tmp/old/old.vsock"), 7)
    assert (config.nets[0].network, config.nets[0].mac) == ("none", "02:00:00:00:00:07")
    assert snapshot.check() == []


def test_its_state_fits_the_devices_of_today(snapshot, tmp_path, monkeypatch):
    """All of the tree but the vCPUs, which a scripted engine knows nothing of."""
    monkeypatch.chdir(tmp_path)
    Path("kernel").write_bytes(elf())
    Path("disk.img").write_bytes(bytes(8192))
    config = Identity(vsock=tmp_path / "socket").adopt(snapshot.manifest.machine_config())
    # The kernel here needs no agent brought along, as the snapshot's guest had its own.
    config = replace(config, command_line=f"{config.command_line} {OWN_AGENT}")
    devices = snapshot.state().tree["devices"]
    assert len(devices) == 19
    with Machine(config, engine=FakeEngine()) as machine:
        parts = dict(machine.board.stateful())
        assert parts.keys() == devices.keys() | SINCE
        for name, part in parts.items():
            if name in SINCE:
                continue
            state = from_tree(part.state_type, devices[name], name)
            part.restore(state)
            assert to_tree(part.save()).keys() >= devices[name].keys()


@pytest.mark.engine
def test_its_guest_goes_on(snapshot, tmp_path, monkeypatch):
    hertz = snapshot.state().tree["processor"]["tsc_hz"]
    monkeypatch.setattr("ringzero.engine.soft.engine.host_tsc_hz", lambda: hertz)
    heard, said = threading.Event(), bytearray()

    def hear(data):
        said.extend(data)
        heard.set()

    with snapshot.restore(Identity("copy", vsock=tmp_path / "socket")) as machine:
        machine.serial.on_output = hear
        machine.start()
        machine.serial.write(b"k")
        assert heard.wait(60)
        assert said == b"l"
        saved = machine.snapshot("new", store=Store(tmp_path / "store"))
    assert saved.manifest.disks[0].blob == snapshot.manifest.disks[0].blob
    assert saved.state().tree["devices"].keys() == snapshot.state().tree["devices"].keys() | SINCE
