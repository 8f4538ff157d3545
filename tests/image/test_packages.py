import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ringzero.errors import HostError, MissingToolError, NotFoundError
from ringzero.host import files
from ringzero.image import packages
from ringzero.image.packages import Apt
from ringzero.image.sources import Source
from tests.image.archive import Archive, control


@pytest.fixture
def filled(archive):
    archive.add(control("leaf", "2:1.0+x-1"), {"usr/bin/leaf": b"leaf"})
    archive.add(control("middle", depends="leaf (>= 2:1.0), other | nothing"), {})
    archive.add(control("other", architecture="all"), {})
    archive.add(control("top", depends="middle"), {})
    archive.add(control("broken", depends="absent-package"), {})
    return archive.publish()


def test_resolves_downloads_and_keeps(filled, cache):
    apt = Apt()
    packages = apt.resolve(["top"])
    assert {p.name for p in packages} == {"top", "middle", "leaf", "other"}
    leaf = next(p for p in packages if p.name == "leaf")
    assert leaf.version == "2:1.0+x-1"
    paths = apt.download(packages)
    assert all(path.parent == cache / "debs" for path in paths)
    # The second time nothing is fetched: the archive may be gone.
    shutil.rmtree(filled.root / "pool")
    assert Apt().download(packages) == paths


def test_without_dependencies(filled, cache):
    assert [p.name for p in Apt().resolve(["top"], dependencies=False)] == ["top"]
    assert Apt().depends("middle") == ["leaf", "other"]


@pytest.mark.parametrize("name", ["no-such-package", "Bad Name", "-o", "x;reboot", ""])
def test_unknown_names(filled, cache, name):
    with pytest.raises(NotFoundError):
        Apt().resolve([name])


def test_unsatisfiable_dependency_is_told(filled, cache):
    with pytest.raises(HostError, match=r"apt-get failed"):
        Apt().resolve(["broken"])


def test_tampered_package_is_refused(filled, cache):
    apt = Apt()
    packages = apt.resolve(["leaf"])
    file = next((filled.root / "pool").glob("leaf*"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(HostError):
        apt.download(packages)
    assert not list((cache / "debs").glob("*.deb"))


def test_damaged_package_in_the_cache_is_fetched_again(filled, cache):
    apt = Apt()
    packages = apt.resolve(["leaf"])
    (path,) = apt.download(packages)
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    assert apt.download(packages) == [path]
    assert path.read_bytes() == good


def test_tampered_lists_are_refused(filled, cache):
    lists = filled.root / "dists/test/main/binary-amd64/Packages"
    lists.write_bytes(lists.read_bytes().replace(b"leaf", b"evil"))
    with pytest.raises(HostError, match="apt-get failed"):
        Apt().resolve(["top"])


def test_old_lists_serve_when_the_archive_is_away(filled, cache):
    Apt().refresh()
    filled.root.rename(filled.root.with_name("away"))
    Apt().refresh(max_age=0)
    assert Apt().resolve(["leaf"])


def test_one_source_of_two_out_of_order(filled, cache, monkeypatch):
    good = sources_of(filled)
    bad = Source((f"file:{filled.root}/nothing-here",), ("test",), (("Trusted", "yes"),))
    monkeypatch.setattr("ringzero.image.packages.debian_sources", lambda _=None: [good, bad])
    assert [p.name for p in Apt().resolve(["leaf"])] == ["leaf"]


def test_another_suite_is_preferred(filled, cache, tmp_path, monkeypatch):
    other = Archive(tmp_path / "other", suite="other")
    other.add(control("leaf", "1:0.5-1"), {})
    other.publish()
    monkeypatch.setattr(
        "ringzero.image.packages.debian_sources",
        lambda _=None: [sources_of(filled), sources_of(other)],
    )
    assert Apt().resolve(["leaf"])[0].version == "2:1.0+x-1"
    # An older version too, because it was asked for; what it lacks comes from the usual one.
    packages = Apt(suite="other").resolve(["leaf", "other"])
    assert {p.version for p in packages} == {"1:0.5-1", "1.0-1"}


def sources_of(archive):
    return Source((archive.uri,), (archive.suite,), (("Trusted", "yes"),))


def test_no_apt_on_this_machine(filled, cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(MissingToolError) as caught:
        Apt().resolve(["leaf"])
    assert "--kernel" in caught.value.hint


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_no_network(cache, monkeypatch):
    # Port 9 of this host: nobody answers there.
    source = Source(("http://127.0.0.1:9/debian",), ("bookworm",))
    monkeypatch.setattr("ringzero.image.packages.debian_sources", lambda _=None: [source])
    monkeypatch.setenv("http_proxy", "")
    with pytest.raises(HostError, match="apt-get failed") as caught:
        Apt().resolve(["leaf"])
    assert "network" in caught.value.hint


def test_disk_known_to_be_full(filled, cache, monkeypatch):
    apt = Apt()
    packages = apt.resolve(["leaf"])
    monkeypatch.setattr(files, "free_space", lambda _: 3)
    with pytest.raises(HostError, match=r"takes about .* has 3 B left") as caught:
        apt.download(packages)
    assert "RINGZERO_CACHE_DIR" in caught.value.hint


def _tmpfs(place: Path, size: str):
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("needs the right to mount a small file system")


def test_disk_that_fills_up_while_apt_runs(filled, tmp_path, monkeypatch):
    """Whatever apt-get does then, it comes to an end within seconds."""
    place = tmp_path / "small"
    _tmpfs(place, "256k")
    try:
        (place / "ballast").write_bytes(bytes(220 * 1024))
        monkeypatch.setenv("RINGZERO_CACHE_DIR", str(place / "cache"))
        monkeypatch.setattr(packages, "require_space", lambda *_: None)
        began = time.monotonic()
        with pytest.raises(HostError) as caught:
            Apt().resolve(["top"])
        assert "full" in caught.value.hint or "free some space" in caught.value.hint
        assert time.monotonic() - began < 60
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """An apt-get that never comes to an end."""
    tool = tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexec sleep 1000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(packages, "_LOOK", 0.05)
    return tool


def test_apt_get_that_waits_for_room_is_ended(filled, cache, hanging, monkeypatch):
    monkeypatch.setattr(packages, "free_space", lambda _: 0)
    with pytest.raises(HostError, match=r"the disk of .* is full") as caught:
        Apt().resolve(["leaf"])
    assert "RINGZERO_CACHE_DIR" in caught.value.hint


def test_apt_get_that_does_nothing_is_ended(filled, cache, hanging, monkeypatch):
    monkeypatch.setattr(packages, "free_space", lambda _: 1 << 30)
    monkeypatch.setattr(packages, "_HANGS", 0.3)
    with pytest.raises(HostError, match="done nothing for"):
        Apt().resolve(["leaf"])


def test_disk_that_fills_up(filled, tmp_path, monkeypatch):
    place = tmp_path / "small"
    _tmpfs(place, "256k")
    try:
        (place / "ballast").write_bytes(bytes(220 * 1024))
        monkeypatch.setenv("RINGZERO_CACHE_DIR", str(place / "cache"))
        with pytest.raises(HostError) as caught:
            Apt().resolve(["top"])
        assert caught.value.hint
        assert "full" in caught.value.hint or "free some space" in caught.value.hint
        # With room again, nothing is in the way of the next try.
        (place / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=256m", str(place)], check=True)
        assert len(Apt().download(Apt().resolve(["top"]))) == 4
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_cache_that_may_not_be_written(filled, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(HostError, match="cannot"):
        Apt().resolve(["leaf"])


def test_callers_at_the_same_time(filled, cache):
    results = []

    def fetch():
        apt = Apt()
        results.append(apt.download(apt.resolve(["top"])))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(path.exists() for paths in results for path in paths)


PROGRAM = """
import sys
from ringzero.image import packages, sources
source = sources.Source((sys.argv[1],), ("test",), (("Trusted", "yes"),))
packages.debian_sources = lambda suite=None: [source]
apt = packages.Apt()
apt.download(apt.resolve(["top"]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment(filled, cache, number):
    command = [sys.executable, "-c", PROGRAM, filled.uri]
    source = str(Path(__file__).parents[2] / "src")
    environment = os.environ | {"PYTHONPATH": source}
    for delay in (0.15, 0.3, 0.5, 0.8):
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.send_signal(number)
        child.wait(10)
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert len(list((cache / "debs").glob("*.deb"))) == 4
