"""`ringzero gdb` and `run --gdb`, with Debian's gdb."""

import subprocess
import sys

import pytest

from ringzero.cli.main import main
from ringzero.errors import InvalidValueError
from ringzero.vm.gdb.listener import parse
from tests.vm.gdb.test_gdb import GDB, TIMEOUT

RINGZERO = [sys.executable, "-m", "ringzero"]
real = [
    pytest.mark.boot, pytest.mark.engine, pytest.mark.peer,
    pytest.mark.skipif(GDB is None, reason="needs gdb"),
]  # fmt: skip


@pytest.mark.parametrize(
    "text, place",
    [("1234", ("127.0.0.1", 1234)), (":0", ("127.0.0.1", 0)), ("0.0.0.0:7", ("0.0.0.0", 7)),
     ("[::1]:7", ("::1", 7))],
)  # fmt: skip
def test_places(text, place):
    assert parse(text) == place


@pytest.mark.parametrize("text", ["", "x", "1.2.3.4", "1.2.3.4:", ":70000", "unix:"])
def test_what_is_no_place(text):
    with pytest.raises(InvalidValueError):
        parse(text)


def test_gdb_before_the_first_instruction_is_for_the_foreground(capsys):
    assert main(["run", "-d", "--gdb", "1234"]) == 2
    assert "ringzero gdb NAME" in capsys.readouterr().err


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "m"))
    yield tmp_path
    subprocess.run([*RINGZERO, "rm", "-f", "bug"], capture_output=True, timeout=TIMEOUT)


def said(*words):
    found = subprocess.run([*RINGZERO, *words], capture_output=True, text=True, timeout=TIMEOUT)
    if "needs Debian packages" in found.stderr:
        pytest.skip(found.stderr)
    return found


class TestReal:
    pytestmark = real

    def test_a_machine_that_runs(self, place):
        assert said("run", "-d", "--name", "bug", "--cpus", "2").returncode == 0
        found = subprocess.run(
            [*RINGZERO, "gdb", "bug", "--", "-batch", "-nx", "-ex", "info threads"],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert found.returncode == 0 and "vCPU 1" in found.stdout, found
        piped = subprocess.run(
            [GDB, "-batch", "-nx", "-ex", f"target remote | {' '.join(RINGZERO)} gdb bug",
             "-ex", "info threads", "-ex", "stepi",
             "-ex", f"shell {' '.join(RINGZERO)} ps", "-ex", "detach"],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert "vCPU 1" in piped.stdout and "paused" in piped.stdout, piped
        assert said("exec", "bug", "--", "echo", "fine").stdout == "fine\n"
        # Who ends the machine is told by its record.
        subprocess.run(
            [GDB, "-batch", "-nx", "-ex", f"target remote | {' '.join(RINGZERO)} gdb bug",
             "-ex", "kill"],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert said("wait", "bug").returncode == 137

    def test_before_the_first_instruction(self, place):
        run = subprocess.Popen(
            [*RINGZERO, "run", "--gdb", f"unix:{place / 'gdb'}", "--", "echo", "fine"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for line in run.stderr:
            if "waiting for gdb" in line:
                break
        found = subprocess.run(
            [GDB, "-batch", "-nx", "-ex", f"target remote {place / 'gdb'}", "-ex", "stepi 20",
             "-ex", "p 6 * 7", "-ex", "detach"],
            capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert "$1 = 42" in found.stdout, found
        assert run.communicate(timeout=TIMEOUT)[0] == "fine\n" and run.returncode == 0
        assert not (place / "gdb").exists()
