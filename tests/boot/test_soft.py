"""Debian's kernel and the default image on the software engine, end to end."""

import hashlib
import math
import os
import subprocess
import sys
import time

import pytest

import ringzero
from ringzero.errors import RingzeroError
from ringzero.image.micro import Recipe, ensure

pytestmark = [pytest.mark.boot, pytest.mark.engine]
WAIT = 120
DISK_SIZE = 1 << 20


@pytest.fixture(scope="session")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("boot") / "disk.img"
    path.write_bytes(os.urandom(DISK_SIZE))
    return path


def machine(image, **fields):
    return ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        agent=True,
        engine="soft",
        **{"memory": "256M", **fields},
    )


@pytest.fixture(scope="session")
def guest(image, disk):
    with machine(image, disks=[f"{disk},format=raw"]) as vm:
        assert vm.run("true", timeout=WAIT).exit_code == 0
        yield vm
        assert vm.stats()["faults"] == {}


def run(guest, command, **keywords):
    result = guest.run(command, timeout=WAIT, **keywords)
    return result.exit_code, result.stdout, result.stderr


def test_it_is_linux(guest):
    status, out, err = run(guest, ["uname", "-srm"])
    assert (status, err) == (0, b"")
    assert out.startswith(b"Linux ")
    assert out.endswith(b"x86_64\n")
    assert guest.stats()["engine"] == "soft"


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status(guest, status):
    assert run(guest, f"exit {status}") == (status, b"", b"")


def test_streams_are_apart(guest):
    assert run(guest, "cat; echo err >&2", input=b"in\n") == (0, b"in\n", b"err\n")


def test_binary_through(guest):
    data = os.urandom(1 << 20)
    status, out, _ = run(guest, "tee /tmp/copy; sha256sum /tmp/copy >&2", input=data)
    assert (status, out) == (0, data)
    status, out, _ = run(guest, "sha256sum < /tmp/copy; rm /tmp/copy")
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_disk(guest, disk):
    _, out, _ = run(guest, "sha256sum < /dev/vda")
    assert out.split()[0].decode() == hashlib.sha256(disk.read_bytes()).hexdigest()
    assert run(guest, "printf written | dd of=/dev/vda bs=512 seek=3 conv=fsync")[0] == 0
    content = disk.read_bytes()
    assert content[3 * 512 :][:7] == b"written"
    assert len(content) == DISK_SIZE


def test_random_numbers(guest):
    assert b"virtio" in run(guest, "cat /sys/class/misc/hw_random/rng_available")[1]
    first, second = (run(guest, "head -c 32 /dev/hwrng")[1] for _ in range(2))
    assert len(first) == len(second) == 32
    assert first != second


def test_the_kernel_has_nothing_to_complain_about(guest):
    _, log, _ = run(guest, "dmesg")
    assert b"Linux version" in log
    bad = (b"WARNING", b"BUG:", b"Oops", b"Call Trace", b"general protection", b"rcu_sched")
    assert [line for line in log.splitlines() if any(word in line for word in bad)] == []


def test_the_clock_goes_as_ours_does(guest):
    began = time.monotonic()
    _, out, _ = run(guest, "cut -d' ' -f1 /proc/uptime; sleep 2; cut -d' ' -f1 /proc/uptime")
    outside = time.monotonic() - began
    before, after = map(float, out.split())
    assert 1.9 < after - before <= outside + 0.1
    now = float(run(guest, "date +%s")[1])
    assert abs(now - time.time()) < 10


def test_signals_and_processes(guest):
    script = "for i in $(seq 20); do (exit $i) & done; wait; kill -9 $$"
    assert run(guest, script)[0] == 137


def test_arithmetic_of_every_kind(guest):
    """Double-precision in awk, 64 bits in the shell, a CRC, a compressor, all against ours."""
    script = 'BEGIN { for (i = 1; i < 2000; i++) s += (i % 7) / i; printf "%.12g", s }'
    _, out, _ = run(guest, ["awk", script])
    expected = sum(math.fmod(i, 7) / i for i in range(1, 2000))
    assert float(out) == pytest.approx(expected, rel=1e-11)
    assert run(guest, "echo $((0x7fffffffffffffff / 1000003 * 7 % 8191))")[1] == (
        b"%d\n" % (0x7FFFFFFFFFFFFFFF // 1000003 * 7 % 8191)
    )
    data = b"".join(b"%d\n" % n for n in range(50_000))
    assert run(guest, "gzip -9 | gunzip", input=data)[1] == data


@pytest.mark.parametrize("cpus", [2, 4])
def test_several_cpus_work_side_by_side(image, cpus):
    """Forks, pipes and signals on all of them, saved in the midst of it and gone on with."""
    script = (
        'for i in $(seq 8); do (seq 2000 | sort -rn | sha256sum; sh -c "kill -9 \\$\\$") & done;'
        "wait; nproc"
    )
    with machine(image, cpus=cpus) as vm:
        status, out, _ = run(vm, f"sh -c '{script}' 2>/dev/null")
        assert (status, len(set(out.splitlines()[:-1]))) == (0, 1)
        assert (len(out.splitlines()), out.split()[-1]) == (9, b"%d" % cpus)
        # A process of its own on each CPU, at the same time.
        busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
        each = " & ".join([f"taskset -c {n} sh -c '{busy}'" for n in range(cpus)])
        assert run(vm, f"{each} & wait")[0] == 0
        # What is going on in all of them goes on in a clone, and in the original.
        counting = "i=0; while :; do i=$((i+1)); echo $i >> /tmp/count{n}; done"
        start = "".join(f"({counting.format(n=n)}) </dev/null >/dev/null 2>&1 & " for n in (1, 2))
        assert run(vm, start + "true")[0] == 0
        vm.pause()
        vm.resume()
        (clone,) = vm.fork(1, start=True)
        with clone:
            for one in (clone, vm):
                look = "a=$(wc -l </tmp/count1); sleep 1; [ $(wc -l </tmp/count1) -gt $a ] && nproc"
                assert run(one, look)[:2] == (0, b"%d\n" % cpus)
        log = run(vm, "dmesg")[1]
        bad = (b"WARNING", b"BUG:", b"Oops", b"Call Trace", b"general protection", b"stall")
        assert [line for line in log.splitlines() if any(word in line for word in bad)] == []


def test_32_bit_programs():
    """Debian's static busybox for i386 beside the 64-bit one."""
    try:
        image = ensure(Recipe("micro-i386", foreign=("busybox-static:i386",)))
    except RingzeroError as fault:
        pytest.skip(f"needs Debian packages for i386: {fault.message}")
    with machine(image) as vm:
        find = "find / -xdev -name 'busybox*' -type f"
        paths = run(vm, find)[1].decode().split()
        narrow = [p for p in paths if run(vm, f"head -c 5 {p} | tail -c 1")[1] == b"\x01"]
        assert narrow, paths
        data = os.urandom(200_000)
        status, out, _ = run(vm, [narrow[0], "sha256sum"], input=data)
        assert status == 0
        assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert run(vm, [narrow[0], "awk", "BEGIN { print 1 / 3 }"])[1] == b"0.333333\n"


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_a_program_that_forgets_its_machine_ends_cleanly(delay):
    script = (
        "import ringzero, time; vm = ringzero.Machine(image='micro', engine='soft', memory='128M');"
        f" vm.start(); time.sleep({delay})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
