"""Debian itself, installed by mmdebstrap, boots from its disk alone, and cloud-init runs in it.
With the agent, commands, files and copies work in it, and it shuts down in order.

It takes minutes and fetches 150 MB of packages: RINGZERO_TEST_DISTRIBUTIONS=1 asks for it, or a
folder, in which what was installed is kept for the next time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.fs.made import run, sized, tool

WANTED = os.environ.get("RINGZERO_TEST_DISTRIBUTIONS", "")
pytestmark = [
    pytest.mark.boot,
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not WANTED, reason="RINGZERO_TEST_DISTRIBUTIONS=1 installs Debian"),
]
PACKAGES = (
    "linux-image-cloud-amd64,systemd-sysv,cloud-init,iproute2,udev,dbus,netbase,isc-dhcp-client,"
    "ifupdown"
)
UUID = "11111111-2222-3333-4444-555555555555"
GRUB = """
search --no-floppy --fs-uuid --set=root {uuid}
menuentry 'Debian GNU/Linux' --id debian {{
  linux /boot/vmlinuz-{version} root=UUID={uuid} {flags} ro console=tty0
  initrd /boot/initrd.img-{version}
}}
"""
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return what installs Debian with an initrd of one kind, and returns its tree of files.

    A shell script runs that of initramfs-tools, systemd that of dracut.
    """
    if os.geteuid():
        pytest.skip("the tree of files has owners")
    top = tmp_path_factory.mktemp("debian")
    kept = Path(WANTED) if Path(WANTED).is_dir() else top
    trees = {}

    def install(initrd):
        if initrd in trees:
            return trees[initrd]
        archive = kept / f"{initrd}.tar"
        if not archive.exists():
            packages = f"{PACKAGES},{initrd}"
            command = [tool("mmdebstrap"), "--variant=minbase", f"--include={packages}"]
            new = archive.with_suffix(".new.tar")
            subprocess.run(
                [*command, "bookworm", str(new)], check=True, capture_output=True, timeout=1500
            )
            new.rename(archive)
        tree = trees[initrd] = top / initrd
        tree.mkdir()
        run("tar", "-C", tree, "-xf", archive, "--exclude=./dev/*")
        (tree / "etc" / "machine-id").write_text("")
        # What these would call (locales, btrfs-progs) is not installed.
        settings = tree / "etc/cloud/cloud.cfg"
        text = settings.read_text()
        settings.write_text(text.replace(" - locale\n", "").replace(" - resizefs\n", ""))
        return tree

    return install


def disk_of(tree, folder, kind, flags=""):
    """Return a raw disk: GPT, and one partition with the tree and GRUB's configuration."""
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    grub = tree / "boot" / "grub"
    grub.mkdir(exist_ok=True)
    (grub / "grub.cfg").write_text(GRUB.format(uuid=UUID, version=version, flags=flags))
    (tree / "etc" / "fstab").write_text(f"UUID={UUID} / {kind} rw 0 1\n")
    part = sized(folder / "part", 1500 << 20)
    if kind == "ext4":
        run("mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-d", tree, part)
    else:
        run("mkfs.btrfs", "-q", "-U", UUID, "--rootdir", tree, part)
    disk = sized(folder / "disk", 1502 << 20)
    script = f"label: gpt\nstart=2048, size={1500 << 11}, type=L\n"
    run("sfdisk", "-q", disk, input=script.encode())
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    part.unlink()
    return disk


@pytest.fixture
def ringzero(tmp_path):
    """Return what runs a command of ours, with machines and data of its own."""
    environment = os.environ | {
        "RINGZERO_DATA_DIR": str(tmp_path / "data"),
        "RINGZERO_MACHINES_DIR": str(tmp_path / "machines"),
        "RINGZERO_BOOT_TIMEOUT": "1500",
    }

    def call(*words, status=0, timeout=1600):
        command = [sys.executable, "-m", "ringzero", *map(str, words)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=environment
        )
        said = done.stdout.decode(errors="replace").replace("\r", "")
        assert done.returncode == status, said[-3000:] + done.stderr.decode()
        return said

    yield call
    for place in (tmp_path / "machines").glob("*"):
        call("rm", "-f", place.name)


@pytest.mark.parametrize(("kind", "flags"), [("ext4", ""), ("btrfs", "rootfstype=btrfs")])
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
