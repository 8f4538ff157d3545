"""Imported machines boot with the kernel on their disk, and each writes on its own."""

import io
import os
import subprocess
import sys
import tarfile

import pytest

from ringzero import Machine
from ringzero.cli.main import main
from ringzero.image import micro
from ringzero.image.export import formats
from ringzero.image.oci.importing import import_file
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse, parse_reference
from ringzero.settings import CACHE_DIR
from ringzero.units import MIB
from tests.image.oci import machines
from tests.image.oci.images import Image
from tests.image.tools import packaged

pytestmark = [pytest.mark.boot, pytest.mark.engine]
GRUB = """\
menuentry "Imported" {{
    linux /boot/vmlinuz {line}
    initrd /boot/initrd.img
}}
"""
KEEP = "mount /dev/vda /mnt; cat /mnt/kept 2>/dev/null; echo {} >>/mnt/kept; umount /mnt"


@pytest.fixture
def name(tmp_path, monkeypatch):
    """An imported machine that has the default guest's kernel on its disk."""
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    guest = micro.ensure()
    files = {
        **machines.FILES,
        "boot/vmlinuz": guest.kernel.read_bytes(),
        "boot/initrd.img": guest.initrd.read_bytes(),
        "boot/grub/grub.cfg": GRUB.format(line=guest.command_line).encode(),
    }
    path = machines.system(tmp_path / "old.qcow2", "qcow2", files, size=64 * MIB)
    found = f"imported-{os.getpid()}:1"
    import_file(path, [parse_reference(found)], cache=CACHE_DIR.get(), memory=256 * MIB)
    yield found
    for machine in (tmp_path / "machines").glob("*"):
        main(["rm", "-f", machine.name])
    main(["image", "rm", "--force", found])


def overlays(tmp_path):
    return list((tmp_path / "data/disks").glob("*"))


def test_a_run_throws_away_and_a_machine_with_a_name_keeps(name, tmp_path, capfd):
    for _ in range(2):
        assert main(["run", name, "--", "sh", "-c", KEEP.format("run")]) == 0
        # Nothing of the one before is there.
        assert capfd.readouterr().out == ""
        assert overlays(tmp_path) == []
    assert main(["run", "-d", "--name", "web", name, "--", "sleep", "1000"]) == 0
    assert len(overlays(tmp_path)) == 1
    assert main(["exec", "web", "sh", "-c", KEEP.format("web")]) == 0
    assert main(["restart", "web"]) == 0
    capfd.readouterr()
    assert main(["exec", "web", "sh", "-c", KEEP.format("web")]) == 0
    assert capfd.readouterr().out == "web\n"
    assert main(["rm", "-f", "web"]) == 0
    assert overlays(tmp_path) == []


def test_from_python(name, tmp_path):
    with Machine(image=name) as machine:
        assert machine.run("ls /dev/vd*", text=True).stdout == "/dev/vda\n"
        assert machine.config.memory == 256 * MIB
    assert overlays(tmp_path) == []


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not os.environ.get("RINGZERO_TEST_DISTRIBUTIONS"),
    reason="set RINGZERO_TEST_DISTRIBUTIONS=1: a Debian kernel of 70 MiB and two boots",
)
def test_an_exported_ova_comes_back(tmp_path, monkeypatch):
    """An image of containers, exported as an OVA, imported, and run with Debian's kernel."""
    cache = CACHE_DIR.get()
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        busybox = packaged("busybox-static", "bin/busybox")
        info = tarfile.TarInfo("bin/sh")
        info.size, info.mode = len(busybox), 0o755
        archive.addfile(info, io.BytesIO(busybox))
    config = {"Cmd": ["/bin/sh", "-c", "read _ _ release _ </proc/version; echo back, $release"]}
    Image([made.getvalue()], config).write_layout(tmp_path / "layout")
    image = pull(parse(f"oci:{tmp_path}/layout"), cache=cache)
    formats.export(image, tmp_path / "a.ova", "ova", formats.Wishes(size=256 * MIB), cache=cache)
    name = f"imported-{os.getpid()}:ova"
    assert main(["image", "import", str(tmp_path / "a.ova"), name, "-q"]) == 0
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ringzero", "run", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "back, 6." in done.stdout
    finally:
        main(["image", "rm", name])
        main(["image", "rm", f"oci:{tmp_path}/layout"])
