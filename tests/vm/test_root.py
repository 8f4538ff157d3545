"""A folder of the host, or all of it, as the guest's root."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.config.devices.share import ShareConfig
from ringzero.config.root import HostRoot, parse
from ringzero.errors import ConfigError, GuestError, InvalidValueError, MissingFileError
from ringzero.image import micro
from ringzero.share.host.mounts import KernelMounts
from ringzero.vm.exit import ExitReason

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
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("the guest has a /tmp of its own, and so not this interpreter")
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


INIT = """#!/bin/busybox sh
echo mine >/run/mine
busybox grep -c . /lib/modules/*/modules.dep >/run/modules
while :; do busybox sleep 0.2; done
"""


@boot
@engine
def test_the_folders_own_first_process(rootfs):
    (rootfs / "sbin").mkdir()
    (rootfs / "sbin/init").symlink_to("/sbin/own")
    (rootfs / "sbin/own").write_text(INIT)
    (rootfs / "sbin/own").chmod(0o755)
    with Machine(root=rootfs, init="/sbin/init", memory="256M") as vm:
        assert told(vm, "busybox cat /run/mine; busybox tr '\\0' ' ' </proc/1/cmdline").split() == [
            *("mine", "/bin/busybox", "sh", "/sbin/init")
        ]
        assert "10.0.2.3" in told(vm, "busybox cat /etc/resolv.conf")
        assert told(vm, "busybox cat /proc/sys/kernel/hostname") == "micro"
        (copy,) = vm.fork(start=True)
        with copy:
            assert told(copy, "busybox cat /run/mine") == "mine"


# Alpine's, without its terminals.
INITTAB = """::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::shutdown:/sbin/openrc shutdown
"""
# What openrc(8) notes on its way to a runlevel.
OPENRC = """#!/bin/busybox sh
busybox mkdir -p /run/openrc/rc.starting
printf %s "$1" >/run/openrc/softlevel
busybox sleep 0.4
echo "$1" >>/run/levels
busybox rmdir /run/openrc/rc.starting
[ "$1" != shutdown ] || echo levels: $(busybox cat /run/levels) >/dev/console
"""


@boot
@engine
def test_a_folder_with_busybox_init_and_openrc_as_alpine_has_them(rootfs):
    """Commands wait for the last runlevel, and the system goes down in order."""
    (rootfs / "sbin").mkdir()
    for name in ("init", "poweroff"):
        (rootfs / "sbin" / name).symlink_to("/bin/busybox")
    (rootfs / "etc/inittab").write_text(INITTAB)
    (rootfs / "sbin/openrc").write_text(OPENRC)
    (rootfs / "sbin/openrc").chmod(0o755)
    said = bytearray()
    with Machine(root=rootfs, init="/sbin/init", memory="256M") as vm:
        vm.serial.on_output = said.extend
        assert told(vm, "busybox cat /run/levels").split() == ["sysinit", "boot", "default"]
        vm.agent.poweroff()
        assert vm.wait(60).reason is ExitReason.POWEROFF
    assert b"levels: sysinit boot default shutdown" in said, said.decode()


@boot
@engine
def test_a_first_process_that_cannot_run_is_told(rootfs):
    (rootfs / "init").write_text("no program\n")
    said = bytearray()
    with Machine(root=rootfs, init="/init", memory="256M") as vm:
        vm.serial.on_output = said.extend
        with pytest.raises(GuestError):
            vm.run("true", timeout=60)
    assert b"the root has no program /init" in said


@boot
@engine
def test_modules_of_the_guests_kernel_are_there(rootfs):
    with Machine(root=rootfs, memory="256M") as vm:
        release = told(vm, "busybox uname -r")
        if release not in told(vm, "busybox ls /lib/modules").split():
            pytest.skip("the kernel's package cannot be had")
        told(vm, "busybox modprobe xfs")
        assert "xfs" in told(vm, "busybox cat /proc/filesystems").split()


def test_what_is_no_first_process(rootfs):
    assert parse(str(rootfs), "/bin/sh") == HostRoot(rootfs, init="/bin/sh")
    for path in ("bin/sh", "", "/bin/s h", "/bin/\u00e9"):
        with pytest.raises(InvalidValueError, match="no path of a program"):
            parse(str(rootfs), path)
    with pytest.raises(MissingFileError, match="has no /bin/none"):
        parse(str(rootfs), "/bin/none")
    with pytest.raises(ConfigError, match="an init without a root"):
        Machine(image="micro", init="/bin/sh")


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
