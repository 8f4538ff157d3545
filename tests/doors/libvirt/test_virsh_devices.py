"""Devices, tuning and the guest's agent by an unmodified virsh."""

import base64
import json
import re
import time

import pytest

from ringzero.control.host import client
from tests.control.fake import start
from tests.doors.libvirt.test_virsh import Virsh, pytestmark, virsh, xml

__all__ = ["pytestmark", "virsh", "xml"]
FOLDER = "<filesystem type='mount'><source dir='{}'/><target dir='{}'/></filesystem>"
MAC = "52:54:00:00:00:0a"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "device.xml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "one.img"
    path.write_bytes(bytes(1 << 20))
    return path


def config(name="d1"):
    return client.machine(name).next()["devices"]


def of_kind(kind, name="d1"):
    return [device for device in config(name) if device["kind"] == kind]


def test_disks_come_and_go_from_the_next_start_on(virsh, xml, disk):
    virsh("define", xml())
    virsh("attach-disk", "d1", disk, "vdb", "--config")
    assert virsh.table("domblklist", "d1") == [["vdb", str(disk)]]
    assert [device["path"] for device in of_kind("disk")] == [str(disk)]
    assert "already" in virsh("attach-disk", "d1", disk, "vdb", "--config", fails=True)
    virsh("detach-disk", "d1", "vdb", "--config")
    assert virsh.table("domblklist", "d1") == []
    assert of_kind("disk") == []
    assert "error:" in virsh("detach-disk", "d1", "vdb", "--config", fails=True)


def test_a_disk_of_what_runs_stays(virsh, xml, disk):
    start("web")
    told = virsh("attach-disk", "web", disk, "vdb", fails=True)
    assert "--config" in told
    virsh("attach-disk", "web", disk, "vdb", "--config")
    # What runs is as it was.
    assert virsh.table("domblklist", "web") == []
    assert virsh.table("domblklist", "web", "--inactive") == [["vdb", str(disk)]]
    # The client itself finds none there.
    assert "error:" in virsh("detach-disk", "web", "vdb", "--live", fails=True)
    assert "vol-resize" in virsh("blockresize", "web", "vda", "2M", fails=True)
    virsh("define", xml())
    assert "not running" in virsh("attach-disk", "d1", disk, "vdb", "--live", fails=True)
    assert "not running" in virsh("attach-disk", "d1", disk, "vdb", fails=True)


def test_a_drive_is_emptied_and_filled(virsh, xml, disk):
    drive = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
    virsh("define", xml())
    text = xml().read_text().replace("<devices>", f"<devices>{drive}")
    xml().write_text(text)
    path = xml("d2")
    path.write_text(text.replace("d1", "d2"))
    virsh("define", path)
    virsh("change-media", "d2", "sda", disk, "--insert", "--config")
    assert [device["path"] for device in of_kind("disk", "d2")] == [str(disk)]
    virsh("change-media", "d2", "sda", "--eject", "--config")
    assert of_kind("disk", "d2") == []
    assert virsh.table("domblklist", "d2") == [["sda", "-"]]


def test_interfaces_come_and_go(virsh, xml):
    virsh("define", xml())
    virsh("attach-interface", "d1", "network", "lan", "--mac", MAC, "--config")
    virsh("attach-interface", "d1", "network", "lan", "--config")
    rows = virsh.table("domiflist", "d1")
    assert [row[1:3] for row in rows] == [["network", "lan"]] * 2
    assert rows[0][-1] == MAC
    # One without an address of its own is given one.
    other = rows[1][-1]
    assert other.startswith("52:54:00:")
    assert other == of_kind("net")[1]["mac"]
    assert "error:" in virsh("detach-interface", "d1", "network", "--config", fails=True)
    virsh("detach-interface", "d1", "network", "--mac", MAC, "--config")
    assert [device["mac"] for device in of_kind("net")] == [other]
    virsh("detach-interface", "d1", "network", "--config")
    assert of_kind("net") == []
    start("web")
    told = virsh("attach-interface", "web", "network", "lan", fails=True)
    assert "--config" in told


def test_an_interface_of_what_runs_is_plugged_elsewhere(virsh, xml, write):
    more = f"<interface type='user'><mac address='{MAC}'/></interface>"
    path = xml()
    path.write_text(path.read_text().replace("<devices>", f"<devices>{more}"))
    virsh("define", path)
    virsh("start", "d1")

    def networks():
        found = client.machine("d1").inspect()["config"]["devices"]
        return [device["network"] for device in found if device["kind"] == "net"]

    virsh("domif-setlink", "d1", MAC, "down")
    assert networks() == ["none"]
    assert virsh("domif-getlink", "d1", MAC).endswith("down")
    # Its next start is as it was.
    assert [net["network"] for net in of_kind("net")] == ["user"]
    assert virsh("domif-getlink", "d1", MAC, "--config").endswith("up")
    virsh("domif-setlink", "d1", MAC, "up")
    assert networks() == ["user"]
    assert virsh("domif-getlink", "d1", MAC).endswith("up")
    device = f"<interface type='network'><mac address='{MAC}'/><source network='lan'/></interface>"
    virsh("update-device", "d1", write(device), "--live")
    assert networks() == ["lan"]
    assert '<source network="lan"/>' in virsh("dumpxml", "d1").replace("'", '"')
    assert [net["network"] for net in of_kind("net")] == ["user"]
    virsh("update-device", "d1", write(device), "--config")
    assert [net["network"] for net in of_kind("net")] == ["lan"]


def test_a_guest_is_not_let_out_by_who_edits_its_domain(virsh, write):
    net = f"user,restrict,port=127.0.0.1:8080:80,mac={MAC}"
    config = {"kernel": "/dev/null", "nets": [net]}
    client.host().define(config, name="web")
    virsh("define", write(virsh("dumpxml", "web")))
    (found,) = of_kind("net", "web")
    assert (found["allow"], found["mac"], len(found["ports"])) == ([], MAC, 1)
    virsh("start", "web")
    virsh("domif-setlink", "web", MAC, "down")
    virsh("domif-setlink", "web", MAC, "up")
    for tree in (client.machine("web").inspect()["config"], client.machine("web").next()):
        (found,) = [device for device in tree["devices"] if device["kind"] == "net"]
        assert (found["network"], found["allow"], len(found["ports"])) == ("user", [], 1)


def test_folders_come_and_go_while_it_runs(virsh, xml, write, tmp_path):
    start("web")
    path = write(FOLDER.format(tmp_path, "/data"))
    virsh("attach-device", "web", path)
    assert [share["target"] for share in client.machine("web").shares()] == ["/data"]
    assert [device["target"] for device in of_kind("share", "web") if device["target"]] == []
    assert f'<source dir="{tmp_path}"/>' in virsh("dumpxml", "web").replace("'", '"')
    virsh("detach-device", "web", path)
    assert client.machine("web").shares() == []
    assert "device not found" in virsh("detach-device", "web", path, fails=True)
    assert "--config" in virsh("update-device", "web", path, fails=True)
    virsh("define", xml())
    virsh("attach-device", "d1", write(FOLDER.format(tmp_path, "/data")), "--config")
    assert [device["target"] for device in of_kind("share") if device["target"]] == ["/data"]
    virsh("detach-device", "d1", path, "--config")
    assert [device["target"] for device in of_kind("share") if device["target"]] == []


def test_a_device_that_is_none_is_told(virsh, xml, write):
    virsh("define", xml())
    for text in ("", "<disk", "<hostdev/>", "<sound model='ich6'/>", "<memballoon model='none'/>",
                 "<disk type='network'><target dev='vdb'/></disk>", "<disk type='file'/>",
                 "<interface type='hostdev'/>", "<filesystem/>"):  # fmt: skip
        assert "error:" in virsh("attach-device", "d1", write(text), "--config", fails=True)
        assert "error:" in virsh("detach-device", "d1", write(text), "--config", fails=True)
    assert [device for device in config() if device.get("target") != ""] == []


def test_what_runs_in_a_machine_stays_when_its_devices_change(virsh, disk):
    start("web", command=("sleep", "1"), image="default")
    virsh("destroy", "web")
    virsh("attach-disk", "web", disk, "vdb", "--config")
    virsh("setvcpus", "web", "2", "--config")
    record = client.machine("web").directory.coming()
    assert (record.command, record.image) == (("sleep", "1"), "default")


def test_tuning_is_told(virsh, xml):
    virsh("define", xml())
    virsh("start", "d1")
    assert re.search(r"hard_limit +: unlimited", virsh("memtune", "d1"))
    assert "posix" in virsh("schedinfo", "d1")
    assert re.search(r"0 +0", virsh("vcpupin", "d1"))
    assert "*" in virsh("emulatorpin", "d1")
    assert virsh("domcontrol", "d1") == "ok"
    assert "No errors" in virsh("domblkerror", "d1")
    assert "None" in virsh("domjobinfo", "d1")
    assert "no job" in virsh("domjobabort", "d1", fails=True)
    for verb in ("blkiotune", "numatune", "perf", "iothreadinfo"):
        virsh(verb, "d1")
    assert "screen" in virsh("screenshot", "d1", "/dev/null", fails=True)


class Agent:
    """Commands to a guest's agent, each over a connection of its own."""

    def __init__(self, virsh, domain):
        self.virsh, self.domain = virsh, domain

    def __call__(self, name, fails=False, **arguments):
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        text = json.dumps({"execute": name, "arguments": given})
        told = self.virsh("qemu-agent-command", self.domain, text, fails=fails)
        return told if fails else json.loads(told)["return"]

    def run(self, *words, **more):
        number = self("guest-exec", path=words[0], arg=list(words[1:]), **more)["pid"]
        deadline = time.monotonic() + 20
        while not (found := self("guest-exec-status", pid=number))["exited"]:
            assert time.monotonic() < deadline
        assert "does not exist" in self("guest-exec-status", pid=number, fails=True)
        return found


@pytest.fixture
def agent(virsh):
    where = start("web")
    deadline = time.monotonic() + 20
    while not client.machine(where.name).inspect()["agent"]["ready"]:
        assert time.monotonic() < deadline
    return Agent(virsh, "web")


def test_a_guests_agent(agent, virsh, xml):
    assert agent("guest-ping") == {}
    assert agent("guest-sync", id=7) == 7
    names = [command["name"] for command in agent("guest-info")["supported_commands"]]
    assert "guest-exec" in names
    assert abs(agent("guest-get-time") / 1e9 - time.time()) < 60
    assert agent("guest-get-host-name")["host-name"] == virsh("domhostname", "web")
    assert agent("guest-get-osinfo")["kernel-release"]
    assert "offset" in agent("guest-get-timezone")
    assert "has not been found" in agent("guest-fly", fails=True)
    assert "error:" in virsh("qemu-agent-command", "web", "{", fails=True)
    assert "Time:" in virsh("domtime", "web")
    assert "hostname" in virsh("guestinfo", "web")
    virsh("domfsinfo", "web")
    virsh("define", xml())
    assert "not running" in Agent(virsh, "d1")("guest-ping", fails=True)
    virsh("start", "d1")
    assert "not configured" in Agent(virsh, "d1")("guest-ping", fails=True)


def test_commands_of_a_guest(agent):
    found = agent.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert found["exitcode"] == 3
    assert base64.b64decode(found["out-data"]) == b"out\n"
    assert base64.b64decode(found["err-data"]) == b"err\n"
    found = agent.run("sh", "-c", "echo $ONE", env=["ONE=1"])
    assert base64.b64decode(found["out-data"]) == b"1\n"
    found = agent.run("cat", input_data=base64.b64encode(b"in").decode())
    assert base64.b64decode(found["out-data"]) == b"in"
    assert agent.run("false") == {"exited": True, "exitcode": 1}


def test_files_of_a_guest(agent, tmp_path):
    path = tmp_path / "file"
    handle = agent("guest-file-open", path=str(path), mode="w")
    data = bytes(range(256))
    assert agent("guest-file-write", handle=handle, buf_b64=_text(data))["count"] == 256
    assert agent("guest-file-write", handle=handle, buf_b64=_text(b"end"), count=2)["count"] == 2
    assert "not open to be read" in agent("guest-file-read", handle=handle, fails=True)
    agent("guest-file-close", handle=handle)
    assert path.read_bytes() == data + b"en"
    handle = agent("guest-file-open", path=str(path))
    found = agent("guest-file-read", handle=handle, count=200)
    assert base64.b64decode(found["buf-b64"]) == data[:200]
    assert not found["eof"]
    found = agent("guest-file-read", handle=handle)
    assert (base64.b64decode(found["buf-b64"]), found["eof"]) == (data[200:] + b"en", True)
    agent("guest-file-seek", handle=handle, offset=1, whence="set")
    assert agent("guest-file-read", handle=handle, count=1)["buf-b64"] == _text(b"\1")
    agent("guest-file-close", handle=handle)
    assert "does not exist" in agent("guest-file-read", handle=handle, fails=True)
    assert "error:" in agent("guest-file-open", path=str(path / "none"), fails=True)


def test_who_only_reads_asks_no_agent(agent, virsh, tmp_path):
    reader = Agent(Virsh(tmp_path / "lv-ro", "-r"), "web")
    assert "error:" in reader("guest-ping", fails=True)


def _text(data):
    return base64.b64encode(data).decode()
