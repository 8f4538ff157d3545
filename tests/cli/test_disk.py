"""`ringzero disk`: every action once as a user types it, and how it fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringzero
from ringzero.cli.main import main
from ringzero.disk import create_disk, open_disk

SIZE = 8 << 20
FORMATS = ["raw", "qcow2", "vmdk", "vhdx"]


@pytest.fixture
def disk(capsys, monkeypatch, tmp_path):
    """Run `ringzero disk` in an empty directory; return (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["disk", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def source(tmp_path):
    """A raw image with data, zeroes, and holes; returns its bytes."""
    dice = random.Random(5)
    data = bytearray(SIZE)
    for start, length in ((0, 5000), (1 << 20, 1 << 20), (5_000_000, 70_000), (SIZE - 512, 512)):
        data[start : start + length] = dice.randbytes(length)
    with (tmp_path / "source.raw").open("wb") as file:
        file.truncate(SIZE)
        for start in range(0, SIZE, 4096):
            piece = data[start : start + 4096]
            if any(piece):
                file.seek(start)
                file.write(piece)
    return bytes(data)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def contents(path, kind):
    with open_disk(path, kind, read_only=True) as disk:
        return disk.read(0, disk.size)


def test_create_and_info(disk, tmp_path):
    code, out, _ = disk("create", "-f", "qcow2", "-o", "cluster_size=4k", "base.qcow2", "10M")
    assert (code, out) == (0, "made base.qcow2 (qcow2, 10 MiB)\n")
    assert disk("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")[0] == 0
    _, out, _ = disk("info", "top.qcow2")
    assert "backing file: base.qcow2 (qcow2)" in out
    assert "backing file, depth 1: " in out
    _, out, _ = disk("info", "--json", "top.qcow2")
    assert json.loads(out)["backing-filename"] == "base.qcow2"
    _, out, _ = disk("info", "--output", "json", "--backing-chain", "top.qcow2")
    assert [layer["virtual-size"] for layer in json.loads(out)] == [10 << 20] * 2
    assert json.loads(out)[1]["cluster-size"] == 4096


def test_create_says_its_options(disk):
    code, out, _ = disk("create", "-f", "vhdx", "-o", "help")
    assert code == 0
    assert "block_size" in out


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["create", "-f", "qcow2", "-o", "colour=red", "x", "1M"], 2, "has no option"),
        (["create", "-f", "nonsense", "x", "1M"], 3, "no disk format"),
        (["create", "x", "many"], 2, "not a size"),
        (["info", "nowhere"], 3, "no file nowhere"),
        (["convert", "nowhere", "x"], 3, "no file nowhere"),
        (["resize", "source.raw", "1M"], 6, "no known format"),
        (["resize", "-f", "raw", "source.raw", "1M"], 2, "would lose"),
        (["snapshot", "-l", "source.raw"], 6, "no snapshots"),
        (["dd", "if=source.raw"], 2, "of="),
        (["convert", "source.raw", "source.raw"], 2, "same file"),
        (["convert", "-c", "-O", "raw", "source.raw", "x"], 2, "not compressed"),
        (["commit", "source.raw"], 2, "no backing file"),
    ],
)
def test_mistakes_are_messages(disk, source, words, code, hint):
    found, _, err = disk(*words)
    assert found == code, err
    assert hint in err
    assert names(Path()) == ["source.raw"]


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("origin", FORMATS)
def test_convert_and_compare(disk, source, origin, target, tmp_path):
    assert disk("convert", "-f", "raw", "-O", origin, "source.raw", "a")[0] == 0
    assert disk("convert", "-O", target, "a", "b")[0] == 0
    assert contents(tmp_path / "b", target)[:SIZE] == source
    code, out, _ = disk("compare", "-f", "raw", "-F", target, "source.raw", "b")
    assert (code, out) == (0, "Images are identical.\n")
    with open_disk(tmp_path / "b", target, read_only=True) as image:
        held = sum(e.length for e in image.block_status() if not e.reads_zero)
        if target != "vhdx":
            assert held < SIZE // 2
    with open_disk(tmp_path / "b", target) as image:
        image.write(3_000_000, b"!")
    code, out, _ = disk("compare", "-f", "raw", "-F", target, "source.raw", "b")
    assert (code, out) == (1, "Content mismatch at offset 3000000!\n")
    assert names(tmp_path) == ["a", "b", "source.raw"]


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_convert_compressed(disk, source, kind, tmp_path):
    words = ["convert", "-c", "-O", "qcow2", "-o", f"compression_type={kind}"]
    assert disk(*words, "source.raw", "a")[0] == 0
    assert contents(tmp_path / "a", "qcow2") == source
    _, out, _ = disk("map", "--json", "a")
    assert json.loads(out)
    code, out, _ = disk("check", "a")
    assert code == 0
    assert "No errors were found" in out


def test_convert_to_stream_optimized(disk, source, tmp_path):
    words = ["convert", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    assert disk(*words, "source.raw", "a.vmdk")[0] == 0
    assert contents(tmp_path / "a.vmdk", "vmdk") == source
    assert disk("convert", "-O", "raw", "a.vmdk", "b.raw")[0] == 0
    assert (tmp_path / "b.raw").read_bytes() == source


def test_convert_to_several_files_leaves_only_those(disk, source, tmp_path):
    words = ["convert", "-O", "vmdk", "-o", "subformat=monolithicFlat"]
    assert disk(*words, "source.raw", "a.vmdk")[0] == 0
    assert names(tmp_path) == ["a-flat.vmdk", "a.vmdk", "source.raw"]
    assert contents(tmp_path / "a.vmdk", "vmdk") == source


def test_convert_to_an_overlay_takes_only_what_differs(disk, source, tmp_path):
    assert disk("convert", "-O", "qcow2", "source.raw", "base")[0] == 0
    with (tmp_path / "source.raw").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"new")
        file.seek(1 << 20)
        file.write(bytes(70_000))
    changed = (tmp_path / "source.raw").read_bytes()
    words = ["convert", "-O", "qcow2", "-B", "base", "-F", "qcow2"]
    assert disk(*words, "source.raw", "top")[0] == 0
    assert contents(tmp_path / "top", "qcow2") == changed
    with open_disk(tmp_path / "top", read_only=True) as image:
        assert image.backing_name == "base"
        held = sum(e.length for e in image.block_status(layers=1) if e.kind.value == "data")
        assert 0 < held < 300_000


def test_convert_into_what_is_there(disk, source, tmp_path):
    (tmp_path / "there").write_bytes(b"\xff" * (SIZE + 4096))
    assert disk("convert", "-n", "-O", "raw", "source.raw", "there")[0] == 0
    assert (tmp_path / "there").read_bytes() == source + bytes(4096)


def test_a_target_that_exists_is_not_overwritten_unasked(disk, source, tmp_path):
    (tmp_path / "there").write_bytes(b"precious")
    code, _, err = disk("convert", "-O", "qcow2", "source.raw", "there")
    assert code == 6
    assert "exists" in err
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert disk("convert", "--force", "-O", "qcow2", "source.raw", "there")[0] == 0
    assert contents(tmp_path / "there", "qcow2") == source


def test_resize(disk, tmp_path):
    create_disk(tmp_path / "a", "qcow2", SIZE)
    assert disk("resize", "a", "+1M")[1] == "a: 9 MiB\n"
    code, _, err = disk("resize", "a", "1M")
    assert code == 2
    assert "--shrink" in err
    assert disk("resize", "--shrink", "a", "1M")[0] == 0
    assert len(contents(tmp_path / "a", "qcow2")) == 1 << 20


def test_map(disk, source):
    disk("create", "-f", "qcow2", "-b", "source.raw", "-F", "raw", "top")
    _, out, _ = disk("map", "--json", "top")
    runs = json.loads(out)
    assert sum(run["length"] for run in runs) == SIZE
    assert {run["depth"] for run in runs if run["data"]} == {1}
    _, out, _ = disk("map", "top")
    assert "source.raw" in out


def test_snapshots(disk, tmp_path):
    create_disk(tmp_path / "a", "qcow2", SIZE)
    with open_disk(tmp_path / "a") as image:
        image.write(0, b"old")
    assert disk("snapshot", "-c", "first", "a")[0] == 0
    with open_disk(tmp_path / "a") as image:
        image.write(0, b"new")
    assert "first" in disk("snapshot", "-l", "a")[1]
    assert disk("snapshot", "-a", "first", "a")[0] == 0
    assert contents(tmp_path / "a", "qcow2")[:3] == b"old"
    assert disk("snapshot", "-d", "first", "a")[0] == 0
    assert disk("snapshot", "-a", "first", "a")[0] == 3


def test_a_snapshot_whose_name_is_anothers_id(disk, tmp_path):
    create_disk(tmp_path / "a", "qcow2", SIZE)
    assert disk("snapshot", "-c", "2", "a")[0] == 0
    assert disk("snapshot", "-c", "precious", "a")[0] == 0
    code, _, err = disk("snapshot", "-d", "1", "a")
    assert code == 3
    assert "snapshot.id=1" in err
    assert disk("snapshot", "-d", "2", "a")[0] == 0
    with open_disk(tmp_path / "a") as image:
        assert [one.name for one in image.snapshots.list()] == ["precious"]
    assert disk("snapshot", "-d", "snapshot.id=2", "a")[0] == 0
    assert disk("snapshot", "-d", "snapshot.nr=2", "a")[0] == 2


@pytest.mark.parametrize("kind", ["vhd", "vhdx", "vmdk"])
def test_the_parent_is_said_by_the_user(disk, kind, tmp_path):
    create_disk(tmp_path / "base", kind, SIZE)
    create_disk(tmp_path / "top", kind, backing="base")
    (tmp_path / "away").mkdir()
    (tmp_path / "base").rename(tmp_path / "away" / "renamed")
    code, _, err = disk("info", "top")
    assert code == 3
    assert "--open parent=FILE" in err
    code, out, _ = disk("info", "--open", "parent=away/renamed", "top")
    assert code == 0
    assert "backing file: away/renamed" in out
    assert disk("rebase", "-u", "-b", "away/renamed", "-F", kind, "top")[0] == 0
    assert disk("info", "top")[0] == 0


def test_overlays_that_would_not_open_are_not_made(disk, source, tmp_path):
    (tmp_path / "away").mkdir()
    for words in (
        ("create", "-f", "qcow2", "-b", "../source.raw", "away/top"),
        ("convert", "-f", "raw", "-O", "qcow2", "-B", "../source.raw", "source.raw", "away/top"),
    ):
        code, _, err = disk(*words)
        assert code == 6
        assert "RINGZERO_BACKING_DIRS" in err
        assert names(tmp_path / "away") == []
    create_disk(tmp_path / "away" / "top", "qcow2", SIZE)
    assert disk("rebase", "-b", "../source.raw", "away/top")[0] == 6
    assert disk("info", "away/top")[0] == 0


def test_colons_in_names(disk, tmp_path):
    for kind in ("qcow2", "vhd", "vhdx", "vdi", "vmdk"):
        assert disk("create", "-f", kind, f"a:b.{kind}", "1M")[0] == 0
        assert disk("create", "-f", kind, "-b", f"a:b.{kind}", f"top.{kind}")[0] == 0
        assert disk("info", f"top.{kind}")[0] == 0
        assert (
            disk("convert", "-O", "qcow2", "-B", f"a:b.{kind}", f"a:b.{kind}", f"{kind}.q")[0] == 0
        )
        assert disk("rebase", "-b", f"a:b.{kind}", f"{kind}.q")[0] == 0
        assert disk("info", f"{kind}.q")[0] == 0


def test_convert_a_snapshot(disk, tmp_path):
    create_disk(tmp_path / "a", "qcow2", SIZE)
    with open_disk(tmp_path / "a") as image:
        image.write(0, b"old" * 100_000)
        image.snapshots.create("first")
        image.write(50_000, b"new")
        image.resize(2 * SIZE)
        image.snapshots.create("second")
    for name, kind in (("first", "raw"), ("snapshot.name=first", "vhdx"), ("1", "qcow2")):
        code, _, err = disk("convert", "-l", name, "-O", kind, "a", "then")
        assert code == 0, err
        assert contents(tmp_path / "then", kind) == (b"old" * 100_000).ljust(SIZE, b"\0")
        (tmp_path / "then").unlink()
    assert disk("convert", "-l", "second", "-O", "raw", "a", "then")[0] == 0
    assert (tmp_path / "then").read_bytes()[49_999:50_003] == b"lnew"
    code, _, err = disk("convert", "-l", "third", "-O", "raw", "a", "other")
    assert code == 3
    assert "first" in err
    assert disk("convert", "-l", "first", "-O", "raw", "-f", "raw", "a", "other")[0] == 2
    assert disk("resize", "--open", "snapshot=first", "a", "+1M")[0] == 2
    assert names(tmp_path) == ["a", "then"]


def test_a_vdi_image_that_does_not_name_its_parent(disk, tmp_path):
    create_disk(tmp_path / "base.vdi", "vdi", SIZE)
    with open_disk(tmp_path / "base.vdi") as image:
        image.write(0, b"below")
    create_disk(tmp_path / "top.vdi", "vdi", backing="base.vdi")
    with (tmp_path / "top.vdi").open("r+b") as file:
        # The comment of the header, where ringzero keeps the name; VirtualBox has none.
        file.seek(84)
        file.write(bytes(256))
    code, _, err = disk("info", "top.vdi")
    assert code != 0
    assert "--open parent=FILE" in err
    code, out, _ = disk("info", "--open", "parent=base.vdi", "top.vdi")
    assert code == 0
    assert "backing file: base.vdi" in out
    assert disk("convert", "--open", "parent=base.vdi", "-O", "raw", "top.vdi", "all")[0] == 0
    assert (tmp_path / "all").read_bytes()[:5] == b"below"
    assert disk("rebase", "-u", "-b", "base.vdi", "-F", "vdi", "top.vdi")[0] == 0
    assert contents(tmp_path / "top.vdi", "vdi")[:5] == b"below"


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_commit(disk, kind, tmp_path):
    create_disk(tmp_path / "base", kind, SIZE)
    with open_disk(tmp_path / "base") as image:
        image.write(0, b"x" * 200_000)
    create_disk(tmp_path / "top", kind, backing="base", backing_format=kind)
    with open_disk(tmp_path / "top") as image:
        image.write(100_000, b"y" * 300_000)
        image.write_zeroes(0, 512)
        expected = image.read(0, SIZE)
    code, _, err = disk("commit", "top")
    assert code == 0, err
    assert contents(tmp_path / "base", kind)[:SIZE] == expected
    assert contents(tmp_path / "top", kind)[:SIZE] == expected


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx"])
def test_rebase(disk, kind, tmp_path):
    for name, byte in (("one", b"1"), ("two", b"2")):
        create_disk(tmp_path / name, kind, SIZE)
        with open_disk(tmp_path / name) as image:
            image.write(0, byte * 200_000)
            image.write(1_000_000, b"same" * 10_000)
    create_disk(tmp_path / "top", kind, backing="one", backing_format=kind)
    with open_disk(tmp_path / "top") as image:
        image.write(50_000, b"top")
        expected = image.read(0, SIZE)
    code, _, err = disk("rebase", "-b", "two", "-F", kind, "top")
    assert code == 0, err
    assert contents(tmp_path / "top", kind)[:SIZE] == expected
    with open_disk(tmp_path / "top", read_only=True) as image:
        assert image.backing_name == "two"
    (tmp_path / "two").rename(tmp_path / "moved")
    assert disk("rebase", "-u", "-b", "moved", "-F", kind, "top")[0] == 0
    assert contents(tmp_path / "top", kind)[:SIZE] == expected


def test_rebase_to_nothing(disk, tmp_path):
    create_disk(tmp_path / "base", "qcow2", SIZE)
    with open_disk(tmp_path / "base") as image:
        image.write(0, b"x" * 200_000)
    create_disk(tmp_path / "top", "qcow2", backing="base", backing_format="qcow2")
    assert disk("rebase", "-b", "", "top")[0] == 0
    (tmp_path / "base").unlink()
    assert contents(tmp_path / "top", "qcow2")[:200_000] == b"x" * 200_000


@pytest.mark.parametrize("kind", FORMATS)
def test_measure_is_not_less_than_the_image(disk, source, kind, tmp_path):
    _, out, _ = disk("measure", "--json", "-O", kind, "source.raw")
    needed = json.loads(out)["required"]
    disk("convert", "-O", kind, "source.raw", "a")
    size = (tmp_path / "a").stat().st_size
    assert size <= needed <= size + (2 << 20)


def test_dd(disk, source, tmp_path):
    assert disk("dd", "bs=4k", "skip=3", "count=100", "if=source.raw", "of=part")[0] == 0
    assert (tmp_path / "part").read_bytes() == source[12_288 : 12_288 + 409_600]


@pytest.mark.parametrize("words", [[], ["-w"], ["--random", "-d", "1"], ["-w", "-s", "1M"]])
def test_bench(disk, words, tmp_path):
    create_disk(tmp_path / "a", "qcow2", SIZE)
    code, out, _ = disk("bench", "-c", "50", "--json", *words, "a")
    assert code == 0
    assert json.loads(out)["requests"] == 50


def test_interrupted_conversion_goes_on(tmp_path):
    """Ctrl-C in the middle: no target, then the same command finishes it."""
    size = 1 << 30
    source = tmp_path / "source.raw"
    chunk = random.Random(1).randbytes(1 << 20)
    with source.open("wb") as file:
        for _ in range(200):
            file.write(chunk)
        file.truncate(size)
    command = [
        sys.executable, "-m", "ringzero", "disk", "convert", "-f", "raw", "-O", "qcow2",
        "-m", "1", str(source), str(tmp_path / "target"),
    ]  # fmt: skip
    work = tmp_path / ".target.convert"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (work / "target").exists() or (work / "target").stat().st_size < 8 << 20:
        time.sleep(0.001)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (tmp_path / "target").exists()
    note = json.loads((work / "progress.json").read_text())
    assert 0 < note["done"] < size
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "went on at" in done.stderr
    assert not work.exists()
    with open_disk(tmp_path / "target", read_only=True) as disk:
        for at in range(0, 200 << 20, 1 << 20):
            assert disk.read(at, 1 << 20) == chunk
        assert disk.check().errors == 0


def test_changed_source_starts_again(tmp_path, disk, source):
    work = tmp_path / ".target.convert"
    work.mkdir()
    (work / "progress.json").write_text(json.dumps({"identity": "another", "done": 4096}))
    (work / "target").write_bytes(b"rubbish")
    assert disk("convert", "-O", "raw", "source.raw", "target")[0] == 0
    assert (tmp_path / "target").read_bytes() == source


def test_names_of_files_behind_two_dashes(disk, tmp_path):
    assert disk("create", "-f", "qcow2", "--", "-odd.qcow2", "1M")[0] == 0
    assert disk("info", "--", "-odd.qcow2")[0] == 0
    assert disk("convert", "-q", "-O", "raw", "--", "-odd.qcow2", "--json")[0] == 0
    assert names(tmp_path) == ["--json", "-odd.qcow2"]
    code, _, err = disk("info", "--")
    assert code == 2
    assert "filename" in err


def test_a_moved_chain_is_told_on_stderr(disk, tmp_path):
    (tmp_path / "new").mkdir()
    assert disk("create", "-f", "qcow2", "gone.qcow2", "1M")[0] == 0
    assert disk("create", "-f", "qcow2", "-b", f"{tmp_path}/gone.qcow2", "top.qcow2")[0] == 0
    for name in ("gone.qcow2", "top.qcow2"):
        (tmp_path / name).rename(tmp_path / "new" / name)
    code, out, err = disk("info", "--json", "new/top.qcow2")
    assert code == 0
    assert json.loads(out)["backing-filename"] == f"{tmp_path}/gone.qcow2"
    assert err == (
        f"ringzero: new/top.qcow2 needs {tmp_path}/gone.qcow2, which does not exist: "
        f"{tmp_path}/new/gone.qcow2 is taken\n"
    )


def test_a_conversion_loads_no_more_than_it_needs(tmp_path):
    source = tmp_path / "a.raw"
    source.write_bytes(b"x" * 65536)
    code = (
        "import sys\nfrom ringzero.cli.entry import main\nmain()\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    words = [
        "disk",
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "qcow2",
        str(source),
        str(tmp_path / "b.qcow2"),
    ]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *words], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])})  # fmt: skip
    unwanted = {"argparse", "concurrent.futures", "ctypes", "dataclasses", "json", "logging"}
    assert "ringzero.disk.copying" in done.stderr.split()
    assert not unwanted & set(done.stderr.split())


def test_images_are_named_as_qemu_names_them(disk, source, tmp_path):
    assert disk("convert", "-q", "-O", "qcow2", "source.raw", "a.qcow2")[0] == 0
    names = (
        "file:a.qcow2",
        'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a.qcow2"}}',
        'json:{"file.filename": "a.qcow2"}',
    )
    for name in names:
        for words in (["info", "-f", "qcow2"], ["check"], ["map"]):
            assert disk(*words, name)[0] == 0
        assert disk("compare", name, "source.raw")[0] == 0
    part = 'json:{"driver": "raw", "offset": 512, "size": 1024, "file": {"filename": "source.raw"}}'
    assert disk("convert", "-q", part, "-O", "raw", "part.raw")[0] == 0
    assert (tmp_path / "part.raw").read_bytes() == source[512:1536]
    # A name that leads to the target is seen.
    assert disk("convert", "-q", "--force", names[2], "a.qcow2")[0] == 2
    for name in (
        "nbd://localhost/x",
        "https://localhost/x.raw",
        'json:{"driver": "nbd"}',
        "json:{",
    ):
        code, _, err = disk("info", name)
        assert code == 6 and "copy it to this host first" in err
    # A file of that name is what is meant.
    (tmp_path / "file:a").write_bytes(bytes(512))
    assert "virtual size: 512 B" in disk("info", "-f", "raw", "file:a")[1]


def test_words_of_qemu_img(disk, source):
    assert disk("convert", "-q", "-W", "-T", "none", "-O", "qcow2", "source.raw", "a.qcow2")[0] == 0
    code, _, err = disk("convert", "-t", "bad", "-O", "qcow2", "source.raw", "b.qcow2")
    assert code == 2 and "writethrough" in err
    assert disk("create", "-q", "-f", "qcow2", "-o", "size=5M", "c.qcow2")[0] == 0
    more = "backing_file=a.qcow2,backing_fmt=qcow2,cluster_size=4k"
    assert disk("create", "-q", "-f", "qcow2", "-o", more, "d.qcow2")[0] == 0
    told = json.loads(disk("info", "--output", "json", "d.qcow2")[1])
    assert told["backing-filename"] == "a.qcow2" and told["cluster-size"] == 4096
    assert told["virtual-size"] == SIZE
    assert disk("create", "-q", "-f", "qcow2", "-o", "size=5M", "e.qcow2", "6M")[0] == 2


def test_a_snapshot_has_a_name(disk):
    disk("create", "-q", "a.qcow2", "1M")
    for flag in ("-c", "-a", "-d"):
        code, out, err = disk("snapshot", flag, "", "a.qcow2")
        assert code == 2 and not out and "empty" in err
