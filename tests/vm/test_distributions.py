"""Debian itself, installed by mmdebstrap, boots from its disk alone, and cloud-init runs in it.

It takes minutes and fetches 150 MB of packages: RINGZERO_TEST_DISTRIBUTIONS=1 asks for it.
"""

import os
import subprocess
import sys

import pytest

from tests.image.fs.made import run, sized, tool

pytestmark = [
    pytest.mark.boot,
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not os.environ.get("RINGZERO_TEST_DISTRIBUTIONS"),
        reason="RINGZERO_TEST_DISTRIBUTIONS=1 installs Debian",
    ),
]
PACKAGES = (
    "linux-image-cloud-amd64,systemd-sysv,initramfs-tools,cloud-init,iproute2,udev,dbus,netbase,"
    "isc-dhcp-client,ifupdown"
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
USER_DATA = """#cloud-config
locale: false
write_files:
- path: /etc/systemd/system/report.service
  content: |
    [Service]
    ExecStart=/bin/sh -c '{ systemctl is-system-running --wait; systemctl --failed --no-legend; \
hostname; findmnt -no FSTYPE /; echo REPORTED; } > /dev/ttyS0; systemctl poweroff'
runcmd:
- echo said-by-runcmd
- systemctl daemon-reload
- systemctl start --no-block report.service
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    if os.geteuid():
        pytest.skip("the tree of files has owners")
    top = tmp_path_factory.mktemp("debian")
    archive = top / "tree.tar"
    command = [tool("mmdebstrap"), "--variant=minbase", f"--include={PACKAGES}", "bookworm"]
    subprocess.run([*command, str(archive)], check=True, capture_output=True, timeout=900)
    tree = top / "tree"
    tree.mkdir()
    run("tar", "-C", tree, "-xf", archive, "--exclude=./dev/*")
    (tree / "etc" / "machine-id").write_text("")
    return tree


@pytest.mark.parametrize(("kind", "flags"), [("ext4", ""), ("btrfs", "rootfstype=btrfs")])
def test_debian_boots_from_its_disk_alone(tree, tmp_path, kind, flags):
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    grub = tree / "boot" / "grub"
    grub.mkdir(exist_ok=True)
    (grub / "grub.cfg").write_text(GRUB.format(uuid=UUID, version=version, flags=flags))
    (tree / "etc" / "fstab").write_text(f"UUID={UUID} / {kind} rw 0 1\n")
    part = sized(tmp_path / "part", 1500 << 20)
    if kind == "ext4":
        run("mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-d", tree, part)
    else:
        run("mkfs.btrfs", "-q", "-U", UUID, "--rootdir", tree, part)
    disk = sized(tmp_path / "disk", 1502 << 20)
    script = f"label: gpt\nstart=2048, size={1500 << 11}, type=L\n"
    run("sfdisk", "-q", disk, input=script.encode())
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    part.unlink()
    user_data = tmp_path / "user-data"
    user_data.write_text(USER_DATA)
    command = [sys.executable, "-m", "ringzero", "run", "--memory", "1G"]
    command += ["--disk", f"{disk},format=raw", "--cloud-init", user_data, "--hostname", "webby"]
    environment = os.environ | {"RINGZERO_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=800, env=environment
    )
    said = done.stdout.decode(errors="replace").replace("\r", "")
    assert done.returncode == 0, said[-3000:] + done.stderr.decode()
    assert "said-by-runcmd" in said
    assert f"running\nwebby\n{kind}\nREPORTED" in said, said[-3000:]
    assert "reboot: Power down" in said
