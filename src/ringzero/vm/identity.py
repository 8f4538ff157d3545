"""What a copy of a machine gets of its own before it goes on: its identity.

Two parts of the guest hear of it. Any system with a driver for the VM
generation identifier does from the device (`ringzero.devices.vmgenid`).
ringzero's own guests have a small resident program besides
(`ringzero/image/identity.py`), which reads records of RECORD_SIZE bytes from a
port of its own and answers ANSWER on the agent's control port:

    offset 0    struct rand_pool_info of random(4): 512 bits of entropy
    offset 72   struct timespec: the wall clock; nanoseconds of -1 leave the clock alone
    offset 88   length of the host name, 32 bits; -1 leaves the name alone
    offset 92   the host name, 64 bytes

All numbers are little-endian; the rest of the record is zero.
"""

from __future__ import annotations

import os
import struct
import time

from ringzero.errors import InvalidValueError
from ringzero.records import field, record

ENTROPY_SIZE = 64
# uname(2): the longest name that Linux takes.
NAME_SIZE = 64
GENERATION_SIZE = 16
# A power of two below the guest's 4 KiB buffers, so that no record lies in two of them.
RECORD_SIZE = 512
ENTROPY_OFFSET, TIME_OFFSET, NAME_LENGTH_OFFSET, NAME_OFFSET = 0, 72, 88, 92
ANSWER = b"adopted\n"

_RECORD = struct.Struct(f"<ii{ENTROPY_SIZE}sqqi{NAME_SIZE}s")
_NANOSECONDS = 1_000_000_000
_LEFT_ALONE = -1


@record
class Identity:
    """What a clone is given before its first instruction.

    `name` is that of the machine and of its guest; None keeps the one that
    there is. `generation` is its VM generation identifier, `entropy` new seed
    for its random numbers. `now` is UTC in nanoseconds: to this its wall clock
    is set, never back; None lets it go on from where the original's stood.
    Raises InvalidValueError.
    """

    name: str | None = None
    generation: bytes = field(default_factory=lambda: os.urandom(GENERATION_SIZE))
    entropy: bytes = field(default_factory=lambda: os.urandom(ENTROPY_SIZE), repr=False)
    now: int | None = field(default_factory=time.time_ns)

    def __post_init__(self) -> None:
        if len(self.generation) != GENERATION_SIZE or len(self.entropy) != ENTROPY_SIZE:
            raise InvalidValueError("an identity has 16 bytes of generation and 64 of entropy")
        if self.name is not None and not 0 < len(self.name.encode()) <= NAME_SIZE:
            raise InvalidValueError(
                f"a host name has 1 to {NAME_SIZE} bytes, not {self.name!r}",
                hint="give the copy a shorter name",
            )

    def record(self, clock: int | None = None) -> bytes:
        """Return the record for the guest, which sets its wall clock to `clock` nanoseconds."""
        seconds, rest = (0, _LEFT_ALONE) if clock is None else divmod(clock, _NANOSECONDS)
        name = b"" if self.name is None else self.name.encode()
        length = _LEFT_ALONE if self.name is None else len(name)
        packed = _RECORD.pack(
            8 * ENTROPY_SIZE, ENTROPY_SIZE, self.entropy, seconds, rest, length, name
        )
        return packed.ljust(RECORD_SIZE, b"\0")
