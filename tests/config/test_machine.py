from pathlib import Path

import pytest

from ringzero.config.machine import DiskConfig, MachineConfig, VsockConfig
from ringzero.errors import ConfigError, InvalidValueError


def test_spellings_of_people():
    config = MachineConfig.create(
        memory="1.5G", cpus=2, kernel="vmlinuz", initrd="i", disks=["a.img", "b.img,ro"]
    )
    assert config.memory == 3 << 29
    assert (config.kernel, config.initrd) == (Path("vmlinuz"), Path("i"))
    assert config.disks == (DiskConfig(Path("a.img")), DiskConfig(Path("b.img"), read_only=True))


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("x", DiskConfig(Path("x"))),
        ("x,ro", DiskConfig(Path("x"), True)),
        ("x,ro,format=qcow2", DiskConfig(Path("x"), True, "qcow2")),
        ("x,format=raw,ro", DiskConfig(Path("x"), True, "raw")),
        ("a,b", DiskConfig(Path("a,b"))),
        ("ro", DiskConfig(Path("ro"))),
        ("x,rw,ro", DiskConfig(Path("x,rw"), True)),
    ],
)
def test_disk_spelling(text, disk):
    assert DiskConfig.parse(text) == disk


@pytest.mark.parametrize("text", ["", ",ro", ",format=raw"])
def test_disk_without_a_file(text):
    with pytest.raises(InvalidValueError):
        DiskConfig.parse(text)


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
        ({"disks": ["x"] * 17}, "17 disks"),
        ({"disks": ["x", "x,ro"]}, "attached twice"),
        ({"disks": ["x,format=a/b"]}, "no format"),
        ({"memory": "much"}, "not a size"),
        ({"color": "red"}, "no field is called 'color'"),
        ({"disks": 5}, "disks:"),
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


def test_links_survive_being_written_down(tmp_path):
    """In a machine's directory and in a snapshot, as JSON, with absolute paths."""
    import json

    from ringzero.control.host.records import config_from_dict, config_to_dict
    from ringzero.vm.saved.snapshot import config_tree

    config = MachineConfig.create(
        vsock=VsockConfig(tmp_path / "odd,cid=5", 9), net=f"socket={tmp_path}/c,listen,mtu=1280"
    )
    for tree in (config_to_dict(config), config_tree(config)):
        assert config_from_dict(json.loads(json.dumps(tree))) == config
    relative = config_to_dict(MachineConfig.create(vsock="v", net="socket=c"))
    assert relative["vsock"]["path"] == str(Path("v").absolute())
    assert relative["net"]["target"] == str(Path("c").absolute())


def test_interrupt_lines_are_counted(tmp_path):
    disks = [f"{tmp_path}/{n},ro" for n in range(16)]
    MachineConfig.create(disks=disks, net="none")
    with pytest.raises(ConfigError, match="18 disks and other devices"):
        MachineConfig.create(disks=disks, net="none", vsock="/tmp/x")
