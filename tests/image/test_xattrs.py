"""The guest's program for extended attributes, run here: it is a program for Linux."""

import contextlib
import os
import platform
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.guest import xattrs

ATTRIBUTES = {b"user.a": b"1\0\n2", b"user.long.name": b"x" * 999, b"user.empty": b""}


@pytest.fixture
def program(tmp_path):
    if platform.machine() != "x86_64":
        pytest.skip("needs x86-64")
    path = tmp_path / "xattrs"
    path.write_bytes(xattrs.build())
    path.chmod(0o755)
    return path


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    try:
        os.setxattr(path, "user.a", b"1")
    except OSError:
        pytest.skip("the file system of tests takes no user attributes")
    return path


def ran(*words, given=b""):
    return subprocess.run(words, input=given, capture_output=True, check=True, timeout=30).stdout


def test_what_is_told_can_be_set(program, file, tmp_path):
    for name, value in ATTRIBUTES.items():
        os.setxattr(file, name, value)
    (tmp_path / "link").symlink_to(file)
    names = [os.fsencode(file), b"/nothing", os.fsencode(tmp_path / "link"), os.fsencode(program)]
    told = ran(os.fsencode(program), *names)
    records, end = xattrs.unpack(memoryview(told + b"\0rest"))
    assert end == len(told) + 1
    # A link is not what it leads to.
    assert {path for path, _, _ in records} == {os.fsencode(file)}
    assert {name: value for _, name, value in records} == ATTRIBUTES

    other = tmp_path / "other"
    other.write_text("y")
    moved = [(os.fsencode(other), name, value) for _, name, value in records]
    # What cannot be set is passed over.
    for data in xattrs.pack([(b"/nothing", b"user.a", b"1"), *moved]):
        assert ran(program, given=data) == b""
    assert {os.fsencode(n): os.getxattr(other, n) for n in os.listxattr(other)} == ATTRIBUTES


def test_records_come_in_pieces_that_the_program_takes(program, file):
    value = b"v" * 60_000
    records = [(os.fsencode(file), b"user.a", value + bytes([i % 251])) for i in range(300)]
    pieces = list(xattrs.pack(records))
    assert len(pieces) > 1
    assert max(map(len, pieces)) < xattrs.ROOM_SIZE
    assert [r for p in pieces for r in xattrs.unpack(memoryview(p + b"\0"))[0]] == records
    assert list(xattrs.pack([])) == []


def test_what_a_guest_may_say(program):
    for data in (b"", b"a", b"a\0b", b"a\0b\0\1", b"a\0b\0" + b"\xff" * 8, b"a\0b\0" + bytes(8)):
        with pytest.raises(GuestImageError, match="attributes"):
            xattrs.unpack(memoryview(data))


@given(st.binary(max_size=60))
def test_hostile_records(data):
    with contextlib.suppress(GuestImageError):
        _, end = xattrs.unpack(memoryview(data))
        assert end <= len(data)
