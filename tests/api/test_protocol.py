import contextlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.api.protocol import (
    MAX_DATA,
    MAX_MESSAGE,
    Data,
    Decoder,
    Message,
    check_greeting,
    encode_data,
    encode_message,
    greeting,
)
from ringzero.errors import ProtocolError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
frames = st.lists(
    st.builds(Message, st.dictionaries(st.text(), json_values, max_size=4))
    | st.builds(Data, st.integers(0, 255), st.binary(max_size=300))
)


def encode(frame):
    if isinstance(frame, Message):
        return encode_message(frame.content)
    return encode_data(frame.stream, frame.content)


def decode(data, cuts=()):
    decoder, got, last = Decoder(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        got += decoder.feed(data[last:cut])
        last = cut
    assert not decoder.pending
    return got


@settings(deadline=None, max_examples=200)
@given(frames, st.data())
def test_frames_come_through_however_they_are_cut(sent, data):
    stream = b"".join(map(encode, sent))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert decode(stream, cuts) == sent


@pytest.mark.parametrize("size", [0, 1, MAX_DATA, MAX_DATA + 1, 3 * MAX_DATA])
def test_long_data_is_cut_into_frames(size):
    content = bytes(size)
    got = decode(encode_data(1, content))
    assert b"".join(frame.content for frame in got) == content
    assert all(len(frame.content) <= MAX_DATA for frame in got)
    # No content is the stream's end, so that nothing else may be sent as it.
    assert [bool(frame.content) for frame in got] == [bool(size)] * len(got)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=60)))
def test_random_bytes_are_frames_or_a_clear_error(chunks):
    decoder = Decoder()
    try:
        for chunk in chunks:
            for frame in decoder.feed(chunk):
                assert isinstance(frame, Message | Data)
    except ProtocolError:
        pass


@settings(deadline=None, max_examples=200)
@given(frames.filter(bool), st.data())
def test_mutated_frames_are_frames_or_a_clear_error(sent, data):
    stream = bytearray(b"".join(map(encode, sent)))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        list(Decoder().feed(bytes(stream)))


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("!IB", MAX_MESSAGE + 1, 1),
        struct.pack("!IB", MAX_DATA + 2, 2),
        struct.pack("!IB", 0xFFFFFFFF, 2),
        struct.pack("!IB", 0, 2),
        struct.pack("!IB", 0, 3),
        struct.pack("!IB", 2, 1) + b"[]",
        struct.pack("!IB", 1, 1) + b"{",
        struct.pack("!IB", 2, 1) + b"\xff\xff",
        struct.pack("!IB", 100_000, 1) + b"[" * 100_000,
    ],
)
def test_what_is_no_frame_is_refused_at_once(stream):
    with pytest.raises(ProtocolError):
        list(Decoder().feed(stream))


def test_a_message_that_is_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match="at most"):
        encode_message({"x": "y" * MAX_MESSAGE})


def test_greeting():
    check_greeting(json.loads(json.dumps(greeting("web"))))
    for wrong in ({}, {"ringzero": "control"}, {"ringzero": "x", "versions": [1]}):
        with pytest.raises(ProtocolError, match="no ringzero machine"):
            check_greeting(wrong)
    with pytest.raises(ProtocolError, match="another version"):
        try:
            check_greeting({"ringzero": "control", "versions": [7]})
        except ProtocolError as fault:
            raise ProtocolError(f"{fault.message} {fault.hint}") from None
