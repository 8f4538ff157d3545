"""Debian itself for tests: installed by mmdebstrap once, and put on disks.

It takes minutes and fetches 150 MB of packages: RINGZERO_TEST_DISTRIBUTIONS=1 asks for it, or a
folder, in which what was installed is kept for the next time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero.image.sources import debian_sources
from tests.image.fs.made import gpt, prototype, run, sized, tool

WANTED = os.environ.get("RINGZERO_TEST_DISTRIBUTIONS", "")
MARKS = [
    pytest.mark.boot,
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not WANTED, reason="RINGZERO_TEST_DISTRIBUTIONS=1 installs Debian"),
]
UUID = "11111111-2222-3333-4444-555555555555"
GRUB = """
search --no-floppy --fs-uuid --set=root {uuid}
menuentry 'Debian GNU/Linux' --id debian {{
  linux /boot/vmlinuz-{version} root=UUID={uuid} {flags} ro console=tty0
  initrd /boot/initrd.img-{version}
}}
"""
SIZE = 1500 << 20


class Trees:
    """Trees of files by the name of what is in them; each is installed when it is first asked for.

    `kept` is where their archives stay, `top` where they are unpacked.
    """

    def __init__(self, kept, top):
        self.kept, self.top, self._made = kept, top, {}

    def get(self, name, packages, suite="bookworm"):
        """Return the tree of `suite` with the packages, as a folder."""
        if name in self._made:
            return self._made[name]
        archive = self.kept / f"{name}.tar"
        if not archive.exists():
            new = archive.with_suffix(".new.tar")
            command = [tool("mmdebstrap"), "--variant=minbase", f"--include={packages}"]
            # That of security does not keep what it had for releases that have ended.
            source = f"deb {debian_sources(suite)[-1].uris[0]} {suite} main"
            done = subprocess.run(
                [*command, suite, str(new), source], capture_output=True, timeout=1500
            )
            assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
            new.rename(archive)
        tree = self._made[name] = self.top / name
        tree.mkdir()
        run("tar", "-C", tree, "-xf", archive, "--exclude=./dev/*")
        (tree / "etc" / "machine-id").write_text("")
        return tree


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """What installs Debian."""
    if os.geteuid():
        pytest.skip("the tree of files has owners")
    top = tmp_path_factory.mktemp("debian")
    return Trees(Path(WANTED) if Path(WANTED).is_dir() else top, top)


def disk_of(tree, folder, kind, flags=""):
    """Return a raw disk: GPT, and one partition with the tree and GRUB's configuration."""
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    grub = tree / "boot" / "grub"
    grub.mkdir(exist_ok=True)
    (grub / "grub.cfg").write_text(GRUB.format(uuid=UUID, version=version, flags=flags))
    (tree / "etc" / "fstab").write_text(f"UUID={UUID} / {kind} rw 0 1\n")
    part = sized(folder / "part", SIZE)
    if kind == "ext4":
        run("mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-d", tree, part)
    elif kind == "btrfs":
        run("mkfs.btrfs", "-q", "-U", UUID, "--rootdir", tree, part)
    else:
        proto = folder / "proto"
        proto.write_text(prototype(tree))
        run("mkfs.xfs", "-q", "-m", f"uuid={UUID}", "-p", proto, part)
    return gpt(folder / "disk", ("L", part))


@pytest.fixture
def ringzero(tmp_path):
    """Return what runs a command of ours, with machines and data of its own."""
    environment = os.environ | {
        "RINGZERO_DATA_DIR": str(tmp_path / "data"),
        "RINGZERO_MACHINES_DIR": str(tmp_path / "machines"),
        "RINGZERO_BOOT_TIMEOUT": "1500",
    }

    def call(*words, status=0, timeout=1600, errors=False):
        command = [sys.executable, "-m", "ringzero", *map(str, words)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=environment
        )
        said = done.stdout.decode(errors="replace").replace("\r", "")
        complaints = done.stderr.decode(errors="replace")
        assert done.returncode == status, said[-3000:] + complaints
        return complaints if errors else said

    yield call
    for place in (tmp_path / "machines").glob("*"):
        call("rm", "-f", place.name)
