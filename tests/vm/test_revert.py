"""Machines taken back to a snapshot in place: what is refused, and what a guest finds."""

import threading
import time
from dataclasses import replace

import pytest

from ringzero.errors import DiskError, GuestError, HostError, InvalidValueError, StateError
from ringzero.isa.x86.architecture import startup_state
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store
from tests.engine.fake import FakeEngine

MIB = 1 << 20
# Real mode, at 0x1000: count at 0x2000, in 32 bits, for ever.
COUNTER = bytes.fromhex("66ff060020 ebf9")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "disk.img").write_bytes(b"first".ljust(4 * MIB, b"\0"))
    return tmp_path


@pytest.fixture
def store(place):
    return Store(place / "store")


def build(place, **fields):
    disks = fields.pop("disks", [f"{place}/disk.img,format=raw"])
    return Machine(engine=FakeEngine(), disks=disks, **{"memory": "32M", **fields})


def test_memory_state_and_disk_are_what_they_were(place, store):
    with build(place) as vm:
        vm.start()
        vm.memory[0x5000:0x5004] = b"then"
        vm.disks[0].write(MIB, b"then" * 128)
        snapshot = vm.snapshot("one", store=store)
        vm.memory[0x5000:0x5004] = b"now!"
        vm.memory[0x900000:0x900004] = b"new!"
        vm.disks[0].write(MIB, b"now!" * 128)
        vm.disks[0].write(2 * MIB, b"new!" * 128)
        generation = vm.identity.generation
        vm.revert(snapshot)
        assert vm.running
        assert (vm.memory[0x5000:0x5004], vm.memory[0x900000:0x900004]) == (b"then", bytes(4))
        assert vm.disks[0].disk.read(MIB, 4) == b"then"
        assert vm.disks[0].disk.read(2 * MIB, 4) == bytes(4)
        assert vm.lineage == (snapshot.identifier,)
        assert vm.identity.generation != generation
        # As often as one likes, and from there on to others.
        vm.memory[0x5000:0x5004] = b"more"
        second = vm.snapshot("two", store=store)
        vm.revert(snapshot)
        vm.revert(second)
        assert vm.memory[0x5000:0x5004] == b"more"
    assert (place / "disk.img").read_bytes()[MIB : MIB + 4] == b"then"
    assert {n.snapshot.name: n.parent for n in store.tree()} == {"one": None, "two": "one"}


def test_a_fork_taken_before_keeps_what_it_has(place, store):
    with build(place) as vm:
        vm.start()
        snapshot = vm.snapshot("one", store=store)
        vm.memory[0x5000:0x5004] = b"fork"
        vm.disks[0].write(0, b"forks")
        with vm.fork()[0] as child:
            vm.revert(snapshot)
            assert child.memory[0x5000:0x5004] == b"fork"
            assert child.disks[0].disk.read(0, 5) == b"forks"
            assert vm.memory[0x5000:0x5004] == bytes(4)
            # A copy may go back, too; its original's disk is not touched.
            child.disks[0].write(0, b"child")
            child.revert(snapshot)
            assert child.disks[0].disk.read(0, 5) == b"first"
            assert vm.disks[0].disk.read(0, 5) == b"first"
            vm.disks[0].write(0, b"later")
            child.revert(snapshot)
            assert vm.disks[0].disk.read(0, 5) == b"later"


def test_only_what_differs_is_written(place, store):
    with build(place) as vm:
        snapshot = vm.snapshot("one", store=store)
        vm.disks[0].write(MIB, b"x" * 512)
        with vm.fork()[0]:
            vm.revert(snapshot)
            newest = vm.disks[0]._newest
            assert newest._copies.count == 1


def test_one_that_was_not_started_begins_there(place, store):
    with build(place) as vm:
        vm.start()
        vm.memory[0x5000:0x5004] = b"then"
        snapshot = vm.snapshot("one", store=store)
    with build(place) as vm:
        vm.revert(snapshot)
        assert not vm.running
        vm.start()
        assert vm.memory[0x5000:0x5004] == b"then"


def test_without_memory_it_boots(place, store):
    with build(place) as vm:
        vm.start()
        snapshot = vm.snapshot("one", memory=False, store=store)
        vm.memory[0x5000:0x5004] = b"now!"
        vm.disks[0].write(0, b"later")
        vm.revert(snapshot)
        assert vm.running
        assert vm.memory[0x5000:0x5004] == bytes(4)
        assert vm.disks[0].disk.read(0, 5) == b"first"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"memory": "64M"}, "memory"),
        ({"disks": []}, "1 disks"),
        ({"disks": ["other.img,format=raw"]}, r"disk .*disk\.img, not .*other\.img"),
        ({"disks": ["disk.img,ro,format=raw"]}, "otherwise writable"),
        ({"agent": True}, "agent"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(place, store, fields, words):
    with build(place) as vm:
        snapshot = vm.snapshot("one", store=store)
    (place / "other.img").write_bytes(b"other".ljust(4 * MIB, b"\0"))
    if "disks" in fields:
        fields = fields | {"disks": [f"{place}/{disk}" for disk in fields["disks"]]}
    with build(place, **fields) as vm:
        vm.start()
        vm.memory[0x5000:0x5004] = b"here"
        with pytest.raises(StateError, match=words):
            vm.revert(snapshot)
        assert vm.running and vm.memory[0x5000:0x5004] == b"here"
    assert (place / "other.img").read_bytes()[:5] == b"other"


@pytest.mark.parametrize("part", ["state", "base", "disk"])
def test_a_damaged_snapshot_changes_nothing(place, store, part):
    with build(place) as vm:
        vm.start()
        snapshot = vm.snapshot("one", store=store)
        manifest = snapshot.manifest
        blob = manifest.memory.base if part == "base" else manifest.disks[0].blob
        path = snapshot.path / "state.json" if part == "state" else snapshot.blob(blob)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-5])
        vm.memory[0x5000:0x5004] = b"here"
        vm.disks[0].write(0, b"later")
        with pytest.raises(StateError):
            vm.revert(snapshot)
        assert vm.running and vm.memory[0x5000:0x5004] == b"here"
        assert vm.disks[0].disk.read(0, 5) == b"later"


def test_a_disk_that_cannot_be_written_ends_the_machine_and_can_be_completed(
    place, store, monkeypatch
):
    with build(place) as vm:
        vm.start()
        snapshot = vm.snapshot("one", store=store)
        for at in (0, MIB):
            vm.disks[0].write(at, b"later")

        def full(offset, length, unmap):
            raise DiskError("no space left on device")

        monkeypatch.setattr(vm.disks[0].disk, "write_zeroes", full)
        with pytest.raises(StateError, match="in part only") as caught:
            vm.revert(snapshot)
        assert "revert again" in caught.value.hint
        with pytest.raises(StateError, match="in part only"):
            vm.wait(5)
        with pytest.raises(InvalidValueError, match="ended"):
            vm.revert(snapshot)
    with build(place) as vm:
        vm.revert(snapshot)
    assert (place / "disk.img").read_bytes() == b"first".ljust(4 * MIB, b"\0")


def test_a_hook_cannot_revert_its_own_machine(place, store):
    with build(place) as vm:
        snapshot = vm.snapshot("one", store=store)
        vm.threads[0].thread = threading.current_thread()
        with pytest.raises(InvalidValueError, match="hook"):
            vm.revert(snapshot)
        vm.threads[0].thread = threading.Thread()


@pytest.mark.parametrize(
    "engine",
    [pytest.param("soft", marks=pytest.mark.engine), pytest.param("kvm!", marks=pytest.mark.kvm)],
)
def test_running_machines_go_back_on_every_engine(engine, store, request):
    if engine == "kvm!":
        request.getfixturevalue("kvm_system")

    def count(vm):
        return int.from_bytes(vm.memory[0x2000:0x2004], "little")

    def counts_on(vm, beyond):
        end = time.monotonic() + 20
        while count(vm) <= beyond:
            assert time.monotonic() < end
            time.sleep(0.001)

    with Machine(engine=engine, memory="32M") as vm:
        vm.memory[0x1000 : 0x1000 + len(COUNTER)] = COUNTER
        vm.cpu.state = replace(startup_state(0), rip=0x1000)
        vm.start()
        counts_on(vm, 1000)
        vm.pause()
        then = count(vm)
        snapshot = vm.snapshot("then", store=store)
        for _ in range(3):
            vm.resume()
            counts_on(vm, then + 1000)
            vm.pause()
            vm.memory[0x3000:0x3004] = b"gone"
            vm.revert(snapshot)
            assert count(vm) == then and vm.memory[0x3000:0x3004] == bytes(4)
        # Code that was written over is what it was, too.
        vm.memory[0x1000:0x1002] = b"\xeb\xfe"
        vm.resume()
        vm.revert(snapshot)
        counts_on(vm, then + 1000)


@pytest.mark.boot
@pytest.mark.engine
def test_a_guest_goes_back(place, store):
    disk = f"{place}/disk.img,format=raw"
    try:
        vm = Machine(image="micro", memory="128M", engine="soft", disks=[disk])
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    look = "cat /tmp/text; head -n 1 /dev/vda; ls /tmp/more 2>/dev/null"
    with vm:
        vm.run("echo first | tee /tmp/text >/dev/vda; sync", timeout=120)
        snapshot = vm.snapshot("first", store=store)
        seen = set()
        for _ in range(3):
            vm.run("echo second | tee /tmp/text >/dev/vda; touch /tmp/more; sync", timeout=60)
            waiting = vm.agent.run("sleep 1000")
            vm.revert(snapshot)
            with pytest.raises(GuestError, match="taken back"):
                waiting.wait(10)
            assert vm.run(look, timeout=60).stdout == b"first\nfirst\n"
            seen.add(vm.run("cat /proc/sys/kernel/random/uuid", timeout=60).stdout)
        assert len(seen) == 3, "random numbers are new each time"
        cold = vm.snapshot("cold", memory=False, store=store)
        vm.revert(cold)
        assert vm.run(look, timeout=120).stdout == b"first\n"
        vm.revert(snapshot)
        assert vm.run(look, timeout=60).stdout == b"first\nfirst\n"
        assert b"BUG" not in vm.run("dmesg", timeout=60).stdout
    assert (place / "disk.img").read_bytes()[:6] == b"first\n"
