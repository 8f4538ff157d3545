"""Snapshots, managed saves and saved files by an unmodified virsh."""

import json
import re
import subprocess
import threading
import time

import pytest

from ringzero.control.host import claims, client
from ringzero.control.host.launch import launch
from ringzero.host.progress import QUIET
from ringzero.vm.saved.store import Store
from tests.control.fake import PROGRAM, config, start
from tests.control.host.test_saved_disks import SIZE, disk
from tests.doors.libvirt.test_virsh import Virsh, pytestmark, virsh, xml

__all__ = ["disk", "pytestmark", "virsh", "xml"]


@pytest.fixture
def web(disk):
    """A machine that runs, with a disk."""
    claim = claims.create("web", config(disks=[f"{disk},format=raw"], memory=32 << 20))
    launch(claim, progress=QUIET, program=PROGRAM)
    return client.machine("web")


def names(virsh, *flags):
    return virsh("snapshot-list", "web", "--name", *flags).split()


def info(virsh, name):
    lines = virsh("snapshot-info", "web", name).splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_snapshots_are_a_tree(virsh, web, tmp_path):
    assert virsh.table("snapshot-list", "web") == []
    assert "no current snapshot" in virsh("snapshot-current", "web", fails=True)
    virsh("snapshot-create-as", "web", "a", "the first")
    virsh("snapshot-create-as", "web", "b")
    virsh("suspend", "web")
    virsh("snapshot-create-as", "web", "c d")
    virsh("resume", "web")
    rows = virsh("snapshot-list", "web").splitlines()[2:]
    assert [(row.split()[0], row.split()[-1]) for row in rows] == [
        ("a", "running"), ("b", "running"), ("c", "paused"),
    ]  # fmt: skip
    assert virsh("snapshot-current", "web", "--name") == "c d"
    assert virsh("snapshot-parent", "web", "b") == "a"
    assert "has no parent" in virsh("snapshot-parent", "web", "a", fails=True)
    assert re.sub(r"\s+", " ", virsh("snapshot-list", "web", "--tree")) == "a | +- b | +- c d"
    found = info(virsh, "a")
    assert (found["Current"], found["State"], found["Location"]) == ("no", "running", "internal")
    assert (found["Children"], found["Descendants"], found["Metadata"]) == ("1", "2", "yes")
    assert names(virsh, "--roots") == ["a"]
    assert names(virsh, "--leaves") == ["c", "d"]
    assert names(virsh, "--no-leaves") == ["a", "b"]
    assert names(virsh, "--from", "a") == ["b"]
    assert names(virsh, "--from", "a", "--descendants") == ["b", "c", "d"]
    assert names(virsh, "--inactive") == names(virsh, "--external") == []
    told = virsh("snapshot-dumpxml", "web", "a")
    assert "<description>the first</description>" in told
    assert '<disk name="vda" snapshot="internal"' in told.replace("'", '"')
    path = tmp_path / "snapshot.xml"
    path.write_text(told)
    subprocess.run(["virt-xml-validate", path], check=True, capture_output=True)
    # The one in the middle goes, and what is below it stays.
    virsh("snapshot-delete", "web", "b")
    assert virsh("snapshot-parent", "web", "c d") == "a"
    virsh("snapshot-delete", "web", "--current")
    assert virsh("snapshot-current", "web", "--name") == "a"
    virsh("snapshot-create-as", "web", "e")
    virsh("snapshot-delete", "web", "a", "--children-only")
    assert names(virsh) == ["a"]
    virsh("snapshot-create-as", "web", "e")
    virsh("snapshot-delete", "web", "a", "--children")
    assert names(virsh) == []
    assert Store().names() == []
    assert web.metadata()["elements"].keys() == {"libvirt-current-snapshot"}


def test_going_back(virsh, web):
    virsh("snapshot-create-as", "web", "a")
    virsh("snapshot-create-as", "web", "b")
    virsh("snapshot-revert", "web", "a")
    assert virsh("snapshot-current", "web", "--name") == "a"
    assert virsh("domstate", "web") == "running"
    virsh("snapshot-revert", "web", "b", "--paused")
    assert virsh("domstate", "web") == "paused"
    virsh("snapshot-create-as", "web", "stands")
    virsh("snapshot-revert", "web", "a")
    assert virsh("domstate", "web") == "running"
    virsh("snapshot-revert", "web", "stands")
    assert virsh("domstate", "web") == "paused"
    virsh("snapshot-revert", "web", "stands", "--running")
    assert virsh("domstate", "web") == "running"
    # Of what was gone back to, what is saved next is a child.
    virsh("snapshot-create-as", "web", "c")
    assert virsh("snapshot-parent", "web", "c") == "stands"
    virsh("destroy", "web")
    virsh("snapshot-revert", "web", "a")
    assert virsh("domstate", "web") == "running"
    assert "error:" in virsh("snapshot-revert", "web", "nobody", fails=True)


def test_what_cannot_be_gone_back_to_changes_nothing(virsh):
    start("web", "unfit")
    virsh("snapshot-create-as", "web", "a")
    for how in ((), ("--paused",)):
        assert "does not fit" in virsh("snapshot-revert", "web", "a", *how, fails=True)
        assert virsh("domstate", "web") == "running"


def test_disks_by_themselves(virsh, web, disk):
    virsh("snapshot-create-as", "web", "runs", "--disk-only")
    virsh("destroy", "web")
    virsh("snapshot-create-as", "web", "off", "--description", "while off")
    rows = virsh.table("snapshot-list", "web")
    assert [(row[0], row[-1]) for row in rows] == [("off", "shutoff"), ("runs", "disk-snapshot")]
    assert virsh("snapshot-parent", "web", "off") == "runs"
    assert names(virsh, "--inactive") == ["off"]
    assert names(virsh, "--disk-only") == ["runs"]
    disk.write_bytes(b"two".ljust(SIZE, b"\0"))
    virsh("snapshot-revert", "web", "off")
    assert disk.read_bytes()[:3] == b"one"
    assert virsh("domstate", "web") == "shut off"
    # One that runs is off then, too, as it was.
    virsh("start", "web")
    disk.write_bytes(b"two".ljust(SIZE, b"\0"))
    virsh("snapshot-revert", "web", "runs")
    assert disk.read_bytes()[:3] == b"one"
    assert virsh("domstate", "web") == "shut off"
    virsh("snapshot-revert", "web", "off", "--running")
    assert virsh("domstate", "web") == "running"
    virsh("snapshot-create-as", "web", "last", "--halt")
    assert virsh("domstate", "web") == "shut off"
    # What cannot be gone back to ends nothing.
    virsh("start", "web")
    for blob in Store().blobs.iterdir():
        blob.unlink()
    assert "error:" in virsh("snapshot-revert", "web", "off", fails=True)
    assert virsh("domstate", "web") == "running"


def test_names_are_a_domains_own(virsh, web, xml):
    virsh("define", xml("d1"))
    virsh("snapshot-create-as", "web", "a")
    virsh("snapshot-create-as", "d1", "a")
    assert virsh("snapshot-list", "d1", "--name") == "a"
    assert names(virsh) == ["a"]
    assert sorted(Store().names()) == ["a", "d1.a"]
    assert "already exists" in virsh("snapshot-create-as", "d1", "a", fails=True)
    virsh("define", xml("d2"))
    assert set(virsh("list", "--all", "--name", "--with-snapshot").split()) == {"d1", "web"}
    assert virsh("list", "--all", "--name", "--without-snapshot") == "d2"
    # Those of `ringzero snapshot save` are there, too.
    web.snapshot("ours", str(Store().root))
    assert names(virsh) == ["a", "ours"]
    assert virsh("snapshot-parent", "web", "ours") == "a"
    assert virsh("snapshot-current", "web", "--name") == "ours"
    virsh("destroy", "web")
    virsh("domrename", "web", "db")
    assert virsh("snapshot-list", "db", "--name") == "a"
    assert "1 snapshots" in virsh("undefine", "db", fails=True)
    virsh("undefine", "db", "--snapshots-metadata")
    # Who has the name next has nothing to do with them.
    start("web")
    assert names(virsh) == []
    virsh("snapshot-create", "web")
    (name,) = names(virsh)
    assert abs(int(name) - time.time()) < 600


def test_what_no_snapshot_of_ours_is(virsh, web, tmp_path):
    def refused(*words):
        return virsh("snapshot-create-as", "web", *words, fails=True)

    assert "not frozen" in refused("a", "--disk-only", "--quiesce")
    assert "no-metadata" in refused("a", "--no-metadata")
    assert "own store" in refused("a", "--memspec", f"file={tmp_path}/m,snapshot=external")
    assert "own store" in refused("a", "--disk-only", "--diskspec", f"vda,file={tmp_path}/d")
    assert "cannot be left out" in refused("a", "--diskspec", "vda,snapshot=no")
    assert "no '/'" in refused("../a")
    assert "one line" in refused("a\nb")
    path = tmp_path / "snapshot.xml"
    for text in ("<domainsnapshot", "<domain/>"):
        path.write_text(text)
        assert "error:" in virsh("snapshot-create", "web", path, fails=True)
    virsh("snapshot-create-as", "web", "a")
    assert "--metadata" in virsh("snapshot-delete", "web", "a", "--metadata", fails=True)
    path.write_text(virsh("snapshot-dumpxml", "web", "a"))
    told = virsh("snapshot-create", "web", path, "--redefine", fails=True)
    assert "described anew" in told
    reader = Virsh(tmp_path / "lv-ro", "-r")
    assert reader("snapshot-list", "web", "--name") == "a"
    for words in (("snapshot-delete", "web", "a"), ("snapshot-revert", "web", "a"),
                  ("snapshot-create", "web"), ("managedsave", "web")):  # fmt: skip
        assert "error:" in reader(*words, fails=True)
    assert names(virsh) == ["a"]


def test_a_managed_save(virsh, web):
    virsh("managedsave", "web")
    assert virsh("domstate", "web", "--reason") == "shut off (saved)"
    assert re.search(r"Managed save: +yes", virsh("dominfo", "web"))
    assert names(virsh) == []
    assert "managed save image" in virsh("undefine", "web", fails=True)
    assert virsh.table("list", "--all", "--managed-save") == [["-", "web", "saved"]]
    assert virsh("list", "--all", "--name", "--with-managed-save") == "web"
    assert virsh("list", "--all", "--name", "--without-managed-save") == ""
    assert "state.reason=5" in virsh("domstats", "web")
    (kept,) = client.host().snapshots()
    assert kept["memory"] == 32 << 20
    virsh("start", "web")
    assert "reverted to managed-save." in _log(web)
    assert virsh("domstate", "web") == "running"
    assert re.search(r"Managed save: +no", virsh("dominfo", "web"))
    assert Store().names() == []
    # One that stood still does so again, but for who says otherwise.
    virsh("suspend", "web")
    virsh("managedsave", "web")
    virsh("start", "web")
    assert virsh("domstate", "web") == "paused"
    virsh("managedsave", "web", "--running")
    virsh("start", "web")
    assert virsh("domstate", "web") == "running"
    virsh("managedsave", "web")
    virsh("managedsave-remove", "web")
    assert Store().names() == []
    assert virsh("domstate", "web", "--reason") == "shut off (destroyed)"
    virsh("start", "web")
    virsh("managedsave", "web")
    virsh("start", "web", "--force-boot")
    assert Store().names() == []
    virsh("managedsave", "web")
    virsh("undefine", "web", "--managed-save")
    assert Store().names() == []


def _log(machine):
    return machine.directory.file("console.log").read_text()


def test_a_save_is_of_no_use_once_the_machine_has_run(virsh, web):
    virsh("managedsave", "web")
    web.start()
    web.kill()
    assert re.search(r"Managed save: +no", virsh("dominfo", "web"))
    virsh("start", "web")
    before = Store().names()
    virsh("managedsave", "web")
    assert len(Store().names()) == 1
    assert Store().names() != before


def test_a_save_that_cannot_be_made_changes_nothing(virsh, xml, tmp_path):
    start("web", "unsaved")
    assert "the disk is full" in virsh("managedsave", "web", fails=True)
    assert virsh("domstate", "web") == "running"
    assert "the disk is full" in virsh("save", "web", tmp_path / "f", fails=True)
    assert virsh("domstate", "web") == "running"
    assert "the disk is full" in virsh("snapshot-create-as", "web", "a", fails=True)
    virsh("create", xml())
    assert "transient" in virsh("managedsave", "d1", fails=True)


def test_a_start_that_fails_keeps_the_save(virsh, web):
    virsh("managedsave", "web")
    record = web.directory.machine()
    tree = record.config
    web.redefine({**tree, "command_line": "unfit"})
    assert "does not fit" in virsh("start", "web", fails=True)
    assert re.search(r"Managed save: +yes", virsh("dominfo", "web"))
    web.redefine(tree)
    virsh("start", "web")
    assert "reverted to managed-save." in _log(web)


def test_saved_to_a_file(virsh, web, tmp_path):
    path = tmp_path / "web.save"
    virsh("save", "web", path)
    assert virsh("domstate", "web") == "shut off"
    assert Store().names() == []
    virsh("restore", path)
    assert virsh("domstate", "web") == "running"
    assert "reverted to managed-save." in _log(web)
    assert "already active" in virsh("restore", path, fails=True)
    virsh("destroy", "web")
    virsh("restore", path, "--paused")
    assert virsh("domstate", "web") == "paused"
    virsh("destroy", "web")
    virsh("undefine", "web")
    assert "define it first" in virsh("restore", path, fails=True)
    (tmp_path / "other").write_bytes(b"something else")
    assert "error:" in virsh("restore", tmp_path / "other", fails=True)
    assert "error:" in virsh("restore", tmp_path / "missing", fails=True)
    assert Store().names() == []


def test_notes_of_others_mean_nothing(virsh, web):
    """Whoever writes nonsense into a machine's notes hides no snapshot, and breaks no list."""
    virsh("snapshot-create-as", "web", "a")
    (kept,) = client.host().snapshots()
    for text in ("", "[]", "null", '{"name": 1, "state": "x"}', "{" * 9999, "[" * 9999):
        web.describe(
            metadata={
                f"libvirt-snapshot:{kept['id']}": text,
                "libvirt-current-snapshot": text,
                "libvirt-saved": text,
                "libvirt-snapshot:nobody": text,
            }
        )
        assert names(virsh) == ["a"]
        assert virsh("snapshot-current", "web", "--name") == "a"
        assert "<state>running</state>" in virsh("snapshot-dumpxml", "web", "a")
        assert re.search(r"Managed save: +no", virsh("dominfo", "web"))
    # One that is its own parent is nobody's child.
    note = {"name": "b", "state": "paused", "parent": kept["id"], "sent": "<domain"}
    web.describe(metadata={f"libvirt-snapshot:{kept['id']}": json.dumps(note)})
    assert "<state>paused</state>" in virsh("snapshot-dumpxml", "web", "b")
    assert "has no parent" in virsh("snapshot-parent", "web", "b", fails=True)
    virsh("snapshot-delete", "web", "b", "--children")
    assert names(virsh) == []


def test_a_snapshot_that_is_gone(virsh, web):
    """One that `ringzero snapshot rm` takes leaves its children, and is not the current one."""
    for name in ("a", "b", "c"):
        virsh("snapshot-create-as", "web", name)
    client.host().remove_snapshot("b")
    assert virsh("snapshot-parent", "web", "c") == "a"
    client.host().remove_snapshot("c")
    assert "no current snapshot" in virsh("snapshot-current", "web", fails=True)
    virsh("snapshot-create-as", "web", "b")
    assert names(virsh) == ["a", "b"]


def test_an_end_by_a_save_is_an_event(virsh, web):
    listening = subprocess.Popen(
        [*virsh.words, "event", "--event", "lifecycle", "--loop"],
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(iter(listening.stdout.readline, "")))
    reader.start()

    def wait(what, again=lambda: None):
        deadline = time.monotonic() + 30
        while not any(what in line for line in seen):
            assert time.monotonic() < deadline, seen
            again()
            time.sleep(0.05)

    try:
        # The client listens at some time: what is certain is what is done again.
        wait("Defined", lambda: virsh("desc", "web", "again"))
        virsh("managedsave", "web")
        wait("Stopped Saved")
    finally:
        listening.kill()
        listening.wait()
        reader.join()
        listening.stdout.close()
