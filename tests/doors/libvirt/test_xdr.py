"""XDR: every value has one form, and whatever else is there is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.doors.libvirt.xdr import Reader, Writer
from ringzero.errors import ProtocolError

# The examples of RFC 4506, sections 4.1 to 4.11, and bounds.
EXACT = [
    ("int32", 0, "00000000"),
    ("int32", -1, "ffffffff"),
    ("int32", -(1 << 31), "80000000"),
    ("uint32", (1 << 32) - 1, "ffffffff"),
    ("int64", -2, "fffffffffffffffe"),
    ("uint64", 1 << 63, "8000000000000000"),
    ("double", 1.0, "3ff0000000000000"),
    ("double", -0.0, "8000000000000000"),
]


@pytest.mark.parametrize(("kind", "value", "data"), EXACT)
def test_numbers(kind, value, data):
    writer = Writer()
    getattr(writer, kind)(value)
    assert bytes(writer.data).hex() == data
    reader = Reader(bytes.fromhex(data))
    assert getattr(reader, kind)() == value
    reader.end()


def test_text_is_filled_up():
    # RFC 4506, section 7: the file name "sillyprog", then nothing to fill up.
    writer = Writer()
    writer.string("sillyprog", 255)
    assert writer.data == b"\0\0\0\x09sillyprog\0\0\0"
    writer = Writer()
    writer.string("john", 8)
    assert writer.data == b"\0\0\0\x04john"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.binary())
def test_text_and_bytes_come_back(text, data):
    writer = Writer()
    writer.string(text, 1 << 20)
    writer.opaque(data, 1 << 20)
    writer.fixed(data, len(data))
    assert len(writer.data) % 4 == 0
    reader = Reader(writer.data)
    assert reader.string(1 << 20) == text
    assert reader.opaque(1 << 20) == data
    assert reader.fixed(len(data)) == data
    reader.end()


def test_text_that_is_no_utf8_comes_back():
    reader = Reader(b"\0\0\0\x03/\xff\xfe\0")
    path = reader.string(16)
    writer = Writer()
    writer.string(path, 16)
    assert writer.data == b"\0\0\0\x03/\xff\xfe\0"


@pytest.mark.parametrize(("data", "there"), [("00000000", False), ("01000000", True)])
def test_an_optional_is_there_unless_it_is_zero(data, there):
    assert Reader(bytes.fromhex(data)).present() is there


READS = {
    "too short a number": ("000000", lambda r: r.int32()),
    "too short a hyper": ("00000000", lambda r: r.int64()),
    "too short a double": ("00000000", lambda r: r.double()),
    "a length over its limit": ("00000005", lambda r: r.length(4)),
    "a length that is not there": ("7fffffff", lambda r: r.string(1 << 31)),
    "text that ends early": ("0000000461", lambda r: r.string(8)),
    "text without what fills it up": ("0000000161", lambda r: r.string(8)),
    "text filled up with something": ("0000000161000001", lambda r: r.string(8)),
    "text with a NUL": ("0000000261006100"[:16], lambda r: r.string(8)),
    "a small number that is large": ("00000100", lambda r: r.small(0, 0xFF)),
    "too much": ("00000000", lambda r: r.end()),
}


@pytest.mark.parametrize("name", READS)
def test_what_breaks_a_rule_is_refused(name):
    data, read = READS[name]
    with pytest.raises(ProtocolError):
        read(Reader(bytes.fromhex(data)))


WRITES = {
    "a number that is too large": lambda w: w.int32(1 << 31),
    "a number below zero": lambda w: w.uint32(-1),
    "a number over 64 bits": lambda w: w.uint64(1 << 64),
    "text in a number's place": lambda w: w.int32("1"),
    "a small number that is large": lambda w: w.small(256, 0, 0xFF),
    "text over its limit": lambda w: w.string("abc", 2),
    "text with a NUL": lambda w: w.string("a\0", 8),
    "text with half a character": lambda w: w.string("\ud800", 8),
    "a list over its limit": lambda w: w.length(3, 2),
    "bytes of another length": lambda w: w.fixed(b"abc", 4),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_has_no_form_is_refused(name):
    with pytest.raises(ProtocolError):
        WRITES[name](Writer())
