"""What code that has taken over a microVM's process can do: tried, and as the kernel has it."""

import os
import socket
from pathlib import Path

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.doors.firecracker import confinement
from ringzero.host.jail import confine, probe
from ringzero.host.service import serve_as
from tests.doors.firecracker import microvm
from tests.host.jail.children import in_child, outcome

ALLOWED = {part.name for part in probe.probe() if part.holds}
pytestmark = pytest.mark.skipif(
    not ALLOWED.issuperset(confine.ESSENTIAL), reason="this host has no Landlock or no seccomp"
)


class Quiet:
    def warn(self, text):
        raise AssertionError(text)


@pytest.mark.parametrize("network", ["tap", "user"])
def test_what_can_be_done_from_inside(network, tmp_path):
    def tries():
        return {
            "a file that a client may name": lambda: (tmp_path / "snapshot").write_text("x"),
            "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
            "start a process": lambda: os.fork() or os._exit(0),
            "a connection": lambda: socket.socket(socket.AF_INET).close(),
            "a connection by path": lambda: socket.socket(socket.AF_UNIX).close(),
            "a device node": lambda: os.mknod(tmp_path / "disk", 0o60600, os.makedev(8, 0)),
            "signal its parent": lambda: os.kill(os.getppid(), 0),
            "another root": lambda: os.chroot(tmp_path),
        }

    def use():
        confinement.begin(network)
        refused = outcome(lambda: os.execv("/bin/true", ["true"]))
        confinement.complete(MachineConfig.create(net=network), "soft", Quiet())
        found = {name: outcome(do) for name, do in tries().items()}
        serve_as("vcpu")
        return refused, found, outcome(lambda: (tmp_path / "folder").mkdir())

    refused, found, as_vcpu = in_child(use)
    assert refused == "EACCES"
    assert as_vcpu == "EPERM"
    reached = {name for name, result in found.items() if result == "done"}
    wanted = {"a file that a client may name"}
    if network == "user":
        wanted.add("a connection")
    assert reached == wanted, found


def test_a_vsock_leaves_unix_sockets(tmp_path):
    def use():
        confinement.begin("tap")
        config = MachineConfig.create(vsock=str(tmp_path / "v.sock"), net="none")
        confinement.complete(config, "soft", Quiet())
        return outcome(lambda: socket.socket(socket.AF_UNIX).close())

    assert in_child(use) == "done"


@pytest.mark.engine
@pytest.mark.boot
@pytest.mark.parametrize("flags", [(), ("--no-seccomp",)])
def test_every_thread_is_filtered_from_the_guests_first_instruction_on(tmp_path, flags):
    kernel, initrd = microvm.guest(tmp_path)
    with microvm.MicroVm(tmp_path, *flags) as vm:
        vm.put(
            "/boot-source",
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=microvm.BOOT_ARGS,
        )
        before = filters(vm.process.pid)
        vm.put("/actions", action_type="InstanceStart")
        vm.until(lambda: microvm.UP in vm.console)
        after = filters(vm.process.pid)
        status = Path(f"/proc/{vm.process.pid}/status").read_text()
    assert set(before.values()) == {0}
    if flags:
        assert set(after.values()) == {0}
        assert "NoNewPrivs:\t0" in status
        return
    assert min(after.values()) == 1
    # A vCPU's thread has its own table, too.
    assert max(after.values()) == 2
    assert "NoNewPrivs:\t1" in status


def filters(pid):
    """Return how many filters of system calls each thread of a process has."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        (count,) = (int(line.split()[1]) for line in lines if "Seccomp_filters" in line)
        found[task.name] = count
    return found
