"""Shared folders as people write them."""

from pathlib import Path

import pytest

from ringzero.config.devices.share import ShareConfig
from ringzero.config.machine import MachineConfig
from ringzero.errors import ConfigError, InvalidValueError
from ringzero.plain import from_plain, to_plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("src:/src", ShareConfig(Path("src"), "/src")),
        (".:/a//b/:ro", ShareConfig(Path(), "/a/b", True)),
        ("/x:y:/m:rw", ShareConfig(Path("/x:y"), "/m")),
        ("/x,y:/m", ShareConfig(Path("/x,y"), "/m")),
        ("/x:/", None),
        ("/a=b,c:/m", None),
        ("/x:/m:ro,cache=none", ShareConfig(Path("/x"), "/m", True, "none")),
        ("/x:/m:owners=host", ShareConfig(Path("/x"), "/m", owners="host")),
        ("/x:/m:transport=9p", ShareConfig(Path("/x"), "/m", transport="9p")),
        ("type=bind,source=/x,target=/m,readonly", ShareConfig(Path("/x"), "/m", True)),
        ("src=/x,dst=/m", ShareConfig(Path("/x"), "/m")),
        ("src=/x,dst=/m,readonly=false,cache=none", ShareConfig(Path("/x"), "/m", cache="none")),
        ("type=volume,source=x,target=/m", None),
        ("source=/x", None),
        ("/x", None),
        (":/m", None),
        ("/x:m", None),
        ("/x:/m:wo", None),
        ("", None),
    ],
)  # fmt: skip
def test_parse(text, expected):
    if expected is None:
        with pytest.raises(InvalidValueError) as caught:
            ShareConfig.parse(text)
        assert caught.value.hint
    else:
        assert ShareConfig.parse(text) == expected


@pytest.mark.parametrize(
    ("share", "fault"),
    [
        (ShareConfig(Path("/x"), "m"), "no absolute path"),
        (ShareConfig(Path("/x"), "/a/../b"), "no absolute path"),
        (ShareConfig(Path("/x"), "/a\nb"), "line break"),
        (ShareConfig(Path("/x"), "/" + "a" * 5000), "too long"),
        (ShareConfig(Path("/x"), "/m", cache="some"), "known: none"),
        (ShareConfig(Path("/x"), "/m", owners="me"), "known: user"),
        (ShareConfig(Path("/x"), "/m", backend="no/kind"), "no kind of share"),
        (ShareConfig(Path("/x"), "/m", transport="nfs"), "known: auto, virtiofs, 9p"),
    ],
)
def test_faults(share, fault):
    assert any(fault in line for line in share.faults())


def test_shares_of_one_machine_are_one_device_and_have_places_of_their_own(tmp_path):
    shares = [f"{tmp_path}:/m{number}" for number in range(40)]
    config = MachineConfig.create(shares=shares)
    assert [share.target for share in config.shares] == [f"/m{n}" for n in range(40)]
    assert from_plain(MachineConfig, to_plain(config)) == config
    with pytest.raises(ConfigError, match="two shared folders at /m1"):
        MachineConfig.create(shares=["/x:/m1", "/y:/m1/"])


def test_all_shares_go_the_same_way(tmp_path):
    MachineConfig.create(shares=["/x:/a", "/x:/b:transport=9p", "later"])
    with pytest.raises(ConfigError, match="by 9p and virtiofs"):
        MachineConfig.create(shares=["/x:/a:transport=virtiofs", "/x:/b:transport=9p"])
    # Two devices where the guest is to choose.
    disks = [f"{tmp_path}/{number}" for number in range(16)]
    MachineConfig.create(disks=disks, share="/x:/a")
    with pytest.raises(ConfigError, match="18 disks and other devices"):
        MachineConfig.create(disks=disks, share="/x:/a:transport=both")


def test_room_is_made_where_an_agent_can_use_it(tmp_path):
    config = MachineConfig.create(agent=True)
    assert config.with_room_for_shares().shares == (ShareConfig.room(),)
    assert config.with_room_for_shares().with_room_for_shares().shares == (ShareConfig.room(),)
    own = MachineConfig.create()
    assert own.with_room_for_shares() is own
    full = MachineConfig.create(agent=True, disks=[f"{tmp_path}/{n}" for n in range(17)])
    assert full.with_room_for_shares() is full


def test_what_is_no_folder_is_told(tmp_path):
    missing = MachineConfig.create(share=f"{tmp_path}/none:/m")
    with pytest.raises(ConfigError, match="does not exist"):
        missing.check_files()
    with pytest.raises(ConfigError, match="neither"):
        MachineConfig.create(share="/dev/null:/m").check_files()
    MachineConfig.create(shares=[f"{tmp_path}:/m", f"{__file__}:/f"]).check_files()


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (share,) = MachineConfig.create(share=".:/m").absolute().shares
    assert share.path == tmp_path
