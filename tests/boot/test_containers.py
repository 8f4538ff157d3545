"""Images of containers as machines: what they run, as whom, and how they end."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.cli.main import main
from ringzero.control.host import client
from tests.image.fs.made import run, tool
from tests.image.oci.docker_registry import docker_registry, peer
from tests.image.oci.images import Image

pytestmark = [pytest.mark.boot, pytest.mark.engine]
APPLETS = ("sh", "id", "env", "pwd", "cat", "ls", "sleep", "touch", "mkdir", "test")


@pytest.fixture(scope="module")
def busybox():
    """The layers of an image with busybox: its program, and names for it."""
    found = shutil.which("busybox")
    if found is None:
        pytest.skip("needs a static busybox")
    program = tarfile.TarInfo("bin/busybox")
    data = Path(found).read_bytes()
    program.size, program.mode = len(data), 0o755
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(program, io.BytesIO(data))
    return file.getvalue(), {f"bin/{name}": ("->", "busybox") for name in APPLETS}


@pytest.fixture(scope="module")
def image(busybox):
    """An image with busybox, a user, and a file that its last layer hides."""
    program, names = busybox
    files = {
        "etc/passwd": b"root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
        "etc/group": b"video:x:44:me\n",
        "etc/resolv.conf": ("->", "/nowhere/resolv.conf"),
        "gone": b"",
        **names,
    }
    config = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["id; pwd; echo $GREETING; cat /etc/resolv.conf; ls /"],
        "Env": ["GREETING=hello world"],
        "User": "me",
        "WorkingDir": "/srv/app",
        "Volumes": {"/data": {}},
    }
    return Image([program, files, {".wh.gone": b""}], config, "+zstd")


@pytest.fixture(scope="module")
def layout(image, tmp_path_factory):
    place = tmp_path_factory.mktemp("oci") / "layout"
    image.write_layout(place)
    yield f"oci:{place}"
    main(["image", "rm", f"oci:{place}"])


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


@pytest.mark.parametrize(
    ("user", "told"),
    [("me", "uid=1000(me) gid=1000"), ("1000:44", "uid=1000(me) gid=44(video)"), ("7", "uid=7")],
)
def test_users_by_name_and_number(layout, capfd, user, told):
    assert main(["run", "-u", user, "--entrypoint", "/bin/id", layout]) == 0
    assert told in capfd.readouterr().out


@pytest.mark.parametrize("signal", ["SIGUSR1", "10"])
def test_the_stop_signal_of_the_image(busybox, tmp_path, monkeypatch, capfd, signal):
    """By name and by number; what the program does then, it has done before the power goes."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    program, names = busybox
    script = "trap 'echo by-the-signal; exit 3' USR1; echo ready; while :; do sleep 0.1; done"
    config = {"Cmd": ["/bin/sh", "-c", script], "StopSignal": signal}
    Image([program, names], config).write_layout(tmp_path / "layout")
    assert main(["run", "-d", "--name", "web", f"oci:{tmp_path}/layout"]) == 0
    try:
        deadline = time.monotonic() + 120
        said = ""
        while "ready" not in said:
            assert time.monotonic() < deadline, said
            assert main(["logs", "web"]) == 0
            said += capfd.readouterr().out
        assert main(["stop", "--timeout", "60", "web"]) == 0
        assert main(["logs", "web"]) == 0
        assert "by-the-signal" in capfd.readouterr().out
    finally:
        main(["rm", "-f", "web"])
        main(["image", "rm", f"oci:{tmp_path}/layout"])


def test_commands_and_files_in_a_machine_whose_image_has_a_user(
    layout, tmp_path, monkeypatch, capfd
):
    """As that user, in the image's directory, but for what flags say; files are root's, as ever."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))

    def inside(script, *flags, status=0):
        assert main(["exec", *flags, "web", "sh", "-c", script]) == status
        return capfd.readouterr()

    told = "id -u; id -g; pwd; echo $HOME $GREETING"
    (tmp_path / "file").write_text("from the host")
    (tmp_path / "file").chmod(0o644)
    assert main(["run", "-d", "--name", "web", layout, "--", "exec sleep 1000"]) == 0
    capfd.readouterr()
    try:
        assert inside(told).out == "1000\n1000\n/srv/app\n/home/me hello world\n"
        flags = ("-u", "0", "-w", "/etc", "-e", "GREETING=a b")
        assert inside(told, *flags).out == "0\n0\n/etc\n/root a b\n"
        assert inside(told, "-u", "7:44", "-e", "HOME=/x").out.startswith("7\n44\n/srv/app\n/x ")
        assert "nobody-at-all: no user" in inside("id", "-u", "nobody-at-all", status=126).err
        assert "/nowhere: no directory" in inside("id", "-w", "/nowhere", status=126).err
        assert main(["cp", str(tmp_path / "file"), "web:/etc/file"]) == 0
        assert inside("cat /etc/file; ls -ln /etc/file", "-u", "root").out.startswith(
            "from the host-rw-r--r--    1 0        0 "
        )
        done = client.machine("web").run("id -u; pwd", user="root", cwd="/bin", text=True)
        assert done.stdout == "0\n/bin\n"
    finally:
        main(["rm", "-f", "web"])


def test_a_health_check_of_ones_own(layout, tmp_path, monkeypatch, capfd):
    """In place of the image's, or where it has none, and as its program runs."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    check = ("--health-cmd", "id -u; pwd; test -e /tmp/well", "--health-interval", "100ms")
    try:
        assert main(["run", "-d", "--name", "web", *check, "--health-retries", "1", "-w", "/etc",
                     layout, "--", "exec sleep 1000"]) == 0  # fmt: skip
        for wanted in ("unhealthy", "healthy"):
            deadline = time.monotonic() + 120
            while (health := client.machine("web").inspect()["health"])["status"] != wanted:
                assert time.monotonic() < deadline, health
                time.sleep(0.05)
            assert health["log"][-1]["output"] == "1000\n/etc\n"
            script = "mkdir -p /tmp; touch /tmp/well"
            assert main(["exec", "-u", "0", "web", "sh", "-c", script]) == 0
    finally:
        main(["rm", "-f", "web"])


def test_volumes_and_the_health_check_of_the_image(busybox, tmp_path, monkeypatch, capfd):
    """A volume is an empty folder that takes what is written; health follows the guest."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    program, names = busybox
    second = 1_000_000_000
    check = {"Test": ["CMD-SHELL", "echo asked in $PWD; cat /data/well"], "Retries": 1}
    config = {
        "Cmd": ["/bin/sleep", "1000"],
        "Volumes": {"/data": {}},
        "WorkingDir": "/bin",
        "Healthcheck": {**check, "Interval": second // 5, "Timeout": 30 * second},
    }
    Image([program, names], config).write_layout(tmp_path / "layout")
    web = f"oci:{tmp_path}/layout"

    def await_health(wanted):
        deadline = time.monotonic() + 120
        while True:
            assert main(["ps"]) == 0
            shown = capfd.readouterr().out
            if f"running ({wanted})" in shown:
                return
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    def inside(script):
        assert main(["exec", "web", "sh", "-c", script]) == 0
        return capfd.readouterr().out

    try:
        assert main(["run", "-d", "--name", "web", web]) == 0
        capfd.readouterr()
        assert inside("ls -A /data; echo :") == ":\n"
        await_health("unhealthy")
        inside("touch /data/well")
        await_health("healthy")
        assert main(["inspect", "web"]) == 0
        told = json.loads(capfd.readouterr().out)["health"]
        assert (told["status"], told["streak"]) == ("healthy", 0)
        assert (told["log"][-1]["exit_code"], told["log"][-1]["output"]) == (0, "asked in /bin\n")
        assert main(["rm", "-f", "web"]) == 0
        assert main(["create", "--name", "web", "--no-healthcheck", web]) == 0
        record = json.loads((tmp_path / "machines" / "web" / "machine.json").read_text())
        assert record["health"] is None
    finally:
        main(["rm", "-f", "web"])
        main(["image", "rm", web])


@pytest.mark.peer
def test_pushed_pulled_and_run(image, tmp_path, capfd):
    """By skopeo into Debian's docker-registry, from there into a machine; then it is removed."""
    peer("skopeo")
    image.write_layout(tmp_path / "layout")
    with docker_registry(tmp_path / "registry") as host:
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:1",
            f"docker://{host}/app:1")  # fmt: skip
        assert main(["run", f"{host}/app:1", "--", "id -u; ls -d /data; ls /"]) == 0
    told = capfd.readouterr().out
    assert told.startswith("1000\n/data\n") and "\ngone\n" not in told
    # The registry is gone: what is in the store needs none.
    assert main(["run", f"{host}/app:1", "--", "echo again"]) == 0
    assert capfd.readouterr().out == "again\n"
    assert main(["image", "rm", f"{host}/app:1"]) == 0


@pytest.mark.peer
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("RINGZERO_TEST_DISTRIBUTIONS"),
    reason="RINGZERO_TEST_DISTRIBUTIONS=1 installs Debian",
)
def test_debian_pushed_pulled_and_run(tmp_path, capfd):
    tree = tmp_path / "debian.tar"
    command = [tool("mmdebstrap"), "--variant=minbase", "--include=python3-minimal", "bookworm"]
    subprocess.run([*command, tree], check=True, capture_output=True, timeout=900)
    Image([tree.read_bytes()], {"Cmd": ["bash", "-l"]}).write_layout(tmp_path / "layout")
    with docker_registry(tmp_path / "registry") as host:
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:1",
            f"docker://{host}/debian:12")  # fmt: skip
        script = "apt-get --version | head -1; dpkg -l | wc -l; python3 -c 'print(6*7)'; id -un"
        assert main(["run", "--memory", "512M", f"{host}/debian:12", "--", "sh", "-c", script]) == 0
        told = capfd.readouterr().out
        main(["image", "rm", f"{host}/debian:12"])
    assert told.startswith("apt 2.") and told.endswith("\n42\nroot\n")


def test_a_machine_of_python(layout):
    with Machine(image=layout) as machine:
        done = machine.run(["id", "-u"], text=True)
    assert done.stdout == "1000\n"
