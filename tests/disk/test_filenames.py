"""The names of files in images, as text: QEMU's rules, json: trees, other systems' paths."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.filenames import (
    host_paths,
    name_to_write,
    parse_name,
    parse_whole_name,
    relative_to,
    without_dot,
)
from ringzero.disk.formatnames import format_name, qemu_format_name
from ringzero.disk.registry import FORMATS
from ringzero.errors import DiskError, DiskFormatError, DiskUnsupportedError, RingzeroError

MIB = 1 << 20


def tree(**keys):
    return "json:" + json.dumps(keys)


FILE = {"driver": "file", "filename": "base"}

UNDERSTOOD = {
    "plain": ("base", "raw", ("base", "raw", {}, None)),
    "file:": ("file:base", None, ("base", None, {}, None)),
    "colon behind a slash": ("./a:b", "qcow2", ("./a:b", "qcow2", {}, None)),
    "no protocol": ("2024-01-01T10:00", None, ("2024-01-01T10:00", None, {}, None)),
    "QEMU's name of a format": ("base", "vpc", ("base", "vhd", {}, None)),
    "nested": (tree(driver="qcow2", file=FILE), None, ("base", "qcow2", {}, None)),
    "flat": ('json:{"driver":"raw","file.filename":"base"}', None, ("base", "raw", {}, None)),
    "probed": (tree(file=FILE), None, ("base", None, {}, None)),
    "the file itself": (tree(**FILE), None, ("base", "raw", {}, None)),
    "a window": (
        tree(driver="raw", offset=512, size=1024, file=FILE),
        "raw",
        ("base", "raw", {"offset": 512, "size": 1024}, None),
    ),
    "a window as text": (
        tree(driver="raw", offset="64k", file=FILE),
        None,
        ("base", "raw", {"offset": 65536}, None),
    ),
    "an image in a window": (
        tree(driver="vpc", file={"driver": "raw", "offset": 512, "size": 4096, "file": FILE}),
        "vpc",
        ("base", "vhd", {}, (512, 4096)),
    ),
    "windows in windows": (
        tree(
            driver="vmdk",
            file={
                "driver": "raw",
                "offset": 100,
                "file": {"driver": "raw", "offset": 1000, "size": 5000, "file": FILE},
            },
        ),
        None,
        ("base", "vmdk", {}, (1100, 4900)),
    ),
    "tuning": (
        'json:{"driver":"qcow2","cache.direct":true,"lazy-refcounts":true,"file":'
        '{"driver":"file","filename":"base","aio":"native","locking":"off","cache.no-flush":true}}',
        None,
        ("base", "qcow2", {}, None),
    ),
    "a name that is literal": (
        tree(driver="raw", file={"driver": "file", "filename": "nbd:x"}),
        None,
        ("nbd:x", "raw", {}, None),
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_names_are_understood(name):
    text, format, expected = UNDERSTOOD[name]
    found = parse_name(text, format)
    assert (found.path, found.format, dict(found.options), found.window) == expected


REFUSED = {
    "nothing": ("", None),
    "NUL": ("a\0b", None),
    "half a character": ("a\ud800", None),
    "nbd": ("nbd://host/x", None),
    "no list": ("json:[]", None),
    "no end": ("json:{", None),
    "deep": ("json:" + "[" * 5000, None),
    "unknown key": (tree(driver="raw", file=FILE, foo=1), None),
    "unknown key of the file": (tree(driver="raw", file={**FILE, "bar": 1}), None),
    "backing": (tree(driver="qcow2", backing=None, file=FILE), None),
    "data-file": (tree(driver="qcow2", file=FILE, **{"data-file": FILE}), None),
    "offset of qcow2": (tree(driver="qcow2", offset=512, file=FILE), None),
    "key twice": ('json:{"driver":"raw","driver":"qcow2","file":{"filename":"base"}}', None),
    "key twice, flat": ('json:{"driver":"raw","file":{"filename":"a"},"file.filename":"b"}', None),
    "formats that differ": (tree(driver="raw", file=FILE), "qcow2"),
    "file as qcow2": (tree(**FILE), "qcow2"),
    "a node's name": (tree(driver="qcow2", file="base"), None),
    "no name": (tree(driver="qcow2", file={"driver": "file"}), None),
    "https": (tree(driver="raw", file={"driver": "https", "url": "x"}), None),
    "protocol in a filename": (tree(driver="raw", file={"filename": "nbd:x"}), None),
    "throttle": (tree(driver="throttle", file=FILE), "raw"),
    "negative": (tree(driver="raw", offset=-512, file=FILE), None),
    "no number": (tree(driver="raw", offset=True, file=FILE), None),
    "no size": (tree(driver="raw", size=0, file=FILE), None),
    "size that is text": (tree(driver="raw", size="much", file=FILE), None),
    "part outside a part": (
        tree(
            driver="raw",
            file={
                "driver": "raw",
                "offset": 4096,
                "size": 512,
                "file": {"driver": "raw", "size": 4096, "file": FILE},
            },
        ),
        None,
    ),
    "driver that is no name": (tree(driver=7, file=FILE), None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_names_are_refused(name):
    with pytest.raises((DiskFormatError, DiskUnsupportedError)):
        parse_name(*REFUSED[name])


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("base")
KEYS = st.sampled_from(
    ["driver", "file", "filename", "offset", "size", "file.driver", "file.filename", "backing", "x"]
)
TREES = st.recursive(
    LEAVES | st.sampled_from(["raw", "qcow2", "file"]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=5) | st.lists(inner, max_size=2),
    max_leaves=12,
)


@given(TREES, st.sampled_from([None, "raw", "qcow2", "vpc"]))
def test_any_tree_gives_a_name_or_an_error(value, format):
    try:
        found = parse_name("json:" + json.dumps(value), format)
    except DiskError:
        return
    assert found.path
    assert "\0" not in found.path
    start, size = found.window or (0, None)
    assert start >= 0
    assert size is None or size >= 0


@given(st.text(min_size=1, max_size=30))
def test_a_path_that_is_written_is_read_as_that_path(text):
    name = name_to_write(text)
    try:
        found = parse_name(name, None)
    except RingzeroError:
        return
    assert os.path.normpath(found.path) == os.path.normpath(text.removeprefix("file:")) or (
        text.startswith("json:")
    )


def test_a_data_file_is_a_whole_file():
    assert parse_whole_name("file:data") == "data"
    with pytest.raises(DiskUnsupportedError, match="part"):
        parse_whole_name(tree(driver="raw", offset=512, file=FILE))


@pytest.mark.parametrize(
    ("name", "beside", "expected"),
    [
        ("base.vmdk", True, ["base.vmdk"]),
        ("../up/base.vhd", True, ["../up/base.vhd", "base.vhd"]),
        ("../up/base.vhd", False, ["../up/base.vhd"]),
        ("..\\up\\base.vhd", True, ["..\\up\\base.vhd", "../up/base.vhd", "base.vhd"]),
        (".\\base.vhd", True, [".\\base.vhd", "base.vhd"]),
        ("C:\\VMs\\base.vhd", False, ["C:\\VMs\\base.vhd", "base.vhd"]),
        ("c:base.vhd", False, ["c:base.vhd"]),
        ("\\\\server\\share\\b.vhdx", False, ["\\\\server\\share\\b.vhdx", "b.vhdx"]),
        ("\\\\?\\Volume{1}\\b.vhdx", False, ["\\\\?\\Volume{1}\\b.vhdx", "b.vhdx"]),
        ("/vmfs/volumes/x/b.vmdk", False, ["/vmfs/volumes/x/b.vmdk", "b.vmdk"]),
        ("/vmfs/volumes/", False, ["/vmfs/volumes/"]),
        ("..", True, [".."]),
    ],
)
def test_paths_of_other_systems(name, beside, expected):
    assert host_paths([name], beside=beside) == expected


def test_names_are_tried_in_their_order_and_what_is_beside_last():
    names = ["..\\a\\b.vhd", "", "/abs/b.vhd", "D:\\x\\c.vhd"]
    assert host_paths(names, beside=True) == [
        "..\\a\\b.vhd", "../a/b.vhd", "/abs/b.vhd", "D:\\x\\c.vhd", "b.vhd", "c.vhd",
    ]  # fmt: skip


def test_dots_in_front():
    assert without_dot("./base") == "base"
    assert without_dot("./a:b") == "./a:b"
    assert without_dot("./") == "./"


def test_relative_names_follow_links(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    base = tmp_path / "base.vhd"
    assert relative_to(tmp_path / "link" / "top.vhd", str(base)) == "../../base.vhd"


def test_names_of_formats_go_both_ways():
    for name in FORMATS.names():
        assert format_name(qemu_format_name(name)) == name
    assert qemu_format_name("vhd") == "vpc"
    assert format_name("VPC") == "vhd"
    assert format_name("file") == format_name("host_device") == "raw"


# ---- against qemu-img -----------------------------------------------------

PEER_TREES = [
    {"driver": "raw", "offset": MIB, "size": MIB, "file": {"driver": "file", "filename": "b"}},
    {"driver": "raw", "offset": 100, "file": {"driver": "file", "filename": "b"}},
    {"driver": "raw", "size": 65536, "file": {"driver": "file", "filename": "b"}},
    {"driver": "raw", "offset": "64k", "file.filename": "b"},
    {"driver": "file", "filename": "q"},
    {"driver": "qcow2", "file": {"driver": "raw", "offset": 65536, "file.filename": "shifted"}},
    {"file": {"driver": "file", "filename": "q"}},
    {"driver": "raw", "file": {"driver": "file", "filename": "a:b"}},
    {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": "over"}},
    {"driver": "raw", "foo": 1, "file": {"driver": "file", "filename": "b"}},
    {"driver": "qcow2", "file": "q"},
]


@pytest.mark.peer
@pytest.mark.parametrize("beside", [None, "raw", "qcow2"])
@pytest.mark.parametrize("number", range(len(PEER_TREES)))
def test_trees_read_as_by_qemu_or_not_at_all(number, beside, tmp_path, qemu_img, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = bytes(range(256)) * 16384
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "a:b").write_bytes(data[::-1])
    qemu_img("convert", "-O", "qcow2", "b", "q")
    (tmp_path / "shifted").write_bytes(bytes(65536) + (tmp_path / "q").read_bytes())
    create_disk("over", "qcow2", backing="b", backing_format="raw")
    create_disk(
        "top", "qcow2", 4 * MIB, backing="json:" + json.dumps(PEER_TREES[number]),
        backing_format=beside or "raw", check_backing=False,
    )  # fmt: skip
    if beside is None:
        with open("top", "r+b") as file:  # noqa: PTH123 - the format's extension is taken out
            head = bytearray(file.read(512))
            at = head.index(b"\xe2\x79\x2a\xca")
            head[at : at + 4] = b"none"
            file.seek(0)
            file.write(head)
    theirs = subprocess.run(
        ["qemu-img", "convert", "-O", "raw", "top", "theirs"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    try:
        with open_disk("top", read_only=True) as disk:
            ours = disk.read(0, disk.size)
    except RingzeroError:
        return
    if PEER_TREES[number].get("driver") == "file" and beside == "raw":
        # QEMU has no word for the same thing said twice.
        assert ours[:4] == b"QFI\xfb"
        return
    assert theirs.returncode == 0, "read here, refused by QEMU"
    assert ours == (tmp_path / "theirs").read_bytes()
