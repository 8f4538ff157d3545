"""Every verb of virsh: the page says what of it works, and those of every day do."""

import re
import subprocess
from pathlib import Path

from ringzero.control.host import claims, client
from ringzero.control.host.launch import launch
from ringzero.host.progress import QUIET
from tests.control.fake import PROGRAM, config
from tests.doors.libvirt.test_virsh import pytestmark, virsh, xml

__all__ = ["pytestmark", "virsh", "xml"]
PAGE = Path(__file__).parents[3] / "docs" / "libvirt.md"
NETWORK = """<network><name>lan</name><forward mode='nat'/>
<ip address='10.77.5.1' netmask='255.255.255.0'/></network>"""
# In their order: what is said, and what is printed. {} are files of the test's.
DAILY = [
    ("uri", "ringzero"),
    ("hostname", "."),
    ("version", "ringzero"),
    ("nodeinfo", "CPU"),
    ("nodecpumap", "CPUs present"),
    ("nodecpustats", "user"),
    ("nodememstats", "total"),
    ("freecell", "KiB"),
    ("maxvcpus", r"^\d+$"),
    ("capabilities", "<capabilities>"),
    ("domcapabilities", "<domainCapabilities>"),
    ("sysinfo", "<sysinfo"),
    ("cpu-models x86_64", "x86-64-v2"),
    ("nodedev-list", ""),
    ("iface-list", "Name"),
    ("secret-list", "UUID"),
    ("nwfilter-list", "UUID"),
    ("list", "web +running"),
    ("list --all --title", "d1 +shut off"),
    ("list --all --name", "web"),
    ("list --autostart --all", "Id"),
    ("dominfo web", "State: +running"),
    ("domstate web --reason", "running"),
    ("domid web", r"^\d+$"),
    ("domuuid web", "-"),
    ("dumpxml web", "<domain"),
    ("dumpxml web --inactive", "<domain"),
    ("domblklist web", "Target"),
    ("domiflist web", "user"),
    ("domifstat web {nic}", "rx_bytes 3000"),
    ("domifaddr web", "Protocol"),
    ("domifaddr web --source agent", "lo .*127.0.0.1"),
    ("domif-getlink web {nic}", "up"),
    ("dommemstat web", "actual"),
    ("domstats", "state.state=1"),
    ("domstats web --vcpu", "vcpu.current=1"),
    ("vcpucount web", "maximum"),
    ("vcpuinfo web", "running"),
    ("vcpupin web", "VCPU"),
    ("emulatorpin web", "emulator"),
    ("memtune web", "unlimited"),
    ("blkiotune web", ""),
    ("schedinfo web", "posix"),
    ("numatune web", ""),
    ("domiftune web {nic}", ""),
    ("perf web", ""),
    ("iothreadinfo web", "No IOThreads"),
    ("domcontrol web", "ok"),
    ("domblkerror web", "No errors"),
    ("domjobinfo web", "None"),
    ("blockjob web vda", "No current block job"),
    ("domhostname web", "."),
    ("domtime web", r"Time: \d+"),
    ("domfsinfo web", ""),
    ("guestinfo web --os", "os.kernel-release"),
    ("desc web --title one --config", "title updated"),
    ("desc web --title", "one"),
    ("desc web some words", "description updated"),
    ("metadata web --uri u --key k --set <a/>", ""),
    ("metadata web --uri u", "<a"),
    ("autostart web", "marked as autostarted"),
    ("autostart web --disable", "unmarked"),
    ("suspend web", "suspended"),
    ("resume web", "resumed"),
    ("attach-device web {folder}", "attached"),
    ("detach-device web {folder}", "detached"),
    ("attach-disk d1 {disk} vdb --config", "attached"),
    ("domblklist d1", "vdb"),
    ("domblkinfo d1 vdb", "Capacity"),
    ("detach-disk d1 vdb --config", "detached"),
    ("setmem d1 96M --config", ""),
    ("setmaxmem d1 96M --config", ""),
    ("setvcpus d1 2 --config", ""),
    ("snapshot-create-as web s1 words", "created"),
    ("snapshot-create web", "created"),
    ("snapshot-list web --tree", "s1"),
    ("snapshot-info web s1", "State: +running"),
    ("snapshot-current web --name", r"^\d+$"),
    ("snapshot-dumpxml web s1", "<domainsnapshot>"),
    ("snapshot-revert web s1", "reverted"),
    ("snapshot-delete web s1 --children", "deleted"),
    ("managedsave web", "saved"),
    ("managedsave-remove web", "Removed"),
    ("start web", "started"),
    ("save web {saved}", "saved"),
    ("restore {saved}", "restored"),
    ("domrename d1 d2", "renamed"),
    ("start d2 --paused", "started"),
    ("reset d2", "reset"),
    ("shutdown d2", "being shutdown"),
    ("net-define {network}", "defined"),
    ("net-start lan", "started"),
    ("net-list --all", "lan +active"),
    ("net-info lan", "Active: +yes"),
    ("net-dumpxml lan", "<network"),
    ("net-uuid lan", "-"),
    ("net-autostart lan --disable", "unmarked"),
    ("net-update lan add ip-dhcp-host {host}", "Updated"),
    ("net-dhcp-leases lan", "Expiry"),
    ("net-destroy lan", "destroyed"),
    ("net-undefine lan", "undefined"),
    ("pool-define-as p1 dir --target {pool}", "defined"),
    ("pool-build p1", "built"),
    ("pool-start p1", "started"),
    ("pool-autostart p1", "autostarted"),
    ("pool-list --all --details", "p1 +running"),
    ("pool-info p1", "running"),
    ("pool-dumpxml p1", "<pool"),
    ("pool-refresh p1", "refreshed"),
    ("vol-create-as p1 a.qcow2 4M --format qcow2", "created"),
    ("vol-list p1 --details", "a.qcow2"),
    ("vol-info a.qcow2 p1", "Capacity"),
    ("vol-dumpxml a.qcow2 p1", "<volume"),
    ("vol-path a.qcow2 p1", "a.qcow2"),
    ("vol-key a.qcow2 p1", "a.qcow2"),
    ("vol-resize a.qcow2 8M p1", "resized|changed"),
    ("vol-clone a.qcow2 b.qcow2 p1", "cloned"),
    ("vol-wipe b.qcow2 p1", "wiped"),
    ("vol-upload b.qcow2 {disk} p1", ""),
    ("vol-download b.qcow2 {target} p1", ""),
    ("vol-delete b.qcow2 p1", "deleted"),
    ("pool-destroy p1", "destroyed"),
    ("pool-undefine p1", "undefined"),
    ("destroy web", "destroyed"),
    ("undefine web", "undefined"),
    ("create {domain}", "created"),
]
FOLDER = "<filesystem type='mount'><source dir='{}'/><target dir='/data'/></filesystem>"


def test_those_of_every_day(virsh, xml, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))
    files = {
        name: tmp_path / f"{name}.it"
        for name in ("folder", "disk", "network", "host", "pool", "target", "saved")
    }
    files["folder"].write_text(FOLDER.format(tmp_path))
    files["disk"].write_bytes(bytes(1 << 20))
    files["network"].write_text(NETWORK)
    files["host"].write_text("<host mac='52:54:00:00:00:02' ip='10.77.5.60'/>")
    files["domain"] = xml("once")
    virsh("define", xml())
    launch(claims.create("web", config(nets=["user"])), wait=True, progress=QUIET, program=PROGRAM)
    files["nic"] = virsh.table("domiflist", "web")[0][0]
    wrong = []
    for command, pattern in DAILY:
        words = [word.format(**files) for word in command.split()]
        if words[:2] == ["desc", "web"] and "--title" not in words:
            words[2:] = [" ".join(words[2:])]
        done = subprocess.run([*virsh.words, *words], capture_output=True, text=True, timeout=60)
        if done.returncode or not re.search(pattern, done.stdout.strip(), re.MULTILINE):
            wrong.append((command, done.returncode, done.stdout, done.stderr))
    assert not wrong, "\n".join(map(str, wrong))
    assert client.machine("once").inspect()["status"] == "running"


def _verbs():
    told = subprocess.run(["virsh", "help"], capture_output=True, text=True, timeout=30).stdout
    return re.findall(r"^    ([a-z][a-z0-9-]*) ", told, re.MULTILINE)


def test_the_page_names_every_verb_once():
    section = PAGE.read_text().partition("## What of virsh works")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    named = [verb for row in rows for verb in re.findall(r"`([a-z0-9-]+)`", row)]
    assert sorted(named) == sorted(_verbs())
    works = [
        verb
        for row in rows
        for cell in row.split(" | ")[1:3]
        for verb in re.findall(r"`([a-z0-9-]+)`", cell)
    ]
    assert {command.split()[0] for command, _ in DAILY} <= set(works)
