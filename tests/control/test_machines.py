"""Machines in processes of their own, with a fake guest: life, clients good and bad, death."""

import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from ringzero.api.protocol import Decoder, encode_data, encode_message
from ringzero.api.table import get
from ringzero.api.values import Status
from ringzero.cli.main import main
from ringzero.config.tree import config_to_tree
from ringzero.control.host import claims, client, directory
from ringzero.control.host import launch as launching
from ringzero.control.host.directory import SOCKET
from ringzero.control.host.launch import launch
from ringzero.control.host.session import Session
from ringzero.control.machine import server
from ringzero.errors import (
    ConflictError,
    ControlError,
    GuestError,
    GuestImageError,
    InvalidValueError,
    MissingFileError,
    NotFoundError,
    StateError,
)
from ringzero.host.progress import QUIET
from ringzero.records import replace
from ringzero.vm.saved.store import Store
from tests.control.fake import PROGRAM, Taker, config, start
from tests.vm import seeds

pytestmark = pytest.mark.usefixtures("root")
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# Rounds of a loop that kills at random moments: two thousand in `make fuzz`.
ROUNDS = 16 if FUZZ == 1 else 40 * FUZZ


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_life():
    web = start("web")
    machine = client.machine("web")
    process = web.process()
    assert os.getsid(process.pid) != os.getsid(0)
    assert web.status() is Status.RUNNING
    facts = machine.inspect()
    assert (facts["name"], facts["status"], facts["engine"]) == ("web", "running", "fake")
    assert facts["agent"]["ready"]
    done = machine.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 3)
    assert machine.run(["cat"], input=b"input\0").stdout == b"input\0"
    machine.pause()
    assert web.status() is Status.PAUSED
    with pytest.raises(ConflictError, match="paused"):
        machine.run(["true"])
    with pytest.raises(ConflictError, match="is paused; 'pause' needs one that is running"):
        machine.pause()
    machine.resume()
    with pytest.raises(ConflictError, match="is running; 'resume' needs"):
        machine.resume()
    with pytest.raises(ConflictError, match="running"):
        machine.remove()
    record = machine.stop()
    assert (record.reason, record.exit_code) == ("poweroff", 0)
    assert web.status() is Status.ENDED
    assert not process.identity.exists()
    assert not web.file(SOCKET).exists()
    with pytest.raises(ConflictError, match="does not run: poweroff"):
        machine.pause()
    assert machine.inspect()["exit"]["reason"] == "poweroff"
    machine.remove()
    with pytest.raises(NotFoundError):
        client.machine("web")


@pytest.mark.parametrize(("line", "error"), [("bad", GuestImageError), ("silent", ControlError)])
def test_a_machine_that_cannot_be_built_leaves_nothing(line, error):
    with pytest.raises(error) as caught:
        start("web", line)
    if line == "bad":
        assert (caught.value.message, caught.value.hint) == ("not a kernel", "give a kernel")
    assert directory.machines() == []


def test_a_process_that_crashes_says_why():
    with pytest.raises(ControlError, match="Segmentation fault"):
        start("web", "crash")


def test_a_guest_that_panics_stays_to_be_looked_at():
    with pytest.raises(GuestError, match="panic"):
        start("web", "panic")
    web = directory.find("web")
    until(lambda: not web.alive)
    assert web.exit().reason == "panic"
    assert "no init" in web.exit().detail
    assert "no init" in web.tail("console.log", 1000)
    assert web.exit().exit_code == 125


def test_a_stubborn_guest_is_ended():
    web = start("web", "stubborn")
    record = client.machine("web").stop(0.2)
    assert record.reason == "stopped"
    assert "did not end in 0.2 seconds" in record.detail
    assert not web.alive


def test_signals_of_the_process():
    web = start("web")
    pid = web.process().pid
    for harmless in (signal.SIGINT, signal.SIGHUP):
        os.kill(pid, harmless)
    time.sleep(0.1)
    assert web.alive
    os.kill(pid, signal.SIGTERM)
    assert web.wait_end(10)
    assert web.exit().reason == "poweroff"


def test_a_command_that_is_the_machine():
    start("job", command=("sh", "-c", "echo made; exit 7"))
    record = client.machine("job").wait()
    assert (record.reason, record.exit_code) == ("command", 7)
    assert directory.find("job").tail("console.log", 100).endswith("made\n")
    start("gone", command=("true",), remove=True)
    until(lambda: [m.name for m in directory.machines()] == ["job"])


def test_a_commands_status_where_disks_are_written_before_the_end(tmp_path):
    (tmp_path / "a.img").write_bytes(bytes(4096))
    disk = f"{tmp_path}/a.img,format=raw"
    claim = claims.create("job", config(disks=[disk]), command=("sh", "-c", "exit 7"))
    launch(claim, progress=QUIET, program=PROGRAM)
    record = client.machine("job").wait()
    assert (record.reason, record.exit_code) == ("command", 7)


def test_secrets_of_a_command(tmp_path):
    """They are read when it starts, each time, and stand nowhere."""
    (tmp_path / "key").write_text("hunter2\n")
    command = ("env", "KEY=", "sh", "-c", "test ${#KEY} = 7; exit $?")
    source = {"KEY": {"file": str(tmp_path / "key")}}
    launch(
        claims.create("job", config(), command=command, secrets=source),
        progress=QUIET,
        program=PROGRAM,
    )
    assert client.machine("job").wait().exit_code == 0
    assert "hunter2" not in (directory.find("job").path / "machine.json").read_text()
    (tmp_path / "key").unlink()
    claim = claims.create("other", config(), command=command, secrets=source)
    with pytest.raises(MissingFileError, match="the secret KEY is not there"):
        launch(claim, progress=QUIET, program=PROGRAM)


def test_a_time_limit():
    start("web", timeout=0.3)
    record = client.machine("web").wait()
    assert (record.reason, record.exit_code) == ("timeout", 124)


def test_who_waits_hears_of_the_end():
    start("web")
    machine, ends = client.machine("web"), []

    def run_forever():
        try:
            machine.run(["sleep", "30"])
        except GuestError as fault:
            ends.append(fault.message)

    threads = [
        threading.Thread(target=lambda: ends.append(machine.wait().reason), daemon=True),
        threading.Thread(target=run_forever, daemon=True),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert machine.kill().reason == "killed"
    for thread in threads:
        thread.join(10)
    assert sorted(ends) == ["killed", "machine 'web' ended (killed) before that did"]


def test_a_process_that_hangs_is_killed_all_the_same():
    web = start("web")
    os.kill(web.process().pid, signal.SIGSTOP)
    assert client.machine("web").kill().exit_code == 137
    assert web.exit().reason == "killed"


class Console(Taker):
    """An attached console on a thread."""

    def __init__(self, machine, **how):
        super().__init__()
        self.thread = threading.Thread(target=self._run, args=(machine, how), daemon=True)
        self.thread.start()
        assert self.begun.wait(5)

    def _run(self, machine, how):
        with contextlib.suppress(ControlError, GuestError):
            machine.console(self, **how)

    def leave(self):
        self.link.send(b"")
        self.thread.join(5)


def test_several_watch_one_console():
    start("web")
    machine = client.machine("web")
    first, second = Console(machine), Console(machine, watch=True)
    until(lambda: b"terminal" in first.shown)
    first.link.send(b"hello")
    second.link.send(b"not me")
    until(lambda: b"<hello>" in first.shown and b"<hello>" in second.shown)
    third = Console(machine)
    until(lambda: b"<hello>" in third.shown)
    assert machine.inspect()["watchers"]["console"] == 3
    for console in (first, second, third):
        assert b"not me" not in console.shown
        console.leave()
    until(lambda: machine.inspect()["watchers"]["console"] == 0)
    assert b"<hello>" in directory.find("web").file("console.log").read_bytes()
    with pytest.raises(InvalidValueError, match="no line"):
        machine.console(Taker(), line="tape")


def test_hostile_clients_hurt_nobody():
    web = start("web")
    machine = client.machine("web")
    chance = random.Random(5)
    request = encode_message({"version": 1, "action": "exec", "arguments": {"words": ["true"]}})
    bad = [
        os.urandom(64),
        b"\xff" * 9,
        struct.pack("!IB", 1 << 31, 1),
        request[: len(request) // 2],
        encode_data(0, b"x"),
        encode_message({}),
        encode_message({"version": 1}),
        encode_message({"version": 99, "action": "inspect"}),
        encode_message({"version": 1, "action": ["kill"], "arguments": []}),
        encode_message({"version": 1, "action": "exec", "arguments": {"words": "ls"}}),
        encode_message({"version": 1, "action": "exec", "arguments": {"words": []}}),
        encode_message({"version": 1, "action": "exec", "arguments": {"words": ["a\0"]}}),
        encode_message({"version": 1, "action": "stop", "arguments": {"timeout": -1}}),
        encode_message({"version": 1, "action": "fork", "arguments": {"count": 10**9}}),
        encode_message({"version": 1, "action": "fork", "arguments": {"name": "../x"}}),
        request + encode_message({"event": "signal", "name": "TERM; reboot"}),
        request + encode_message({"event": "resize", "rows": -1, "columns": "x"}),
        request + encode_data(7, b"x"),
    ]
    held = []
    for number in range(60):
        link = web.connect()
        held.append(link)
        link.sendall(bad[number % len(bad)])
        if chance.random() < 0.8:
            link.close()
    assert machine.run(["echo", "fine"]).stdout == b"fine\n"
    for link in held:
        link.close()
    assert web.status() is Status.RUNNING
    assert web.tail("vmm.log", 10_000) == ""


def test_too_many_clients_are_turned_away():
    web = start("web")
    links = [web.connect() for _ in range(server.MAX_CONNECTIONS)]
    for link in links:
        assert link.recv(1)
    with pytest.raises(ControlError, match="ended the conversation"):
        client.machine("web").inspect()
    for link in links:
        link.close()

    def answers():
        try:
            return client.machine("web").inspect()
        except ControlError:
            return None

    until(answers)


def test_a_client_that_does_not_read_keeps_nobody():
    """Others go on meanwhile, and with it gone."""
    start("web")
    machine = client.machine("web")
    slow = machine.session()
    slow._request(get("exec"), {"words": ["head", "-c", "50000000", "/dev/zero"]})
    time.sleep(0.3)
    assert machine.inspect()["status"] == "running"
    slow.close()
    assert machine.run(["echo", "next"]).stdout == b"next\n"


def test_output_for_a_client_that_does_not_read_is_bounded_and_whole():
    ours, theirs = socket.socketpair()
    call = server.Call(server.Connection(ours, None, "web", {}))
    pressure = []
    call.on_pressure = pressure.append
    sent = 0
    while call.write(1, bytes(60_000)):
        sent += 60_000
        assert sent < 10 * server.HIGH
    assert pressure == [True]
    call.finish("done")
    call.finish("too late")
    decoder, got = Decoder(), []
    while data := theirs.recv(1 << 20):
        got += decoder.feed(data)
    assert pressure == [True, False]
    assert b"".join(frame.content for frame in got[:-1]) == bytes(sent)
    assert got[-1].content == {"result": "done"}
    call.close()
    theirs.close()
    ours.close()


def test_other_users_are_turned_away(monkeypatch):
    web = start("web")
    assert web.file(SOCKET).stat().st_mode & 0o777 == 0o600
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert server._is_ours(ours)

        class Link:
            """A socket whose peer has the user number `uid`."""

            def __init__(self, uid):
                self.uid = uid

            def getsockopt(self, *_):
                return struct.pack("@iII", 1, self.uid, 0)

        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert [server._is_ours(Link(uid)) for uid in (0, 1000, 1001)] == [True, True, False]


def test_fork():
    start("web")
    machine = client.machine("web")
    machine.run(["true"])
    copies = machine.copies(3)
    assert [copy.name for copy in copies] == ["web-1", "web-2", "web-3"]
    pids = {copy.directory.process().pid for copy in copies}
    assert len(pids) == 3
    assert machine.kill().reason == "killed"
    for copy in copies:
        assert copy.directory.machine().parent == "web"
        assert copy.run(["echo", copy.name]).stdout == f"{copy.name}\n".encode()
    (again,) = copies[0].copies(name="other")
    assert again.run(["echo", "x"]).exit_code == 0
    with pytest.raises(ConflictError, match="taken"):
        copies[0].fork(2, "web-%")
    with pytest.raises(InvalidValueError, match="no pattern"):
        copies[0].fork(2, "web")
    assert copies[1].fork(1)[0] == "web-2-1"
    assert copies[2].stop().reason == "poweroff"
    names = [m.name for m in directory.machines() if m.alive]
    assert names == ["other", "web-1", "web-2", "web-2-1"]


@pytest.fixture
def saved(tmp_path):
    """A snapshot's directory."""
    return seeds.save(Store(tmp_path / "store"), tmp_path, "ready").path


def log(web):
    return web.tail("console.log", 10_000)


def test_a_machine_is_started_again():
    web = start("web")
    machine = client.machine("web")
    with pytest.raises(ConflictError, match="is running"):
        machine.start()
    assert machine.stop().reason == "poweroff"
    created = web.machine().id
    with launched_by_fakes():
        machine.start()
    assert web.status() is Status.RUNNING and web.exit() is None
    assert web.machine().id == created
    assert machine.kill().reason == "killed"
    assert web.status() is Status.ENDED


def test_its_command_is_run_again():
    start("job", command=("sh", "-c", "echo made; exit 7"))
    machine = client.machine("job")
    machine.wait()
    with launched_by_fakes():
        machine.start()
    assert machine.wait().exit_code == 7
    assert log(machine.directory) == "made\nmade\n"


def test_one_that_does_not_come_up_again_is_still_there():
    web = start("web")
    client.machine("web").kill()
    record = web.machine()
    with launched_by_fakes(), pytest.raises(GuestImageError):
        launch(web.reclaim(replace(record, config=config_to_tree(config("bad")))), progress=QUIET)
    assert web.exit().reason == "not-built"
    with launched_by_fakes():
        launch(web.reclaim(record), progress=QUIET)
    assert web.status() is Status.RUNNING


def test_copies_are_not_started_again():
    start("web")
    (copy,) = client.machine("web").copies()
    copy.kill()
    with pytest.raises(ConflictError, match="was a copy"):
        copy.start()


@pytest.mark.parametrize("paused", [False, True])
def test_a_running_machine_is_taken_back(saved, paused):
    web = start("web", command=("sleep", "1000"))
    machine = client.machine("web")
    lost = []

    def work():
        try:
            machine.run(["sleep", "1000"])
        except GuestError as fault:
            lost.append(fault)

    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: machine.inspect()["agent"]["ready"])
    time.sleep(0.1)
    if paused:
        machine.pause()
    machine.revert(str(saved))
    worker.join(10)
    assert "taken back" in lost[0].message
    assert web.status() is (Status.PAUSED if paused else Status.RUNNING)
    until(lambda: "reverted to ready as None" in log(web))
    assert web.machine().revert == ""


def test_a_machine_that_ended_is_taken_back_and_goes_on(saved):
    web = start("web")
    machine = client.machine("web")
    machine.kill()
    with launched_by_fakes():
        machine.revert(str(saved))
    assert web.status() is Status.RUNNING and web.machine().revert == ""
    until(lambda: "reverted to ready as None" in log(web))


@pytest.mark.parametrize("alive", [True, False])
def test_a_snapshot_that_does_not_fit_changes_nothing(saved, alive):
    web = start("web", "unfit")
    machine = client.machine("web")
    if not alive:
        machine.kill()
    with launched_by_fakes(), pytest.raises(StateError, match="does not fit"):
        machine.revert(str(saved))
    assert web.alive is alive and web.machine().revert == ""
    if not alive:
        with launched_by_fakes():
            machine.start()
        assert web.alive


@pytest.mark.parametrize(("line", "error"), [("full", StateError), ("dies", ControlError)])
def test_a_revert_that_is_cut_short_is_told_and_completed(saved, line, error):
    web = start("web", line)
    machine = client.machine("web")
    with pytest.raises(error):
        machine.revert(str(saved))
    until(lambda: not web.alive)
    assert web.machine().revert == str(saved)
    if line == "dies":
        assert "being taken back to 'ready'" in web.exit().detail
        assert "ringzero start web" in web.exit().detail
    else:
        assert web.exit().reason == "fault" and "in part only" in web.exit().detail
    record = replace(web.machine(), config=config_to_tree(config()))
    with launched_by_fakes():
        launch(web.reclaim(record), progress=QUIET)
    until(lambda: "reverted to ready" in log(web))
    assert web.machine().revert == ""


@contextlib.contextmanager
def launched_by_fakes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "PROGRAM", PROGRAM)
        yield


def test_kill_at_random_moments():
    """Whatever is killed whenever: `ps` tells the truth, and the next start works."""
    chance = random.Random(os.urandom(8))
    for number in range(ROUNDS):
        web = start("web", wait=False)
        time.sleep(chance.random() * 0.25)
        process = web.process()
        if process is not None:
            process.identity.signal(signal.SIGKILL)
            assert process.identity.wait(5)
            assert web.status() is Status.DEAD
            assert web.exit().reason == "died"
            with pytest.raises(ConflictError):
                client.machine("web").pause()
            client.machine("web").remove()
        else:
            client.machine("web").remove(force=True)
        assert directory.machines() == [], f"round {number}"


def test_what_is_asked_of_one_that_ends_meanwhile(monkeypatch):
    def end(session, *_):
        directory.find("web").process().identity.signal(signal.SIGKILL)
        raise ControlError("it ended meanwhile")

    monkeypatch.setattr(Session, "call", end)
    start("web")
    assert client.machine("web").inspect()["status"] == "dead"
    client.machine("web").remove()
    start("web")
    with pytest.raises(ControlError):
        client.machine("web").pause()


def test_kill_while_copies_are_made():
    chance = random.Random(os.urandom(8))
    for _ in range(max(2, ROUNDS // 8)):
        web = start("web")
        made = threading.Thread(target=_fork_quietly, daemon=True)
        made.start()
        time.sleep(chance.random() * 0.1)
        web.process().identity.signal(signal.SIGKILL)
        made.join(20)
        assert not made.is_alive()
        for machine in client.machines():
            # Those that were made live on; the others are dead, and say so.
            if machine.directory.alive and machine.directory.wait_end(0.3) is False:
                assert machine.run(["true"]).exit_code == 0
            machine.remove(force=True)
        assert directory.machines() == []


def _fork_quietly():
    with contextlib.suppress(ControlError, ConflictError):
        client.machine("web").fork(4)


def test_remove_while_starting():
    web = start("web", "slow", wait=False)
    assert web.status() is Status.STARTING
    with pytest.raises(ConflictError, match="starting"):
        client.machine("web").remove()
    with pytest.raises(ConflictError, match="still starting"):
        client.machine("web").pause()
    client.machine("web").remove(force=True)
    assert directory.machines() == []


def test_a_stale_socket_is_replaced(root):
    web = start("web")
    web.process().identity.signal(signal.SIGKILL)
    until(lambda: not web.alive)
    assert web.file(SOCKET).exists()
    client.machine("web").remove()
    start("web")
    assert client.machine("web").inspect()["status"] == "running"


def test_a_long_path_is_no_trouble(tmp_path, monkeypatch):
    """A socket's address has 108 bytes (unix(7)); directories may be deeper."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(deep))
    start("web")
    assert client.machine("web").run(["echo", "x"]).stdout == b"x\n"
    client.machine("web").remove(force=True)


def test_a_renamed_machine_is_told_by_its_new_name(root, capsys):
    client.host().define({"kernel": __file__}, name="web")
    assert main(["rename", "web", "db"]) == 0
    assert main(["rename", "--json", "db", "web"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "db"
    assert json.loads("".join(rest)) == [{"name": "web", "result": None}]
