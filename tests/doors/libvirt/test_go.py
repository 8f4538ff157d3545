"""An unmodified go-libvirt against the door, by a small program."""

import subprocess
from pathlib import Path

import pytest

from ringzero.control.host import client
from tests.doors import fetched
from tests.doors.libvirt.test_virsh import virsh

__all__ = ["virsh"]
SOURCE = Path(__file__).with_name("goclient")
pytestmark = [pytest.mark.peer, pytest.mark.doors]


def test_storage_machines_events_and_snapshots(virsh, tmp_path):
    program = fetched.go_program(SOURCE)
    done = subprocess.run(
        [program, tmp_path / "lv", tmp_path / "pool"], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("right\n", 0), done.stderr
    assert client.host().machines() == []
