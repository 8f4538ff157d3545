"""Networks from inside the guest: addresses, links, and a cable to clones and to QEMU."""

import re
import shutil
import subprocess
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.errors import HostError
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.engine]
MAC = "02:00:5e:10:20:30"
WAIT = 30


def output(machine, command):
    result = machine.run(command, timeout=60)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def mac(machine):
    return output(machine, "cat /sys/class/net/eth0/address").strip()


def until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def up(machine):
    return output(machine, "cat /sys/class/net/eth0/carrier || true").strip() == "1"


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A machine that listens for its cable's other end; its interface is up."""
    path = tmp_path_factory.mktemp("net") / "cable"
    net = f"socket={path},listen,mac={MAC}"
    try:
        machine = Machine(image="micro", memory="128M", engine="soft", net=net)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        output(
            machine, "ip addr add 10.9.0.1/24 dev eth0; ip link set eth0 up; dmesg -c >/dev/null"
        )
        yield machine


def test_the_interface(parent):
    assert mac(parent) == MAC == parent.config.nets[0].mac
    assert output(parent, "cat /sys/class/net/eth0/mtu") == "1500\n"
    assert not up(parent), "nobody at the other end"


def test_forks_have_addresses_of_their_own(parent):
    children = parent.fork(2, start=True)
    try:
        seen = [mac(machine) for machine in (parent, *children)]
        assert seen == [machine.config.nets[0].mac for machine in (parent, *children)]
        assert len(set(seen)) == 3 and seen[0] == MAC
        for child in children:
            # What the driver of a guest without ringzero's program reads, when it starts.
            device = output(child, "readlink -f /sys/class/net/eth0/device").strip().rsplit("/")[-1]
            driver = "/sys/bus/virtio/drivers/virtio_net"
            output(child, f"echo {device} >{driver}/unbind; echo {device} >{driver}/bind")
            assert mac(child) == child.config.nets[0].mac
    finally:
        for child in children:
            child.stop()


def test_several_interfaces_each_with_an_address_of_its_own():
    def macs(machine):
        return output(machine, "cat /sys/class/net/eth*/address").split()

    with Machine(
        image="micro", memory="128M", engine="soft", nets=["none", f"none,mac={MAC}"]
    ) as vm:
        told = [net.mac for net in vm.config.nets]
        assert macs(vm) == told and told[1] == MAC
        assert {"net", "net1"} < set(vm.board.slots)
        (child,) = vm.fork(start=True)
        with child:
            assert macs(child) == [net.mac for net in child.config.nets]
            assert len({*macs(child), *told}) == 4


def test_an_identity_with_an_address(parent):
    with parent.seed() as seed:
        with Machine.from_seed(seed, Identity(mac="02:00:00:00:00:09")) as child:
            assert mac(child) == "02:00:00:00:00:09"
        other = Identity(net=NetConfig("none"))
        with Machine.from_seed(seed, other) as child:
            assert mac(child) == other.mac and not up(child)


def test_parent_and_clone_over_a_cable(parent):
    """The clone's end connects to where the parent listens; packets of every size pass."""
    (child,) = parent.fork(start=True)
    with child:
        output(child, "ip addr flush dev eth0; ip addr add 10.9.0.2/24 dev eth0")
        until(lambda: up(child) and up(parent))
        for size in (8, 1472, 8000):
            said = output(parent, f"ping -c 1 -W 10 -s {size} 10.9.0.2")
            assert "1 packets received" in said, said
        assert child.config.nets[0].mac in output(parent, "arp -n")
        # A link of the other's, while the cable has two ends already.
        with child.seed() as seed, Machine.from_seed(seed) as third:
            third.start()
            time.sleep(0.3)
            assert not up(third)
        # Its input never ends, or it would hang up before all has come.
        listen = "nc -l -p 99 <>/tmp/in >/tmp/got; touch /tmp/all"
        output(parent, f"mkfifo /tmp/in; ({listen}) >/dev/null 2>&1 &")
        output(child, "head -c 3000000 /dev/urandom >/tmp/sent; nc -w 20 10.9.0.1 99 </tmp/sent")
        until(lambda: parent.run("test -e /tmp/all", timeout=60).exit_code == 0)
        sums = [output(m, f"sha256sum </tmp/{f}") for m, f in ((child, "sent"), (parent, "got"))]
        assert sums[0] == sums[1], output(parent, "ls -l /tmp/got")
    until(lambda: not up(parent))


def test_the_kernel_has_nothing_to_say(parent):
    log = output(parent, "dmesg")
    assert not re.search(r"WARN|error|rror:|stall|timed out", log), log


@pytest.mark.peer
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_qemu_at_the_other_end(parent, tmp_path):
    """QEMU's own network stack answers: a machine without a processor, that has a router."""
    netdevs = (
        f"stream,id=cable,server=off,addr.type=unix,addr.path={parent.config.nets[0].target}",
        "user,id=router",
        "hubport,hubid=0,id=one,netdev=cable",
        "hubport,hubid=0,id=two,netdev=router",
    )
    command = ["qemu-system-x86_64", "-M", "none", "-display", "none", "-monitor", "none"]
    for netdev in netdevs:
        command += ["-netdev", netdev]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as peer:
        try:
            until(lambda: peer.poll() is not None or up(parent))
            if peer.poll() is not None:
                pytest.skip(f"this QEMU has no such network: {peer.stderr.read()[:200]}")
            output(parent, "ip addr add 10.0.2.15/24 dev eth0")
            said = output(parent, "ping -c 3 -W 10 -s 1000 10.0.2.2")
            assert "3 packets received" in said, said
        finally:
            peer.terminate()
            output(parent, "ip addr del 10.0.2.15/24 dev eth0 || true")
    until(lambda: not up(parent))
