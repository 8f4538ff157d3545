"""Linux on several virtual CPUs of the software engine, whatever is done to it meanwhile."""

import json
import time

import pytest

from ringzero.errors import HostError
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store

pytestmark = [pytest.mark.boot, pytest.mark.engine]

TIMEOUT = 300
COMPLAINTS = "warning|bug:|stall|lockup|oops|call trace|hung task|clocksource.*unstable|soft lock"
# Works on all CPUs at once, pipes between them, maps and unmaps; prints a sum that tells.
WORK = """
job() { i=0; while [ $i -lt 30 ]; do seq 300 | sort -r | md5sum; i=$((i + 1)); done; }
for n in 1 2 3 4; do job > /tmp/job$n & done; wait; cat /tmp/job? | sort -u; rm /tmp/job?
"""
# Runs until it is told to end; each counts for itself.
BEGIN = """
rm -f /tmp/stop; for n in 1 2 3 4; do
(i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); echo $i > /tmp/count$n; done; : > /tmp/end$n) &
done >/dev/null 2>&1 </dev/null
"""
END = "touch /tmp/stop; while [ $(ls /tmp/end? 2>/dev/null | wc -l) -lt 4 ]; do sleep 0.1; done"


def output(machine, command):
    result = machine.run(command, timeout=TIMEOUT)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def healthy(machine, cpus):
    """The guest has all its CPUs, works, and its kernel has found nothing wrong."""
    assert output(machine, "nproc").strip() == str(cpus)
    assert len(output(machine, WORK).splitlines()) == 1
    assert output(machine, f"dmesg | grep -iE '{COMPLAINTS}' || true") == ""


@pytest.fixture(scope="module", params=[2, 4])
def parent(request):
    try:
        machine = Machine(image="micro", memory="192M", engine="soft", cpus=request.param)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        healthy(machine, request.param)
        yield machine


@pytest.fixture
def busy(parent):
    """A copy of the parent with a process for each of four CPUs."""
    (machine,) = parent.fork(1, start=True)
    try:
        output(machine, BEGIN)
        yield machine
    finally:
        machine.stop()


def test_all_of_them_take_interrupts(parent):
    columns = parent.config.cpus
    lines = output(parent, "grep -E 'LOC|CAL' /proc/interrupts").splitlines()
    assert all(all(map(int, line.split()[1 : 1 + columns])) for line in lines)


def test_pauses(busy):
    for n in range(20):
        busy.pause()
        before = [cpu.registers.rip for cpu in busy.cpus]
        time.sleep(0.002 * n)
        assert [cpu.registers.rip for cpu in busy.cpus] == before
        busy.resume()
    output(busy, END)
    healthy(busy, busy.config.cpus)


def test_forks_of_a_busy_one(busy):
    output(busy, "sleep 0.2")
    children = busy.fork(2, start=True)
    try:
        for machine in (busy, *children):
            output(machine, END)
            healthy(machine, busy.config.cpus)
    finally:
        for child in children:
            child.stop()


def test_a_saved_state_goes_on_in_another(busy):
    output(busy, "sleep 0.2")
    busy.pause()
    state = busy.save()
    tree = json.loads(json.dumps(state.tree))
    assert tree == state.tree
    with Machine(busy.config) as other:
        other.parts.memory.host.view[:] = busy.parts.memory.host.view
        other.restore(state)
        other.start()
        output(other, END)
        healthy(other, busy.config.cpus)


def test_a_snapshot(busy, tmp_path):
    store = Store(tmp_path)
    busy.snapshot("busy", store=store)
    with store.get("busy").start() as copy:
        for machine in (busy, copy):
            output(machine, END)
            healthy(machine, busy.config.cpus)


def test_hooks_on_all_cpus(busy):
    """A breakpoint in the kernel stops whichever CPU comes there, once for each time."""
    (line,) = output(busy, "grep ' T ksys_sync$' /proc/kallsyms").splitlines()
    seen = []
    busy.debugger.hook(int(line.split()[0], 16), lambda vm, cpu: seen.append(cpu.index))
    # One that is moved between its stop and its next instruction would be seen twice.
    cpus = range(busy.config.cpus)
    syncs = " & ".join(f"taskset {1 << n:x} sh -c 'sync; sync; sync'" for n in cpus)
    output(busy, f"{syncs} & wait")
    assert sorted(seen) == [n for n in cpus for _ in range(3)]
    busy.debugger.clear(int(line.split()[0], 16))
    output(busy, END)
    healthy(busy, busy.config.cpus)


def test_cpus_are_taken_out_and_put_back(busy):
    cpus = busy.config.cpus
    offline = "".join(f"echo 0 > /sys/devices/system/cpu/cpu{n}/online\n" for n in range(1, cpus))
    assert output(busy, f"{offline} cat /sys/devices/system/cpu/online").strip() == "0"
    # One that is out sleeps, and survives what is done to the machine.
    halts = busy.stats()["cpu1"]["halts"]
    (copy,) = busy.fork(1, start=True)
    try:
        for machine in (busy, copy):
            assert output(machine, "nproc").strip() == "1"
            output(machine, offline.replace("echo 0", "echo 1"))
            output(machine, END)
            healthy(machine, cpus)
    finally:
        copy.stop()
    assert busy.stats()["cpu1"]["halts"] > halts
