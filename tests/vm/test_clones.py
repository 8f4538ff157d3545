"""What is promised of copies of a running machine, looked at from inside the guest."""

import os
import re
import time

import pytest

from ringzero.errors import HostError
from ringzero.isa.execution import NEVER
from ringzero.vm.copies import LONGEST_STEP
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.engine]

RANDOM = "head -c 32 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; mktemp -u"
CLOCK = "adjtimex | sed -n 's/.*time.tv_u*sec: *//p'; cut -d ' ' -f 1 /proc/uptime; hwclock -ur"
# How far a clone's clock may be from where it should be, in seconds. What the step itself
# leaves is some milliseconds; shared machines take their time before the guest answers.
CLOSE = 1.0


@pytest.fixture(scope="module")
def parent():
    try:
        machine = Machine(image="micro", memory="128M", engine="soft")
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        # From here on the kernel's log is what the copies make of it.
        machine.run("dmesg -c >/dev/null", timeout=120)
        yield machine


def output(machine, command):
    result = machine.run(command, timeout=60)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def clone(parent, identity=None):
    with parent.seed() as seed:
        return Machine.from_seed(seed, identity)


def clock(machine):
    """Return (the guest's wall clock minus the host's, its uptime, its RTC as printed)."""
    seconds, micros, uptime, rtc = output(machine, CLOCK).splitlines()
    return int(seconds) + int(micros) / 1e6 - time.time(), float(uptime), rtc


def test_forks_have_random_numbers_of_their_own(parent):
    children = parent.fork(3)
    try:
        seen = [output(machine, RANDOM).splitlines() for machine in (parent, *children)]
    finally:
        for child in children:
            child.stop()
    for values in zip(*seen, strict=True):
        assert len(set(values)) == len(seen), values


def test_no_two_of_many_copies_draw_alike(parent):
    """RINGZERO_TEST_COPIES=10000 tries as many."""
    seen = [output(parent, RANDOM)]
    wanted = int(os.environ.get("RINGZERO_TEST_COPIES", "20"))
    while len(seen) <= wanted:
        for child in parent.fork(10):
            with child:
                seen.append(output(child, RANDOM))
    for values in zip(*(text.splitlines() for text in seen), strict=True):
        assert len(set(values)) == len(seen)


def test_forks_of_forks_too(parent):
    (child,) = parent.fork()
    with child:
        (grandchild,) = child.fork()
        with grandchild:
            assert output(child, RANDOM) != output(grandchild, RANDOM)
            (late,) = grandchild.fork()
            with late:
                assert output(late, RANDOM) != output(grandchild, RANDOM)


def test_a_process_that_ran_on_has_other_random_numbers(parent):
    """Once the guest has taken its identity, which it has before any command runs."""
    output(
        parent,
        "(while :; do head -c 16 /dev/urandom | od -An -tx1; done >/tmp/drawn & echo $! >/tmp/pid)",
    )
    children = parent.fork(2)
    try:
        drawn = []
        for child in children:
            lines = "wc -l </tmp/drawn"
            begin = int(output(child, lines))
            output(child, f"until [ $({lines}) -gt {begin + 20} ]; do sleep 0.01; done")
            drawn.append(set(output(child, f"tail -n +{begin + 2} /tmp/drawn").splitlines()))
        assert len(drawn[0]) > 10 and len(drawn[1]) > 10
        assert not drawn[0] & drawn[1]
    finally:
        for child in children:
            child.stop()
        output(parent, "kill $(cat /tmp/pid)")


def test_a_copy_starts_no_process_in_its_guest(parent):
    """Its kernel looked for drivers of network interfaces that there are not, 14 times."""
    count = "grep processes /proc/stat"
    before = int(output(parent, count).split()[1])
    with clone(parent) as child:
        # The command's own, and perhaps a worker of the kernel's.
        assert int(output(child, count).split()[1]) - before < 6


def test_an_idle_copy_gives_memory_back_and_goes_on(parent):
    """Its tables of addresses, each time after it has worked."""
    (child,) = parent.fork(start=True)
    with child:
        cpu = child.threads[0].vcpu.cpu
        seen = 0
        for word in ("one", "two"):
            assert output(child, f"echo {word}") == f"{word}\n"
            end = time.monotonic() + 60
            while cpu.rests_from == seen:
                assert time.monotonic() < end, "it did not rest"
                # It has worked long ago.
                cpu.worked = 0
                time.sleep(0.01)
            seen = cpu.rests_from
        assert output(child, "echo three") == "three\n"
    assert parent.threads[0].vcpu.cpu.rests_from == NEVER


def test_an_idle_copy_gives_pages_back_that_it_left_as_they_were(parent):
    (child,) = parent.fork(start=True)
    with child:
        cpu, memory = child.threads[0].vcpu.cpu, child.parts.memory.host
        assert output(child, "echo one") == "one\n"
        # The original's page with the most in it that the copy has not written to.
        touched, changed = memory.base.extents(0, memory.size), memory.changed()
        page = next(start for start, end in touched if not any(a <= start < b for a, b in changed))
        with child.frozen():
            memory.view[page] = memory.view[page]
        assert any(a <= page < b for a, b in memory.changed())
        end = time.monotonic() + 60
        while any(a <= page < b for a, b in memory.changed()):
            assert time.monotonic() < end, "it was not given back"
            cpu.worked = 0
            time.sleep(0.01)
        assert output(child, "echo two") == "two\n"
        assert child.running


def test_a_copy_whose_timer_leaves_it_alone_for_long_is_settled_again(parent):
    (child,) = parent.fork(start=True)
    with child:
        vcpu = child.threads[0].vcpu
        for seconds, long in ((None, True), (100, True), (20, False), (-1, False)):
            with child.frozen():
                deadline = vcpu.cpu.deadline
                vcpu.cpu.deadline = (
                    NEVER
                    if seconds is None
                    else vcpu.vm.read_counter() + seconds * vcpu.vm.counter_hz
                )
                assert vcpu._sleeps_long() == long
                vcpu.cpu.deadline = deadline


def test_an_idle_copy_that_woke_for_a_moment_rests_again_when_it_sleeps_long(parent):
    (child,) = parent.fork(start=True)
    with child:
        cpu = child.threads[0].vcpu.cpu
        assert output(child, "echo one") == "one\n"
        end = time.monotonic() + 60
        while (seen := cpu.rests_from) == 0:
            assert time.monotonic() < end, "it did not rest"
            cpu.worked = 0
            time.sleep(0.01)
        # It has looked an address up since, which is no work, and then slept for hours.
        cpu.count_walks += 1
        cpu.tick_nanoseconds *= 1000
        while cpu.rests_from == seen:
            assert time.monotonic() < end, "it did not rest again"
            time.sleep(0.01)
        assert output(child, "echo two") == "two\n"


def test_generation_identifiers_differ(parent):
    def events(vm):
        return int(output(vm, "grep Ged /proc/interrupts").split()[1])

    # One that is copied several times has looked at its own once.
    before = events(parent)
    with clone(parent) as first, clone(parent) as second:
        seen = [vm.board.parts["vmgenid"].identifier for vm in (parent, first, second)]
        assert len(set(seen)) == 3
        assert first.memory[0xFE000:0xFE010] == seen[1]
        first.start()
        assert events(first) == before + 1


def test_a_short_time_passes_on_all_clocks(parent):
    """The time-stamp counter, from which Linux has all of its clocks, is moved on."""
    before = clock(parent)
    with parent.seed() as seed:
        then = seed.state.tree["cpus"][0]["tsc"]
        step = LONGEST_STEP - 1000
        with Machine.from_seed(seed, Identity(now=seed.taken + step)) as child:
            ticks = child.save().tree["cpus"][0]["tsc"] - then
            assert ticks >= step * child.parts.vm.counter_hz // 1_000_000_000
            assert abs(clock(child)[0] - before[0]) < CLOSE


@pytest.mark.parametrize("step", [1200, 400 * 86400])
def test_after_a_long_time_the_wall_clock_is_set(parent, step):
    _, uptime, _ = clock(parent)
    now = time.time_ns() + step * 1_000_000_000
    assert now - time.time_ns() > LONGEST_STEP
    begin = time.monotonic()
    with clone(parent, Identity(now=now)) as child:
        ahead, after, rtc = clock(child)
        assert abs(ahead - step) < CLOSE
        assert after - uptime < 10, "monotonic time goes on where it stood"
        assert rtc.split()[2:3] == [time.strftime("%e", time.gmtime()).strip()]
    assert time.monotonic() - begin < 30
    assert abs(clock(parent)[0]) < CLOSE + 1, "the parent's clock is its own"


def test_the_time_that_a_restore_takes_is_no_time_lost(parent):
    with parent.seed() as seed:
        time.sleep(0.3)
        identity = Identity()
        # As reading a snapshot does on a busy host.
        time.sleep(3)
        with Machine.from_seed(seed, identity) as child:
            assert abs(clock(child)[0] - clock(parent)[0]) < 2


def test_clocks_that_shall_not_move(parent):
    with parent.seed() as seed:
        time.sleep(1.5)
        with Machine.from_seed(seed, Identity(now=None)) as child:
            assert clock(child)[0] < clock(parent)[0] - 1


def test_a_clone_that_waits_to_be_started_has_the_time_of_its_start(parent):
    step = 3600
    child = clone(parent, Identity(now=time.time_ns() + step * 1_000_000_000))
    with child:
        time.sleep(1.5)
        assert abs(clock(child)[0] - step) < CLOSE


def test_names(parent):
    with clone(parent, Identity("web-1")) as child, clone(parent) as nameless:
        assert output(child, "hostname; uname -n") == "web-1\nweb-1\n"
        assert output(nameless, "hostname") == output(parent, "hostname") == "micro\n"
        assert (child.config.name, nameless.config.name) == ("web-1", parent.config.name)


def test_console_stays_with_the_parent(parent):
    heard = bytearray()
    parent.console.on_output = heard.extend
    with clone(parent) as child:
        output(child, "echo from the child >/dev/console; echo from the child >/dev/hvc0")
        output(parent, "echo from the parent >/dev/hvc0")
        deadline = time.monotonic() + 10
        while b"parent" not in heard and time.monotonic() < deadline:
            time.sleep(0.01)
    parent.console.on_output = lambda data: None
    assert b"from the parent" in heard and b"child" not in heard


def test_guest_ports_that_are_not_read_keep_nobody_waiting(parent):
    """Where the guest has no program for identities (it was killed), commands still run."""
    with clone(parent) as child:
        output(child, "kill $(pidof identity)")
        deadline = time.monotonic() + 10
        while child.parts.guest.identity_port.guest_open and time.monotonic() < deadline:
            time.sleep(0.01)
        with clone(child) as orphan:
            assert output(orphan, "echo yes") == "yes\n"


def test_kernel_log_stays_clean(parent):
    children = parent.fork(2)
    for child in children:
        with child:
            log = output(child, "dmesg")
            said = [
                line
                for line in log.splitlines()
                if not re.search(r"random: |unaligned|ADDRCONF", line)
            ]
            assert not said, log
