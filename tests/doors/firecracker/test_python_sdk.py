"""Clients of Firecracker's from PyPI, unmodified: their processes and their clients of the API.

The `MicroVM` of firecracker-python (and of hysn-firecracker-python, a fork) wants a Docker daemon,
nftables and the address that the internet sees; that of microheart KVM and ssh; that of pyrecracker
sudo, device mapper and chroot. What they do with Firecracker itself is done here by their parts.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS

pytestmark = [pytest.mark.doors, pytest.mark.boot, pytest.mark.engine]
FORKS = ("firecracker-python==0.0.5", "hysn-firecracker-python==1.0.7")
MICROHEART, PYRECRACKER = "microheart==0.3.0", "pyrecracker==0.6.4"
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


MICROHEART_SCRIPT = """
import json, os, subprocess, sys, time
from microheart import api, assets
from microheart.vm import MicroVM

disk = sys.argv[1]
vm = MicroVM("one", rootfs=disk, key=disk)
vm.registry.create("one")
vm.dir.mkdir(parents=True)
config = vm.dir / "vm_config.json"
config.write_text(json.dumps(vm.config(disk)))
words = [str(assets.firecracker_path()), "--api-sock", vm.sock, "--config-file", str(config)]
with open(vm.console, "w") as log:
    process = subprocess.Popen(
        [*words, "--enable-pci"], stdout=log, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )
vm.registry.set_pid("one", process.pid)
end = time.monotonic() + 60
while not os.path.exists(vm.sock):
    assert time.monotonic() < end and process.poll() is None, vm.tail()
    time.sleep(0.01)
told = {"running": vm.running(), "machine": vm.machine_config()}
try:
    api.request(vm.sock, "PUT", "/boot-source", {"kernel_image_path": disk})
except RuntimeError as fault:
    told["after"] = str(fault)
# No root that this kernel could mount: it panics, reboots, and the process ends by itself.
told["code"] = process.wait(120)
told["said"] = "Kernel panic" in vm.console.read_text()
print(json.dumps(told))
"""
PYRECRACKER_SCRIPT = """
import json, os, subprocess, sys, time
from requests.exceptions import HTTPError
from pyrecracker.client import FirecrackerClient
from pyrecracker import client_types as t

program, kernel, initrd, args, disk, place = sys.argv[1:]
socket = f"{place}/fc.sock"
output = open(f"{place}/console", "wb")
process = subprocess.Popen([program, "--api-sock", socket], stdin=subprocess.DEVNULL, stdout=output)
while not os.path.exists(socket):
    time.sleep(0.01)
client = FirecrackerClient(socket)
client.put_machine_config(
    t.MachineConfiguration(mem_size_mib=256, vcpu_count=1, smt=False, track_dirty_pages=True,
                           huge_pages=t.HugePages.NONE)
)
client.put_boot_source(t.BootSource(kernel, args, initrd))
client.put_drives(
    t.Drive("rootfs", True, is_read_only=False, path_on_host=disk,
            cache_type=t.CacheType.WRITEBACK, io_engine=t.IOEngine.SYNC)
)
client.put_network_interfaces(t.NetworkInterface("tap0", "eth0", "06:00:ac:10:00:02"))
client.put_actions(t.InstanceActionInfo(t.ActionType.INSTANCE_START))
end = time.monotonic() + 120
while b"MICROVM-UP" not in open(f"{place}/console", "rb").read():
    assert time.monotonic() < end
    time.sleep(0.05)
told = {}
try:
    client.put_actions(t.InstanceActionInfo(t.ActionType.INSTANCE_START))
except HTTPError as fault:
    told["again"] = fault.response.status_code
client.patch_vm(t.VM(t.VMState.PAUSED))
files = f"{place}/state", f"{place}/memory"
client.put_snapshot_create(t.SnapshotCreateParams(*files, t.SnapshotType.FULL))
client.patch_vm(t.VM(t.VMState.RESUMED))
client.put_actions(t.InstanceActionInfo(t.ActionType.FLUSH_METRICS))
process.terminate()
told["ended"] = process.wait(10)
told["memory"] = os.path.getsize(files[1])
socket = f"{place}/other.sock"
process = subprocess.Popen([program, "--api-sock", socket], stdin=subprocess.DEVNULL, stdout=output)
while not os.path.exists(socket):
    time.sleep(0.01)
client = FirecrackerClient(socket)
client.put_snapshot_load(t.SnapshotLoadParams(files[0], True, files[1], True))
client.patch_vm(t.VM(t.VMState.PAUSED))
process.terminate()
process.wait(10)
print(json.dumps(told))
"""


def installed(tmp_path_factory, package, python=sys.executable):
    """Return the Python of an environment that has a package; skip where it cannot be fetched."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([python, "-m", "venv", place], check=True, timeout=120)
    done = subprocess.run(
        [place / "bin" / "pip", "install", "-q", package],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.skip(f"{package} cannot be fetched: {done.stderr[-200:]}")
    return place / "bin" / "python"


@pytest.fixture(scope="module", params=FORKS)
def python(request, tmp_path_factory):
    return installed(tmp_path_factory, request.param)


@pytest.fixture
def place(monkeypatch):
    """A folder; they reach no socket whose path has a capital letter."""
    monkeypatch.setenv("RINGZERO_FIRECRACKER_NETWORK", "user")
    monkeypatch.setenv("RINGZERO_ENGINE", "soft")
    with tempfile.TemporaryDirectory(prefix="fc") as directory:
        found = Path(directory)
        (found / "disk").write_bytes(bytes(1 << 20))
        yield found


def told(words):
    """Return what a script says on its last line."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_microheart(tmp_path_factory, guest, place, recording, monkeypatch):
    python = installed(tmp_path_factory, MICROHEART)
    monkeypatch.setenv("MICROHEART_HOME", str(place))
    (place / "firecracker").symlink_to(recording)
    (place / "vmlinux-6.1").symlink_to(guest[0])
    found = told([python, "-c", MICROHEART_SCRIPT, place / "disk"])
    assert found["machine"]["mem_size_mib"] == 256
    assert "-> 400" in found["after"]
    assert (found["running"], found["code"], found["said"]) == (True, 0, True)


def test_pyrecracker(tmp_path_factory, guest, place, recording):
    names = ("python3.13", "python3.12")
    python = next((n for n in names if shutil.which(n) and _runs(n)), None)
    if python is None:
        pytest.skip("it wants Python 3.12")
    python = installed(tmp_path_factory, PYRECRACKER, python)
    words = [python, "-c", PYRECRACKER_SCRIPT, recording, *guest, BOOT_ARGS, place / "disk", place]
    found = told(words)
    assert found == {"again": 400, "ended": 128 + 15, "memory": 256 << 20}


def _runs(python):
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def test_firecracker_python(python, guest, place, recording):
    words = [python, "-c", SCRIPT, recording, *guest, BOOT_ARGS, place / "disk", place]
    found = told(words)
    assert found.pop("again").endswith("not supported after starting the microVM.")
    assert found.pop("gone") in (True, "Z")
    assert found == {
        "running": True,
        "found": True,
        "listed": True,
        "state": "Running",
        "memory": 256,
        "stopped": True,
    }
