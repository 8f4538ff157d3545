"""Processes: who they are, and how many CPUs they may use, whatever the host tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero.host import process
from ringzero.host.process import ProcessIdentity, usable_cpus


@pytest.fixture
def child():
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate()


def test_own_process_is_there():
    own = ProcessIdentity.own()
    assert own.pid == os.getpid() and own.exists()


def test_number_given_to_another_process_is_not_it(child):
    own = ProcessIdentity.own()
    assert not ProcessIdentity(child.pid, own.started - 1, own.boot).exists()
    assert not ProcessIdentity(own.pid, own.started, "another-boot").exists()


def test_without_proc_the_number_has_to_do(monkeypatch, tmp_path, child):
    """Also for a process that was written down where there was a /proc."""
    known = ProcessIdentity.own()
    monkeypatch.setattr(process, "_PROC", tmp_path)
    assert ProcessIdentity.own() == ProcessIdentity(os.getpid(), 0, "")
    assert known.exists() and ProcessIdentity(child.pid, 0, "").exists()
    child.kill()
    child.wait()
    assert not ProcessIdentity(child.pid, 0, "").exists()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("x y", 8),
        ("100 0", 8),
    ],
)
def test_quota_of_a_container_bounds_the_cpus(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(process, "_CGROUPS", tmp_path)
    monkeypatch.setattr(process, "own_cgroup", lambda: "/box")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "box").mkdir()
    (tmp_path / "box/cpu.max").write_text(limit)
    assert usable_cpus() == expected


AUTOGROUP = Path("/proc/self/autogroup")
GIVE_WAY = """
import os
from ringzero.host.process import give_way
give_way()
print(os.getpriority(os.PRIO_PROCESS, 0), open("/proc/self/autogroup").read() or "none")
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no groups of sessions")
@pytest.mark.parametrize("apart", [True, False])
def test_who_gives_way_does_so_to_other_sessions(apart):
    """By its own autogroup where it has one; that of a session which others are in stays."""
    done = subprocess.run(
        [sys.executable, "-c", GIVE_WAY],
        start_new_session=apart,
        capture_output=True,
        text=True,
        check=True,
    )
    priority, *group = done.stdout.split()
    assert priority == "19"
    if group != ["none"]:
        assert group[-1] == ("19" if apart else AUTOGROUP.read_text().split()[-1])
