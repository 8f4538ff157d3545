"""Other releases of Debian, and other programs as their first process: they boot from their disks
alone, commands run in them, and they shut down in order. Opt-in: tests/vm/debian.py.
"""

import pytest

from tests.vm.debian import MARKS, disk_of, ringzero, trees

__all__ = ["ringzero", "trees"]
pytestmark = MARKS
BASE = "linux-image-cloud-amd64,initramfs-tools,udev,netbase,iproute2"
RELEASES = {"bullseye": "11.", "trixie": "13."}
# By name: packages, and what the first process is called.
INITS = {
    "sysvinit": ("sysvinit-core", "init"),
    "openrc": ("sysvinit-core,openrc", "init"),
    "runit": ("runit-init", "runit"),
}


def check(ringzero, disk):
    """Start a machine, and have it run commands, take a file and end; return what it is."""
    ringzero(
        *("run", "-d", "--name", "web", "--memory", "1G", "--disk", f"{disk},format=raw"), "--agent"
    )
    found = ringzero("exec", "web", "cat", "/proc/1/comm", "/etc/debian_version")
    assert ringzero("exec", "web", "id", "-un") == "root\n"
    ringzero("exec", "web", "sh", "-c", "exit 5", status=5)
    ringzero("cp", disk.parent / "proof", "web:/root/proof")
    assert ringzero("exec", "web", "cat", "/root/proof") == "proof\n"
    ringzero("stop", "--timeout", "300", "web")
    assert "reboot: Power down" in ringzero("logs", "web")
    return found.splitlines()


@pytest.mark.parametrize("suite", RELEASES)
def test_other_releases(trees, ringzero, tmp_path, suite):
    tree = trees.get(suite, f"{BASE},systemd-sysv,dbus", suite)
    (tmp_path / "proof").write_text("proof\n")
    first, version = check(ringzero, disk_of(tree, tmp_path, "ext4"))
    assert first == "systemd"
    assert version.startswith(RELEASES[suite])


@pytest.mark.parametrize("name", INITS)
def test_other_first_processes(trees, ringzero, tmp_path, name):
    packages, called = INITS[name]
    tree = trees.get(name, f"{BASE},{packages}")
    (tmp_path / "proof").write_text("proof\n")
    first, _ = check(ringzero, disk_of(tree, tmp_path, "ext4"))
    assert first == called
