"""What is made ready before a start: used where it is this machine's, freed where it is not."""

import os
import time

import pytest

from ringzero.config.devices.balloon import BalloonConfig
from ringzero.config.machine import MachineConfig
from ringzero.doors.firecracker import readiness
from ringzero.doors.firecracker.readiness import Readiness
from ringzero.records import replace
from ringzero.vm import build
from tests.board.kernels import elf
from tests.engine.fake import FakeEngine

MEMORY, CODE = 64 << 20, 0x1000000


@pytest.fixture
def config(tmp_path):
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf())
    return MachineConfig(memory=MEMORY, kernel=kernel, command_line="quiet")


@pytest.fixture
def ready(monkeypatch):
    """One that loads nothing beforehand."""
    monkeypatch.setattr(build, "choose_engine", lambda config: FakeEngine())
    monkeypatch.setattr(Readiness, "_load", lambda self: None)
    monkeypatch.setattr(readiness, "_rehearse", lambda: None)
    found = Readiness()
    found.begin()
    yield found
    found.close()


def laid(ready, config):
    """Have the ground for a machine laid."""
    ready.expect(config)
    end = time.monotonic() + 10
    while ready._ground is None or ready._ground.config.memory != config.memory:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_kernel_is_in_memory_before_the_start(ready, config):
    laid(ready, config)
    changed = replace(config, name="other", command_line="quiet ro", devices=(BalloonConfig(),))
    ground = ready.take(changed)
    ground.loading.wait()
    assert ground.memory.read(CODE, 4) == b"\xf4" * 4
    assert ground.command_line == "quiet ro"
    assert (ground.config.name, ground.config.devices) == ("other", (BalloonConfig(),))
    ground.close()
    assert ready.take(changed) is None, "it is somebody's"


def test_another_machine_gets_none(ready, config):
    laid(ready, config)
    laid(ready, replace(config, memory=2 * MEMORY))
    assert ready.take(config) is None


@pytest.mark.parametrize("how", ["written", "replaced", "gone"])
def test_a_kernel_that_has_changed_is_read_again(ready, config, tmp_path, how):
    laid(ready, config)
    if how == "written":
        config.kernel.write_bytes(elf(entry=CODE + 16))
        os.utime(config.kernel, ns=(1, 1))
    elif how == "replaced":
        (tmp_path / "new").write_bytes(elf())
        (tmp_path / "new").replace(config.kernel)
    else:
        config.kernel.unlink()
    assert ready.take(config) is None


@pytest.mark.parametrize("fields", [{"agent": True}, {"cpus": 2}, {"cpu": "host"}])
def test_what_a_groundwork_is_not_good_for(ready, config, fields):
    laid(ready, config)
    assert ready.take(replace(config, **fields)) is None


def test_no_kernel_is_told_of_at_the_start_only(ready, config):
    config.kernel.write_bytes(b"none")
    ready.expect(config)
    assert ready.take(config) is None


def test_nothing_is_left_behind(ready, config):
    before = len(os.listdir("/proc/self/fd"))
    laid(ready, config)
    ready.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_is_in_a_hurry_waits_for_nothing_more(ready, config):
    ready.wait()
    ready.expect(config)
    assert ready.take(config) is None
