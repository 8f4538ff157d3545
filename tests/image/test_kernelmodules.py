"""The modules of a kernel as a folder: its indexes beside those of depmod(8) itself."""

import re
import shutil
import subprocess

import pytest

from ringzero.errors import GuestImageError, RingzeroError
from ringzero.image import archives, kernelmodules, micro
from ringzero.image.moduleindex import index
from tests.image import archive
from tests.image.tools import packaged


@pytest.fixture(scope="module")
def kmod(tmp_path_factory):
    """Return what runs kmod under one of its names."""
    where = tmp_path_factory.mktemp("kmod")
    program = where / "kmod"
    program.write_bytes(packaged("kmod", "bin/kmod"))
    program.chmod(0o755)
    for name in ("depmod", "modprobe"):
        (where / name).symlink_to(program)

    def run(name, *words):
        done = subprocess.run([where / name, *words], capture_output=True, text=True, timeout=120)
        if "shared libraries" in done.stderr:
            pytest.skip(done.stderr)
        return done

    return run


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Return a root with the modules of Debian's cloud kernel, and their folder in it."""
    try:
        image = micro.ensure()
        package = kernelmodules._package(image, archives.QUIET)
    except RingzeroError as fault:
        pytest.skip(f"needs the kernel's package: {fault.message}")
    top = tmp_path_factory.mktemp("root")
    kernelmodules.unpack(package, top / "lib/modules")
    (folder,) = (top / "lib/modules").iterdir()
    return top, folder


@pytest.mark.peer
def test_depmod_writes_the_same(unpacked, kmod, tmp_path):
    _, folder = unpacked
    theirs = tmp_path / "lib/modules" / folder.name
    shutil.copytree(folder, theirs)
    for name in ("modules.dep", "modules.dep.bin", "modules.alias.bin", "modules.builtin.bin"):
        (theirs / name).unlink()
    assert kmod("depmod", "-b", tmp_path, folder.name).returncode == 0
    for name in ("modules.alias.bin", "modules.builtin.bin"):
        assert (folder / name).read_bytes() == (theirs / name).read_bytes(), name
    for name in ("modules.alias", "modules.softdep", "modules.devname"):
        lines = (theirs / name).read_text().splitlines(keepends=True)
        assert (folder / name).read_text() == "".join(lines[1:]), name

    def dependencies(place):
        lines = (place / "modules.dep").read_text().splitlines()
        return [(line.partition(":")[0], set(line.split()[1:])) for line in lines]

    # Among modules that do not need one another, the order is free.
    assert dependencies(folder) == dependencies(theirs)


@pytest.mark.peer
@pytest.mark.parametrize(
    "name", ["xfs", "nfsd", "virtio_net", "fs-btrfs", "virtio:d00000001v00001AF4"]
)
def test_modprobe_finds_what_it_needs_by_the_index(unpacked, kmod, name):
    top, folder = unpacked
    done = kmod("modprobe", "-d", top, "-S", folder.name, "--show-depends", name)
    assert done.returncode == 0, done.stderr
    loaded = re.findall(r"insmod (\S+)", done.stdout)
    seen = set()
    lines = {
        line.partition(":")[0]: line.split()[1:]
        for line in (folder / "modules.dep").read_text().splitlines()
    }
    for path in loaded:
        own = path.partition(f"/{folder.name}/")[2]
        assert set(lines[own]) <= seen
        seen.add(own)
    assert loaded


def test_a_tree_of_keys():
    made = index({"ab": [(7, "x")], "abc": [(1, "y"), (2, "z")]})
    assert made == bytes.fromhex("b007f457 00020001") + bytes.fromhex("2000002e") + (
        # "abc": a child of "ab" by its last letter, without a prefix.
        b"\0\0\0\2" + b"\0\0\0\1y\0" + b"\0\0\0\2z\0"
        # "ab": the root's child "a", with the prefix "b".
        + b"b\0" + b"cc" + bytes.fromhex("4000000c") + b"\0\0\0\1" + b"\0\0\0\7x\0"
        + b"aa" + bytes.fromhex("e000001c")
    )  # fmt: skip
    assert index({})[8:] == bytes((0, 0, 0, 12))


def test_a_package_without_modules_is_told(tmp_path):
    place = tmp_path / "x.deb"
    place.write_bytes(archive.deb("Package: x\n", {"./usr/share/x": b"y"}))
    with pytest.raises(GuestImageError, match="no kernel modules"):
        kernelmodules.unpack(place, tmp_path / "out")
    assert not (tmp_path / "out").exists()
