"""What the actions of `ringzero disk` do to the target that a user names."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from ringzero.cli.main import main
from ringzero.disk import create_disk, open_disk
from ringzero.disk.storage import FileStorage

SIZE = 1 << 20
DATA = b"data" * (SIZE // 4)

# Every action that fills a file with a new image: the words before its name, and behind it.
FILLING = {
    "convert": (["convert", "-q", "--force", "-f", "raw", "-O", "qcow2", "s.raw"], []),
    "create": (["create", "-q", "--force", "-f", "qcow2"], [str(SIZE)]),
    "dd": (["dd", "-q", "-f", "raw", "-O", "qcow2", "if=s.raw"], []),
}


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("s.raw").write_bytes(DATA)
    return tmp_path


def fill(action, name):
    before, after = FILLING[action]
    return main(["disk", *before, f"of={name}" if action == "dd" else str(name), *after])


def check(action, name):
    with open_disk(name, "qcow2", read_only=True) as disk:
        assert disk.size == SIZE
        assert disk.read(0, SIZE) == (bytes(SIZE) if action == "create" else DATA)


@pytest.mark.parametrize("action", FILLING)
def test_links_rights_and_owners_stay(action):
    Path("real").write_bytes(b"old")
    Path("real").chmod(0o600)
    if os.geteuid() == 0:
        os.chown("real", 1000, 1001)
    Path("link").symlink_to("real")
    before = Path("real").stat()
    assert fill(action, "link") == 0
    assert Path("link").is_symlink()
    check(action, "real")
    after = Path("real").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode, before.st_uid, before.st_gid,
    )  # fmt: skip
    assert sorted(os.listdir()) == ["link", "real", "s.raw"]


@pytest.mark.parametrize("action", FILLING)
def test_a_link_that_leads_nowhere_yet(action):
    Path("elsewhere").mkdir()
    Path("link").symlink_to("elsewhere/new")
    assert fill(action, "link") == 0
    assert Path("link").is_symlink()
    check(action, "elsewhere/new")


@pytest.mark.parametrize("action", FILLING)
def test_other_names_lead_to_the_new_image(action):
    Path("a").write_bytes(b"old")
    Path("b").hardlink_to("a")
    assert fill(action, "a") == 0
    assert Path("a").samefile("b")
    check(action, "b")


@pytest.mark.parametrize("action", FILLING)
def test_a_mounted_target(action):
    Path("below").write_bytes(b"below")
    Path("over").write_bytes(b"old")
    mount = ["mount", "--bind", "over", "below"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        assert fill(action, "below") == 0
        check(action, "over")
    finally:
        subprocess.run(["umount", "below"], check=True)
    assert Path("below").read_bytes() == b"below"


@pytest.mark.parametrize("action", FILLING)
@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file(action, kind, capsys):
    if kind == "fifo":
        os.mkfifo("x")
    elif kind == "directory":
        Path("x").mkdir()
    else:
        Path("x").symlink_to("/dev/null")
    before = Path("x").stat()
    assert fill(action, "x") == 2
    assert "hint:" in capsys.readouterr().err
    assert Path("x").stat().st_mode == before.st_mode
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.parametrize("action", FILLING)
def test_long_names(action, capsys):
    longest = os.pathconf(".", "PC_NAME_MAX")
    assert fill(action, "é" * (longest // 2)) == 0
    check(action, "é" * (longest // 2))
    assert fill(action, "x" * (longest + 1)) not in (0, 70)
    assert fill(action, "missing/x") not in (0, 70)
    Path("loop").symlink_to("loop")
    assert fill(action, "loop") not in (0, 70)
    assert "internal" not in capsys.readouterr().err


@pytest.mark.parametrize("action", FILLING)
def test_an_image_in_use_is_left_alone(action, capsys):
    create_disk("used", "qcow2", 4 << 20)
    before = Path("used").read_bytes()
    storage = FileStorage("used")
    try:
        assert fill(action, "used") not in (0, 70)
    finally:
        storage.close()
    assert "in use" in capsys.readouterr().err
    assert Path("used").read_bytes() == before
    assert sorted(os.listdir()) == ["s.raw", "used"]


@pytest.mark.parametrize("action", ["convert", "dd"])
@pytest.mark.parametrize("target", ["s.raw", "same", "base"])
def test_the_source_is_no_target(action, target, capsys):
    Path("same").symlink_to("s.raw")
    create_disk("base", "qcow2", SIZE)
    create_disk("top", "qcow2", backing="base")
    before = Path("base").read_bytes()
    source = "top" if target == "base" else "s.raw"
    words = {
        "convert": ["convert", "-q", "--force", "-O", "qcow2", source, target],
        "dd": ["dd", "-q", "-O", "qcow2", f"if={source}", f"of={target}"],
    }
    assert main(["disk", *words[action]]) not in (0, 70)
    assert capsys.readouterr().err
    assert Path("s.raw").read_bytes() == DATA
    assert Path("base").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["create", "--force", "-f", "qcow2", "-o", "cluster_size=3", "old", "1G"],
        ["create", "--force", "-f", "vhdx", "-o", "block_size=3", "old", "1G"],
        ["create", "--force", "-f", "vmdk", "-o", "subformat=none", "old", "1G"],
        ["create", "--force", "-f", "vdi", "-b", "s.raw", "-F", "raw", "old", "1G"],
        ["create", "--force", "-f", "vhd", "old", "100T"],
        ["create", "--force", "-f", "qcow2", "-o", "data_file=/tmp/none/x", "old", "1G"],
        ["convert", "--force", "-O", "raw", "-c", "s.raw", "old"],
        ["convert", "--force", "-O", "qcow2", "-o", "cluster_size=3", "s.raw", "old"],
        ["convert", "--force", "-O", "none", "s.raw", "old"],
    ],
)
@pytest.mark.parametrize("names", [1, 2])
def test_what_is_refused_leaves_the_old_image(words, names, capsys):
    Path("old").write_bytes(b"old")
    if names == 2:
        Path("other").hardlink_to("old")
    assert main(["disk", *words]) not in (0, 70)
    assert Path("old").read_bytes() == b"old"
    assert capsys.readouterr().err


@pytest.mark.parametrize("words", [["create", "-f", "raw", "x", "1M"], ["convert", "s.raw", "x"]])
def test_without_force_nothing_special_is_to_be_removed(words, capsys):
    Path("x").symlink_to("/dev/null")
    assert main(["disk", *words]) == 2
    assert "remove" not in capsys.readouterr().err


def test_actions_that_change_an_image_write_through_links():
    create_disk("base", "qcow2", SIZE)
    create_disk("other", "qcow2", SIZE)
    create_disk("real", "qcow2", backing="base")
    Path("real").chmod(0o640)
    Path("link").symlink_to("real")
    before = Path("real").stat()
    for words in (
        ["resize", "-q", "link", "2M"],
        ["rebase", "-q", "-b", "other", "link"],
        ["snapshot", "-c", "one", "link"],
        ["check", "-q", "-r", "all", "link"],
        ["commit", "-q", "link"],
    ):
        assert main(["disk", *words]) == 0
    after = Path("real").stat()
    assert Path("link").is_symlink()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_parts_of_an_image_keep_their_rights_too():
    Path("d-flat.vmdk").write_bytes(b"old")
    Path("d-flat.vmdk").chmod(0o600)
    Path("d.vmdk").write_bytes(b"old")
    words = ["-o", "subformat=monolithicFlat", "s.raw", "d.vmdk"]
    assert main(["disk", "convert", "-q", "--force", "-f", "raw", "-O", "vmdk", *words]) == 0
    assert stat.S_IMODE(Path("d-flat.vmdk").stat().st_mode) == 0o600
    with open_disk("d.vmdk", "vmdk", read_only=True) as disk:
        assert disk.read(0, SIZE) == DATA


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("a.qcow2", "qcow2", "qcow2"), ("a.QCOW2", "qcow2", "qcow2"), ("a.vmdk", "vmdk", "vmdk"),
        ("a.vdi", "vdi", "vdi"), ("a.vhd", "vhd", "vhd"), ("a.vhdx", "vhdx", "vhdx"),
        ("a.raw", "raw", ""), ("a.img", "raw", ""), ("a", "raw", ""), ("qcow2", "raw", ""),
        ("a.qcow2.bak", "raw", ""), ("a.ova", "raw", "OVA"), ("d.qcow2/a", "raw", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", ["create", "convert", "dd"])
def test_the_suffix_says_the_format(action, name, kind, said, capsys):
    Path("d.qcow2").mkdir()
    words = {
        "create": ["create", name, str(SIZE)],
        "convert": ["convert", "-f", "raw", "s.raw", name],
        "dd": ["dd", "-f", "raw", "if=s.raw", f"of={name}"],
    }[action]
    assert main(["disk", *words]) == 0
    err = capsys.readouterr().err
    assert said in err if said else not err
    with open_disk(name, read_only=True) as disk:
        assert (disk.format, disk.size) == (kind, SIZE)
    if said:
        Path(name).unlink()
        assert main(["disk", *words[:1], "-q", *words[1:]]) == 0
        assert not capsys.readouterr().err


def test_a_format_that_is_given_counts(capsys):
    assert main(["disk", "create", "-f", "raw", "a.qcow2", "1M"]) == 0
    with open_disk("a.qcow2", read_only=True) as disk:
        assert disk.format == "raw"
    assert not capsys.readouterr().err
    assert main(["disk", "create", "--json", "b.vhdx", "1M"]) == 0
    assert '"format": "vhdx"' in capsys.readouterr().out
