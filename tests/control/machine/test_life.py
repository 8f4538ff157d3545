"""A machine's process: what goes wrong on a thread of it ends the machine, by its name."""

import os
import signal

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims
from ringzero.control.host.report import Reporter
from ringzero.control.machine import life
from ringzero.control.machine.keeper import Keeper
from tests.control.fake import Fake


def broken(*_):
    raise ZeroDivisionError("it is broken")


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path))
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"")
    config = MachineConfig.create(kernel=kernel, agent=True, engine="soft")
    claim = claims.create("web", config, command=("service",))
    before = signal.getsignal(signal.SIGTERM)
    yield Keeper(Fake(config), claim, {})
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("part", ["_report_up", "_run_command", "_await_ready"])
def test_a_thread_that_fails_ends_the_machine(keeper, monkeypatch, part):
    monkeypatch.setattr(life, part, broken)
    reading, writing = os.pipe()
    assert life.keep(keeper, Reporter(writing)) == 70
    os.close(reading)
    assert keeper.result.reason == "fault"
    assert "ZeroDivisionError: it is broken" in keeper.result.detail
