"""Unmodified virt-install and virt-xml against the door."""

import os
import shutil
import subprocess

import pytest

from ringzero.control.host import client
from tests.doors.libvirt.test_virsh import virsh

__all__ = ["virsh"]
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("virt-install") is None, reason="virt-install is Debian's"),
]


@pytest.fixture
def tool(virsh, tmp_path):
    """Runs one of the tools, and returns what it printed."""

    def run(name, *words, uri=None, fails=False):
        done = subprocess.run(
            [name, "--connect", uri or virsh.words[-1], *map(str, words)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        )
        assert bool(done.returncode) is fails, done
        return done.stderr if fails else done.stdout

    return run


def install(tool, *more, **options):
    words = ("--name", "v1", "--memory", "64", "--vcpus", "1", "--osinfo", "detect=on,require=off")
    quiet = ("--graphics", "none", "--noautoconsole", "--network", "user", "--disk", "none")
    return tool("virt-install", *words, *quiet, *more, **options)


def test_a_machine_is_installed(tool, virsh, tmp_path):
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"")
    boot = ("--boot", f"kernel=/dev/null,initrd={initrd},cmdline=quiet")
    told = install(tool, "--import", *boot, "--print-xml")
    assert "<name>v1</name>" in told
    assert client.host().machines() == []
    install(tool, "--import", *boot)
    # Begun for one life, and then defined: it stays.
    (row,) = virsh.table("list", "--all")
    assert row[1:] == ["v1", "running"]
    assert "Persistent:     yes" in virsh("dominfo", "v1")
    config = client.machine("v1").next()
    assert (config["kernel"], config["initrd"]) == ("/dev/null", str(initrd))
    assert config["command_line"] == "quiet"
    assert "already in use" in install(tool, "--import", *boot, fails=True)
    tool("virt-xml", "v1", "--edit", "--memory", "128", "--define")
    assert client.machine("v1").next()["memory"] == 128 << 20
    folder = f"source.dir={tmp_path},target.dir=/data"
    tool("virt-xml", "v1", "--add-device", "--filesystem", folder, "--update")
    assert [share["target"] for share in client.machine("v1").shares()] == ["/data"]
    virsh("destroy", "v1")
    virsh("undefine", "v1")
    assert client.host().machines() == []


def test_a_disk_of_a_folder_that_is_no_pool_yet(tool, virsh, tmp_path):
    (tmp_path / "images").mkdir()
    disk = tmp_path / "images" / "a.img"
    disk.write_bytes(bytes(1 << 20))
    words = ("--name", "v2", "--memory", "64", "--osinfo", "detect=on,require=off")
    more = ("--graphics", "none", "--noautoconsole", "--network", "none", "--import")
    tool("virt-install", *words, *more, "--disk", f"path={disk},format=raw,bus=virtio")
    assert virsh.table("domblklist", "v2") == [["vda", str(disk)]]
    # virt-install makes it one unasked.
    assert ["images", "active", "yes"] in virsh.table("pool-list", "--all")
