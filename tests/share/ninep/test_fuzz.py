"""Requests that nobody would send: every one gets an answer or none, and nothing outside changes.

RINGZERO_FUZZ=N multiplies the number of examples (`make fuzz`).
"""

import os
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.share.ninep import wire
from tests.share.ninep.client import client_of

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# All kinds: answers too, which no guest sends.
KINDS = st.integers(0, 255)
# Numbers that a server may trip over, among them those of fids that there are.
NUMBERS = st.sampled_from([*range(8), 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
NAMES = st.sampled_from(
    [
        b"a",
        b"d",
        b"link",
        b"..",
        b".",
        b"",
        b"../secret",
        b"x" * 255,
        b"x" * 300,
        b"\xff\xfe",
        b"\0",
    ]
)
PIECES = st.one_of(
    NUMBERS.map(lambda number: struct.pack("<Q", number)),
    NUMBERS.map(lambda number: struct.pack("<I", number & 0xFFFFFFFF)),
    NUMBERS.map(lambda number: struct.pack("<H", number & 0xFFFF)),
    NAMES.map(wire.string),
    st.binary(max_size=64),
)
USEFUL = [
    value
    for value in vars(wire).values()
    if isinstance(value, int) and 8 <= value <= wire.REMOVE and not value % 2
]
REQUESTS = st.tuples(
    st.one_of(st.sampled_from(USEFUL), KINDS),
    st.sampled_from([0, 1, 2, wire.NO_TAG]),
    st.lists(PIECES, max_size=8).map(b"".join),
    st.sampled_from([0, 6, 7, 8, 11, 20, 160, 4096]),
    # How much longer the message says that it is.
    st.sampled_from([0, 0, 0, 0, 1, -1, -100, 1 << 20]),
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
    for kind, tag, body, room, more in requests:
        if kind == wire.SETATTR and body[16:20].strip(b"\0"):
            # A file of an exabyte is allowed, and takes the host's disk.
            continue
        length = max(0, min(wire.HEADER.size + len(body) + more, 0xFFFFFFFF))
        whole = wire.HEADER.pack(length, kind, tag) + body
        cut = data.draw(st.sampled_from([len(whole), 20, 8, 6, 0]))
        error, answer = client.raw([whole[:cut]], room)
        assert error in ("wait", None) or 0 <= error < 512
        assert len(answer) <= max(0, room - wire.HEADER.size)
    assert client.server.faults == 0, repr(client.server.fault)
    saved = client.server.save()
    client.server.restore(saved)
    client.server.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert (place / "secret").read_text() == "outside"
    assert sorted(os.listdir(place)) == ["secret", "shared"]
    for path in shared.rglob("*"):
        assert not path.lstat().st_mode & 0o6000
