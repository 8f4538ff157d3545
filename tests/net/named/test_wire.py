"""Messages between a machine and its network's process, whole and broken."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.core.frames import GSO_TCP4, Frame
from ringzero.net.named.wire import Decoder, WireError, frame_message, object_message

frames = st.builds(
    Frame,
    st.binary(max_size=80),
    st.lists(st.binary(max_size=50), max_size=3),
    *(st.integers(0, 0xFFFF) for _ in range(2)),
    st.sampled_from([0, GSO_TCP4]),
    st.integers(0, 0xFFFF),
)
objects = st.dictionaries(st.text(max_size=5), st.integers(-9, 9), max_size=3)


def packed(message):
    return (
        b"".join(frame_message(message)) if isinstance(message, Frame) else object_message(message)
    )


def plain(message):
    if not isinstance(message, Frame):
        return message
    fields = message.checksum_start, message.checksum_offset, message.gso, message.gso_size
    return message.data(), *fields


@given(st.lists(frames | objects, max_size=5), st.integers(1, 40))
def test_what_is_packed_is_read(messages, step):
    data, decoder, found = b"".join(map(packed, messages)), Decoder(), []
    for at in range(0, len(data), step):
        found += decoder.feed(data[at : at + step])
    assert list(map(plain, found)) == list(map(plain, messages))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff\0",
        b"\0\0\0\1\2x",
        b"\0\0\0\3\0abc",
        b"\0\0\0\1\1x",
        b"\0\0\0\2\1[]",
        b"\0\2\0\0\0",
        b"\0\x10\0\1\1",
    ],
)
def test_nonsense_is_refused(data):
    with pytest.raises(WireError):
        Decoder().feed(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(WireError):
        Decoder().feed(data)
