"""Images of containers as machines: what they run, as whom, and how they end."""

import shutil
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.cli.main import main
from tests.image.oci.images import Image

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A layout with busybox, a user, and a program that waits for its signal."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs a static busybox")
    place = tmp_path_factory.mktemp("oci") / "layout"
    import tarfile

    program = tarfile.TarInfo("bin/busybox")
    data = Path(busybox).read_bytes()
    program.size, program.mode = len(data), 0o755
    import io

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(program, io.BytesIO(data))
    files = {
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
        "etc/group": b"video:x:44:me\n",
        "etc/resolv.conf": ("->", "/nowhere/resolv.conf"),
        "gone": b"",
        **{f"bin/{name}": ("->", "busybox") for name in ("sh", "id", "env", "pwd", "cat", "ls")},
    }
    config = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["id; pwd; echo $GREETING; cat /etc/resolv.conf; ls /"],
        "Env": ["GREETING=hello world"],
        "User": "me",
        "WorkingDir": "/srv/app",
    }
    Image([file.getvalue(), files, {".wh.gone": b""}], config, "+zstd").write_layout(place)
    return f"oci:{place}"


def test_what_the_image_says(layout, capfd):
    assert main(["run", layout]) == 0
    told = capfd.readouterr().out
    assert "uid=1000(me) gid=1000 groups=44(video),1000" in told
    assert "/srv/app\nhello world\n" in told and "nameserver" in told
    assert "\ngone\n" not in told


def test_what_the_user_says(layout, capfd):
    words = ["run", "-u", "0:44", "-w", "/etc", "-e", "GREETING=bye", layout, "--"]
    assert main([*words, "id; pwd; echo $GREETING; exit 7"]) == 7
    assert "uid=0(root) gid=44(video) groups=44(video)\n/etc\nbye\n" in capfd.readouterr().out
    assert main(["run", "--entrypoint", "/bin/pwd", layout]) == 0
    assert capfd.readouterr().out == "/srv/app\n"


def test_a_machine_of_python(layout):
    with Machine(image=layout) as machine:
        done = machine.run(["id", "-u"], text=True)
    assert done.stdout == "1000\n"
