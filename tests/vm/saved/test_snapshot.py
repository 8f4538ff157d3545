"""Snapshots of a real guest: saved while it runs, gone on from here and in other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.errors import HostError, InvalidValueError, StateError
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store
from tests.engine.fake import FakeEngine

pytestmark = [pytest.mark.boot, pytest.mark.engine]

ELSEWHERE = """
import sys
from pathlib import Path
from ringzero.vm.saved.store import Store
with Store(Path(sys.argv[1])).get("first").start() as vm:
    print(vm.run(sys.argv[2], timeout=60).stdout.decode(), end="")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="module")
def store(place):
    """Two snapshots of one machine, with different files in memory and on its disk."""
    disk = place / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    store = Store(place / "store")
    try:
        machine = Machine(image="micro", memory="128M", engine="soft", disks=[f"{disk},format=raw"])
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        for text in ("first", "second"):
            machine.run(f"echo {text} | tee /tmp/text >/dev/vda; sync", timeout=120)
            machine.snapshot(text, store=store)
        with pytest.raises(InvalidValueError):
            machine.snapshot("first", store=store)
    disk.write_bytes(b"\xff" * (1 << 20))
    return store


LOOK = "cat /tmp/text; head -n 1 /dev/vda"


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_machine_goes_on_from_it(store, name):
    with store.get(name).start(Identity("copy")) as vm:
        assert vm.run(LOOK, timeout=60).stdout.decode() == f"{name}\n{name}\n"
        assert vm.run("hostname", timeout=60).stdout == b"copy\n"
        vm.run("echo other | tee /tmp/text >/dev/vda; sync", timeout=60)
        saved = vm.snapshot(f"after-{name}", store=store)
    assert {n.snapshot.name: n.parent for n in store.tree()}[saved.name] == name
    assert store.get(name).check() == []
    store.remove(name if name == "second" else saved.name)


def test_two_processes_at_once(store, place):
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": f"{Path(ringzero.__file__).parents[1]}:{root}"}
    command = f"{LOOK}; cat /proc/sys/kernel/random/uuid"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE, str(store.root), command],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [lines[:2] for lines in said] == [["first", "first"]] * 2
    assert said[0][2] != said[1][2]
    assert store.get("first").check() == []


def test_another_engine_is_refused(store):
    with pytest.raises(StateError, match="engine"):
        store.get("first").restore(engine=FakeEngine())
