"""An unmodified virsh against the door, with machines without guests."""

import re
import shutil
import subprocess
import time

import pytest

from ringzero.control.host import client
from ringzero.doors.contract import Address
from ringzero.doors.kinds.libvirt import Libvirt
from tests.control.fake import start
from tests.doors.serving import Served

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("virsh") is None, reason="virsh is Debian's libvirt-clients"),
]
DOMAIN = """
<domain type='{type}'><name>{name}</name>{more}<memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type><kernel>/dev/null</kernel></os>
<devices><console type='pty'/><graphics type='vnc' passwd='secret'/></devices></domain>
"""


@pytest.fixture
def virsh(fakes, root, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    addresses = Libvirt.at(Address(tmp_path / "lv"))
    with Served(tmp_path / "serve", libvirt=addresses):
        yield Virsh(tmp_path / "lv")


class Virsh:
    """Runs one command, and returns what it printed."""

    def __init__(self, socket, *flags):
        self.words = ["virsh", *flags, "-c", f"ringzero+unix:///session?socket={socket}"]

    def __call__(self, *command, fails=False):
        done = subprocess.run(
            [*self.words, *map(str, command)], capture_output=True, text=True, timeout=30
        )
        assert bool(done.returncode) is fails, done
        return (done.stderr if fails else done.stdout).strip()

    def table(self, *command):
        """Return the words of each line below a table's head."""
        return [line.split() for line in self(*command).splitlines()[2:] if line.strip()]


@pytest.fixture
def xml(tmp_path):
    def write(name="d1", more="", kind="qemu"):
        path = tmp_path / f"{name}.xml"
        path.write_text(DOMAIN.format(name=name, more=more, type=kind))
        return path

    return write


def test_a_machine_of_ours(virsh):
    start("web")
    (row,) = virsh.table("list", "--all")
    assert row[1:] == ["web", "running"]
    assert virsh("domid", "web") == row[0]
    assert virsh("domstate", "web", "--reason") == "running (booted)"
    assert virsh("suspend", "web").startswith("Domain 'web' suspended")
    assert client.machine("web").inspect()["status"] == "paused"
    assert virsh("domstate", "web") == "paused"
    virsh("resume", "web")
    found = dict(line.split(":", 1) for line in virsh("dominfo", "web").splitlines())
    assert found["State"].strip() == "running"
    uuid = virsh("domuuid", "web")
    assert virsh("domname", uuid) == "web"
    assert virsh("domstate", uuid) == "running"
    assert virsh("destroy", "web")
    assert virsh("domstate", "web", "--reason") == "shut off (destroyed)"
    assert virsh.table("list") == []
    assert "domain is not running" in virsh("suspend", "web", fails=True)
    virsh("undefine", "web")
    assert "failed to get domain 'web'" in virsh("domstate", "web", fails=True)


def test_a_machine_of_theirs(virsh, xml):
    uuid = "5fd1cbb4-6a9b-4d62-8d4a-0f9f6f5f0a0e"
    virsh("define", xml(more=f"<uuid>{uuid}</uuid><title>one</title>"))
    assert virsh.table("list", "--all", "--title") == [["-", "d1", "shut", "off", "one"]]
    assert virsh("domuuid", "d1") == uuid
    assert virsh("dominfo", "d1").count("Persistent:     yes") == 1
    virsh("start", "d1", "--paused")
    assert virsh("domstate", "d1") == "paused"
    virsh("destroy", "d1")
    virsh("autostart", "d1")
    assert client.machine("d1").metadata()["autostart"] is True
    virsh("desc", "d1", "more", "words")
    assert virsh("desc", "d1") == "more words"
    # A secret is kept nowhere, and what there is no part for comes back as it was.
    assert not any(
        "secret" in text for text in client.machine("d1").metadata()["elements"].values()
    )
    told = virsh("dumpxml", "d1")
    assert "<graphics type=" in told
    assert f"<uuid>{uuid}</uuid>" in told
    virsh("setvcpus", "d1", 3, "--config")
    virsh("setmem", "d1", "128M", "--config")
    assert client.machine("d1").inspect()["config"]["cpus"] == 3
    assert '<memory unit="KiB">131072</memory>' in virsh("dumpxml", "d1").replace("'", '"')
    # What comes out goes in again.
    path = xml("again")
    path.write_text(told)
    virsh("define", path)
    if shutil.which("virt-xml-validate"):
        subprocess.run(["virt-xml-validate", path], check=True, capture_output=True)
    assert "already exists" in virsh("define", xml("d2", f"<uuid>{uuid}</uuid>"), fails=True)
    virsh("undefine", "d1")
    assert virsh.table("list", "--all") == []


def test_a_machine_for_one_life(virsh, xml):
    virsh("create", xml())
    assert "Persistent:     no" in virsh("dominfo", "d1")
    assert virsh.table("list", "--all")[0][1:] == ["d1", "running"]
    virsh("destroy", "d1")
    deadline = time.monotonic() + 10
    while virsh.table("list", "--all"):
        assert time.monotonic() < deadline
    # As virt-install does: begun, and then defined.
    virsh("create", xml())
    virsh("define", xml())
    assert "Persistent:     yes" in virsh("dominfo", "d1")
    virsh("undefine", "d1")
    assert "Persistent:     no" in virsh("dominfo", "d1")
    virsh("shutdown", "d1")
    while virsh.table("list", "--all"):
        assert time.monotonic() < deadline + 20


def test_what_is_wrong_is_told(virsh, xml, tmp_path):
    wrong = tmp_path / "wrong.xml"
    for text in ("", "<domain", "<network/>", '<!DOCTYPE a [<!ENTITY b "c">]><domain>&b;</domain>'):
        wrong.write_text(text)
        assert "error:" in virsh("define", wrong, fails=True)
    assert "architecture" in virsh("define", _with(xml(), "x86_64", "s390x"), fails=True)
    assert "failed to get domain" in virsh("start", "nobody", fails=True)
    assert "failed to get domain" in virsh("start", "../x", fails=True)
    virsh("define", xml())
    virsh("start", "d1")
    assert "already active" in virsh("start", "d1", fails=True)
    assert "cannot change" in virsh("setmem", "d1", "1G", "--live", fails=True)
    assert "not supported" in virsh("migrate", "d1", "test:///default", fails=True).lower()


def _with(path, old, new):
    path.write_text(path.read_text().replace(old, new))
    return path


def test_who_only_reads(virsh, xml, tmp_path):
    virsh("define", xml())
    reader = Virsh(tmp_path / "lv-ro", "-r")
    assert reader.table("list", "--all") == [["-", "d1", "shut", "off"]]
    assert "<name>d1</name>" in reader("dumpxml", "d1")
    for command in (
        ("start", "d1"), ("undefine", "d1"), ("define", xml("d2")), ("autostart", "d1"),
        ("desc", "d1", "x"), ("setvcpus", "d1", "2", "--config"),
    ):  # fmt: skip
        told = reader(*command, fails=True)
        assert re.search(r"forbidden|denied|read only", told), told
    assert [m["status"] for m in client.host().machines()] == ["defined"]


def test_events(virsh, xml):
    listening = subprocess.Popen(
        [*virsh.words, "event", "--all", "--loop"], stdout=subprocess.PIPE, text=True
    )
    try:
        time.sleep(0.5)
        deadline = time.monotonic() + 20
        # The client listens at some time: what is certain is what is done again.
        seen = ""
        virsh("define", xml())
        while "Defined" not in seen:
            assert time.monotonic() < deadline
            virsh("desc", "d1", "again")
            seen = listening.stdout.readline()
        for command in (("start", "d1"), ("suspend", "d1"), ("resume", "d1"), ("destroy", "d1")):
            virsh(*command)
        virsh("undefine", "d1")
        while "Undefined" not in seen:
            line = listening.stdout.readline()
            assert line, seen
            seen += line
        kinds = [line.split(": ")[1] for line in seen.splitlines() if "'lifecycle'" in line]
        told = [kind for kind in kinds if not kind.startswith(("Defined", "Shutdown"))]
        assert told == [
            "Started Booted", "Suspended Paused", "Resumed Unpaused", "Stopped Destroyed",
            "Undefined Removed",
        ]  # fmt: skip
    finally:
        listening.kill()
        listening.wait()
        listening.stdout.close()


def test_what_the_host_is(virsh):
    assert "CPU(s):" in virsh("nodeinfo")
    assert "Running hypervisor: ringzero" in virsh("version")
    assert "total" in virsh("nodememstats")
    assert "user" in virsh("nodecpustats")
    assert "<arch>x86_64</arch>" in virsh("capabilities")
    assert "<domainCapabilities>" in virsh("domcapabilities")
    assert virsh("hostname")


def test_an_interface_has_an_address_from_its_definition_on(virsh, xml):
    def macs():
        return re.findall('<mac address="(.*?)"', virsh("dumpxml", "d1").replace("'", '"'))

    user, other = "<interface type='user'/>", "<interface type='ethernet'><target dev='t0'/>"
    devices = f"<devices>{user}{user}{other}</interface></devices>"

    def define(text):
        path = xml()
        path.write_text(re.sub("<devices>.*</devices>", text, path.read_text()))
        virsh("define", path)

    define(devices)
    one, two, three = macs()
    assert len({one, two, three}) == 3
    assert one.startswith("52:54:00:")
    # It stays what it is where the interface does.
    define(devices)
    assert macs() == [one, two, three]
    named = f"<interface type='user'><mac address='{one}'/></interface>"
    define(f"<devices>{user}{named}</devices>")
    assert macs() == [two, one]
