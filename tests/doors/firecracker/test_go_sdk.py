"""firecracker-go-sdk, unmodified, from the Go module proxy: a whole life and a snapshot's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS

pytestmark = [pytest.mark.doors, pytest.mark.boot, pytest.mark.engine]
MODULE = "github.com/firecracker-microvm/firecracker-go-sdk@v1.0.0"
HERE = Path(__file__).parent
USER = 64322


def built(source, place):
    """Return the program in a directory of sources, with the SDK from the Go module proxy."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no Go here")
    shutil.copy(source / "main.go", place)
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


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return built(HERE / "gosdk", tmp_path_factory.mktemp("go"))


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change roots and users")
def test_firecracker_go_sdk_with_a_jailer(guest, tmp_path):
    """Its JailerConfig: numbers, NUMA node, the SDK's own links into the jail's root."""
    program = built(HERE / "gosdk_jailer", tmp_path)
    for path in [tmp_path, *tmp_path.parents[:3]]:
        path.chmod(0o755)
    disk, binary = tmp_path / "disk", tmp_path / "firecracker"
    disk.write_bytes(bytes(1 << 20))
    binary.touch()
    files = [tmp_path / name for name in ("kernel", "initrd")]
    for source, target in zip(guest, files, strict=True):
        # They are linked into the root.
        shutil.copy(source, target)
    for file in (*files, disk):
        file.chmod(0o644)
    jailer = Path(sys.executable).with_name("ringzero-jailer")
    words = [program, jailer, binary, *files, BOOT_ARGS, disk, tmp_path, str(USER)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["state"], told["id"]) == ("Running", "go-1")
    assert told["root"].endswith("/jails/firecracker/go-1/root") or told["root"] == "/"
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in told["status"]
    assert "CapEff:\t0000000000000000" in told["status"]
    assert "Seccomp:\t2" in told["status"]
