import contextlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.board.boot.kernel import load_kernel
from ringzero.errors import GuestImageError, NotFoundError
from ringzero.image import cpio, micro
from ringzero.image.modules import Module, dependency_file, modinfo, with_dependencies
from ringzero.image.names import IMAGES
from tests.board.kernels import bzimage, elf
from tests.image.archive import BUSYBOX, control, module


@pytest.fixture
def guest(archive):
    return archive.with_guest().publish()


def test_image_holds_what_the_guest_needs(guest, cache):
    image = micro.ensure()
    assert load_kernel(image.kernel).version == "6.6.6-test"
    files = {entry.name: entry for entry in cpio.read(image.initrd.read_bytes())}
    assert files["init"].mode & 0o111
    assert files["usr/bin/cat"].data == b"busybox"
    modules = {name.rpartition("/")[2] for name in files if name.endswith(".ko")}
    assert modules == {"virtio.ko", "virtio_ring.ko", "virtio_blk.ko"}
    text = files["usr/lib/modules/6.6.6-test/modules.dep"].data.decode()
    assert "kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio_ring.ko\n" in text
    assert image.packages == ("linux-image-6.6.6-test=1.0-1", "busybox-static=1:1.35-4")


def test_kernel_package_with_merged_usr_and_compressed_modules(archive, cache):
    release = "usr/lib/modules/6.6.6-test/kernel"
    files = {
        "boot/vmlinuz-6.6.6-test": bzimage(elf()),
        f"{release}/virtio-rng.ko.xz": lzma.compress(module("virtio-rng", "virtio")),
        f"{release}/virtio.ko.xz": lzma.compress(module("virtio")),
    }
    archive.add(control("linux-image-cloud-amd64"), files)
    archive.add(control("busybox-static"), {"bin/busybox": BUSYBOX})
    archive.publish()
    found = {e.name: e for e in cpio.read(micro.ensure().initrd.read_bytes())}
    assert found[f"{release}/virtio.ko"].data == module("virtio")
    text = found["usr/lib/modules/6.6.6-test/modules.dep"].data.decode()
    assert "kernel/virtio-rng.ko: kernel/virtio.ko\n" in text


def test_second_time_asks_nobody(guest, cache):
    first = micro.ensure()
    shutil.rmtree(guest.root)
    shutil.rmtree(cache / "debs")
    shutil.rmtree(cache / "apt")
    assert micro.ensure() == first


def test_what_the_sources_make_is_known(guest, cache, monkeypatch):
    """Until one of them changes, or what is noted makes no sense."""
    first = micro.ensure()
    with monkeypatch.context() as patched:
        patched.setattr(micro.Recipe, "inputs", lambda self: pytest.fail("put together again"))
        assert micro.ensure() == first
    (note,) = (cache / "images").glob("*.noted")
    told = json.loads(note.read_text())
    for text in ("", "[]", "{}", json.dumps({**told, "pointer": "../none"})):
        note.write_text(text)
        assert micro.ensure() == first
        assert json.loads(note.read_text()) == told
    guests = shutil.copytree(micro._GUEST, cache / "guest")
    monkeypatch.setattr(micro, "_GUEST", guests)
    (guests / "init").write_text("another")
    assert micro.MICRO.sources() != told["sources"]


def test_same_inputs_same_bytes(guest, cache, tmp_path):
    first = micro.ensure()
    other = micro.ensure(cache=tmp_path / "other")
    assert first.digest == other.digest
    assert first.initrd.read_bytes() == other.initrd.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "pointer"])
def test_damaged_image_is_built_again(guest, cache, damage):
    image = micro.ensure()
    (pointer,) = (cache / "images").glob("micro-*.json")
    if damage == "cut":
        image.initrd.write_bytes(b"short")
    elif damage == "gone":
        image.kernel.unlink()
    elif damage == "manifest":
        (image.initrd.parent / "manifest.json").write_text('{"name": [')
    else:
        pointer.write_text(json.dumps({"digest": 5}))
    assert micro.ensure() == image
    assert load_kernel(image.kernel)


def test_refresh_takes_a_newer_kernel(guest, cache):
    first = micro.ensure()
    guest.add(control("busybox-static", "1:1.36-1"), {"bin/busybox": b"\0[\0[[\0new\0\0"})
    guest.publish()
    assert micro.ensure() == first
    second = micro.ensure(refresh=True)
    assert second.digest != first.digest
    assert micro.ensure() == second


def test_list_and_remove(guest, cache):
    assert micro.list_images() == []
    image = micro.ensure()
    assert micro.list_images() == [image]
    assert micro.image_of(image.kernel) == "micro"
    assert micro.image_of(image.kernel.with_name("other") / "vmlinuz") == ""
    assert micro.image_of(cache / "images" / "x" / "vmlinuz") == micro.image_of(None) == ""
    with pytest.raises(NotFoundError, match="no image called"):
        micro.remove("other")
    assert micro.remove("micro") == [image]
    assert micro.list_images() == []
    assert not image.kernel.exists()


def test_extra_packages_come_with_their_dependencies(guest, cache):
    guest.add(control("tool", depends="libtool-x"), {"usr/bin/tool": b"t", "usr/bin/cat": b"real"})
    guest.add(control("libtool-x"), {"usr/lib/libx.so": b"lib"})
    guest.add(control("dash"), {"bin/dash": b"dash", "bin/sh": "dash"})
    guest.publish()
    image = micro.ensure(micro.Recipe("tools", packages=("tool",)))
    files = {entry.name: entry for entry in cpio.read(image.initrd.read_bytes())}
    assert files["usr/lib/libx.so"].data == b"lib"
    # Busybox stands in only for what is not there.
    assert files["usr/bin/cat"].data == b"real"
    assert files["usr/bin/sh"].data == b"dash"
    assert files["usr/bin/ash"].data == b"busybox"


def test_package_without_a_kernel(archive, cache):
    archive.add(control("linux-image-cloud-amd64"), {"etc/x": b""})
    archive.add(control("busybox-static"), {"bin/busybox": b"no applets"})
    archive.publish()
    with pytest.raises(GuestImageError, match="holds no kernel"):
        micro.ensure()
    assert not list((cache / "images").glob("*/manifest.json"))


def test_killed_while_building(guest, cache):
    program = (
        "import sys\n"
        "from ringzero.image import micro, packages, sources\n"
        "source = sources.Source((sys.argv[1],), ('test',), (('Trusted', 'yes'),))\n"
        "packages.debian_sources = lambda suite=None: [source]\n"
        "micro.ensure()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", program, guest.uri]
    for delay in (0.2, 0.4, 0.6, 0.8):
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    subprocess.run(command, env=environment, check=True, timeout=60)
    assert [image.name for image in micro.list_images()] == ["micro"]


def test_module_order():
    modules = {
        name: Module(name, f"lib/modules/1/{name}.ko", module(name, depends))
        for name, depends in {"a": "b-x,c", "b_x": "c", "c": "", "loop": "loop"}.items()
    }
    assert [m.name for m in with_dependencies(["a", "absent"], modules)] == ["c", "b_x", "a"]
    assert [m.name for m in with_dependencies(["loop"], modules)] == ["loop"]
    text = dependency_file(with_dependencies(["a"], modules))
    assert "a.ko: lib/modules/1/b_x.ko lib/modules/1/c.ko\n" in text


def test_modinfo_of_nonsense():
    whole = module("x", "y")
    assert modinfo(whole)["depends"] == ["y"]
    for cut in range(0, len(whole), 7):
        with contextlib.suppress(GuestImageError):
            modinfo(whole[:cut])


def test_images_of_old_versions_go_when_nobody_uses_them(guest, cache):
    """Another version of ringzero in one cache keeps its image while it starts from it."""
    first = micro.ensure()
    guest.add(control("busybox-static", "1:1.36-1"), {"bin/busybox": b"\0[\0[[\0new\0\0"})
    guest.publish()
    micro.ensure(refresh=True)
    assert first.kernel.exists()
    long_ago = time.time() - 100_000
    os.utime(first.kernel.parent / "manifest.json", (long_ago, long_ago))
    guest.add(control("busybox-static", "1:1.37-1"), {"bin/busybox": b"\0[\0[[\0newer\0\0"})
    guest.publish()
    last = micro.ensure(refresh=True)
    assert not first.kernel.exists()
    assert len(micro.list_images()) == 2
    os.utime(last.kernel.parent / "manifest.json", (long_ago, long_ago))
    assert micro.ensure() == last
    assert time.time() - (last.kernel.parent / "manifest.json").stat().st_mtime < 60


def test_every_image_of_the_catalogue_has_a_maker():
    assert {"micro", "full", "backports"} <= set(IMAGES.names())
    assert all(callable(make) for _, make in IMAGES)
