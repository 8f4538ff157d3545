"""Unmodified virsh by ssh: its own way to a socket of libvirt's protocol on another host."""

import os
import shutil
import subprocess

import pytest

from tests.control.fake import start
from tests.doors.serving import Served


def test_virsh_comes_by_ssh(sshd, tmp_path):
    for program in ("virsh", "nc"):
        if shutil.which(program) is None:
            pytest.skip(f"this host has no {program}")
    start("web")
    with Served(tmp_path / "serve", libvirt=[str(tmp_path / "virt.sock")]) as served:

        def virsh(*words, code=0):
            url = f"ringzero+ssh://127.0.0.1:{sshd.port}/session"
            url += f"?socket={served.path}&proxy=netcat&no_tty=1"
            environment = os.environ | {"HOME": str(tmp_path)}
            done = subprocess.run(
                ["virsh", "-c", url, *words],
                env=environment, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert done.returncode == code, done
            return done.stdout

        assert virsh("list", "--name").split() == ["web"]
        virsh("suspend", "web")
        assert virsh("domstate", "web").strip() == "paused"
        virsh("dominfo", "nobody", code=1)
