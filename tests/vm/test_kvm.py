"""Whole machines on the KVM engine; for a host whose KVM is real (`make test-kvm`)."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from ringzero.core.state import to_tree
from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.errors import RingzeroError
from ringzero.vm.exit import ExitReason
from ringzero.vm.machine import Machine
from tests.vm.guests import own_templates

pytestmark = [pytest.mark.kvm, pytest.mark.boot]
BOOT_TIMEOUT = 120


@pytest.fixture(scope="module", autouse=True)
def real_kvm():
    found = select.judge(ENGINES.get("kvm")())
    if found.usability is not Usability.USABLE:
        pytest.skip(found.reason)


@pytest.fixture(scope="module", autouse=True)
def image(real_kvm):
    from ringzero.image import micro

    try:
        return micro.ensure()
    except RingzeroError as fault:
        pytest.skip(f"no guest image: {fault.message}")


def test_auto_chooses_kvm():
    engine, reason = select.choose_auto()
    assert engine.name == "kvm"
    assert "million instructions" in reason


def test_the_command_line_runs_a_command():
    command = [sys.executable, "-m", "ringzero", "run", "--engine", "kvm", "--"]
    done = subprocess.run(
        [*command, "uname", "-a"], capture_output=True, text=True, timeout=BOOT_TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"Linux \S+ \S+ .* x86_64 GNU/Linux\n", done.stdout)


def test_machines_go_on_from_a_template(tmp_path):
    """Their guests' clocks, random numbers and addresses are their own; two vCPUs go on as well."""
    from ringzero.vm import boot
    from ringzero.vm.saved import making
    from ringzero.vm.saved.templates import Templates

    fields = {"memory": "256M", "engine": "kvm", "cpus": 2}
    look = "cat /proc/sys/kernel/random/uuid /sys/class/net/eth0/address; nproc; hostname; date +%s"
    with own_templates(tmp_path):
        config = boot.complete(None, "micro", dict(fields))
        assert making.make(config, select.choose("kvm"), Templates())
        seen = []
        for name in ("one", "two"):
            begin = time.monotonic()
            with Machine(image="micro", name=name, **fields) as machine:
                done = machine.run(look, timeout=BOOT_TIMEOUT, check=True)
                print(f"first answer after {time.monotonic() - begin:.3f} s")
                assert machine.stats()["started"] == "resumed"
                drawn, address, cpus, hostname, now = done.stdout.decode().split()
                assert (cpus, hostname) == ("2", name)
                assert address == machine.config.nets[0].mac
                assert abs(int(now) - time.time()) < BOOT_TIMEOUT / 2
                complaints = "dmesg | grep -ci 'stall\\|lockup\\|hung\\|unstable' || true"
                assert machine.run(complaints, timeout=BOOT_TIMEOUT).stdout == b"0\n"
            seen.append((drawn, address))
        assert all(len(set(values)) == 2 for values in zip(*seen, strict=True))
        booted = time.monotonic()
        with Machine(image="micro", boot=True, **fields) as machine:
            machine.run("true", timeout=BOOT_TIMEOUT, check=True)
        print(f"booted: {time.monotonic() - booted:.3f} s")


def test_two_vcpus_come_up_and_work():
    with Machine(image="micro", engine="kvm", memory="256M", cpus=2) as machine:
        result = machine.run(
            "nproc; (taskset 1 sh -c 'cat /proc/self/stat' & taskset 2 sh -c 'echo two'; wait) "
            ">/dev/null; grep LOC /proc/interrupts",
            timeout=BOOT_TIMEOUT,
        )
        lines = result.stdout.decode().splitlines()
        assert lines[0] == "2"
        timers = [int(word) for word in lines[-1].split()[1:3]]
        assert all(timers)
        spent = [machine.stats()[f"cpu{n}"]["exits"] for n in range(2)]
        assert all(spent)


def test_a_disk_is_read_and_written(tmp_path):
    disk = tmp_path / "disk.img"
    data = os.urandom(1 << 20)
    disk.write_bytes(data + bytes(1 << 20))
    from ringzero.config.devices.disk import DiskConfig

    disks = (DiskConfig(path=disk, format="raw"),)
    with Machine(image="micro", engine="kvm", memory="256M", disks=disks) as machine:
        result = machine.run(
            "head -c 1048576 /dev/vda | sha256sum && "
            "echo written | dd of=/dev/vda bs=1M seek=1 conv=notrunc,fsync 2>/dev/null",
            timeout=BOOT_TIMEOUT,
        )
        assert result.exit_code == 0, result.stderr
        assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
        # Notifications rang doorbells: the queues' own register was hardly an exit.
        assert machine.stats()["cpu0"]["exits"] > 0
    assert disk.read_bytes()[1 << 20 :][:8] == b"written\n"


class Ticks:
    """Collects "tick N" lines of the guest's serial line."""

    def __init__(self, machine):
        self.seen = []
        self._text = b""
        self._changed = threading.Condition()
        machine.serial.on_output = self._receive

    def _receive(self, data):
        with self._changed:
            self._text += data
            self.seen = [int(n) for n in re.findall(rb"tick (\d+)\r?\n", self._text)]
            self._changed.notify_all()

    def wait(self, number):
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.seen and self.seen[-1] >= number, BOOT_TIMEOUT
            ), f"seen {self.seen}, {self._text[-400:]}"


LOOP = "sh -c 'i=0; while :; do i=$((i+1)); echo tick $i >/dev/ttyS0; sleep 0.05; done'"


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_running_machine_is_saved_and_goes_on_in_another(cpus):
    fields = {"image": "micro", "engine": "kvm", "memory": "128M", "cpus": cpus}
    with Machine(**fields) as first, Machine(**fields) as second:
        before = Ticks(first)
        first.run(f"{LOOP} </dev/null >/dev/null 2>&1 & true", timeout=BOOT_TIMEOUT)
        before.wait(3)
        first.pause()
        state = first.save()
        # What is saved is plain data.
        tree = json.loads(json.dumps(state.tree))
        assert tree == state.tree
        second.parts.memory.host.view[:] = first.parts.memory.host.view
        second.restore(state)
        again = second.save().tree
        assert _timeless(again) == _timeless(state.tree)
        # Time-stamp counters go on from where they were, alike on all processors.
        hz = second.parts.vm.counter_hz
        for saved, restored in zip(tree["cpus"], again["cpus"], strict=True):
            assert 0 <= restored["tsc"] - saved["tsc"] < 60 * hz
        offsets = {thread.vcpu.descriptor.get_tsc_offset() for thread in second.threads}
        assert len(offsets) == 1
        last = before.seen[-1]
        after = Ticks(second)
        second.start()
        after.wait(last + 3)
        assert after.seen[0] in (last, last + 1)
        assert after.seen == list(range(after.seen[0], after.seen[-1] + 1))
        # The first one can go on, too.
        first.resume()
        before.wait(last + 2)


def _timeless(tree):
    """The saved tree without what passes by itself or is kept by the kernel on the way."""
    tree = to_tree(tree)
    for cpu in tree["cpus"]:
        cpu["tsc"] = 0
        # TSC_ADJUST, TSC_DEADLINE; and SYSENTER_ESP, of which KVM on AMD takes 32 bits only.
        for index in ("59", "1760", "373"):
            cpu["msrs"].pop(index, None)
        # Timer registers of the local APIC count down.
        cpu["lapic"] = None
    tree["engine"] = None
    return tree


def test_a_running_machine_is_forked():
    with Machine(image="micro", engine="kvm", memory="128M") as machine:
        machine.run("echo before >/tmp/mark; head -c 8M /dev/urandom >/tmp/noise", timeout=60)
        sums = machine.run("sha256sum /tmp/noise", timeout=60).stdout
        first, second = machine.fork(2)
        with first, second:
            # Memory is remapped under KVM's feet: nobody sees what another writes.
            for number, copy in enumerate((first, machine, second)):
                text = f"cat /tmp/mark; echo {number} >>/tmp/mark; sha256sum /tmp/noise"
                found = copy.run(text, timeout=60).stdout
                assert found == b"before\n" + sums, (number, found)
            for number, copy in enumerate((first, machine, second)):
                found = copy.run("tail -n 1 /tmp/mark; dmesg | tail -n 3", timeout=60).stdout
                assert found.split()[0] == str(number).encode(), found


def test_power_off_and_stop_are_prompt():
    with Machine(image="micro", engine="kvm", memory="128M") as machine:
        machine.run("true", timeout=BOOT_TIMEOUT)
        start = time.monotonic()
        machine.stop()
        assert time.monotonic() - start < 5
    with Machine(image="micro", engine="kvm", memory="128M") as machine:
        machine.run("(sleep 0.2; poweroff -f) >/dev/null 2>&1 </dev/null & true", timeout=60)
        assert machine.wait(60).reason is ExitReason.POWEROFF


@pytest.fixture
def ringzero(tmp_path):
    """Runs the command line, with machines and snapshots of its own; returns what it printed."""
    places = {
        "RINGZERO_MACHINES_DIR": str(tmp_path / "machines"),
        "RINGZERO_DATA_DIR": str(tmp_path / "data"),
    }

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "ringzero", *words],
            capture_output=True,
            text=True,
            timeout=BOOT_TIMEOUT,
            env=os.environ | places,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    yield run
    names = [machine["name"] for machine in json.loads(run("ps", "--all", "--json"))]
    for name in names:
        run("rm", "--force", name)


def test_copies_in_processes_of_their_own(ringzero):
    """fork(2) of a running guest, then a snapshot, from which two more processes go on."""
    ringzero("run", "-d", "--engine", "kvm", "--memory", "128M", "--name", "web")
    ringzero("exec", "web", "--", "sh", "-c", "echo before >/tmp/mark")
    assert ringzero("fork", "web", "--count", "2").split() == ["web-1", "web-2"]
    family = ("web-2", "web", "web-1")
    for name in family:
        # Nobody sees what another wrote.
        script = f"cat /tmp/mark; echo {name} >>/tmp/mark"
        assert ringzero("exec", name, "--", "sh", "-c", script) == "before\n"
    for name in family:
        assert ringzero("exec", name, "--", "cat", "/tmp/mark") == f"before\n{name}\n"
    ringzero("snapshot", "save", "web-1", "ready")
    for name in ("one", "two"):
        ringzero("snapshot", "restore", "ready", "--name", name)
        script = f"cat /tmp/mark; echo {name} >>/tmp/mark"
        assert ringzero("exec", name, "--", "sh", "-c", script) == "before\nweb-1\n"
    engines = {m["engine"] for m in json.loads(ringzero("ps", "--json"))}
    assert engines == {"kvm"}
    # The one that was saved has gone on by itself.
    assert ringzero("exec", "web-1", "--", "tail", "-n", "1", "/tmp/mark") == "web-1\n"
