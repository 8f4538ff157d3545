"""KERNEL and DISK: what machines of an image boot and have of their own, in a guest."""

import json
from pathlib import Path

import pytest

from ringzero import Machine
from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.cli.main import main
from ringzero.control.host.directory import MachineDirectory
from ringzero.errors import ConfigError, GuestImageError, InvalidValueError, MissingFileError
from ringzero.image import cpio, micro
from ringzero.image.oci import boot
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import save
from ringzero.image.oci.reference import parse as parse_name
from ringzero.image.oci.reference import parse_reference
from tests.build.test_services import Quiet


@pytest.fixture
def place(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RINGZERO_TEMPLATES", "0")
    place = tmp_path / "context"
    place.mkdir()
    return place


def built(text, place, cache, name="own:1"):
    options = Options(names=(parse_reference(name),))
    return build(parse(text), Context(place), options, cache=cache, listener=Quiet())


def with_modules(place):
    """Put the default guest's kernel into a directory, with its modules but for 9P's."""
    files = micro.ensure()
    (place / "vmlinuz").write_bytes(files.kernel.read_bytes())
    for entry in cpio.read(files.initrd.read_bytes()):
        module = entry.name.startswith("usr/lib/modules/") and ".ko" in entry.name
        if module and "9p" not in entry.name:
            path = place / entry.name.removeprefix("usr/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.data)


MODULES = "find /run/ringzero/tools/usr/lib/modules -name '*.ko'"


@pytest.mark.boot
def test_a_kernel_of_the_images_own_boots(cache, place, tmp_path, capfd):
    with_modules(place)
    text = """\
FROM micro
COPY lib /usr/lib/
COPY vmlinuz /boot/vmlinuz-9
RUN ln -s vmlinuz-9 /boot/current
KERNEL /boot/cur*
"""
    image = built(text, place, cache)
    assert image.machine.plain() == {"Kernel": "/boot/vmlinuz-9"}
    files = boot.find("own:1")
    assert files.kernel.parent == files.initrd.parent == image.root.parent
    assert main(["run", "own:1", "--", "sh", "-c", MODULES]) == 0
    out = capfd.readouterr().out
    assert "erofs.ko" in out
    assert "9p" not in out
    # It goes where the image goes.
    save(image, tmp_path / "layout", "own:1", cache=cache)
    there = pull(parse_name(f"oci:{tmp_path / 'layout'}"), cache=tmp_path / "elsewhere")
    assert (there.digest, there.machine) == (image.digest, image.machine)
    # One of the build's directory comes into the image; a build on top of it has it, too.
    image = built("FROM own:1\nKERNEL vmlinuz\nRUN uname -r >/release\n", place, cache, "own:2")
    assert image.machine.kernel == "/boot/vmlinuz"
    again = built("FROM own:1\nKERNEL vmlinuz\nRUN uname -r >/release\n", place, cache, "own:2")
    assert again.digest == image.digest


@pytest.mark.parametrize(
    ("line", "error", "told"),
    [
        ("KERNEL /boot/none", MissingFileError, "no /boot/none in the image so far"),
        ("KERNEL /boot/*", InvalidValueError, "several files: /boot/a, /boot/b"),
        ("KERNEL /boot/a", GuestImageError, "/boot/a: "),
        ("KERNEL /boot", InvalidValueError, "/boot is no kernel's file"),
        ("KERNEL none", MissingFileError, "'none' is 0 files"),
        ("KERNEL a", GuestImageError, "/boot/a: "),
        ("DISK 1G /", GuestImageError, "cannot be at '/'"),
        ("DISK 1G '/a b'", GuestImageError, "cannot be at"),
        ("DISK 1G /a\nSNAPSHOT", ConfigError, "SNAPSHOT and DISK"),
        ("\n".join(f"DISK 1G /{n}" for n in range(9)), GuestImageError, "8 disks at most"),
    ],
)
def test_what_is_wrong_is_told(cache, place, line, error, told):
    (place / "a").write_text("no kernel")
    text = f"FROM scratch\nCOPY a /boot/a\nCOPY a /boot/b\n{line}\n"
    with pytest.raises(error, match=told):
        built(text, place, cache)


DISKS = """\
FROM micro
RUN mkdir -p /srv/data && chown nobody /srv/data && chmod 700 /srv/data
WORKDIR /srv
DISK 64M data
DISK 16M /other
"""


def disks(tmp_path):
    return list((tmp_path / "data/disks").glob("*"))


@pytest.mark.boot
def test_each_machine_has_its_disks(cache, place, tmp_path, capfd):
    image = built(DISKS, place, cache)
    assert image.machine.plain()["Disks"] == [
        {"Size": 64 << 20, "Path": "/srv/data", "Format": "ext4"},
        {"Size": 16 << 20, "Path": "/other", "Format": "ext4"},
    ]
    command = "ls -A /srv/data; stat -c %U:%a /srv/data; grep -c /dev/vd /proc/mounts"
    for _ in range(2):
        # New each time, whosever the directory is.
        assert main(["run", "own:1", "--", "sh", "-c", f"{command}; echo x >/srv/data/x"]) == 0
        assert capfd.readouterr().out.split() == ["lost+found", "nobody:700", "3"]
    assert disks(tmp_path) == []
    assert main(["run", "-d", "--name", "d1", "own:1", "--", "sleep", "1000"]) == 0
    try:
        assert main(["exec", "d1", "--", "sh", "-c", "echo kept >/srv/data/f"]) == 0
        assert main(["stop", "d1"]) == 0
        assert len(disks(tmp_path)) == 2
        assert main(["start", "d1"]) == 0
        capfd.readouterr()
        assert main(["exec", "d1", "--", "cat", "/srv/data/f"]) == 0
        assert capfd.readouterr().out == "kept\n"
    finally:
        if MachineDirectory(tmp_path / "machines" / "d1").alive:
            main(["kill", "d1"])
    assert main(["rm", "d1"]) == 0
    assert disks(tmp_path) == []


@pytest.mark.boot
def test_copies_and_snapshots_have_disks_as_they_were(cache, place, tmp_path, capfd):
    built(DISKS, place, cache)

    def call(*words):
        capfd.readouterr()
        code = main(list(words))
        told = capfd.readouterr()
        assert code == 0, told.err
        return told.out

    def holds(name):
        # From the disk, not from what the guest still knows of it.
        script = "sync; echo 3 >/proc/sys/vm/drop_caches; cat /srv/data/f"
        return call("exec", name, "--", "sh", "-c", script)

    def write(name, word):
        call("exec", name, "--", "sh", "-c", f"echo {word} >/srv/data/f")

    names = ["d1", "d1-1", "d2"]
    try:
        call("run", "-d", "--name", "d1", "own:1", "--", "sleep", "1000")
        write("d1", "saved")
        call("snapshot", "save", "d1", "s1")
        write("d1", "later")
        call("fork", "d1")
        write("d1-1", "copy")
        assert (holds("d1"), holds("d1-1")) == ("later\n", "copy\n")
        call("snapshot", "restore", "s1", "--name", "d2")
        assert holds("d2") == "saved\n"
        call("snapshot", "revert", "d1", "s1")
        assert holds("d1") == "saved\n"
        write("d2", "other")
        # The one whose files they are goes; the others have theirs.
        call("rm", "-f", "d1")
        assert (holds("d1-1"), holds("d2")) == ("copy\n", "other\n")
        call("snapshot", "check", "s1")
        call("rm", "-f", "d1-1", "d2")
        call("snapshot", "restore", "s1", "--name", "d2")
        assert holds("d2") == "saved\n"
    finally:
        for name in names:
            if MachineDirectory(tmp_path / "machines" / name).path.exists():
                main(["rm", "-f", name])
    call("snapshot", "rm", "s1")
    assert disks(tmp_path) == []


@pytest.mark.boot
def test_machines_of_python_have_them_too(cache, place, tmp_path):
    built(DISKS, place, cache)
    with Machine(image="own:1") as machine:
        assert disks(tmp_path) == []
        assert machine.run(["--", "df", "/srv/data", "/other"]).stdout.count(b"/dev/vd") == 2


@pytest.mark.boot
def test_a_disk_that_is_damaged_is_told(cache, place, tmp_path, capfd):
    built(DISKS, place, cache)
    assert main(["create", "--name", "d2", "own:1", "--", "sleep", "1000"]) == 0
    for path in disks(tmp_path):
        Path(path).write_bytes(bytes(path.stat().st_size))
    assert main(["start", "d2"]) != 0
    assert "the disk at /srv/data cannot be mounted" in capfd.readouterr().err
    assert main(["rm", "--force", "d2"]) == 0
    record = json.dumps(sorted(map(str, disks(tmp_path))))
    assert record == "[]"
