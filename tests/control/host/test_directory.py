import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ringzero.api.values import ExitRecord, Status
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.control.host import claims, death, description, directory
from ringzero.control.host.directory import EXIT, LOCK, MACHINE, PROCESS, STATUS, VMM_LOG
from ringzero.control.host.records import (
    MachineRecord,
    ProcessRecord,
    load,
    save,
)
from ringzero.control.machine.keeper import write_process
from ringzero.errors import ConflictError, ControlError, InvalidValueError, NotFoundError
from ringzero.host import ofdlock
from ringzero.host import process as host
from tests.control.fake import config

pytestmark = pytest.mark.usefixtures("root")


def make(name="web", **more):
    return claims.create(name, config(), **more)


def dead(name="web", process=True):
    """A machine whose process has gone without a word."""
    claim = make(name)
    if process:
        write_process(claim.directory)
    claim.release()
    return claim.directory


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "-x", ".new-1", "a\0b", "ü", "x" * 64, "a b", "a\n"]
)
def test_names_that_no_machine_has(name):
    for use in (directory.find, lambda n: make(n)):
        with pytest.raises(InvalidValueError, match="cannot be called"):
            use(name)


def test_a_claim_is_alive_until_it_is_released(root):
    claim = make()
    web = directory.find("web")
    assert (web.alive, web.status()) == (True, Status.STARTING)
    assert root.stat().st_mode & 0o777 == web.path.stat().st_mode & 0o777 == 0o700
    entries = list(web.path.rglob("*"))
    assert {p.stat().st_mode & 0o777 for p in entries if p.is_file()} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in entries if p.is_dir()} == {0o700}
    with pytest.raises(ConflictError, match="starting"):
        web.remove()
    with pytest.raises(ConflictError, match="taken by a machine that is starting"):
        make()
    claim.release()
    assert (web.alive, web.status()) == (False, Status.DEAD)
    with pytest.raises(ConflictError, match="taken by a machine that is dead"):
        make()
    web.remove()
    with pytest.raises(NotFoundError, match="web"):
        web.remove()
    assert list(root.iterdir()) == []


def test_looking_never_takes_the_lock():
    """Many look while the lock is taken and given back: taking it never fails."""
    web = dead()
    stop = threading.Event()
    seen = set()

    def look():
        while not stop.is_set():
            seen.add(web.alive)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    taken = []
    for _ in range(300):
        lock = os.open(web.path / LOCK, os.O_RDWR)
        taken.append(ofdlock.take(lock))
        os.close(lock)
    stop.set()
    for looker in lookers:
        looker.join()
    assert all(taken)
    assert False in seen


def test_one_of_many_gets_the_name(root):
    """Processes race for one name and for free names."""
    code = (
        "import sys; from ringzero.control.host import claims; from ringzero.errors import *\n"
        "from tests.control.fake import config\n"
        "sys.stdin.readline()\n"
        "try: claims.create('web', config()); print('mine', end=' ')\n"
        "except ConflictError: print('taken', end=' ')\n"
        "print(claims.create(None, config()).directory.name)\n"
        "sys.stdout.flush(); sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    time.sleep(0.5)
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().split() for racer in racers]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(words[0] for words in said) == ["mine", "taken", "taken", "taken"]
    assert sorted(words[1] for words in said) == [f"machine-{n}" for n in (1, 2, 3, 4)]
    assert not any(path.name.startswith(".") for path in root.iterdir())


def test_a_name_that_is_used_again_is_not_removed():
    """`rm` opened the lock of the old machine; meanwhile the name has gone to a new one."""
    old = dead()
    lock = os.open(old.path / LOCK, os.O_RDWR)
    old.remove()
    claim = make()
    assert not old._is_mine(lock)
    with pytest.raises(ConflictError):
        old.remove()
    os.close(lock)
    claim.release()


def test_reasons_of_a_death(monkeypatch):
    assert "the command that started it was killed" in dead("never", process=False).exit().detail
    web = dead()
    assert web.exit().reason == "died"
    assert web.exit().exit_code == 137
    assert "was killed" in web.exit().detail
    with pytest.raises(ConflictError, match="does not run: died: its process was killed"):
        web.connect()
    (web.path / VMM_LOG).write_text("x\nFatal Python error: Segmentation fault\n\nThread 0x1\n")
    assert "crashed: Segmentation fault" in web.exit().detail
    (web.path / VMM_LOG).unlink()
    save(ProcessRecord(1, 1, host.boot_id(), "/x", 3), web.path / PROCESS)
    monkeypatch.setattr(death, "oom_kills", lambda cgroup: 4)
    assert "memory ran out" in web.exit().detail
    save(ProcessRecord(1, 1, "another boot"), web.path / PROCESS)
    assert web.exit().detail == "the host was restarted"
    save(ExitRecord("poweroff", "", 0, 5.0), web.file(EXIT))
    assert (web.exit().reason, web.status()) == ("poweroff", Status.ENDED)
    web.write_death(ExitRecord("killed", "", 137, 0.0))
    assert web.exit().reason == "poweroff"


def test_a_number_that_is_another_process_now_is_not_killed():
    child = subprocess.Popen(["sleep", "60"])
    try:
        started = host._start_time(child.pid)
        other = host.ProcessIdentity(child.pid, started - 1, host.boot_id())
        assert not other.exists()
        assert not other.signal(9)
        assert other.wait(0)
        itself = host.ProcessIdentity(child.pid, started, host.boot_id())
        assert itself.exists()
        assert not itself.wait(0)
        assert child.poll() is None
        assert itself.signal(9)
        assert itself.wait(5)
        assert not itself.exists()  # a zombie by now
        assert not host.ProcessIdentity(child.pid, started, "another boot").exists()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": 1}', "\xff", "[" * 10_000])
@pytest.mark.parametrize("name", [MACHINE, PROCESS, STATUS, EXIT])
def test_damaged_files_are_no_reason_to_fail(name, text):
    web = dead()
    web.file(name).write_bytes(text.encode("latin-1"))
    summary = web.summary()
    json.dumps(summary)
    assert summary["name"] == "web"
    assert summary["status"] == "dead"
    if name == MACHINE:
        with pytest.raises(ControlError, match="not readable as a machine"):
            web.machine()
    web.remove()


def test_files_of_a_newer_version_are_refused():
    web = dead()
    data = json.loads((web.path / MACHINE).read_text())
    (web.path / MACHINE).write_text(json.dumps(data | {"format": 99}))
    assert load(MachineRecord, web.path / MACHINE) is None


def test_configuration_comes_back_whole(tmp_path):
    from ringzero.config.devices.disk import DiskConfig
    from ringzero.config.machine import MachineConfig

    for name in ("kernel", "disk"):
        (tmp_path / name).touch()
    whole = MachineConfig(
        name="x",
        memory=1 << 28,
        cpus=2,
        kernel=tmp_path / "kernel",
        command_line="a b",
        devices=(DiskConfig(tmp_path / "disk", True, "raw"),),
        agent=True,
    )
    assert config_from_tree(json.loads(json.dumps(config_to_tree(whole)))) == whole


def test_what_killed_commands_left_is_swept(root):
    make("web").release()
    for name in (".new-1", ".old-2"):
        (root / name).mkdir()
        (root / name / LOCK).touch()
        os.utime(root / name, (1, 1))
    (root / ".new-3").mkdir()  # by somebody who is at it right now
    (root / "not a machine").mkdir()
    (root / "file").touch()
    make("db").release()
    left = {path.name for path in root.iterdir()}
    assert left == {"web", "db", ".new-3", "not a machine", "file"}
    assert [m.name for m in directory.machines()] == ["db", "web"]


def _machine(path):
    path.mkdir()
    (path / LOCK).touch()


ODD = {
    "an empty directory": lambda path: path.mkdir(),
    "a file": lambda path: path.touch(),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to a directory": lambda path: path.symlink_to("/"),
    "a pipe as lock": lambda path: (path.mkdir(), os.mkfifo(path / LOCK)),
    "a directory as lock": lambda path: (path.mkdir(), (path / LOCK).mkdir()),
    "a link as lock": lambda path: (path.mkdir(), (path / LOCK).symlink_to("/dev/null")),
    **{
        f"a pipe as {name}": lambda path, name=name: (_machine(path), os.mkfifo(path / name))
        for name in (MACHINE, PROCESS, STATUS, EXIT, VMM_LOG, "console.log")
    },
    "a device": lambda path: (_machine(path), (path / MACHINE).symlink_to("/dev/zero")),
    "a directory as description": lambda path: (_machine(path), (path / MACHINE).mkdir()),
}


@pytest.mark.parametrize("make_it", ODD.values(), ids=ODD)
def test_what_is_no_machine_is_skipped_named_and_can_be_removed(root, make_it):
    make("good").release()
    make_it(root / "web")
    assert [machine.name for machine in directory.machines()] == ["good"]
    ((name, reason),) = directory.odd()
    assert name == "web"
    assert reason
    for use in (directory.find, make):
        with pytest.raises((ControlError, ConflictError), match="no machine") as told:
            use("web")
        assert told.value.hint == "`ringzero rm web` removes it"
    directory.find("web", odd=True).remove()
    assert directory.odd() == []
    assert [path.name for path in root.iterdir()] == ["good"]


def test_renamed(root):
    web = dead()
    make("taken").release()
    for wrong, error in (("taken", ConflictError), ("../x", InvalidValueError)):
        with pytest.raises(error):
            web.rename(wrong)
    db = web.rename("db")
    assert (db.machine().name, db.machine().config["name"]) == ("db", "db")
    assert sorted(path.name for path in root.iterdir()) == ["db", "taken"]
    with pytest.raises(NotFoundError):
        web.rename("again")
    claim = make("alive")
    with pytest.raises(ConflictError, match="starting"):
        claim.directory.rename("other")
    claim.release()


def test_next_numbers():
    assert [claims.next_number(n) for n in ("a-1", "a-9", "a", "7")] == [
        "a-2",
        "a-10",
        "a1",
        "8",
    ]


def test_what_a_machine_has_is_there_when_it_appears(root):
    """Whoever is killed before leaves no half of it."""

    def complete(new):
        assert directory.machines(root) == []
        description.describe(new, title="one", metadata={"a": "b"})
        new.write_defined()

    claim = make(complete=complete)
    claim.release()
    web = directory.find("web")
    assert web.status() is Status.DEFINED
    found = description.metadata(web)
    assert (found["title"], found["elements"]) == ("one", {"a": "b"})

    def fail(new):
        complete(new)
        raise KeyboardInterrupt

    web.remove()
    with pytest.raises(KeyboardInterrupt):
        make(complete=fail)
    assert list(root.iterdir()) == []
