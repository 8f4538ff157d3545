"""Folders as streams of tar and back; archives that a guest has made up."""

import contextlib
import io
import os
import stat
import tarfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.api.copying import Rule
from ringzero.errors import GuestError, HostError, InvalidValueError, MissingFileError
from ringzero.host.tarstream import Intake, Plan, Unpacking, plain_stream


@pytest.fixture
def tree(tmp_path):
    """A folder with what folders hold."""
    where = tmp_path / "tree"
    (where / "sub" / "empty").mkdir(parents=True)
    (where / "file").write_bytes(b"content")
    (where / "sub" / "script").write_bytes(b"#!/bin/sh\n" * 100_000)
    (where / "sub" / "script").chmod(0o751)
    (where / "sparse").write_bytes(b"a" + bytes(3 << 20) + b"b")
    (where / "link").symlink_to("file")
    (where / "away").symlink_to("/etc/passwd")
    os.link(where / "file", where / "hard")
    (where / os.fsdecode(b"caf\xe9 \n x")).write_bytes(b"")
    (where / ("long" * 50)).write_bytes(b"long")
    (where / "sub").chmod(0o555)
    os.utime(where / "sub" / "empty", (1e9, 1e9))
    yield where
    (where / "sub").chmod(0o755)


def packed(*sources, **how):
    out = bytearray()
    Plan(list(sources), **how).write(out.extend)
    return io.BytesIO(bytes(out))


def unpack(stream, target, **how):
    with Unpacking(target, **how) as unpacking:
        unpacking.take(stream)
        unpacking.place()
    return unpacking


def described(root):
    """What there is beneath `root`: kinds, modes, times, contents, links."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        name = str(path.relative_to(root))
        if kind == stat.S_IFLNK:
            found[name] = ("link", str(path.readlink()))
        elif kind == stat.S_IFDIR:
            found[name] = ("folder", info.st_mode & 0o7777, int(info.st_mtime))
        else:
            found[name] = (path.read_bytes(), info.st_mode & 0o7777, int(info.st_mtime))
    return found


def archive(*members):
    """An archive of (name, type, more) with contents of b"x"."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind, more in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o6777
            vars_ = {"linkname": more} if isinstance(more, str) else {}
            for key, value in vars_.items():
                setattr(info, key, value)
            content = b"x" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return io.BytesIO(out.getvalue())


def test_a_folder_comes_back_as_it_was(tree, tmp_path):
    unpack(packed(tree), tmp_path / "copy")
    assert described(tmp_path / "copy") == described(tree)
    assert (tmp_path / "copy" / "hard").samefile(tmp_path / "copy" / "file")
    # Holes stay holes.
    assert (tmp_path / "copy" / "sparse").stat().st_blocks * 512 < 1 << 20
    (tmp_path / "copy" / "sub").chmod(0o755)


def test_gnu_tar_reads_what_is_packed(tree, tmp_path):
    import subprocess

    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["tar", "-x", "-p", "-C", str(tmp_path / "out")], input=packed(tree).read(), check=True
    )
    assert done.returncode == 0
    assert described(tmp_path / "out" / "tree") == described(tree)
    (tmp_path / "out" / "tree" / "sub").chmod(0o755)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_what_gnu_tar_packs_is_read(tree, tmp_path, form):
    import subprocess

    sparse = ["-S"] if form != "ustar" else []
    data = subprocess.run(
        ["tar", "-c", *sparse, f"--format={form}", "--exclude=*longlong*", "./tree"],
        cwd=tmp_path, capture_output=True, check=True,
    ).stdout  # fmt: skip
    unpack(io.BytesIO(data), tmp_path / "copy")
    expected = described(tree)
    expected.pop("long" * 50)
    assert described(tmp_path / "copy") == expected
    (tmp_path / "copy" / "sub").chmod(0o755)


def test_rules_are_those_of_cp(tree, tmp_path):
    assert Plan([tree / "file"]).rule is Rule.FILE
    assert Plan([tree]).rule is Rule.FOLDER
    assert Plan([f"{tree}/"]).rule is Rule.FOLDER
    assert Plan([f"{tree}/."]).rule is Rule.CONTENTS
    assert Plan([tree / "link"]).rule is Rule.FILE
    assert Plan([tree, tree / "file"]).rule is Rule.INTO
    with pytest.raises(MissingFileError):
        Plan([tmp_path / "nothing"])
    with pytest.raises(InvalidValueError, match="two of the sources"):
        Plan([tree / "file", f"{tree}/sub/../file"])


def test_where_it_goes(tree, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    unpack(packed(tree / "file"), there)
    unpack(packed(tree / "file"), there / "other")
    assert sorted(os.listdir(there)) == ["file", "other"]
    unpack(packed(tree), there)
    assert (there / "tree" / "file").read_bytes() == b"content"
    (there / "tree" / "sub").chmod(0o755)
    # What is there stays, and is written over.
    (there / "tree" / "mine").write_bytes(b"mine")
    (there / "tree" / "file").write_bytes(b"old")
    unpack(packed(tree), there)
    assert (there / "tree" / "mine").read_bytes() == b"mine"
    assert (there / "tree" / "file").read_bytes() == b"content"
    with pytest.raises(MissingFileError, match="no folder"):
        unpack(packed(tree), tmp_path / "missing" / "x")
    with pytest.raises(HostError, match="is a file"):
        unpack(packed(tree), there / "file")
    with pytest.raises(HostError, match="is a folder"):
        unpack(archive(("tree", tarfile.REGTYPE, None)), there)
    assert not [name for name in os.listdir(there) if name.startswith(".ringzero")]


def test_contents(tree, tmp_path):
    for target in (tmp_path / "new", tmp_path / "tree2"):
        stream = archive((".", tarfile.DIRTYPE, None), ("./a", tarfile.REGTYPE, None))
        unpack(stream, target, contents=True)
        assert os.listdir(target) == ["a"]
    unpack(
        archive(("./b/c", tarfile.REGTYPE, None)), tmp_path / "new", contents=True
    )  # a folder that no member names
    assert (tmp_path / "new" / "b" / "c").read_bytes() == b"x"


REG, LINK, SYM, DIR = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../out", REG, None)],
        [("/tmp/ringzero-out", REG, None)],
        [("a/../../out", REG, None)],
        [("a", SYM, ".."), ("a/out", REG, None)],
        [("a", SYM, "/tmp"), ("a/ringzero-out", REG, None)],
        [("a", DIR, None), ("a/b", SYM, "../.."), ("a/b/out", REG, None)],
        [("a", SYM, "b"), ("b", SYM, ".."), ("a/out", DIR, None)],
        [("a", LINK, "../secret")],
        [("a", LINK, "/etc/passwd")],
        [("s", SYM, ".."), ("a", LINK, "s/secret")],
        [("a", SYM, "../secret"), ("a/b", LINK, "a")],
    ],
)
def test_nothing_is_written_outside(tmp_path, members):
    (tmp_path / "secret").write_bytes(b"secret")
    before = described(tmp_path)
    with pytest.raises((GuestError, HostError)):
        unpack(archive(*members), tmp_path / "target")
    assert described(tmp_path) == before
    assert not os.path.lexists("/tmp/ringzero-out")


def test_a_link_to_a_link_is_no_way_to_what_it_leads_to(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    unpack(
        archive(
            (".", DIR, None), ("s", SYM, "../secret"), ("a", LINK, "s"), ("s", REG, None),
            ("a", REG, None),
        ),
        tmp_path / "target",
        contents=True,
    )  # fmt: skip
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert (tmp_path / "target" / "a").read_bytes() == b"x"


def test_nothing_is_written_through_links_that_were_there(tmp_path):
    (tmp_path / "away").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "s").symlink_to("../away")
    (target / "f").symlink_to("../away/file")
    with pytest.raises(HostError):
        unpack(archive(("s", DIR, None), ("s/x", REG, None)), target)
    unpack(archive(("f", REG, None)), target)
    assert os.listdir(tmp_path / "away") == []
    assert not (target / "f").is_symlink()


def test_no_set_uid_no_devices(tmp_path):
    found = unpack(
        archive((".", DIR, None), ("a", REG, None), ("null", tarfile.CHRTYPE, None)),
        tmp_path / "t",
        contents=True,
    )
    assert stat.S_IMODE((tmp_path / "t" / "a").stat().st_mode) == 0o777
    assert found.skipped == ["null"]
    assert os.listdir(tmp_path / "t") == ["a"]


def test_absurd_headers(tmp_path):
    def refused(data):
        with pytest.raises((GuestError, HostError)):
            unpack(io.BytesIO(data), tmp_path / "t")
        assert os.listdir(tmp_path) == []

    plain = archive(("a", REG, None)).getvalue()
    refused(b"no archive" * 100)
    refused(plain[:600] if plain[:600] != plain[:512] else b"")
    # A size that no file can have, one below zero, and a name of 4 GiB.
    for size in (b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"37777777777\0"):
        for kind in (b"0", b"L", b"x", b"g", b"S"):
            head = bytearray(plain[:512])
            head[124:136], head[156:157] = size, kind
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
            # Of a sparse file another size counts.
            if (kind, size[:1]) != (b"S", b"\xff"):
                refused(bytes(head) + bytes(4096))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_forged_archives_never_lead_out(tmp_path_factory, data):
    where = tmp_path_factory.mktemp("forged")
    (where / "secret").write_bytes(b"secret")
    part = st.sampled_from(["a", "b", "..", ".", "", "secret"])
    name = st.lists(part, min_size=1, max_size=4).map("/".join)
    member = st.tuples(name, st.sampled_from([REG, LINK, SYM, DIR, b"S"]), name)
    stream = bytearray(archive(*data.draw(st.lists(member, max_size=6))).getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    (where / "in").mkdir()
    with contextlib.suppress(GuestError, HostError):
        unpack(io.BytesIO(bytes(stream)), where / "in", contents=data.draw(st.booleans()))
    assert sorted(os.listdir(where)) == ["in", "secret"]
    assert (where / "secret").read_bytes() == b"secret"
    assert (where / "secret").stat().st_nlink == 1
    assert not [n for n in os.listdir(where / "in") if n.startswith(".ringzero")]


def test_what_cannot_be_read_is_told(tree, tmp_path):
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "again").symlink_to(".")
    with pytest.raises(InvalidValueError, match="leads back"):
        packed(loop, follow=True)
    plan = Plan([tree / "sparse"])
    with pytest.raises(HostError, match="became shorter"):

        def shorten(data):
            os.truncate(tree / "sparse", 100)

        os.truncate(tree / "sparse", 100 << 20)
        plan.write(shorten)


def test_follow_and_owners(tree, tmp_path):
    unpack(packed(tree / "link", follow=True), tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    for owners in (False, True):
        stream = packed(tree / "file", owners=owners)
        with tarfile.open(fileobj=stream) as made:
            uid = made.next().uid
        assert uid == (tree.stat().st_uid if owners else 0)


def test_an_intake_carries_bytes_and_faults():
    intake = Intake()
    received = bytearray()

    def read():
        while data := intake.read(1000):
            received.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        if not intake.feed(bytes(100_000)):
            intake.wait_room()
    intake.close()
    reader.join(10)
    assert len(received) == 10_000_000
    intake = Intake()
    intake.feed(b"abc")
    intake.close(GuestError("it broke off"))
    assert intake.read(10) == b"abc"
    with pytest.raises(GuestError, match="broke off"):
        intake.read(1)
    intake.leave()
    assert intake.feed(bytes(100 << 20))


@pytest.mark.parametrize("kind", ["gzip", "bz2", "lzma"])
def test_compressed_archives(kind):
    from importlib import import_module

    data = archive(("a", REG, None)).getvalue()
    packed_data = import_module(kind).compress(data)
    assert plain_stream(io.BufferedReader(io.BytesIO(packed_data))).read(1 << 20) == data
    assert plain_stream(io.BufferedReader(io.BytesIO(data))).read(1 << 20) == data
