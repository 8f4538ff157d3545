"""A pool as its users see it: started, taken from, asked and ended by commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringzero

pytestmark = [pytest.mark.engine, pytest.mark.boot]

SOURCE = str(Path(ringzero.__file__).parents[1])


class Place:
    """Commands with pools of their own."""

    def __init__(self, root):
        self.environment = os.environ | {
            "PYTHONPATH": SOURCE,
            "RINGZERO_POOL_DIR": str(root),
            "RINGZERO_ENGINE": "soft",
            "RINGZERO_MACHINES_DIR": f"{root}-machines",
        }

    def start(self, *words, flags=(), **options):
        command = [sys.executable, *flags, "-m", "ringzero", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **{"env": self.environment, **pipes, **options})

    def __call__(self, *words, given=""):
        process = self.start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(given, timeout=120)
        return process.returncode, out, err

    def status(self):
        (found,) = json.loads(self("pool", "status", "--json")[1])
        return found

    def until(self, **wanted):
        deadline = time.monotonic() + 60
        while not wanted.items() <= self.status().items():
            assert time.monotonic() < deadline, (wanted, self.status())
            time.sleep(0.05)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("pools") / "all")
    code, out, err = place("pool", "start", "--size", "2", "--memory", "256M", "--json")
    assert code == 0, err
    assert json.loads(out)["ready"] == 2
    yield place
    assert place("pool", "stop")[0] == 0
    assert json.loads(place("pool", "status", "--json")[1]) == []


def run(there, *words, given="", flags=()):
    there.until(ready=2)
    served = there.status()["served"]
    found = there("run", "--memory", "256M", *flags, "--", *words, given=given)
    there.until(served=served + 1)
    return found


def test_streams_and_status_are_the_commands(there):
    assert run(there, "sh", "-c", "cat; echo no >&2; exit 7", given="a\nb\n") == (
        7,
        "a\nb\n",
        "no\n",
    )


def test_statistics_tell_of_it(there):
    code, _, err = run(there, "true", flags=("--stats", "--json"))
    assert code == 0
    assert json.loads(err)["stats"]["started"] == "ready in a pool"


def test_two_machines_are_two(there):
    words = ("head", "-c", "16", "/proc/sys/kernel/random/uuid")
    assert run(there, *words)[1] != run(there, *words)[1]


def test_faults_are_as_without_a_pool(there):
    code, _, err = run(there, "sleep", "60", flags=("--timeout", "0.3"))
    assert code == 124
    assert "--timeout is over" in err
    assert run(there, "no-such-program")[0] == 127


def test_one_that_stays_is_taken_from_it(there):
    """By its name, with its command, and none of the pool's any more."""
    there.until(ready=2)
    served = there.status()["served"]
    words = ("run", "-d", "--memory", "256M", "--name", "web", "--json")
    code, out, err = there(*words, "--", "sh", "-c", "hostname; cat; sleep 600")
    assert code == 0, err
    found = json.loads(out)
    there.until(served=served + 1, ready=2, lent=0)
    try:
        assert (found["name"], found["status"]) == ("web", "running")
        assert there("exec", "web", "--", "hostname") == (0, "web\n", "")
        assert "web" in there("logs", "web")[1]
        uuids = ("cat", "/proc/sys/kernel/random/uuid")
        assert there("exec", "web", "--", *uuids)[1] != run(there, *uuids)[1]
        # Folders come in, as into one that was started for it.
        assert there("share", "web", "add", f"{SOURCE}:/src")[0] == 0
        assert "ringzero" in there("exec", "web", "--", "ls", "/src")[1]
        # A copy of it is as any copy.
        assert there("fork", "web", "--name", "copy")[0] == 0
        assert there("exec", "copy", "--", "hostname") == (0, "copy\n", "")
    finally:
        for name in ("web", "copy"):
            there("rm", "-f", name)
    assert json.loads(there("ps", "-a", "--json")[1]) == []


def test_one_that_stays_goes_without_where_settings_differ(there):
    there.until(ready=2)
    served = there.status()["served"]
    other = {**there.environment, "RINGZERO_BOOT_TIMEOUT": "1234"}
    process = there.start("run", "-d", "--memory", "256M", "--name", "own", env=other)
    assert process.communicate(timeout=120)[0] == "own\n"
    assert there("rm", "-f", "own")[0] == 0
    assert there.status()["served"] == served


def test_others_start_a_machine_of_their_own(there):
    there.until(ready=2)
    served = there.status()["served"]
    flags = ("--memory", "320M", "--stats")
    assert "pool" not in there("run", *flags, "--", "true")[2]
    assert "pool" not in there("run", "--memory", "256M", "--boot", "--stats", "--", "true")[2]
    assert there.status()["served"] == served


def test_a_second_such_pool_is_refused(there):
    code, _, err = there("pool", "start", "--memory", "256M")
    assert code == 11
    assert "such a pool already" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_clients_end_is_the_machines(there, number):
    there.until(ready=2, lent=0)
    client = there.start("run", "--memory", "256M", "--", "sh", "-c", "echo up; sleep 60")
    assert client.stdout.readline() == "up\n"
    there.until(lent=1)
    client.send_signal(number)
    code = client.wait(20)
    client.communicate()
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    there.until(ready=2, lent=0)


def test_a_burst(there):
    there.until(ready=2)
    clients = [there.start("run", "--memory", "256M", "--", "echo", str(n)) for n in range(6)]
    for n, client in enumerate(clients):
        assert client.communicate(timeout=120)[0] == f"{n}\n"
        assert client.returncode == 0


def test_an_idle_pool_ends_and_a_killed_one_leaves_nothing(tmp_path):
    place = Place(tmp_path / "pools")
    code, out, err = place("pool", "start", "--size", "1", "--idle-timeout", "1", "--json")
    assert code == 0, err
    pid = json.loads(out)["pid"]
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert place("pool", "status", "--json") == (0, "[]\n", "")
    found = json.loads(place("pool", "start", "--size", "1", "--json")[1])
    children = Path(f"/proc/{found['pid']}/task/{found['pid']}/children").read_text().split()
    assert children
    os.kill(found["pid"], signal.SIGKILL)
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)
    code, out, _ = place("run", "--", "echo", "yes")
    assert (code, out) == (0, "yes\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--size", "0"), "--size 0 is outside"),
        (("--idle-timeout", "-1"), "--idle-timeout"),
        (("--net", "socket=/nowhere/x,listen"), "no pool can have such machines"),
        (("--net", "user,mac=02:00:00:00:00:01"), "no pool can have such machines"),
    ],
)
def test_what_cannot_be(tmp_path, words, text):
    code, _, err = Place(tmp_path / "pools")("pool", "start", *words)
    assert code
    assert text in err


def test_the_next_such_command_line_is_passed_on_as_it_is(there, tmp_path):
    """Its process loads next to nothing; what the command sees is as it was."""
    words = ("--memory", "256M", "-e", "HERE", "-w", "/tmp", "--timeout", "60")
    command = ("sh", "-c", "echo $HERE; pwd; cat; echo no >&2; exit 3")
    deadline = time.monotonic() + 120
    there.environment["HERE"] = "x y"
    try:
        loaded, rounds = "ringzero.config", 0
        while "ringzero.config" in loaded:
            # A pool that is busy leaves it to the client, which then loads all.
            assert time.monotonic() < deadline
            rounds += 1
            there.until(ready=2, lent=0)
            process = there.start(
                "run", *words, "--", *command,
                flags=("-X", "importtime"), stdin=subprocess.PIPE, cwd=tmp_path,
            )  # fmt: skip
            out, loaded = process.communicate("in", timeout=120)
            assert (process.returncode, out) == (3, "x y\n/tmp\nin")
            assert "no\n" in loaded
        assert rounds > 1
    finally:
        del there.environment["HERE"]


def test_who_has_other_settings_reads_them(there):
    """The description is the same, and it is a machine that the pool is of."""
    deadline, err = time.monotonic() + 120, ""
    there.environment["RINGZERO_TEMPLATES"] = "1G"
    try:
        while "ready in a pool" not in err:
            # A pool that is busy is left after half a second.
            assert time.monotonic() < deadline, err
            there.until(ready=2, lent=0)
            code, _, err = there("run", "--memory", "256M", "--stats", "--", "true")
            assert code == 0
    finally:
        del there.environment["RINGZERO_TEMPLATES"]
