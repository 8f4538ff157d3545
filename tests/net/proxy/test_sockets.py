"""Guests get sockets as long as the machine itself has some to spare."""

import contextlib
import errno
import resource
import socket

import pytest

from ringzero.net.proxy import sockets


@pytest.mark.parametrize(("limit", "kept"), [(1024, 32), (64, 16)])
def test_some_are_left(monkeypatch, limit, kept):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))

    class Link:
        closed = False

        def __init__(self, number):
            self.number = number

        def fileno(self):
            return self.number

        def close(self):
            self.closed = True

    last, first = Link(limit - kept - 1), Link(limit - kept)
    assert sockets.spare(last) is last and not last.closed
    with pytest.raises(OSError) as caught:
        sockets.spare(first)
    assert caught.value.errno == errno.EMFILE and first.closed


def test_a_host_that_has_none():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(socket.socket()) as probe:
        lowest = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            sockets.open_socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with sockets.open_socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        assert not link.getblocking()
