"""Unmodified vagrant with vagrant-libvirt: a Debian guest up, and what follows, without root.

For `make doors`: mmdebstrap installs Debian, of which ringzero makes a box.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doors.libvirt.daemon import Daemon
from tests.image.fs.made import tool

_GEMS = Path("/usr/share/rubygems-integration/all/gems")
pytestmark = [
    pytest.mark.doors,
    pytest.mark.peer,
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        shutil.which("vagrant") is None or not list(_GEMS.glob("vagrant-libvirt-*")),
        reason="vagrant and vagrant-libvirt are Debian's",
    ),
]
PACKAGES = (
    "systemd-sysv,udev,dbus,openssh-server,sudo,iproute2,linux-image-cloud-amd64,initramfs-tools"
)
# What a box has (vagrantup.com, "Creating a Base Box"): a user with vagrant's key, sudo, DHCP.
SET_UP = """#!/bin/sh -e
chroot "$1" useradd -m -s /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$1/etc/sudoers.d/vagrant"
mkdir -m 700 "$1/home/vagrant/.ssh"
install -m 600 {key} "$1/home/vagrant/.ssh/authorized_keys"
chroot "$1" chown -R vagrant:vagrant /home/vagrant/.ssh
printf '[Match]\\nName=e*\\n[Network]\\nDHCP=ipv4\\n[DHCPv4]\\nClientIdentifier=mac\\n' \
>"$1/etc/systemd/network/e.network"
chroot "$1" systemctl -q enable systemd-networkd
echo boxed >"$1/etc/hostname"
echo 127.0.0.1 localhost boxed >"$1/etc/hosts"
: >"$1/etc/machine-id"
"""
# The user's own, beside which a project's need say nothing.
SETTINGS = """
Vagrant.configure("2") do |config|
  config.vm.provider :libvirt do |libvirt, override|
    libvirt.uri = "{uri}"
    override.ssh.proxy_command = "{python} -m ringzero ssh --stdio --port %p %h"
  end
end
"""
PROJECT = 'Vagrant.configure("2") do |config|\n  config.vm.box = "boxed"\nend\n'


@pytest.fixture
def daemon(tmp_path):
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def box(daemon, tmp_path):
    """A box that ringzero has made of Debian."""
    (key,) = _GEMS.glob("vagrant-2*/keys/vagrant.pub")
    hook, tree, vmfile = tmp_path / "hook", tmp_path / "tree.tar", tmp_path / "box" / "Vmfile"
    hook.write_text(SET_UP.format(key=key))
    hook.chmod(0o755)
    subprocess.run(
        [
            *(tool("mmdebstrap"), "--variant=minbase", f"--include={PACKAGES}"),
            *(f"--customize-hook={hook}", "bookworm", tree),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=1500, check=True,
    )  # fmt: skip
    vmfile.parent.mkdir()
    vmfile.write_text('FROM test-vagrant-tree:1\nCMD ["/sbin/init"]\nMEMORY 512M\n')
    daemon.ringzero("image", "import", tree, "test-vagrant-tree:1")
    daemon.ringzero("image", "build", "-t", "test-vagrant-box:1", vmfile.parent)
    daemon.ringzero("image", "export", "test-vagrant-box:1", tmp_path / "b.box", "--cpus", 1)
    return tmp_path / "b.box"


@pytest.fixture
def vagrant(daemon, box, tmp_path):
    """Run a command in the project's folder; return what it printed."""
    project, settings = tmp_path / "project", tmp_path / ".vagrant.d" / "Vagrantfile"
    project.mkdir()
    settings.parent.mkdir()
    settings.write_text(SETTINGS.format(uri=daemon.uri, python=sys.executable))
    (project / "Vagrantfile").write_text(PROJECT)

    def run(*words):
        began = time.monotonic()
        done = subprocess.run(
            ["vagrant", *map(str, words)],
            cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
            env={**daemon.environment, "VAGRANT_DEFAULT_PROVIDER": "libvirt"},
        )  # fmt: skip
        shown = " ".join(map(str, words[:2]))
        print(f"vagrant {shown}: {time.monotonic() - began:.1f} s")
        assert done.returncode == 0, (done.stdout[-3000:], done.stderr, daemon.log.read_text())
        return done.stdout

    run("box", "add", "--name", "boxed", box)
    return run


def test_a_box_from_up_to_destroy(vagrant, daemon):
    assert "Machine booted and ready!" in vagrant("up")
    assert "running (libvirt)" in vagrant("status")
    # Ours, under the name that the project gives it; its address is of the network's leases.
    (summary,) = [n for n in daemon.networks() if n["name"] == "vagrant-libvirt"]
    (member,) = summary["machines"]
    assert member["name"] == "project_default"
    said = vagrant("ssh", "-c", "hostname; ip -4 -br addr show; sudo id -u; sudo touch /root/kept")
    assert said.splitlines()[0] == "boxed"
    assert f"{member['address']}/24" in said
    assert said.splitlines()[-1] == "0"
    told = vagrant("ssh-config")
    assert f"HostName {member['address']}" in told and "ProxyCommand" in told

    vagrant("suspend")
    assert "paused (libvirt)" in vagrant("status")
    vagrant("resume")
    vagrant("snapshot", "save", "one")
    vagrant("ssh", "-c", "sudo rm /root/kept; sync")
    assert "one" in vagrant("snapshot", "list").split()
    vagrant("snapshot", "restore", "one")
    assert "kept" in vagrant("ssh", "-c", "sudo ls /root").split()
    vagrant("snapshot", "delete", "one")
    assert "one" not in vagrant("snapshot", "list").split()

    vagrant("halt")
    assert "shutoff (libvirt)" in vagrant("status")
    vagrant("up")
    assert "kept" in vagrant("ssh", "-c", "sudo ls /root").split()
    vagrant("reload")
    vagrant("halt", "--force")
    vagrant("destroy", "-f")
    assert "not created (libvirt)" in vagrant("status")
    assert daemon.ringzero("ps", "-aq") == ""
    # What the machine has no part for was told.
    assert "project_default: devices/graphics: kept, and not carried out" in daemon.log.read_text()
