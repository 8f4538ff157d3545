"""A folder of the host, or all of it, as the guest's root."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.config.devices.share import ShareConfig
from ringzero.config.root import HostRoot, parse
from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.image import micro
from ringzero.share.host.mounts import KernelMounts

boot = pytest.mark.boot
engine = pytest.mark.engine


@pytest.fixture
def rootfs(tmp_path):
    """A folder with busybox, and with what a guest should leave alone."""
    from ringzero.image.cpio import read

    image = micro.ensure()
    busybox = next(e.data for e in read(image.initrd.read_bytes()) if e.name == "usr/bin/busybox")
    where = tmp_path / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "run", "tmp", "root"):
        (where / name).mkdir(parents=True)
    (where / "bin/busybox").write_bytes(busybox)
    (where / "bin/busybox").chmod(0o755)
    (where / "bin/sh").symlink_to("busybox")
    (where / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (where / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nana:x:7:8::/:/bin/sh\n")
    return where


def told(machine, command):
    return machine.run(command, timeout=60, text=True, check=True).stdout.strip()


@boot
@engine
def test_what_the_guest_writes_is_thrown_away(rootfs):
    before = sorted(str(p) for p in rootfs.rglob("*"))
    with Machine(root=rootfs, memory="256M") as vm:
        assert "etc" in told(vm, "busybox ls /").split()
        told(vm, "echo new >/root/new; busybox rm /etc/passwd; echo t >/tmp/t")
        assert "10.0.2.3" in told(vm, "busybox cat /etc/resolv.conf")
    assert sorted(str(p) for p in rootfs.rglob("*")) == before
    assert (rootfs / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"


@boot
@engine
def test_a_writable_root_takes_what_is_written_but_for_the_guests_own(rootfs):
    with Machine(root=f"{rootfs}:rw", memory="256M") as vm:
        told(vm, "echo new >/root/new; echo t >/tmp/t; echo r >/run/r")
        assert "10.0.2.3" in told(vm, "busybox cat /etc/resolv.conf")
    assert (rootfs / "root/new").read_text() == "new\n"
    assert (rootfs / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert os.listdir(rootfs / "tmp") == os.listdir(rootfs / "run") == []


@boot
@engine
def test_the_hosts_own_root_by_the_command(tmp_path_factory):
    micro.ensure()
    script = (
        "import os, sys; print(os.getcwd(), sys.version_info[:2], os.environ['HERE']); "
        "os.mkdir('/etc/ringzero-was-here')\n"
        "for place in ('proc', 'sys'):\n"
        "    try: print(os.listdir('/run/shares/0/' + place))\n"
        "    except PermissionError: print('refused')\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ringzero", "run", "--memory", "512M", "--root", "/"),
            *("-e", "HERE=yes", "--", sys.executable, "-c", script),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = Path.cwd()
    assert done.stdout.splitlines() == [
        f"{here} {sys.version_info[:2]} yes", "refused", "refused"
    ]  # fmt: skip
    assert not Path("/etc/ringzero-was-here").exists()


def test_what_is_no_root(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert parse(f"{tmp_path}:rw") == HostRoot(tmp_path.resolve(), writable=True)
    assert parse(str(tmp_path)) == HostRoot(tmp_path.resolve())
    assert HostRoot(Path("/")).whole
    with pytest.raises(MissingFileError):
        parse(str(tmp_path / "none"))
    with pytest.raises(MissingFileError):
        parse(f"{tmp_path}:xx")
    with pytest.raises(InvalidValueError, match="no folder"):
        parse(str(tmp_path / "file"))
    with pytest.raises(InvalidValueError, match="the guest's root"):
        ShareConfig.parse(f"{tmp_path}:/")


def test_the_kernels_own_file_systems_are_known(tmp_path):
    mounts = KernelMounts()
    assert mounts.has(os.stat("/proc").st_dev)
    assert mounts.has(os.stat("/sys").st_dev)
    assert not mounts.has(tmp_path.stat().st_dev)
    assert not mounts.has(0xFFFF)
