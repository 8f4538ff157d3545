"""Appliances as files: what is in them is opened, and hostile archives are refused."""

import gzip
import io
import json
import os
import tarfile

import pytest

from ringzero.cli.main import main
from ringzero.disk import create_disk, open_disk
from ringzero.errors import DiskError, GuestImageError, HostError
from ringzero.image.appliance.opening import disks_of
from ringzero.image.export import appliance
from ringzero.units import MIB
from tests.image.appliance.test_descriptions import OVF, VBOX, VMX

ABOUT = appliance.Appliance("web", 2, 1024 * MIB, 4 * MIB)


def disk(path, kind="vmdk", text=b"content", **options):
    create_disk(path, kind, 4 * MIB, options=options)
    with open_disk(path, kind) as made:
        made.write(0, text.ljust(512, b"\0"))
    return path


def ova(tmp_path, name="web.ova"):
    with (tmp_path / name).open("wb") as file:
        appliance.write_ova(ABOUT, disk(tmp_path / "source.vmdk"), "web", file)
    return tmp_path / name


def contents(path, work):
    with disks_of(path, work) as (about, disks):
        return about, [d.read(0, 512).rstrip(b"\0") for d in disks]


def test_an_ova_as_it_is_exported(tmp_path):
    about, found = contents(ova(tmp_path), tmp_path)
    assert (about.memory, about.cpus, found) == (1024 * MIB, 2, [b"content"])


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox"])
def test_boxes_as_they_are_exported(tmp_path, provider):
    work = tmp_path / "work"
    work.mkdir()
    source = disk(tmp_path / "d", "qcow2" if provider == "libvirt" else "vmdk")
    with (tmp_path / "web.box").open("wb") as file:
        appliance.write_box(provider, ABOUT, source, file)
    assert contents(tmp_path / "web.box", work)[1] == [b"content"]
    assert list(work.iterdir()) == []


def test_descriptions_beside_their_disks(tmp_path):
    (tmp_path / "web.vmx").write_bytes(VMX)
    (tmp_path / "web.vbox").write_bytes(VBOX)
    (tmp_path / "web.ovf").write_bytes(OVF)
    for name in ("data.vmdk", "web.vmdk", "web-1.vmdk"):
        disk(tmp_path / name, text=name.encode())
    disk(tmp_path / "web.vdi", "vdi", b"web.vdi")
    assert contents(tmp_path / "web.vmx", tmp_path)[1] == [b"data.vmdk", b"web.vmdk"]
    assert contents(tmp_path / "web.vbox", tmp_path)[1] == [b"web.vdi"]
    assert contents(tmp_path / "web.ovf", tmp_path)[1] == [b"web-1.vmdk"]
    # A disk image by itself is one, too.
    assert contents(tmp_path / "web.vdi", tmp_path)[1] == [b"web.vdi"]


def test_links_do_not_lead_out(tmp_path):
    (tmp_path / "in").mkdir()
    disk(tmp_path / "web.vdi", "vdi")
    (tmp_path / "in/web.vdi").symlink_to("../web.vdi")
    (tmp_path / "in/web.vbox").write_bytes(VBOX)
    with pytest.raises(GuestImageError, match="leads out"):
        contents(tmp_path / "in/web.vbox", tmp_path)
    (tmp_path / "in/a.ovf").symlink_to("/etc/passwd")
    with pytest.raises(HostError):
        contents(tmp_path / "in/a.ovf", tmp_path)


def member(name, data=b"", **more):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


METADATA = member("metadata.json", json.dumps({"provider": "libvirt"}).encode())


def box(tmp_path, *members):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "a.box").write_bytes(made.getvalue())
    return tmp_path / "a.box"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([METADATA, member("box.img", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "no plain"),
        ([METADATA, member("box.img", type=tarfile.LNKTYPE, linkname="x")], "no plain"),
        ([METADATA, member("box.img", type=tarfile.CHRTYPE)], "no plain"),
        ([METADATA, member("..")], "no plain"),
        ([METADATA], "without a disk"),
        ([member("box.img", b"x")], "no metadata"),
        ([METADATA, member("big.img", bytes(2 * MIB))], "more than 1 MiB"),
        ([METADATA, METADATA], "unpack"),
    ],
)
def test_hostile_boxes(tmp_path, monkeypatch, members, said):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "1M")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises((GuestImageError, HostError), match=said):
        contents(box(tmp_path, *members), work)
    assert list(work.iterdir()) == []


def test_names_of_folders_are_passed_over(tmp_path):
    source = disk(tmp_path / "d", "qcow2").read_bytes()
    path = box(
        tmp_path, METADATA, member("../escaped", b"x"), member("/etc/escaped", b"x"),
        member("box.img", source),
    )  # fmt: skip
    work = tmp_path / "work"
    work.mkdir()
    assert contents(path, work)[1] == [b"content"]
    assert not (tmp_path / "escaped").exists() and not (work / "escaped").exists()


def test_damaged_archives(tmp_path):
    whole = box(tmp_path, METADATA, member("box.img", b"x" * 5000)).read_bytes()
    for data in (whole[:60], gzip.compress(b"no tar"), b"\x1f\x8b", whole[: len(whole) // 2]):
        (tmp_path / "b.box").write_bytes(data)
        with pytest.raises((GuestImageError, DiskError)):
            contents(tmp_path / "b.box", tmp_path)
    cut = ova(tmp_path).read_bytes()[:3000]
    (tmp_path / "cut.ova").write_bytes(cut)
    with pytest.raises((GuestImageError, DiskError)):
        contents(tmp_path / "cut.ova", tmp_path)
    with pytest.raises(HostError):
        contents(tmp_path / "missing.ova", tmp_path)


@pytest.mark.parametrize("suffix", ["ova", "box"])
@pytest.mark.parametrize("data", [b"", b"junk" * 2000, b"QFI\xfb" + bytes(2000)])
def test_what_is_none_but_by_its_name(tmp_path, suffix, data):
    """It is no disk with that content, either."""
    (tmp_path / f"web.{suffix}").write_bytes(data)
    with pytest.raises(GuestImageError, match=f"is no {suffix}"):
        contents(tmp_path / f"web.{suffix}", tmp_path)


@pytest.mark.parametrize("name", ["web.ova", "web.vmx", "web.img"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(GuestImageError, match="neither a file"):
        contents(tmp_path / name, tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(GuestImageError, match="neither a file"):
        contents(tmp_path / name, tmp_path)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ova(tmp_path)
    assert main(["disk", "import", "web.ova", "-q"]) == 0
    assert main(["disk", "import", "web.ova"]) == 2
    assert "web.qcow2 exists" in capsys.readouterr().err
    assert main(["disk", "import", "web.ova", "--force"]) == 0
    out = capsys.readouterr().out
    assert out == "ringzero run --disk web.qcow2 --memory 1024M --cpus 2\n"
    with open_disk(tmp_path / "web.qcow2", read_only=True) as made:
        assert (made.format, made.read(0, 7)) == ("qcow2", b"content")
    assert main(["disk", "import", "web.ova", "new.img", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"disks": ["new.img"], "memory": 1024 * MIB, "cpus": 2}
    assert main(["disk", "import", "web.ova", "none/a.qcow2"]) == 2
    assert main(["disk", "import", "missing.ova"]) == 3


def test_several_disks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.vmx").write_bytes(VMX)
    for name in ("data.vmdk", "web.vmdk"):
        disk(tmp_path / name, text=name.encode())
    assert main(["disk", "import", "web.vmx", "out.raw"]) == 0
    assert "--disk out.raw,format=raw --disk out-2.raw,format=raw" in capsys.readouterr().out
    assert (tmp_path / "out-2.raw").read_bytes()[:8] == b"web.vmdk"
