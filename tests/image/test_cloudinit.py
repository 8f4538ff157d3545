"""What cloud-init is given: refused where it would be passed over in silence."""

import json

import pytest
import yaml

from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.image.cloudinit import Seed
from ringzero.image.fatimage import fat_image
from ringzero.image.fs.contract import open_file_system
from tests.image.fs.made import part, run

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8dGmGXAMPLE me@here"


def seed(tmp_path, **texts):
    given = {}
    for name, text in texts.items():
        if name == "hostname":
            given[name] = text
            continue
        path = tmp_path / name
        path.write_text(text)
        given[name] = [str(path)] if name == "keys" else str(path)
    return Seed.read(**given)


def test_the_disk_holds_what_was_given(tmp_path):
    user = "#cloud-config\npackages: [git]\n"
    network = "version: 2\nethernets: {eth0: {dhcp4: true}}\n"
    made = seed(
        tmp_path,
        user_data=user,
        keys=f"# mine\n{KEY}\n",
        hostname="web.lab",
        network_config=network,
    )
    files = open_file_system(part(made.image()))
    assert (files.name, files.label) == ("FAT", "CIDATA")
    names = ["meta-data", "network-config", "user-data", "vendor-data"]
    assert files.listing("/") == names
    assert files.read("/user-data") == user.encode()
    assert files.read("/network-config") == network.encode()
    meta = json.loads(files.read("/meta-data"))
    assert meta["public-keys"] == [KEY]
    assert meta["local-hostname"] == "web.lab"


def vendor(files):
    """Return the parts of the vendor data."""
    first, _, text = files.read("/vendor-data").decode().partition("\n")
    assert first == "#cloud-config-archive"
    return yaml.safe_load(text)


def test_a_key_is_for_root_too(tmp_path):
    """Images of clouds turn root away, and `ringzero ssh` is root; without keys nothing changes."""
    made = seed(tmp_path, keys=KEY)
    (part_,) = vendor(open_file_system(part(made.image())))
    assert part_["type"] == "text/cloud-config"
    assert yaml.safe_load(part_["content"]) == {"disable_root": False}
    plain = open_file_system(part(seed(tmp_path, hostname="a").image()))
    assert plain.listing("/") == ["meta-data", "user-data"]


def test_the_same_content_is_the_same_instance(tmp_path):
    one, same = seed(tmp_path, hostname="a"), seed(tmp_path, hostname="a")
    other = seed(tmp_path, hostname="b")
    assert one.image() == same.image()
    assert json.loads(one.meta_data)["instance-id"] != json.loads(other.meta_data)["instance-id"]


def test_the_agent_comes_along(tmp_path):
    made = Seed.read(hostname="a", agent=True)
    files = open_file_system(part(made.image()))
    (hook,) = vendor(files)
    assert hook["type"] == "text/cloud-boothook"
    assert hook["content"].startswith("#cloud-boothook\n#!/bin/sh\n")
    names = files.listing("/")
    assert {"agent-init", "agent-busybox", "agent-relay", "agent-launch", "meta-data"} <= {*names}
    assert files.read("/agent-busybox")[:4] == b"\x7fELF"
    script = tmp_path / "hook"
    script.write_text(hook["content"])
    run("sh", "-n", script)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"user_data": "#cloud-config\npackages: [git\n"}, "line 3.*no valid YAML"),
        ({"user_data": "#cloud-config\n- a\n- b\n"}, "a list where"),
        ({"user_data": "packages: [git]\n"}, "does not know what it is"),
        ({"user_data": "#cloud-config\na: " + "[" * 3000}, "YAML"),
        ({"network_config": "ethernets: {}\n"}, "version 1 or 2"),
        ({"network_config": "version: 3\n"}, "version 1 or 2"),
        ({"keys": "-----BEGIN OPENSSH PRIVATE KEY-----\n"}, "private key"),
        ({"keys": "hello\n"}, "no public key"),
        ({"keys": ""}, "no public key"),
        ({"hostname": "-x"}, "no host name"),
        ({"hostname": "a b"}, "no host name"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, given, fault):
    with pytest.raises(InvalidValueError, match=fault):
        seed(tmp_path, **given)


@pytest.mark.parametrize("text", ["#!/bin/sh\n: [", "#cloud-config\n", "## template: jinja\n#c\n"])
def test_what_cloud_init_takes_is_taken(tmp_path, text):
    assert seed(tmp_path, user_data=text).user_data == text.encode()


def test_a_missing_file_is_told():
    with pytest.raises(MissingFileError, match="/none does not exist"):
        Seed.read(user_data="/none")


@pytest.mark.peer
@pytest.mark.parametrize("size", [0, 1, 511, 512, 5000, 300_000, 4_000_000])
def test_fsck_finds_nothing_wrong(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    content = {"user-data": data[:size], "a name that is longer than 26 characters": b"x"}
    path = tmp_path / "disk"
    path.write_bytes(fat_image(content, "cidata"))
    run("fsck.vfat", "-n", path)
    assert run("mtype", "-i", path, "::/user-data") == data[:size]
    files = open_file_system(part(path.read_bytes()))
    assert files.read("/user-data") == data[:size]
    assert files.read("/a name that is longer than 26 characters") == b"x"


def test_too_much_is_told():
    with pytest.raises(InvalidValueError, match="too much"):
        fat_image({"a": bytes(140 << 20)}, "cidata")
