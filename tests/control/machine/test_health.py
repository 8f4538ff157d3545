"""The health check of a machine: Docker's rules, by a guest that answers as it is told."""

import json
import threading
from types import SimpleNamespace

import pytest

from ringzero.api.values import HealthCheck, Status
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims
from ringzero.control.host.directory import HEALTH, STATUS
from ringzero.control.host.records import HealthRecord, StatusRecord, load, save
from ringzero.control.machine import health
from ringzero.control.machine.runfiles import NamedFiles
from ringzero.errors import GuestError, InvalidValueError

# What a command does that does not end, and ends by its signal or not even by that.
HANGS, STUCK, LOST, PAUSED = "hangs", "stuck", "lost", "paused"
WORDS = ("/bin/check", "it")


class Agent:
    """Answers each command with the next of `script`; then the machine ends."""

    def __init__(self, keeper, script):
        self.keeper, self.script, self.seen, self.commands = keeper, list(script), [], []

    def run(self, words, *, on_stdout, on_stderr, on_lost):
        assert words == WORDS
        what = self.script.pop(0)
        record = load(HealthRecord, self.keeper.directory.file(HEALTH))
        self.seen.append((record.status, record.streak))
        if not self.script:
            self.keeper.ended.set()
        if isinstance(what, Exception):
            raise what
        on_stdout(b"out ")
        on_stderr(b"err")
        command = Command(what)
        self.commands.append(command)
        if what == LOST:
            on_lost()
        if what == PAUSED:
            self.keeper.status = Status.PAUSED
        return command


class Ended(threading.Event):
    """Whether the machine has ended; one that is paused goes on at the third look."""

    naps = 0

    def wait(self, timeout=None):
        if self.keeper.status is Status.PAUSED:
            self.naps += 1
            if self.naps == 3:
                self.keeper.status = Status.RUNNING
        return self.is_set()


class Command:
    def __init__(self, what):
        self.status = what if isinstance(what, int) else None
        self.stuck, self.signals = what == STUCK, []

    def wait_quietly(self, timeout):
        return self.status

    def signal(self, name):
        self.signals.append(name)
        if not self.stuck:
            self.status = 137


def watched(tmp_path, monkeypatch, script, **how):
    """Return the agent and the last record after the script, whose last word is not judged."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    (tmp_path / "vmlinuz").write_bytes(b"")
    check = HealthCheck(WORDS, **{"interval": 0, "start_interval": 0, **how})
    config = MachineConfig.create(kernel=tmp_path / "vmlinuz", agent=True, engine="soft")
    claim = claims.create("web", config, health=check)
    keeper = SimpleNamespace(
        directory=claim.directory,
        record=claim.directory.machine(),
        files=NamedFiles(claim.directory),
        ended=Ended(),
        status=Status.RUNNING,
        on_fault=None,
    )
    keeper.ended.keeper = keeper
    agent = Agent(keeper, [*script, 0])
    keeper.machine = SimpleNamespace(agent=agent)
    assert keeper.record.health_check == check
    health._Watch(keeper, check).run()
    save(StatusRecord("running", 1.0), claim.directory.file(STATUS))
    told = load(HealthRecord, claim.directory.file(HEALTH))
    claim.release()
    return agent, told


@pytest.mark.parametrize(
    ("script", "how", "wanted"),
    [
        ([0], {}, [("starting", 0), ("healthy", 0)]),
        ([1, 0], {}, [("starting", 0), ("starting", 1), ("healthy", 0)]),
        ([1, 1, 1], {}, [("starting", 0), ("starting", 1), ("starting", 2), ("unhealthy", 3)]),
        ([0, 1, 1], {"retries": 2},
         [("starting", 0), ("healthy", 0), ("healthy", 1), ("unhealthy", 2)]),
        ([1, 0], {"retries": 1}, [("starting", 0), ("unhealthy", 1), ("healthy", 0)]),
        # Failures of the beginning do not count, unless something was well before.
        ([1, 1, 0, 1], {"retries": 1, "start_period": 1000},
         [("starting", 0), ("starting", 0), ("starting", 0), ("healthy", 0), ("unhealthy", 1)]),
        # What says nothing about the guest.
        ([LOST, GuestError("gone"), 0], {},
         [("starting", 0), ("starting", 0), ("starting", 0), ("healthy", 0)]),
        ([InvalidValueError("too long")], {}, [("starting", 0), ("starting", 1)]),
    ],
)  # fmt: skip
def test_what_follows_from_answers(tmp_path, monkeypatch, script, how, wanted):
    agent, _ = watched(tmp_path, monkeypatch, script, **how)
    assert agent.seen == wanted


def test_what_is_written_down(tmp_path, monkeypatch):
    _, told = watched(tmp_path, monkeypatch, [0, 0, 0, 0, 0, 0, 3])
    assert (told.status, told.streak, len(told.log)) == ("healthy", 1, 5)
    last = told.log[-1]
    assert (last["exit_code"], last["output"]) == (3, "out err")
    assert last["start"] <= last["end"]


def test_a_command_that_takes_too_long_is_killed(tmp_path, monkeypatch):
    agent, told = watched(tmp_path, monkeypatch, [HANGS, 0, HANGS], retries=1)
    assert agent.commands[0].signals == ["KILL"]
    assert agent.seen[1:3] == [("unhealthy", 1), ("healthy", 0)]
    assert told.log[-1]["exit_code"] is None


def test_none_is_run_beside_one_that_does_not_die(tmp_path, monkeypatch):
    count = 0

    def wait(self, timeout):
        nonlocal count
        count += 1
        if self.stuck and count > 6:
            self.status = 137
        return self.status

    monkeypatch.setattr(Command, "wait_quietly", wait)
    agent, told = watched(tmp_path, monkeypatch, [STUCK])
    assert agent.seen == [("starting", 0), ("unhealthy", 5)]
    assert [probed["output"] for probed in told.log[1:]] == ["the last one still runs"] * 4


def test_a_guest_that_stands_still_is_not_blamed(tmp_path, monkeypatch):
    agent, told = watched(tmp_path, monkeypatch, [PAUSED], retries=1)
    assert agent.seen == [("starting", 0)] * 2 and not told.log
    assert agent.keeper.ended.naps == 3


def test_what_ps_and_inspect_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    (tmp_path / "vmlinuz").write_bytes(b"")
    config = MachineConfig.create(kernel=tmp_path / "vmlinuz", agent=True, engine="soft")
    claim = claims.create("web", config, health=HealthCheck(WORDS))
    from ringzero.control.machine.keeper import write_process

    write_process(claim.directory)
    save(StatusRecord("running", 1.0), claim.directory.file(STATUS))
    assert claim.directory.summary()["health"]["status"] == "starting"
    pid = claim.directory.process().pid
    save(HealthRecord(pid + 1, "healthy"), claim.directory.file(HEALTH))
    assert claim.directory.summary()["health"]["status"] == "starting"
    save(HealthRecord(pid, "unhealthy", 3), claim.directory.file(HEALTH))
    assert claim.directory.summary()["health"] == {"status": "unhealthy", "streak": 3, "log": []}
    for text in ("{}", "nonsense", json.dumps({"pid": pid, "status": None, "log": 7})):
        claim.directory.file(HEALTH).write_text(text)
        assert claim.directory.summary()["health"]["status"] == "starting"
    claim.release()
    assert "health" not in claim.directory.summary()
