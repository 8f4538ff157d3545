"""The balloon over the API, with a real kernel's driver."""

import time

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def vm(guest, tmp_path_factory):
    kernel, initrd = guest
    with MicroVm(tmp_path_factory.mktemp("vm")) as found:
        found.put("/machine-config", vcpu_count=1, mem_size_mib=256)
        found.put(
            *("/boot-source",),
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        found.put(
            *("/balloon",),
            amount_mib=16,
            deflate_on_oom=True,
            stats_polling_interval_s=1,
            free_page_hinting=True,
            free_page_reporting=True,
        )
        found.put("/actions", action_type="InstanceStart")
        found.expect(UP)
        yield found


def statistics(vm):
    status, found = vm.ask("GET", "/balloon/statistics")
    assert status == 200
    return found


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_it_fills_and_empties(vm):
    until(lambda: statistics(vm)["actual_mib"] == 16)
    total = statistics(vm)["target_pages"]
    assert total == 16 * 256
    vm.patch("/balloon", amount_mib=64)
    until(lambda: statistics(vm)["actual_mib"] == 64)
    vm.patch("/balloon", amount_mib=0)
    until(lambda: statistics(vm)["actual_mib"] == 0)
    assert vm.ask("GET", "/balloon")[1]["amount_mib"] == 0
    fault = vm.ask("PATCH", "/balloon", {"amount_mib": 257})[1]["fault_message"]
    assert "too large" in fault


def test_the_guest_tells_how_it_uses_its_memory(vm):
    until(lambda: "free_memory" in statistics(vm))
    found = statistics(vm)
    assert 0 < found["free_memory"] < found["total_memory"] < 256 << 20
    assert "available_memory" in found
    vm.patch("/balloon/statistics", stats_polling_interval_s=2)
    off = vm.ask("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0})
    assert "enable/disable the statistics" in off[1]["fault_message"]


def test_what_the_guest_frees_goes_back_to_the_host(vm):
    """By itself, within the seconds that Linux takes to report."""
    vm.shell("mount -t tmpfs -o size=150m none /mnt || mkdir /mnt && mount -t tmpfs none /mnt")
    vm.shell("dd if=/dev/zero of=/mnt/big bs=1M count=100 2>/dev/null")
    full = vm.resident
    vm.shell("rm /mnt/big")
    until(lambda: vm.resident < full - (80 << 10), 60)


def test_hinting(vm):
    status, found = vm.ask("GET", "/balloon/hinting/status")
    assert (status, found["host_cmd"]) == (200, 0)
    assert vm.ask("PATCH", "/balloon/hinting/start") == (204, b"")
    until(lambda: vm.ask("GET", "/balloon/hinting/status")[1] == {"host_cmd": 1, "guest_cmd": 0})
    vm.patch("/balloon/hinting/start", acknowledge_on_stop=False)
    until(lambda: vm.ask("GET", "/balloon/hinting/status")[1]["guest_cmd"] == 0)
    assert vm.ask("PATCH", "/balloon/hinting/stop") == (204, b"")


def test_a_snapshot_has_it(vm, tmp_path):
    vm.patch("/balloon", amount_mib=32)
    until(lambda: statistics(vm)["actual_mib"] == 32)
    vm.patch("/vm", state="Paused")
    vm.put("/snapshot/create", snapshot_path=str(tmp_path / "s"), mem_file_path=str(tmp_path / "m"))
    vm.patch("/vm", state="Resumed")
    place = tmp_path / "copy"
    place.mkdir()
    with MicroVm(place) as copy:
        copy.put(
            *("/snapshot/load",),
            snapshot_path=str(tmp_path / "s"),
            mem_backend={"backend_path": str(tmp_path / "m"), "backend_type": "File"},
            resume_vm=True,
        )
        assert statistics(copy)["actual_mib"] == 32
        copy.patch("/balloon", amount_mib=8)
        until(lambda: statistics(copy)["actual_mib"] == 8)
        until(lambda: "free_memory" in statistics(copy))
        assert copy.shell("echo well") == "well\n"
