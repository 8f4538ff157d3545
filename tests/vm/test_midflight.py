"""Machines that are another one at random moments, in the middle of everything, and do not notice.

Work goes on in the guest (disk, memory, timers, both consoles) while the
machine is forked, or saved and restored, and given up, or taken back to a
snapshot of that moment, again and again. The guest checks what it reads back;
the host checks that the consoles' lines come without a gap or a double. A dozen
moments in `make test`, RINGZERO_FUZZ times as many in `make fuzz`.
"""

import os
import random
import re
import time

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.errors import HostError
from tests.vm.guests import FOLLOW, RelayedMachine

pytestmark = [pytest.mark.boot, pytest.mark.engine]

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
HOPS = 12
DISK_SIZE = 4 << 20

WORK = r"""
dmesg -c >/dev/null
touch /run/go
fault() { echo "$*" >>/tmp/faults; }
disk() {
    i=0
    while [ -e /run/go ] || [ $i = 0 ]; do
        i=$((i + 1)) at=$((i % 16 * 2))
        yes "block $i" | head -c 131072 >/tmp/want
        dd if=/tmp/want of=/dev/vda bs=64k seek=$at conv=fsync 2>/dev/null || fault "write $i"
        blockdev --flushbufs /dev/vda
        dd if=/dev/vda bs=64k skip=$at count=2 2>/dev/null | cmp -s - /tmp/want || fault "disk $i"
    done
    echo $i >/tmp/disk
}
memory() {
    i=0
    head -c 200000 /dev/urandom >/tmp/m0
    sha256sum </tmp/m0 >/tmp/sum
    while [ -e /run/go ] || [ $i = 0 ]; do
        i=$((i + 1))
        cp /tmp/m$(((i + 1) % 2)) /tmp/m$((i % 2))
        sha256sum </tmp/m$((i % 2)) | cmp -s - /tmp/sum || fault "memory $i"
    done
    echo $i >/tmp/memory
}
timer() {
    i=0 last=0
    while [ -e /run/go ] || [ $i = 0 ]; do
        i=$((i + 1))
        sleep 0.01
        IFS=' .' read -r whole part rest </proc/uptime
        now=$((whole * 100 + 1$part - 100))
        [ $now -ge $last ] || fault "clock $last $now"
        last=$now
    done
    echo $i >/tmp/timer
}
lines() {
    i=0
    while [ -e /run/go ] || [ $i = 0 ]; do i=$((i + 1)); echo "$2 $i"; sleep 0.003; done >$1
    echo $i >/tmp/$2
}
stty raw -echo </dev/hvc0
for part in disk memory timer 'lines /dev/hvc0 tick' 'lines /dev/ttyS0 tock'; do
    $part </dev/null >/dev/null 2>&1 &
done
"""
# New random numbers; and, once, that a host with other work kept the guest waiting in the
# middle of a timer's interrupt, over which a copy's clock may have stepped besides.
EXPECTED = ("random: ", "hrtimer: interrupt took ")
PARTS = ("disk", "memory", "timer", "tick", "tock")


@pytest.fixture(params=sorted(FOLLOW) if FUZZ > 1 else ["forked", "reverted", "snapshotted"])
def relay(request, tmp_path):
    from ringzero.image.micro import ensure

    try:
        image = ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(DISK_SIZE))
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="128M",
        engine="soft",
        agent=True,
        disks=[f"{disk},format=raw"],
    )
    with RelayedMachine(config, FOLLOW[request.param]) as machine:
        yield machine


def numbers(data, word):
    return [int(n) for n in re.findall(rf"{word} (\d+)\r?\n", data)]


@pytest.mark.parametrize("seed", range(max(1, FUZZ // 2)))
def test_the_guest_never_notices(relay, seed):
    generator = random.Random(seed)
    assert relay.run(WORK)[0] == 0
    for _ in range(HOPS):
        # From the first instructions after a hop to long after it.
        time.sleep(generator.choice((0.001, 0.02, 0.3)) * generator.random())
        relay.hop()
    _, out, err = relay.run(
        "rm /run/go; for part in disk memory timer tick tock; do until [ -s /tmp/$part ]; do "
        "sleep 0.01; done; done; cat /tmp/disk /tmp/memory /tmp/timer /tmp/tick /tmp/tock; "
        "cat /tmp/faults"
    )
    assert err == b"cat: can't open '/tmp/faults': No such file or directory\n", out
    done = dict(zip(PARTS, map(int, out.split()), strict=True))
    log = relay.run("dmesg")[1].decode()
    assert not [line for line in log.splitlines() if not any(w in line for w in EXPECTED)], log
    deadline = time.monotonic() + 10
    for word, said in (("tick", lambda: relay.console_data), ("tock", lambda: relay.serial_data)):
        last = f"{word} {done[word]}\n".encode()
        while last not in said().replace(b"\r", b"") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert numbers(said().decode(), word) == list(range(1, done[word] + 1))
    assert relay.agent.faults == 0
