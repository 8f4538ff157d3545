"""The door: what is made opens, chains that were moved open, and nothing else opens with them."""

from __future__ import annotations

import os
import shutil
import struct

import pytest

from ringzero.disk import create_disk, open_as_backing, open_disk
from ringzero.disk.formatnames import qemu_format_name
from ringzero.disk.formats.vhd.structures import Footer, Header, checksum
from ringzero.disk.formats.vhdx.structures import METADATA, Metadata
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskUnsupportedError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)

MIB = 1 << 20
SIZE = 4 * MIB
PARENTED = ["vhd", "vhdx", "vdi", "vmdk"]
OVERLAYS = ["qcow2", *PARENTED]
every_overlay = pytest.mark.parametrize("kind", OVERLAYS)
every_parented = pytest.mark.parametrize("kind", PARENTED)

NAMES = [
    "a:b", "2024-01-01T10:00:00", "C:x", " lead", "trail ", "tab\tx", "per%20cent", "ha#sh", "üñí",
    "虚拟机", "x\udcffy", "a,b", "~t", "$x", "...", "..x", "-dash", 'q"uote', "new\nline",
    "back\\slash", "nbd:x", "file:x", "json:{}", "x" * 200, "\u2028", "host_device:sda",
]  # fmt: skip


def fill(path, data=b"below"):
    with open_disk(path, sync=False) as disk:
        disk.write(0, data)


# ---- what is made opens ---------------------------------------------------


@every_overlay
@pytest.mark.parametrize("how", ["bare", "with a dot", "absolute"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_an_overlay_that_is_made_opens(kind, how, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_disk(f"./{name}", kind, SIZE, sync=False)
    fill(f"./{name}")
    given = {"bare": name, "with a dot": f"./{name}", "absolute": str(tmp_path / name)}[how]
    try:
        create_disk("top.image", kind, backing=given, sync=False)
    except RingzeroError as fault:
        # Refused in words, and nothing stays behind.
        assert fault.hint or fault.message
        assert sorted(os.listdir()) == [name]
        assert how == "bare" or len(name) > 100 or any(letter in name for letter in '"\n\t\\')
        return
    with open_disk("top.image") as disk:
        assert disk.read(0, 5) == b"below"
        assert disk.backing.path.name == name
        disk.write(0, b"above")


@pytest.mark.parametrize("how", ["bare", "with a dot", "absolute"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_data_file_that_is_made_opens(name, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"bare": name, "with a dot": f"./{name}", "absolute": str(tmp_path / name)}[how]
    try:
        create_disk("top.image", "qcow2", SIZE, options={"data_file": given}, sync=False)
    except RingzeroError:
        assert how == "bare"
        assert os.listdir() == []
        return
    fill("top.image")
    assert len(os.listdir()) == 2


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_extents_that_are_made_open(name, subformat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        create_disk(f"./{name}", "vmdk", SIZE, options={"subformat": subformat}, sync=False)
    except InvalidValueError:
        assert any(letter in name for letter in '"\n\t')
        assert os.listdir() == []
        return
    fill(f"./{name}")
    assert len(os.listdir()) == 2


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
@pytest.mark.parametrize("name", ["a:b", "x\udcffy", "虚拟机", "per%20cent", "a,b"], ids=ascii)
def test_qemu_opens_them_too(kind, name, tmp_path, qemu_img, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_disk(f"./{name}", kind, SIZE)
    create_disk("top", kind, backing=name)
    qemu_img("info", "--backing-chain", "top")


def test_a_raw_base_elsewhere_is_refused_when_the_overlay_is_made(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "machines").mkdir()
    (tmp_path / "images" / "base.img").write_bytes(bytes(MIB))
    top, base = tmp_path / "machines" / "top", tmp_path / "images" / "base.img"
    for name in (base, "../images/base.img"):
        with pytest.raises(DiskError, match="outside its directory") as caught:
            create_disk(top, "qcow2", backing=name, backing_format="raw")
        assert "RINGZERO_BACKING_DIRS" in caught.value.hint
        assert not top.exists()
    create_disk(top, "qcow2", backing=base, backing_format="raw", backing_roots=[base.parent])
    with pytest.raises(DiskError):
        open_disk(top)
    open_disk(top, backing_roots=[base.parent]).close()
    top.unlink()
    monkeypatch.setenv("RINGZERO_BACKING_DIRS", str(base.parent))
    create_disk(top, "qcow2", backing=base, backing_format="raw")
    open_disk(top).close()


@every_overlay
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_base_of_somebody_else_elsewhere_is_refused(kind, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    base, top = tmp_path / "theirs" / "base", tmp_path / "ours" / "top"
    create_disk(base, kind, SIZE)
    create_disk(top, kind, backing=base)
    top.unlink()
    os.chown(base, 12345, 12345)
    with pytest.raises(DiskError, match="somebody else"):
        create_disk(top, kind, backing=base)
    assert not top.exists()


@every_overlay
def test_an_image_is_not_made_over_itself(kind, tmp_path):
    path = tmp_path / "disk"
    create_disk(path, kind, SIZE)
    fill(path)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to("disk")
    for name in ("disk", "./disk", path, "link"):
        with pytest.raises(DiskFormatError, match="layers above"):
            create_disk(path, kind, backing=name, overwrite=True)
    assert path.read_bytes() == before


@every_overlay
def test_a_base_that_is_not_there(kind, tmp_path):
    with pytest.raises(NotFoundError, match="no file gone"):
        create_disk(tmp_path / "top", kind, backing="gone")
    assert os.listdir(tmp_path) == []


def test_a_chain_is_not_made_longer_than_it_opens(tmp_path, monkeypatch):
    monkeypatch.setattr("ringzero.disk.opening.MAX_DEPTH", 5)
    create_disk(tmp_path / "0", "qcow2", MIB)
    for number in range(1, 20):
        try:
            create_disk(tmp_path / f"{number}", "qcow2", backing=f"{number - 1}")
        except DiskFormatError:
            break
        open_disk(tmp_path / f"{number}").close()
    else:
        pytest.fail("no end")
    assert number == 6


def test_devices_as_bases_are_refused_when_the_overlay_is_made(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "/dev/zero", "/proc/self/environ"):
        with pytest.raises(DiskError, match="special"):
            create_disk(tmp_path / "top", "qcow2", MIB, backing=name, backing_format="raw")


def test_the_base_as_a_tree(tmp_path):
    (tmp_path / "base").write_bytes(bytes(MIB) + b"there".ljust(MIB, b"\0"))
    name = 'json:{"driver":"raw","offset":1048576,"file":{"driver":"file","filename":"%s"}}' % (
        tmp_path / "base"
    )
    create_disk(tmp_path / "top", "qcow2", backing=name)
    with open_disk(tmp_path / "top") as disk:
        assert disk.size == MIB
        assert disk.read(0, 5) == b"there"


def test_other_programs_names_of_formats(tmp_path):
    create_disk(tmp_path / "disk", "VPC", MIB)
    with open_disk(tmp_path / "disk", "vpc") as disk:
        assert disk.format == "vhd"


def test_rebasing_asks_the_same(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "raw").write_bytes(bytes(MIB))
    create_disk(tmp_path / "a" / "top", "qcow2", MIB)
    with pytest.raises(DiskError, match="outside"):
        open_as_backing(tmp_path / "a" / "top", "../b/raw")
    with pytest.raises(DiskUnsupportedError, match="protocol"):
        open_as_backing(tmp_path / "a" / "top", "nbd:x")
    with pytest.raises(DiskFormatError, match="above"):
        open_as_backing(tmp_path / "a" / "top", "top")
    open_as_backing(tmp_path / "a" / "top", "../b/raw", backing_roots=[tmp_path / "b"]).close()


# ---- chains that were moved -----------------------------------------------


def chain(directory, kind, *, absolute):
    """Make base, middle and top in `directory`; each names the one below."""
    directory.mkdir(parents=True, exist_ok=True)
    create_disk(directory / "base", kind, SIZE)
    fill(directory / "base", b"base!")
    for name, below in (("middle", "base"), ("top", "middle")):
        create_disk(directory / name, kind, backing=directory / below if absolute else below)


@every_parented
@pytest.mark.parametrize("absolute", [True, False])
def test_a_chain_that_was_moved(kind, absolute, tmp_path):
    chain(tmp_path / "old", kind, absolute=absolute)
    (tmp_path / "old").rename(tmp_path / "new")
    with open_disk(tmp_path / "new" / "top") as disk:
        assert disk.read(0, 5) == b"base!"
        assert [layer.path.parent.name for layer in disk.chain()] == ["new"] * 3


@every_parented
@pytest.mark.parametrize("absolute", [True, False])
def test_a_chain_that_was_copied_reads_the_copy(kind, absolute, tmp_path):
    chain(tmp_path / "old", kind, absolute=absolute)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    with open_disk(tmp_path / "new" / "top", read_only=True) as disk:
        paths = [layer.path.resolve().parent.name for layer in disk.chain()]
    # VMDK and VDI have one name, which is absolute when that was given.
    expected = "old" if absolute and kind in ("vmdk", "vdi") else "new"
    assert paths == ["new", expected, expected]


@pytest.mark.parametrize("kind", ["vhd", "vhdx"])
def test_a_child_that_was_moved_alone(kind, tmp_path):
    chain(tmp_path / "old", kind, absolute=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "middle").rename(tmp_path / "new" / "middle")
    with open_disk(tmp_path / "new" / "middle", read_only=True) as disk:
        assert disk.read(0, 5) == b"base!"
        assert disk.backing.path == tmp_path / "old" / "base"


@every_parented
def test_another_disk_at_the_old_place_is_passed_over(kind, tmp_path):
    chain(tmp_path / "old", kind, absolute=True)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").mkdir()
    create_disk(tmp_path / "old" / "base", kind, SIZE)
    create_disk(tmp_path / "old" / "middle", kind, SIZE)
    with open_disk(tmp_path / "new" / "top", read_only=True) as disk:
        assert disk.read(0, 5) == b"base!"
        assert [layer.path.parent.name for layer in disk.chain()] == ["new"] * 3


@every_parented
def test_no_disk_of_that_name_is_the_parent(kind, tmp_path):
    chain(tmp_path / "old", kind, absolute=False)
    create_disk(tmp_path / "other", kind, SIZE)
    shutil.copy(tmp_path / "other", tmp_path / "old" / "middle")
    with pytest.raises(DiskFormatError, match="another image") as caught:
        open_disk(tmp_path / "old" / "top", read_only=True)
    assert "rebase -u" in caught.value.hint
    (tmp_path / "old" / "middle").write_bytes(b"no disk image")
    with pytest.raises((DiskFormatError, DiskUnsupportedError)):
        open_disk(tmp_path / "old" / "top", read_only=True)


@every_parented
def test_the_parent_said_by_the_user(kind, tmp_path, monkeypatch):
    chain(tmp_path / "old", kind, absolute=False)
    (tmp_path / "far").mkdir()
    (tmp_path / "old" / "base").rename(tmp_path / "far" / "renamed")
    middle = tmp_path / "old" / "middle"
    with pytest.raises(NotFoundError) as caught:
        open_disk(middle, read_only=True)
    assert "--open parent=FILE" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    for name in ("../far/renamed", str(tmp_path / "far" / "renamed"), "far/renamed"):
        with open_disk(middle, read_only=True, options={"parent": name}) as disk:
            assert disk.read(0, 5) == b"base!"


@every_parented
def test_linked_again_by_the_same_name(kind, tmp_path):
    """As commit does: the parent has been written to, its names stay as they were."""
    chain(tmp_path / "old", kind, absolute=True)
    with open_disk(tmp_path / "old" / "middle", backing=False) as disk:
        disk.change_backing(disk.backing_name, kind)
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "middle").rename(tmp_path / "new" / "middle")
    if kind in ("vhd", "vhdx"):
        open_disk(tmp_path / "new" / "middle", read_only=True).close()


@every_parented
def test_linked_by_way_of_a_directory_that_is_a_link(kind, tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "short").symlink_to("real/deep")
    create_disk(tmp_path / "base", kind, SIZE)
    fill(tmp_path / "base")
    create_disk(tmp_path / "short" / "top", kind, backing=tmp_path / "base")
    (tmp_path / "moved").mkdir()
    with open_disk(tmp_path / "real" / "deep" / "top") as disk:
        assert disk.read(0, 5) == b"below"


# ---- VHDX parents by Windows' names ---------------------------------------

LOCATORS = {
    "relative": {"relative_path": ".\\base"},
    "relative, up": {"relative_path": "..\\vms\\base"},
    "relative, ended": {"relative_path": ".\\base\0"},
    "absolute": {"absolute_win32_path": "C:\\VMs\\base"},
    "long absolute": {"absolute_win32_path": "\\\\?\\C:\\VMs\\base"},
    "share": {"absolute_win32_path": "\\\\nas\\vms\\base"},
    "volume": {"volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\VMs\\base"},
    "stale relative": {"relative_path": ".\\gone", "absolute_win32_path": "D:\\base"},
    "Linux": {"absolute_win32_path": "/srv/vms/base"},
}


@pytest.mark.parametrize("name", LOCATORS)
def test_vhdx_parents_by_names_of_windows(name, tmp_path):
    create_disk(tmp_path / "base", "vhdx", SIZE)
    fill(tmp_path / "base")
    create_disk(tmp_path / "top", "vhdx", backing="base")
    with open_disk(tmp_path / "top", backing=False) as disk:
        region = disk._regions[METADATA]
        metadata = Metadata.read(disk.storage, region)
        linkage = metadata.locator["parent_linkage"]
        metadata.locator = {"parent_linkage": linkage, **LOCATORS[name]}
        disk.storage.write(region.offset, metadata.to_bytes())
    with open_disk(tmp_path / "top") as disk:
        assert disk.read(0, 5) == b"below"
        disk.write(MIB, b"above")
    with open_disk(tmp_path / "top", read_only=True) as disk:
        assert disk.read(MIB, 5) == b"above"


# ---- VHD parents by Windows' names ----------------------------------------


def rewrite_vhd(path, locators, name=""):
    """Give a differencing VHD other locators, (code, bytes), and another name in its header."""
    data = bytearray(path.read_bytes())
    footer = bytes(data[-512:])
    del data[-512:]
    header = bytearray(data[512:1536])
    header[64:576] = name.encode("utf-16-be")[:512].ljust(512, b"\0")
    header[576:768] = bytes(192)
    for number, (code, text) in enumerate(locators):
        struct.pack_into(">4sIIIQ", header, 576 + 24 * number, code, 512, len(text), 0, len(data))
        data += text.ljust(512, b"\0")
    struct.pack_into(">I", header, 36, checksum(bytes(header), 36))
    data[512:1536] = header
    path.write_bytes(data + footer)


def wide(text):
    return text.encode("utf-16-le")


WINDOWS = {
    "relative": ([(b"W2ru", wide(".\\base.vhd"))], ""),
    "relative, up": ([(b"W2ru", wide("..\\vms\\base.vhd"))], ""),
    "relative, ended": ([(b"W2ru", wide(".\\base.vhd\0"))], ""),
    "relative, big-endian": ([(b"W2ru", ".\\base.vhd".encode("utf-16-be"))], ""),
    "absolute": ([(b"W2ku", wide("C:\\VMs\\base.vhd"))], ""),
    "share": ([(b"W2ku", wide("\\\\nas\\vms\\base.vhd"))], ""),
    "old relative": ([(b"Wi2r", b".\\base.vhd")], ""),
    "old absolute": ([(b"Wi2k", b"C:\\VMs\\base.vhd\0")], ""),
    "Mac": ([(b"MacX", b"file://localhost/Users/me/base.vhd")], ""),
    "Mac, no host": ([(b"MacX", b"file:///Users/me/b%61se.vhd")], ""),
    "in the header": ([], "base.vhd"),
    "in the header, absolute": ([], "C:\\Users\\me\\Documents\\base.vhd"),
    "in the header, relative": ([], "..\\other\\base.vhd"),
    "in the header, Linux": ([], "/srv/vms/base.vhd"),
    "stale locators": (
        [(b"W2ru", wide(".\\old.vhd")), (b"W2ku", wide("D:\\old\\old.vhd"))], "C:\\base.vhd",
    ),
    "locators of nothing": ([(b"W2ru", b""), (b"Mac ", b"alias")], "base.vhd"),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_vhd_parents_by_names_of_windows(name, tmp_path):
    create_disk(tmp_path / "base.vhd", "vhd", SIZE)
    fill(tmp_path / "base.vhd")
    create_disk(tmp_path / "top.vhd", "vhd", backing="base.vhd")
    rewrite_vhd(tmp_path / "top.vhd", *WINDOWS[name])
    with open_disk(tmp_path / "top.vhd") as disk:
        assert disk.read(0, 5) == b"below"
        disk.write(8192, b"above")
    with open_disk(tmp_path / "top.vhd") as disk:
        assert disk.read(8192, 5) == b"above"
        assert disk.check().errors == 0


def test_vhd_without_any_name(tmp_path):
    create_disk(tmp_path / "base.vhd", "vhd", SIZE)
    create_disk(tmp_path / "top.vhd", "vhd", backing="base.vhd")
    rewrite_vhd(tmp_path / "top.vhd", [(b"W2ru", b"")])
    with pytest.raises(DiskFormatError, match="does not say where"):
        open_disk(tmp_path / "top.vhd", read_only=True)
    open_disk(tmp_path / "top.vhd", read_only=True, options={"parent": "base.vhd"}).close()
    rewrite_vhd(tmp_path / "top.vhd", [(b"W2ru", wide(".\\base") + b"\0\xd8")])
    with pytest.raises(DiskFormatError):
        open_disk(tmp_path / "top.vhd", read_only=True)


@pytest.mark.parametrize("grown", [False, True])
def test_vhd_linked_again_never_over_its_data(grown, tmp_path):
    """Where the block table has moved, what lies before it is data."""
    create_disk(tmp_path / "base.vhd", "vhd", 64 * MIB)
    create_disk(tmp_path / "other-name.vhd", "vhd", 64 * MIB)
    options = {"block_size": "512K"}
    create_disk(tmp_path / "top.vhd", "vhd", backing="base.vhd", options=options)
    data = os.urandom(MIB)
    with open_disk(tmp_path / "top.vhd") as disk:
        disk.write(0, data)
        if grown:
            disk.resize(1 << 30)
            disk.write(MIB, data)
        for name in ("other-name.vhd", "base.vhd", str(tmp_path / "other-name.vhd"), "./base.vhd"):
            disk.change_backing(name, "vhd")
            disk.write(2 * MIB, data)
    with open_disk(tmp_path / "top.vhd") as disk:
        assert disk.read(0, MIB) == data
        assert disk.read(2 * MIB, MIB) == data
        assert disk.backing.path.name == "base.vhd"
        assert disk.check().errors == 0


def test_vhd_of_another_writer_is_linked_again(tmp_path):
    """Locators elsewhere, too short for the new name, or none at all."""
    for locators, in_header in WINDOWS.values():
        for path in tmp_path.iterdir():
            path.unlink()
        create_disk(tmp_path / "base.vhd", "vhd", SIZE)
        fill(tmp_path / "base.vhd")
        create_disk(tmp_path / "top.vhd", "vhd", backing="base.vhd")
        rewrite_vhd(tmp_path / "top.vhd", locators, in_header)
        long = "n" * 200 + ".vhd"
        (tmp_path / "base.vhd").rename(tmp_path / long)
        with open_disk(tmp_path / "top.vhd", backing=False) as disk:
            disk.write(2 * MIB, b"above")
            disk.change_backing(str(tmp_path / long), "vhd")
        with open_disk(tmp_path / "top.vhd") as disk:
            assert disk.read(0, 5) == b"below"
            assert disk.read(2 * MIB, 5) == b"above"
            assert disk.check().clean


def test_vhd_structures_of_parents_as_specified(tmp_path):
    create_disk(tmp_path / "base.vhd", "vhd", SIZE)
    create_disk(tmp_path / "top.vhd", "vhd", backing=tmp_path / "base.vhd")
    data = (tmp_path / "top.vhd").read_bytes()
    footer = Footer.parse(data[-512:], "top")
    assert footer.header_offset == 512
    code, _, length, _, at = struct.unpack_from(">4sIIIQ", data, 512 + 576)
    assert (code, data[at : at + length].decode("utf-16-le")) == (b"W2ru", ".\\base.vhd")
    code, _, length, _, at = struct.unpack_from(">4sIIIQ", data, 512 + 600)
    assert code == b"MacX"
    assert data[at : at + length].decode() == f"file://localhost{tmp_path}/base.vhd"
    assert Header.__dataclass_fields__["parent_name"].default == ""


# ---- chains that were moved with absolute names ---------------------------


def moved_chain(old, new):
    """Make a chain of three in `old`, with absolute names, and move it to `new`."""
    old.mkdir()
    create_disk(old / "base.qcow2", "qcow2", MIB)
    with open_disk(old / "base.qcow2") as disk:
        disk.write(0, b"B" * 4096)
    for below, name in (("base.qcow2", "middle.qcow2"), ("middle.qcow2", "top.qcow2")):
        create_disk(old / name, "qcow2", backing=str(old / below), backing_format="qcow2")
    old.rename(new)


def test_a_moved_chain_is_found_beside_the_image_and_said(tmp_path):
    moved_chain(tmp_path / "old", tmp_path / "new")
    told = []
    with open_disk(tmp_path / "new/top.qcow2", read_only=True, tell=told.append) as disk:
        assert disk.read(0, 4096) == b"B" * 4096
        assert [layer.path.name for layer in disk.chain()] == [
            "top.qcow2",
            "middle.qcow2",
            "base.qcow2",
        ]
    assert len(told) == 2
    assert str(tmp_path / "old/middle.qcow2") in told[0]
    assert str(tmp_path / "new/middle.qcow2") in told[0]
    with pytest.warns(UserWarning, match="does not exist"):
        open_disk(tmp_path / "new/top.qcow2", read_only=True).close()


def test_where_the_named_file_is_there_it_is_taken(tmp_path):
    moved_chain(tmp_path / "old", tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    told = []
    with open_disk(tmp_path / "new/top.qcow2", read_only=True, tell=told.append) as disk:
        assert disk.backing.path.parent.name == "old"
    # Its own backing file is gone: that is no reason to take the one beside the top.
    (tmp_path / "old/base.qcow2").unlink()
    with pytest.raises(NotFoundError, match="base"):
        open_disk(tmp_path / "new/top.qcow2", read_only=True, tell=told.append)
    assert told == []


@pytest.mark.parametrize("name", ["sub/base.qcow2", "base.qcow2.gone", "/nowhere/top.qcow2"])
def test_what_is_no_moved_file_is_not_found(tmp_path, name):
    moved_chain(tmp_path / "old", tmp_path / "new")
    with open_disk(tmp_path / "new/top.qcow2", backing=False) as disk:
        disk.change_backing(name, "qcow2")
    with pytest.raises(NotFoundError, match="does not exist"):
        open_disk(tmp_path / "new/top.qcow2", read_only=True)


def test_a_device_beside_is_not_taken(tmp_path):
    moved_chain(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new/middle.qcow2").unlink()
    (tmp_path / "new/middle.qcow2").symlink_to("/dev/zero")
    with pytest.raises(NotFoundError):
        open_disk(tmp_path / "new/top.qcow2", read_only=True)


@pytest.mark.parametrize("name", ["C:\\vm\\base.qcow2", "\\\\server\\share\\base.qcow2"])
def test_names_of_windows(tmp_path, name):
    moved_chain(tmp_path / "old", tmp_path / "new")
    path = tmp_path / "new/top.qcow2"
    # As QEMU writes them there: what is written here is no protocol anywhere.
    with path.open("r+b") as file:
        at, _ = struct.unpack_from(">QI", file.read(20), 8)
        file.seek(at)
        file.write(name.encode())
        file.seek(16)
        file.write(struct.pack(">I", len(name)))
    with open_disk(path, read_only=True, tell=lambda text: None) as disk:
        assert disk.backing.path == tmp_path / "new/base.qcow2"


# ---- overlays that do not say what lies below ------------------------------


def overlay_without_format(directory, kind):
    """Make an overlay as others leave it: its backing file is named, its format is not."""
    create_disk(directory / "base", kind, MIB)
    create_disk(directory / "top", "qcow2", backing="base", backing_format=kind)
    data = bytearray((directory / "top").read_bytes())
    # The header extension "backing file format name" becomes one that nobody knows.
    at = data.index(struct.pack(">II", 0xE2792ACA, len(qemu_format_name(kind))))
    data[at : at + 4] = b"none"
    (directory / "top").write_bytes(data)
    return directory / "top"


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd"])
def test_a_format_that_is_guessed_is_said(tmp_path, kind):
    top, told = overlay_without_format(tmp_path, kind), []
    with open_disk(top, tell=told.append) as disk:
        assert disk.backing.format == kind
    (text,) = told
    assert f"{top} does not say of which format base is: by its content it is {kind}" in text
    assert f"`ringzero disk rebase -u -F {kind} -b base {top}`" in text
    with open_disk(top, backing=False) as disk:
        disk.change_backing("base", kind)
    with open_disk(top, tell=told.append):
        assert len(told) == 1


@pytest.mark.parametrize("now", [0, 946_684_799, 1 << 40])
@pytest.mark.parametrize("kind", OVERLAYS)
def test_a_host_whose_clock_is_wrong(tmp_path, monkeypatch, kind, now):
    """As one without a battery after its start: images are made, and open."""
    monkeypatch.setattr("time.time", lambda: float(now))
    monkeypatch.setattr("time.time_ns", lambda: now * 10**9)
    create_disk(tmp_path / "base", kind, MIB)
    create_disk(tmp_path / "top", kind, backing="base")
    with open_disk(tmp_path / "top") as disk:
        disk.write(0, b"above")
    with open_disk(tmp_path / "top", read_only=True) as disk:
        assert disk.read(0, 5) == b"above"
