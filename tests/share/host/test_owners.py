"""Owners and modes as the guest sets them, for somebody who is not root on the host."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.share.backends.host import HostTree
from ringzero.share.contract import Change
from ringzero.share.host.owners import ATTRIBUTE, Override, Owners
from tests.share.fuse.client import Client

NUMBERS = st.integers(0, (1 << 32) - 1)


@given(st.lists(NUMBERS, min_size=5, max_size=5))
def test_what_is_packed_is_read(numbers):
    assert Override.parse(Override(*numbers).pack()) == Override(*numbers)


@given(st.binary(max_size=40))
def test_what_others_wrote_is_taken_or_not(value):
    found = Override.parse(value)
    assert found is None or all(0 <= number < 1 << 32 for number in found)


@pytest.fixture
def tree(tmp_path):
    made = HostTree(str(tmp_path), owners=Owners(False, os.geteuid(), os.getegid()))
    yield made
    made.close()


def test_files_of_mine_are_root_s_and_others_stay_as_they_are(tmp_path):
    (tmp_path / "a").touch()
    me = os.geteuid()
    tree = HostTree(str(tmp_path), owners=Owners(False, me + 5, os.getegid()))
    assert tree.lookup(tree.root(), b"a")[1].uid == me
    tree.close()
    tree = HostTree(str(tmp_path), owners=Owners(False, me, os.getegid()))
    assert tree.lookup(tree.root(), b"a")[1].uid == 0
    tree.close()


def test_a_mode_that_keeps_its_owner_out_is_kept_beside(tree, tmp_path):
    node, found, file = tree.create(tree.root(), b"a", os.O_RDWR, 0o000, (0, 0))
    file.close()
    assert stat.S_IMODE(found.mode) == 0
    # On the host it can still be opened, by the guest's root.
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert tree.change(node, Change(mode=0o4755)).mode == stat.S_IFREG | 0o4755
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    # A mode that the host's file can have needs nothing beside it.
    tree.change(node, Change(mode=0o644))
    assert ATTRIBUTE.decode() not in os.listxattr(tmp_path / "a")


def test_owners_are_kept_beside(tree, tmp_path):
    before = (tmp_path).stat()
    node, found = tree.make(tree.root(), b"d", stat.S_IFDIR | 0o755, 0, (1000, 1001))
    assert (found.uid, found.gid) == (1000, 1001)
    assert (tmp_path / "d").stat().st_uid == before.st_uid
    assert tree.change(node, Change(uid=7)).uid == 7
    assert tree.attributes(node).gid == 1001
    assert tree.change(node, Change(uid=0, gid=0)).uid == 0
    assert os.listxattr(tmp_path / "d") == []


def test_the_host_s_chmod_counts_again(tree, tmp_path):
    node, _, file = tree.create(tree.root(), b"a", os.O_RDWR, 0o4700, (9, 9))
    file.close()
    (tmp_path / "a").chmod(0o640)
    found = tree.attributes(node)
    assert (stat.S_IMODE(found.mode), found.uid) == (0o640, 9)


def test_links_have_owners_as_long_as_the_machine_runs(tree):
    node, found = tree.symlink(tree.root(), b"s", b"x", (5, 6))
    assert (found.uid, found.gid) == (5, 6)
    assert tree.attributes(node).uid == 5


def test_a_forged_attribute_is_nothing(tree, tmp_path):
    (tmp_path / "a").touch()
    os.setxattr(tmp_path / "a", ATTRIBUTE, b"1:no:numbers:at:all:!")
    client = Client(tree)
    assert client.lookup(client.root, "a")[1].uid == 0
