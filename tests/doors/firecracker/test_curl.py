"""The sequence of Firecracker's own first page, by curl."""

import json
import shutil
import subprocess

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [pytest.mark.boot, pytest.mark.engine]
CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="there is no curl here")
def test_getting_started(guest, tmp_path):
    kernel, initrd = guest
    disk = tmp_path / "rootfs.ext4"
    disk.write_bytes(bytes(1 << 20))
    with MicroVm(tmp_path, "--network", "user") as vm:

        def put(path, **fields):
            words = [CURL, "-s", "-o", "-", "-w", "%{http_code}", "-X", "PUT"]
            words += ["--unix-socket", str(vm.socket), f"http://localhost{path}"]
            words += ["--data", json.dumps(fields)]
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
            assert done.stdout == "204"

        put("/logger", log_path=str(tmp_path / "fc.log"), level="Debug", show_level=True)
        put(
            "/boot-source",
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        root = {"path_on_host": str(disk), "is_root_device": True, "is_read_only": False}
        put("/drives/rootfs", drive_id="rootfs", **root)
        mac = "06:00:AC:10:00:02"
        put("/network-interfaces/net1", iface_id="net1", guest_mac=mac, host_dev_name="tap0")
        put("/actions", action_type="InstanceStart")
        vm.expect(UP)
        assert "root=/dev/vda rw" in vm.shell("cat /proc/cmdline")
        assert mac.lower() in vm.shell("cat /sys/class/net/eth0/address")
        put("/actions", action_type="SendCtrlAltDel")
    assert ":INFO] " in (tmp_path / "fc.log").read_text()
