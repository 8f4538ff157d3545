"""`ringzero engine`: without compiling anything."""

import json

import pytest

from ringzero.cli.main import main
from ringzero.jit import build
from ringzero.jit.compile import llvm


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "SHIPPED", tmp_path / "shipped")
    return tmp_path / "cache"


@pytest.fixture
def guests():
    """The guests that engines were compiled for."""
    return []


@pytest.fixture
def compiler(monkeypatch, guests):
    """Stands for the compiler; notes what it was asked for."""
    asked = []

    def compile_for(target, steps, directory, guest):
        guests.append(guest)
        asked.append((target.name, directory))
        return build.EngineObjects(directory, "0" * 32, ["core"], target.name)

    monkeypatch.setattr(build, "build", compile_for)
    return asked


def test_build_is_portable_unless_told_otherwise(compiler, capsys, tmp_path):
    assert main(["engine", "build"]) == 0
    assert main(["engine", "build", "--target", "host", "--json"]) == 0
    assert main(["engine", "build", "--output", str(tmp_path / "out")]) == 0
    assert [name for name, _ in compiler] == ["x86-64-v2", "host", "x86-64-v2"]
    assert compiler[2][1] == tmp_path / "out"
    assert main(["engine", "build", "--target", "pentium"]) == 2
    assert "x86-64-v3" in capsys.readouterr().err


def test_guests_of_further_models_have_an_engine_of_their_own(compiler, guests, capsys):
    for model in ("x86-64-v2", "x86-64-v3", "max"):
        assert main(["engine", "build", "--cpu", model]) == 0
    assert guests == ["x86_64", "x86_64_extended", "x86_64_extended"]
    capsys.readouterr()
    assert main(["engine", "build", "--cpu", "x86-64-v9"]) == 2
    assert "x86-64-v3" in capsys.readouterr().err
    assert main(["engine", "build", "--cpu", "help"]) == 0
    assert "x86-64-v3" in capsys.readouterr().out
    assert len(guests) == 3


def test_what_is_there_is_not_built_again(cache, compiler, capsys):
    target = llvm.PORTABLE[-1]
    directory = cache / "engine" / build.cache_key(target)
    directory.mkdir(parents=True)
    record = {"units": ["core"], "key": build.cache_key(target)}
    (directory / "complete.json").write_text(json.dumps(record))
    assert main(["engine", "build"]) == 0
    assert compiler == []
    assert main(["engine", "status", "--json"]) == 0
    out = capsys.readouterr().out
    assert target.name in out and str(directory) in out


def test_status_tells_scripts_whether_a_start_must_compile(cache, capsys):
    assert main(["engine", "status"]) == 1
    assert "no engine is compiled" in capsys.readouterr().out
    (cache / "engine").mkdir(parents=True)
    assert main(["engine", "rm"]) == 0
    assert capsys.readouterr().out == f"removed {cache / 'engine'}\n"
    assert main(["engine", "rm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
