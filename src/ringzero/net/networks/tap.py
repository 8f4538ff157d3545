"""A tap interface of the host: frames go to the host's own network stack.

The user needs the right to it: root, CAP_NET_ADMIN, or a tap that was made for them
(`ip tuntap add dev NAME mode tap user USER`). Checksums and segmentation stay open on the way
(IFF_VNET_HDR; Linux, Documentation/networking/tuntap.rst).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections import deque

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import LARGEST_FRAME, Frame
from ringzero.errors import ConfigError, ConflictError, HostError
from ringzero.net.contract import NETWORKS, Network
from ringzero.net.proxy.loop import READ, EventLoop

# linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x01, 0x02, 0x04
# netdevice(7): 15 bytes and a zero.
_LONGEST_NAME = 15
# virtio 1.2 section 5.1.6, without the count of buffers, in the host's byte order.
_HEADER = struct.Struct("=BBHHHH")
_NEEDS_CSUM = 1
_BATCH = 64
# Frames for the guest that wait before nothing more is read.
_INBOX = 256


@NETWORKS.register("tap")
class TapNetwork(Network):
    """The host's tap interface `config.target`. `dropped` counts frames that it did not take."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        name = self._tap_name()
        if not 0 < len(os.fsencode(name)) <= _LONGEST_NAME or "/" in name:
            raise ConfigError([f"no interface is called {name!r}"], hint="write tap=NAME")
        self._descriptor, self.name = _open(name)
        self._loop = EventLoop("net", self._begin_round, self._round)
        self._inbox: deque[Frame] = deque()
        self._woken = False
        self._reads = True
        self.dropped = 0

    def _tap_name(self) -> str:
        """Return which interface it is; the kernel puts a number for "%d"."""
        return self.config.target

    def counters(self) -> dict[str, int]:
        return {"dropped": self.dropped}

    def wake(self) -> None:
        self._woken = True
        self._loop.wake()

    def start(self) -> None:
        self._loop.watch(self, READ, self._happened)
        self._loop.start()
        self.port.set_link(True)

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._descriptor

    def close(self) -> None:
        self._loop.close()
        self.leave()

    def leave(self) -> None:
        self._loop.leave()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    # ---- on the loop's thread ---------------------------------------------

    def _begin_round(self, now: float) -> None:
        """Time is nothing to a cable."""

    def _round(self) -> float | None:
        more = False
        if self._woken:
            self._woken = False
            more = self.port.fetch(self._send, _BATCH)
            self._woken |= more
            self._deliver()
        reads = len(self._inbox) < _INBOX
        if reads != self._reads:
            self._reads = reads
            self._loop.change(self, READ if reads else 0)
        return self._loop.now if more else None

    def _send(self, frame: Frame) -> None:
        flags = _NEEDS_CSUM if frame.checksum_start else 0
        length = len(frame.head) if frame.gso else 0
        header = _HEADER.pack(
            *(flags, frame.gso, length, frame.gso_size),
            *(frame.checksum_start, frame.checksum_offset),
        )
        try:
            os.writev(self._descriptor, [header, frame.head, *frame.rest])
        except OSError:
            # It is down, full, or the frame is none that it takes.
            self.dropped += 1

    def _happened(self, events: int) -> None:
        for _ in range(_BATCH):
            try:
                data = os.read(self._descriptor, _HEADER.size + LARGEST_FRAME)
            except OSError:
                break
            if len(data) < _HEADER.size:
                break
            flags, gso, _, size, start, offset = _HEADER.unpack_from(data)
            if not flags & _NEEDS_CSUM:
                start = offset = 0
            self._inbox.append(Frame(data[_HEADER.size :], (), start, offset, gso, size))
        self._deliver()

    def _deliver(self) -> None:
        if self._inbox:
            for _ in range(self.port.deliver(self._inbox)):
                self._inbox.popleft()


def _open(name: str) -> tuple[int, str]:
    """Return a descriptor of a tap interface, which is made if need be, and its name."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise _refusal(name, fault) from fault
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        found = fcntl.ioctl(descriptor, _TUNSETIFF, request)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("=i", _HEADER.size))
        fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    except OSError as fault:
        os.close(descriptor)
        raise _refusal(name, fault) from fault
    return descriptor, found[:16].partition(b"\0")[0].decode()


def _refusal(name: str, fault: OSError) -> HostError | ConflictError:
    if fault.errno == errno.EBUSY:
        return ConflictError(f"another machine has the tap interface {name}")
    if fault.errno in (errno.EPERM, errno.EACCES):
        return HostError(
            f"this user may not have the tap interface {name}",
            hint=f"as root: ip tuntap add dev {name} mode tap user $USER",
        )
    return HostError(
        f"cannot open the tap interface {name}: {fault.strerror}",
        hint="--net user and networks by name need none",
    )
