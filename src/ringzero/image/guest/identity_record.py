"""The record by which the guest of a copied machine is told who it is.

The host writes it to a port (`ringzero.vm.guest.identity`), a program in the guest reads it
(`ringzero.image.guest.identity`) and writes ANSWER to the agent's control port:

    offset 0    struct rand_pool_info of random(4): 512 bits of entropy
    offset 72   struct timespec: the wall clock; nanoseconds of -1 leave the clock alone
    offset 88   length of the host name, 32 bits; -1 leaves the name alone
    offset 92   the host name, 64 bytes
    offset 160  MAX_INTERFACES times struct ifreq of netdevice(7), of 40 bytes: a network
                interface and its MAC address, or NO_INTERFACE
    offset 480  the guest's time-stamp counter at that wall clock, 64 bits
    offset 488  nanoseconds of a tick of it, 64 bits, of which the lower 32 are behind the point

All numbers are little-endian; the rest of the record is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ENTROPY_SIZE = 64
# uname(2): the longest name that Linux takes.
NAME_SIZE = 64
# A power of two below the guest's 4 KiB buffers, so that no record lies in two of them.
RECORD_SIZE = 512
ENTROPY_OFFSET, TIME_OFFSET, NAME_LENGTH_OFFSET, NAME_OFFSET = 0, 72, 88, 92
INTERFACE_OFFSET, INTERFACE_SIZE, MAX_INTERFACES = 160, 40, 8
COUNTER_OFFSET, TICK_OFFSET = 480, 488
ETHERNET = 1  # ARPHRD_ETHER
ANSWER = b"adopted\n"

_RECORD = struct.Struct(f"<ii{ENTROPY_SIZE}sqqi{NAME_SIZE}s4x")
_INTERFACE = struct.Struct("<16sH6s16x")
_COUNTER = struct.Struct("<QQ")
# For an unknown name, the empty one too, Linux starts modprobe twice, some 60,000 instructions
# each time. The loopback interface is there, and takes no address of family 0.
NO_INTERFACE = _INTERFACE.pack(b"lo", 0, bytes(6))
_NANOSECONDS = 1_000_000_000
_LEFT_ALONE = -1


def pack(
    entropy: bytes,
    clock: int | None,
    name: str | None,
    macs: Sequence[str] = (),
    counter: tuple[int, int] = (0, 0),
) -> bytes:
    """Return the record; `clock` in nanoseconds of UTC, None leaves the clock alone.

    `counter` is what the guest's time-stamp counter shows at that time, and its hertz: however
    late the guest reads the record, its clock becomes right. A frequency of 0 is none.
    `macs` are the addresses of the network interfaces in the order in which the guest has found
    them: Linux calls them eth0, eth1 and so on. At most MAX_INTERFACES are told.
    """
    seconds, rest = (0, _LEFT_ALONE) if clock is None else divmod(clock, _NANOSECONDS)
    label = b"" if name is None else name.encode()
    length = _LEFT_ALONE if name is None else len(label)
    packed = _RECORD.pack(8 * ENTROPY_SIZE, ENTROPY_SIZE, entropy, seconds, rest, length, label)
    told = macs[:MAX_INTERFACES]
    for number, mac in enumerate(told):
        address = bytes.fromhex(mac.replace(":", ""))
        packed += _INTERFACE.pack(b"eth%d" % number, ETHERNET, address)
    packed += NO_INTERFACE * (MAX_INTERFACES - len(told))
    value, hertz = counter
    packed += _COUNTER.pack(value, (_NANOSECONDS << 32) // hertz if hertz else 0)
    return packed.ljust(RECORD_SIZE, b"\0")
