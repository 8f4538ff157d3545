"""Forks of running machines: what is shared, what is each one's own, and what they cost."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ringzero.core.memory import PAGE_SIZE
from ringzero.devices.virtio.kinds.console import PORT_READY, Console
from ringzero.engine.soft import code
from ringzero.errors import InvalidValueError, StateError
from ringzero.host import memory as host_memory
from ringzero.isa.x86.architecture import startup_state
from ringzero.vm.guest.identity import Identity
from ringzero.vm.guest.ports import IDENTITY_PORT
from ringzero.vm.machine import Machine
from ringzero.vm.state import MachineState
from tests.engine.fake import FakeEngine
from tests.vm.test_machine import SOURCE

MIB = 1 << 20


# ---- memory -------------------------------------------------------------------


@pytest.fixture(params=["ioctl", "table"])
def scan(request, monkeypatch):
    """Both ways to find the pages that were written to."""
    if request.param == "table":
        monkeypatch.setattr(host_memory, "scan_pages", lambda *_: None)


def copy_of(memory):
    image = memory.freeze()
    copy = host_memory.HostMemory("copy", memory.size, image)
    image.close()
    return copy


def test_frozen_memory_is_shared_until_written(scan):
    first = host_memory.HostMemory("test", 16 * MIB)
    first.view[5000:5004] = b"base"
    address = first.address
    second = copy_of(first)
    assert first.address == address and second.view[5000:5004] == b"base"
    first.view[5000:5002] = b"FI"
    second.view[5002:5004] = b"SE"
    assert bytes(first.view[5000:5004]) == b"FIse" and bytes(second.view[5000:5004]) == b"baSE"
    page = PAGE_SIZE
    assert first.changed() == [(page, 2 * page)]
    # A third copy while the second lives: the first's change comes along.
    third = copy_of(first)
    assert bytes(third.view[5000:5004]) == b"FIse"
    assert third.view[MIB : MIB + 4] == bytes(4)
    first.close()
    second.close()
    assert bytes(third.view[5000:5004]) == b"FIse"
    third.close()


@pytest.mark.parametrize("changed", [1, host_memory.COPY_LIMIT // PAGE_SIZE + 1])
def test_freezing_again(scan, changed):
    """Few changes are copied, many make a new base; without copies left they become the base."""
    first = host_memory.HostMemory("test", 64 * MIB)
    first.view[: 32 * MIB] = b"\1" * (32 * MIB)
    copies = [copy_of(first)]
    for number in range(2, 6):
        for page in range(0, changed * PAGE_SIZE, PAGE_SIZE):
            first.view[page + number] = number
        copies.append(copy_of(first))
    for number, copy in enumerate(copies, 1):
        last = (changed - 1) * PAGE_SIZE
        expected = bytes(n if 2 <= n <= number else 1 for n in range(8))
        assert bytes(copy.view[last : last + 8]) == expected
        assert copy.view[40 * MIB] == 0
        copy.close()
    base = first.base
    first.view[100] = 100
    last = copy_of(first)
    assert first.base is base and first.changed() == [] and last.view[100] == 100
    last.close()
    first.close()


def test_what_is_copied_into_clones_again_and_again_becomes_a_base(scan):
    """Of a machine that was resumed, whose base nobody may write to."""
    first = host_memory.HostMemory("test", 16 * MIB)
    first.view[: 4 * MIB] = b"\1" * (4 * MIB)
    image = first.freeze()
    image.share()
    resumed = host_memory.HostMemory("test", first.size, image)
    image.close()
    resumed.view[: MIB // 2] = b"\2" * (MIB // 2)
    counts = []
    for _ in range(4):
        copy = copy_of(resumed)
        counts.append(copy.changed())
        assert copy.view[0] == 2 and copy.view[MIB] == 1
        copy.close()
    changed = [(0, MIB // 2)]
    assert counts == [changed, changed, [], []]
    # For many clones at once it is worth it at once.
    resumed.view[MIB : 2 * MIB] = b"\3" * MIB
    with_many = resumed.freeze(clones=1), resumed.freeze(clones=100)
    assert not with_many[0].changed or with_many[0].base is not with_many[1].base
    assert not with_many[1].changed
    for image in with_many:
        image.close()
    resumed.close()
    first.close()


def test_pages_that_are_as_in_the_base_again_are_given_back(scan):
    first = host_memory.HostMemory("test", 16 * MIB)
    first.view[: 4 * MIB] = b"\1" * (4 * MIB)
    # Of memory that is nobody's copy there is nothing to give back.
    first.forget_same()
    copy = copy_of(first)
    for page in (0, 1, 2, 2000):
        copy.view[page * PAGE_SIZE] = 2 if page == 1 else copy.view[page * PAGE_SIZE]
    assert len(copy.changed()) == 2
    # So much that it would take long is left alone.
    copy.forget_same(limit=3 * PAGE_SIZE)
    assert len(copy.changed()) == 2
    copy.forget_same()
    assert copy.changed() == [(PAGE_SIZE, 2 * PAGE_SIZE)]
    assert copy.view[0] == 1 and copy.view[PAGE_SIZE] == 2 and copy.view[2000 * PAGE_SIZE] == 0
    copy.close()
    copy.forget_same()
    first.close()


def test_pages_that_are_as_in_the_base_again_are_not_copied_into_clones(scan):
    first = host_memory.HostMemory("test", 16 * MIB)
    first.view[: 4 * MIB] = b"\1" * (4 * MIB)
    image = first.freeze()
    image.share()
    resumed = host_memory.HostMemory("test", first.size, image)
    for page in range(64):
        resumed.view[page * PAGE_SIZE] = 1 if page % 4 else 2
    copy = copy_of(resumed)
    differing = [(page * PAGE_SIZE, (page + 1) * PAGE_SIZE) for page in range(0, 64, 4)]
    assert resumed.changed() == copy.changed() == differing
    # What has been found to differ is copied, whatever it holds by now; what is new is looked at.
    resumed.view[0] = 1
    resumed.view[PAGE_SIZE] = 7
    resumed.view[15 * MIB] = 0
    another = copy_of(resumed)
    assert another.changed() == [(0, 2 * PAGE_SIZE), *differing[1:]]
    for memory in (resumed, another):
        assert bytes(memory.view[:1]) == b"\1" and memory.view[PAGE_SIZE] == 7
        assert memory.view[8 * PAGE_SIZE] == 2 and memory.view[9 * PAGE_SIZE] == 1
    assert copy.view[0] == 2 and copy.view[PAGE_SIZE] == 1
    # It goes on from another base: what differed from the first says nothing of that.
    resumed.become(image)
    resumed.view[8 * PAGE_SIZE] = 1
    last = copy_of(resumed)
    assert last.changed() == []
    image.close()
    for memory in (first, resumed, copy, another, last):
        memory.close()


def test_memory_that_repeats_an_image():
    first = host_memory.HostMemory("test", 2 * PAGE_SIZE)
    first.view[:] = b"\xff" * first.size
    image = first.freeze()
    repeated = host_memory.RepeatedMemory(image, 3)
    parts = [
        (ctypes.c_char * first.size).from_address(repeated.address + n * first.size)
        for n in range(3)
    ]
    parts[1][0] = b"x"
    assert [part.raw[:2] for part in parts] == [b"\xff\xff", b"x\xff", b"\xff\xff"]
    assert bytes(first.view[:2]) == b"\xff\xff" and not image.base.sole
    del parts
    repeated.close()
    image.close()
    assert first.base.sole
    first.close()


def test_everything_is_given_back():
    before = len(os.listdir("/proc/self/fd"))
    first = host_memory.HostMemory("test", MIB)
    copies = [copy_of(first) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    for memory in [first, *copies]:
        memory.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_store_and_clear_in_private_memory():
    first = host_memory.HostMemory("test", 16 * MIB)
    first.store(100, b"x" * MIB)
    copy = copy_of(first)
    first.store(200, b"y" * MIB)
    first.clear(100, 50)
    copy.clear(2 * MIB, MIB)
    assert copy.changed() == []
    copy.clear(0, 16 * MIB)
    assert not any(copy.view[: 2 * MIB])
    assert bytes(first.view[98:152]) == bytes(52) + b"xx"
    assert first.view[200 + MIB - 1] == ord("y")
    first.close()
    copy.close()


# ---- machines without a guest ---------------------------------------------------


def test_an_ended_machine_has_no_forks():
    with Machine(engine=FakeEngine(), memory="32M") as vm:
        with pytest.raises(InvalidValueError, match="0 copies"):
            vm.fork(0)
        vm.stop()
        with pytest.raises(InvalidValueError, match="ended"):
            vm.fork()


def test_a_fork_of_what_never_ran():
    with Machine(engine=FakeEngine(), memory="32M", name="old") as vm:
        vm.memory[0x5000:0x5006] = b"before"
        (child,) = vm.fork()
        with child:
            vm.memory[0x5000:0x5006] = b"after!"
            assert child.memory[0x5000:0x5006] == b"before"
            assert child.save().tree["devices"].keys() == vm.save().tree["devices"].keys()
        with (
            vm.seed() as seed,
            Machine.from_seed(seed, Identity("new"), engine=FakeEngine()) as one,
        ):
            assert one.config.name == "new" and vm.config.name == "old"


@pytest.mark.parametrize(("elapsed", "moved"), [(0, 0), (50_000_000, 50_000_000), (10**10, 0)])
def test_clocks_step_to_now(elapsed, moved):
    """By no more than Linux bears: what is longer, its wall clock alone is told."""
    with Machine(engine=FakeEngine(), memory="32M", cpus=2) as vm, vm.seed() as seed:
        copy = Identity(now=seed.taken + elapsed)
        with Machine.from_seed(seed, copy, engine=FakeEngine()) as one:
            for before, after in zip(vm.cpus, one.cpus, strict=True):
                # The scripted engine's counter has a tick for each nanosecond.
                assert after.state.tsc == before.state.tsc + moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": ["avx512f", "fpu"]}, "avx512f"),
        ({"counter_hz": 1_234_567_890}, "frequency"),
        ({"counter_hz": "fast"}, "counter_hz"),
        ({"tsc_hz": 1}, "tsc_hz"),
        ({"features": None}, "features"),
    ],
)
def test_another_processor_is_refused(change, words):
    with Machine(engine=FakeEngine(), memory="32M") as vm, vm.seed() as seed:
        tree = seed.state.tree
        other = replace(
            seed, state=MachineState({**tree, "processor": {**tree["processor"], **change}})
        )
        with pytest.raises(StateError, match=words):
            Machine.from_seed(other, engine=FakeEngine())
        missing = replace(
            seed, state=MachineState({k: v for k, v in tree.items() if k != "processor"})
        )
        with pytest.raises(StateError, match="processor"):
            Machine.from_seed(missing, engine=FakeEngine())


def test_forgotten_forks_do_not_keep_the_interpreter():
    program = (
        "from ringzero.vm.machine import Machine\n"
        "vm = Machine(memory='32M', engine='soft')\n"
        "vm.memory[0:200] = b'\\xeb\\xfe' * 100\n"
        "children = vm.fork(3, start=True)\n"
        "print(len(children))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"3\n"), done.stderr


# Real mode, at 0x1000: count at 0x2000, for ever.
COUNTER = bytes.fromhex("ff060020 ebfa")


@pytest.mark.parametrize(
    "engine",
    [pytest.param("soft", marks=pytest.mark.engine), pytest.param("kvm!", marks=pytest.mark.kvm)],
)
def test_running_forks_on_every_engine(engine, request):
    """Each counts on from where the original was, in memory of its own."""
    if engine == "kvm!":
        request.getfixturevalue("kvm_system")

    def count(vm):
        return int.from_bytes(vm.memory[0x2000:0x2002], "little")

    def counts_on(vm):
        before = count(vm)
        end = time.monotonic() + 20
        while count(vm) == before:
            assert time.monotonic() < end
            time.sleep(0.001)

    with Machine(engine=engine, memory="32M") as vm:
        vm.memory[0x1000:0x1006] = COUNTER
        vm.cpu.state = replace(startup_state(0), rip=0x1000)
        vm.start()
        counts_on(vm)
        generations = [vm]
        for _ in range(4):
            (child,) = generations[-1].fork(start=True)
            generations.append(child)
            counts_on(child)
            counts_on(vm)
        for number, one in enumerate(generations):
            one.pause()
            one.memory[0x2000:0x2002] = bytes([number, 0])
        assert [count(one) for one in generations] == list(range(5))
        for one in generations:
            one.resume()
            counts_on(one)
        for one in generations:
            one.stop()


# ---- a guest --------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A booted guest with a disk."""
    from ringzero.errors import HostError
    from ringzero.image.micro import ensure

    try:
        ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    disk = tmp_path_factory.mktemp("fork") / "disk"
    disk.write_bytes(bytes(16 * MIB))
    with Machine(image="micro", memory="256M", engine="soft", disks=[f"{disk},format=raw"]) as vm:
        vm.run("true")
        vm.disk_file = disk
        yield vm


@pytest.fixture
def fork(original):
    """Make one fork, which is stopped with the test."""
    made = []

    def make(vm=original):
        made.extend(vm.fork())
        return made[-1]

    yield make
    for child in made:
        child.stop()


def text(vm, command):
    result = vm.run(command, timeout=60)
    assert result.exit_code == 0, result
    return result.stdout.decode().strip()


guest = [pytest.mark.engine, pytest.mark.boot]


@pytest.mark.parametrize("depth", [1, 3])
class TestGuest:
    pytestmark = guest

    @pytest.fixture
    def child(self, fork, depth):
        child = fork()
        for _ in range(depth - 1):
            child.start()
            child = fork(child)
        return child

    def test_each_goes_its_own_way(self, original, child):
        text(original, "echo parent >/tmp/mine")
        text(child, "test ! -e /tmp/mine; echo child >/tmp/mine")
        assert text(original, "cat /tmp/mine") == "parent"
        assert text(child, "cat /tmp/mine") == "child"
        assert text(original, "rm /tmp/mine; dmesg | tail -3 | grep -ci bug || true") == "0"

    def test_disks_part_at_the_fork(self, original, fork, child, depth):
        def put(vm, at, word):
            text(vm, f"echo {word} | dd of=/dev/vda bs=4k seek={at} conv=notrunc,fsync 2>&1")

        def get(vm, at):
            return text(vm, f"dd if=/dev/vda bs=4k skip={at} count=1 iflag=direct 2>/dev/null |"
                            " head -n 1 | tr -d '\\0'")  # fmt: skip

        put(original, 0, "one")
        late = fork()
        put(original, 0, "two")
        put(original, 700, "three")
        put(child, 1, "child")
        put(late, 2, "late")
        assert [get(original, n) for n in (0, 1, 2, 700)] == ["two", "", "", "three"]
        assert [get(late, n) for n in (0, 1, 2, 700)] == ["one", "", "late", ""]
        assert get(child, 1) == "child" and get(child, 2) == "" and get(child, 700) == ""
        # What the original flushed is in its image, and nothing of the others.
        data = original.disk_file.read_bytes()
        assert data[:4] == b"two\n" and data[700 * 4096 :][:6] == b"three\n"
        assert not any(data[4096:12288])
        text(original, "dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=notrunc,fsync 2>&1")

    def test_commands_belong_to_the_original(self, original, fork, depth):
        out = []
        command = original.agent.run(
            "echo begun; read line; echo $line", takes_input=True, on_stdout=out.append
        )
        while b"".join(out) != b"begun\n":
            time.sleep(0.01)
        child = fork()
        for _ in range(depth - 1):
            child.start()
            child = fork(child)
        result = child.run("echo child", timeout=60)
        assert (result.stdout, result.stderr, result.exit_code) == (b"child\n", b"", 0)
        command.write(b"ended\n")
        assert command.wait(60) == 0
        assert b"".join(out) == b"begun\nended\n"

    def test_time_goes_on(self, child):
        host = time.time()
        assert abs(float(text(child, "date +%s")) - host) < 2
        first = float(text(child, "cut -d' ' -f1 /proc/uptime"))
        assert float(text(child, "cut -d' ' -f1 /proc/uptime")) >= first
        assert (
            text(child, "dmesg | grep -ci 'lockup\\|stall\\|clocksource.*unstable' || true") == "0"
        )


class TestCost:
    pytestmark = guest

    def test_code_is_shared(self, original, fork):
        """What the original has translated, a fork does not translate again."""
        text(original, "seq 100 | sort -n | tail -1")
        text(original, "seq 100 | sort -n | tail -1")
        child = fork()
        text(child, "seq 100 | sort -n | tail -1")
        assert child.stats()["cpu0"]["translator_blocks"] < 2000
        # And it goes on sharing when it has to grow.
        text(child, "for a in awk sed grep tar vi bc; do $a --help; done >/dev/null 2>&1; true")
        assert text(child, "seq 100 | sort -n | tail -1") == "100"

    def test_generations_find_room_for_code(self, original, fork, monkeypatch):
        """Whoever is forked often goes on in new space before the old is full."""
        monkeypatch.setattr(code, "CLONE_ARENA", code.LEAST)
        child = fork()
        for round_ in range(6):
            child.start()
            text(child, f"awk 'BEGIN {{ print {round_} }}'; seq {round_}00 | sort -rn | tail -1")
            child = fork(child)
        assert text(child, "seq 100 | sort -n | tail -1") == "100"
        assert child.stats()["cpu0"]["translator_flushes"] == 0

    def test_a_page_that_differs_runs_its_own_code(self, original, fork):
        """Two forks put different programs at the same place."""
        one, two = fork(), fork()
        for child, word in ((one, "first"), (two, "other")):
            text(child, f"printf '#!/bin/sh\\necho {word}\\n' >/tmp/program; chmod +x /tmp/program")
        assert text(one, "/tmp/program") == "first"
        assert text(two, "/tmp/program") == "other"

    def test_forks_at_once_from_a_busy_machine(self, original):
        ended = threading.Event()
        sums = []

        def work():
            while not ended.is_set():
                sums.append(text(original, "seq 3000 | md5sum"))

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            for _ in range(5):
                children = original.fork(3, start=True)
                found = {text(child, "seq 3000 | md5sum") for child in children}
                for child in children:
                    child.stop()
                assert len(found) == 1
        finally:
            ended.set()
            worker.join()
        assert len(set(sums)) == 1 and {sums[0]} == found


@pytest.mark.boot
def test_forks_of_a_booting_machine_have_their_names():
    """A guest that does not listen yet finds its identity when it has come so far."""
    names = []
    with Machine(image="micro", memory="128M", engine="soft", name="first") as machine:
        machine.start()
        while not machine.agent.wait_ready(0.2):
            with (
                machine.seed() as seed,
                machine.grow(seed, Identity(f"copy-{len(names)}")) as copy,
            ):
                names.append((copy.config.name, copy.run("hostname", timeout=120).stdout))
        with machine.seed() as seed, machine.grow(seed, Identity("late")) as copy:
            names.append((copy.config.name, copy.run("hostname", timeout=120).stdout))
    assert [f"{name}\n".encode() for name, _ in names] == [told for _, told in names]


@pytest.mark.boot
def test_a_guest_waits_for_the_port_of_identities(monkeypatch):
    """It is the last that appears: a guest that goes on without it never hears who a copy is."""
    handle = Console._handle

    def late(console, index, event, value):
        if event == PORT_READY and console.ports[index].name == IDENTITY_PORT:

            def tell():
                with console.lock:
                    handle(console, index, event, value)
                    console._flush_control()

            threading.Timer(0.3, tell).start()
        else:
            handle(console, index, event, value)

    monkeypatch.setattr(Console, "_handle", late)
    with Machine(image="micro", memory="128M", engine="soft", boot=True, name="first") as machine:
        machine.start()
        assert machine.agent.wait_ready(120)
        with machine.seed() as seed, machine.grow(seed, Identity("copy")) as copy:
            assert copy.run("hostname", timeout=120).stdout == b"copy\n"


# ---- what copies do first --------------------------------------------------------


@pytest.mark.boot
def test_what_copies_do_first_is_translated_before_there_are_many(monkeypatch):
    with Machine(image="micro", memory="128M", engine="soft", boot=True, net="user") as vm:
        known = "cat /proc/sys/kernel/hostname /sys/class/net/eth0/address"
        before = vm.run(known).stdout
        hot, introduce, told = vm.parts.vm.code.hot, vm.parts.guest.introduce, []

        def told_of(record):
            told.append(vm.parts.vm.code.hot)
            introduce(record)

        monkeypatch.setattr(vm.parts.guest, "introduce", told_of)
        (first,) = vm.fork()
        assert not told
        many = vm.fork(2)
        (last,) = vm.fork()
        with first, many[0], many[1], last:
            assert told == [1, 1]
            assert vm.parts.vm.code.hot == hot > 1
            # The original is who it was, and each copy somebody else.
            assert vm.run(known).stdout == before
            found = {copy.run(known).stdout for copy in (vm, first, *many, last)}
            assert len(found) == 5


@pytest.mark.boot
def test_a_guest_at_work_or_paused_is_not_asked_to_rehearse(monkeypatch):
    with Machine(image="micro", memory="128M", engine="soft") as vm:
        vm.run("true")
        told = []
        monkeypatch.setattr(vm.parts.guest, "introduce", told.append)
        command = vm.agent.run("sleep 60")
        vm.rehearse()
        assert not told
        command.signal("KILL")
        assert command.wait(60) is not None
        vm.pause()
        vm.rehearse()
        assert not told
        vm.resume()
        vm.rehearse()
        assert told
