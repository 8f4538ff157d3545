"""The user network with Linux as its guest, and servers on the host's loopback."""

import contextlib
import hashlib
import random
import select
import shutil
import socket
import struct
import threading
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.errors import ConfigError, ConflictError, InvalidValueError, NotFoundError
from ringzero.net.networks.user import UserNetwork, UserOptions
from ringzero.net.proxy.forwards import Forward
from tests.net.linux_guest import MAC, Faults, LinuxGuest, missing

TARGET = ""
REASON = missing()
linux = pytest.mark.skipif(REASON is not None, reason=REASON or "")
HOST4, HOST6 = "10.0.2.2", "fd72:7a00:0:2::2"
DATA = random.Random(5).randbytes(3 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()
# In the guest: where a connection leads, what is sent there, and a digest of what comes back.
TRIP = """
import hashlib, random, socket, threading
data = random.Random(5).randbytes(3 << 20)
def trip(host, port, data=data):
    link = socket.create_connection((host, port), 30)
    link.settimeout(60)
    def send():
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    digest, size = hashlib.sha256(), 0
    while piece := link.recv(1 << 16):
        digest.update(piece)
        size += len(piece)
    sender.join()
    link.close()
    return digest.hexdigest(), size
"""


@contextlib.contextmanager
def guest(options=None, **faults):
    network = UserNetwork(NetConfig("user", mac=MAC), options)
    with LinuxGuest(network, **faults) as machine:
        machine.configure()
        yield machine


@pytest.fixture(scope="module")
def linux_guest():
    if REASON:
        pytest.skip(REASON)
    with guest() as machine:
        yield machine


@contextlib.contextmanager
def server(handle, host="127.0.0.1"):
    """Serve TCP on a loopback address of the host; yield the port."""
    door = socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
    )

    def work(link):
        with link, contextlib.suppress(OSError):
            link.settimeout(60)
            handle(link)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                link, _ = door.accept()
                threading.Thread(target=work, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()


def mirror(link):
    """Send back what comes, until it ends."""
    while piece := link.recv(1 << 16):
        link.sendall(piece)
    link.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def udp_mirror(host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.bind((host, 0))
        link.settimeout(0.05)
        done = threading.Event()

        def work():
            while not done.is_set():
                with contextlib.suppress(OSError):
                    data, peer = link.recvfrom(65535)
                    link.sendto(data, peer)

        thread = threading.Thread(target=work)
        thread.start()
        yield link.getsockname()[1]
        done.set()
        thread.join()


# ---- TCP ------------------------------------------------------------------


@linux
@pytest.mark.parametrize("host,loopback", [(HOST4, "127.0.0.1"), (HOST6, "::1")])
def test_bytes_both_ways(linux_guest, host, loopback):
    # An address may be used once nobody objects to it (RFC 4862 section 5.4).
    linux_guest.shell(
        "for n in 1 2 3 4 5 6 7 8 9; do ip -6 addr show scope global | "
        "grep fd72 | grep -qv tentative && break; sleep 0.3; done"
    )
    with server(mirror, loopback) as port:
        assert linux_guest.run(f"{TRIP}\nresult = trip({host!r}, {port})") == [DIGEST, len(DATA)]


@linux
@pytest.mark.parametrize(
    "faults",
    [
        {"offloads": False},
        {"incoming": (1, 0.03, 0, 0), "offloads": False},
        {"outgoing": (2, 0.03, 0, 0), "offloads": False},
        {"incoming": (3, 0.02, 0.02, 0.05), "outgoing": (4, 0.02, 0.02, 0.05), "offloads": False},
        {"incoming": (5, 0.02, 0.02, 0.05), "outgoing": (6, 0.02, 0.02, 0.05)},
    ],
    ids=["cut", "lost to the guest", "lost from the guest", "all, cut", "all"],
)
def test_a_bad_cable(faults):
    made = {k: Faults(*v) if k != "offloads" else v for k, v in faults.items()}
    with guest(**made) as machine, server(mirror) as port:
        code = f"{TRIP}\nresult = trip('{HOST4}', {port}, data[: 1 << 20])"
        expected = hashlib.sha256(DATA[: 1 << 20]).hexdigest()
        assert machine.run(code) == [expected, 1 << 20]


@linux
def test_clocks_that_jump(monkeypatch):
    """A process that was stopped for a month, and a host whose date is put back, lose nothing."""
    gone = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: time.monotonic() + gone[0])
        time = staticmethod(lambda: 0.0)

    monkeypatch.setattr("ringzero.net.proxy.loop.time", Clock)

    def serve(link):
        got = 0
        while piece := link.recv(1 << 16):
            link.sendall(piece)
            if got >> 20 != (got := got + len(piece)) >> 20:
                gone[0] += 30 * 86400.0
        link.shutdown(socket.SHUT_WR)

    with guest() as machine, server(serve) as port:
        began = time.monotonic()
        assert machine.run(f"{TRIP}\nresult = trip({HOST4!r}, {port})") == [DIGEST, len(DATA)]
        assert gone[0] and time.monotonic() - began < 60


@linux
def test_many_connections_at_once(linux_guest):
    with server(mirror) as port:
        code = f"""{TRIP}
found = []
def work(n): found.append(trip({HOST4!r}, {port}, data[n * 1000 : n * 1000 + 20000]))
threads = [threading.Thread(target=work, args=(n,)) for n in range(200)]
for t in threads: t.start()
for t in threads: t.join()
result = sorted(d for d, _ in found)
"""
        pieces = [DATA[n * 1000 : n * 1000 + 20000] for n in range(200)]
        assert linux_guest.run(code) == sorted(hashlib.sha256(p).hexdigest() for p in pieces)


@linux
def test_a_host_that_reads_slowly(linux_guest):
    got = hashlib.sha256()
    over = threading.Event()

    def slow(link):
        assert not over.wait(0.5)
        while piece := link.recv(1 << 16):
            got.update(piece)
        over.set()

    with server(slow) as port:
        linux_guest.run(f"""{TRIP}
link = socket.create_connection(({HOST4!r}, {port}), 30)
link.sendall(data)
link.close()""")
        assert over.wait(30) and got.hexdigest() == DIGEST


@linux
def test_a_guest_that_reads_slowly(linux_guest):
    def pour(link):
        link.sendall(DATA)

    with server(pour) as port:
        result = linux_guest.run(f"""{TRIP}
import time
link = socket.socket()
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
link.connect(({HOST4!r}, {port}))
time.sleep(0.5)
digest = hashlib.sha256()
while piece := link.recv(1 << 16): digest.update(piece)
result = digest.hexdigest()""")
        assert result == DIGEST


@linux
@pytest.mark.parametrize("host,loopback", [(HOST4, "::1"), (HOST6, "127.0.0.1")])
def test_a_server_that_listens_on_one_of_the_hosts_addresses(linux_guest, host, loopback):
    """A guest that knows the host by its name tries IPv4 or IPv6, as its C library likes."""
    linux_guest.shell(
        "for n in 1 2 3 4 5 6 7 8 9; do ip -6 addr show scope global | "
        "grep fd72 | grep -qv tentative && break; sleep 0.3; done"
    )
    with server(mirror, loopback) as port:
        assert linux_guest.run(f"{TRIP}\nresult = trip({host!r}, {port})") == [DIGEST, len(DATA)]
    assert linux_guest.run(f"""
import errno, socket
try: result = socket.create_connection(({host!r}, {port}), 30)
except OSError as fault: result = errno.errorcode[fault.errno]
""") == "ECONNREFUSED"  # fmt: skip


@linux
def test_ends_of_connections(linux_guest):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert linux_guest.run(f"""
import errno, socket
with socket.socket() as link: result = errno.errorcode[link.connect_ex(({HOST4!r}, {port}))]
""") == "ECONNREFUSED"  # fmt: skip

    def reset(link):
        link.recv(1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with server(reset) as port:
        assert linux_guest.run(f"""
link = socket.create_connection(({HOST4!r}, {port}), 30)
link.send(b"x")
try: result = link.recv(10)
except ConnectionResetError: result = "reset"
""") == "reset"  # fmt: skip

    # The guest goes on receiving after its end, and its reset reaches the host.
    faults = []

    def late(link):
        while link.recv(100):
            pass
        link.sendall(b"later")
        link.shutdown(socket.SHUT_WR)

    def reset_here(link):
        try:
            link.recv(1)
            link.recv(1)
        except ConnectionResetError as fault:
            faults.append(fault)
        over.set()

    over = threading.Event()
    with server(late) as port:
        assert linux_guest.run(f"""
link = socket.create_connection(({HOST4!r}, {port}), 30)
link.send(b"x")
link.shutdown(socket.SHUT_WR)
result = link.recv(10).decode()
""") == "later"  # fmt: skip
    with server(reset_here) as port:
        linux_guest.run(f"""
import struct
link = socket.create_connection(({HOST4!r}, {port}), 30)
link.send(b"x")
link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
link.close()""")
        assert over.wait(10) and faults


# ---- UDP, ICMP ------------------------------------------------------------

UDP_TRIP = """
import socket
def udp(host, port, size):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.settimeout(10)
        link.connect((host, port))
        data = bytes(n * 7 & 255 for n in range(size))
        link.send(data)
        return link.recv(65535) == data
"""


@linux
@pytest.mark.parametrize("size", [0, 1, 1400, 1473, 9000, 60000])
def test_datagrams(linux_guest, size):
    with udp_mirror() as port:
        assert linux_guest.run(f"{UDP_TRIP}\nresult = udp({HOST4!r}, {port}, {size})")
    with udp_mirror("::1") as port:
        assert linux_guest.run(f"{UDP_TRIP}\nresult = udp({HOST6!r}, {port}, {size})")


@linux
def test_a_datagram_that_nobody_takes(linux_guest):
    with socket.socket(type=socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert linux_guest.run(f"""
import socket, time
with socket.socket(type=socket.SOCK_DGRAM) as link:
    link.settimeout(5)
    link.connect(({HOST4!r}, {port}))
    result = "none"
    try:
        for n in range(3):
            link.send(b"x")
            time.sleep(0.2)
        link.recv(10)
    except ConnectionRefusedError: result = "refused"
""") == "refused"  # fmt: skip


@linux
@pytest.mark.parametrize("host", [HOST4, HOST6])
def test_echo(linux_guest, host):
    kind, protocol = ("AF_INET6", 58) if ":" in host else ("AF_INET", 1)
    code = f"""
import socket, struct
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
link = socket.socket(socket.{kind}, socket.SOCK_RAW, {protocol})
link.settimeout(10)
body = b"abcdefgh" * 500
request = struct.pack("!BBHHH", {128 if protocol == 58 else 8}, 0, 0, 77, 1) + body
if {protocol} == 1:
    request = request[:2] + checksum(request).to_bytes(2, "big") + request[4:]
link.sendto(request, ({host!r}, 0))
while True:
    answer = link.recv(65535)
    if {protocol} == 1: answer = answer[20:]
    if answer[0] in (0, 129): break
result = answer[4:] == struct.pack("!HH", 77, 1) + body
"""
    assert linux_guest.run(code)


# ---- DHCP, router, DNS ----------------------------------------------------


@linux
@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_a_dhcp_client(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho $1 $ip $mask $router $dns $lease $mtu $domain $hostname\n")
    script.chmod(0o755)
    with LinuxGuest(UserNetwork(NetConfig("user", mac=MAC))) as machine:
        printed = machine.shell(f"busybox udhcpc -i eth0 -n -q -f -O mtu -s {script} 2>/dev/null")
        assert "bound 10.0.2.15 24 10.0.2.2 10.0.2.3 86400 1500 ringzero.internal" in printed


@linux
def test_a_router_by_ipv6(linux_guest):
    address = linux_guest.shell("ip -6 addr show dev eth0")
    assert "fd72:7a00:0:2:0:ff:fe00:15/64" in address
    network = linux_guest.network
    assert ("default" in linux_guest.shell("ip -6 route")) == network.gateway.neighbours.default6


ASK = """
import socket, struct
def ask(name, kind, tcp):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0"
    query = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)
    with socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as link:
        link.settimeout(10)
        link.connect(("10.0.2.3", 53))
        if tcp:
            link.sendall(len(query).to_bytes(2, "big") + query)
            size = int.from_bytes(link.recv(2, socket.MSG_WAITALL), "big")
            return link.recv(size, socket.MSG_WAITALL).hex()
        link.send(query)
        return link.recv(65535).hex()
"""


@linux
@pytest.mark.parametrize("tcp", [False, True])
def test_names(linux_guest, tcp):
    from scapy.layers.dns import DNS

    answer = linux_guest.run(f"{ASK}\nresult = ask('host.ringzero.internal', 1, {tcp})")
    message = DNS(bytes.fromhex(answer))
    assert message.rcode == 0 and message.an[0].rdata == HOST4
    answer = linux_guest.run(f"{ASK}\nresult = ask('HOST.ringzero.internal', 28, {tcp})")
    assert DNS(bytes.fromhex(answer)).an[0].rdata == HOST6
    answer = linux_guest.run(f"{ASK}\nresult = ask('nobody.ringzero.internal', 1, {tcp})")
    assert DNS(bytes.fromhex(answer)).rcode == 3
    answer = linux_guest.run(f"{ASK}\nresult = ask('2.2.0.10.in-addr.arpa', 12, {tcp})")
    assert DNS(bytes.fromhex(answer)).an[0].rdata == b"host.ringzero.internal."


@linux
@pytest.mark.parametrize("tcp", [False, True])
def test_names_that_others_know(tcp, tmp_path, monkeypatch):
    from scapy.layers.dns import DNS, DNSRR

    def answer(query):
        asked = DNS(query)
        found = DNS(
            id=asked.id, qr=1, qd=asked.qd, an=DNSRR(rrname=asked.qd[0].qname, rdata="192.0.2.7")
        )
        return bytes(found)

    def serve_tcp(link):
        size = int.from_bytes(link.recv(2, socket.MSG_WAITALL), "big")
        found = answer(link.recv(size, socket.MSG_WAITALL))
        link.sendall(len(found).to_bytes(2, "big") + found)

    monkeypatch.setattr("ringzero.net.proxy.resolver._PORT", 0)
    with server(serve_tcp) as port, socket.socket(type=socket.SOCK_DGRAM) as link:
        link.bind(("127.0.0.1", port))
        monkeypatch.setattr("ringzero.net.proxy.resolver._PORT", port)

        def serve_udp():
            with contextlib.suppress(OSError):
                query, peer = link.recvfrom(2048)
                link.sendto(answer(query), peer)

        threading.Thread(target=serve_udp, daemon=True).start()
        with guest() as machine:
            machine.network.resolver.servers = ["127.0.0.1"]
            found = machine.run(f"{ASK}\nresult = ask('example.org', 1, {tcp})")
    message = DNS(bytes.fromhex(found))
    assert message.id == 7 and message.an[0].rdata == "192.0.2.7"


# ---- policy ---------------------------------------------------------------


@linux
def test_a_closed_host_and_a_list_of_places():
    with server(mirror) as port, udp_mirror() as udp_port:
        code = f"""
import errno, socket
def tcp():
    with socket.socket() as link:
        link.settimeout(10)
        return errno.errorcode.get(link.connect_ex(({HOST4!r}, {port})), "connected")
def udp():
    with socket.socket(type=socket.SOCK_DGRAM) as link:
        link.settimeout(2)
        link.connect(({HOST4!r}, {udp_port}))
        link.send(b"x")
        try: return link.recv(10).decode()
        except OSError as fault: return errno.errorcode.get(fault.errno, "none")
result = tcp(), udp()
"""
        with guest(UserOptions(host=False)) as machine:
            assert machine.run(code) == ["EHOSTUNREACH", "EHOSTUNREACH"]
        with guest(UserOptions(allow=(f"host.ringzero.internal:{port}/tcp",))) as machine:
            assert machine.run(code) == ["connected", "EHOSTUNREACH"]
        with guest(UserOptions(allow=("10.0.2.0/24",))) as machine:
            assert machine.run(code) == ["EHOSTUNREACH", "EHOSTUNREACH"], "the host must be named"
    with pytest.raises(ConfigError):
        UserNetwork(NetConfig("user"), UserOptions(allow=("a b",)))


# ---- forwarded ports ------------------------------------------------------

SERVE = """
import socket, threading
door = socket.create_server(("0.0.0.0", 8080))
dgram = socket.socket(type=socket.SOCK_DGRAM)
dgram.bind(("0.0.0.0", 8081))
def serve():
    while True:
        link, peer = door.accept()
        data = link.recv(1 << 16)
        link.sendall(b"got " + data)
        link.close()
def serve_udp():
    while True:
        data, peer = dgram.recvfrom(65535)
        dgram.sendto(b"got " + data, peer)
for f in (serve, serve_udp): threading.Thread(target=f, daemon=True).start()
"""


@linux
def test_forwarded_ports():
    with guest(UserOptions(forwards=(Forward(0, 8080),))) as machine:
        machine.run(SERVE)
        (first,) = machine.network.forwards()
        more = machine.network.forward(Forward(0, 8080))
        for forward in (first, more):
            with socket.create_connection(("127.0.0.1", forward.port), 10) as link:
                link.sendall(b"this")
                assert link.recv(100) == b"got this"
        udp = machine.network.forward(Forward(0, 8081, protocol="udp"))
        links = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(3)]
        for number, link in enumerate(links):
            link.settimeout(10)
            link.connect(("127.0.0.1", udp.port))
            link.send(b"%d" % number)
        for number, link in enumerate(links):
            assert link.recv(100) == b"got %d" % number
            link.close()
        with pytest.raises(ConflictError, match="taken"):
            machine.network.forward(Forward(first.port, 8080))
        machine.network.unforward(first)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", first.port), 2):
            pass
        with pytest.raises(NotFoundError):
            machine.network.unforward(first)
        nobody = machine.network.forward(Forward(0, 9999))
        # The reset may come before the connection is seen to be up.
        with (
            contextlib.suppress(ConnectionResetError),
            socket.create_connection(("127.0.0.1", nobody.port), 10) as link,
        ):
            assert select.select([link], [], [], 10)[0] and link.recv(1) == b"", "nobody listens"


# Nobody need listen there.
SPEAK = f"""
import contextlib, socket
with contextlib.suppress(OSError):
    socket.create_connection(({HOST4!r}, 9), 10).close()
"""


@linux
@pytest.mark.parametrize("how", ["silent", "speaks", "moved"])
def test_forwarded_ports_find_a_guest_with_an_address_of_its_own(how):
    """One that was given by hand, or by cloud-init; the guest need not have said anything."""
    network = UserNetwork(NetConfig("user", mac=MAC), UserOptions(forwards=(Forward(0, 8080),)))
    with LinuxGuest(network) as machine:
        if how == "moved":
            machine.configure()
            machine.run(SPEAK)
            machine.shell("ip addr flush dev eth0 scope global")
        machine.shell("ip addr add 10.0.2.77/24 dev eth0; ip route replace default via 10.0.2.2")
        if how != "silent":
            machine.run(SPEAK)
        both = '("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True'
        machine.run(SERVE.replace('("0.0.0.0", 8080)', both))
        (forward,) = network.forwards()
        answer, until = b"", time.monotonic() + 60
        # Until IPv6 is up in the guest, a silent one is nowhere.
        while not answer and time.monotonic() < until:
            with (
                contextlib.suppress(ConnectionResetError),
                socket.create_connection(("127.0.0.1", forward.port), 30) as link,
            ):
                link.sendall(b"this")
                answer = link.recv(100)
        assert answer == b"got this"


@pytest.mark.parametrize(
    "forward", [Forward(70000, 80), Forward(1, 0), Forward(1, 80, "127.0.0.1", "sctp"),
                Forward(1, 80, "nowhere")],
)  # fmt: skip
def test_forwards_that_are_none(forward):
    with pytest.raises(InvalidValueError):
        UserNetwork(NetConfig("user"), UserOptions(forwards=(forward,)))


@linux
def test_a_network_that_is_closed_in_mid_transfer():
    with server(mirror) as port, guest() as machine:
        machine.run(f"""
import socket
link = socket.create_connection(({HOST4!r}, {port}), 10)
link.send(b"x" * 100000)""")
        machine.network.wake()
