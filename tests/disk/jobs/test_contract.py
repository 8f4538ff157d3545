"""All kinds of block jobs on all formats, while a guest writes: nothing is lost."""

import contextlib
import random
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs.backup import Backup
from ringzero.disk.jobs.commit import ActiveCommit, LowerCommit
from ringzero.disk.jobs.contract import JobOptions, Owner, State
from ringzero.disk.jobs.listing import Jobs
from ringzero.disk.jobs.mirror import Mirror, Sync
from ringzero.disk.jobs.stream import Stream
from ringzero.errors import (
    ConflictError,
    DiskError,
    DiskLockedError,
    DiskUnsupportedError,
    InvalidValueError,
    NotFoundError,
)
from tests.disk.jobs.racing import SIZE, Racer, change

TARGETS = ("raw", "qcow2", "vdi", "vhdx", "vmdk")
SOURCES = ("raw", "qcow2", "vmdk")
LONG = 120


class Notes(Owner):
    """An owner that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.places = []

    def moved(self, path, format):
        self.places.append((path, format))


def content(path, format=None):
    with open_disk(path, format, read_only=True) as disk:
        return disk.read(0, disk.size)


def a_disk(path, format, dice):
    """Make an image with something in it; return it live, and what it holds."""
    create_disk(path, format, SIZE)
    live = LiveDisk(open_disk(path, format))
    model = bytearray(SIZE)
    for _ in range(20):
        change(live, model, dice)
    return live, model


def a_chain(folder, depth, dice, bottom="qcow2"):
    """Make a chain of `depth` layers with something in each; the top is live."""
    below, model = folder / "layer0", bytearray(SIZE)
    create_disk(below, bottom, SIZE)
    for number in range(depth):
        path = folder / f"layer{number}"
        if number:
            kind = bottom if number == 1 else "qcow2"
            create_disk(path, "qcow2", backing=below.name, backing_format=kind)
        live = LiveDisk(open_disk(path, bottom if not number else "qcow2"))
        for _ in range(8):
            change(live, model, dice)
        if number + 1 < depth:
            live.close()
        below = path
    return live, model


def target(folder, format="qcow2", name="target", size=SIZE, **more):
    path = folder / name
    create_disk(path, format, size, **more)
    return open_disk(path, format)


@pytest.fixture
def dice(request):
    return random.Random(request.node.name)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("to", TARGETS)
def test_mirror_pivots_to_all_that_was_written(tmp_path, dice, source, to):
    live, model = a_disk(tmp_path / "disk", source, dice)
    owner = Notes()
    job = Mirror(live, target(tmp_path, to), owner=owner)
    with Racer(live, model, 1) as guest:
        job.start()
        assert job.wait_ready(LONG), job.info()
        guest.await_writes(30)
        job.complete()
        assert job.wait(LONG)
        assert job.error is None
        guest.await_writes(10)
    assert job.state is State.CONCLUDED
    assert owner.places == [(str(tmp_path / "target"), to)]
    assert live.disk.read(0, SIZE) == model
    live.close()
    assert content(tmp_path / "target", to) == model


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("to", TARGETS)
def test_backup_is_the_disk_as_it_was(tmp_path, dice, source, to):
    live, model = a_disk(tmp_path / "disk", source, dice)
    before = bytes(model)
    job = Backup(live, target(tmp_path, to))
    job.start()
    with Racer(live, model, 2) as guest:
        guest.await_writes(20)
        assert job.wait(LONG)
    assert job.error is None
    assert content(tmp_path / "target", to) == before
    assert live.disk.read(0, SIZE) == model
    live.close()


@pytest.mark.parametrize("bottom", ["raw", "qcow2"])
@pytest.mark.parametrize("depth", [2, 4])
def test_active_commit_leaves_the_base_with_everything(tmp_path, dice, depth, bottom):
    live, model = a_chain(tmp_path, depth, dice, bottom)
    owner = Notes()
    job = ActiveCommit(live, depth - 1, owner=owner)
    with Racer(live, model, 3) as guest:
        job.start()
        assert job.wait_ready(LONG)
        guest.await_writes(20)
        job.complete()
        assert job.wait(LONG)
        assert job.error is None
        guest.await_writes(10)
    assert owner.places == [(str(tmp_path / "layer0"), bottom)]
    assert live.disk.backing is None
    assert live.disk.read(0, SIZE) == model
    live.close()
    assert content(tmp_path / "layer0", bottom) == model
    # Nobody holds the others any more.
    for number in range(1, depth):
        open_disk(tmp_path / f"layer{number}", "qcow2", backing=False).close()


@pytest.mark.parametrize(("top", "base"), [(1, 2), (1, 3), (2, 3), (2, 4), (1, 4)])
def test_lower_commit_takes_layers_out(tmp_path, dice, top, base):
    live, model = a_chain(tmp_path, 5, dice)
    job = LowerCommit(live, top, base)
    with Racer(live, model, 4) as guest:
        job.start()
        assert job.wait(LONG)
        assert job.error is None
        guest.await_writes(10)
    assert len(live.disk.chain()) == 5 - (base - top)
    assert all(layer.read_only for layer in live.disk.chain()[1:])
    assert live.disk.read(0, SIZE) == model
    live.close()
    for number in range(top, base):
        (tmp_path / f"layer{4 - number}").unlink()
    assert content(tmp_path / "layer4") == model


@pytest.mark.parametrize("base", [None, 2, 3])
def test_stream_takes_in_what_is_below(tmp_path, dice, base):
    live, model = a_chain(tmp_path, 4, dice)
    job = Stream(live, base)
    with Racer(live, model, 5) as guest:
        job.start()
        assert job.wait(LONG)
        assert job.error is None
        guest.await_writes(10)
    assert live.disk.read(0, SIZE) == model
    assert len(live.disk.chain()) == (1 if base is None else 1 + 4 - base)
    live.close()
    for number in range(1, 4 if base is None else base):
        (tmp_path / f"layer{3 - number}").unlink()
    assert content(tmp_path / "layer3") == model


def test_a_write_after_stream_has_read_and_before_it_writes(tmp_path, dice, monkeypatch):
    live, model = a_chain(tmp_path, 2, dice)
    below = live.disk.backing
    honest = below.read_into

    def read_into(offset, buffers):
        honest(offset, buffers)
        at = offset + 512
        live.disk.write(at, b"new" * 512)
        model[at : at + 1536] = b"new" * 512

    monkeypatch.setattr(below, "read_into", read_into)
    job = Stream(live)
    job.start()
    assert job.wait(LONG)
    assert job.error is None
    assert b"new" in model
    assert live.disk.read(0, SIZE) == model
    live.close()


def test_a_write_that_mirror_copies_while_it_is_under_way(tmp_path, dice, monkeypatch):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)
    job = Mirror(live, target(tmp_path))
    job.start()
    assert job.wait_ready(LONG)
    honest, source = live.disk.write, live.disk

    def write(offset, buffers):
        for _ in range(300):
            if job.info().offset == job.info().length:
                break
            time.sleep(0.01)
        honest(offset, buffers)

    monkeypatch.setattr(source, "write", write)
    live.write(4096, b"late" * 128)
    model[4096:4608] = b"late" * 128
    job.complete()
    assert job.wait(LONG)
    assert live.disk.read(0, SIZE) == model
    live.close()


def test_what_qemu_img_says(tmp_path, dice, qemu_img):
    live, model = a_chain(tmp_path, 4, dice)
    before = bytes(model)
    backup = Backup(live, target(tmp_path, name="backup"))
    backup.start()
    stream = Stream(live, 3)
    with Racer(live, model, 6):
        stream.start()
        assert stream.wait(LONG)
        assert backup.wait(LONG)
        mirror = Mirror(live, target(tmp_path, "raw"))
        mirror.start()
        assert mirror.wait_ready(LONG)
    mirror.cancel()
    assert mirror.wait(LONG)
    live.close()
    for name in ("layer0", "layer3", "backup"):
        assert "No errors" in qemu_img("check", tmp_path / name)
    assert "layer0" in qemu_img("info", tmp_path / "layer3")
    qemu_img("compare", "-F", "raw", tmp_path / "layer3", tmp_path / "target")
    (tmp_path / "before").write_bytes(before)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "backup", tmp_path / "before")


def test_a_mirror_of_the_top_layer(tmp_path, dice):
    live, model = a_chain(tmp_path, 3, dice)
    create_disk(tmp_path / "target", "qcow2", backing="layer1", backing_format="qcow2")
    job = Mirror(live, open_disk(tmp_path / "target", "qcow2"), sync=Sync.TOP)
    with Racer(live, model, 7):
        job.start()
        assert job.wait_ready(LONG)
        job.complete()
        assert job.wait(LONG)
        assert job.error is None
    live.close()
    assert content(tmp_path / "target") == model


def test_a_mirror_of_what_comes(tmp_path, dice):
    live, _ = a_disk(tmp_path / "disk", "qcow2", dice)
    job = Mirror(live, target(tmp_path), sync=Sync.NONE)
    job.start()
    assert job.wait_ready(LONG)
    live.write(1 << 20, b"x" * 65536)
    job.cancel()
    assert job.wait(LONG)
    live.close()
    found = content(tmp_path / "target")
    assert found[1 << 20 : (1 << 20) + 65536] == b"x" * 65536
    assert not any(found[: 1 << 20])


def test_a_target_with_old_bytes_in_it(tmp_path, dice):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)
    for kind, name in ((Mirror, "one"), (Backup, "two")):
        (tmp_path / name).write_bytes(b"old" * (SIZE // 3) + bytes(SIZE % 3))
        job = kind(live, open_disk(tmp_path / name, "raw"), name, blank=False)
        job.start()
        if kind is Mirror:
            assert job.wait_ready(LONG)
            job.cancel()
        assert job.wait(LONG)
        assert content(tmp_path / name, "raw") == model
    live.close()


def test_cancel_of_a_ready_mirror_leaves_a_copy_and_force_none(tmp_path, dice):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)
    failures = []
    for force in (False, True):
        failures.clear()
        job = Mirror(
            live, target(tmp_path, name=f"t{force}"), on_failure=lambda: failures.append(1)
        )
        job.start()
        assert job.wait_ready(LONG)
        live.write(0, b"y" * 512)
        model[:512] = b"y" * 512
        job.cancel(force=force)
        assert job.wait(LONG)
        assert job.cancelled
        assert failures == [1] * force
        if not force:
            assert content(tmp_path / "tFalse") == model
    assert live.disk.path == tmp_path / "disk"
    live.close()


def test_speed_pause_and_resume(tmp_path, dice):
    live, _ = a_disk(tmp_path / "disk", "raw", dice)
    live.write(0, dice.randbytes(SIZE))
    job = Backup(live, target(tmp_path), options=JobOptions(speed=1))
    job.start()
    info = job.info()
    assert 0 < info.length == SIZE
    job.pause()
    assert _becomes(job, State.PAUSED)
    done = job.info().offset
    assert done < SIZE
    job.set_speed(0)
    assert job.info().offset == done
    job.resume()
    assert job.wait(LONG)
    assert job.info().offset == SIZE
    with pytest.raises(ConflictError, match="concluded"):
        job.pause()
    with pytest.raises(InvalidValueError):
        job.set_speed(-1)
    live.close()


def _becomes(job, state):
    event = threading.Event()
    for _ in range(3000):
        if job.state is state:
            return True
        event.wait(0.01)
    return False


def test_states_are_qemus(tmp_path, dice):
    live, _ = a_disk(tmp_path / "disk", "qcow2", dice)
    seen = []
    options = JobOptions(auto_finalize=False, on_change=lambda job: seen.append(job.state.value))
    job = Mirror(live, target(tmp_path), options=options)
    with pytest.raises(ConflictError):
        job.finalize()
    job.start()
    assert job.wait_ready(LONG)
    with pytest.raises(ConflictError):
        job.dismiss()
    job.pause()
    assert _becomes(job, State.STANDBY)
    with pytest.raises(ConflictError, match="paused"):
        job.complete()
    job.resume()
    assert _becomes(job, State.READY)
    job.complete()
    assert _becomes(job, State.PENDING)
    assert live.disk.path == tmp_path / "disk"
    job.finalize()
    assert job.wait(LONG)
    job.dismiss()
    assert seen == [
        "running", "ready", "standby", "ready", "waiting", "pending", "concluded", "null",
    ]  # fmt: skip
    assert live.disk.path == tmp_path / "target"
    live.close()


def test_a_failing_target_ends_the_job_and_not_the_disk(tmp_path, dice, monkeypatch):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)

    def fail(*about):
        raise DiskError("no space left")

    for kind in (Mirror, Backup):
        failures = []
        output = target(tmp_path, name=f"t{kind.kind}")
        monkeypatch.setattr(output, "write", fail)
        job = kind(live, output, kind.kind, on_failure=lambda: failures.append(1))  # noqa: B023
        job.start()
        with Racer(live, model, 8) as guest:
            assert job.wait(LONG)
            guest.await_writes(10)
        assert job.state is State.CONCLUDED
        assert job.info().error == "no space left"
        assert failures == [1]
    assert live.disk.read(0, SIZE) == model
    live.close()


def test_an_owner_that_cannot_write_it_down_keeps_its_disk(tmp_path, dice):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)

    class Broken(Owner):
        def moved(self, path, format):
            raise DiskError("the host's disk is full")

    job = Mirror(live, target(tmp_path), owner=Broken())
    job.start()
    assert job.wait_ready(LONG)
    job.complete()
    assert job.wait(LONG)
    assert job.info().error == "the host's disk is full"
    assert live.disk.path == tmp_path / "disk"
    assert live.disk.read(0, SIZE) == model
    live.close()


def test_closing_the_disk_ends_its_jobs(tmp_path, dice):
    live, model = a_disk(tmp_path / "disk", "qcow2", dice)
    owner = Owner()
    mirror = Mirror(live, target(tmp_path), owner=owner)
    backup = Backup(live, target(tmp_path, name="other"), options=JobOptions(auto_finalize=False))
    mirror.start()
    backup.start()
    assert mirror.wait_ready(LONG)
    assert _becomes(backup, State.PENDING)
    # The owner waits for the disk, and has its own lock; the job wants that, too.
    with _held_elsewhere(owner.lock):
        mirror.complete()
        live.close()
    assert mirror.state is backup.state is State.CONCLUDED
    assert content(tmp_path / "disk") == model


@contextlib.contextmanager
def _held_elsewhere(lock):
    taken, over = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            over.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(LONG)
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_instants_and_jobs_together(tmp_path, dice):
    live, model = a_chain(tmp_path, 3, dice)
    before, instant = bytes(model), live.instant()
    job = ActiveCommit(live, 2)
    with Racer(live, model, 9):
        job.start()
        assert job.wait_ready(LONG)
        job.complete()
        assert job.wait(LONG)
        assert job.error is None
    assert instant.read(0, SIZE) == before
    instant.close()
    live.close()
    assert content(tmp_path / "layer0") == model


def test_commit_wants_the_base_for_itself(tmp_path, dice):
    live, model = a_chain(tmp_path, 3, dice)
    with open_disk(tmp_path / "layer0", "qcow2", read_only=True):
        with pytest.raises(DiskLockedError):
            ActiveCommit(live, 2).start()
        # And nobody else may write to what it reads.
        assert live.disk.read(0, SIZE) == model
    with pytest.raises(DiskLockedError):
        open_disk(tmp_path / "layer0", "qcow2")
    job = ActiveCommit(live, 2)
    job.start()
    with live.instant() as instant, pytest.raises(ConflictError, match="backing files"):
        instant.share()
    job.cancel()
    assert job.wait(LONG)
    with live.instant() as instant:
        instant.share().complete()
    # Shared again for reading.
    open_disk(tmp_path / "layer0", "qcow2", read_only=True).close()
    live.close()
    assert content(tmp_path / "layer2") == model


def test_what_makes_no_sense_is_refused(tmp_path, dice):
    live, model = a_disk(tmp_path / "disk", "vmdk", dice)
    with pytest.raises(InvalidValueError, match="bytes, and the disk"):
        Mirror(live, target(tmp_path, size=SIZE + 512)).start()
    with pytest.raises(InvalidValueError, match="bytes, and the disk"):
        Backup(live, target(tmp_path, name="b", size=SIZE + 512)).start()
    with pytest.raises(DiskUnsupportedError, match="qcow2"):
        Stream(live)
    with pytest.raises(InvalidValueError, match="backing"):
        ActiveCommit(live, 1)
    live.close()
    other, _ = a_chain(tmp_path, 2, dice)
    with pytest.raises(InvalidValueError):
        Stream(other, 1)
    with pytest.raises(InvalidValueError):
        LowerCommit(other, 1, 1)
    other.close()
    assert content(tmp_path / "disk") == model


def test_the_listing(tmp_path, dice):
    live, _ = a_disk(tmp_path / "disk", "qcow2", dice)
    jobs = Jobs()
    job = jobs.start("b", lambda: Backup(live, target(tmp_path), "b"))
    assert job.wait(LONG)
    with pytest.raises(ConflictError, match="already"):
        jobs.start("b", lambda: pytest.fail("made"))
    assert jobs.free_name("b") == "b-2"
    assert [one.state for one in jobs.infos()] == ["concluded"]
    jobs.find("b").dismiss()
    assert jobs.infos() == []
    with pytest.raises(NotFoundError):
        jobs.find("b")
    with pytest.raises(InvalidValueError):
        jobs.start("", lambda: pytest.fail("made"))
    live.close()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 1 << 30),
    steps=st.lists(
        st.sampled_from(["mirror", "backup", "commit", "lower", "stream", "cancel", "write"]),
        min_size=1,
        max_size=6,
    ),
)
def test_any_row_of_jobs(tmp_path_factory, seed, steps):
    folder = tmp_path_factory.mktemp("row")
    dice = random.Random(seed)
    live, model = a_chain(folder, 4, dice)
    owner = Notes()
    with Racer(live, model, seed, pause=0.0005):
        for number, step in enumerate(steps):
            depth = len(live.disk.chain())
            if step == "mirror":
                job = Mirror(live, target(folder, name=f"m{number}"), owner=owner)
            elif step == "cancel":
                job = Mirror(live, target(folder, name=f"c{number}"), owner=owner)
            elif step == "commit" and depth > 1:
                job = ActiveCommit(live, dice.randrange(1, depth), owner=owner)
            elif step == "lower" and depth > 2:
                job = LowerCommit(live, 1, dice.randrange(2, depth))
            elif step == "stream" and depth > 1:
                job = Stream(live, dice.choice([None, *range(2, depth)]))
            elif step == "backup":
                job = Backup(live, target(folder, name=f"b{number}"))
            else:
                continue
            job.start()
            if isinstance(job, Mirror):
                assert job.wait_ready(LONG)
                job.cancel() if step == "cancel" else job.complete()
            assert job.wait(LONG)
            assert job.error is None
    assert live.disk.read(0, SIZE) == model
    path, kind = live.disk.path, live.disk.format
    live.close()
    assert content(path, kind) == model
    if owner.places:
        assert owner.places[-1] == (str(path), kind)
