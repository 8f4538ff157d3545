"""Debian's own kernel in an image: built on, pushed, pulled elsewhere, booted. Opt-in: minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ringzero.image import micro
from ringzero.settings import CACHE_DIR
from tests.image.fs.made import tool
from tests.image.oci.docker_registry import docker_registry

WANTED = os.environ.get("RINGZERO_TEST_DISTRIBUTIONS", "")
pytestmark = [
    pytest.mark.boot,
    pytest.mark.peer,
    pytest.mark.engine,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        not WANTED, reason="RINGZERO_TEST_DISTRIBUTIONS=1 (or a folder to keep it) installs Debian"
    ),
]
# Of the cache what is an image's, and has to come by the registry.
OWN = ("blobs", "build", "images", "layers", "tmp")


@pytest.fixture
def store(tmp_path):
    """Return what makes an empty store that shares the default guest and compiled code."""
    micro.ensure()
    place = CACHE_DIR.get()

    def make(name):
        own = tmp_path / name
        (own / "images").mkdir(parents=True)
        for path in [*place.iterdir(), *(place / "images").iterdir()]:
            target = own / path.relative_to(place)
            if not target.exists() and path.name not in OWN and path.name != "names":
                target.symlink_to(path)
        return own

    return make


def ringzero(cache, *words):
    environment = os.environ | {"RINGZERO_CACHE_DIR": str(cache), "RINGZERO_TEMPLATES": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ringzero", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_debians_kernel_boots_after_a_registry(tmp_path, store):
    tree = (Path(WANTED) if Path(WANTED).is_dir() else tmp_path) / "debian-kernel.tar"
    if not tree.exists():
        packages = "--include=linux-image-cloud-amd64"
        command = [tool("mmdebstrap"), "--variant=minbase", packages, "bookworm", tree]
        subprocess.run(command, check=True, capture_output=True, timeout=1500)
    one, other = store("one"), store("other")
    ringzero(one, "image", "import", tree, "debian-with-kernel:12", "-q")
    (tmp_path / "Vmfile").write_text("FROM debian-with-kernel:12\nKERNEL /boot/vmlinuz-*\n")
    with docker_registry(tmp_path / "registry") as host:
        name = f"{host}/own-kernel:1"
        ringzero(one, "image", "build", "-t", name, tmp_path)
        ringzero(one, "push", name)
        ringzero(other, "pull", name)
    script = "uname -r; ls /boot; cat /proc/version; dpkg-query -W linux-image-cloud-amd64"
    said = ringzero(other, "run", name, "--", "sh", "-c", script)
    release = said.split()[0]
    assert release.endswith("-cloud-amd64") and f"vmlinuz-{release}" in said
    assert "Debian" in said and "linux-image-cloud-amd64\t6." in said
