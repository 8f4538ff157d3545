"""The minimal profile: a machine with console, disks, networks and entropy, and nothing else."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringzero
from ringzero.board.contract import BOARDS
from ringzero.board.firmware import acpi
from ringzero.config.machine import MachineConfig
from ringzero.errors import ConfigError, GuestError, HostError
from ringzero.vm.boot import with_console
from ringzero.vm.saved.store import Store

# What its process has loaded, one a line. Whatever comes to it is part of what a guest can reach.
KEPT = Path(__file__).with_name("minimal_modules.txt")
LOADED = """
import json, sys
import ringzero
with ringzero.Machine(
    image="micro", board="minimal", memory="256M", engine="soft", net="user", disks=[sys.argv[1]]
) as machine:
    machine.run("cat /dev/vda >/dev/null", check=True)
    print(json.dumps(sorted(name for name in sys.modules if name.startswith("ringzero"))))
"""
LEGACY = {"serial", "rtc", "i8042"}


@pytest.fixture(scope="module")
def image():
    from ringzero.image.micro import ensure

    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


def machine(**more):
    return ringzero.Machine(image="micro", board="minimal", memory="256M", engine="soft", **more)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"shares": ["/tmp:/mnt"]}, "share"),
        ({"vsock": "/tmp/socket"}, "vsock"),
        ({"balloons": ["64M"]}, "balloon"),
    ],
)
def test_what_is_not_there_is_refused(what, reason):
    with pytest.raises(ConfigError, match=f"{reason}; a minimal board takes none"):
        MachineConfig.create(board="minimal", **what)


def test_room_for_folders_is_none():
    config = MachineConfig.create(board="minimal", agent=True)
    assert config.with_room_for_shares() is config


def test_a_kernel_speaks_where_there_is_a_console():
    assert with_console("console=ttyS0 quiet console=tty0", "hvc0") == "console=hvc0 quiet"
    assert BOARDS.get("minimal").console == "hvc0"
    assert BOARDS.get("microvm").console == ""


def test_tables_tell_of_nothing_that_is_not_there():
    plan = acpi.AcpiPlan(
        table_id=b"MINIMAL ", cpus=1, lapic_base=0, ioapic_base=0, power_port=0x600, reset_value=1,
        sleep_type_off=5, serial=None, rtc=None, panic_port=0x505, generation_id=0, clock_page=0,
        event_gsi=3, button_gsi=1, windows=[],
    )  # fmt: skip
    assert b"COM1" not in acpi.dsdt(plan) and b"RTC" not in acpi.dsdt(plan)
    flags = acpi.fadt(plan, 0)[109]
    assert flags & acpi.BOOT_NO_RTC
    # No keyboard controller, no devices that have to be guessed.
    assert not flags & 0b11


@pytest.mark.engine
@pytest.mark.boot
def test_a_guest_lives_there(image, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with machine(net="user", disks=[f"{disk},format=raw"]) as guest:
        ports = guest.run("cat /proc/ioports", text=True).stdout
        assert "serial" not in ports and "rtc" not in ports
        assert guest.run("cat /proc/consoles", text=True).stdout.startswith("hvc0")
        now = int(guest.run("date +%s", text=True).stdout)
        assert abs(now - time.time()) < 5
        guest.run("echo kept >/tmp/x; echo disk | dd of=/dev/vda conv=fsync", check=True)
        (copy,) = guest.fork(start=True)
        with copy:
            assert copy.run("cat /tmp/x", text=True).stdout == "kept\n"
        saved = guest.snapshot("minimal", store=Store(tmp_path / "store"))
    with saved.restore() as again:
        again.start()
        assert again.run("cat /tmp/x", text=True).stdout == "kept\n"
        assert again.run("head -c 5 /dev/vda", text=True).stdout == "disk\n"


@pytest.mark.engine
@pytest.mark.boot
def test_a_panic_is_told(image):
    with machine(net="none") as guest, pytest.raises(GuestError, match="panic"):
        guest.run("echo c >/proc/sysrq-trigger", check=True)


@pytest.mark.engine
@pytest.mark.boot
def test_the_process_has_loaded_what_is_kept_in_a_list(image, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))

    def loaded():
        done = subprocess.run(
            [sys.executable, "-c", LOADED, f"{disk},format=raw"],
            check=True,
            capture_output=True,
            text=True,
        )
        return set(json.loads(done.stdout))

    # What a first start compiles is there for a second one.
    loaded()
    found = loaded()
    assert not {name for name in found if name.rpartition(".")[2] in LEGACY}
    kept = set(KEPT.read_text().split())
    assert not found - kept, "a minimal machine loads more: is it needed? Then put it on the list"
