"""The program in ringzero's own guests that sets up loopback, and `eth0` on a user network.

Every user network has the same addresses, and the host has just made this one: to ask
for them by DHCP would cost each start two programs and two round trips. So this: the
ioctls of netdevice(7) with constant arguments, in one small program.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringzero.image.guest.identity import EXIT, IOCTL, SOCKET, Call, data_address, executable

# The machine's address and its router's on a user network (`ringzero.net.networks.user`).
ADDRESS, NETMASK, ROUTER = (10, 0, 2, 15), (255, 255, 255, 0), (10, 0, 2, 2)
RESOLVER, DOMAIN = "10.0.2.3", "ringzero.internal"
# netdevice(7), linux/sockios.h.
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
AF_INET, SOCK_DGRAM = 2, 2
# Flags that are not given are taken away.
IFF_UP, IFF_BROADCAST, IFF_MULTICAST = 0x1, 0x2, 0x1000
# linux/route.h: struct rtentry, whose flags stand behind destination, gateway and mask.
RTF_UP, RTF_GATEWAY = 1, 2
# The first free descriptor of a program with three.
_INTERFACES = 3
_ANY = (0, 0, 0, 0)


def _socket_address(address: Sequence[int]) -> bytes:
    """Return a struct sockaddr_in."""
    return struct.pack("<HH4B8x", AF_INET, 0, *address)


def _interface(name: bytes, value: bytes) -> bytes:
    """Return a struct ifreq."""
    return name.ljust(16, b"\0") + value.ljust(24, b"\0")


def build() -> bytes:
    """Return the whole program as an ELF file."""
    loopback, up = (
        struct.pack("<H", flags) for flags in (IFF_UP, IFF_UP | IFF_BROADCAST | IFF_MULTICAST)
    )
    addresses = b"".join(map(_socket_address, (_ANY, ROUTER, _ANY)))
    route = bytes(8) + addresses + struct.pack("<H", RTF_UP | RTF_GATEWAY)
    requests = (
        (SIOCSIFFLAGS, _interface(b"lo", loopback)),
        (SIOCSIFADDR, _interface(b"eth0", _socket_address(ADDRESS))),
        (SIOCSIFNETMASK, _interface(b"eth0", _socket_address(NETMASK))),
        (SIOCSIFFLAGS, _interface(b"eth0", up)),
        (SIOCADDRT, route.ljust(120, b"\0")),
    )
    data, calls = b"", [Call(SOCKET, (AF_INET, SOCK_DGRAM, 0), result=_INTERFACES)]
    for number, request in requests:
        address = data_address() + len(data)
        calls.append(Call(IOCTL, (_INTERFACES, number, address), result=0))
        data += request
    return executable([*calls, Call(EXIT, (0,))], data)
