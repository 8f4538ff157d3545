"""The program that copies commands' input and outputs, run by the host's own Linux."""

import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero.image.guest import relay

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="a program for x86-64 Linux"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("relay") / "relay"
    path.write_bytes(relay.build())
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("size", [0, 1, relay.BUFFER - 1, relay.BUFFER, 5 * relay.BUFFER + 3])
def test_everything_arrives(program, size):
    data = os.urandom(size)
    done = subprocess.run([program], input=data, stdout=subprocess.PIPE, timeout=20)
    assert (done.returncode, done.stdout) == (0, data)


def test_a_piece_does_not_wait_for_the_next(program):
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        for piece in (b"one", b"another"):
            os.write(child.stdin.fileno(), piece)
            assert os.read(child.stdout.fileno(), 100) == piece
        child.stdin.close()
        assert os.read(child.stdout.fileno(), 100) == b""
    assert child.returncode == 0


def test_what_waits_in_pieces_is_written_at_once(program):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, relay.PIPE)
    for _ in range(30):
        os.write(writing, bytes(1000))
    os.close(writing)
    taken = subprocess.run(
        [program], stdin=reading, stdout=subprocess.PIPE, timeout=20, pass_fds=()
    ).stdout
    os.close(reading)
    assert taken == bytes(30_000)


def test_an_output_that_cannot_be_written(program):
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([program], input=b"x", stdout=full, timeout=20).returncode == 1


def test_an_output_that_nobody_reads(program):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [program], input=b"x", stdout=writing, timeout=20,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == -signal.SIGPIPE
