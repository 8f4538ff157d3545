"""The switch: where frames go, and what a port may not say. scapy makes the packets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from ringzero.core.frames import Frame
from ringzero.errors import ConflictError
from ringzero.net.stack import addresses
from ringzero.net.stack.guard import MAX_CLAIMS_OF_ONE, Claims, Guard
from ringzero.net.stack.switch import AGEING_TIME, MAX_ADDRESSES, Switch

ROUTER, ONE, TWO, ALL = "02:00:00:00:00:fe", "02:00:00:00:00:01", "02:00:00:00:00:02", "ff:" * 5
ALL += "ff"
ROUTER4, ONE4, TWO4 = "10.1.0.1", "10.1.0.11", "10.1.0.12"
PREFIX = "fd00:1::"
ROUTER6, ONE6, TWO6 = PREFIX + "1", PREFIX + "11", PREFIX + "12"
LOCAL1, LOCAL2 = "fe80::11", "fe80::12"


def raw(mac):
    return bytes.fromhex(mac.replace(":", ""))


class Net:
    """A router's port, and two guests' with guards."""

    def __init__(self, leases=True):
        self.switch = Switch()
        self.claims = Claims()
        self.got = {}
        self.ports = {ROUTER: self.join(ROUTER)}
        for mac, address in ((ONE, ONE4), (TWO, TWO4)):
            guard = Guard(
                raw(mac),
                self.claims,
                {addresses.parse(address)} if leases else None,
                reserved=frozenset(map(addresses.parse, (ROUTER4, ROUTER6))),
                prefix6=addresses.parse(PREFIX),
            )
            self.ports[mac] = self.join(mac, guard)

    def join(self, mac, guard=None):
        self.got[mac] = []
        return self.switch.connect(lambda frame: self.got[mac].append(frame.data()), guard)

    def send(self, mac, packet):
        """Send from a port; return who gets it."""
        for got in self.got.values():
            got.clear()
        self.ports[mac].receive(Frame(bytes(packet)))
        return {name for name, got in self.got.items() if got == [bytes(packet)]}


@pytest.fixture
def net():
    return Net()


def test_who_is_heard_is_found(net):
    hello = Ether(src=ONE, dst=ALL) / ARP(hwsrc=ONE, psrc=ONE4, pdst=TWO4)
    assert net.send(ONE, hello) == {ROUTER, TWO}
    # Who has a guard is known from the start.
    packet = Ether(src=ONE, dst=TWO) / IP(src=ONE4, dst=TWO4) / ICMP()
    assert net.send(ONE, packet) == {TWO}
    # Who has none is not, and hears what is for nobody that is known.
    assert net.send(ONE, Ether(src=ONE, dst=ROUTER) / IP(src=ONE4) / ICMP()) == {ROUTER}
    net.send(ROUTER, Ether(src=ROUTER, dst=ONE) / IP() / ICMP())
    assert net.send(ONE, Ether(src=ONE, dst=ROUTER) / IP(src=ONE4) / ICMP()) == {ROUTER}
    assert net.send(ONE, Ether(src=ONE, dst=ONE) / IP(src=ONE4) / ICMP()) == set(), "no way back"
    port = net.ports[ONE]
    assert (port.received, port.refused) == (5, 0) and port.received_bytes > 150
    assert net.ports[TWO].sent == 2


def test_trusted_ports_learn_many_addresses_and_forget_silent_ones(net):
    uplink = net.ports["uplink"] = net.join("uplink")
    far = "02:00:00:00:0f:01"
    net.send("uplink", Ether(src=far, dst=ROUTER) / IP() / ICMP())
    to_far = Ether(src=ROUTER, dst=far) / IP() / ICMP()
    assert net.send(ROUTER, to_far) == {"uplink"}
    net.switch.now += AGEING_TIME + 1
    assert net.send(ROUTER, to_far) == {"uplink"}, "flooded, but not to guests with an address"
    other = net.ports["other"] = net.join("other")
    assert net.send(ROUTER, to_far) == {"uplink", "other"}
    for number in range(MAX_ADDRESSES + 10):
        uplink.receive(Frame(raw(ROUTER) + b"\2\1" + number.to_bytes(4, "big") + bytes(50)))
    assert len(net.switch._heard) == MAX_ADDRESSES
    net.switch.disconnect(uplink)
    assert len(net.switch._heard) <= 1
    net.switch.disconnect(other)
    assert net.send(ROUTER, to_far) == set()


def test_what_no_switch_passes_on(net):
    for group in ("01:80:c2:00:00:00", "01:80:c2:00:00:0e"):
        assert net.send(ROUTER, Ether(src=ROUTER, dst=group) / b"spanning tree") == set()
    assert net.send(ROUTER, Ether(src="01:00:5e:00:00:01", dst=ONE) / b"from a group") == set()
    assert net.send(ROUTER, b"short") == set()
    assert net.ports[ROUTER].refused == 2


ONE_SAYS = Ether(src=ONE, dst=ALL)
ALLOWED = {
    "arp": ONE_SAYS / ARP(hwsrc=ONE, psrc=ONE4, pdst=TWO4),
    "arp probe": ONE_SAYS / ARP(hwsrc=ONE, psrc="0.0.0.0", pdst=TWO4),
    "ipv4": ONE_SAYS / IP(src=ONE4, dst=TWO4) / UDP(sport=1000) / b"x",
    "dhcp": ONE_SAYS / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    / BOOTP(chaddr=raw(ONE)) / DHCP(options=[("message-type", "discover"), "end"]),
    "a later fragment": ONE_SAYS / IP(src=ONE4, dst=TWO4, proto=17, frag=10) / b"\0\x43\0\x44",
    "dad": ONE_SAYS / IPv6(src="::", dst="ff02::1:ff00:11") / ICMPv6ND_NS(tgt=ONE6),
    "solicitation": ONE_SAYS / IPv6(src=ONE6, dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt=ROUTER6)
    / ICMPv6NDOptSrcLLAddr(lladdr=ONE),
    "advertisement": ONE_SAYS / IPv6(src=ONE6, dst="ff02::1") / ICMPv6ND_NA(tgt=ONE6)
    / ICMPv6NDOptDstLLAddr(lladdr=ONE),
    "echo": ONE_SAYS / IPv6(src=LOCAL1, dst=LOCAL2) / ICMPv6EchoRequest(),
    "options": ONE_SAYS / IPv6(src=ONE6, dst=TWO6) / IPv6ExtHdrDestOpt() / UDP(sport=1) / b"x",
}  # fmt: skip
FORGED = {
    "mac": Ether(src=TWO, dst=ALL) / ARP(hwsrc=ONE, psrc=ONE4),
    "arp's mac": ONE_SAYS / ARP(hwsrc=TWO, psrc=ONE4),
    "arp's address": ONE_SAYS / ARP(hwsrc=ONE, psrc=TWO4),
    "the router's address": ONE_SAYS / ARP(op=2, hwsrc=ONE, psrc=ROUTER4),
    "arp cut off": ONE_SAYS / bytes(ARP(hwsrc=ONE, psrc=ONE4))[:20],
    "ipv4": ONE_SAYS / IP(src=TWO4, dst=ROUTER4) / ICMP(),
    "no address": ONE_SAYS / IP(src="0.0.0.0", dst=ROUTER4) / ICMP(),
    "no address, another port": ONE_SAYS / IP(src="0.0.0.0") / UDP(sport=68, dport=53),
    "ipv4 cut off": ONE_SAYS / bytes(IP(src=ONE4) / UDP())[:22],
    "dhcp server": ONE_SAYS / IP(src=ONE4) / UDP(sport=67, dport=68) / BOOTP(op=2),
    "ipv6 from elsewhere": ONE_SAYS / IPv6(src="fd00:2::1", dst="ff02::1") / ICMPv6EchoRequest(),
    "the router's ipv6": ONE_SAYS / IPv6(src=ROUTER6, dst="ff02::1") / ICMPv6EchoRequest(),
    "router advertisement": ONE_SAYS / IPv6(src=LOCAL1, dst="ff02::1") / ICMPv6ND_RA(),
    "redirect": ONE_SAYS / IPv6(src=LOCAL1, dst="ff02::1") / ICMPv6ND_Redirect(),
    "advertisement in pieces": ONE_SAYS / IPv6(src=LOCAL1, dst="ff02::1")
    / IPv6ExtHdrFragment(m=1) / ICMPv6ND_RA(),
    "advertisement behind options": ONE_SAYS / IPv6(src=LOCAL1, dst="ff02::1")
    / IPv6ExtHdrDestOpt() / ICMPv6ND_RA(),
    "the rest of an advertisement": ONE_SAYS / IPv6(src=LOCAL1, dst="ff02::1")
    / IPv6ExtHdrFragment(offset=5, nh=58) / b"rest",
    "another's mac": ONE_SAYS / IPv6(src=ONE6, dst="ff02::1") / ICMPv6ND_NA(tgt=ONE6)
    / ICMPv6NDOptDstLLAddr(lladdr=TWO),
    "the router's neighbour": ONE_SAYS / IPv6(src=ONE6, dst="ff02::1") / ICMPv6ND_NA(tgt=ROUTER6),
    "dhcpv6 server": ONE_SAYS / IPv6(src=LOCAL1, dst=LOCAL2) / UDP(sport=547, dport=546),
    "ipv6 cut off": ONE_SAYS / bytes(IPv6(src=LOCAL1))[:30],
    "a tag": ONE_SAYS / Dot1Q(vlan=5) / IP(src=TWO4) / ICMP(),
    "another protocol": Ether(src=ONE, dst=ALL, type=0x88CC) / b"lldp",
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_guest_may_say(net, name):
    assert net.send(ONE, ALLOWED[name]) == {ROUTER, TWO}
    assert net.ports[ONE].refused == 0


@pytest.mark.parametrize("name", FORGED)
def test_what_a_guest_may_not_say(net, name):
    assert net.send(ONE, FORGED[name]) == set()
    assert net.ports[ONE].refused == 1
    assert net.send(ONE, ALLOWED["ipv4"]) == {ROUTER, TWO}, "it goes on otherwise"


def test_who_is_first_has_the_address():
    net = Net(leases=False)
    says = {mac: Ether(src=mac, dst=ALL) / IP(src=ONE4, dst=TWO4) / ICMP() for mac in (ONE, TWO)}
    assert net.send(ONE, says[ONE]) and not net.send(TWO, says[TWO])
    six = {
        mac: Ether(src=mac, dst=ALL) / IPv6(src=ONE6, dst="ff02::1") / ICMPv6EchoRequest()
        for mac in (ONE, TWO)
    }
    assert net.send(TWO, six[TWO]) and not net.send(ONE, six[ONE])
    net.switch.disconnect(net.ports[TWO])
    assert net.send(ONE, six[ONE]), "who has left has left it"
    guard = net.ports[ONE].guard
    for number in range(100):
        packet = Ether(src=ONE, dst=ALL) / IPv6(src=f"{PREFIX}2:{number:x}") / ICMPv6EchoRequest()
        assert net.send(ONE, packet)
        assert len(guard.claimed) <= MAX_CLAIMS_OF_ONE


def test_a_lease_that_comes_and_goes(net):
    guard = net.ports[ONE].guard
    packet = ONE_SAYS / IP(src="10.1.0.99", dst=TWO4) / ICMP()
    assert not net.send(ONE, packet)
    guard.addresses.add(addresses.parse("10.1.0.99"))
    assert net.send(ONE, packet)


def test_another_port_cannot_take_a_guests_address(net):
    net.send(ONE, ALLOWED["ipv4"])
    forged = Ether(src=ONE, dst=ALL) / IP(src=ROUTER4) / ICMP()
    assert net.send(ROUTER, forged) == set()
    assert net.send(TWO, Ether(src=TWO, dst=ONE) / IP(src=TWO4) / ICMP()) == {ONE}
    with pytest.raises(ConflictError):
        net.join("three", Guard(raw(ONE), net.claims))


MESSAGES = [bytes(packet) for packet in (*ALLOWED.values(), *FORGED.values())]


@given(
    st.sampled_from(MESSAGES),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6),
    st.integers(0, 140),
)
def test_any_bytes(message, changes, length):
    data = bytearray(message[:length])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    net = Net()
    net.ports[ONE].receive(Frame(bytes(data)))
    if any(net.got.values()):
        assert bytes(data[6:12]) == raw(ONE) and data[12:14] in (b"\x08\0", b"\x08\6", b"\x86\xdd")
