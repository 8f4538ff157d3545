"""Rate limiters over the API: of a drive under a real kernel, of an interface as it is kept."""

import os
import time

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [pytest.mark.boot, pytest.mark.engine]
SIZE = 4 << 20


def test_limiters(guest, tmp_path):
    kernel, initrd = guest
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    tokens = {"size": SIZE // 8, "refill_time": 500}
    drive = {"drive_id": "data", "path_on_host": str(disk), "is_root_device": False}
    with MicroVm(tmp_path, "--network", "user") as vm:
        vm.put("/machine-config", vcpu_count=1, mem_size_mib=256)
        vm.put(
            *("/boot-source",),
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        vm.put("/drives/data", **drive, rate_limiter={"bandwidth": tokens})
        vm.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name="none")
        vm.put("/actions", action_type="InstanceStart")
        vm.expect(UP)

        def read():
            began = time.monotonic()
            vm.shell("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M")
            return time.monotonic() - began

        # A request may overdraw the bucket; the next one waits until that is paid.
        assert read() > 1.2
        off = {"bandwidth": {"size": 0, "refill_time": 0}}
        vm.patch("/drives/data", drive_id="data", rate_limiter=off)
        assert read() < 1
        assert vm.ask("GET", "/vm/config")[1]["drives"][0]["rate_limiter"] == off
        ops = {"ops": {"size": 10, "refill_time": 100}}
        vm.patch("/network-interfaces/eth0", iface_id="eth0", rx_rate_limiter=ops)
        vm.patch("/network-interfaces/eth0", iface_id="eth0", tx_rate_limiter={"bandwidth": tokens})
        net = vm.ask("GET", "/vm/config")[1]["network-interfaces"][0]
        assert (net["rx_rate_limiter"], net["tx_rate_limiter"]) == (ops, {"bandwidth": tokens})
        # The guest has its address by DHCP under the limits.
        vm.shell("ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true")
        assert "UP" in vm.shell("ip link show eth0")
