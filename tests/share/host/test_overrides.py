"""What the host's files cannot have is kept in a file beside them, for the next machine too."""

import errno
import os
import stat

import pytest

from ringzero.share.backends.host import HostTree
from ringzero.share.contract import Change
from ringzero.share.host import overrides
from ringzero.share.host.overrides import SideFile
from ringzero.share.host.owners import Override, Owners

ONE, TWO = Override(1, 2, 0o100644, 0, 0o100600), Override(3, 4, 0o120777, 0, 0o120777)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "shared"
    made.mkdir()
    return made


@pytest.fixture
def tree_of(tmp_path, folder):
    made = []

    def make():
        owners = Owners(False)
        made.append(HostTree(str(folder), owners=owners, beside=tmp_path / "beside"))
        return made[-1]

    yield make
    for tree in made:
        tree.close()


@pytest.fixture
def no_attributes(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, "no attributes")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)


def owner(tree, name):
    _, found = tree.lookup(tree.root(), name)
    return found.mode, found.uid, found.gid


def test_links_keep_their_owners_for_the_next_machine(tree_of, folder, tmp_path):
    (folder / "s").symlink_to("nowhere")
    tree = tree_of()
    node, _ = tree.lookup(tree.root(), b"s")
    assert not (tmp_path / "beside").exists()
    tree.change(node, Change(uid=5, gid=6))
    assert owner(tree_of(), b"s") == (stat.S_IFLNK | 0o777, 5, 6)


@pytest.mark.usefixtures("no_attributes")
def test_files_where_the_host_has_no_attributes(tree_of, folder):
    one, two = tree_of(), tree_of()
    node, _, file = one.create(one.root(), b"a", os.O_RDWR, 0o4755, (7, 8))
    file.close()
    assert owner(one, b"a") == (stat.S_IFREG | 0o4755, 7, 8)
    # Seen by a machine that runs already, and after a start.
    assert owner(two, b"a") == owner(tree_of(), b"a") == (stat.S_IFREG | 0o4755, 7, 8)
    assert not (folder / "a").stat().st_mode & 0o7000
    one.change(node, Change(mode=0o644, uid=0, gid=0))
    assert owner(tree_of(), b"a") == (stat.S_IFREG | 0o644, 0, 0)


@pytest.mark.usefixtures("no_attributes")
def test_another_file_in_its_place_has_nothing_of_it(tree_of, folder, tmp_path):
    tree = tree_of()
    node, _ = tree.make(tree.root(), b"fifo", stat.S_IFIFO | 0o600, 0, (1, 1))
    tree.unlink(tree.root(), b"fifo", directory=False)
    tree.forget(node)
    (side,) = (tmp_path / "beside").iterdir()
    assert side.read_bytes().endswith(b" -\n")
    (folder / "fifo").write_text("a file")
    mode, uid, _ = owner(tree_of(), b"fifo")
    assert (stat.S_IFMT(mode), uid) == (stat.S_IFREG, 0)


def test_the_last_line_for_a_file_counts_and_nonsense_is_nothing(tmp_path):
    side = SideFile(b"/a folder", tmp_path)
    assert side.empty
    side.set((0, 1, 2), ONE)
    side.set((0, 1, 2), TWO)
    side.set((0, 5, 6), ONE)
    side.set((0, 5, 6), None)
    side.close()
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b"nonsense\n1 2\n1 2 3 1:zz\n\xff\xff 1 1 -\n\n0 9 9 1:1")
    again = SideFile(b"/a folder", tmp_path)
    assert (again.get((0, 1, 2)), again.get((0, 5, 6)), again.get((0, 9, 9))) == (TWO, None, None)
    again.close()


def test_another_folder_s_file_is_left_alone(tmp_path):
    side = SideFile(b"/a", tmp_path)
    side.set((0, 1, 2), ONE)
    side.close()
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    path.write_bytes(before.replace(b"/a\n", b"/b\n"))
    other = SideFile(b"/a", tmp_path)
    assert other.get((0, 1, 2)) is None
    other.set((0, 1, 2), TWO)
    assert other.get((0, 1, 2)) == TWO
    assert path.read_bytes() == before.replace(b"/a\n", b"/b\n")


def test_a_place_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    side = SideFile(b"/a", tmp_path / "file" / "beside")
    side.set((0, 1, 2), ONE)
    assert side.get((0, 1, 2)) == ONE


def test_whoever_is_alone_writes_it_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(overrides, "_MANY", 10)
    side = SideFile(b"/a", tmp_path)
    for number in range(50):
        side.set((0, number % 2, 0), Override(number, 0, 0, 0, 0))
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    second = SideFile(b"/a", tmp_path)
    assert path.stat().st_size == size
    side.close()
    second.close()
    third = SideFile(b"/a", tmp_path)
    assert path.stat().st_size < size / 10
    assert third.get((0, 1, 0)) == Override(49, 0, 0, 0, 0)
    third.close()


def wait_for_the_next_tick(path):
    """Return when what changes now has a later change time than a file."""
    probe = path.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        os.utime(probe)


def test_a_file_without_an_attribute_is_asked_once_until_it_changes(tree_of, folder, monkeypatch):
    (folder / "a").touch()
    os.utime(folder / "a")
    asked, plain = [], os.getxattr

    def getxattr(*arguments):
        asked.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(os, "getxattr", getxattr)
    one, two = tree_of(), tree_of()

    def look(tree):
        node, found = tree.lookup(tree.root(), b"a")
        tree.forget(node)
        return found.uid

    # It has just changed: another change might bear the same time.
    assert look(one) == look(one) == 0
    assert len(asked) == 2
    monkeypatch.setattr(overrides, "_SETTLED", -(1 << 62))
    assert look(one) == look(one) == look(one) == 0
    assert len(asked) == 3
    # What another machine sets is seen, and what this one does.
    for setting, uid in ((two, 7), (one, 0), (two, 8)):
        wait_for_the_next_tick(folder / "a")
        node, _ = setting.lookup(setting.root(), b"a")
        setting.change(node, Change(uid=uid))
        setting.forget(node)
        assert look(one) == look(two) == uid


def test_only_so_many_files_are_remembered(tree_of, folder, monkeypatch):
    monkeypatch.setattr(overrides, "_SETTLED", -(1 << 62))
    monkeypatch.setattr(overrides, "_REMEMBERED", 3)
    tree = tree_of()
    for number in range(10):
        (folder / str(number)).touch()
        tree.lookup(tree.root(), b"%d" % number)
        assert len(tree._overrides._without) <= 3


def test_a_file_that_was_let_go_has_what_another_machine_set(folder):
    (folder / "a").touch()
    for number in range(20):
        (folder / str(number)).touch()
    one = HostTree(str(folder), owners=Owners(False), limit=4)
    two = HostTree(str(folder), owners=Owners(False))
    node, found = one.lookup(one.root(), b"a")
    assert found.uid == 0
    wait_for_the_next_tick(folder / "a")
    theirs, _ = two.lookup(two.root(), b"a")
    two.change(theirs, Change(uid=7))
    for number in range(20):
        one.lookup(one.root(), b"%d" % number)
    assert one.attributes(node).uid == 7
    one.close()
    two.close()
