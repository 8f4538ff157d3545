"""Modules that come from one file of the cache: the same as ever, and never old ones."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.host import bundle

SOURCE = Path(ringzero.__file__).parents[1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a package of two modules, which count as ours, and are loaded."""
    root = tmp_path / "source" / "ringzero_of_test"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text('"""A package."""\nNUMBER = 1\n')
    (root / "inner.py").write_text("from ringzero_of_test import NUMBER\nDOUBLE = 2 * NUMBER\n")
    monkeypatch.syspath_prepend(str(root.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    ours = bundle._is_plain
    monkeypatch.setattr(
        bundle, "_is_plain", lambda s: s.name.startswith("ringzero_of_test") or ours(s)
    )
    yield root
    forget()


def forget():
    for name in [name for name in sys.modules if name.startswith("ringzero_of_test")]:
        del sys.modules[name]


def load(found):
    """Return the package's number twice, loaded anew with a bundle before all other finders."""
    forget()
    sys.meta_path.insert(0, found)
    try:
        return importlib.import_module("ringzero_of_test.inner").DOUBLE
    finally:
        sys.meta_path.remove(found)


def empty():
    return bundle.Bundle(memoryview(b""), {})


@pytest.fixture
def written(cache, package):
    """Return the bundle that holds the package."""
    assert load(empty()) == 2
    bundle.write(empty())
    return bundle._read(bundle._place())


def test_modules_are_what_they_were(written, package):
    assert load(written) == 2
    for name in ("ringzero_of_test", "ringzero_of_test.inner"):
        module = sys.modules[name]
        assert type(module.__spec__.loader) is bundle._Loader
        assert Path(module.__file__).parent == package
        assert module.__cached__ == importlib.util.cache_from_source(module.__file__)
        assert module.__loader__.get_source(name) == Path(module.__file__).read_text()
    module = sys.modules["ringzero_of_test"]
    assert module.__doc__ == "A package."
    assert module.__path__ == [str(package)]
    assert sys.modules["ringzero_of_test.inner"].__package__ == "ringzero_of_test"


def test_what_is_there_is_not_written_again(written):
    place = Path(bundle._place())
    before = place.stat().st_ino
    # As the modules are that a process has loaded before it looked there.
    assert load(empty()) == 2
    bundle.write(written)
    assert place.stat().st_ino == before


def test_a_source_that_has_changed_is_read(written, package):
    (package / "__init__.py").write_text("NUMBER = 21\n")
    assert load(written) == 42
    (package / "inner.py").unlink()
    with pytest.raises(ModuleNotFoundError):
        load(written)


def test_bytecode_of_another_source_is_not_written_down(cache, package):
    assert load(empty()) == 2
    (package / "__init__.py").write_text("NUMBER = 3  # and longer\n")
    bundle.write(empty())
    found = bundle._read(bundle._place())
    assert "ringzero_of_test" not in found.index
    assert load(found) == 6


def test_what_was_there_is_kept(written, package):
    (package / "third.py").write_text("THREE = 3\n")
    sys.meta_path.insert(0, written)
    try:
        forget()
        importlib.import_module("ringzero_of_test.third")
        bundle.write(written)
    finally:
        sys.meta_path.remove(written)
    names = {"ringzero_of_test", "ringzero_of_test.inner", "ringzero_of_test.third"}
    assert names <= bundle._read(bundle._place()).index.keys()


@pytest.mark.parametrize("mode", [0o620, 0o604, 0o644])
def test_a_file_that_others_may_use_is_not_used(written, mode):
    Path(bundle._place()).chmod(mode)
    assert bundle._read(bundle._place()) is None


def test_a_link_or_another_kind_of_file_is_not_used(written, tmp_path):
    place = Path(bundle._place())
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert bundle._read(str(place)) is None
    place.unlink()
    os.mkfifo(place, 0o600)
    assert bundle._read(str(place)) is None


def test_a_damaged_file_is_not_used(written):
    place = Path(bundle._place())
    whole = place.read_bytes()
    begin = bundle._HEAD
    for data in (
        b"",
        whole[: begin - 1],
        whole[: begin + 20],
        whole[:-1],
        whole + b"x",
        b"X" + whole[1:],
        whole[:begin] + b"\xff" * 40 + whole[begin + 40 :],
    ):
        place.write_bytes(data)
        assert bundle._read(str(place)) is None


def test_a_cache_that_cannot_be_written_to_is_no_fault(cache, package):
    cache.write_text("no directory")
    assert load(empty()) == 2
    bundle.write(empty())


def test_a_process_of_the_command_line_takes_its_modules_from_there(cache):
    line = [sys.executable, "-v", "-m", "ringzero", "run", "--memory", "1", "--", "true"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(2):
        # It ends before there is a machine.
        done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
        assert "1M meant?" in done.stderr
        assert done.returncode == 2
    (place,) = cache.glob("modules-*")
    assert place.stat().st_mode & 0o777 == 0o600
    read = [line for line in done.stderr.splitlines() if "matches" in line and "ringzero" in line]
    assert not any("cli/main" in line or "config" in line for line in read), read


def test_pathlib_comes_without_what_it_rarely_needs():
    code = (
        "import sys\n"
        "from ringzero.host import bundle\n"
        "bundle.install()\n"
        "assert 'pathlib' in sys.modules\n"
        "assert not {'urllib.parse', 'ipaddress'} & set(sys.modules)\n"
        "from pathlib import Path\n"
        "print(Path('/a b').as_uri())\n"
        "import urllib.parse\n"
        "print(urllib.parse.urlsplit('http://host/').hostname)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("file:///a%20b\nhost\n", "")
