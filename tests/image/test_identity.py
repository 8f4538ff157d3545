"""The guest's identity program, run on the host with records that change nothing there."""

import os
import subprocess

import pytest

from ringzero.image.guest import identity as program
from ringzero.image.guest.identity_record import ANSWER, RECORD_SIZE
from ringzero.vm.guest.identity import Identity

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86-64 program")


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "identity"
    place.write_bytes(program.build())
    place.chmod(0o755)
    return place


def harmless():
    """A record whose parts the kernel refuses: no name, no time; the random device is a pipe."""
    return Identity().record()


def test_every_record_is_answered_and_the_end_ends_it(path):
    result = subprocess.run([path], input=harmless() * 3, capture_output=True, timeout=10)
    assert (result.returncode, result.stdout) == (1, ANSWER * 3)


def test_half_a_record_ends_it(path):
    result = subprocess.run([path], input=harmless()[:100], capture_output=True, timeout=10)
    assert (result.returncode, result.stdout) == (1, b"")


def test_system_calls_and_their_arguments(path):
    """What the kernel sees, told by strace where there is one."""
    import shutil

    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    record = harmless()
    result = subprocess.run(
        ["strace", "-o", path.parent / "trace", path], input=record, capture_output=True, timeout=20
    )
    assert result.stdout == ANSWER
    names = [line.partition("(")[0] for line in (path.parent / "trace").read_text().splitlines()]
    assert names[:-1] == ["execve", "read", "ioctl", "ioctl", "clock_settime", "sethostname",
                          "socket", *["ioctl"] * 8, "close", "write", "read", "exit"]  # fmt: skip


def test_record_fits_the_guests_buffers():
    assert len(Identity("a").record()) == RECORD_SIZE
    assert 4096 % RECORD_SIZE == 0
