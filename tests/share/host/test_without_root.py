"""The server in a process without root."""

import os
import stat
import sys
import traceback

import pytest

from ringzero.share.fuse import wire
from tests.share.fuse.client import client_of

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="everything here runs without root anyway")
def test_a_guest_s_root_is_whoever_runs_the_server(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "roots").write_text("root's")
    (shared / "roots").chmod(0o600)
    os.chown(shared, NOBODY, NOBODY)
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            _work(shared)
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (shared / "a").stat().st_uid == NOBODY
    assert (shared / "a").stat().st_mode & 0o7000 == 0


def _work(shared):
    client = client_of(shared)
    assert client.stat(client.root).uid == 0
    node, handle = client.create(client.root, "a", mode=0o400)
    assert client.stat(node).uid == 0
    client.write(node, handle, 0, b"mine")
    assert client.truncate(node, 2).size == 2
    found = client.chown(node, 33, 44)
    assert (found.uid, found.gid) == (33, 44)
    assert client.chmod(node, 0o4555).mode == stat.S_IFREG | 0o4555
    # The guest's root goes on opening what it may not, as roots do.
    client.open(node, os.O_RDWR)
    made, _ = client.mknod(client.root, "null", stat.S_IFCHR | 0o666, 0x103)
    assert client.stat(made).rdev == 0x103
    client.symlink(client.root, "s", "a")
    client.link(node, client.root, "b")
    client.setxattr(node, "trusted.a", b"1")
    client.set(node, wire.SET_MTIME, mtime=5)
    # What the host does not let its user read, the guest's root cannot either.
    secret = client.walk("roots")
    error, _ = client.try_call(wire.OPEN_OP, secret, wire.OPEN.pack(os.O_RDONLY, 0))
    assert error == 13
    client.unlink(client.root, "b")
    client.server.close()
