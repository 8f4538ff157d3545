"""The process that only passes a command line on, with a pool that is not there."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

import ringzero
from ringzero.cli.pool import passing, protocol, quick
from ringzero.errors import ControlError

SOURCE = str(Path(ringzero.__file__).parents[1])
LINE = ["run", "--memory", "256M", "--", "echo", "\udcff", ""]
# What such a process may load of ours.
LOADED = {
    "ringzero",
    "ringzero.version",
    "ringzero.basedirs",
    "ringzero.digest",
    "ringzero.cli",
    "ringzero.cli.entry",
    "ringzero.cli.stdin",
    "ringzero.cli.pool",
    "ringzero.cli.pool.protocol",
    "ringzero.cli.pool.quick",
    "ringzero.cli.pool.passing",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    path = tmp_path / "pools"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("RINGZERO_POOL_DIR", str(path))
    return path


class Machine:
    """The other side of a pool's socket, for one client."""

    def __init__(self, root, own, answers, name="pool"):
        directory = root / name
        directory.mkdir()
        (directory / protocol.asked_for(own)).touch()
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(str(directory / protocol.MACHINES))
        self.listening.listen(8)
        self.heard, self.request, self.streams = [], None, 0
        self.thread = Thread(target=self.serve, args=(answers,))
        self.thread.start()

    def serve(self, answers):
        link, _ = self.listening.accept()
        with link:
            link.send(protocol.GREETING)
            kind, descriptors, _, _ = socket.recv_fds(link, 100, 8)
            assert kind == protocol.LINE
            self.streams = len(descriptors)
            self.request = os.pread(descriptors[0], protocol.MAX_REQUEST, 0)
            for descriptor in descriptors:
                os.close(descriptor)
            for answer in answers:
                if callable(answer):
                    answer(self, link)
                else:
                    link.send(answer)

    def close(self):
        self.thread.join(20)
        self.listening.close()


def asked(root, answers, words=LINE):
    """Return what the quick way makes of such answers, and the machine."""
    machine = Machine(root, words[1 : words.index("--")], answers)
    try:
        return quick.run(words), machine
    finally:
        machine.close()


def test_the_answer_is_the_exit_code(root, monkeypatch):
    monkeypatch.setenv("ODD", "a=b\udcff")
    monkeypatch.setattr(passing, "signal", lambda *_: None)
    monkeypatch.setattr(passing, "set_wakeup_fd", lambda *_, **__: None)
    code, machine = asked(root, [protocol.ACCEPTED, b"code 7"])
    assert code == 7
    words, environment, _ = protocol.unpack(machine.request)
    assert words == LINE
    assert environment == dict(os.environ)
    assert machine.streams == 5


@pytest.mark.parametrize("answers", [[protocol.REFUSED], [], [b"nonsense"]])
def test_what_a_machine_does_not_take_is_left_to_the_long_way(root, answers):
    assert asked(root, answers)[0] is None


@pytest.mark.parametrize("answers", [[], [b"code"], [b"code x"], [b"code 12345678"], [b"{}"]])
def test_a_machine_that_ends_before_its_command(root, answers, monkeypatch, capsys):
    monkeypatch.setattr(passing, "signal", lambda *_: None)
    monkeypatch.setattr(passing, "set_wakeup_fd", lambda *_, **__: None)
    assert asked(root, [protocol.ACCEPTED, *answers])[0] == ControlError.exit_code
    assert "ended before the command did" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run"], ["run", "--"], ["run", "true"], ["run", "-d", "--"]])
def test_without_a_command_nobody_is_asked(root, words, monkeypatch):
    monkeypatch.setattr(quick, "_pools", lambda own: pytest.fail("asked"))
    assert quick.run(words) is None


def test_only_a_pool_that_was_found_for_such_words_is_asked(root):
    machine = Machine(root, ["--memory", "1G"], [protocol.REFUSED])
    assert quick.run(LINE) is None
    assert machine.request is None
    quick.run(["run", "--memory", "1G", "--", "true"])
    machine.close()
    assert machine.request is not None


def test_a_dead_pool_does_not_hide_another(root, monkeypatch):
    monkeypatch.setattr(passing, "signal", lambda *_: None)
    monkeypatch.setattr(passing, "set_wakeup_fd", lambda *_, **__: None)
    for name in ("a", "z"):
        (root / name).mkdir()
        (root / name / protocol.asked_for(LINE[1:3])).touch()
    assert asked(root, [protocol.ACCEPTED, b"code 0"])[0] == 0


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_directory_that_others_may_use_is_not_used(root, mode):
    machine = Machine(root, LINE[1:3], [protocol.REFUSED])
    root.chmod(mode)
    assert quick.run(LINE) is None
    assert machine.request is None
    root.chmod(0o700)
    quick.run(LINE)
    machine.close()


def test_a_link_in_the_place_of_the_directory_is_not_used(root, monkeypatch):
    machine = Machine(root, LINE[1:3], [protocol.REFUSED])
    (root.parent / "link").symlink_to(root)
    monkeypatch.setenv("RINGZERO_POOL_DIR", str(root.parent / "link"))
    assert quick.run(LINE) is None
    assert machine.request is None
    monkeypatch.setenv("RINGZERO_POOL_DIR", str(root))
    quick.run(LINE)
    machine.close()


def test_a_pool_without_a_machine_is_left(root, monkeypatch):
    monkeypatch.setattr(protocol, "PATIENCE", 0.05)
    directory = root / "pool"
    directory.mkdir()
    (directory / protocol.asked_for(LINE[1:3])).touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(directory / protocol.MACHINES))
        listening.listen(1)
        assert quick.run(LINE) is None
        link, _ = listening.accept()
        with link:
            assert link.recv(100) == b""


def command(root, *words):
    """Return the process of a whole command line."""
    environment = os.environ | {"PYTHONPATH": SOURCE, "RINGZERO_POOL_DIR": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = [sys.executable, "-X", "importtime", "-m", "ringzero.cli.entry", *words]
    return subprocess.Popen(line, env=environment, **pipes)


def test_it_loads_next_to_nothing(root):
    machine = Machine(root, [], [protocol.ACCEPTED, b"code 3"])
    process = command(root, "run", "--", "true")
    _, told = process.communicate(timeout=60)
    machine.close()
    assert process.returncode == 3
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert {name for name in loaded if name.split(".")[0] == "ringzero"} <= LOADED
    assert not loaded & {"socket", "select.poll", "json", "re", "signal", "threading", "pathlib"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(root, number):
    def wait_for_signal(machine, link):
        os.kill(process.pid, number)
        machine.heard.append(link.recv(100))
        link.send(b"code %d" % (128 + number))

    def wait_for_handlers(machine, link):
        status = Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            caught = next(x for x in status.read_text().splitlines() if x.startswith("SigCgt"))
            if int(caught.split()[1], 16) >> signal.SIGHUP - 1 & 1:
                return
            time.sleep(0.01)

    machine = Machine(root, [], [protocol.ACCEPTED, wait_for_handlers, wait_for_signal])
    process = command(root, "run", "--", "true")
    assert process.wait(60) == 128 + number
    process.communicate()
    machine.close()
    assert machine.heard == [b"signal %d" % number]


def test_without_a_pool_less_is_loaded(root):
    process = command(root, "run", "--memory", "1", "--", "true")
    _, told = process.communicate(timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    assert "ringzero.cli.pool.quick" in loaded
    assert not loaded & {"_socket", "select", "ringzero.cli.pool.passing"}


def test_a_lost_machine_is_told(root):
    machine = Machine(root, [], [protocol.ACCEPTED])
    process = command(root, "run", "--", "true")
    _, told = process.communicate(timeout=60)
    machine.close()
    assert process.returncode == ControlError.exit_code
    assert "ended before the command did" in told


def test_requests_that_make_no_sense():
    good = protocol.pack(["run", "--", "true"], takes_input=True)
    program, takes_input, count, *rest = good.split(b"\0")
    for bad in (
        b"",
        b"\0".join([b"0.0 /other", takes_input, count, *rest]),
        b"\0".join([program, takes_input, b"-1", *rest]),
        b"\0".join([program, takes_input, b"x", *rest]),
        b"\0".join([program, takes_input, b"999999", *rest]),
        program,
    ):
        with pytest.raises(ValueError):
            protocol.unpack(bad)
