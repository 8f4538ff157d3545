"""The store of snapshots: the tree, what is shared, damage, full disks, and kill -9."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.errors import (
    HostError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
    StateError,
)
from ringzero.vm.saved import blobs, packed
from ringzero.vm.saved.compare import difference
from ringzero.vm.saved.snapshot import MANIFEST, STATE, Manifest, Snapshot, _checksum
from ringzero.vm.saved.store import Store
from ringzero.vm.saved.transfer import export, import_file
from tests.vm.seeds import DISK, ancestors, content, save, seed

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "snapshots")


def texts(store):
    """What each snapshot holds, read from memory, disk and state."""
    found = {}
    for snapshot in store.all()[0]:
        with snapshot.seed() as value:
            blocks = dict(blobs.memory_blocks(value.memory))
            memory = blocks[0x1F00000].rstrip(b"\0")
            disk = bytes(value.disks[0].read(0, DISK)).rstrip(b"\0")
            state = value.state.tree["devices"]["serial"]["text"].encode()
            assert blocks[0][0x1000:0x100B] == b"same in all"
        assert memory == disk == state
        found[snapshot.name] = memory
    return found


def family(store, tmp_path):
    """Root, two children, a grandchild."""
    root = save(store, tmp_path, "root", b"r")
    left = save(store, tmp_path, "left", b"l", ancestors(root))
    save(store, tmp_path, "right", b"rr", ancestors(root))
    save(store, tmp_path, "leaf", b"leaf", ancestors(left))


def parents(store):
    return {node.snapshot.name: node.parent for node in store.tree()}


def test_what_was_saved_is_there(store, tmp_path):
    save(store, tmp_path, "one")
    assert texts(store) == {"one": b"one"}
    snapshot = store.get("one")
    assert snapshot.check() == []
    readable = json.loads((snapshot.path / MANIFEST).read_text())
    assert readable["config"]["memory"] == 32 << 20 and readable["engine"] == "soft"


def test_pages_changed_since_the_base_are_saved(store, tmp_path):
    with seed(tmp_path, changed=[(0x2000, b"new" * 1365 + b"!"), (0xF000, bytes(8192))]) as value:
        expected = content(value.memory)
        saved = store.save_seed(value, "one", engine="soft")
    memory = saved.memory()
    assert content(memory) == expected
    memory.close()


def test_a_later_snapshot_holds_only_what_differs(store, tmp_path):
    first = save(store, tmp_path, "one", b"one")
    second = save(store, tmp_path, "two", b"two", ancestors(first))
    assert second.manifest.memory.base == first.manifest.memory.base
    delta = second.blob(second.manifest.memory.delta)
    assert delta.stat().st_size < 3 * blobs.PAGE
    third = save(store, tmp_path, "three", b"three", ancestors(second))
    assert third.manifest.memory.base == first.manifest.memory.base, "deltas do not pile up"
    assert texts(store) == {"one": b"one", "two": b"two", "three": b"three"}


def test_a_large_difference_is_written_whole(store, tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "LARGEST_DELTA", 100)
    first = save(store, tmp_path, "one", b"one")
    second = save(store, tmp_path, "two", b"two", ancestors(first))
    assert second.manifest.memory.delta is None
    assert texts(store) == {"one": b"one", "two": b"two"}


def test_removing_in_the_middle_loses_nothing(store, tmp_path):
    family(store, tmp_path)
    assert parents(store) == {"root": None, "left": "root", "right": "root", "leaf": "left"}
    store.remove("left")
    assert parents(store) == {"root": None, "right": "root", "leaf": "root"}
    assert texts(store) == {"root": b"r", "right": b"rr", "leaf": b"leaf"}
    store.remove("root")
    assert parents(store) == {"right": None, "leaf": None}
    assert texts(store) == {"right": b"rr", "leaf": b"leaf"}
    assert all(s.check() == [] for s in store.all()[0])


def test_shared_data_is_counted_and_freed_with_its_last_user(store, tmp_path):
    family(store, tmp_path)
    nodes = {node.snapshot.name: node for node in store.tree()}
    assert nodes["leaf"].own > 0 and nodes["leaf"].shared > 0
    total = sum(p.stat().st_blocks * 512 for p in store.blobs.iterdir())
    assert total == sum(n.own for n in nodes.values()) + nodes["root"].shared
    for name in ("root", "left", "right"):
        own = {n.snapshot.name: n.own for n in store.tree()}[name]
        assert store.remove(name) == own
    assert store.tree()[0].shared == 0
    store.remove("leaf")
    assert list(store.blobs.iterdir()) == []


@pytest.mark.parametrize("name", ["", "blobs", "lock", ".x", "a/b", "..", "x" * 64, "-x", "a\n"])
def test_names_that_are_refused(store, tmp_path, name):
    with pytest.raises(InvalidValueError):
        save(store, tmp_path, name)
    with pytest.raises((InvalidValueError, NotFoundError)):
        store.remove(name)


def test_a_name_is_taken_once(store, tmp_path):
    save(store, tmp_path, "one")
    with pytest.raises(InvalidValueError, match="one"):
        save(store, tmp_path, "one", b"other")
    assert texts(store) == {"one": b"one"}


def test_what_is_not_there(store):
    for act in (store.get, store.remove):
        with pytest.raises(NotFoundError):
            act("nothing")
    assert store.tree() == [] and store.sweep() == 0


def test_disks_of_a_machine_that_does_not_run(store, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"text".ljust(DISK, b"\0"))
    fixed = tmp_path / "fixed.img"
    fixed.write_bytes(bytes(DISK))
    disks = [f"{path},format=raw", f"{fixed},ro,format=raw"]
    saved = store.save_disks(MachineConfig.create(memory="32M", disks=disks), "cold")
    path.write_bytes(b"other".ljust(DISK, b"\0"))
    first, second = saved.disks()
    assert bytes(first.read(0, 4)) == b"text" and second.read_only
    grown = first.grow()
    grown.write(0, b"TEXT")
    assert bytes(first.read(0, 4)) == b"text"
    for disk in (grown, first, second):
        disk.close()
    with pytest.raises(StateError, match="without memory"):
        saved.seed()


def test_difference(store, tmp_path):
    one = save(store, tmp_path, "one", b"one")
    two = save(store, tmp_path, "two", b"two", ancestors(one))
    found = difference(one, two)
    assert found["memory"] == {"pages": 1, "bytes": 4096}
    assert found["disks"] == [{"pages": 1, "bytes": 4096}]
    assert found["devices"] == ["serial"] and found["config"] == {} and found["seconds"] > 0
    assert difference(one, one)["memory"]["pages"] == 0


# ---- damage --------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_found(store, tmp_path):
    one = save(store, tmp_path, "one")
    save(store, tmp_path, "two", b"two", ancestors(one))
    generator = random.Random(7)
    snapshot = store.get("two")
    files = [snapshot.path / MANIFEST, snapshot.path / STATE]
    files += [snapshot.blob(digest) for digest in snapshot.manifest.blobs]
    for path in files:
        whole = path.read_bytes()
        path.chmod(0o644)
        for _ in range(3):
            at = generator.randrange(len(whole))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes((whole[at] ^ 1 << generator.randrange(8),)))
            try:
                assert store.get("two").check(), (path, at)
            except StateError:
                assert path.name == MANIFEST
            path.write_bytes(whole)
    assert store.get("two").check() == []


@pytest.mark.parametrize("which", [MANIFEST, STATE, "base", "delta", "disk"])
@pytest.mark.parametrize("how", ["missing", "short", "empty", "long"])
def test_damaged_files_are_refused_with_words(store, tmp_path, which, how):
    one = save(store, tmp_path, "one")
    snapshot = save(store, tmp_path, "two", b"two", ancestors(one))
    part = snapshot.manifest.memory
    digests = {"base": part.base, "delta": part.delta, "disk": snapshot.manifest.disks[0].blob}
    path = snapshot.blob(digests[which]) if which in digests else snapshot.path / which
    data = path.read_bytes()
    path.chmod(0o644)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"short": data[:-7], "empty": b"", "long": data + b"x" * 4096}[how])
    with pytest.raises(RingzeroError) as caught:
        store.get("two").seed().close()
    assert caught.value.message
    assert "two" in store.names(), "it can be removed"
    if which != MANIFEST:
        assert store.get("two").check()


def test_nothing_is_freed_while_a_snapshot_cannot_be_read(store, tmp_path):
    save(store, tmp_path, "one")
    save(store, tmp_path, "two", b"two")
    whole = (store.root / "one" / MANIFEST).read_bytes()
    (store.root / "one" / MANIFEST).write_bytes(b"{}")
    assert set(store.all()[1]) == {"one"}
    assert store.remove("two") == 0
    (store.root / "one" / MANIFEST).write_bytes(whole)
    assert store.get("one").check() == []
    assert store.sweep() > 0


def test_newer_formats_are_refused_by_name(store, tmp_path):
    path = save(store, tmp_path, "one").path / MANIFEST
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format": 4}))
    with pytest.raises(StateError, match="format 4") as caught:
        store.get("one")
    assert "newer" in caught.value.hint


def test_the_format_before_is_still_read(store, tmp_path):
    path = save(store, tmp_path, "one").path / MANIFEST
    tree = json.loads(path.read_text())
    del tree["checksum"], tree["memory"]["packed"]
    tree["format"] = 1
    (disk,) = tree["config"].pop("devices")
    assert disk.pop("kind") == "disk"
    tree["config"] |= {"disks": [disk], "vsock": None, "net": None}
    path.write_text(json.dumps({**tree, "checksum": _checksum(tree)}))
    assert texts(store) == {"one": b"one"} and store.get("one").check() == []
    second = save(store, tmp_path, "two", b"two", ancestors(store.get("one")))
    assert second.manifest.memory.delta and texts(store) == {"one": b"one", "two": b"two"}


# ---- packed memory ---------------------------------------------------------------


def test_packed_memory_is_what_it_was_and_others_build_upon_it(store, tmp_path):
    first = save(store, tmp_path, "one", b"one", compress=True)
    part = first.manifest.memory
    assert part.packed and first.manifest.blobs[part.base] < 10_000
    second = save(store, tmp_path, "two", b"two", ancestors(first))
    assert second.manifest.memory.base == part.base and second.manifest.memory.packed
    plain = save(store, tmp_path, "plain", b"one")
    assert texts(store) == {"one": b"one", "two": b"two", "plain": b"one"}
    assert [s.check() for s in (first, second)] == [[], []]
    assert difference(first, plain)["memory"]["pages"] == 0
    export(second, tmp_path / "file")
    store.remove("one")
    assert import_file(store, tmp_path / "file", "back").check() == []
    assert texts(store)["back"] == b"two"


@pytest.mark.parametrize("how", ["missing", "short", "empty", "flipped", "head", "long"])
def test_damaged_packed_memory_is_refused(store, tmp_path, how):
    snapshot = save(store, tmp_path, "one", compress=True)
    path = snapshot.blob(snapshot.manifest.memory.base)
    data = path.read_bytes()
    path.unlink()
    damaged = {
        "short": data[:-9],
        "empty": b"",
        "flipped": data[:70] + bytes((data[70] ^ 4,)) + data[71:],
        "head": b"X" + data[1:],
        "long": data[:-4] + b"1234",
    }
    if how in damaged:
        path.write_bytes(damaged[how])
    with pytest.raises(RingzeroError):
        store.get("one").seed().close()
    assert store.get("one").check()


@settings(max_examples=50 * FUZZ, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    runs=st.lists(st.tuples(st.integers(0, 1 << 21), st.integers(0, 70_000), st.binary(max_size=9)),
                  max_size=4),
    honest=st.booleans(),
    rest=st.binary(max_size=20),
    frame=st.booleans(),
)  # fmt: skip
def test_hostile_packed_memory(tmp_path, runs, honest, rest, frame):
    body = b"".join(
        packed.BLOCK.pack(at, length) + (data.ljust(length, b"\0")[:length] if honest else data)
        for at, length, data in runs
    )
    body += rest if frame else b""
    path = tmp_path / "packed"
    head = packed.HEADER.pack(packed.MAGIC, 1 << 20)
    path.write_bytes(head + zstandard.compress(body) + (b"" if frame else rest))
    with contextlib.suppress(StateError):
        memory = packed.read(path, 1 << 20)
        assert os.fstat(memory.fd).st_size == 1 << 20
        memory.release()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.text(max_size=70)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=25 * FUZZ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_hostile_manifests(store, tmp_path, data):
    """Forged with a right checksum: refused with StateError, or sound after all."""
    if "one" not in store.names():
        save(store, tmp_path, "one")
    path = store.root / "one" / MANIFEST
    whole = path.read_bytes()
    tree = json.loads(whole)
    del tree["checksum"]
    for field in data.draw(st.sets(st.sampled_from(sorted(tree)), min_size=1, max_size=2)):
        if isinstance(tree[field], dict) and tree[field] and data.draw(st.booleans()):
            tree[field][data.draw(st.sampled_from(sorted(tree[field])))] = data.draw(JSON)
        else:
            tree[field] = data.draw(JSON)
    forged = json.dumps({**tree, "checksum": _checksum(tree)}).encode()
    try:
        manifest = Manifest.from_bytes(forged, "forged")
    except StateError:
        return
    assert all(blobs.DIGEST.fullmatch(digest) for digest in manifest.blobs)
    Snapshot(path.parent, store.blobs, manifest).check()


@settings(max_examples=50 * FUZZ, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    head=st.tuples(
        st.sampled_from((b"RZDELTA1", b"\0" * 8)), *(st.integers(0, (1 << 64) - 1),) * 2
    ),
    tail=st.binary(max_size=200),
    sane=st.booleans(),
)
def test_hostile_deltas(tmp_path, head, tail, sane):
    path = tmp_path / "delta"
    head = (head[0], 1 << 20, head[2] % 12) if sane else head
    path.write_bytes(blobs.DELTA.pack(*head) + tail)
    with contextlib.suppress(StateError):
        for offset, data in blobs.read_delta(path, 1 << 20):
            assert offset >= 0 and offset + len(data) <= 1 << 20


# ---- full disks and sudden death -----------------------------------------------


@pytest.mark.parametrize("left", range(0, 12, 1))
def test_a_full_disk_leaves_what_was(store, tmp_path, monkeypatch, left):
    """The `left`th thing that is written finds no room."""
    first = save(store, tmp_path, "one")
    room = [left]
    pwrite, fsync = os.pwrite, os.fsync

    def spend(act, *arguments):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return act(*arguments)

    with seed(tmp_path, b"two") as value, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *a: spend(pwrite, *a))
        patch.setattr(os, "fsync", lambda fd: spend(fsync, fd))
        try:
            store.save_seed(value, "two", lineage=ancestors(first), engine="soft")
        except HostError as fault:
            assert "full" in fault.hint
        else:
            assert room[0] >= 0
    store.sweep()
    assert store.get("one").check() == []
    assert all(s.check() == [] for s in store.all()[0])
    used = {d for s in store.all()[0] for d in s.manifest.blobs}
    assert {p.name for p in store.blobs.iterdir()} == used
    assert not list(store.root.glob(".partial-*"))


WORKER = """
import random, sys
from pathlib import Path
from ringzero.vm.saved.store import Store
from ringzero.vm.saved.transfer import export, import_file
from tests.vm.seeds import ancestors, save
place, seed = Path(sys.argv[1]), int(sys.argv[2])
store, generator = Store(place / "snapshots"), random.Random(seed)

def say(*words):
    print(*words, flush=True)

for number in range(10**6):
    names = store.names()
    choice = generator.random()
    if choice < 0.5 or not names:
        name = f"s{seed}-{number}"
        before = ancestors(store.get(generator.choice(names))) if names else ()
        save(store, place, name, name.encode(), before)
        say("saved", name, name)
    elif choice < 0.7:
        name, source = f"i{seed}-{number}", store.get(generator.choice(names))
        export(source, place / "export")
        import_file(store, place / "export", name)
        say("saved", name, source.state().tree["devices"]["serial"]["text"])
    else:
        name = generator.choice(names)
        say("removing", name)
        store.remove(name)
"""


def test_kill_at_any_moment(tmp_path):
    """What was reported saved is there, whole, whenever the process is killed."""
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": f"{Path(ringzero.__file__).parents[1]}:{root}"}
    generator = random.Random(11)
    store = Store(tmp_path / "snapshots")
    expected: dict[str, bytes] = {}
    for turn in range(3 * FUZZ):
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(turn)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = [child.stdout.readline()]
        time.sleep(generator.random() * 0.4)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
        child.wait()
        maybe = set()
        for line in said:
            match line.split():
                case ["saved", name, text]:
                    expected[name] = text.encode()
                case ["removing", name]:
                    expected.pop(name, None)
                    maybe.add(name)
        store.sweep()
        found = texts(store)
        assert expected.items() <= found.items()
        assert all(s.check() == [] for s in store.all()[0]) and not store.all()[1]
        # One that was saved, or not yet removed, when death came before the report.
        assert len(set(found) - set(expected)) <= 1
        expected = found
        assert {p.name for p in store.blobs.iterdir()} == {
            d for s in store.all()[0] for d in s.manifest.blobs
        }
        assert not list(store.root.glob(".partial-*"))
    assert child.returncode == -signal.SIGKILL and len(expected) > 0


def _save_as(place, name, number, results):
    store = Store(place / "snapshots")
    directory = place / str(number)
    directory.mkdir()
    try:
        save(store, directory, name, str(number).encode())
        results.put(number)
    except InvalidValueError:
        results.put(None)


def test_two_processes_and_one_name(store, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_save_as, args=(tmp_path, "same", n, results)) for n in range(2)
    ]
    for process in processes:
        process.start()
    winners = [w for w in (results.get(timeout=60) for _ in processes) if w is not None]
    for process in processes:
        process.join()
    assert len(winners) == 1
    assert texts(store) == {"same": str(winners[0]).encode()}


def test_work_of_the_living_is_left_alone(store):
    with store.workplace() as work:
        store.sweep()
        assert work.is_dir()
    assert not work.exists()


def test_manifests_say_the_same_again(store, tmp_path):
    manifest = save(store, tmp_path, "one").manifest
    assert Manifest.from_bytes(manifest.to_bytes(), "x") == manifest
    assert Manifest.from_bytes(replace(manifest, name="other").to_bytes(), "x").name == "other"
