"""DNS messages (RFC 1035): questions taken apart, answers put together and looked into."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ringzero.records import record

A, PTR, AAAA, ANY, IN = 1, 12, 28, 255, 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)
_CNAME = 5
HEADER = struct.Struct(">HHHHHH")
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _RECURSION, _AVAILABLE = 0x8000, 0x0400, 0x0200, 0x0100, 0x80
_OPCODE = 0x7800
# RFC 1035 section 2.3.4, and the labels that fit into such a name.
MAX_NAME, MAX_LABEL, _MAX_LABELS = 255, 63, 128
MAX_UDP = 512
# How long an answer about a name of ours may be kept, in seconds: a machine may come and go.
_TTL = 5


class DnsFormatError(ValueError):
    """Bytes that are no DNS message."""


@record
class Question:
    """What is asked: `name` in lower case without the last dot; `end` is where it ends."""

    identifier: int
    flags: int
    name: str
    kind: int
    category: int
    end: int


def encode_name(name: str) -> bytes:
    """Return a name as messages have it; labels that are too long are cut."""
    labels = [label.encode("ascii", "replace")[:MAX_LABEL] for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def read_name(data: bytes, at: int) -> tuple[str, int]:
    """Return the name at `at` and where what follows begins; raises DnsFormatError.

    A pointer must lead backwards, so that no loop can be made.
    """
    labels: list[str] = []
    end: int | None = None
    lowest, length = at, 0
    while True:
        if at >= len(data):
            raise DnsFormatError("a name is cut off")
        size = data[at]
        if size & 0xC0 == 0xC0:
            if at + 2 > len(data):
                raise DnsFormatError("a pointer is cut off")
            target = (size & 0x3F) << 8 | data[at + 1]
            end = at + 2 if end is None else end
            if target >= lowest:
                raise DnsFormatError("a pointer does not lead backwards")
            lowest = at = target
            continue
        if size & 0xC0:
            raise DnsFormatError("a label of an unknown kind")
        at += 1
        if not size:
            return ".".join(labels), end if end is not None else at
        if at + size > len(data):
            raise DnsFormatError("a label is cut off")
        length += size + 1
        if length >= MAX_NAME or len(labels) >= _MAX_LABELS:
            raise DnsFormatError("a name is too long")
        labels.append(data[at : at + size].decode("latin-1").lower())
        at += size


def parse_question(data: bytes) -> Question:
    """Return the one question of a query; raises DnsFormatError."""
    if len(data) < HEADER.size:
        raise DnsFormatError("a DNS header is cut off")
    identifier, flags, questions, *_ = HEADER.unpack_from(data)
    if flags & _RESPONSE or questions != 1:
        raise DnsFormatError("not a query with one question")
    name, at = read_name(data, HEADER.size)
    if at + 4 > len(data):
        raise DnsFormatError("a question is cut off")
    kind, category = struct.unpack_from(">HH", data, at)
    return Question(identifier, flags, name, kind, category, at + 4)


def is_standard(question: Question) -> bool:
    """Return whether a query asks for records, and nothing else."""
    return not question.flags & _OPCODE


def reply(
    query: bytes, question: Question, code: int, records: Sequence[tuple[int, bytes]] = ()
) -> bytes:
    """Return an answer with (type, data) `records` about the question's name."""
    flags = _RESPONSE | _AUTHORITATIVE | _AVAILABLE | (question.flags & (_RECURSION | _OPCODE))
    header = HEADER.pack(question.identifier, flags | code, 1, len(records), 0, 0)
    body = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", kind, IN, _TTL, len(data)) + data
        for kind, data in records
    )
    return header + query[HEADER.size : question.end] + body


def refusal(query: bytes, code: int) -> bytes | None:
    """Return an answer to a query that could not be read; None where it has no identifier."""
    if len(query) < HEADER.size or query[2] & 0x80:
        return None
    return query[:2] + struct.pack(">HHHHH", _RESPONSE | _AVAILABLE | code, 0, 0, 0, 0)


def truncated(query: bytes, question: Question) -> bytes:
    """Return the answer that asks to come again over TCP."""
    answer = bytearray(reply(query, question, NO_ERROR))
    answer[2] |= _TRUNCATED >> 8
    return bytes(answer)


def answers(data: bytes) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield (name, type, seconds to live, data) of an answer's records; raises DnsFormatError."""
    if len(data) < HEADER.size:
        raise DnsFormatError("a DNS header is cut off")
    _, _, questions, count, _, _ = HEADER.unpack_from(data)
    at = HEADER.size
    for _ in range(questions):
        _, at = read_name(data, at)
        at += 4
    for _ in range(count):
        name, at = read_name(data, at)
        if at + 10 > len(data):
            raise DnsFormatError("a record is cut off")
        kind, _, ttl, length = struct.unpack_from(">HHIH", data, at)
        at += 10
        if at + length > len(data):
            raise DnsFormatError("a record's data is cut off")
        yield name, kind, ttl, data[at : at + length]
        at += length


def reverse_name(address: bytes) -> str:
    """Return the name under which an address's own name is found (RFC 1035, RFC 3596)."""
    if len(address) == 4:
        return ".".join(str(byte) for byte in reversed(address)) + ".in-addr.arpa"
    return ".".join(reversed(address.hex())) + ".ip6.arpa"
