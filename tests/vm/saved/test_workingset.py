"""What a restored machine touches first: noted once, read ahead the next time, never trusted."""

import os
import struct
import time

import pytest

from ringzero.host.memory import PAGE, HostMemory
from ringzero.vm.machine import Machine
from ringzero.vm.saved import workingset
from ringzero.vm.saved.store import Store
from tests.engine.fake import FakeEngine
from tests.vm.seeds import image

SIZE = 32 << 20


@pytest.fixture
def memory():
    content = image({0: b"x", 10 * PAGE: b"y", 4 << 20: b"z"})
    memory = HostMemory("test", SIZE, content)
    content.close()
    yield memory
    memory.close()


def runs(path):
    data = path.read_bytes()
    return list(struct.iter_unpack("<QQ", data.removeprefix(workingset.MAGIC)))


def test_what_was_touched_is_noted_with_small_gaps(memory, tmp_path):
    for page in (0, 10 * PAGE, 4 << 20):
        assert memory.view[page] != 0
    memory.view[8 << 20] = 1
    path = tmp_path / workingset.FILE
    workingset.note(memory, path)
    found = runs(path)
    assert found[0][0] == 0 and found[0][1] > 10 * PAGE
    for place in (4 << 20, 8 << 20):
        assert any(start <= place < end for start, end in found)
    assert sum(end - start for start, end in found) < 2 << 20
    assert os.listdir(tmp_path) == [workingset.FILE]


def test_nothing_is_noted_of_memory_that_was_given_back(memory, tmp_path):
    assert memory.view[0]
    memory.close()
    workingset.note(memory, tmp_path / workingset.FILE)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        workingset.MAGIC + b"odd",
        workingset.MAGIC + struct.pack("<4Q", 0, 1 << 63, 1 << 62, 5),
        workingset.MAGIC + struct.pack("<2Q", (1 << 64) - 1, (1 << 64) - 1),
    ],
)
def test_a_bad_note_is_ignored(memory, tmp_path, data):
    path = tmp_path / workingset.FILE
    workingset.prefetch(path, memory.fd, SIZE)
    path.write_bytes(data)
    workingset.prefetch(path, memory.fd, SIZE)


def test_the_first_restore_notes_and_the_next_reads_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(workingset, "SETTLED", 0.01)
    asked = []
    advise = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *a: (asked.append(a[1:3]), advise(*a)))
    store = Store(tmp_path / "store")
    with Machine(engine=FakeEngine(), memory="32M") as vm:
        vm.memory[0x5000:0x5004] = b"here"
        snapshot = vm.snapshot("one", store=store)
    path = snapshot.path / workingset.FILE
    with snapshot.restore(engine=FakeEngine()) as vm:
        assert vm.memory[0x5000:0x5004] == b"here"
        assert not path.exists()
        vm.start()
        deadline = time.monotonic() + 10
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not asked
    noted = path.read_bytes()
    with snapshot.restore(engine=FakeEngine()) as vm:
        vm.start()
        assert any(start <= 0x5000 < start + length for start, length in asked)
    assert path.read_bytes() == noted and snapshot.check() == []
    store.remove("one")
    assert not snapshot.path.exists()
