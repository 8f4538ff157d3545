import json
import shutil

import pytest

from ringzero.cli.main import main
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client, directory
from ringzero.errors import ConflictError
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from ringzero.settings import CACHE_DIR
from ringzero.vm.saved.templates import Entry, Templates
from tests.image.oci.images import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_build(machines, capsys):
    assert main(["image", "build"]) == 0
    assert "micro  000000000000  5 B" in capsys.readouterr().out
    assert main(["image", "build", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["packages"] == ["busybox=1"]
    assert main(["image", "build", "other"]) == 3


def test_list_and_remove_nothing(capsys):
    assert main(["image", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["image", "rm", "micro"]) == 3
    assert "no image called 'micro'" in capsys.readouterr().err


def test_action_is_needed(capsys):
    assert main(["image"]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_images_that_machines_need_stay(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    layout, name = tmp_path / "layout", f"oci:{tmp_path}/layout"
    found = pulled(layout, b"1", name)
    config = MachineConfig.create(
        name="web", kernel=tmp_path / "kernel", disks=[f"{found.root},ro,format=raw"]
    )
    claim = claims.create("web", config)
    claims.define(claim)
    assert main(["image", "rm", name]) == ConflictError.exit_code
    told = capsys.readouterr().err
    assert "is in use by web" in told and "ringzero rm web" in told and "--force" in told
    # Its name goes to another image; this one stays nevertheless.
    other = pulled(layout, b"2", name)
    assert main(["image", "prune"]) == 0
    assert found.root.exists()
    assert main(["image", "rm", name]) == 0
    assert found.root.exists() and not other.root.exists()
    assert main(["image", "rm", "--force", found.digest[7:19]]) == 0
    assert not found.root.exists()
    directory.find("web").remove()
    found = pulled(layout, b"1", name)
    assert main(["image", "rm", name]) == 0


def pulled(layout, content, name):
    shutil.rmtree(layout, ignore_errors=True)
    Image([{"file": content}]).write_layout(layout)
    return pull(parse(name), cache=CACHE_DIR.get(), architecture="amd64")


def test_own_images_and_those_of_containers_are_one_list(cache, tmp_path, capsys):
    name = f"oci:{tmp_path}/layout"
    found = pulled(tmp_path / "layout", b"1", name)
    assert main(["image", "ls", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["digest"]) == ("container", found.digest)
    assert client.host().call("images", {}) == [told]


def test_images_show_what_their_saved_starts_take(cache, tmp_path, monkeypatch, capsys):
    pulled(tmp_path / "layout", b"1", f"oci:{tmp_path}/layout")
    (image,) = client.host().call("images", {})
    disk = {"kind": "disk", "path": image["root"]}

    def entry(name, devices):
        return Entry(name, 3 << 20, 0.0, {"kernel": "/some/kernel", "devices": devices})

    found = [entry("a" * 32, [disk]), entry("b" * 32, [disk]), entry("c" * 32, [])]
    broken = Entry("d" * 32, 1 << 20, 0.0, {}, "damaged")
    monkeypatch.setattr(Templates, "entries", lambda self: [*found, broken])
    assert main(["image", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  2 saved starts, 6 MiB",
        "  2 saved starts of no image here (ringzero template ls), 4 MiB",
    ]
    monkeypatch.setattr(Templates, "entries", lambda self: found[:1])
    assert main(["image", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["  1 saved start, 3 MiB"]


def test_export_refuses_what_it_cannot_do(cache, tmp_path, capsys):
    name = f"oci:{tmp_path}/layout"
    pulled(tmp_path / "layout", b"1", name)
    there = tmp_path / "there.qcow2"
    there.write_bytes(b"")
    for words, said in (
        (["-", "--format", "qcow2"], "not written to standard output"),
        ([str(there)], "exists"),
        ([str(tmp_path / "none" / "a.vhd")], "is no directory"),
        ([str(tmp_path / "a.vdi"), "--cpus", "0"], "1 to 255"),
        ([str(tmp_path / "a.vdi"), "--provider", "libvirt"], "no provider"),
        ([str(tmp_path / "a.tar"), "--size", "1G"], "of disks"),
        ([str(tmp_path / "a"), "--format", "iso"], "invalid choice"),
    ):
        assert main(["image", "export", name, *words]) == 2
        assert said in capsys.readouterr().err
    assert there.read_bytes() == b""
