"""`ringzero disk serve`: a program of its own, and clients of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from ringzero.cli.main import main
from ringzero.disk import create_disk, open_disk
from tests.disk.nbd.client import Client

SIZE = 1 << 20
SOURCE = str(Path(ringzero.__file__).parents[1])


@pytest.fixture
def disk(tmp_path):
    create_disk(tmp_path / "disk.qcow2", "qcow2", SIZE)
    return tmp_path / "disk.qcow2"


@pytest.fixture
def serve():
    """Start the program; return it and its first line."""
    running = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "ringzero", "disk", "serve", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": SOURCE},
        )  # fmt: skip
        running.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_serve_until_ctrl_c(disk, serve, tmp_path):
    path = tmp_path / "socket"
    process, url = serve("--unix", path, "-x", "a disk", disk)
    assert url == f"nbd+unix:///a%20disk?socket={path}"
    with Client(str(path)) as client:
        assert client.go("a disk")[0] == SIZE
        client.request(1, 0, 4, payload=b"data")
        assert client.simple() == (0, b"")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not path.exists()
    with open_disk(disk) as found:
        assert found.read(0, 4) == b"data"


def test_serve_once_on_a_free_port(disk, serve):
    process, line = serve("--json", "--once", "--throw-away", "-p", 0, disk)
    while not line.endswith("}"):
        line += process.stdout.readline().strip()
    told = json.loads(line)
    assert told["size"] == SIZE
    port = int(told["url"].rpartition(":")[2])
    with Client(("127.0.0.1", port)) as client:
        client.go("")
        client.request(1, 0, 4, payload=b"data")
        assert client.simple() == (0, b"")
        assert client.read(0, 4) == b"data"
    process.communicate(timeout=30)
    assert process.returncode == 0
    with open_disk(disk) as found:
        assert found.read(0, 4) == bytes(4)


def test_serve_read_only(disk, serve, tmp_path):
    # As others may read it meanwhile.
    _, _ = serve("-r", "-k", tmp_path / "socket", disk)
    with Client(str(tmp_path / "socket")) as client, open_disk(disk, read_only=True):
        assert client.go("")[1] & 2
        client.request(1, 0, 4, payload=b"data")
        assert client.simple() == (1, b"")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unix", "x", "--port", "1"], "another way"),
        (["--port", "65536"], "no port"),
        (["--bind", "nowhere.invalid"], "cannot listen"),
        (["--unix", "/nonexistent/socket"], "listen"),
    ],
)
def test_what_makes_no_sense_is_refused(disk, capsys, words, said):
    assert main(["disk", "serve", *words, str(disk)]) != 0
    assert said in capsys.readouterr().err
    open_disk(disk).close()
