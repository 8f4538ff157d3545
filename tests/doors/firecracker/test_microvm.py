"""A whole microVM over the API, with a real kernel, in a process of its own."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ringzero.doors.firecracker.table import API_VERSION, SNAPSHOT_VERSION
from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [pytest.mark.boot, pytest.mark.engine]
DISK = 1 << 20


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "disk"
    path.write_bytes(os.urandom(DISK))
    return path


@pytest.fixture(scope="module")
def vm(guest, disk, tmp_path_factory):
    with MicroVm(tmp_path_factory.mktemp("vm"), "--id", "m-1") as found:
        found.boot(*guest, data=disk)
        yield found


def digest(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_it_is_called_firecracker(vm):
    process = Path(f"/proc/{vm.process.pid}")
    assert (process / "comm").read_text() == "firecracker\n"
    assert b"--api-sock" in (process / "cmdline").read_bytes().split(b"\0")
    assert vm.ask("GET", "/")[1]["state"] == "Running"
    assert vm.socket.stat().st_mode & 0o777 == 0o600


def test_the_guest_has_its_disk_and_its_console(vm, disk):
    assert vm.shell("md5sum < /dev/vda").split()[0] == digest(disk)
    assert vm.shell("echo to the guest") == "to the guest\n"


def test_a_drive_gets_another_image(vm, disk, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(os.urandom(2 * DISK))
    vm.patch("/drives/data", drive_id="data", path_on_host=str(other))
    size = vm.shell("cat /sys/block/vda/size").strip()
    assert int(size) * 512 == 2 * DISK
    vm.shell("echo 3 > /proc/sys/vm/drop_caches")
    assert vm.shell("md5sum < /dev/vda").split()[0] == digest(other)
    assert vm.ask("GET", "/vm/config")[1]["drives"][0]["path_on_host"] == str(other)
    fault = vm.ask("PATCH", "/drives/none", {"drive_id": "none"})
    assert (fault[0], "Device not found" in fault[1]["fault_message"]) == (400, True)
    vm.patch("/drives/data", drive_id="data", path_on_host=str(disk))
    assert int(vm.shell("cat /sys/block/vda/size")) * 512 == DISK


def test_pause_and_resume(vm):
    vm.patch("/vm", state="Paused")
    vm.patch("/vm", state="Paused")
    assert vm.ask("GET", "/")[1]["state"] == "Paused"
    vm.patch("/vm", state="Resumed")
    assert vm.shell("echo on") == "on\n"


def test_snapshots(vm, tmp_path):
    """A full one, and a difference laid over its memory; both go on where they were."""
    files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    assert "while running" in vm.ask("PUT", "/snapshot/create", files)[1]["fault_message"]
    vm.shell("echo first > /note")
    vm.patch("/vm", state="Paused")
    vm.put("/snapshot/create", **files)
    size = (tmp_path / "m").stat().st_size
    assert size == 256 << 20
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600
    vm.patch("/vm", state="Resumed")
    vm.shell("echo second > /note")
    vm.patch("/vm", state="Paused")
    alone = tmp_path / "diff"
    vm.put(
        *("/snapshot/create",),
        snapshot_type="Diff",
        snapshot_path=str(tmp_path / "s2"),
        mem_file_path=str(alone),
    )
    whole = (tmp_path / "m").stat().st_blocks
    assert alone.stat().st_size == size
    assert 0 < alone.stat().st_blocks < whole / 2
    vm.patch("/vm", state="Resumed")
    assert vm.shell("cat /note") == "second\n"
    load = {
        "snapshot_path": str(tmp_path / "s"),
        "mem_backend": {"backend_path": str(tmp_path / "m"), "backend_type": "File"},
    }
    place = tmp_path / "copy"
    place.mkdir()
    with MicroVm(place) as copy:
        copy.put("/snapshot/load", **load)
        assert copy.ask("GET", "/")[1]["state"] == "Paused"
        assert copy.ask("GET", "/machine-config")[1]["mem_size_mib"] == 256
        copy.patch("/vm", state="Resumed")
        assert copy.shell("cat /note") == "first\n"
        again = copy.ask("PUT", "/snapshot/load", load)[1]["fault_message"]
        assert "not supported after starting" in again
    described = subprocess.run(
        [*copy.words[:3], "--describe-snapshot", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert described.stdout == f"v{SNAPSHOT_VERSION}\n"


def test_snapshots_that_are_none(vm, tmp_path):
    state, memory = tmp_path / "s", tmp_path / "m"
    vm.patch("/vm", state="Paused")
    vm.put("/snapshot/create", snapshot_path=str(state), mem_file_path=str(memory))
    vm.patch("/vm", state="Resumed")
    data = state.read_bytes()
    place = tmp_path / "copy"
    place.mkdir()
    with MicroVm(place) as copy:

        def fault(**more):
            load = {"snapshot_path": str(state), "mem_file_path": str(memory), **more}
            status, answer = copy.ask("PUT", "/snapshot/load", load)
            assert status == 400
            return answer["fault_message"]

        for place in (0, 20, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[place] ^= 4
            state.write_bytes(changed)
            assert fault().startswith("Load snapshot error: Failed to restore")
        state.write_bytes(data[:-1])
        assert "checksum" in fault()
        state.write_bytes(data)
        # Nobody is there who would supply it.
        assert "/x" in fault(
            mem_file_path=None, mem_backend={"backend_path": "/x", "backend_type": "Uffd"}
        )
        assert "exclusively" in fault(mem_backend={"backend_path": "/x", "backend_type": "File"})
        assert "is required" in fault(mem_file_path=None)
        assert "Unknown Network Device" in fault(
            network_overrides=[{"iface_id": "eth0", "host_dev_name": "tap1"}]
        )
        with memory.open("r+b") as file:
            file.truncate(1 << 20)
        assert "the machine's memory" in fault()
        # After all that, the process is as good as new.
        with memory.open("r+b") as file:
            file.truncate(256 << 20)
        assert copy.ask("GET", "/")[1]["state"] == "Not started"
        copy.put("/machine-config", vcpu_count=1, mem_size_mib=64)
        assert "boot-specific resources" in fault()


def test_it_ends_with_its_guest(guest, tmp_path):
    with MicroVm(tmp_path) as vm:
        vm.boot(*guest)
        vm.process.stdin.write(b"reboot -f\n")
        vm.process.stdin.flush()
        assert vm.process.wait(20) == 0
        assert not vm.socket.exists()


def test_it_ends_by_a_signal_in_time(guest, tmp_path):
    with MicroVm(tmp_path) as vm:
        vm.boot(*guest)
        began = time.monotonic()
        vm.process.send_signal(signal.SIGTERM)
        assert vm.process.wait(10) == 128 + signal.SIGTERM
        # A client kills it after two seconds.
        assert time.monotonic() - began < 2
        assert not vm.socket.exists()


def test_a_configuration_file_without_an_api(guest, tmp_path):
    kernel, initrd = guest
    config = {
        "boot-source": {
            "kernel_image_path": str(kernel),
            "initrd_path": str(initrd),
            "boot_args": BOOT_ARGS,
        },
        "drives": [],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
        "logger": {"log_path": str(tmp_path / "log"), "level": "Info"},
        "metrics": {"metrics_path": str(tmp_path / "metrics")},
        "entropy": {},
    }
    path = tmp_path / "vm.json"
    path.write_text(json.dumps(config))
    with MicroVm(tmp_path, "--no-api", "--config-file", str(path), api=False) as vm:
        vm.expect(UP)
        assert vm.shell("grep -c ^processor /proc/cpuinfo") == "2\n"
        vm.process.stdin.write(b"reboot -f\n")
        vm.process.stdin.flush()
        assert vm.process.wait(20) == 0
    # Nothing but the guest speaks on standard output once the log has a place of its own.
    assert f"Running Firecracker v{API_VERSION}" not in (tmp_path / "metrics").read_text()
    assert json.loads((tmp_path / "metrics").read_text())["uart"]["write_count"] > 0
    path.write_text(json.dumps({**config, "drives": [{"drive_id": "x"}]}))
    with MicroVm(tmp_path, "--no-api", "--config-file", str(path), api=False) as vm:
        assert vm.process.wait(20) == 152
        assert "missing field `is_root_device`" in vm.errors


def test_the_serial_line_in_a_file(guest, tmp_path):
    with MicroVm(tmp_path) as vm:
        vm.put("/serial", serial_out_path=str(tmp_path / "serial"))
        kernel, initrd = guest
        vm.put(
            *("/boot-source",),
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        vm.put("/actions", action_type="InstanceStart")
        vm.until(lambda: UP in (tmp_path / "serial").read_bytes())


def test_the_boot_timer(guest, tmp_path):
    with MicroVm(tmp_path, "--boot-timer") as vm:
        vm.boot(*guest)
        vm.shell("devmem 0xc0000000 8 123")
        vm.until(lambda: "Guest-boot-time = " in (tmp_path / "log").read_text())
        # A snapshot has it, too, whatever the flags are then.
        files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
        vm.patch("/vm", state="Paused")
        vm.put("/snapshot/create", **files)
    place = tmp_path / "copy"
    place.mkdir()
    with MicroVm(place) as copy:
        copy.put("/snapshot/load", **files, resume_vm=True)
        copy.shell("devmem 0xc0000000 8 123")
        copy.until(lambda: "Guest-boot-time = " in (place / "log").read_text())
