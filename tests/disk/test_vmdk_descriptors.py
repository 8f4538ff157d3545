"""VMDK descriptors as other programs write them: titles, encodings, places, parents."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.formats.vmdk import encodings
from ringzero.disk.formats.vmdk.descriptor import Descriptor, ExtentLine, is_descriptor
from ringzero.errors import (
    DiskError,
    DiskFormatError,
    DiskUnsupportedError,
    InvalidValueError,
    NotFoundError,
)

MIB = 1 << 20


def text(extents, title="# Disk DescriptorFile", parent="", more="", end="\n"):
    lines = [
        title, "version=1", *more.splitlines(), "CID=fffffffe",
        "parentCID=" + ("12345678" if parent else "ffffffff"),
        'createType="monolithicFlat"', parent, "# Extent description", *extents, "#DDB",
        'ddb.adapterType = "ide"', "",
    ]  # fmt: skip
    return end.join(lines)


def flat(tmp_path, name="x-flat.vmdk", data=b"A" * MIB):
    (tmp_path / name).write_bytes(data)
    return f'RW {len(data) // 512} FLAT "{name}" 0'


TITLES = [
    "# Disk DescriptorFile", "# Disk Descriptor File", "#Disk DescriptorFile",
    "#Disk Descriptor File", "#  disk  descriptorfile", "\ufeff# Disk DescriptorFile",
    "\n\n# Disk DescriptorFile", "# VMDK written by a tool", "# one\n\n# two", "",
]  # fmt: skip


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_titles(title, end, tmp_path):
    path = tmp_path / "x.vmdk"
    path.write_bytes(text([flat(tmp_path)], title, end=end).encode())
    with open_disk(path) as disk:
        assert disk.format == "vmdk"
        assert disk.read(0, disk.size) == b"A" * MIB
        disk.write(0, b"changed")
    assert b"CID=fffffffe" not in path.read_bytes().replace(b"parentCID", b"")
    assert (tmp_path / "x-flat.vmdk").read_bytes()[:7] == b"changed"


@pytest.mark.parametrize(
    "head", [b"", b"# a script\necho", b"version=1\nname=x\n", b"# Disk image\n", bytes(512)]
)
def test_no_descriptors(head):
    assert not is_descriptor(head)


# The label, Python's codec that the writer used, and a name.
ENCODED = [
    ("GBK", "gbk", "虚拟机"),
    ("GB2312", "gb2312", "虚拟机"),
    ("GB18030", "gb18030", "虚拟机𠀀"),
    ("windows-936", "gbk", "磁盘"),
    ("Big5", "big5", "虛擬機"),
    ("big5-hkscs", "big5hkscs", "磁碟"),
    ("windows-950", "cp950", "許功蓋"),
    ("Shift_JIS", "shift_jis", "仮想マシン"),
    ("Shift_JIS", "shift_jis", "ソ表能"),
    ("Shift_JIS", "cp932", "①髙"),
    ("Shift_JIS", "shift_jis", "a〜b"),
    ("windows-31j", "cp932", "仮想"),
    ("EUC-JP", "euc_jp", "仮想"),
    ("EUC-KR", "euc_kr", "디스크"),
    ("ks_c_5601-1987", "cp949", "가상"),
    ("windows-949", "cp949", "똠방"),
    ("windows-1250", "cp1250", "Dysk łódź"),
    ("windows-1251", "cp1251", "Сервер"),
    ("windows-1252", "cp1252", "Büro €"),
    ("Cp1252", "cp1252", "Büro"),
    ("windows-1253", "cp1253", "Δίσκος"),
    ("windows-1254", "cp1254", "İğş"),
    ("windows-1255", "cp1255", "דיסק"),
    ("windows-1256", "cp1256", "قرص"),
    ("windows-1257", "cp1257", "ąčęė"),
    ("windows-1258", "cp1258", "Đông"),
    ("windows-874", "cp874", "ดิสก์"),
    ("ISO-8859-1", "latin-1", "Büro"),
    ("iso8859-2", "iso8859-2", "łódź"),
    ("ISO-8859-15", "iso8859-15", "Büro €"),
    ("latin1", "latin-1", "Büro"),
    ("KOI8-R", "koi8-r", "Сервер"),
    ("IBM850", "cp850", "Büro"),
    ("ibm-943_P15A-2003", "cp932", "仮想"),
    ("UTF-8", "utf-8", "Büro 虚拟"),
    ("utf8", "utf-8", "Büro"),
    ("US-ASCII", "ascii", "plain"),
]


@pytest.mark.parametrize("stored", ["text", "bytes"])
@pytest.mark.parametrize(("label", "codec", "name"), ENCODED, ids=lambda value: ascii(value))
def test_encodings(label, codec, name, stored, tmp_path):
    """The file is called by the text, or still by its bytes as an old unpacker left it."""
    raw = f"{name}-flat.vmdk".encode(codec)
    here = os.fsdecode(raw) if stored == "bytes" else f"{name}-flat.vmdk"
    if "/" in here:
        pytest.skip("no file can have these bytes as its name")
    (tmp_path / here).write_bytes(b"D" * MIB)
    lines = text([f'RW 2048 FLAT "{name}-flat.vmdk" 0'], more=f'encoding="{label}"', end="\r\n")
    path = tmp_path / "x.vmdk"
    path.write_bytes(lines.encode(codec))
    with open_disk(path) as disk:
        assert disk.read(0, 4) == b"DDDD"
        disk.write(0, b"W")
        disk.resize(2 * MIB)
        assert disk.size == 2 * MIB
    with open_disk(path) as disk:
        assert disk.read(0, 2) == b"WD"
    assert f'"{name}-flat.vmdk"'.encode(codec) in path.read_bytes()


@pytest.mark.parametrize("more", ["", 'encoding="UTF-8"', 'encoding="GBK"', 'encoding="ASCII"'])
def test_bytes_that_are_not_in_the_encoding(more, tmp_path):
    raw = b"B\xfcro\xff.vmdk"
    (tmp_path / os.fsdecode(raw)).write_bytes(b"D" * MIB)
    lines = text(['RW 2048 FLAT "@" 0'], more=more).encode().replace(b"@", raw)
    (tmp_path / "x.vmdk").write_bytes(lines)
    with open_disk(tmp_path / "x.vmdk") as disk:
        assert disk.read(0, 4) == b"DDDD"


def test_the_encoding_of_the_data_base(tmp_path):
    lines = text([flat(tmp_path, "Сервер.vmdk")]) + 'ddb.encoding = "windows-1251"\n'
    (tmp_path / "x.vmdk").write_bytes(lines.encode("cp1251"))
    with open_disk(tmp_path / "x.vmdk") as disk:
        assert disk.read(0, 1) == b"A"


@pytest.mark.parametrize(
    "label",
    [
        "klingon",
        "utf-16",
        "utf-7",
        "rot13",
        "idna",
        "unicode_escape",
        "cp037",
        "zlib",
        "../x",
        "\x01",
    ],
)
def test_encodings_that_are_not_known(label, tmp_path):
    path = tmp_path / "x.vmdk"
    path.write_bytes(text([flat(tmp_path)], more=f'encoding="{label}"').encode())
    with open_disk(path) as disk:
        assert disk.read(0, 1) == b"A"
    path.write_bytes(text([flat(tmp_path, "ü.vmdk")], more=f'encoding="{label}"').encode())
    with pytest.raises(DiskUnsupportedError, match="encoding"):
        open_disk(path)


def test_what_is_written_is_in_the_descriptors_own_encoding():
    lines = [ExtentLine("RW", 8, "FLAT", "Сервер.vmdk")]
    descriptor = Descriptor("vmfs", 1, extents=lines, encoding="windows-1251", codec="cp1251")
    assert b'encoding="windows-1251"' in descriptor.to_bytes()
    assert Descriptor.parse(descriptor.to_bytes(), "x").extents == lines
    descriptor.extents = [ExtentLine("RW", 8, "FLAT", "虚拟.vmdk")]
    assert b'encoding="UTF-8"' in descriptor.to_bytes()
    assert Descriptor.parse(descriptor.to_bytes(), "x").extents == descriptor.extents
    plain = Descriptor("vmfs", 1, extents=[ExtentLine("RW", 8, "FLAT", "x.vmdk")])
    assert b"encoding" not in plain.to_bytes()


def test_every_label_has_codecs_that_are_there():
    for label, codecs in encodings._CODECS.items():
        for codec in codecs:
            assert b"plain".decode(codec) == "plain", label


# ---- where the parts are --------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["C:\\VMs\\x-flat.vmdk", "/vmfs/volumes/5c00/vm/x-flat.vmdk", "\\\\nas\\vm\\x-flat.vmdk"],
)
def test_extents_by_paths_of_other_hosts(name, tmp_path):
    flat(tmp_path)
    (tmp_path / "x.vmdk").write_text(text([f'RW 2048 FLAT "{name}" 0']))
    with open_disk(tmp_path / "x.vmdk") as disk:
        assert disk.read(0, 1) == b"A"


def test_extents_elsewhere_are_not_looked_for_beside(tmp_path):
    flat(tmp_path)
    (tmp_path / "x.vmdk").write_text(text(['RW 2048 FLAT "sub/x-flat.vmdk" 0']))
    with pytest.raises(NotFoundError):
        open_disk(tmp_path / "x.vmdk")


def test_extents_that_share_a_file(tmp_path):
    flat(tmp_path, data=b"A" * MIB + b"B" * MIB)
    lines = ['RW 2048 FLAT "x-flat.vmdk" 2048', "RW 8 ZERO", 'RW 2048 FLAT "x-flat.vmdk" 0']
    (tmp_path / "x.vmdk").write_text(text(lines))
    with open_disk(tmp_path / "x.vmdk") as disk:
        disk.write(MIB - 1, b"b")
        disk.write(MIB + 4096, b"a")
        assert disk.read(MIB - 1, 4098) == b"b" + bytes(4096) + b"a"
        assert disk.info().actual_size >= 2 * MIB
    assert (tmp_path / "x-flat.vmdk").read_bytes()[:1] == b"a"


def one_file(tmp_path, name="e.vmdk", start=3, grain=0, extent=None, version=1):
    """Return an image with header, descriptor and flat data in one file."""
    header = struct.pack(
        "<4sIIQQQQIQQQB4sH", b"KDMV", version, 3, 0, grain, 1, 2, 0, 0, 0, start, 0, b"\n \r\n", 0
    ).ljust(512, b"\0")
    line = extent or f'RW 4096 FLAT "{name}" {start}'
    body = text([line], title="# Disk Descriptor File").encode().ljust(1024, b"\0")
    path = tmp_path / "e.vmdk"
    path.write_bytes((header + body).ljust(start * 512, b"\0") + b"A" * (2 * MIB))
    return path


@pytest.mark.parametrize(
    "case",
    [
        {}, {"start": 128}, {"grain": 128}, {"grain": 3}, {"version": 3},
        {"name": "other-name.vmdk"}, {"name": "C:\\VMs\\old.vmdk"},
        {"extent": 'RW 4096 VMFS "e.vmdk" 3'},
        {"extent": 'RW 2048 FLAT "e.vmdk" 3\nRW 16 ZERO\nRW 2032 FLAT "e.vmdk" 2067'},
    ],
    ids=str,
)  # fmt: skip
def test_header_descriptor_and_data_in_one_file(case, tmp_path):
    path = one_file(tmp_path, **case)
    with open_disk(path, read_only=True) as disk:
        assert disk.size == 2 * MIB
        assert disk.read(0, MIB) == b"A" * MIB
        assert disk.read(2 * MIB - 4, 4) == b"AAAA"
    with open_disk(path) as disk:
        disk.write(MIB - 512, b"written")
        disk.write(2 * MIB - 512, b"end")
    with open_disk(path) as disk:
        assert disk.read(MIB - 513, 8) == b"Awritten"
        assert disk.read(2 * MIB - 512, 4) == b"endA"


@pytest.mark.peer
@pytest.mark.parametrize("case", [{}, {"start": 128}, {"grain": 128}], ids=str)
def test_one_file_by_qemu(case, tmp_path, qemu_img, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = one_file(tmp_path, **case)
    with open_disk(path) as disk:
        disk.write(MIB, b"written")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "raw")
    with open_disk(path, read_only=True) as disk:
        assert disk.read(0, disk.size) == (tmp_path / "raw").read_bytes()


@pytest.mark.parametrize("start", [0, 1, 2])
def test_an_extent_never_lies_over_the_descriptor(start, tmp_path):
    """A guest could otherwise write names of host files into it."""
    path = one_file(tmp_path, extent=f'RW 8 FLAT "e.vmdk" {start}')
    with pytest.raises(DiskFormatError, match="over the descriptor"):
        open_disk(path)
    (tmp_path / "self.vmdk").write_text(text([f'RW 1 FLAT "self.vmdk" {start}']).ljust(4096))
    with pytest.raises(DiskFormatError, match="over the descriptor"):
        open_disk(tmp_path / "self.vmdk")
    (tmp_path / "link.vmdk").symlink_to("e.vmdk")
    path = one_file(tmp_path, extent=f'RW 8 FLAT "link.vmdk" {start}')
    with pytest.raises(DiskFormatError, match="over the descriptor"):
        open_disk(path)


def test_a_header_without_grains_has_none(tmp_path):
    path = one_file(tmp_path, extent='RW 4096 SPARSE "e.vmdk"')
    with pytest.raises(DiskFormatError):
        open_disk(path)
    path = one_file(tmp_path, extent='RW 0 SPARSE "e.vmdk"')
    with pytest.raises(DiskFormatError):
        open_disk(path)


# ---- parents --------------------------------------------------------------


def with_hint(path, hint, codec="utf-8", label=None):
    """Write another parentFileNameHint into a monolithicSparse image."""
    data = bytearray(path.read_bytes())
    lines = data[512 : 512 + 10240].rstrip(b"\0").split(b"\n")
    lines = [
        b'parentFileNameHint="%s"' % hint.encode(codec)
        if line.startswith(b"parentFileNameHint")
        else line
        for line in lines
        if hint is not None or not line.startswith(b"parentFileNameHint")
    ]
    if label:
        lines.insert(2, f'encoding="{label}"'.encode())
    data[512 : 512 + 10240] = b"\n".join(lines).ljust(10240, b"\0")
    path.write_bytes(data)


@pytest.fixture
def pair(tmp_path):
    create_disk(tmp_path / "base.vmdk", "vmdk", 4 * MIB)
    with open_disk(tmp_path / "base.vmdk") as disk:
        disk.write(0, b"below")
    create_disk(tmp_path / "top.vmdk", "vmdk", backing="base.vmdk")
    return tmp_path


@pytest.mark.parametrize(
    "hint",
    [
        "/vmfs/volumes/5c00/vm/base.vmdk", "C:\\VMs\\vm\\base.vmdk", "..\\other\\base.vmdk",
        "../other/base.vmdk", "\\\\nas\\share\\base.vmdk", "D:base.vmdk\\..\\base.vmdk",
    ],
)  # fmt: skip
def test_parents_by_paths_of_other_hosts(hint, pair):
    with_hint(pair / "top.vmdk", hint)
    with open_disk(pair / "top.vmdk") as disk:
        assert disk.read(0, 5) == b"below"
        assert disk.info().backing_filename == hint


def test_a_parent_whose_name_is_not_utf8(pair):
    (pair / "base.vmdk").rename(pair / "Сервер.vmdk")
    with_hint(pair / "top.vmdk", "Сервер.vmdk", "cp1251", "windows-1251")
    with open_disk(pair / "top.vmdk") as disk:
        assert disk.read(0, 5) == b"below"


@pytest.mark.parametrize("given", ["moved/old.vmdk", "absolute"])
def test_the_parent_as_an_option(given, pair, tmp_path):
    with_hint(pair / "top.vmdk", "C:\\gone.vmdk")
    (pair / "moved").mkdir()
    (pair / "base.vmdk").rename(pair / "moved" / "old.vmdk")
    with pytest.raises(NotFoundError) as caught:
        open_disk(pair / "top.vmdk", read_only=True)
    assert "parent=FILE" in caught.value.hint
    name = str(pair / "moved/old.vmdk") if given == "absolute" else given
    with open_disk(pair / "top.vmdk", options={"parent": name}) as disk:
        assert disk.read(0, 5) == b"below"
    create_disk(pair / "wrong.vmdk", "vmdk", 4 * MIB)
    with pytest.raises(DiskFormatError, match="another image"):
        open_disk(pair / "top.vmdk", read_only=True, options={"parent": "wrong.vmdk"})


def test_no_hint_at_all(pair):
    with_hint(pair / "top.vmdk", None)
    with pytest.raises(DiskFormatError, match="does not say where its parent is"):
        open_disk(pair / "top.vmdk", read_only=True)
    with open_disk(pair / "top.vmdk", read_only=True, options={"parent": "base.vmdk"}) as disk:
        assert disk.read(0, 5) == b"below"
    open_disk(pair / "top.vmdk", read_only=True, backing=False).close()


def test_the_image_itself_beside_is_not_its_parent(pair):
    with_hint(pair / "top.vmdk", "C:\\other\\top.vmdk")
    with pytest.raises(DiskError):
        open_disk(pair / "top.vmdk", read_only=True)


@pytest.mark.parametrize("letter", ['"', "\n", "\r", "\x01"])
def test_names_that_a_descriptor_cannot_hold(letter, tmp_path):
    create_disk(tmp_path / f"a{letter}.vmdk", "vmdk", MIB)
    open_disk(tmp_path / f"a{letter}.vmdk").close()
    with pytest.raises(InvalidValueError, match="cannot hold"):
        create_disk(tmp_path / "top", "vmdk", backing=f"a{letter}.vmdk")
    with pytest.raises(InvalidValueError, match="cannot hold"):
        create_disk(
            tmp_path / f"b{letter}.vmdk", "vmdk", MIB, options={"subformat": "monolithicFlat"}
        )
    assert os.listdir(tmp_path) == [f"a{letter}.vmdk"]


# ---- large streams --------------------------------------------------------


@pytest.mark.parametrize("size", [3 << 40, (15 << 40) + 512])
def test_streams_of_large_disks(size, tmp_path):
    from ringzero.disk.convert import Conversion

    with (tmp_path / "raw").open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("the file system has no such long files")
        for at in (0, 2 << 40, size - 512):
            file.seek(at)
            file.write(b"here")
    target = tmp_path / "x.vmdk"
    options = {"subformat": "streamOptimized"}
    with open_disk(tmp_path / "raw", "raw", read_only=True) as source:
        Conversion(target, "vmdk", options=options).run(source)
    with open_disk(target, read_only=True) as disk:
        assert disk.size == size
        for at in (0, 2 << 40, size - 512):
            assert disk.read(at, 4) == b"here"
        assert disk.read(1 << 40, 512) == bytes(512)
        assert disk.check().errors == 0


def test_a_stream_that_outgrows_its_numbers(tmp_path):
    create_disk(tmp_path / "x.vmdk", "vmdk", MIB, options={"subformat": "streamOptimized"})
    with open_disk(tmp_path / "x.vmdk") as disk:
        writer = disk.compression
        writer._at = 512 << 32
        with pytest.raises(DiskUnsupportedError, match="2 TiB"):
            writer.store(0, b"packed")
        writer._at = (512 << 32) - 512
        writer._finished = False
        with pytest.raises(DiskUnsupportedError, match="2 TiB"):
            writer.finish()
        writer._finished = True


PIECES = st.sampled_from([
    b"# Disk DescriptorFile\n", b"version=1\n", b"CID=fffffffe\n", b"parentCID=ffffffff\n",
    b'createType="vmfs"\n', b'RW 2048 FLAT "x" 0\n', b'RW 2048 ZERO\r', b'encoding="',
    b"GBK", b"Shift_JIS", b"UTF-8", b"ddb.encoding = ", b'"\n', b"\xff", b"\x81", b"\\", b"\0",
    b'parentFileNameHint="', b"windows-1252", b"\xef\xbb\xbf", b"cp932", b"unicode_escape",
]) | st.binary(max_size=4)  # fmt: skip


@given(st.lists(PIECES, max_size=20))
def test_any_text_gives_a_descriptor_or_an_error(pieces):
    raw = b'CID=1\ncreateType="vmfs"\n' + b"".join(pieces)
    is_descriptor(raw)
    try:
        found = Descriptor.parse(raw, "x")
    except DiskError:
        return
    for line in found.extents:
        assert found.spellings(line.filename)
    again = Descriptor.parse(found.to_bytes(), "x")
    assert [line.filename for line in again.extents] == [line.filename for line in found.extents]
