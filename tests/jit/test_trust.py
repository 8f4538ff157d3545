"""Which compiled engines are run: none that somebody else could have changed."""

import json
import os
from pathlib import Path

import pytest

from ringzero.host import private
from ringzero.jit import build, trust
from ringzero.jit.compile import llvm


class Engine:
    """A directory as a compiled engine's."""

    def __init__(self, path):
        self.path = path
        path.mkdir(mode=0o755, parents=True)
        self.write("core.o", b"code")
        record = {"units": [], "key": build.cache_key(llvm.host_target()), "target": "host"}
        self.write("complete.json", json.dumps(record).encode())

    def write(self, name, content):
        (self.path / name).write_bytes(content)
        (self.path / name).chmod(0o644)

    @property
    def taken(self):
        return build.kept(llvm.host_target()) is not None


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    return Engine(tmp_path / "cache" / "engine" / build.cache_key(llvm.host_target()))


def test_ours_is_taken(engine):
    assert engine.taken


@pytest.mark.parametrize("name", ["", "core.o", "complete.json"])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_what_others_may_write_to_is_not_taken(engine, name, mode):
    (engine.path / name).chmod(mode)
    assert not engine.taken
    assert not list(build.compiled())


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("name", ["", "core.o"])
def test_what_belongs_to_others_is_not_taken(engine, name):
    os.chown(engine.path / name, 12345, 12345)
    assert not engine.taken


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_what_belongs_to_who_owns_the_package_is_taken(engine, monkeypatch):
    for path in (engine.path, *engine.path.iterdir()):
        os.chown(path, 12345, 12345)
    package = engine.path.parents[2] / "private.py"
    package.write_bytes(b"")
    os.chown(package, 12345, 12345)
    monkeypatch.setattr(private, "__file__", str(package))
    assert engine.taken


def test_without_modes_it_is_taken_by_its_digest(engine):
    """As on vfat or 9p: everything is 0777, whatever is asked for."""
    for path in (engine.path, *engine.path.iterdir()):
        path.chmod(0o777)
    assert not engine.taken
    trust.note(engine.path)
    notes = engine.path.parents[2] / "data" / "engines.json"
    assert notes.stat().st_mode & 0o777 == 0o600
    assert engine.taken
    (engine.path / "core.o").write_bytes(b"evil")
    assert not engine.taken
    trust.note(engine.path)
    assert engine.taken
    (engine.path / "more.o").write_bytes(b"evil")
    assert not engine.taken


@pytest.mark.parametrize(
    "spoil",
    [
        lambda notes: notes.chmod(0o666),
        lambda notes: notes.write_bytes(b"[1]"),
        lambda notes: notes.write_bytes(b"\xff{"),
        lambda notes: (notes.unlink(), os.mkfifo(notes)),
        lambda notes: (notes.rename(notes.with_suffix(".b")), notes.symlink_to("engines.b")),
    ],
)
def test_notes_that_are_not_ours_count_for_nothing(engine, spoil):
    (engine.path / "core.o").chmod(0o666)
    trust.note(engine.path)
    assert engine.taken
    spoil(engine.path.parents[2] / "data" / "engines.json")
    assert not engine.taken


def test_notes_of_what_is_gone_go(engine, tmp_path):
    other = Engine(tmp_path / "other")
    for one in (other, engine):
        (one.path / "core.o").chmod(0o666)
        trust.note(one.path)
    notes = tmp_path / "data" / "engines.json"
    assert set(json.loads(notes.read_text())) == {str(other.path), str(engine.path)}
    (tmp_path / "other").rename(tmp_path / "gone")
    trust.note(engine.path)
    assert set(json.loads(notes.read_text())) == {str(engine.path)}


def test_where_nothing_can_be_noted(engine, monkeypatch):
    (engine.path / "core.o").chmod(0o666)
    monkeypatch.setenv("RINGZERO_DATA_DIR", "/dev/null/none")
    trust.note(engine.path)
    assert not engine.taken


def test_an_object_that_others_may_write_to_is_compiled_again(engine, monkeypatch):
    monkeypatch.setattr(llvm, "compile_object", lambda *_, **__: b"ours")
    assert llvm.cached_object("x") == b"ours"
    (kept,) = (Path(os.environ["RINGZERO_CACHE_DIR"]) / "objects").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o644
    kept.write_bytes(b"kept")
    assert llvm.cached_object("x") == b"kept"
    kept.chmod(0o646)
    assert llvm.cached_object("x") == b"ours"
