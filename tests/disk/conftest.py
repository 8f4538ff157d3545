"""Fixtures for disk images: every format, peers, and storages that fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def qemu_img():
    """Run qemu-img with the given arguments and return its output."""
    return _peer("qemu-img")


@pytest.fixture
def qemu_io():
    """Run qemu-io with the given arguments and return its output."""
    return _peer("qemu-io")


def _peer(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")

    def run(*arguments: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            [program, *map(str, arguments)],
            capture_output=True, text=True, errors="replace", timeout=60,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{program} {arguments}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    return run
