"""An exported image boots by itself: in QEMU by a BIOS, and as a disk of ours. Opt-in: minutes."""

import io
import os
import subprocess
import sys
import tarfile

import pytest

from ringzero.image.export import formats
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from ringzero.settings import CACHE_DIR
from tests.image.fs.made import tool
from tests.image.oci.images import Image
from tests.image.tools import packaged

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(
        not os.environ.get("RINGZERO_TEST_DISTRIBUTIONS"),
        reason="set RINGZERO_TEST_DISTRIBUTIONS=1: a Debian kernel of 70 MiB and two boots",
    ),
]
START = b"""#!/bin/sh
echo "I am $(id -u):$(id -g) in $(pwd), $GREETING"
cat kept 2>/dev/null
echo this was kept >kept
sync
"""
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:100:101::/home:/bin/sh\n"
CONFIG = {"Cmd": ["/start"], "Env": ["GREETING=moin"], "User": "web", "WorkingDir": "/work"}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        busybox = packaged("busybox-static", "bin/busybox")
        for name, data in (("bin/busybox", busybox), ("start", START), ("etc/passwd", PASSWD)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
        for name in ("sh", "id", "cat", "sync"):
            info = tarfile.TarInfo(f"bin/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(info)
        info = tarfile.TarInfo("work")
        info.type, info.mode = tarfile.DIRTYPE, 0o777
        archive.addfile(info)
    Image([made.getvalue()], CONFIG).write_layout(place / "layout")
    cache = CACHE_DIR.get()
    image = pull(parse(f"oci:{place}/layout"), cache=cache)
    formats.export(image, place / "d.qcow2", "qcow2", formats.Wishes(), cache=cache)
    return place / "d.qcow2"


def qemu(disk, *words):
    """Boot a disk in QEMU until it switches itself off; return what its console said."""
    command = [
        tool("qemu-system-x86_64"), "-m", "512", "-nographic", "-no-reboot", "-nic", "none",
        *words,
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=280, check=True
    )
    return done.stdout.decode("utf-8", "replace")


@pytest.mark.peer
def test_qemu_boots_it_by_its_bios_and_what_is_written_stays(disk):
    said = [qemu(disk, "-drive", f"file={disk},format=qcow2,if=virtio") for _ in range(2)]
    for text in said:
        assert "I am 100:101 in /work, moin" in text
        assert "ended with status 0" in text
    assert "this was kept" not in said[0]
    assert "this was kept" in said[1]
    # It was unmounted in order, and nothing is wrong with it.
    plain = disk.with_suffix(".raw")
    subprocess.run([tool("qemu-img"), "convert", "-O", "raw", disk, plain], check=True)
    root = disk.with_suffix(".ext4")
    with plain.open("rb") as source, root.open("wb") as target:
        source.seek(16 << 20)
        while data := source.read(1 << 20):
            target.write(data)
    checked = subprocess.run(
        [tool("e2fsck"), "-fn", root], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.engine
def test_our_own_machine_boots_it(disk):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ringzero",
            "run",
            "--disk",
            disk,
            "--agent",
            "--",
            "sh",
            "-c",
            "id -u; echo $GREETING",
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["100", "moin"]
