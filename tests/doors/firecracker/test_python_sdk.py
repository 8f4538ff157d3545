"""firecracker-python, unmodified, from PyPI: its processes and its client of the API.

Its `MicroVM` wants a Docker daemon, nftables and the address that the internet sees; what it does
with Firecracker itself is done here by the same parts.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS

pytestmark = [pytest.mark.doors, pytest.mark.boot, pytest.mark.engine]
PACKAGE = "firecracker-python==0.0.5"
PROGRAM = Path(sys.executable).with_name("ringzero-firecracker")
SCRIPT = """
import json, os, sys, time
from firecracker.api import Api
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager

program, kernel, initrd, args, disk, place = sys.argv[1:]
manager = ProcessManager()
manager._config.binary_path, manager._config.data_path = program, place
name = "vm1"
home = f"{place}/{name}"
os.mkdir(home)
socket = f"{home}/firecracker.socket"
pid = manager.start(name, ["--api-sock", socket, "--id", name, "--log-path", f"{home}/log"])
api = Api(socket)
told = {"running": manager.is_running(name), "found": manager.get_pid(name)[0] == pid}
told["listed"] = pid in manager.get_pids()
api.boot.put(kernel_image_path=kernel, initrd_path=initrd, boot_args=args)
api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=False, is_read_only=False)
api.machine_config.put(vcpu_count=1, mem_size_mib=256)
api.network.put(iface_id="eth0", host_dev_name="tap_vm1")
api.mmds_config.put(version="V2", ipv4_address="169.254.169.254", network_interfaces=["eth0"])
api.mmds.put(latest={"meta-data": {"instance-id": name}})
api.vsock.put(guest_cid=3, uds_path=f"{home}/v.sock")
api.actions.put(action_type="InstanceStart")
output = f"{home}/firecracker.log"
end = time.monotonic() + 120
while "MICROVM-UP" not in open(output, errors="replace").read():
    assert time.monotonic() < end
    time.sleep(0.05)
told["state"] = api.describe.get().json()["state"]
told["memory"] = api.vm_config.get().json()["machine-config"]["mem_size_mib"]
try:
    api.actions.put(action_type="InstanceStart")
except APIError as fault:
    told["again"] = str(fault)
api.vm.patch(state="Paused")
api.create_snapshot.put(mem_file_path=f"{home}/memory", snapshot_path=f"{home}/state")
api.vm.patch(state="Resumed")
api.close()
told["stopped"] = manager.stop(name)
told["gone"] = not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    done = subprocess.run(
        [place / "bin" / "pip", "install", "-q", PACKAGE],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.skip(f"the SDK cannot be fetched: {done.stderr[-200:]}")
    return place / "bin" / "python"


def test_firecracker_python(python, guest, monkeypatch):
    monkeypatch.setenv("RINGZERO_FIRECRACKER_NETWORK", "user")
    # It reaches no socket whose path has a capital letter.
    with tempfile.TemporaryDirectory(prefix="fc") as directory:
        place = Path(directory)
        disk = place / "disk"
        disk.write_bytes(bytes(1 << 20))
        words = [python, "-c", SCRIPT, PROGRAM, *guest, BOOT_ARGS, disk, place]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("again").endswith("not supported after starting the microVM.")
    assert told.pop("gone") in (True, "Z")
    assert told == {
        "running": True,
        "found": True,
        "listed": True,
        "state": "Running",
        "memory": 256,
        "stopped": True,
    }
