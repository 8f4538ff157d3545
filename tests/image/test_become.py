"""The program that runs another as a user, run by the host's own Linux."""

import os
import platform
import subprocess
import sys

import pytest

from ringzero.image.guest import become

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or os.geteuid() != 0,
    reason="a program for x86-64 Linux that needs root",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("become") / "become"
    path.write_bytes(become.build())
    path.chmod(0o755)
    return str(path)


def run(program, *words):
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize(
    ("uid", "gids"), [("1000", "1000"), ("0", "0"), ("4294967294", "5,6,7"), ("65534", "7,6,5")]
)
def test_user_and_groups(program, uid, gids):
    status = run(program, uid, gids, "/bin/cat", "cat", "/proc/self/status").stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    own = gids.partition(",")[0]
    assert facts["Uid"].split() == [uid] * 4
    assert facts["Gid"].split() == [own] * 4
    assert facts["Groups"].split() == sorted(gids.split(","), key=int)


def test_words_environment_and_status(program):
    done = run(program, "1", "1", "/bin/sh", "name", "-c", 'echo "$0|$1|$HOME"; exit 7', "x", "a b")
    assert (done.returncode, done.stdout) == (7, f"x|a b|{os.environ.get('HOME', '')}\n")


def test_a_script_without_an_interpreter(program, tmp_path):
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"\n')
    script.chmod(0o755)
    assert run(program, "0", "0", str(script), "name", "one").stdout == f"{script} one\n"


def test_what_cannot_be_run(program, tmp_path):
    assert run(program, "0", "0", str(tmp_path), "x").returncode == become.CANNOT_RUN
    many = ",".join(map(str, range(become.MAX_GROUPS + 1)))
    assert run(program, "0", many, "/bin/true", "true").returncode == become.CANNOT_RUN
