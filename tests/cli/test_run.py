import errno
import io
import json
import os
import pty
import signal
import termios
import threading
import time
from pathlib import Path

import pytest

from ringzero.cli import session
from ringzero.cli.main import main
from ringzero.image import micro
from ringzero.vm.exit import Exit, ExitReason
from tests.cli.fake import FakeMachine


@pytest.fixture
def stdin(monkeypatch):
    """Give bytes as the process's standard input (descriptor 0)."""
    kept = os.dup(0)

    def give(data):
        reader, writer = os.pipe()
        os.dup2(reader, 0)
        os.close(reader)

        def fill():
            with os.fdopen(writer, "wb") as file:
                file.write(data)

        threading.Thread(target=fill, daemon=True).start()

    give(b"")
    yield give
    os.dup2(kept, 0)
    os.close(kept)


pytestmark = pytest.mark.usefixtures("stdin")


def test_command_with_streams_and_status(machines, capfdbinary):
    assert main(["run", "--", "sh", "-c", r"printf 'a\000\377'; echo e >&2; exit 7"]) == 7
    out, err = capfdbinary.readouterr()
    assert (out, err) == (b"a\0\xff", b"e\n")
    assert machines[0].stopped == 1
    assert machines[0].config.agent


def test_kvm_where_there_is_none_is_told_at_once(machines, capfd, monkeypatch):
    def no_image(*_, **__):
        raise AssertionError("an image is made for a machine that cannot run")

    def no_device(_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(micro, "ensure", no_image)
    monkeypatch.setattr("ringzero.host.kvm.fd.KvmSystem", no_device)
    monkeypatch.setattr("ringzero.engine.kvm.engine.KvmEngine.device", Path("/dev/no-kvm"))
    start = time.monotonic()
    assert main(["run", "--engine", "kvm", "--json", "--", "true"]) == 7
    assert time.monotonic() - start < 1
    error = json.loads(capfd.readouterr().err)["error"]
    assert error["kind"] == "engine-unavailable"
    assert "there is no /dev/kvm" in error["message"]
    assert "--engine" in error["hint"]


def test_command_words_are_not_ours_to_read(machines, capfd):
    assert main(["run", "--", "printf", "%s|", "--memory", "--", "--json", "-h"]) == 0
    assert capfd.readouterr().out == "--memory|--|--json|-h|"


def test_standard_input(machines, stdin, capfdbinary):
    data = os.urandom(300_000)
    stdin(data)
    assert main(["run", "--", "cat"]) == 0
    assert capfdbinary.readouterr().out == data


def test_shell_without_a_terminal_reads_a_script(machines, stdin, capfd, monkeypatch):
    monkeypatch.setattr(FakeMachine, "_run", _cat_first(FakeMachine._run))
    stdin(b"echo script; exit 5\n")
    assert main(["run"]) == 5
    assert capfd.readouterr().out == "script\n"


def _cat_first(original):
    # The fake reads input to its end only for `cat`; a shell's needs that too.
    def run(self, number, takes_input, token, words):
        if words == ["sh"]:
            self._input_end.wait(10)
        original(self, number, takes_input, token, words)

    return run


def test_flags_reach_the_machine(machines, tmp_path):
    disk = tmp_path / "a,b.img"
    disk.write_bytes(bytes(512))
    flags = ["--memory", "1G", "--cpus", "2", "--engine", "soft", "--append", "debug"]
    assert main(["run", *flags, "--disk", f"{disk},ro", "--", "true"]) == 0
    config = machines[0].config
    assert (config.memory, config.cpus, config.engine) == (1 << 30, 2, "soft")
    assert config.command_line == "quiet debug"
    assert (config.disks[0].path, config.disks[0].read_only) == (disk, True)
    assert config.vsock is None
    assert [net.network for net in config.nets] == ["user"]


def test_sockets_and_network_reach_the_machine(machines, tmp_path):
    net = f"socket={tmp_path}/cable,listen,mac=02:00:00:00:00:01"
    flags = ["--vsock", f"{tmp_path}/s,cid=42", "--net", net, "--net", "none"]
    assert main(["run", *flags, "--", "true"]) == 0
    config = machines[0].config
    first, second = config.nets
    assert (config.vsock.path, config.vsock.cid) == (tmp_path / "s", 42)
    assert (first.target, first.listen) == (f"{tmp_path}/cable", True)
    assert first.mac == "02:00:00:00:00:01" and second.network == "none"


def test_a_network_that_is_none(machines, capfd):
    assert main(["run", "--net", "wifi", "--", "true"]) == 3
    assert "known: user, none, socket" in capfd.readouterr().err and not machines


def test_writable_disks_are_written_before_the_end(machines, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    assert main(["run", "--disk", str(disk), "--", "true"]) == 0
    assert machines[0].wait(0).reason is ExitReason.POWEROFF


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "lots"], "not a size"),
        (["--memory", "1M"], "memory of 1 MiB"),
        (["--cpus", "0"], "0 CPUs"),
        (["--disk", "/nonexistent/x"], "does not exist"),
        (["--kernel", "/nonexistent/k"], "does not exist"),
        (["--kernel", "/etc"], "is a directory"),
        (["--initrd", "x"], "--initrd without --kernel"),
        (["--timeout", "0"], "makes no sense"),
        (["-t"], "-t without a command"),
        (["--serial", "stdio"], "give a file"),
        (["--disk", ",ro"], "no file in the disk"),
        (["--vsock", "/tmp/s,cid=1"], "CID of 1 is outside"),
        (["--vsock", ",cid=x"], "no socket device"),
        (["--net", "socket="], "no network in"),
        (["--net", "none,mac=03:00:00:00:00:00"], "no MAC address"),
    ],
)
def test_bad_flags(machines, words, message, capfd):
    assert main(["run", *words]) == (3 if "does not exist" in message else 2)
    assert message in capfd.readouterr().err
    assert not machines


def test_all_faults_are_told_together(machines, capfd):
    assert main(["run", "--memory", "lots", "--cpus", "999", "--disk", ",ro"]) == 2
    text = capfd.readouterr().err
    for part in ("not a size", "999 CPUs", "no file in the disk"):
        assert part in text


def test_a_command_belongs_to_the_default_guest(machines, tmp_path, capfd):
    assert main(["run", "--kernel", str(tmp_path / "vmlinuz"), "--", "true"]) == 2
    assert "default guest" in capfd.readouterr().err


def kernel(tmp_path):
    return ["run", "--kernel", str(tmp_path / "vmlinuz")]


def test_own_kernel_with_its_serial_line(machines, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setattr(FakeMachine, "boots", False)
    monkeypatch.setattr(FakeMachine, "serial_output", b"hello\r\n\0\xff")
    assert main([*kernel(tmp_path), "--append", "console=ttyS0", "--append", "x=y"]) == 0
    assert capfdbinary.readouterr().out == b"hello\r\n\0\xff"
    assert machines[0].config.command_line == "console=ttyS0 x=y"
    assert not machines[0].config.agent


def test_what_a_command_says_is_not_for_the_serial_lines_file(machines, tmp_path, capfd):
    assert main(["run", "--serial", str(tmp_path / "log"), "--", "echo", "said"]) == 0
    assert capfd.readouterr().out == "said\n"
    assert "said" not in (tmp_path / "log").read_text()


def test_serial_line_into_a_file(machines, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.setattr(FakeMachine, "boots", False)
    monkeypatch.setattr(FakeMachine, "serial_output", b"hello\r\n\0\xff")
    assert main([*kernel(tmp_path), "--serial", str(tmp_path / "log")]) == 0
    assert (tmp_path / "log").read_bytes() == b"hello\r\n\0\xff"
    assert capfdbinary.readouterr().out == b""
    assert main([*kernel(tmp_path), "--serial", str(tmp_path / "no" / "log")]) == 3


@pytest.mark.parametrize(
    "end",
    [
        (ExitReason.POWEROFF, 0, ""),
        (ExitReason.REBOOT, 3, ""),
        (ExitReason.PANIC, 125, "panicked"),
        (ExitReason.TRIPLE_FAULT, 125, "triple fault\nRIP=1234"),
    ],
)
def test_ends_of_a_guest(machines, tmp_path, monkeypatch, capfd, end):
    reason, code, message = end
    monkeypatch.setattr(FakeMachine, "boots", False)
    monkeypatch.setattr(FakeMachine, "ending", Exit(reason, "RIP=1234"))
    assert main(kernel(tmp_path)) == code
    assert message in capfd.readouterr().err


def test_default_guest_that_does_not_come_up_shows_its_last_words(machines, monkeypatch, capfd):
    monkeypatch.setattr(FakeMachine, "boots", False)
    monkeypatch.setattr(FakeMachine, "ending", Exit(ExitReason.REBOOT))
    monkeypatch.setattr(FakeMachine, "serial_output", b"line 1\r\nno root device\r\n")
    assert main(["run", "--", "true"]) == 125
    text = capfd.readouterr().err
    assert "ended before it could run anything" in text
    assert "no root device" in text


def test_command_that_ends_the_guest(machines, capfd):
    assert main(["run", "--", "switch-off"]) == 125
    assert "(poweroff) before the command did" in capfd.readouterr().err
    assert main(["run", "--", "panic"]) == 125
    assert "at your service" in capfd.readouterr().err


def test_timeout(machines, capfd):
    began = time.monotonic()
    assert main(["run", "--timeout", "0.3", "--", "sleep", "5"]) == 124
    assert time.monotonic() - began < 3
    assert "--timeout" in capfd.readouterr().err
    assert machines[0].stopped == 1


def test_timeout_of_a_kernel_that_spins(machines, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(FakeMachine, "start", lambda self: None)
    assert main([*kernel(tmp_path), "--timeout", "0.1"]) == 124


def test_interrupt_stops_the_machine(machines):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert main(["run", "--", "sleep", "5"]) == 130
    assert machines[0].stopped == 1


def test_stats(machines, capfd):
    assert main(["run", "--stats", "--", "true"]) == 0
    text = capfd.readouterr().err
    assert "1,234,567" in text
    assert main(["run", "--stats", "--json", "--", "true"]) == 0
    assert json.loads(capfd.readouterr().err)["stats"]["engine"]["name"] == "fake"


def test_interactive_session_on_a_terminal(machines, monkeypatch):
    output = bytearray()
    monkeypatch.setattr(session, "write_all", lambda _, data: output.extend(data))
    master, slave = pty.openpty()
    kept = os.dup(0)
    os.dup2(slave, 0)
    try:
        results = []
        config = _config()
        real = threading.Thread(
            target=lambda: results.append(
                session.run(config, words=["stay"], terminal=True, build=FakeMachine)
            ),
            daemon=True,
        )
        real.start()
        _until(lambda: b"terminal" in output)
        # The terminal becomes raw when the machine has been started.
        _until(lambda: not termios.tcgetattr(slave)[3] & termios.ICANON)
        os.write(master, b"ls\r\x1d\x1d")
        _until(lambda: FakeMachine.machines[0].console.typed == b"ls\r\x1d")
        os.write(master, b"\x1dq")
        real.join(10)
        assert results == [0]
        assert FakeMachine.machines[0].console.sizes
    finally:
        os.dup2(kept, 0)
        for descriptor in (kept, master, slave):
            os.close(descriptor)


def test_terminal_command_status(machines, monkeypatch):
    monkeypatch.setattr(session, "write_all", lambda *_: None)
    assert main(["run", "-t", "--", "vi"]) == 4


def _config():
    from ringzero.config.machine import MachineConfig

    return MachineConfig(agent=True)


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_stat_lines_nest():
    lines = list(session._stat_lines({"a": {"bb": 1000, "c": 0.5}, "d": "x"}, ""))
    assert lines == ["a:", "  bb  1,000", "  c   0.500", "d  x"]


def test_progress_goes_to_stderr_only_when_slow():
    from ringzero.host.progress import Progress

    stream = io.StringIO()
    with Progress(stream).step("quick"):
        pass
    assert stream.getvalue() == ""
    with Progress(stream).step("slow") as step:
        time.sleep(1.1)
        step.update(0.5, "half")
    assert stream.getvalue() == "ringzero: slow ...\n"


def test_models_of_processors_are_listed_in_place_of_a_start(machines, capsys):
    assert main(["run", "--cpu", "help"]) == 0
    out = capsys.readouterr().out
    for model in ("x86-64-v2", "x86-64-v3", "max", "host"):
        assert f"\n{model} " in out
    assert "THIS HOST" in out
