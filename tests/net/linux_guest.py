"""Linux itself as the guest of a network: a tap in a network namespace of its own, without root.

Its kernel's TCP, IPv6, ARP and drivers' offloads (virtio_net_hdr) are not ours. `run` executes
Python in the namespace. Frames may be lost, doubled and put out of order on their way.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections import deque

from ringzero.core.frames import Frame, plain

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
HEADER = struct.Struct("<BBHHHHH")
NEEDS_CSUM, DATA_VALID = 1, 2
MAC = "02:00:00:00:00:15"
# Runs in the namespace, as its root.
AGENT = """
import array, fcntl, json, os, socket, struct, sys, traceback
channel = socket.socket(fileno=int(sys.argv[1]))
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"eth0", 0x0002 | 0x1000 | 0x4000))
channel.sendmsg([b"t"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))])
os.close(tap)
names = {}
for line in channel.makefile("r"):
    try:
        names.pop("result", None)
        exec(json.loads(line), names)
        answer = {"result": names.get("result")}
    except BaseException as fault:
        answer = {"fault": "".join(traceback.format_exception(fault))}
    channel.sendall(json.dumps(answer).encode() + b"\\n")
"""


def missing():
    """Return why there can be no such guest here, or None."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs unshare and ip (util-linux, iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    made = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, check=False)
    return "needs user namespaces" if made.returncode else None


class Faults:
    """What happens to frames on their way: each is lost, doubled or put behind later ones."""

    def __init__(self, seed=0, loss=0.0, double=0.0, late=0.0):
        self._random = random.Random(seed)
        self._chances = loss, double, late
        self._late = deque()

    def pass_on(self, frame):
        """Yield the frames that arrive now."""
        loss, double, late = self._chances
        if self._random.random() < loss:
            return
        if self._random.random() < late:
            self._late.append([self._random.randrange(1, 4), frame])
            return
        yield frame
        if self._random.random() < double:
            yield frame
        for waiting in list(self._late):
            waiting[0] -= 1
            if waiting[0] <= 0:
                self._late.remove(waiting)
                yield waiting[1]


class LinuxGuest:
    """The machine of a network. `offloads` says whether frames may be uncut and unsummed."""

    def __init__(self, network, *, offloads=True, incoming=None, outgoing=None):
        self.network = network
        self._offloads = offloads
        self._in, self._out = incoming or Faults(), outgoing or Faults()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                ["unshare", "-Urn", sys.executable, "-c", AGENT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._channel = ours
        ours.settimeout(60)
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        self.tap = array.array("i", ancillary[0][2])[0]
        self._lines = ours.makefile("r")
        fcntl.ioctl(self.tap, TUNSETVNETHDRSZ, struct.pack("i", HEADER.size))
        if offloads:
            fcntl.ioctl(self.tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
        self._drained = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        network.port = self
        self.shell(f"ip link set lo up; ip link set eth0 address {MAC} mtu 1500 up")
        network.start()
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing = True
        self._drained.set()
        self._thread.join(5)
        self.network.close()
        self._channel.shutdown(socket.SHUT_RDWR)
        self._process.wait(10)
        self._lines.close()
        self._channel.close()
        os.close(self.tap)

    def run(self, code):
        """Execute code in the namespace; return what it calls `result`."""
        self.begin(code)
        return self.end()

    def begin(self, code):
        """Begin to execute code."""
        import json

        self._channel.sendall(json.dumps(code).encode() + b"\n")

    def end(self):
        """Return the result of what `begin` began."""
        import json

        answer = json.loads(self._lines.readline())
        assert "fault" not in answer, answer["fault"]
        return answer["result"]

    def shell(self, command):
        """Run a command in the namespace; return what it prints."""
        return self.run(
            "import subprocess\n"
            f"done = subprocess.run({command!r}, shell=True, capture_output=True, text=True)\n"
            "assert not done.returncode, done.stderr\nresult = done.stdout"
        )

    def configure(self):
        """Give it the addresses that DHCP would."""
        self.shell("ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2")

    # ---- Port -------------------------------------------------------------

    def _watch(self):
        poll = select.poll()
        poll.register(self.tap, select.POLLIN)
        while not self._closing:
            if poll.poll(100):
                self._drained.clear()
                self.network.wake()
                self._drained.wait(1)

    def fetch(self, handle, limit, *, coalesce=False):
        for _ in range(limit):
            try:
                data = os.read(self.tap, 1 << 17)
            except BlockingIOError:
                self._drained.set()
                return False
            flags, gso, _, size, start, offset, _ = HEADER.unpack_from(data)
            if not flags & NEEDS_CSUM:
                start = offset = 0
            for frame in self._out.pass_on(
                Frame(data[HEADER.size :], (), start, offset, gso, size)
            ):
                handle(frame)
        return True

    def settle(self):
        pass

    def deliver(self, frames):
        for frame in frames:
            for arriving in self._in.pass_on(frame):
                self._write(arriving)
        return len(frames)

    def _write(self, frame):
        frames = [frame] if self._offloads else [Frame(data) for data in plain(frame)]
        for each in frames:
            flags = NEEDS_CSUM if each.checksum_start else 0
            header = HEADER.pack(
                *(flags, each.gso, len(each.head) if each.gso else 0, each.gso_size),
                *(each.checksum_start, each.checksum_offset, 0),
            )
            with contextlib.suppress(BlockingIOError):
                os.write(self.tap, header + each.data())

    def set_link(self, up):
        pass
