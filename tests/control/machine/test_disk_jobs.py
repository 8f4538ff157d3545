"""Block jobs and exports of a machine: its description, its end, and `ringzero disk job`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ringzero.cli.main import main
from ringzero.config.tree import config_to_tree
from ringzero.control.host import client, directory
from ringzero.control.host import launch as launching
from ringzero.disk import create_disk, open_disk
from ringzero.errors import ConflictError, DiskError, InvalidValueError, NotFoundError
from tests.control.fake import PROGRAM, config, start
from tests.disk.nbd.client import Client

SIZE = 2 << 20
DATA = b"something" * 1000

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)


@pytest.fixture
def web(tmp_path):
    """A machine whose disk is an overlay of an overlay."""
    create_disk(tmp_path / "base", "qcow2", SIZE)
    with open_disk(tmp_path / "base") as disk:
        disk.write(65536, DATA)
    for name, below in (("middle", "base"), ("disk", "middle")):
        create_disk(tmp_path / name, "qcow2", backing=below, backing_format="qcow2")
    with open_disk(tmp_path / "disk") as disk:
        disk.write(0, b"top")
    start("web", disks=[f"{tmp_path}/disk"])
    return client.machine("web")


def over(machine, name, state="concluded"):
    for _ in range(3000):
        found = machine.order_disk_job(name)
        if found["state"] == state:
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def described(name):
    record = directory.find(name).machine()
    return json.dumps(record.config)


def test_a_mirror_that_pivots_is_the_disk_from_the_next_start_on(web, tmp_path):
    # What was to come from the next start on names the disk, too.
    web.redefine(config_to_tree(config(disks=[f"{tmp_path}/disk"], cpus=3)))
    web.start_disk_job("mirror", target=str(tmp_path / "new.vdi"), format="vdi", pivot=True)
    found = over(web, "mirror-disk0")
    assert not found["error"]
    assert str(tmp_path / "new.vdi") in described("web")
    coming = json.dumps(web.next())
    assert str(tmp_path / "new.vdi") in coming
    assert "vdi" in coming
    web.stop()
    with open_disk(tmp_path / "new.vdi", read_only=True) as disk:
        assert disk.read(0, 3) == b"top"
        assert disk.read(65536, len(DATA)) == DATA
    # The old image is free again.
    open_disk(tmp_path / "disk").close()
    web.start()
    assert web.next()["cpus"] == 3
    web.kill()


def test_commit_and_stream(web, tmp_path):
    web.start_disk_job("commit", top=str(tmp_path / "middle"), base=str(tmp_path / "base"))
    assert not over(web, "commit-disk0")["error"]
    web.order_disk_job("commit-disk0", "dismiss")
    web.start_disk_job("commit")
    over(web, "commit-disk0", "ready")
    assert str(tmp_path / "disk") in described("web")
    web.order_disk_job("commit-disk0", "complete")
    assert not over(web, "commit-disk0")["error"]
    assert str(tmp_path / "base") in described("web")
    web.stop()
    with open_disk(tmp_path / "base", read_only=True) as disk:
        assert disk.read(0, 3) == b"top"


def test_kill_9_after_the_pivot_finds_the_new_disk(web, tmp_path):
    web.start_disk_job("mirror", target=str(tmp_path / "new"), pivot=True)
    over(web, "mirror-disk0")
    directory.find("web").process().identity.signal(signal.SIGKILL)
    assert str(tmp_path / "new") in described("web")
    deadline = time.monotonic() + 20
    while web.inspect()["status"] != "dead":
        assert time.monotonic() < deadline
    with open_disk(tmp_path / "new", read_only=True) as disk:
        assert disk.read(65536, len(DATA)) == DATA


def test_what_is_refused(web, tmp_path):
    target = str(tmp_path / "new")
    for wish, fault, said in (
        ({"kind": "move"}, InvalidValueError, "no block job"),
        ({"kind": "mirror"}, InvalidValueError, "needs a target"),
        ({"kind": "stream", "target": target}, InvalidValueError, "has no target"),
        ({"kind": "backup", "target": "new"}, InvalidValueError, "absolute"),
        ({"kind": "backup", "target": target, "sync": "top"}, InvalidValueError, "sync"),
        ({"kind": "stream", "pivot": True}, InvalidValueError, "by itself"),
        ({"kind": "commit", "base": target}, NotFoundError, "no layer"),
        ({"kind": "commit", "disk": 1}, NotFoundError, "no disk 1"),
        ({"kind": "backup", "target": str(tmp_path / "disk")}, DiskError, "exists"),
    ):
        with pytest.raises(fault, match=said):
            web.start_disk_job(**wish)
    assert web.disk_jobs() == []
    with pytest.raises(NotFoundError):
        web.order_disk_job("x")
    web.start_disk_job("backup", target=target, id="b", speed=1)
    with pytest.raises(InvalidValueError, match="asked of a job"):
        web.order_disk_job("b", "explode")
    with pytest.raises(ConflictError):
        web.order_disk_job("b", "complete")
    web.order_disk_job("b", "abort")
    assert over(web, "b")["cancelled"]
    # What is of no use to anybody is gone.
    assert not (tmp_path / "new").exists()
    web.stop()


def test_a_machine_that_ends_ends_its_jobs(web, tmp_path):
    web.start_disk_job("mirror", target=str(tmp_path / "new"), speed=1)
    web.stop()
    assert not (tmp_path / "new").exists()
    open_disk(tmp_path / "disk").close()


def test_exports(web, tmp_path):
    with pytest.raises(InvalidValueError, match="reach"):
        web.export_disk()
    made = web.export_disk(name="d", writable=True, path=str(tmp_path / "nbd"))
    assert (made["disk"], made["read_only"], made["clients"]) == (0, False, 0)
    with pytest.raises(ConflictError):
        web.export_disk(name="d")
    web.export_disk(name="e")
    with Client(str(tmp_path / "nbd")) as nbd:
        nbd.go("d")
        assert nbd.read(0, 3) == b"top"
        nbd.request(1, 0, 3, payload=b"new")
        assert nbd.simple() == (0, b"")
        web.unexport_disk("e")
        assert nbd.read(0, 3) == b"new"
        assert [one["clients"] for one in web.disk_exports()] == [1]
        web.unexport_disk()
        assert nbd.ended()
    assert not (tmp_path / "nbd").exists()
    # And again.
    port = int(web.export_disk(port=0)["url"].rpartition(":")[2].partition("/")[0])
    with Client(("127.0.0.1", port)) as nbd:
        assert nbd.go("0")[0] == SIZE
        web.stop()
        assert nbd.ended()


# ---- the command line --------------------------------------------------------


def test_the_verbs(web, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def do(*words, code=0):
        assert main(["disk", *words]) == code, capsys.readouterr()
        return capsys.readouterr()

    do("job", "web", "start", "backup", "--target", "b.qcow2", "--wait", "--id", "b")
    assert "b.qcow2" in do("job", "web").out
    do("job", "web", "start", "mirror", "--target", "m.raw", "-f", "raw", "--wait", "--id", "m")
    (job,) = json.loads(do("job", "--json", "web", "speed", "m", "--speed", "10M").out)
    assert (job["state"], job["speed"]) == ("ready", 10 << 20)
    do("job", "web", "complete", "m", "--wait")
    do("job", "web", "dismiss", "m")
    assert [one["id"] for one in json.loads(do("job", "--json", "web").out)] == ["b"]
    assert "which job" in do("job", "web", "pause", code=2).err
    assert "how fast" in do("job", "web", "speed", "b", code=2).err
    assert "nbd+unix" in do("export", "web", "add", "--unix", "s").out
    assert json.loads(do("export", "--json", "web").out)[0]["name"] == "0"
    do("export", "web", "rm", "0")
    assert (tmp_path / "m.raw").stat().st_size == SIZE
    web.stop()


def test_ctrl_c_leaves_a_job_that_is_waited_for(web, tmp_path):
    words = ["job", "web", "start", "backup", "--target", tmp_path / "b", "--speed", "1", "-w"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ringzero", "disk", *map(str, words)],
        stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not web.disk_jobs():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "abort backup-disk0" in said
    assert web.disk_jobs()[0]["state"] == "running"
    web.stop()
