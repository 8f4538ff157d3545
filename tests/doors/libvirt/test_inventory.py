"""Machines as domains: what is remembered of their files is what they say."""

import os
import time

import pytest

from ringzero.control.host import client
from ringzero.doors.libvirt import inventory
from ringzero.doors.libvirt.constants import DomainState
from ringzero.doors.libvirt.context import RefusedError
from tests.control.fake import start


@pytest.fixture
def host(fakes, root):
    return client.host()


def age(where, seconds=60):
    """Make a machine's files so old that they are remembered."""
    for path in where.path.rglob("*"):
        if path.is_file():
            found = path.stat()
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - seconds * 10**9))


def test_files_that_are_as_they_were_are_not_read_again(host, monkeypatch):
    host.define({"kernel": "/dev/null"}, name="d1")
    where = client.machine("d1").directory
    age(where)
    first = inventory.look(where.path)

    def summary(self):
        raise AssertionError("read again")

    monkeypatch.setattr(type(where), "summary", summary)
    assert inventory.look(where.path) is first
    assert inventory.by_name(host, "d1") is first.domain
    assert inventory.domains(host) == [first.domain]
    os.utime(where.path / "machine.json")
    with pytest.raises(AssertionError):
        inventory.look(where.path)


def test_files_that_have_just_changed_are_not_remembered(host):
    host.define({"kernel": "/dev/null"}, name="d1")
    path = client.machine("d1").directory.path
    # However long this test takes.
    soon = time.time() + 60
    os.utime(path / "machine.json", (soon, soon))
    assert inventory.look(path) is not inventory.look(path)


def test_each_change_of_a_machine_is_seen(host):
    start("web")
    machine = client.machine("web")
    where = machine.directory

    def state():
        age(where)
        first, again = inventory.look(where.path), inventory.look(where.path)
        assert first is again
        return first.state

    handle = inventory.by_name(host, "web").handle
    assert state() is DomainState.RUNNING
    machine.pause()
    assert state() is DomainState.PAUSED
    machine.resume()
    assert state() is DomainState.RUNNING
    machine.kill()
    assert state() is DomainState.SHUTOFF
    machine.rename("web2")
    assert inventory.look(where.path) is None
    assert inventory.seen(host, handle).domain.name == "web2"
    client.machine("web2").remove()
    with pytest.raises(RefusedError, match="no domain"):
        inventory.seen(host, handle)
    assert inventory.domains(host) == []


def test_what_is_no_machine_is_none(host, root):
    root.mkdir(exist_ok=True)
    (root / "file").write_text("")
    (root / "folder").mkdir()
    (root / "link").symlink_to(root / "folder")
    assert inventory.domains(host) == []
    for name in ("file", "folder", "link", "../x", "", "a/b"):
        with pytest.raises(RefusedError):
            inventory.by_name(host, name)
