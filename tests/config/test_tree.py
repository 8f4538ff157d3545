"""Descriptions survive being written down, today's and those of 0.1.0; nonsense is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.config.device import DEVICE_CONFIGS
from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.vsock import VsockConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.errors import ConfigError

# As commit 86469b2 wrote it into machine.json.
OLD = json.loads("""
{"name": "web", "memory": 268435456, "cpus": 2, "board": "microvm", "engine": "soft",
 "cpu": "x86-64-v2", "kernel": "/k", "initrd": null, "command_line": "quiet",
 "disks": [{"path": "/a", "read_only": false, "format": "raw"},
           {"path": "/b", "read_only": true, "format": null}],
 "agent": true, "vsock": {"path": "/s", "cid": 7, "base": "/t"},
 "net": {"network": "socket", "target": "/c", "listen": true, "mac": null, "mtu": 9000}}
""")


def test_every_kind_survives(tmp_path):
    config = MachineConfig.create(
        kernel=tmp_path / "kernel",
        disks=[f"{tmp_path}/a,ro", f"{tmp_path}/b,format=qcow2"],
        vsock=VsockConfig(tmp_path / "odd,cid=5", 9),
        nets=["none", f"socket={tmp_path}/c,listen,mtu=1280"],
        shares=[f"{tmp_path}:/m:ro"],
        balloon="64M,oom,stats=2,reporting",
        pmem=f"{tmp_path}/p,ro",
    )
    assert {device.kind for device in config.devices} == set(DEVICE_CONFIGS.names())
    assert config_from_tree(json.loads(json.dumps(config_to_tree(config)))) == config


def test_paths_become_absolute():
    tree = config_to_tree(MachineConfig.create(kernel="k", disk="d", vsock="v", net="socket=c"))
    disk, net, vsock = tree["devices"]
    assert tree["kernel"] == str(Path("k").absolute())
    assert disk["path"] == str(Path("d").absolute())
    assert vsock["path"] == str(Path("v").absolute())
    assert net["target"] == str(Path("c").absolute())
    none = config_to_tree(MachineConfig.create(net="none"))
    assert none["devices"][0] == {"kind": "net", **none["devices"][0], "target": ""}


def test_what_0_1_0_wrote_is_read():
    config = config_from_tree(OLD)
    assert (config.name, config.memory, config.cpus, config.agent) == ("web", 1 << 28, 2, True)
    assert [(str(d.path), d.read_only, d.format) for d in config.disks] == [
        *[("/a", False, "raw"), ("/b", True, None)]
    ]
    assert config.vsock == VsockConfig(Path("/s"), 7, Path("/t"))
    assert config.nets == (NetConfig("socket", "/c", True, None, 9000),)
    # The guest finds them where it found them then.
    assert [device.kind for device in config.devices] == ["disk", "disk", "vsock", "net"]
    assert config_from_tree({**OLD, "vsock": None, "net": None, "disks": []}).devices == ()
    assert config_from_tree(config_to_tree(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": "red"}, "machine: unknown fields: color"),
        ({"memory": "1G"}, "machine.memory: expected"),
        ({"cpus": True}, "machine.cpus: expected"),
        ({"disks": [{"path": "/a", "odd": 1}]}, r"machine.devices\[0\]: unknown fields: odd"),
        ({"disks": [{}]}, r"machine.devices\[0\]: missing fields: path"),
        ({"disks": 5}, "machine: no form of MachineConfig"),
        ({"net": {"network": 5}}, r"machine.devices\[3\].network: expected"),
        ({"vsock": {"path": ""}}, r"machine.devices\[2\].path: expected a path"),
        ({"devices": [{"kind": "../x"}]}, r"machine.devices\[0\]: no device called '../x'"),
        ({"cpus": 999}, "999 CPUs"),
    ],
)
def test_nonsense_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_tree({**OLD, **change})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = [*OLD, *config_to_tree(MachineConfig()), "odd"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4), st.booleans())
def test_any_plain_data_is_read_or_refused(junk, old):
    tree = {**(OLD if old else config_to_tree(MachineConfig())), **junk}
    try:
        config = config_from_tree(tree)
    except ConfigError:
        return
    # Paths are made absolute when they are written.
    written = config_to_tree(config)
    assert config_to_tree(config_from_tree(written)) == written
