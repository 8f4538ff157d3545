"""Images of containers beside other programs: umoci's tree, Debian's docker-registry, skopeo."""

import os
import shutil
import socket
import subprocess
import time

import pytest

from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.oci.images import Image

pytestmark = pytest.mark.peer
LAYERS = [
    {"a/b/c": b"1", "a/old": b"2", "gone": b"3", "link": ("->", "a"), "many/x": b"x", "f": b"f"},
    {"a/b": None, "a/.wh.old": b"", ".wh.gone": b"", "many/.wh..wh..opq": b"", "many/y": b"y",
     "hard": ("=", "f")},
    {"link/through": b"4", "f": b"new", "d": None, "empty": b"", "big": os.urandom(300_000)},
]  # fmt: skip


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def tree(place):
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = "->" + str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_umoci_unpacks_the_same_tree(tmp_path, packing):
    need("umoci", "fsck.erofs")
    image = Image(LAYERS, packing=packing)
    image.write_layout(tmp_path / "layout")
    command = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/layout:1", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and packing == "+zstd":
        pytest.skip("this umoci knows no zstd")
    assert done.returncode == 0, done.stderr
    found = pull(parse(f"oci:{tmp_path}/layout"), cache=tmp_path / "cache", architecture="amd64")
    subprocess.run(["fsck.erofs", f"--extract={tmp_path}/out", found.root], check=True)
    ours = tree(tmp_path / "out" / "rootfs")
    # Where the guest's own file systems are mounted.
    for name in ("dev", "proc", "sys", "run", "tmp", "etc"):
        assert ours.pop(name) is None
    assert ours == tree(tmp_path / "b" / "rootfs")


@pytest.fixture
def server(tmp_path):
    """Debian's docker-registry on loopback; its address."""
    need("docker-registry", "skopeo")
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/registry\n"
        f"http:\n  addr: {host}\n"
    )
    child = subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.05)
    yield host
    child.terminate()
    child.wait(10)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_pushes_is_pulled(tmp_path, server, form):
    image = Image(LAYERS)
    image.write_layout(tmp_path / "layout")
    target = f"docker://{server}/app:1"
    command = ["skopeo", "copy", "--format", form, "--dest-tls-verify=false"]
    subprocess.run([*command, f"oci:{tmp_path}/layout:1", target], check=True, capture_output=True)
    name = f"{server}/app:1"
    found = pull(parse(name), cache=tmp_path / "cache", architecture="amd64")
    told = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", target],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert found.digest == told
    exact = pull(parse(f"{server}/app@{told}"), cache=tmp_path / "cache", architecture="amd64")
    assert exact.root == found.root
