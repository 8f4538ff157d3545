"""Sessions as a user has them: a terminal, pipes, signals, at any moment."""

import contextlib
import fcntl
import hashlib
import os
import pty
import random
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from tests.boot.process import COMMAND, ENVIRONMENT, WAIT, check, run, start

pytestmark = [pytest.mark.boot, pytest.mark.engine, pytest.mark.usefixtures("image")]
LONG = int(os.environ.get("RINGZERO_FUZZ", "1") != "1")
LONG_ONLY = pytest.mark.skipif(not LONG, reason="takes a boot: run by `make fuzz`")
# From the process's start until a guest has run a command and all is over, in seconds.
LIFE = 3.0
CTRL_C, CTRL_D, ESCAPE = b"\x03", b"\x04", b"\x1d"


class Terminal:
    """`ringzero run` on a terminal of its own, as its controlling one."""

    def __init__(self, *words):
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.slave)
        self.output = bytearray()
        self.process = start(
            *words,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=self._take,
        )

    def _take(self):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Background jobs of a shell ignore it, and so would their children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data):
        os.write(self.master, data)

    def read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            with contextlib.suppress(OSError):
                self.output += os.read(self.master, 65536)

    def until(self, text):
        """Read until `text` comes, which is then taken away with all before it."""
        deadline = time.monotonic() + WAIT
        while text not in self.output:
            assert time.monotonic() < deadline, bytes(self.output)
            assert self.process.poll() is None, bytes(self.output)
            self.read(0.1)
        _, _, rest = self.output.partition(text)
        self.output = bytearray(rest)

    def end(self):
        """Wait for the end; return the exit code."""
        deadline = time.monotonic() + WAIT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, bytes(self.output)
            self.read(0.05)
        self.read(0)
        return self.process.returncode

    @property
    def restored(self):
        return termios.tcgetattr(self.slave) == self.before

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_shell_on_a_terminal():
    with Terminal() as terminal:
        terminal.until(b"# ")
        assert not terminal.restored
        terminal.type(b"stty size; echo a$((1 + 1))b\r")
        terminal.until(b"24 80")
        terminal.until(b"a2b")
        # A storm of resizes; the last one holds.
        for number in range(300):
            terminal.resize(10 + number % 50, 20 + number % 100)
        terminal.resize(33, 101)
        terminal.type(b"sleep 0.3; stty size\r")
        terminal.until(b"33 101")
        # Keys go to the guest, Ctrl-C included; Ctrl-] twice is one Ctrl-].
        terminal.type(b"sleep 100\r")
        terminal.until(b"sleep 100")
        time.sleep(0.5)
        terminal.type(CTRL_C)
        terminal.until(b"# ")
        terminal.type(b"echo status $?\r")
        terminal.until(b"status 130")
        terminal.type(b"stty -echo raw; head -c 1 | od -An -tx1; stty sane\r")
        time.sleep(0.5)
        terminal.type(ESCAPE * 2)
        terminal.until(b"1d")
        terminal.type(b"exit 7\r")
        assert terminal.end() == 7
        assert terminal.restored


@pytest.mark.parametrize(
    ("how", "codes"),
    [
        ("escape", {0}),
        (signal.SIGTERM, {143, -signal.SIGTERM}),
        *LONG
        * [
            ("end of file", {0, 127}),
            (signal.SIGHUP, {129, -signal.SIGHUP}),
            (signal.SIGQUIT, {131, -signal.SIGQUIT}),
            (signal.SIGINT, {130, -signal.SIGINT}),
        ],
    ],
)
def test_terminal_is_restored_on_every_way_out(how, codes):
    with Terminal() as terminal:
        terminal.until(b"# ")
        if how == "escape":
            terminal.type(ESCAPE + b"q")
        elif how == "end of file":
            terminal.type(CTRL_D)
        else:
            terminal.process.send_signal(how)
        assert terminal.end() in codes
        assert terminal.restored
        assert b"Traceback" not in terminal.output


def test_hang_up():
    """The terminal goes away: so does the machine."""
    terminal = Terminal()
    try:
        terminal.until(b"# ")
        os.close(terminal.slave)
        os.close(terminal.master)
        assert terminal.process.wait(30) != 0
    finally:
        terminal.process.kill()
        terminal.process.wait()


@pytest.mark.parametrize("seed", range(4 + 56 * LONG))
def test_ctrl_c_at_any_moment(seed):
    moment = random.Random(seed).uniform(0, LIFE)
    with Terminal("--", "sh", "-c", "echo ready; sleep 100") as terminal:
        deadline = time.monotonic() + moment
        while (left := deadline - time.monotonic()) > 0:
            terminal.read(left)
        terminal.type(CTRL_C)
        # As a program in C: by the signal while Python itself starts and ends, else 130.
        assert terminal.end() in (130, -signal.SIGINT), (moment, bytes(terminal.output))
        assert terminal.restored
        # Before Python has come to our first line, its own traceback is not ours to avoid.
        assert b"ringzero/cli" not in terminal.output, (moment, bytes(terminal.output))
        assert b"rror" not in terminal.output, (moment, bytes(terminal.output))


@LONG_ONLY
def test_ctrl_c_twice_and_more():
    with Terminal("--", "sh", "-c", "echo ready; sleep 100") as terminal:
        terminal.until(b"ready")
        for _ in range(20):
            terminal.type(CTRL_C)
            time.sleep(0.003)
        assert terminal.end() in (130, -signal.SIGINT)
        assert b"Traceback" not in terminal.output


def test_kill_at_any_moment(tmp_path):
    """Nothing that kill -9 leaves behind is in the way of the next start."""
    generator = random.Random(5)
    for _ in range(2 + 38 * LONG):
        process = start("--", "sleep", "100", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0, LIFE))
        process.kill()
        process.wait()
    assert run("--", "echo", "here").stdout == b"here\n"


def test_kill_while_caching(tmp_path):
    """The image, the unpacked kernel and translations are made anew, and killed meanwhile."""
    from tests.boot.test_bad_input import linked_cache

    linked_cache(tmp_path)
    environment = {"RINGZERO_CACHE_DIR": str(tmp_path)}
    generator = random.Random(6)
    for _ in range(1 + 22 * LONG):
        process = start("--", "true", env=environment, stdin=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.2, LIFE))
        process.kill()
        process.wait()
    check(run("--", "true", env=environment), 0)


# --- pipes -----------------------------------------------------------------------------


def test_reader_that_leaves():
    """`ringzero run -- yes | head -1`"""
    command = start("--", "yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert command.stdout.readline() == b"y\n"
    command.stdout.close()
    assert command.wait(WAIT) == 128 + signal.SIGPIPE


@LONG_ONLY
def test_reader_that_leaves_a_command_that_does_not_care():
    script = "trap '' PIPE; while :; do echo y; done"
    command = start("--", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert command.stdout.readline() == b"y\n"
    command.stdout.close()
    assert command.wait(WAIT) == 4


@LONG_ONLY
def test_reader_of_the_serial_line_that_leaves(image):
    words = ["--kernel", image.kernel, "--append", "console=ttyS0"]
    command = start(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert b"Linux version" in command.stdout.readline()
    command.stdout.close()
    assert command.wait(WAIT) == 4


@pytest.mark.parametrize("closed", ["<&- >&-", *LONG * ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]])
def test_closed_streams(closed):
    """A closed descriptor is not taken for the next file opened, such as the guest's memory."""
    script = f'"$@" {closed}'
    done = subprocess.run(
        [
            "sh",
            "-c",
            script,
            "-",
            *COMMAND,
            "--",
            "sh",
            "-c",
            "cat; echo out; echo err >&2; exit 5",
        ],
        env=ENVIRONMENT,
        input=b"in\n",
        capture_output=True,
        timeout=WAIT,
    )
    if ">&-" in closed.split():
        assert (done.returncode, done.stdout) == (4, b"")
    else:
        assert (done.returncode, done.stdout) == (5, b"out\n" if "<" in closed else b"in\nout\n")
    assert done.stderr == {"2>&-": b"", "<&- >&- 2>&-": b""}.get(closed, done.stderr)


def test_full_device_for_output():
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a descriptor is needed
        done = run("--", "echo", "lost", stdout=full, stderr=subprocess.PIPE)
    check(done, 4, "cannot write standard output: No space left")


def test_much_standard_input(tmp_path):
    """Through the guest and back, byte for byte: 4 MB, or 100."""
    block = random.Random(7).randbytes(1 << 20)
    path = tmp_path / "much"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(100 if LONG else 4):
            part = number.to_bytes(4, "little") + block
            digest.update(part)
            file.write(part)
    with path.open("rb") as file:
        done = run("--", "cat", stdin=file)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == digest.digest()


@LONG_ONLY
def test_input_that_nobody_reads():
    """A command that does not read ends all the same, with more input than fits anywhere."""
    with open("/dev/zero", "rb") as endless:  # noqa: PTH123 - a descriptor is needed
        assert run("--", "true", stdin=endless).returncode == 0


@LONG_ONLY
def test_terminate():
    process = start("--", "sleep", "100", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(1.5)
    process.terminate()
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode in (143, -signal.SIGTERM)
    assert said == b""
