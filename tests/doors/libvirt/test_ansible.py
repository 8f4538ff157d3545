"""Unmodified Ansible with the collection community.libvirt against the door."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from ringzero.control.host import client
from tests.doors import fetched
from tests.doors.libvirt.test_virsh import virsh

__all__ = ["virsh"]
PLAYBOOKS = Path(__file__).with_name("ansible")
# Its modules want libvirt's module, which is Debian's.
PYTHON = "/usr/bin/python3"


def _there():
    asked = [PYTHON, "-c", "import libvirt, lxml, pycdlib, yaml"]
    try:
        return subprocess.run(asked, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.peer,
    pytest.mark.doors,
    pytest.mark.skipif(
        not _there(), reason="python3-libvirt, -lxml, -pycdlib and -yaml are Debian's"
    ),
]


@pytest.fixture
def playbook(virsh, tmp_path):
    """Runs a playbook, and returns how many tasks did something, and how many changed something."""
    where = fetched.ansible()
    uri = virsh.words[-1]

    def run(name):
        words = ["-i", "localhost,", "-c", "local", "-e", f"uri={uri}", "-e", f"folder={tmp_path}"]
        done = subprocess.run(
            [where / "bin" / "ansible-playbook", *words, PLAYBOOKS / name],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=tmp_path,
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "ANSIBLE_COLLECTIONS_PATH": str(where / "collections"),
                "ANSIBLE_PYTHON_INTERPRETER": PYTHON,
                "ANSIBLE_NOCOLOR": "1",
            },
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        counts = re.search(r"ok=(\d+) +changed=(\d+)", done.stdout)
        return int(counts[1]), int(counts[2])

    return run


def test_machines_networks_and_pools(playbook, virsh, tmp_path):
    assert playbook("up.yml")[1] >= 8
    assert playbook("up.yml")[1] == 0
    (row,) = virsh.table("list", "--all")
    assert row[1:] == ["web", "running"]
    assert virsh.table("net-list") == [["lab", "active", "yes", "yes"]]
    assert ["images", "active", "yes"] in virsh.table("pool-list")
    playbook("commands.yml")
    assert playbook("up.yml")[1] == 0
    assert playbook("down.yml")[1] >= 5
    assert playbook("down.yml")[1] == 0
    assert client.host().machines() == []
    assert virsh.table("net-list", "--all") == []
    assert [row[0] for row in virsh.table("pool-list", "--all")] == ["default"]
    assert not (tmp_path / "images").exists()
