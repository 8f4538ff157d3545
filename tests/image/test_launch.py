"""The program that starts commands in ringzero's own guests, run by the host's own Linux."""

import os
import platform
import pty
import signal
import subprocess
import sys

import pytest

from ringzero.image.guest import launch

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="a program for x86-64 Linux"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("launch") / "launch"
    path.write_bytes(launch.build())
    path.chmod(0o755)
    return str(path)


def spoil():
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
    os.umask(0o077)


def run(*words, **more):
    return subprocess.run(words, capture_output=True, timeout=20, **more)


def test_signals_umask_and_session_are_clean(program):
    status = run(program, "/bin/cat", "cat", "/proc/self/status", preexec_fn=spoil).stdout.decode()
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert {facts[n] for n in ("SigIgn", "SigBlk", "SigCgt")} == {"0" * 16}
    assert facts["Umask"] == "0022"
    stat = run(program, "/bin/cat", "cat", "/proc/self/stat", preexec_fn=spoil).stdout.split()
    assert stat[0] == stat[4] == stat[5], "process, group and session are one"


def test_words_and_environment_arrive(program):
    words = ["", "a b", "\udcff"]
    done = run(program, "/bin/sh", "sh", "-c", 'printf "%s|" "$@" "$A"', "x", *words,
               env={"A": "value"})  # fmt: skip
    assert done.stdout == b"|a b|\xff|value|"


def test_a_script_without_an_interpreter(program, tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"; exit 7\n')
    script.chmod(0o755)
    done = run(program, str(script), "name", "one", "two")
    assert (done.returncode, done.stdout) == (7, f"{script} one two\n".encode())


def test_what_cannot_be_run(program, tmp_path):
    script = tmp_path / "script"
    script.write_text("echo no\n")
    for path in (script, tmp_path, tmp_path / "none"):
        done = run(program, str(path), "name")
        assert (done.returncode, done.stdout) == (launch.CANNOT_RUN, b"")


def test_a_terminal_becomes_the_controlling_one(program):
    control, terminal = pty.openpty()
    child = subprocess.Popen(
        [program, "/bin/sh", "sh", "-c", "exec </dev/tty && echo mine"], stdin=terminal,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    # A leader of a session has it already; the program says so to nobody.
    assert child.communicate(timeout=20)[0] == b"mine\n"
    os.close(control)
    os.close(terminal)
