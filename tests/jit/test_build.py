"""The engine in the cache: full disks, killed compilers, targets."""

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ringzero.errors import HostError, InvalidValueError, NotFoundError
from ringzero.host import files
from ringzero.jit import build, workers
from ringzero.jit.compile import llvm
from ringzero.jit.guest import GUESTS, GuestCode
from ringzero.jit.workers import NO_ROOM, compile_all
from tests.boot.process import ENVIRONMENT

# A unit that compiles quickly.
SMALL = "insn.cache_control"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return tmp_path


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_the_tables_are_written(cache, monkeypatch):
    monkeypatch.setattr(workers, "compile_all", full)
    with pytest.raises(HostError, match="No space left") as caught:
        build.ensure()
    assert "RINGZERO_CACHE_DIR" in caught.value.hint
    # Nothing but what keeps two processes apart.
    assert [path.suffix for path in (cache / "engine").iterdir()] == [".lock"]


def test_directory_that_cannot_be_made(cache):
    (cache / "engine").write_bytes(b"")
    with pytest.raises(HostError, match="cannot create"):
        build.ensure()


def test_full_disk_while_a_unit_is_written(cache, tmp_path):
    """The compiler of units says so by its exit code; its directory is missing here."""
    unit = [sys.executable, "-m", "ringzero.jit.compile_unit", "x86_64"]
    command = [*unit, str(tmp_path / "none"), "host"]
    done = subprocess.run(
        command, env=ENVIRONMENT, input=f"{SMALL}\n", capture_output=True, text=True
    )
    assert done.returncode == NO_ROOM
    assert done.stderr == f"{errno.ENOENT}\n"
    with pytest.raises(HostError, match="No such file or directory"):
        compile_all("x86_64", [SMALL], tmp_path / "none", llvm.host_target())


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.ENOSPC, "disk is full"), (errno.EFBIG, "ulimit -f"), (errno.EROFS, "can write to")],
)
def test_why_a_unit_cannot_be_written(monkeypatch, tmp_path, number, hint):
    """The worker says the errno; a limit of file sizes is no full disk."""
    monkeypatch.setattr(workers, "_Worker", Dying)
    monkeypatch.setattr(Dying, "deaths", 1)
    monkeypatch.setattr(Dying, "end", lambda *_, **__: NO_ROOM)
    monkeypatch.setattr(Dying, "last_words", lambda _: str(number))
    with pytest.raises(HostError) as caught:
        compile_all("x86_64", ["a"], tmp_path, llvm.host_target())
    assert hint in caught.value.hint


def test_too_little_room_is_told_before_the_work(cache, monkeypatch):
    monkeypatch.setattr(files, "free_space", lambda _: 1 << 20)
    with pytest.raises(HostError, match=r"about 12 MiB .* has 1 MiB left"):
        build.ensure()
    assert list(cache.iterdir()) == []


class Dying:
    """In place of a worker: the host kills it, as often as it is told to."""

    deaths = 0

    def __init__(self, guest, work, target):
        self.unit = None
        self._reader, self._writer = os.pipe()
        self.answers = os.fdopen(self._reader, "rb")

    def take(self, unit):
        self.unit = unit
        if Dying.deaths:
            Dying.deaths -= 1
            os.close(self._writer)
        else:
            os.write(self._writer, unit.encode() + b"\n")

    def done(self):
        return bool(self.answers.readline())

    def end(self, *, kill=True):
        return -9

    def last_words(self):
        return ""


def test_unit_of_a_killed_worker_is_given_to_another(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_Worker", Dying)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    monkeypatch.setattr(Dying, "deaths", 1)
    told = []
    compile_all(
        "x86_64", ["a", "b", "c"], tmp_path, llvm.host_target(), lambda *state: told.append(state)
    )
    assert told[-1] == (3, 3)
    monkeypatch.setattr(Dying, "deaths", 2)
    with pytest.raises(HostError, match=r"killed the engine's compiler"):
        compile_all("x86_64", ["a", "b", "c"], tmp_path, llvm.host_target())


def complete(directory, target, key=None):
    directory.mkdir(parents=True)
    record = {"units": ["core"], "key": key or build.cache_key(target), "target": target.name}
    (directory / "complete.json").write_text(json.dumps(record))


def test_engine_of_this_host_comes_before_portable_ones(cache, monkeypatch, tmp_path):
    """Then the highest level that the host's CPU has, in the cache before in the package."""
    monkeypatch.setattr(build, "SHIPPED", tmp_path / "shipped")
    best, least = llvm.PORTABLE
    assert list(build.compiled()) == []
    complete(tmp_path / "shipped" / least.name, least)
    complete(cache / "engine" / build.cache_key(least), least)
    assert [e.directory.parent.name for e in build.compiled()] == ["engine", "shipped"]
    complete(cache / "engine" / build.cache_key(best), best)
    complete(cache / "engine" / build.cache_key(), llvm.host_target())
    expected = ["host", *([best.name] if best.runs_here() else []), least.name, least.name]
    assert [engine.target for engine in build.compiled()] == expected
    assert build.ensure().target == "host"


def test_engine_of_another_source_or_cpu_is_not_taken(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "SHIPPED", tmp_path / "shipped")
    best, least = llvm.PORTABLE
    complete(tmp_path / "shipped" / least.name, least, key="0" * 32)
    assert list(build.compiled()) == []
    complete(tmp_path / "shipped" / best.name, best)
    monkeypatch.setattr(llvm.llvm, "get_host_cpu_features", dict)
    assert list(build.compiled()) == []


def test_portable_engine_does_not_depend_on_this_host(monkeypatch):
    target = llvm.PORTABLE[-1]
    key = build.cache_key(target)
    monkeypatch.setattr(build, "host_identity", lambda: "another LLVM, another CPU")
    assert build.cache_key(target) == key
    assert build.cache_key() != key


class Told:
    """Steps that note what a user would hear."""

    def __init__(self):
        self.texts = []

    @contextlib.contextmanager
    def step(self, text):
        self.texts.append(text)
        yield None


def test_two_first_starts_compile_once(cache, monkeypatch):
    target, begun, go = llvm.host_target(), threading.Event(), threading.Event()
    compilations = []

    def compile_slowly(target, steps, directory, guest, *, again):
        compilations.append(directory)
        begun.set()
        go.wait(60)
        complete(directory, target)
        return build.kept(target)

    monkeypatch.setattr(build, "_compile", compile_slowly)
    engines, second = [], Told()
    first = threading.Thread(target=lambda: engines.append(build.build(target)))
    other = threading.Thread(target=lambda: engines.append(build.build(target, second)))
    first.start()
    assert begun.wait(60)
    other.start()
    while not second.texts:
        time.sleep(0.01)
    go.set()
    first.join(60)
    other.join(60)
    assert len(compilations) == 1 and engines[0] == engines[1]
    assert "another process prepares the engine" in second.texts[0]


def test_next_process_takes_over_when_the_first_dies(cache, monkeypatch):
    """Its lock goes with it; what it left half-made is in nobody's way."""
    target = llvm.host_target()
    directory = cache / "engine" / build.cache_key(target)
    (directory.parent / "building-dead").mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path; from ringzero.host.files import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory.with_suffix(".lock"))],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        holder.stdout.readline()
        monkeypatch.setattr(build, "_compile", lambda *_, again: complete(directory, target))
        told = Told()
        waiting = threading.Thread(target=build.build, args=(target, told))
        waiting.start()
        while not told.texts:
            time.sleep(0.01)
        holder.kill()
        waiting.join(60)
    assert build.kept(target) is not None


def test_removed_engines(cache):
    complete(cache / "engine" / build.cache_key(), llvm.host_target())
    (cache / "objects").mkdir()
    (cache / "images").mkdir()
    assert [path.name for path in build.remove()] == ["engine", "objects"]
    assert [path.name for path in cache.iterdir()] == ["images"]


@pytest.mark.parametrize("name", ["generic", ""])
def test_unknown_target(name):
    with pytest.raises(InvalidValueError) as caught:
        llvm.target_named(name)
    assert "x86-64-v3" in caught.value.hint


def test_objects_that_cannot_be_kept_are_used_all_the_same(cache):
    (cache / "objects").write_bytes(b"")
    code = llvm.cached_object("define i32 @f() {\n ret i32 7\n}\n")
    assert code.startswith(b"\x7fELF")


class Tiny(GuestCode):
    """A guest whose engine is one function, and a table that `assemble` makes of its size."""

    objects = ("core",)

    def units(self):
        return ["core"]

    def compile(self, unit, directory, target):
        code = llvm.cached_object("define i32 @answer() {\n ret i32 42\n}\n", target=target)
        (directory / f"{unit}.o").write_bytes(code)

    def assemble(self, directory):
        size = (directory / "core.o").stat().st_size
        (directory / "size.bin").write_bytes(size.to_bytes(8, "little"))


def compiled_here(guest, units, work, target, progress):
    for unit in units:
        GUESTS.get(guest)().compile(unit, work, target)


def test_an_engine_for_another_guest(cache, monkeypatch):
    """Beside the first guest's, under a key of its own."""
    monkeypatch.setitem(GUESTS._items, "tiny", Tiny)
    monkeypatch.setattr(workers, "compile_all", compiled_here)
    target = llvm.host_target()
    assert build.cache_key(target, "tiny") != build.cache_key(target)
    made = build.ensure(guest="tiny")
    assert (made.guest, made.units) == ("tiny", ["core"])
    assert int.from_bytes(made.read("size.bin"), "little") == len(made.read("core.o"))
    assert [found.key for found in build.compiled("tiny")] == [made.key]
    assert list(build.compiled()) == []
    library = build.link(made, ["answer"])
    assert ctypes.CFUNCTYPE(ctypes.c_uint32)(library.address("answer"))() == 42


def test_a_guest_without_an_engine(cache):
    with pytest.raises(NotFoundError, match="pdp11"):
        build.ensure(guest="pdp11")
    assert list(cache.iterdir()) == []
