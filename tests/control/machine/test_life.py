"""A machine's process: what goes wrong on a thread of it ends the machine, by its name."""

import os
import signal
import threading

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


def kept(tmp_path, monkeypatch, *, disk="", cloud_init=False):
    """Return a keeper of a machine with a kernel and perhaps a disk."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    (tmp_path / "vmlinuz").write_bytes(b"")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disks = [f"{tmp_path / 'disk'}{disk},format=raw"] if disk is not None else []
    config = MachineConfig.create(
        kernel=tmp_path / "vmlinuz", disks=disks, cloud_init=cloud_init, engine="soft"
    )
    return Keeper(Fake(config), claims.create("web", config), {})


@pytest.mark.parametrize(
    ("given", "pressed"),
    [
        ({}, True),
        # Nothing is lost with these, and a system that heeds no button would be waited for.
        ({"disk": ",ro"}, False),
        ({"disk": None}, False),
    ],
)
def test_a_system_of_the_users_own_hears_the_power_button(tmp_path, monkeypatch, given, pressed):
    keeper = kept(tmp_path, monkeypatch, **given)
    # As the machine's main thread, which waits for the end.
    waiting = threading.Thread(target=keeper.wait)
    keeper.start()
    waiting.start()
    record = keeper.stop(timeout=5)
    waiting.join()
    assert keeper.machine.pressed is pressed
    assert record.reason == ("poweroff" if pressed else "stopped")
    keeper.close()


def test_a_copy_does_not_wait_for_what_its_original_has_done(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_BOOT_TIMEOUT", "0.1")
    keeper = kept(tmp_path, monkeypatch, cloud_init=True)
    heard = []

    class Heard(Reporter):
        def say(self, **what):
            heard.append(what)

        def fail(self, fault):
            heard.append(fault.message)

    for resumed in (False, True):
        heard.clear()
        life._report_up(keeper, Heard(os.open(os.devnull, os.O_WRONLY)), resumed)
        assert any("cloud-init did not finish" in str(what) for what in heard) is not resumed
    keeper.close()


def test_services_that_have_failed_are_named(keeper):
    heard = []

    class Heard(Reporter):
        def say(self, **what):
            heard.append(what.get("note"))

    def run(words, *, on_stdout, on_exit):
        assert "systemctl" in words[-1]
        on_stdout(b"ssh.service loaded failed failed OpenBSD Secure Shell server\n\n")
        on_stdout(b"bad\x1b.mount x\n")
        on_exit(0)

    keeper.machine.agent.run = run
    life._tell_failed_units(keeper, Heard(os.open(os.devnull, os.O_WRONLY)))
    assert heard == ["the guest's ssh.service has failed"]
    keeper.close()
