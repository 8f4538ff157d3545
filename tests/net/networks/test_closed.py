"""A guest that tries to get out where it may not, by every way; and a host short of sockets."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.net.networks.user import UserNetwork, UserOptions
from ringzero.net.proxy import resolver as resolving
from tests.net.linux_guest import MAC, LinuxGuest, missing

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def own_addresses():
    """Return this host's addresses by which it would speak to others, IPv4's and IPv6's."""
    found = []
    for family, target in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as link:
            link.connect((target, 9))
            found.append(link.getsockname()[0])
    return found


class Doors:
    """TCP and UDP servers of the host at one port of all its addresses; `seen` is who came."""

    def __init__(self):
        self.seen = []
        self._links = []
        first = socket.create_server(("", 0))
        self.port = first.getsockname()[1]
        self._links.append(first)
        with contextlib.suppress(OSError):
            self._links.append(socket.create_server(("::", self.port), family=socket.AF_INET6))
        for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
            with contextlib.suppress(OSError):
                link = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                link.bind((address, self.port))
                self._links.append(link)
        for link in self._links:
            threading.Thread(target=self._watch, args=(link,), daemon=True).start()

    def _watch(self, link):
        with contextlib.suppress(OSError):
            while True:
                if link.type == socket.SOCK_STREAM:
                    link.accept()[0].close()
                    self.seen.append(("tcp", link.family.name))
                else:
                    self.seen.append(("udp", link.family.name, link.recv(100)))

    def close(self):
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()


@pytest.fixture
def doors():
    doors = Doors()
    yield doors
    doors.close()


@contextlib.contextmanager
def guest(options, answer=None, monkeypatch=None):
    """Start a guest; the host's resolver is `answer`, called with each question."""
    network = UserNetwork(NetConfig("user", mac=MAC), options)
    with LinuxGuest(network) as machine, contextlib.ExitStack() as closing:
        if answer is not None:
            link = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            link.bind(("127.0.0.1", 0))
            monkeypatch.setattr(resolving, "_PORT", link.getsockname()[1])
            network.resolver.servers = ["127.0.0.1"]
            monkeypatch.setattr(network.resolver, "refresh", lambda: False)

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        query, peer = link.recvfrom(2048)
                        link.sendto(answer(query), peer)

            threading.Thread(target=serve, daemon=True).start()
        machine.configure()
        # An address may be used once nobody objects to it.
        machine.shell(
            "for n in 1 2 3 4 5 6 7 8 9; do ip -6 addr show scope global | "
            "grep fd72 | grep -qv tentative && break; sleep 0.3; done; "
            "ip -6 route replace default via fd72:7a00:0:2::2 dev eth0"
        )
        yield machine


# In the guest: by TCP, UDP (in one piece and in fragments), ICMP and a protocol of no use, to each
# address; what came of it is none of its business.
TRY = """
import contextlib, socket, struct
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
def attempt(address, port):
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    said = []
    with socket.socket(family) as link:
        link.settimeout(2)
        said.append(link.connect_ex((address, port)))
    for size in (1, 4000):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            link.sendto(b"x" * size, (address, port))
            link.sendto(b"x" * size, (address, 53))
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_RAW, 47) as link:
        link.sendto(b"gre" * 10, (address, 0))
    kind, protocol = (128, 58) if six else (8, 1)
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_RAW, protocol) as link:
        link.settimeout(1)
        request = struct.pack("!BBHHH", kind, 0, 0, 77, 1)
        if not six: request = request[:2] + checksum(request).to_bytes(2, "big") + request[4:]
        link.sendto(request, (address, 0))
        said.append("asked")
    return said[0]
"""
OWN = ["10.0.2.2", "10.0.2.3", "fd72:7a00:0:2::2", "fd72:7a00:0:2::3"]
# A host's loopback in other clothes; its link's groups; everybody.
CLOTHES = [
    *("::ffff:127.0.0.1", "::127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.2.255"),
    *("224.0.0.1", "169.254.169.254", "64:ff9b::7f00:1"),
]


@pytest.mark.parametrize(
    "options",
    [
        UserOptions(allow=()),
        UserOptions(allow=("203.0.113.0/24", "*.example", "10.0.0.0/8", "[::/0]", "0.0.0.0/1:1")),
        UserOptions(host=False),
        UserOptions(host=False, allow=("10.0.2.2", "host.ringzero.internal", "[::/0]")),
    ],
    ids=["restrict", "allow", "host=no", "host=no, allow"],
)
def test_no_way_to_the_host(options, doors):
    with guest(options) as machine:
        machine.shell("ip route add 224.0.0.0/4 dev eth0")
        places = [*OWN, *own_addresses(), *CLOTHES]
        said = machine.run(f"{TRY}\nresult = [attempt(a, {doors.port}) for a in {places!r}]")
        assert 0 not in said, list(zip(places, said, strict=False))
        time.sleep(0.3)
        assert doors.seen == []


def query(name):
    return (
        b"\0\7\1\0\0\1\0\0\0\0\0\0"
        + b"".join(bytes([len(p)]) + p.encode() for p in name.split("."))
        + b"\0\0\1\0\1"
    )


ASK = """
import socket
def ask(data, server="10.0.2.3", port=53):
    with socket.socket(type=socket.SOCK_DGRAM) as link:
        link.settimeout(3)
        link.sendto(bytes.fromhex(data), (server, port))
        try: return link.recv(2048).hex()
        except OSError: return ""
"""


def test_names_say_nothing_to_others(monkeypatch):
    """A question reaches those who are asked: a guest could talk by asking."""
    asked = []

    def answer(question):
        asked.append(question)
        return question[:2] + b"\x81\x83" + question[4:]

    with guest(UserOptions(allow=("www.example",)), answer, monkeypatch) as machine:
        secret = machine.run(f"{ASK}\nresult = ask({query('secret.evil.test').hex()!r})")
        assert bytes.fromhex(secret)[3] & 15 == 5 and asked == []
        for server in ("8.8.8.8", "10.0.2.2"):
            machine.run(f"{ASK}\nask({query('secret.evil.test').hex()!r}, {server!r})")
        assert asked == []
        machine.run(f"{ASK}\nask({query('www.example').hex()!r})")
        assert len(asked) == 1


def test_names_that_lead_back(doors, monkeypatch):
    """DNS rebinding: an allowed name that others resolve to this host, or to the gateway."""
    own = [a for a in own_addresses() if ":" not in a]
    told = []

    def answer(question):
        address = socket.inet_aton(told[-1])
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + address
        return question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:] + record

    with guest(UserOptions(allow=("www.evil.test",)), answer, monkeypatch) as machine:
        for address in ("127.0.0.1", "10.0.2.2", *own):
            told.append(address)
            found = machine.run(f"{ASK}\nresult = ask({query('www.evil.test').hex()!r})")
            assert bytes.fromhex(found)[-4:] == socket.inet_aton(address)
            if address != "127.0.0.1":
                machine.run(f"{TRY}\nresult = attempt({address!r}, {doors.port})")
        time.sleep(0.3)
        assert doors.seen == []


# ---- a host without ... ---------------------------------------------------

SERVER = """
import socket, threading
door = socket.create_server(("127.0.0.1", 0), backlog=256)
print(door.getsockname()[1], flush=True)
kept = []
while True: kept.append(door.accept()[0]); kept[-1].sendall(b"hello")
"""
MANY = """
import errno, socket
kept, refused = [], []
for _ in range(200):
    link = socket.socket()
    link.settimeout(10)
    found = link.connect_ex(("10.0.2.2", PORT))
    if found: refused.append(errno.errorcode[found])
    else: kept.append(link)
result = len(kept), sorted(set(refused)), [link.recv(5).decode() for link in kept[:3]]
"""


def test_a_host_out_of_descriptors():
    """Connections are refused and counted; what is up goes on; then it goes on as before."""
    with (
        subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as process,
        contextlib.ExitStack() as closing,
    ):
        closing.callback(process.kill)
        port = int(process.stdout.readline())
        with guest(UserOptions()) as machine:
            network = machine.network
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = set(map(int, os.listdir("/proc/self/fd")))
            limit = next(n for n in range(4096) if n - sum(d < n for d in taken) == 40)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
            try:
                kept, refused, said = machine.run(MANY.replace("PORT", str(port)))
                assert 0 < kept < 60 and refused == ["ECONNREFUSED"] and set(said) == {"hello"}
                assert network.counters()["turned_away"] == 200 - kept
                # Others are told, and nothing hangs.
                began = time.monotonic()
                machine.run(f"{ASK}\nresult = ask({query('www.example').hex()!r})")
                assert time.monotonic() - began < 5
                machine.run("for link in kept: link.close()")
                deadline = time.monotonic() + 20
                while machine.run(MANY.replace("PORT", str(port)).replace("200", "5"))[0] < 5:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert machine.run(MANY.replace("PORT", str(port)))[0] == 200


def test_a_host_without_ipv6(monkeypatch):
    """Guests are told of no way out by IPv6, and at once where they try."""
    monkeypatch.setattr("ringzero.net.networks.user._has_route", lambda *_: False)
    real = socket.socket

    class Four(real):
        def __init__(self, family=-1, *more, **named):
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *more, **named)

    network = UserNetwork(NetConfig("user", mac=MAC))
    with LinuxGuest(network) as machine:
        machine.configure()
        machine.shell("sleep 2; ! ip -6 route | grep -q default")
        machine.shell("ip -6 route add default via fd72:7a00:0:2::2 dev eth0")
        monkeypatch.setattr(socket, "socket", Four)
        assert machine.run("""
import errno, socket
with socket.socket(socket.AF_INET6) as link:
    link.settimeout(10)
    result = errno.errorcode[link.connect_ex(("2001:db8::1", 80))]
""") == "ENETUNREACH"  # fmt: skip
