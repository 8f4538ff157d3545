"""Programs for the guest that use vsock, which no applet of busybox does: lists of system calls."""

from __future__ import annotations

import struct

from ringzero.image.guest.identity import (
    CLOSE,
    EXIT,
    IOCTL,
    RECORD,
    SOCKET,
    WRITE,
    Call,
    executable,
)
from ringzero.image.guest.identity import data_address as data_at

OPEN, DUP2, CONNECT, ACCEPT, BIND, LISTEN, EXECVE = 2, 33, 42, 43, 49, 50, 59
AF_VSOCK, STREAM, CLOEXEC, READ_WRITE = 40, 1, 0o2000000, 2
ANY_CID, HOST_CID = 0xFFFFFFFF, 2
# linux/vm_sockets.h: _IO(7, 0xb9).
GET_LOCAL_CID = 0x7B9
ADDRESS_SIZE = 16


def _address(cid: int, port: int) -> bytes:
    return struct.pack("<HHIII", AF_VSOCK, 0, port, cid, 0)


def _become(command: str) -> tuple[bytes, int]:
    """Data of `sh -c command` behind an address, and where its vector of arguments begins."""
    words = [b"/bin/sh\0", b"-c\0", command.encode() + b"\0"]
    at, places = data_at() + ADDRESS_SIZE, []
    for word in words:
        places.append(at)
        at += len(word)
    padding = -at % 8
    vector = struct.pack("<4Q", *places, 0)
    return b"".join(words) + bytes(padding) + vector, at + padding


def _streams(descriptor: int) -> tuple[Call, Call]:
    return Call(DUP2, (descriptor, 0)), Call(DUP2, (descriptor, 1))


def serve(port: int, command: str) -> bytes:
    """Take one connection to `port` and become a shell command on it."""
    data, vector = _become(command)
    return executable(
        (
            Call(SOCKET, (AF_VSOCK, STREAM | CLOEXEC, 0), result=3),
            Call(BIND, (3, data_at(), ADDRESS_SIZE), result=0),
            Call(LISTEN, (3, 4), result=0),
            Call(ACCEPT, (3, 0, 0), result=4),
            *_streams(4),
            Call(CLOSE, (4,)),
            Call(EXECVE, (data_at() + ADDRESS_SIZE, vector, 0), result=0),
        ),
        _address(ANY_CID, port) + data,
    )


def dial(port: int, command: str) -> bytes:
    """Connect to a port of the host and become a shell command on it."""
    data, vector = _become(command)
    return executable(
        (
            Call(SOCKET, (AF_VSOCK, STREAM, 0), result=3),
            Call(CONNECT, (3, data_at(), ADDRESS_SIZE), result=0),
            *_streams(3),
            Call(CLOSE, (3,)),
            Call(EXECVE, (data_at() + ADDRESS_SIZE, vector, 0), result=0),
        ),
        _address(HOST_CID, port) + data,
    )


def local_cid() -> bytes:
    """Print the guest's own address, 32 bits."""
    return executable(
        (
            Call(OPEN, (data_at(), READ_WRITE, 0), result=3),
            Call(IOCTL, (3, GET_LOCAL_CID, RECORD), result=0),
            Call(WRITE, (1, RECORD, 4), result=4),
            Call(EXIT, (0,)),
        ),
        b"/dev/vsock\0",
    )
