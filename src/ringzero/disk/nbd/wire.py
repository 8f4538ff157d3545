"""Numbers and layouts of the NBD protocol (the NBD project's doc/proto.md). No I/O.

Everything on the wire is big-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ringzero.units import KIB, MIB

# ---- the handshake ----------------------------------------------------------

GREETING_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
REPLY_MAGIC = 0x3E889045565A9

# Flags of the server, and, with the same bits, of the client.
FIXED_NEWSTYLE, NO_ZEROES = 1 << 0, 1 << 1

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST = 1, 2, 3
OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 5, 6, 7, 8
OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 9, 10

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
_ERROR = 1 << 31
REP_ERR_UNSUP, REP_ERR_INVALID, REP_ERR_UNKNOWN = _ERROR + 1, _ERROR + 3, _ERROR + 6
REP_ERR_TOO_BIG = _ERROR + 9

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

GREETING = struct.Struct(">8s8sH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">8sII")  # magic, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
EXPORT_REPLY = struct.Struct(">QH")  # size, transmission flags
# What follows the answer to EXPORT_NAME where the client wants it.
EXPORT_PADDING = bytes(124)
# "Names": a string has at most 4096 bytes.
NAME_MAX = 4096
# An option with more is skipped and refused, up to where the client is not listened to any more.
OPTION_MAX, OPTION_HOPELESS = 64 * KIB, MIB

# ---- transmission -----------------------------------------------------------

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF = 1 << 5, 1 << 6, 1 << 7
CAN_MULTI_CONN, SEND_CACHE = 1 << 8, 1 << 10

REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = 0, 1, 2, 3, 4
CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 5, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE = 1 << 0, 1 << 1, 1 << 2, 1 << 3

CHUNK_DONE = 1 << 0
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 2, 5, (1 << 15) + 1

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
DATA_OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
ERROR = struct.Struct(">IH")
STATUS_ENTRY = struct.Struct(">II")

EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28

# "Size constraints": what a client may rely on that has asked for nothing.
PAYLOAD_MAX = 32 * MIB
BLOCK_PREFERRED = 4 * KIB

BASE_ALLOCATION = "base:allocation"
BASE_ALLOCATION_ID = 1
STATE_HOLE, STATE_ZERO = 1 << 0, 1 << 1


class Request(NamedTuple):
    """One request of a client; `cookie` is what it calls it."""

    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


def parse_request(data: bytes) -> Request | None:
    """Return the request in `data`, REQUEST.size bytes; None when it is none."""
    magic, *fields = REQUEST.unpack(data)
    return Request(*fields) if magic == REQUEST_MAGIC else None


def simple(cookie: int, error: int = 0) -> bytes:
    """Return a simple reply; data of a read follows it."""
    return SIMPLE.pack(SIMPLE_MAGIC, error, cookie)


def chunk(cookie: int, kind: int, payload: bytes = b"", *, last: bool, more: int = 0) -> bytes:
    """Return a chunk of a structured reply, of which `more` bytes are sent behind it."""
    flags = CHUNK_DONE if last else 0
    return CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, len(payload) + more) + payload


def error_chunk(cookie: int, error: int, message: str) -> bytes:
    """Return the chunk that ends a structured reply with an error."""
    text = message.encode()[:NAME_MAX]
    return chunk(cookie, CHUNK_ERROR, ERROR.pack(error, len(text)) + text, last=True)
