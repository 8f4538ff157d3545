"""The compiled engine that is found by a note, without LLVM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.engine.soft import opened
from ringzero.jit import build

pytestmark = pytest.mark.engine

ROOT = Path(ringzero.__file__).parents[1]
LOOK = """
import sys
from ringzero.engine.soft import opened
print(opened.ensure().key, "llvmlite" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with an engine, and nothing noted."""
    found = build.ensure()
    shutil.copytree(found.directory, tmp_path / "engine" / found.directory.name)
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return tmp_path / "engine"


def notes(cache):
    return list(cache.glob("noted-*"))


def test_the_second_process_needs_no_llvm(cache):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for loaded in ("True", "False"):
        done = subprocess.run(
            [sys.executable, "-c", LOOK],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [build.ensure().key, loaded]
    assert len(notes(cache)) == 1


def test_it_is_the_engine_that_the_compiler_has(cache):
    right = build.ensure()
    for _ in range(2):
        found = opened.ensure()
        assert (found.key, found.units) == (right.key, right.units)
        assert found.read(f"{right.units[0]}.o") == right.read(f"{right.units[0]}.o")
    assert isinstance(found, opened.Noted)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"directory": "/none", "key": ""}'])
def test_a_note_that_leads_nowhere_is_written_again(cache, text):
    opened.ensure()
    (note,) = notes(cache)
    note.write_bytes(text)
    assert opened.ensure().key == build.ensure().key
    assert isinstance(opened.ensure(), opened.Noted)


def test_how_many_handlers_there_are_is_noted(cache):
    opened.ensure()
    found = opened.ensure()
    assert isinstance(found, opened.Noted)
    assert opened.handlers_of(found) == opened.handlers_of(build.ensure())
    (note,) = notes(cache)
    told = json.loads(note.read_text())
    for wrong in ({}, [], {**told["handlers"], "more": 1}, dict.fromkeys(told["handlers"], "x")):
        note.write_text(json.dumps({**told, "handlers": wrong}))
        assert opened._read(note) is None
    note.write_text(json.dumps(told))
    assert opened._read(note) == found


def test_what_is_known_is_looked_for_again_where_it_is_gone(cache, monkeypatch):
    monkeypatch.setattr(opened, "_PREPARED", {})
    first = opened.prepared()
    monkeypatch.setattr(opened, "ensure", lambda *_: pytest.fail("looked for again"))
    assert opened.prepared() is first
    shutil.rmtree(first.directory)
    monkeypatch.setattr(opened, "ensure", lambda *_: "another")
    assert opened.prepared() == "another"


def test_an_engine_of_another_source_in_its_place_is_not_taken(cache):
    right = opened.ensure().key
    complete = cache / right / "complete.json"
    told = json.loads(complete.read_text())
    complete.write_text(json.dumps({**told, "key": "another"}))
    assert opened._read(notes(cache)[0]) is None


@pytest.mark.parametrize("what", ["source", "python", "cpu", "guest"])
def test_whatever_it_depends_on_is_another_note(cache, what, tmp_path, monkeypatch):
    before = opened._note("x86_64")
    guest = "x86_64"
    if what == "source":
        for name in opened._SOURCES:
            (tmp_path / name).mkdir()
        (tmp_path / "isa" / "one.py").write_text("one")
        monkeypatch.setattr(opened, "_ROOT", tmp_path)
        changed = opened._note(guest)
        (tmp_path / "isa" / "one.py").write_text("two")
        assert opened._note(guest) != changed
    elif what == "python":
        monkeypatch.setattr(sys, "version", "4")
    elif what == "cpu":
        monkeypatch.setattr(opened, "_CPU", tmp_path / "none")
    else:
        guest = "toy"
    assert opened._note(guest) != before


@pytest.mark.parametrize("which", ["note", "directory", "file"])
def test_what_others_may_write_to_is_not_taken(cache, which):
    right = opened.ensure().key
    (note,) = notes(cache)
    directory = cache / right
    place = {"note": note, "directory": directory, "file": directory / "core.o"}[which]
    assert opened._read(note) is not None
    place.chmod(place.stat().st_mode | 0o002)
    assert opened._read(note) is None
