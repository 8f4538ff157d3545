"""Every action through a door that is made from the table, and the events that each causes."""

import contextlib
import json
import threading
import time

import pytest

from ringzero.api.action import Stream
from ringzero.api.protocol import STDOUT
from ringzero.api.table import ACTIONS
from ringzero.api.values import EventKind, Status
from ringzero.config.tree import config_to_tree
from ringzero.control.host import client, directory
from ringzero.control.host import launch as launching
from ringzero.control.host.events import Watch
from ringzero.disk import create_disk
from ringzero.errors import ConflictError, InvalidValueError, NotFoundError
from ringzero.image import stored
from tests.api.test_action import ToyDoor
from tests.control.fake import PROGRAM, config, start
from tests.vm import seeds

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)


@pytest.fixture
def watch(root):
    with Watch(root) as watch:
        yield watch


def seen(watch, name, wanted, seconds=10):
    """Read events until all that are `wanted` of the machine have come, in this order."""
    found, deadline = [], time.monotonic() + seconds
    while [kind for kind in found if kind in wanted] != wanted:
        assert time.monotonic() < deadline, found
        found += [EventKind(e.kind) for e in watch.read(0.5) if e.machine == name]
    return found


@pytest.fixture
def snapshots(tmp_path):
    return seeds.saved(tmp_path / "snapshots")


def test_every_action_through_a_door(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "images", list)
    # A folder comes to it while it runs.
    monkeypatch.setenv("RINGZERO_JAIL", "none")
    host = client.host()
    door, done = ToyDoor(host), set()

    def post(name, /, machine="web", **arguments):
        done.add(name)
        path = ToyDoor.path(ACTIONS[name]).replace("{machine}", machine)
        return door.post(path, json.dumps(arguments))

    def causes(name, of="web"):
        seen(watch, of, list(ACTIONS[name].events))

    assert post("define", config=config_to_tree(config(nets=("user",))), name="web") == "web"
    causes("define")
    store = str(tmp_path / "data/snapshots")
    assert post("snapshot", name="s", store=store) == post("snapshots")[0]["id"]
    (kept,) = post("snapshots")
    assert kept["memory"] is None
    assert post("revert_disks", snapshot=kept["directory"]) is None
    with pytest.raises(InvalidValueError, match="needs files of this host"):
        post("export_snapshot", name="s", path=str(tmp_path / "s.rzs"))
    assert post("remove_snapshot", name="s") == 0
    assert post("inspect")["status"] == "defined"
    with pytest.raises(ConflictError, match="never started"):
        post("pause")
    # Of one that does not run, the description is changed.
    made = post("publish", ports="0:80-81")
    assert [port["guest_port"] for port in made] == [80, 81]
    assert made + post("publish", ports="8080:90") == post("ports")
    with pytest.raises(ConflictError, match="forwarded twice"):
        post("publish", ports="8080:91")
    with pytest.raises(NotFoundError, match="no port is forwarded as '9'"):
        post("unpublish", ports="9")
    assert post("unpublish", ports="0:80-81") == made
    assert [port["port"] for port in post("ports")] == [8080]
    assert post("describe", title="the web", metadata={"k": "v"}) is None
    causes("describe")
    assert post("metadata")["title"] == "the web"
    assert post("redefine", config=config_to_tree(config(nets=("user",), cpus=2))) is None
    causes("redefine")
    assert post("next")["cpus"] == 2
    assert post("start") is None
    causes("start")
    with pytest.raises(ConflictError, match="is running; 'start' needs"):
        post("start")
    assert post("ping") == "running"
    post("pause")
    causes("pause")
    post("resume")
    causes("resume")
    assert post("ports") == []
    made = post("publish", ports="127.0.0.1:8080:80/udp")
    assert made == [{"address": "127.0.0.1", "port": 8080, "guest_port": 80, "protocol": "udp"}]
    assert post("ports") == made == post("unpublish", ports="8080")
    assert post("shares") == []
    made = post("share", folder=f"{tmp_path}:/m:ro")
    assert made == {"path": str(tmp_path), "target": "/m", "read_only": True}
    assert post("shares") == [made]
    assert post("unshare", target="/m") == made
    assert post("connect", network="none") == 0
    assert post("disconnect") is None
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))
    assert post("create_network", name="lan", subnet="10.77.0.0/24")["gateway"] == "10.77.0.1"
    assert [network["machines"] for network in post("networks")] == [[]]
    assert post("describe_network", name="lan", active=False)["active"] is False
    fixed = {"52:54:00:00:00:01": "10.77.0.9"}
    leases = [f"{mac}={address}" for mac, address in fixed.items()]
    assert post("update_network", name="lan", leases=leases)["fixed"] == fixed
    assert post("remove_network", name="lan") is None
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    assert post("define_storage_pool", name="p", path=str(tmp_path / "p"))["active"]
    assert [pool["name"] for pool in post("storage_pools")] == ["default", "p"]
    assert post("create_volume", name="a", pool="p", capacity=1 << 20)["format"] == "qcow2"
    assert post("clone_volume", source="a", name="b", pool="p", format="raw")["format"] == "raw"
    assert post("resize_volume", name="a", pool="p", capacity=1 << 21)["capacity"] == 1 << 21
    assert post("wipe_volume", name="b", pool="p") is None
    assert [volume["name"] for volume in post("volumes")] == ["a", "b"]
    assert [volume["name"] for volume in post("volumes", name="b")] == ["b"]
    assert post("volumes", name="none") == []
    assert post("remove_volume", name="a", pool="p") is None
    assert not post("change_storage_pool", name="p", active=False)["active"]
    assert post("undefine_storage_pool", name="p") is None
    assert post("snapshot", name="s", store=store)
    assert post("export_snapshot", name="s", path=str(tmp_path / "s.rzs")) > 0
    with pytest.raises(InvalidValueError, match="not absolute"):
        post("import_snapshot", path="s.rzs")
    assert post("import_snapshot", path=str(tmp_path / "s.rzs"), name="t")["machine"] == "web"
    assert post("remove_snapshot", name="s") == 0
    assert post("remove_snapshot", name="t") > 0
    with pytest.raises(NotFoundError):
        post("remove_snapshot", name="t")
    create_disk(tmp_path / "disk", "qcow2", 1 << 20)
    start("disky", disks=[f"{tmp_path}/disk"])
    job = post("start_disk_job", "disky", kind="backup", target=str(tmp_path / "backup"))
    assert (job["id"], job["kind"]) == ("backup-disk0", "backup")
    assert [one["id"] for one in post("disk_jobs", "disky")] == ["backup-disk0"]
    assert post("order_disk_job", "disky", id="backup-disk0", speed=0)["target"]
    made = post("export_disk", "disky", path=str(tmp_path / "nbd"))
    assert made["url"] == f"nbd+unix:///0?socket={tmp_path}/nbd"
    assert post("disk_exports", "disky") == [made]
    assert post("unexport_disk", "disky") is None
    client.machine("disky").kill()
    client.machine("disky").remove()
    assert post("exec", words=["sh", "-c", "exit 3"]) == {"status": 3}
    assert post("fork", name="copy") == ["copy"]
    causes("fork", "copy")
    post("restart", timeout=5)
    seen(watch, "web", [EventKind.ENDED, EventKind.STARTED])
    assert post("kill", machine="copy")["reason"] == "killed"
    causes("kill", "copy")
    assert post("wait", machine="copy")["exit_code"] == 137
    assert post("stop")["reason"] == "poweroff"
    seen(watch, "web", [EventKind.ENDED])
    post("rename", name="db")
    causes("rename", "db")
    assert post("remove", machine="db") is None
    causes("remove", "db")
    assert [m["name"] for m in post("machines", status="ended")] == ["copy"]
    assert post("logs", machine="copy") is None
    assert post("images") == []
    assert post("snapshots") == []
    with pytest.raises(InvalidValueError, match="none is named"):
        host.call("pause", {})
    with pytest.raises(NotFoundError):
        post("pause", machine="nobody")
    # Those that need a snapshot, a console's other side, a stream of files, or never end.
    left = {"revert", "console", "events", "put_archive", "get_archive"}
    left |= {"put_volume", "get_volume", "gdb"}
    assert set(ACTIONS) - done == left


class Lines(Stream):
    def __init__(self):
        self.lines = []
        self.link = None
        self.begun = threading.Event()

    def begin(self, link):
        self.link = link
        self.begun.set()

    def data(self, number, content):
        assert number == STDOUT
        self.lines.append(json.loads(content))


def test_events_are_an_action_that_ends_when_it_is_asked_to():
    lines = Lines()
    thread = threading.Thread(target=client.host().events, args=(lines,), daemon=True)
    thread.start()
    assert lines.begun.wait(5)
    start("web")
    client.machine("web").stop()
    deadline = time.monotonic() + 10
    # How a machine ended is in its directory: whoever looks after that is gone cannot tell.
    while not lines.lines or lines.lines[-1]["kind"] != "ended":
        assert time.monotonic() < deadline, lines.lines
        time.sleep(0.01)
    client.machine("web").remove()
    while not lines.lines or lines.lines[-1]["kind"] != "removed":
        assert time.monotonic() < deadline, lines.lines
        time.sleep(0.01)
    lines.link.send(b"")
    thread.join(5)
    assert not thread.is_alive()
    told = [line["kind"] for line in lines.lines]
    assert [kind for kind in told if kind != "stopping"] == [
        "created", "started", "ended", "removed",
    ]  # fmt: skip
    assert {line["machine"] for line in lines.lines} == {"web"}
    ended = next(line for line in lines.lines if line["kind"] == "ended")
    assert ended["detail"]["exit"]["reason"] == "poweroff"


def test_a_kill_9_is_an_end(watch):
    web = start("web")
    seen(watch, "web", [EventKind.STARTED])
    web.process().identity.signal(9)
    seen(watch, "web", [EventKind.ENDED])
    assert web.status() is Status.DEAD


def test_nothing_happens_without_a_cause(watch):
    start("web")
    seen(watch, "web", [EventKind.STARTED])
    for _ in range(20):
        client.machine("web").inspect()
        directory.machines()
    assert watch.read(0.2) == []
    began = time.process_time()
    watch.read(0.5)
    assert time.process_time() - began < 0.1


def test_what_was_there_before_is_no_news(root):
    start("web")
    with Watch(root) as watch:
        client.machine("web").pause()
        assert [event.kind for event in watch.read(5)] == ["paused"]


def test_waiting_for_an_end_is_no_polling():
    """The lock is looked at some times, not hundreds of times a second."""
    web = start("web")
    used = []

    def wait():
        began = time.thread_time()
        with contextlib.suppress(Exception):
            assert web.wait_end(20)
        used.append(time.thread_time() - began)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1.0)
    client.machine("web").kill()
    thread.join()
    assert used[0] < 0.05
