from pathlib import Path

import pytest

from ringzero.config.board import BOARD_LIMITS, BoardLimits
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.vsock import VsockConfig
from ringzero.config.machine import MachineConfig
from ringzero.errors import ConfigError


def test_spellings_of_people():
    config = MachineConfig.create(
        memory="1.5G", cpus=2, kernel="vmlinuz", initrd="i", disks=["a.img", "b.img,ro"]
    )
    assert config.memory == 3 << 29
    assert (config.kernel, config.initrd) == (Path("vmlinuz"), Path("i"))
    assert config.disks == (DiskConfig(Path("a.img")), DiskConfig(Path("b.img"), read_only=True))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"name": "a b"}, "name 'a b'"),
        ({"memory": 1 << 20}, "memory of 1 MiB"),
        ({"memory": 1 << 50}, "is outside"),
        ({"memory": (64 << 20) + 1}, "not a multiple"),
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 255}, "255 CPUs"),
        ({"engine": ""}, "no engine"),
        ({"board": "../x"}, "no board"),
        ({"initrd": "x"}, "initrd without a kernel"),
        ({"command_line": "x"}, "command line without a kernel"),
        ({"kernel": "k", "command_line": "x" * 3000}, "3000 bytes"),
        ({"kernel": "k", "command_line": "a\nb"}, "line break"),
        ({"disks": [f"{n}" for n in range(18)]}, "18 disks"),
        ({"disks": ["x", "x,ro"]}, "attached twice"),
        ({"disks": ["x,format=a/b"]}, "no format"),
        ({"memory": "much"}, "not a size"),
        ({"color": "red"}, "no field is called 'color'"),
        ({"disks": 5}, "disks:"),
        ({"cpus": "2"}, "cpus: '2' is not a whole number"),
        ({"agent": 1, "name": None}, "name: None is not a text"),
    ],
)
def test_faults(values, fault):
    with pytest.raises(ConfigError, match=fault):
        MachineConfig.create(**values)


def test_all_faults_together():
    with pytest.raises(ConfigError) as caught:
        MachineConfig.create(memory="much", cpus=0, engine="", color="red", disks=[",ro"])
    assert len(caught.value.faults) == 5


def test_same_disk_twice_read_only_is_fine():
    assert len(MachineConfig.create(disks=["x,ro", "x,ro"]).disks) == 2


def test_files_are_checked_together(tmp_path):
    (tmp_path / "directory").mkdir()
    config = MachineConfig.create(
        kernel=tmp_path / "none", initrd=tmp_path / "directory", disks=[str(tmp_path / "gone")]
    )
    with pytest.raises(ConfigError) as caught:
        config.check_files()
    assert len(caught.value.faults) == 3
    assert "is a directory" in caught.value.faults[1]


def test_a_device_is_spelled_by_its_kind_or_in_the_plural(tmp_path):
    nets = [NetConfig("none"), "socket=/tmp/lan"]
    one = MachineConfig.create(disk="a.img", nets=nets, vsock={"path": "/tmp/s", "cid": 7})
    two = MachineConfig.create(
        devices=[DiskConfig(Path("a.img")), "net=none"],
        net=NetConfig("socket", "/tmp/lan"),
        vsock=VsockConfig(Path("/tmp/s"), 7),
    )
    assert one == two
    assert [(number, device.kind) for number, device in one.numbered()] == [
        *[(0, "disk"), (0, "net"), (1, "net"), (0, "vsock")]
    ]
    assert (len(one.disks), len(one.nets), one.vsock.cid) == (1, 2, 7)
    assert MachineConfig.create(net=None, disks=()).devices == ()
    names = [device.name_of(number) for number, device in one.numbered()]
    assert names == ["disk0", "net", "net1", "vsock"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"devices": ["disk"]}, "no device in 'disk'"),
        ({"devices": ["sound=on"]}, "no device called 'sound'"),
        ({"devices": [{"kind": "disk"}]}, "missing fields: path"),
        ({"devices": [{"kind": "disk", "path": "x", "odd": 1}]}, "unknown fields: odd"),
        ({"devices": [{"kind": 5}]}, "expected a kind"),
        ({"net": DiskConfig(Path("x"))}, "is no net"),
        ({"nets": ["none,mac=02:00:00:00:00:01"] * 2}, "have the MAC address 02:00:00:00:00:01"),
        ({"nets": ["socket=/a,listen", "socket=/a,listen"]}, "listen at /a"),
        ({"nets": ["none"] * 9}, "9 devices of the kind net; a microvm takes 8"),
        ({"vsocks": ["/a", "/b"]}, "2 devices of the kind vsock; a microvm takes 1"),
        ({"disks": [f"{n}" for n in range(17)], "net": "none"}, "a microvm has room for 17"),
    ],
)
def test_faults_of_devices(values, fault):
    with pytest.raises(ConfigError, match=fault):
        MachineConfig.create(**values)


def test_limits_are_told_with_the_other_faults():
    with pytest.raises(ConfigError) as caught:
        MachineConfig.create(name="a b", cpus=999, disks=[f"{n}" for n in range(30)])
    assert len(caught.value.faults) == 3


def test_another_board_has_other_limits(monkeypatch):
    toy = BoardLimits("toy", 1 << 12, 1 << 20, 1, 10, 0)
    monkeypatch.setitem(BOARD_LIMITS._items, "toy", toy)
    assert MachineConfig.create(board="toy", memory="64K").cpus == 1
    with pytest.raises(ConfigError) as caught:
        MachineConfig.create(board="toy", cpus=2, disk="x", kernel="k", command_line="x" * 11)
    assert len(caught.value.faults) == 4
    # One that is not known here refuses by itself what it has no room for.
    assert MachineConfig.create(board="elsewhere", cpus=999).cpus == 999
