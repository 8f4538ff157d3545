"""firecracker-go-sdk, unmodified, from the Go module proxy: a whole life and a snapshot's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS

pytestmark = [pytest.mark.doors, pytest.mark.boot, pytest.mark.engine]
MODULE = "github.com/firecracker-microvm/firecracker-go-sdk@v1.0.0"
SOURCE = Path(__file__).parent / "gosdk" / "main.go"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go here")
    place = tmp_path_factory.mktemp("go")
    shutil.copy(SOURCE, place)
    for words in (
        ["mod", "init", "microvm"],
        ["get", MODULE],
        ["mod", "tidy"],
        ["build", "-o", "program", "."],
    ):
        done = subprocess.run([go, *words], cwd=place, capture_output=True, text=True, timeout=600)
        if done.returncode and words[0] in ("get", "mod"):
            pytest.skip(f"the SDK cannot be fetched: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    return place / "program"


def test_firecracker_go_sdk(program, guest, recording, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    words = [program, recording, *guest, BOOT_ARGS, disk, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "state": "Running",
        "id": "anonymous-instance",
        "version": "1.16.0",
        "metadata": {"a": "b", "c": "d"},
        "balloon": 16,
        "copy": "Running",
        "signalled": True,
    }
