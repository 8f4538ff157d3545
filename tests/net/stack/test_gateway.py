"""The router: neighbours, DHCP, DNS, fragments, errors; and any frames. scapy is the oracle."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_InfoRequest,
    DHCP6_Reply,
    DHCP6OptClientId,
    DHCP6OptDNSServers,
)
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    fragment6,
)
from scapy.layers.l2 import ARP, Ether

from ringzero.core.frames import Frame
from ringzero.net.stack import ip
from ringzero.net.stack.policy import Policy, Rule
from tests.net.stack.world import (
    GUEST4,
    GUEST_MAC,
    HEAD,
    OUT,
    RESOLVER4,
    ROUTER4,
    ROUTER_MAC,
    Router,
    Silent,
)

ROUTER6, RESOLVER6 = "fd72:7a00:0:2::2", "fd72:7a00:0:2::3"
GUEST6, GUEST_LOCAL = "fd72:7a00:0:2::15", "fe80::15"
# What the router fails at, it tells by a warning.
pytestmark = pytest.mark.filterwarnings("error:the network has ended")
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.fixture
def router():
    return Router()


def six(destination=ROUTER6, source=GUEST6, **fields):
    return HEAD / IPv6(src=source, dst=destination, **fields)


def checked(packet, layer):
    """Return whether a packet's checksum is what scapy makes of it."""
    again = Ether(bytes(packet))
    field = "cksum" if hasattr(again[layer], "cksum") else "chksum"
    value = getattr(again[layer], field)
    delattr(again[layer], field)
    return getattr(Ether(bytes(again))[layer], field) == value


# ---- neighbours -----------------------------------------------------------


@pytest.mark.parametrize("address", [ROUTER4, RESOLVER4])
def test_who_has(router, address):
    ask = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=1, hwsrc=GUEST_MAC, psrc=GUEST4, pdst=address
    )
    (answer,) = router.send(ask)
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, ROUTER_MAC, address)
    assert answer.dst == GUEST_MAC
    ask[ARP].pdst = "10.0.2.77"
    assert router.send(ask) == []


def test_who_has_by_ipv6(router):
    ask = Ether(src=GUEST_MAC, dst="33:33:ff:00:00:02") / IPv6(src=GUEST6, dst="ff02::1:ff00:2")
    (answer,) = router.send(ask / ICMPv6ND_NS(tgt=ROUTER6))
    told = answer[ICMPv6ND_NA]
    assert (told.tgt, told.R, told.S, told.O) == (ROUTER6, 1, 1, 1) and answer[IPv6].hlim == 255
    assert checked(answer, ICMPv6ND_NA)
    # Somebody wants the router's address for itself: it hears that it is taken.
    probe = Ether(src=GUEST_MAC, dst="33:33:ff:00:00:02") / IPv6(src="::", dst="ff02::1:ff00:2")
    (answer,) = router.send(probe / ICMPv6ND_NS(tgt=ROUTER6))
    assert answer[IPv6].dst == "ff02::1" and answer[ICMPv6ND_NA].S == 0
    far = ask / ICMPv6ND_NS(tgt=ROUTER6)
    far[IPv6].hlim = 64
    assert router.send(far) == [], "it has passed a router"


@pytest.mark.parametrize("default", [True, False])
def test_router_advertisements(default):
    router = Router(default6=default)
    ask = Ether(src=GUEST_MAC, dst="33:33:00:00:00:02") / IPv6(src=GUEST_LOCAL, dst="ff02::2")
    (answer,) = router.send(ask / ICMPv6ND_RS())
    told = answer[ICMPv6ND_RA]
    assert bool(told.routerlifetime) == default and told.O == 1 and told.M == 0
    prefix = answer[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.A, prefix.L) == ("fd72:7a00:0:2::", 64, 1, 1)
    assert answer[ICMPv6NDOptRDNSS].dns == [RESOLVER6] and checked(answer, ICMPv6ND_RA)


def test_the_router_says_that_it_is_still_there(router):
    """Hosts forget a router of whom they hear nothing for as long as its lifetime."""
    assert router.wait(5000) == [] and router.gateway.deadline() is None, "nobody has asked"
    ask = Ether(src=GUEST_MAC, dst="33:33:00:00:00:02") / IPv6(src=GUEST_LOCAL, dst="ff02::2")
    (first,) = router.send(ask / ICMPv6ND_RS())
    for _ in range(20):
        router.gateway.now = router.gateway.deadline()
        (again,) = router.wait(0)
        assert again[IPv6].dst == "ff02::1" and again.dst == "33:33:00:00:00:01"
        assert bytes(again[ICMPv6ND_RA])[4:] == bytes(first[ICMPv6ND_RA])[4:]
    assert router.gateway.now - 5100 > first[ICMPv6ND_RA].routerlifetime


def test_a_guest_is_asked_for(router):
    found = []
    wanted = bytes([10, 0, 2, 15])
    router.gateway.reach(wanted, found.append)
    (ask,) = router.take()
    assert ask[ARP].pdst == GUEST4 and not found
    answer = Ether(src=GUEST_MAC, dst=ROUTER_MAC) / ARP(
        op=2, hwsrc=GUEST_MAC, psrc=GUEST4, hwdst=ROUTER_MAC, pdst=ROUTER4
    )
    router.send(answer)
    assert found[0].destination == wanted
    router.gateway.reach(wanted, found.append)
    assert len(found) == 2, "it is known"
    router.gateway.reach(bytes([10, 0, 2, 99]), found.append)
    router.take()
    asked = 0
    while len(found) < 3:
        router.gateway.now = router.gateway.deadline()
        asked += len(router.wait(0))
    assert found[2] is None and 102 < router.gateway.now < 104 and 20 < asked < 40
    router.gateway.reach(bytes([192, 0, 2, 1]), found.append)
    assert found[3] is None, "not on this link"


def answer_of(mac):
    return Ether(src=mac, dst=ROUTER_MAC) / ARP(
        op=2, hwsrc=mac, psrc=GUEST4, hwdst=ROUTER_MAC, pdst=ROUTER4
    )


def test_a_guest_that_comes_up_is_soon_asked_again(router):
    """It hears nothing before its device is there, as one that goes on from its memory."""
    found = []
    router.gateway.reach(bytes([10, 0, 2, 15]), found.append)
    router.take()
    assert router.wait(0.01)[0][ARP].pdst == GUEST4
    router.send(answer_of(GUEST_MAC))
    connection = router.gateway.connect(found[0], 5000, 80, Silent())
    (first,) = router.take()
    for seconds in (0.05, 0.1, 0.2, 0.4):
        assert router.wait(seconds * 0.9) == []
        (again,) = router.wait(seconds * 0.1 + 0.001)
        assert bytes(again) == bytes(first) and again[TCP].flags == "S"
    while not connection.endpoint.is_lost:
        router.gateway.now = router.gateway.deadline()
        router.wait(0)
    assert 120 < router.gateway.now < 130


def test_what_went_to_a_guests_former_mac_address_goes_to_its_new_one(router):
    """A machine that goes on from an image's memory has its own a moment later."""
    found = []
    router.gateway.reach(bytes([10, 0, 2, 15]), found.append)
    router.send(answer_of(GUEST_MAC))
    connection = router.gateway.connect(found[0], 5000, 80, Silent())
    (first,) = router.take()
    new = "02:00:00:00:00:16"
    (again,) = router.send(answer_of(new))
    assert (first.dst, again.dst) == (GUEST_MAC, new)
    assert bytes(again)[6:] == bytes(first)[6:]
    # Once only, whatever the guest says.
    assert router.send(answer_of(GUEST_MAC)) == router.send(answer_of(new)) == []
    reply = Ether(src=new, dst=ROUTER_MAC) / IP(src=GUEST4, dst=ROUTER4)
    syn = TCP(sport=80, dport=5000, flags="SA", seq=700, ack=again[TCP].seq + 1)
    assert [answer.dst for answer in router.send(reply / syn)] == [new]
    connection.send(b"data")
    (sent,) = router.take()
    (again,) = router.send(answer_of(GUEST_MAC))
    assert (sent.dst, again.dst) == (new, GUEST_MAC)
    assert bytes(again[TCP].payload) == b"data"


# ---- DHCP -----------------------------------------------------------------


def dhcp(kind, mac=GUEST_MAC, source="0.0.0.0", options=(), **fields):
    raw = bytes.fromhex(mac.replace(":", ""))
    return (
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
        / IP(src=source, dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=raw, xid=7, **fields)
        / DHCP(options=[("message-type", kind), *options, "end"])
    )


def told(answer):
    return dict(o[:2] for o in answer[DHCP].options if isinstance(o, tuple))


def test_leases(router):
    (offer,) = router.send(dhcp("discover"))
    assert (offer[BOOTP].yiaddr, offer[BOOTP].xid, told(offer)["message-type"]) == (GUEST4, 7, 2)
    assert checked(offer, UDP) and checked(offer, IP)
    ask = [("requested_addr", GUEST4), ("server_id", ROUTER4)]
    (ack,) = router.send(dhcp("request", options=ask))
    found = told(ack)
    assert found["message-type"] == 5 and found["router"] == ROUTER4
    assert found["name_server"] == RESOLVER4 and found["lease_time"] == 86400
    assert found["subnet_mask"] == "255.255.255.0" and found["interface-mtu"] == 1500
    (other,) = router.send(dhcp("discover", "02:00:00:00:00:16"))
    assert other[BOOTP].yiaddr == "10.0.2.16"
    (no,) = router.send(dhcp("request", "02:00:00:00:00:17", options=ask))
    assert told(no)["message-type"] == 6 and no.dst == "ff:ff:ff:ff:ff:ff"
    assert router.send(dhcp("request", options=[("server_id", "10.0.2.200")])) == []
    (again,) = router.send(dhcp("request", source=GUEST4, ciaddr=GUEST4))
    assert told(again)["message-type"] == 5 and again[IP].dst == GUEST4


def test_leases_end_and_are_bounded(router):
    for number in range(300):
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        answers = router.send(dhcp("discover", mac))
        assert bool(answers) == (number < 240), "from .15 to .254"
    router.gateway.now += 3600
    (answer,) = router.send(dhcp("discover", "02:00:00:00:09:09"))
    assert answer[BOOTP].yiaddr.startswith("10.0.2.")


def test_dhcp_over_ipv6(router):
    ask = Ether(src=GUEST_MAC, dst="33:33:00:01:00:02") / IPv6(src=GUEST_LOCAL, dst="ff02::1:2")
    ask = ask / UDP(sport=546, dport=547) / DHCP6_InfoRequest(trid=5)
    (answer,) = router.send(ask / DHCP6OptClientId(duid=DUID_LL(lladdr=GUEST_MAC)))
    assert answer[DHCP6_Reply].trid == 5 and answer[DHCP6OptDNSServers].dnsservers == [RESOLVER6]
    assert answer[DHCP6OptClientId].duid.lladdr == GUEST_MAC and checked(answer, UDP)


# ---- IP -------------------------------------------------------------------


def test_fragments(router):
    whole = OUT / UDP(sport=5, dport=6) / (bytes(range(256)) * 20)
    pieces = fragment(IP(bytes(whole)), 1000)
    assert len(pieces) > 4
    for piece in (*pieces[1:], pieces[0]):
        router.send(HEAD / piece)
    assert router.world.datagrams == [bytes(range(256)) * 20]
    made = six("2001:db8::1") / IPv6ExtHdrFragment() / UDP(sport=5, dport=6) / (b"x" * 4000)
    for piece in reversed(fragment6(made, 1280)):
        router.send(piece)
    assert router.world.datagrams[1:] == [b"x" * 4000]


def test_fragments_that_overlap_or_never_end(router):
    head = HEAD / IP(src=GUEST4, dst="192.0.2.1", proto=17, id=9, flags="MF")
    for offset in (0, 1, 2):
        head[IP].frag = offset
        router.send(head / bytes(24))
    for number in range(500):
        router.send(
            HEAD / IP(src=GUEST4, dst="192.0.2.1", proto=17, id=number, flags="MF") / bytes(1400)
        )
    pieces = router.gateway._reassembler
    assert len(pieces) <= ip.MAX_PACKETS and pieces.size <= ip.MAX_BYTES
    router.wait(31)
    assert len(pieces) == 0 and pieces.size == 0
    assert router.world.datagrams == []


def test_who_may_speak(router):
    for source in ("192.0.2.9", ROUTER4, "255.255.255.255", "224.0.0.1", "127.0.0.1"):
        router.send(HEAD / IP(src=source, dst="192.0.2.1") / UDP(sport=1, dport=2) / b"x")
    for destination in ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"):
        router.send(HEAD / IP(src=GUEST4, dst=destination) / UDP(sport=1, dport=2) / b"x")
    router.send(Ether(src=GUEST_MAC, dst="02:00:00:00:00:99") / OUT / UDP() / b"for another")
    router.send(six("::1") / UDP(sport=1, dport=2) / b"x")
    router.send(six("::ffff:127.0.0.1") / UDP(sport=1, dport=2) / b"x")
    assert router.world.datagrams == []
    damaged = bytearray(bytes(HEAD / OUT / UDP(sport=1, dport=2) / b"damaged"))
    damaged[-1] ^= 1
    router.gateway.receive(Frame(bytes(damaged)))
    assert router.world.datagrams == []
    router.send(HEAD / OUT / UDP(sport=1, dport=2, chksum=0) / b"unchecked")
    assert router.world.datagrams == [b"unchecked"]


def test_echoes(router):
    (answer,) = router.send(HEAD / IP(src=GUEST4, dst=ROUTER4) / ICMP(id=3, seq=4) / b"abc")
    assert (answer[ICMP].type, answer[ICMP].id, answer[ICMP].seq) == (0, 3, 4)
    assert bytes(answer[ICMP].payload) == b"abc" and checked(answer, ICMP)
    (answer,) = router.send(six() / ICMPv6EchoRequest(id=3, seq=4, data=b"abc"))
    assert answer[ICMPv6EchoReply].data == b"abc" and checked(answer, ICMPv6EchoReply)
    router.send(HEAD / OUT / ICMP() / b"far")
    assert len(router.world.echoes) == 1


def test_a_list_of_places():
    policy = Policy([Rule.parse("192.0.2.0/24:80/tcp"), Rule.parse("*.example.org:443")])
    router = Router(policy=policy)
    router.send(HEAD / OUT / TCP(sport=1, dport=80, flags="S"))
    assert len(router.world.opened) == 1
    (answer,) = router.send(HEAD / OUT / TCP(sport=1, dport=81, flags="S"))
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
    # Nobody says a name to the outside that is not allowed.
    ask = HEAD / IP(src=GUEST4, dst=RESOLVER4) / UDP(sport=9, dport=53)
    (answer,) = router.send(ask / DNS(id=1, qd=DNSQR(qname="secret.evil.net")))
    assert answer[DNS].rcode == 5 and not router.world.queries
    router.send(ask / DNS(id=2, qd=DNSQR(qname="www.example.org")))
    ((query, answered),) = router.world.queries
    https = HEAD / IP(src=GUEST4, dst="198.51.100.7") / TCP(sport=2, dport=443, flags="S")
    assert router.send(https)[0][ICMP].code == 13
    found = DNSRR(rrname="www.example.org", rdata="198.51.100.7", ttl=60)
    answered(bytes(DNS(id=2, qr=1, qd=DNSQR(qname="www.example.org"), an=found)))
    (answer,) = router.take()
    assert answer[DNS].an[0].rdata == "198.51.100.7" and query
    router.send(https)
    assert len(router.world.opened) == 2
    router.gateway.now += 3600
    https[TCP].sport = 3
    assert router.send(https)[0][ICMP].code == 13, "names are good for a time"


def test_a_resolver_that_nobody_reaches(router):
    ask = HEAD / IP(src=GUEST4, dst=RESOLVER4) / UDP(sport=9, dport=53)
    router.send(ask / DNS(id=1, qd=DNSQR(qname="www.example.org")))
    router.world.queries[0][1](None)
    (answer,) = router.take()
    assert (answer[DNS].rcode, answer[DNS].id) == (2, 1)


# ---- any frames -----------------------------------------------------------

LOOP = bytes.fromhex("0001 0100 0001 0000 0000 0000 c00c 0001 0001")
SEEDS = [
    bytes(packet)
    for packet in (
        Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=GUEST_MAC, psrc=GUEST4),
        dhcp("discover"),
        dhcp("request", options=[("requested_addr", GUEST4), ("hostname", b"x" * 200)]),
        HEAD / OUT / TCP(sport=1, dport=80, flags="S", options=[("MSS", 9), ("WScale", 200)]),
        HEAD / OUT / UDP(sport=1, dport=2) / b"data",
        HEAD / OUT / ICMP() / b"data",
        HEAD / IP(src=GUEST4, dst=ROUTER4) / ICMP(type=3, code=4) / OUT / TCP(),
        HEAD / IP(src=GUEST4, dst=RESOLVER4) / UDP(dport=53) / DNS(qd=DNSQR(qname="a.b")),
        HEAD / IP(src=GUEST4, dst=RESOLVER4) / UDP(dport=53) / LOOP,
        HEAD / IP(src=GUEST4, dst="192.0.2.1", flags="MF", proto=17) / bytes(16),
        six() / ICMPv6ND_NS(tgt=ROUTER6),
        six("ff02::2", GUEST_LOCAL) / ICMPv6ND_RS(),
        six("2001:db8::1") / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment() / UDP() / b"x",
        six() / ICMPv6EchoRequest(data=b"x" * 40),
        six("ff02::1:2", GUEST_LOCAL) / UDP(sport=546, dport=547) / DHCP6_InfoRequest(),
    )
]
CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5)


@settings(max_examples=400 * FUZZ, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(SEEDS),
            CHANGES,
            st.integers(0, 600),
            st.sampled_from([(0, 0), (34, 16), (34, 6), (54, 2), (14, 0)]),
            st.sampled_from([(0, 0), (1, 1448), (4, 1), (5, 7), (3, 1000), (0x81, 9)]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_frames(frames):
    """Neither a fault, nor an answer that is no frame."""
    router = Router()
    for seed, changes, length, place, (gso, size) in frames:
        data = bytearray(seed[:length])
        for at, value in changes:
            if at < len(data):
                data[at] = value
        start, offset = place if sum(place) + 2 <= len(data) else (0, 0)
        # The checksums are left open now and then, so that changes are not all that is seen.
        router.gateway.receive(Frame(bytes(data), (), start, offset, gso if start else 0, size))
        router.gateway.flush()
    for packet in router.take():
        assert len(packet) <= 1514 and packet.src == ROUTER_MAC
    router.wait(40)
