"""Requests that nobody would send: every one gets an answer or none, and nothing outside changes.

RINGZERO_FUZZ=N multiplies the number of examples (`make fuzz`).
"""

import os
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.share.fuse import wire
from tests.share.fuse.client import client_of

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
OPCODES = [value for name, value in vars(wire).items() if name.endswith("_OP")]
# Numbers that a server may trip over, among them those of nodes and handles that there are.
NUMBERS = st.sampled_from([*range(8), 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
NAMES = st.sampled_from(
    [b"a", b"d", b"link", b"..", b".", b"", b"../secret", b"x" * 255, b"x" * 300, b"\xff\xfe"]
)
PIECES = st.one_of(
    NUMBERS.map(lambda number: struct.pack("<Q", number)),
    NUMBERS.map(lambda number: struct.pack("<I", number & 0xFFFFFFFF)),
    NAMES.map(lambda name: name + b"\0"),
    st.binary(max_size=64),
)
REQUESTS = st.tuples(
    st.sampled_from([*OPCODES, 0, 7, 99, (1 << 32) - 1]),
    NUMBERS,
    st.lists(PIECES, max_size=8).map(b"".join),
    st.sampled_from([0, 15, 16, 20, 144, 4096]),
)


@settings(max_examples=60 * FUZZ, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=40), st.data())
def test_any_sequence_of_requests(tmp_path_factory, requests, data):
    place = tmp_path_factory.mktemp("fuzz")
    (place / "secret").write_text("outside")
    shared = place / "shared"
    (shared / "d").mkdir(parents=True)
    (shared / "a").write_text("text")
    (shared / "link").symlink_to("../secret")
    before = len(os.listdir("/proc/self/fd"))
    client = client_of(shared, limit=16)
    for name in ("a", "d", "link"):
        client.lookup(client.root, name)
    client.open(client.walk("a"))
    for opcode, node, body, room in requests:
        if opcode == wire.FALLOCATE_OP or (opcode == wire.SETATTR_OP and body[20:24].strip(b"\0")):
            # A file of an exabyte is allowed, and takes the host's disk.
            continue
        header = wire.IN_HEADER.pack(40 + len(body), opcode, 2, node, 0, 0, 0, 0, 0)
        whole = header + body
        cut = data.draw(st.sampled_from([len(whole), 40, 39, 12, 0]))
        error, answer = client.raw([whole[:cut]], room)
        assert error in ("wait", None) or 0 <= error < 512
        assert len(answer) <= max(0, room - 16)
    assert client.server.faults == 0, repr(client.server.fault)
    saved = client.server.save()
    client.server.restore(saved)
    client.server.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert (place / "secret").read_text() == "outside"
    assert sorted(os.listdir(place)) == ["secret", "shared"]
    for path in shared.rglob("*"):
        found = path.lstat()
        assert not found.st_mode & 0o6000
