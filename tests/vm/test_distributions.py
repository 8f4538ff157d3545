"""Debian itself, installed by mmdebstrap, boots from its disk alone, and cloud-init runs in it.
With the agent, commands, files and copies work in it, and it shuts down in order.

Opt-in: tests/vm/debian.py.
"""

import os

import pytest

from tests.image.fs.made import run, tool
from tests.vm.debian import MARKS, disk_of, ringzero, trees

__all__ = ["ringzero", "trees"]
pytestmark = MARKS
PACKAGES = (
    "linux-image-cloud-amd64,systemd-sysv,cloud-init,iproute2,udev,dbus,netbase,isc-dhcp-client,"
    "ifupdown,openssh-server"
)
# Reports on the serial line once the system is up, and switches it off.
REPORT = """#cloud-config
write_files:
- path: /etc/systemd/system/report.service
  content: |
    [Service]
    ExecStart=/bin/sh -c 'echo REPORTED $(systemctl is-system-running --wait; systemctl --failed \
--no-legend --plain; hostname; findmnt -no FSTYPE /) > /dev/ttyS0; systemctl poweroff'
runcmd:
- echo said-by-runcmd
- systemctl daemon-reload
- systemctl start --no-block report.service
"""
SHORT = "#cloud-config\nruncmd:\n- echo said-by-runcmd >/root/said\n"
SAID = "said-by-runcmd\nwebby\n"
COPIES = ("web", "web-1")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8dGmGXAMPLE me@here"
# Of the network that machines are on by themselves, an address that DHCP does not give.
NETWORK = """version: 2
ethernets:
  eth0:
    match: {name: "e*"}
    addresses: [10.0.2.77/24]
    gateway4: 10.0.2.2
    nameservers: {addresses: [10.0.2.3]}
"""
FAULTY = """#cloud-config
runcmd:
- [sh, -c, "exit 3"]
"""


@pytest.fixture
def installed(trees):
    """Return what installs Debian with an initrd of one kind, and returns its tree of files.

    A shell script runs that of initramfs-tools, systemd that of dracut.
    """

    def install(initrd):
        tree = trees.get(initrd, f"{PACKAGES},{initrd}")
        # What these would call (locales, btrfs-progs) is not installed.
        settings = tree / "etc/cloud/cloud.cfg"
        text = settings.read_text()
        settings.write_text(text.replace(" - locale\n", "").replace(" - resizefs\n", ""))
        return tree

    return install


@pytest.mark.parametrize(
    ("kind", "flags"), [("ext4", ""), ("btrfs", "rootfstype=btrfs"), ("xfs", "rootfstype=xfs")]
)
def test_debian_boots_from_its_disk_alone(installed, ringzero, tmp_path, kind, flags):
    disk = disk_of(installed("initramfs-tools"), tmp_path, kind, flags)
    user_data = tmp_path / "user-data"
    user_data.write_text(REPORT)
    said = ringzero(
        *("run", "--memory", "1G", "--disk", f"{disk},format=raw"),
        *("--cloud-init", user_data, "--hostname", "webby"),
    )
    assert "said-by-runcmd" in said
    # systemd writes there, too, between lines.
    assert f"REPORTED running webby {kind}\n" in said, said[-9000:]
    assert "reboot: Power down" in said
    assert not any((tmp_path / "data" / "cloud-init").iterdir())


@pytest.mark.parametrize("initrd", ["initramfs-tools", "dracut"])
def test_commands_copies_and_files_in_debian(installed, ringzero, tmp_path, initrd):
    disk = disk_of(installed(initrd), tmp_path, "ext4")
    user_data, key = tmp_path / "user-data", tmp_path / "key.pub"
    user_data.write_text(SHORT)
    key.write_text(f"{KEY}\n")
    ringzero(
        *("run", "-d", "--name", "web", "--memory", "1G", "--disk", f"{disk},format=raw"),
        *("--cloud-init", user_data, "--ssh-key", key, "--hostname", "webby", "--agent"),
    )
    state = ringzero("exec", "web", "systemctl", "is-system-running")
    assert state == "running\n", ringzero("exec", "web", "systemctl", "--failed")
    assert ringzero("exec", "web", "cat", "/root/said", "/etc/hostname") == SAID
    assert KEY in ringzero("exec", "web", "cat", "/root/.ssh/authorized_keys")
    (tmp_path / "in").write_bytes(os.urandom(100_000))
    ringzero("cp", tmp_path / "in", "web:/root/in")
    ringzero("cp", "web:/root/in", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    ringzero("fork", "web")
    drawn = [ringzero("exec", name, "od", "-An", "-tx8", "-N8", "/dev/urandom") for name in COPIES]
    assert drawn[0] != drawn[1]
    ringzero("rm", "-f", "web-1")
    ringzero("stop", "--timeout", "300", "web")
    assert "reboot: Power down" in ringzero("logs", "web")
    ringzero("rm", "web")
    assert not any((tmp_path / "data" / "cloud-init").iterdir())
    # Without the agent, the button.
    ringzero(
        *("run", "-d", "--name", "again", "--memory", "1G", "--disk", f"{disk},format=raw"),
        *("--cloud-init", user_data, "--hostname", "webby"),
    )
    ringzero("stop", "--timeout", "300", "again")
    assert "poweroff" in ringzero("ps", "-a")
    assert "reboot: Power down" in ringzero("logs", "again")


def test_ssh_and_an_address_of_ones_own(installed, ringzero, tmp_path):
    """sshd's key comes from cloud-init, and so does the address, which no DHCP gives."""
    disk = disk_of(installed("initramfs-tools"), tmp_path, "ext4")
    tool("ssh")
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    network = tmp_path / "network.yaml"
    network.write_text(NETWORK)
    ringzero(
        *("run", "-d", "--name", "web", "--memory", "1G", "--disk", f"{disk},format=raw"),
        *("--network-config", network, "--ssh-key", f"{key}.pub", "--hostname", "webby"),
    )
    said = ringzero("ssh", "-i", key, "web", "hostname; ip -4 -o addr show; cat /etc/resolv.conf")
    assert said.startswith("webby\n")
    assert "inet 10.0.2.77/24" in said and "10.0.2.15" not in said
    ringzero("ssh", "-i", key, "web", "exit 7", status=7)
    said = ringzero("ssh", "-i", key, "web", "ping -c1 -W5 10.0.2.2 || ip route")
    assert "0% packet loss" in said or "default via 10.0.2.2" in said
    ringzero("stop", "--timeout", "300", "web")


def test_what_cloud_init_could_not_do_is_told(installed, ringzero, tmp_path):
    disk = disk_of(installed("initramfs-tools"), tmp_path, "ext4")
    user_data = tmp_path / "user-data"
    user_data.write_text(FAULTY)
    told = ringzero(
        *("run", "-d", "--name", "web", "--memory", "1G", "--disk", f"{disk},format=raw"),
        *("--cloud-init", user_data, "--hostname", "webby"),
        status=125,
        errors=True,
    )
    assert "cloud-init finished with faults; the machine runs on" in told
    assert "scripts-user" in told or "scripts_user" in told, told
    assert "web" in ringzero("ps")
