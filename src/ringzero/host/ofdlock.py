"""Open file description locks (fcntl(2), F_OFD_SETLK): held as long as their holder lives.

Unlike flock(2) they can be asked about without being taken, so that looking
never gets in anybody's way.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from ringzero.host.files import open_regular

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE_FILE = (os.SEEK_SET, 0, 0, 0)


def take(descriptor: int) -> bool:
    """Lock the open file for its description, which children inherit; False if it is locked."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, *_WHOLE_FILE))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of the regular file; raises OSError."""
    descriptor = open_regular(path)
    try:
        answer = fcntl.fcntl(
            descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, *_WHOLE_FILE)
        )
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
