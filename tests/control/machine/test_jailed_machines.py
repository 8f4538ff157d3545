"""Machines in a jail, in processes of their own: what they leave behind, and their copies."""

import json
import time

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client, directory
from ringzero.control.host.directory import CONSOLE_LOG, MACHINE, RUN, STATUS
from ringzero.control.host.launch import launch
from ringzero.errors import ConflictError, HostError, NotFoundError
from ringzero.host.jail import confine, probe
from ringzero.host.progress import QUIET
from ringzero.settings import Jail

ALLOWED = {part.name for part in probe.probe() if part.holds}
pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(
        not ALLOWED.issuperset(confine.ESSENTIAL), reason="this host has no Landlock or no seccomp"
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    where = tmp_path_factory.mktemp("machines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_MACHINES_DIR", str(where / "m"))
        patch.setenv("RINGZERO_DATA_DIR", str(where))
        yield where
        for machine in client.machines():
            machine.remove(force=True)


def start(name, level=Jail.AUTO, **more):
    from ringzero.image.micro import ensure

    try:
        image = ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="256M",
        engine="soft",
        agent=True,
        net="user",
    ).with_room_for_shares()
    launch(claims.create(name, config, jail=level, **more), progress=QUIET)
    return client.machine(name)


@pytest.fixture(scope="module")
def web(place):
    return start("web", command=("sh", "-c", "while :; do echo tick; sleep 0.1; done"))


def test_copies_are_jailed_and_known(web):
    one, two = web.copies(2)
    (three,) = one.copies()
    assert [machine.name for machine in (one, two, three)] == ["web-1", "web-2", "web-1-1"]
    pids = set()
    for machine in (one, two, three):
        facts = machine.inspect()
        assert facts["jail"]["landlock"]["holds"] and facts["jail"]["seccomp"]["holds"]
        assert facts["status"] == "running" and machine.run("hostname").stdout.strip() == (
            machine.name.encode()
        )
        process = machine.directory.process()
        assert process.identity.exists() and process.started
        pids.add(process.pid)
        assert machine.directory.file(STATUS).parent.name == RUN
    assert len(pids) == 3
    until(lambda: "tick" in three.directory.tail(CONSOLE_LOG, 100))
    assert one.kill().reason == "killed"
    assert one.inspect()["status"] == "ended"
    assert two.run("true").exit_code == three.run("true").exit_code == 0
    # Its process says no more than that it is gone.
    assert three.directory.process().identity.signal(9)
    assert three.directory.wait_end(10)
    assert three.inspect()["status"] == "dead"
    two.remove(force=True)


def test_what_changes_while_it_runs_is_written_down_by_the_hosts_side(web):
    web.publish("0:80")
    record = web.directory.machine()
    (port,) = record.machine_config().nets[0].ports
    assert port.guest_port == 80
    (gone,) = web.unpublish(str(web.ports()[0]["port"]))
    assert gone["guest_port"] == 80
    assert web.directory.machine().machine_config().nets[0].ports == ()
    web.disconnect(0)
    assert web.directory.machine().machine_config().nets[0].network == "none"
    web.connect("user")
    again = web.directory.machine()
    assert again.config == record.config | {"devices": again.config["devices"]}
    assert again.machine_config().nets[0].mac == record.machine_config().nets[0].mac
    with pytest.raises(ConflictError, match="is jailed"):
        web.share("/usr:/mnt")
    assert web.directory.machine() == again


def test_a_snapshot_that_is_refused_leaves_no_note(web, place):
    with pytest.raises(NotFoundError):
        web.revert(str(place / "snapshots" / "none"))
    assert web.directory.machine().revert == ""


@pytest.mark.parametrize("level", [Jail.AUTO, Jail.STRICT])
def test_one_that_is_to_leave_nothing_leaves_nothing(place, level):
    job = start(f"job-{level.value}", level, remove=True)
    assert job.inspect()["jail"]["landlock"]["holds"]
    job.stop()
    assert not job.directory.exists
    job = start(f"job-{level.value}", level, remove=True)
    job.directory.process().identity.signal(9)
    until(lambda: not job.directory.exists)


def test_a_process_that_hides_is_ended_before_its_machine_starts_again(web, monkeypatch):
    """One that was taken over lets its lock go, and is dead for all who look."""
    hidden = start("hidden")
    process = hidden.directory.process()
    monkeypatch.setattr(directory.ofdlock, "is_held", lambda path: False)
    monkeypatch.setattr(directory.ofdlock, "take", lambda lock: True)
    monkeypatch.setattr(directory, "_LEAVING", 0.1)
    hidden.directory.remove()
    assert not process.identity.exists()
    assert not hidden.directory.exists


def test_a_directory_of_an_earlier_version_is_parted_when_it_starts(place):
    old = start("old")
    old.stop()
    where = old.directory.path
    for path in (where / RUN).iterdir():
        path.rename(where / path.name)
    (where / RUN).rmdir()
    assert old.inspect()["status"] == "ended"
    assert old.inspect()["exit"]["reason"]
    before = (where / CONSOLE_LOG).read_bytes()
    old.start()
    assert old.inspect()["status"] == "running"
    assert not (where / CONSOLE_LOG).exists()
    assert (where / RUN / CONSOLE_LOG).read_bytes().startswith(before)
    assert json.loads((where / MACHINE).read_text())["name"] == "old"
    old.remove(force=True)


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
