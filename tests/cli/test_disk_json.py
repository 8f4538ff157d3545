"""`--output json` says what qemu-img says, of images that either has made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ringzero.cli.main import main
from ringzero.disk.qemujson import beside

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img")

PEER_NAMES = {"vhd": "vpc"}
# A format with its creation options, as both take them.
IMAGES = [
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "compat=0.10"),
    ("qcow2", "cluster_size=4k,refcount_bits=1"),
    ("qcow2", "extended_l2=on,lazy_refcounts=on,compression_type=zstd"),
    ("qcow2", "data_file=data.raw,data_file_raw=on"),
    ("qcow2", "preallocation=metadata"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vhd", ""),
    ("vhd", "subformat=fixed"),
    ("vhdx", ""),
    ("vhdx", "subformat=fixed"),
    ("vmdk", ""),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vmdk", "zeroed_grain=on"),
]
# Where data lies, in the order of writing: what comes later lies behind what came before.
PLACES = [(5 << 20, 70_000), (0, 100_000), ((10 << 20) - 512, 512), (3 << 20, 4096)]


def peer(*words, code=0):
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def both(capsys, verb, *words, code=0):
    """Return what qemu-img prints, and what ringzero does, of the same image."""
    theirs = json.loads(peer(verb, "--output=json", *words, code=code))
    assert main(["disk", verb, "--output", "json", *words]) == code
    return theirs, json.loads(capsys.readouterr().out)


@pytest.fixture(params=["ringzero", "qemu"])
def image(request, monkeypatch, tmp_path):
    """Make an image called a.FORMAT, by either, with data in it."""
    monkeypatch.chdir(tmp_path)

    def make(format, options, name="a.img"):
        theirs = PEER_NAMES.get(format, format)
        more = ["-o", options] if options else []
        if request.param == "qemu":
            peer("create", "-q", "-f", theirs, *more, name, "10M")
        else:
            words = ["-q", "-f", format, *more, name, "10M"]
            assert main(["disk", "create", *words]) == 0
        for offset, length in PLACES:
            command = f"write -P 5 {offset} {length}"
            subprocess.run(["qemu-io", "-f", theirs, "-c", command, name], check=True,
                           capture_output=True)  # fmt: skip
        return theirs, name

    return make


@pytest.mark.parametrize(("format", "options"), IMAGES)
def test_info(image, capsys, format, options):
    theirs, name = image(format, options)
    for words in ([], ["--backing-chain"]):
        expected, found = both(capsys, "info", "-f", theirs, *words, name)
        assert found == expected


@pytest.mark.parametrize(("format", "options"), [i for i in IMAGES if i[0] not in ("raw", "vhd")])
def test_check(image, capsys, format, options):
    theirs, name = image(format, options)
    expected, found = both(capsys, "check", "-f", theirs, name)
    assert found == expected


@pytest.mark.parametrize(
    ("format", "options"),
    [
        (format, options)
        for format, options in IMAGES
        # The others' blocks have holes of the host's, which only we tell of; and it looks for
        # those of preallocated clusters.
        if format in ("raw", "qcow2", "vmdk") and "preallocation" not in options
    ],
)
def test_map(image, capsys, format, options):
    theirs, name = image(format, options)
    expected, found = both(capsys, "map", "-f", theirs, name)
    assert found == expected


@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=4k"])
def test_zeroes_that_keep_their_clusters(image, capsys, options):
    _, name = image("qcow2", options)
    for command in ("write -z 5M 128k", "write -z 64k 16k", "write -z 8M 64k", "write 8M 512"):
        subprocess.run(["qemu-io", "-c", command, name], check=True, capture_output=True)
    expected, found = both(capsys, "map", name)
    assert any(run["zero"] and "offset" in run for run in expected)
    assert found == expected


def test_counts_are_those_of_the_disk_and_not_of_its_snapshots(image, capsys):
    _, name = image("qcow2", "")
    peer("snapshot", "-c", "one", name)
    subprocess.run(["qemu-io", "-c", "write 0 1M", "-c", "discard 5M 64k", "-c", "write -z 8M 64k",
                    name], check=True, capture_output=True)  # fmt: skip
    expected, found = both(capsys, "check", name)
    assert found == expected
    assert found["fragmented-clusters"]
    expected, found = both(capsys, "info", name)
    assert found == expected
    assert found["snapshots"][0]["name"] == "one"


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_compressed_images(image, capsys, format):
    _, name = image("raw", "")
    more = ["-o", "subformat=streamOptimized"] if format == "vmdk" else ["-c"]
    peer("convert", "-f", "raw", "-O", format, *more, name, "b")
    for verb in ("info", "check", "map"):
        expected, found = both(capsys, verb, "b")
        assert found == expected


def test_a_chain_by_relative_names(image, capsys):
    Path("sub").mkdir()
    image("qcow2", "", "base")
    peer("create", "-q", "-f", "qcow2", "-b", "../base", "-F", "qcow2", "sub/middle")
    full = str(Path("sub/middle").absolute())
    peer("create", "-q", "-f", "qcow2", "-b", full, "-F", "qcow2", "sub/top")
    for name in ("sub/middle", "sub/top", "./sub/top", os.path.realpath("sub/top")):
        expected, found = both(capsys, "info", "--backing-chain", name)
        assert found == expected
    expected, found = both(capsys, "map", "sub/top")
    assert found == expected


def test_leaks_have_their_count_and_exit_code(image, capsys):
    _, name = image("qcow2", "")
    size = Path(name).stat().st_size
    # A reference to a cluster of its own behind the end, in the first refcount block.
    with Path(name).open("r+b") as file:
        file.truncate(size + 65536)
        block = int.from_bytes(Path(name).read_bytes()[65536:65544], "big")
        file.seek(block + 2 * (size // 65536))
        file.write(b"\0\1")
    expected, found = both(capsys, "check", name, code=3)
    assert found == expected
    assert found["leaks"] == 1
    before = Path(name).read_bytes()
    theirs = json.loads(peer("check", "-r", "all", "--output=json", name))
    Path(name).write_bytes(before)
    assert main(["disk", "check", "-r", "all", "--output", "json", name]) == 0
    assert json.loads(capsys.readouterr().out) == theirs


def test_what_has_no_check(image, capsys):
    _, name = image("raw", "")
    peer("check", "-f", "raw", "--output=json", name, code=63)
    assert main(["disk", "check", "-f", "raw", "--output", "json", name]) == 63


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_measure(image, capsys, format):
    _, name = image("raw", "")
    expected, found = both(capsys, "measure", "-f", "raw", "-O", format, name)
    assert found.keys() == expected.keys()
    assert found["fully-allocated"] == expected["fully-allocated"]
    assert found["required"] <= expected["required"]


def test_measure_with_bitmaps(image, capsys):
    _, name = image("qcow2", "")
    for count in range(3):
        expected, found = both(capsys, "measure", "-O", "qcow2", name)
        assert found["bitmaps"] == expected["bitmaps"] and bool(found["bitmaps"]) == bool(count)
        peer("bitmap", "--add", "-g", str(512 << count), name, "b" * (100 * count + 1))
    for words in (["-o", "compat=0.10"], ["-o", "cluster_size=4k"]):
        expected, found = both(capsys, "measure", "-O", "qcow2", *words, name)
        assert found.get("bitmaps") == expected.get("bitmaps")


def test_more_is_said_for_our_own_programs(image, capsys):
    _, name = image("vhd", "")
    assert main(["disk", "info", "--json", name]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "vhd"
    assert found["format-specific"]["data"]["uuid"]
    assert main(["disk", "check", "--json", name]) == 0
    assert json.loads(capsys.readouterr().out)["corruptions"] == 0
    assert main(["disk", "map", "--json", name]) == 0
    assert name in {run.get("filename") for run in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize(
    ("image_name", "name", "expected"),
    [
        ("a", "b", "b"), ("d/a", "b", "d/b"), ("d/a", "/b", "/b"), ("d/a", "../b", "d/../b"),
        ("/a", "b", "/b"), ("d/a", "nbd:host", "nbd:host"), ("d/a", "json:{}", "json:{}"),
    ],
)  # fmt: skip
def test_names_beside_an_image(image_name, name, expected):
    assert beside(image_name, name) == expected
