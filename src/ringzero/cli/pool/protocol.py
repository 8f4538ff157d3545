"""What a client and a machine of a pool say to each other; loads nothing.

The client hears GREETING before it says anything: until then it can go away. It sends one message
with descriptors (SCM_RIGHTS): LINE with its request in a file, its three standard streams and its
current directory; or COMMAND with a request and the streams. A LINE is the client's whole command
line, which the machine's process reads as the client would: it answers REFUSED where that is none
for this machine, and the client goes on by itself; or ACCEPTED, and at the end `code N`. To a
COMMAND, which names the pool's own description, it answers in JSON (`ringzero.cli.pool.client`).
KEEP comes with a request, the lock of a machine's directory and a pipe to report on: once it has
answered ACCEPTED the process is that machine's, nobody's else, and says no more here.
Meanwhile the client may say `signal N`; its end is the machine's.

The sockets keep messages apart (SOCK_SEQPACKET).
"""

import os
import sys
from _socket import SO_PEERCRED, SOL_SOCKET, socket

from ringzero.version import __version__

# Raised whenever the two sides would misunderstand each other.
VERSION = 3
GREETING = b"ringzero-pool 3"
LINE, COMMAND, KEEP = b"line", b"run", b"keep"
REFUSED, ACCEPTED = b"no", b"yes"
CODE, SIGNAL = b"code", b"signal"
# A message is a few words or an error's text; a request, which may be long, is in a file.
MESSAGE = 64 * 1024
# The longest command line with its environment, in bytes (execve(2) takes less on most hosts).
MAX_REQUEST = 8 << 20
# Of a pool's directory: the socket of its machines; what command lines it was found for, by hash.
MACHINES, ASKED = "machines", "asked-"
# How long a pool may take to have a machine at hand, in seconds; to go on from a template takes
# as long.
PATIENCE = 0.5
# How long a machine may take to end when it is told to, in seconds.
END = 5.0
# What is told where the machine's process is gone.
LOST = "the pool's machine ended before the command did"
LOST_HINT = "was it killed? `ringzero pool status` tells whether the pool is still there"
# The program that both sides are to be of.
PROGRAM = f"{__version__} {__file__}"
# Of struct ucred (unix(7)): pid, uid, gid, of which each has so many bytes.
_WORD = 4


def is_ours(link: socket) -> bool:
    """Whether the other side's process is this user's."""
    data = link.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * _WORD)
    return int.from_bytes(data[_WORD : 2 * _WORD], sys.byteorder) == os.geteuid()


def pack(words: list[str], *, takes_input: bool) -> bytes:
    """Return the request of a LINE: `words`, and this process's environment."""
    fields = [PROGRAM, "1" if takes_input else "0", str(len(words)), *words]
    variables = [name + b"=" + value for name, value in os.environb.items()]
    return b"\0".join([*map(os.fsencode, fields), *variables])


def unpack(data: bytes) -> tuple[list[str], dict[str, str], bool]:
    """Return words, environment, and whether standard input may be read. Raises ValueError."""
    program, takes_input, count, *rest = map(os.fsdecode, data.split(b"\0"))
    if program != PROGRAM:
        raise ValueError("another program")
    if not 0 <= int(count) <= len(rest):
        raise ValueError("a request that was cut")
    pairs = (text.partition("=") for text in rest[int(count) :])
    return rest[: int(count)], {name: value for name, _, value in pairs}, takes_input == "1"


def number_of(data: bytes, kind: bytes) -> int | None:
    """Return the number that a message of a kind has; None for any other message."""
    head, _, text = data.partition(b" ")
    return int(text) if head == kind and text.isdigit() and len(text) < 6 else None


def asked_for(own: list[str]) -> str:
    """Return the name of the note in a pool's directory that it was found for such words.

    `own` are the words of `run` before "--". It is a hint: the machine's process reads them.
    """
    from ringzero.digest import blake2b

    text = "\0".join(own).encode(errors="surrogateescape")
    return ASKED + blake2b(text, digest_size=8).hexdigest()
