import gzip
import lzma
import random
import shutil
import subprocess

import pytest
import zstandard

from ringzero.errors import GuestImageError
from ringzero.image import deb
from ringzero.image.rootfs import Rootfs
from tests.image.archive import control
from tests.image.archive import deb as make_deb

FILES = {"usr": None, "usr/bin": None, "usr/bin/x": b"program", "usr/bin/y": "x", "lib/z": b"lib"}
COMPRESSIONS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    "": bytes,
}


@pytest.fixture(params=COMPRESSIONS)
def package(request, tmp_path):
    path = tmp_path / "x_1_amd64.deb"
    path.write_bytes(make_deb(control("x"), FILES, COMPRESSIONS[request.param], request.param))
    return path


def test_files_and_control(package):
    found = {info.name.removeprefix("./"): data for info, data in deb.files(package)}
    assert found["usr/bin/x"] == b"program"
    assert deb.control(package).startswith("Package: x\n")


@pytest.mark.peer
def test_made_up_packages_are_real(package):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    done = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert "./usr/bin/y -> x" in done.stdout


def test_damage_is_told(package):
    whole = package.read_bytes()
    chance = random.Random(1)
    for _ in range(60):
        data = bytearray(whole[: chance.randrange(len(whole))])
        for _ in range(3):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        package.write_bytes(data)
        try:
            list(deb.files(package))
            deb.control(package)
        except GuestImageError:
            pass


def test_tree_follows_the_merged_usr(package):
    tree = Rootfs()
    tree.add_package(package)
    assert tree["lib"].data == b"usr/lib"
    assert tree["lib/z"].name == "usr/lib/z"
    assert tree["/usr/bin/y"].data == b"x"
    assert b"Status: install ok installed" in tree["var/lib/dpkg/status"].data
    names = [entry.name for entry in tree.entries()]
    for name in names:
        assert "/" not in name or name.rpartition("/")[0] in names[: names.index(name)]


@pytest.mark.parametrize("path", ["../x", "usr/../../x", "a/../b"])
def test_paths_stay_in_the_tree(path):
    with pytest.raises(GuestImageError, match="leads out"):
        Rootfs().add_file(path, b"")
