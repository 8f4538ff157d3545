"""COPY: what goes where, by the Dockerfile reference, and nothing from outside."""

import os
import stat

import pytest

from ringzero.build import entries
from ringzero.build.copying import Placement, document, mode_of, owner_of, plan
from ringzero.build.entries import Entry
from ringzero.build.origin import Context, Image, matches
from ringzero.build.view import View
from ringzero.errors import InvalidValueError, MissingFileError


@pytest.fixture
def context(tmp_path):
    place = tmp_path / "context"
    (place / "sub/deep").mkdir(parents=True)
    (place / "a.txt").write_text("a")
    (place / "b.txt").write_text("bb")
    (place / "sub/c").write_text("ccc")
    (place / "sub/c").chmod(0o755)
    (place / "sub/deep/d").write_text("d")
    (place / "sub/link").symlink_to("c")
    return place


def view_of(tmp_path, *some: Entry) -> View:
    path = tmp_path / "layer.tar"
    with path.open("wb") as file:
        entries.write(some, file, 0)
    return View(None, [path])


def directory(name: bytes) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def copied(context, sources, target, view=None, documents=None, **placement):
    found = plan(
        Context(context),
        sources,
        documents or {},
        Placement(target, **placement),
        view or View(None),
    )
    return {os.fsdecode(entry.name): entry for entry in found}


@pytest.mark.parametrize(
    ("sources", "target", "names"),
    [
        (["a.txt"], "/x", ["x"]),
        (["a.txt"], "/x/", ["x", "x/a.txt"]),
        (["a.txt", "b.txt"], "/x", ["x", "x/a.txt", "x/b.txt"]),
        (["*.txt"], "/x/", ["x", "x/a.txt", "x/b.txt"]),
        (["sub"], "/x", ["x", "x/c", "x/deep", "x/deep/d", "x/link"]),
        (["sub/deep", "a.txt"], "/", ["a.txt", "d"]),
        (["."], "/x", ["x", "x/a.txt", "x/b.txt", "x/sub", "x/sub/c", "x/sub/deep",
                       "x/sub/deep/d", "x/sub/link"]),
        (["sub/link"], "/x", ["x"]),
        (["./sub//c"], "/x", ["x"]),
    ],
)  # fmt: skip
def test_what_goes_where(context, sources, target, names):
    assert sorted(copied(context, sources, target)) == names


def test_modes_owners_links_and_content(context):
    found = copied(context, ["sub"], "/x", owner=(5, 6))
    assert stat.S_IMODE(found["x/c"].mode) == 0o755
    assert found["x/link"].link == b"c"
    assert b"".join(found["x/c"].content()) == b"ccc"
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(5, 6)}
    found = copied(context, ["sub"], "/x", mode=mode_of("0600"))
    assert stat.S_IMODE(found["x/c"].mode) == 0o600
    assert stat.S_ISLNK(found["x/link"].mode)


def test_a_directory_that_is_there_takes_the_file(context, tmp_path):
    view = view_of(tmp_path, directory(b"tmp"))
    assert list(copied(context, ["a.txt"], "/tmp", view)) == ["tmp/a.txt"]


def test_links_of_the_image_are_followed_inside_it(context, tmp_path):
    view = view_of(
        tmp_path,
        directory(b"usr/lib"),
        Entry(b"lib", stat.S_IFLNK | 0o777, link=b"usr/lib"),
        Entry(b"out", stat.S_IFLNK | 0o777, link=b"../../etc"),
    )
    assert list(copied(context, ["a.txt"], "/lib/x", view)) == ["usr/lib/x"]
    assert list(copied(context, ["a.txt"], "/out/x", view)) == ["etc", "etc/x"]


def test_parents_and_exclude(context):
    found = copied(context, ["sub/deep/d"], "/x/", parents=True)
    assert sorted(found) == ["x", "x/sub", "x/sub/deep", "x/sub/deep/d"]
    found = copied(context, ["sub"], "/x", exclude=("deep", "*k"))
    assert sorted(found) == ["x", "x/c"]


def test_here_documents(context):
    found = copied(context, ["one", "a.txt"], "/x", documents={"one": document("one", b"text")})
    assert b"".join(found["x/one"].content()) == b"text"
    assert "x/a.txt" in found


def test_the_ignore_file_and_files_taken_back(context):
    (context / ".dockerignore").write_text("*\n!sub/deep\n")
    assert sorted(copied(context, ["."], "/x")) == ["x", "x/sub", "x/sub/deep", "x/sub/deep/d"]
    (context / ".vmignore").write_text("sub\n")
    assert "x/a.txt" in copied(context, ["."], "/x")
    with pytest.raises(MissingFileError, match="no 'sub/c'"):
        copied(context, ["sub/c"], "/x")


@pytest.mark.parametrize("source", ["../outside", "sub/../../outside", "leaves/secret", "leaves"])
def test_nothing_leads_out(context, tmp_path, source):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "outside").write_text("s")
    (context / "leaves").symlink_to(tmp_path)
    with pytest.raises(InvalidValueError, match="leads out"):
        copied(context, [source], "/x")


def test_a_link_out_is_copied_as_a_link(context, tmp_path):
    (context / "sub/out").symlink_to(tmp_path)
    assert copied(context, ["sub"], "/x")["x/out"].link == os.fsencode(tmp_path)


def test_what_is_not_there(context):
    with pytest.raises(MissingFileError, match="no 'nothing'"):
        copied(context, ["nothing"], "/x")
    with pytest.raises(MissingFileError):
        copied(context, ["*.zip"], "/x")


def test_a_file_for_a_directory_and_the_other_way(context, tmp_path):
    view = view_of(tmp_path, directory(b"d/a.txt"), entry_of(b"f"))
    with pytest.raises(InvalidValueError, match="is a directory of the image"):
        copied(context, ["a.txt"], "/d/", view)
    with pytest.raises(InvalidValueError, match="is a file of the image"):
        copied(context, ["a.txt"], "/f/", view)
    with pytest.raises(InvalidValueError, match="no octal mode"):
        mode_of("u+x")


def entry_of(name: bytes, data: bytes = b"x") -> Entry:
    return Entry(name, stat.S_IFREG | 0o644, size=len(data), content=lambda: iter((data,)))


def test_files_of_another_image(tmp_path):
    view = view_of(
        tmp_path,
        entry_of(b"usr/bin/tool", b"program"),
        Entry(b"bin", stat.S_IFLNK | 0o777, link=b"usr/bin"),
    )
    origin = Image(view)
    assert matches(origin, "/bin/t*") == [b"bin/tool"]
    found = plan(origin, ["/bin/tool"], {}, Placement("/x"), View(None))
    assert b"".join(found[0].content()) == b"program"


def test_users_by_name(tmp_path):
    passwd = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/w:/bin/sh\n"
    view = view_of(tmp_path, entry_of(b"etc/passwd", passwd), entry_of(b"etc/group", b"g:x:9:\n"))
    assert owner_of("web", view) == (33, 34)
    assert owner_of("web:g", view) == (33, 9)
    assert owner_of("7", view) == (7, 7)
    assert owner_of("7:8", view) == (7, 8)


def test_a_socket_is_left_out(context):
    os.mkfifo(context / "fifo")
    assert "x/fifo" not in copied(context, ["."], "/x")
