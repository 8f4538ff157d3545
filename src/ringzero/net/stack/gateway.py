"""The router of a guests' network: neighbours, DHCP, DNS, and the way out by a `World`.

Frames come in by `receive` and go out by `emit`. It does no I/O, and has no
clock: whoever owns it says what time it is, in seconds, and calls `expire`
at `deadline`. After each batch of frames, and of the world's doings, `flush`
sends the acknowledgements that are due.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from ringzero.core.frames import ETHERNET_HEADER, Buffer, Frame, ones_sum
from ringzero.net.stack import addresses, arp, dhcp, icmp, ip, ndp, udp
from ringzero.net.stack.addresses import ANY4, ANY6
from ringzero.net.stack.dhcp import DhcpServer, Offer
from ringzero.net.stack.dns import DnsServer, Names
from ringzero.net.stack.dnsmessage import DnsFormatError, parse_question, truncated
from ringzero.net.stack.ip import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Path
from ringzero.net.stack.policy import Policy
from ringzero.net.stack.tcp import Connection, Endpoint, Tcp
from ringzero.net.stack.udp import Datagram
from ringzero.records import record

DNS_PORT = 53
# Hosts that are remembered by their addresses; guests can make addresses up.
MAX_NEIGHBOURS = 1024
# How long a host may take to answer who has an address, in seconds, asked as often as here.
_ASK_TIME, _ASKS, _MAX_ASKED = 1.0, 3, 256
# RFC 4861 section 6.2.1: how often routers say that they are there, in seconds, at most 1,800.
_ADVERTISE_TIME = 600.0
# The longest DNS query over TCP that is looked at.
_MAX_QUERY = 4096


@record
class Subnet:
    """The addresses of a network. IPv4's are of 4 bytes, IPv6's of 16; `prefix6` is a /64.

    The gateway is also the host's address for guests. `mac` is the gateway's.
    """

    mac: bytes
    gateway4: bytes
    resolver4: bytes
    length4: int
    first4: bytes
    last4: bytes
    prefix6: bytes
    gateway6: bytes
    resolver6: bytes
    mtu: int = 1500
    domain: str = ""

    @property
    def mask4(self) -> bytes:
        """The IPv4 prefix length as a mask."""
        return (0xFFFFFFFF << 32 - self.length4 & 0xFFFFFFFF).to_bytes(4, "big")

    def has(self, address: bytes) -> bool:
        """Return whether an address is on this link."""
        if len(address) == 4:
            return addresses.in_prefix(address, self.gateway4, self.length4)
        return addresses.in_prefix(address, self.prefix6, 64) or address[:2] == b"\xfe\x80"


class World(Protocol):
    """What lies behind the gateway; called while the stack works, and may not wait."""

    def open(self, connection: Connection) -> None:
        """Set the connection's endpoint, and `accept` or `refuse` it sooner or later."""
        ...

    def datagram(self, packet: Packet, datagram: Datagram, back: Path) -> None:
        """Take a datagram of a guest; answers go along `back`.

        Where it begins something, `Gateway.may_go` is to be asked.
        """
        ...

    def echo(self, packet: Packet, back: Path) -> None:
        """Take an ICMP echo request of a guest; the answer goes along `back`."""
        ...

    def resolve(self, query: bytes, stream: bool, answer: Callable[[bytes | None], None]) -> None:
        """Ask another resolver, and call `answer`, with None where nobody answers.

        `stream` says that the guest asks over TCP, where answers may be long.
        """
        ...


class Gateway:
    """The router. `default4` and `default6` say whether there is a way out.

    `host_open` says whether the gateway's addresses lead to the host.
    """

    def __init__(
        self,
        subnet: Subnet,
        world: World,
        emit: Callable[[Frame], None],
        number: Callable[[], int],
        *,
        policy: Policy | None = None,
        names: Names | None = None,
        search: tuple[str, ...] = (),
        default4: bool = True,
        default6: bool = True,
        host_open: bool = True,
        lease_time: int = 86400,
    ) -> None:
        self.subnet = subnet
        self.world = world
        self.emit = emit
        self._number = number
        self.policy = policy or Policy()
        self.names = names or Names(subnet.domain)
        self.dns = DnsServer(self.names, self.policy)
        self.default6 = default6
        self.host_open = host_open
        self.domains = tuple(dict.fromkeys((*filter(None, (subnet.domain,)), *search)))
        self.dhcp = DhcpServer(
            Offer(
                server=subnet.gateway4,
                mask=subnet.mask4,
                router=subnet.gateway4 if default4 else None,
                resolvers=(subnet.resolver4,),
                domain=subnet.domain,
                search=self.domains,
                mtu=subnet.mtu,
                lease_time=lease_time,
            ),
            subnet.first4,
            subnet.last4,
        )
        self.link_local = addresses.link_local(subnet.mac)
        self.tcp = Tcp(emit, self._open, number)
        self._reassembler = ip.Reassembler()
        self._neighbours: OrderedDict[bytes, bytes] = OrderedDict()
        self._asked: OrderedDict[bytes, _Asked] = OrderedDict()
        # Nobody is told of the router before somebody has asked.
        self._advertise_at: float | None = None
        self._own = frozenset(
            (*(subnet.gateway4, subnet.resolver4), *(subnet.gateway6, subnet.resolver6))
        )
        self._own_groups = {
            addresses.multicast_mac(addresses.solicited_node(address))
            for address in (subnet.gateway6, subnet.resolver6, self.link_local)
        }

    # ---- frames -----------------------------------------------------------

    @property
    def now(self) -> float:
        """What time it is, in seconds; set before anything is asked of the gateway."""
        return self.tcp.now

    @now.setter
    def now(self, moment: float) -> None:
        self.tcp.now = moment

    def receive(self, frame: Frame) -> None:
        """Take a frame of a guest. What makes no sense is dropped."""
        head = frame.head
        if len(head) < ETHERNET_HEADER:
            return
        if head[:6] != self.subnet.mac and not head[0] & 1:
            return
        if head[12:14] == ETHERTYPE_ARP:
            self._take_arp(frame)
            return
        packet = ip.parse(frame, self._reassembler, self.now)
        if packet is None:
            return
        source = packet.source
        if packet.protocol == ip.TCP and head[:6] == self.subnet.mac:
            # What belongs to a connection needs no look at anything else.
            key = source, packet.head[packet.at : packet.at + 4], packet.destination
            if len(key[1]) == 4:
                ports = int.from_bytes(key[1][:2], "big"), int.from_bytes(key[1][2:], "big")
                if (source, ports[0], packet.destination, ports[1]) in self.tcp.connections:
                    self.tcp.receive(packet, self._back(packet))
                    return
        self._take_packet(packet)

    def _take_packet(self, packet: Packet) -> None:
        source, destination, protocol = packet.source, packet.destination, packet.protocol
        head = packet.frame.head
        if len(source) == 4 and source == ANY4:
            if protocol == ip.UDP:
                self._take_dhcp(packet)
            return
        if protocol == ip.ICMPV6 and len(source) == 16 and self._take_discovery(packet):
            return
        # Nobody speaks for a whole group, and no address of another link comes from here.
        if addresses.is_multicast(source) or not self.subnet.has(source) or source in self._own:
            return
        self._learn(source, head[6:12])
        if protocol == ip.UDP:
            self._take_udp(packet)
        elif head[0] & 1 or addresses.is_multicast(destination):
            return
        elif protocol == ip.TCP:
            if addresses.leads_out(destination):
                self.tcp.receive(packet, self._back(packet))
        elif protocol in (ip.ICMP, ip.ICMPV6):
            self._take_icmp(packet)

    def _back(self, packet: Packet) -> Path:
        """Return the way to the sender of a packet."""
        head = packet.frame.head
        ethernet = head[6:12] + self.subnet.mac + head[12:14]
        return Path(ethernet, packet.destination, packet.source, self.subnet.mtu)

    # ---- neighbours -------------------------------------------------------

    def _learn(self, address: bytes, mac: bytes) -> None:
        if mac[0] & 1 or address in self._own:
            return
        known = self._neighbours
        before = known.get(address)
        if before != mac:
            known[address] = mac
            if before is not None:
                self.tcp.moved(address, mac)
            if len(known) > MAX_NEIGHBOURS:
                known.popitem(last=False)
        asked = self._asked.pop(address, None) if self._asked else None
        if asked is not None:
            path = self._path(address, mac)
            for call in asked.calls:
                call(path)

    def _path(self, address: bytes, mac: bytes) -> Path:
        if len(address) == 4:
            ethernet, source = mac + self.subnet.mac + ETHERTYPE_IPV4, self.subnet.gateway4
        else:
            ethernet, source = mac + self.subnet.mac + ETHERTYPE_IPV6, self.subnet.gateway6
        return Path(ethernet, source, address, self.subnet.mtu)

    def reach(self, address: bytes, call: Callable[[Path | None], None]) -> None:
        """Find a guest by its address, and call `call` with the way from the gateway to it.

        With None, after some seconds, where no guest has it.
        """
        mac = self._neighbours.get(address)
        if mac is not None:
            call(self._path(address, mac))
            return
        if not self.subnet.has(address) or len(self._asked) >= _MAX_ASKED:
            call(None)
            return
        asked = self._asked.get(address)
        if asked is None:
            asked = self._asked[address] = _Asked(self.now)
            self._ask(address)
        asked.calls.append(call)

    def _ask(self, address: bytes) -> None:
        if len(address) == 4:
            self.emit(Frame(arp.request(self.subnet.mac, self.subnet.gateway4, address)))
        else:
            self.emit(ndp.solicit(self.subnet.mac, address))

    def _take_arp(self, frame: Frame) -> None:
        found = arp.parse(frame.data()[ETHERNET_HEADER:])
        if found is None:
            return
        operation, mac, sender, target = found
        if sender != ANY4 and self.subnet.has(sender) and mac == frame.head[6:12]:
            self._learn(sender, mac)
        if operation == arp.REQUEST and target in self._own:
            self.emit(Frame(arp.reply(self.subnet.mac, target, mac, sender)))

    def _take_discovery(self, packet: Packet) -> bool:
        """Take a message of neighbour discovery; False where it is another one."""
        data = packet.data()
        if not data or not ndp.ROUTER_SOLICITATION <= data[0] <= ndp.NEIGHBOUR_ADVERTISEMENT:
            return False
        # RFC 4861 section 6.1, 7.1: nothing that has passed a router counts, nor what is cut off.
        if packet.ttl != 255 or len(data) < 8 or data[1] or not packet.checksum_fits():
            return True
        mac, source = packet.frame.head[6:12], packet.source
        if source != ANY6 and not self.subnet.has(source):
            return True
        if data[0] == ndp.ROUTER_SOLICITATION:
            self.advertise(mac, source)
        elif data[0] in (ndp.NEIGHBOUR_SOLICITATION, ndp.NEIGHBOUR_ADVERTISEMENT):
            found = ndp.solicitation(data)
            if found is None:
                return True
            target, told = found
            own = target in self._own or target == self.link_local
            if data[0] == ndp.NEIGHBOUR_ADVERTISEMENT:
                if self.subnet.has(target) and not own:
                    self._learn(target, told or mac)
                return True
            if source != ANY6:
                self._learn(source, told or mac)
            if own:
                self.emit(ndp.advertise(self.subnet.mac, target, mac, source, router=True))
        return True

    def advertise(self, mac: bytes | None = None, address: bytes = ANY6) -> None:
        """Tell a host, or all of them, of the router; from then on all are told now and then."""
        subnet = self.subnet
        if self._advertise_at is None:
            self._advertise_at = self.now + _ADVERTISE_TIME
        if mac is None or address == ANY6:
            address = addresses.ALL_NODES6
            mac = addresses.multicast_mac(address)
        self.emit(
            ndp.router_advertisement(
                *(subnet.mac, self.link_local, mac, address),
                prefix=subnet.prefix6,
                mtu=subnet.mtu,
                resolvers=[subnet.resolver6],
                domains=list(self.domains),
                default=self.default6,
            )
        )

    # ---- UDP --------------------------------------------------------------

    def _take_dhcp(self, packet: Packet) -> None:
        try:
            datagram = Datagram(packet)
        except ValueError:
            return
        if datagram.destination_port != dhcp.SERVER_PORT:
            return
        answer = self.dhcp.answer(datagram.data(), self.now)
        if answer is None:
            return
        ethernet = answer.mac + self.subnet.mac + ETHERTYPE_IPV4
        path = Path(ethernet, self.subnet.gateway4, answer.address, self.subnet.mtu)
        ports = dhcp.SERVER_PORT, dhcp.CLIENT_PORT
        for frame in udp.frames(path, *ports, answer.data):
            self.emit(frame)

    def _take_udp(self, packet: Packet) -> None:
        try:
            datagram = Datagram(packet)
        except ValueError:
            return
        destination, port = packet.destination, datagram.destination_port
        if port == dhcp.SERVER_PORT and len(destination) == 4:
            self._take_dhcp(packet)
        elif port == dhcp.SERVER6_PORT and len(destination) == 16:
            self._take_dhcp6(packet, datagram)
        elif addresses.is_multicast(destination) or packet.frame.head[0] & 1:
            return
        elif port == DNS_PORT and destination in self._own:
            self._take_dns(packet, datagram)
        elif self._resolver_only(destination):
            self.emit(icmp.unreachable(self._back(packet), packet.original(), icmp.NO_PORT))
        elif addresses.leads_out(destination):
            self.world.datagram(packet, datagram, self._back(packet))

    def _take_dhcp6(self, packet: Packet, datagram: Datagram) -> None:
        answer = dhcp.answer_stateless(
            *(datagram.data(), self.subnet.mac, [self.subnet.resolver6], list(self.domains))
        )
        if answer is None:
            return
        ethernet = packet.frame.head[6:12] + self.subnet.mac + ETHERTYPE_IPV6
        path = Path(ethernet, self.link_local, packet.source, self.subnet.mtu)
        for frame in udp.frames(path, dhcp.SERVER6_PORT, dhcp.CLIENT6_PORT, answer):
            self.emit(frame)

    def send(self, path: Path, source: int, destination: int, data: bytes) -> None:
        """Send a datagram to a guest."""
        for frame in udp.frames(path, source, destination, data, self._number()):
            self.emit(frame)

    def _resolver_only(self, address: bytes) -> bool:
        return address in (self.subnet.resolver4, self.subnet.resolver6)

    def may_go(self, address: bytes, port: int, protocol: str) -> bool:
        """Return whether guests may go there. `protocol` is tcp, udp or icmp.

        The gateway's address is the host's: rules must name it, not merely cover it.
        """
        if address in (self.subnet.gateway4, self.subnet.gateway6):
            if not self.host_open:
                return False
            return self.policy.allows(address, port, protocol, self.now, exactly=True)
        return self.policy.allows(address, port, protocol, self.now)

    # ---- DNS --------------------------------------------------------------

    def _take_dns(self, packet: Packet, datagram: Datagram) -> None:
        back, port = self._back(packet), datagram.source_port

        def answer(data: bytes | None, query: bytes) -> None:
            if data:
                # What is too long for a datagram is asked for again, over TCP.
                if len(data) > 0xFFFF - 48:
                    data = truncated(query, parse_question(query))
                self.send(back, DNS_PORT, port, data)

        self._resolve(datagram.data(), False, answer)

    def _resolve(
        self,
        query: bytes,
        stream: bool,
        answer: Callable[[bytes | None, bytes], None],
    ) -> None:
        own = self.dns.answer(query)
        if own is not None:
            answer(own, query)
            return

        def answered(data: bytes | None) -> None:
            if data is not None:
                self.dns.learn(query, data, self.now)
            answer(data if data is not None else _failure(query), query)

        self.world.resolve(query, stream, answered)

    # ---- TCP --------------------------------------------------------------

    def _open(self, connection: Connection) -> None:
        address, port = connection.path.source, connection.local
        if port == DNS_PORT and address in self._own:
            connection.endpoint = _DnsStream(self, connection)
            connection.accept()
        elif self._resolver_only(address) or not self.may_go(address, port, "tcp"):
            self.turn_away(connection, icmp.PROHIBITED)
        else:
            self.world.open(connection)

    def turn_away(self, connection: Connection, reason: tuple[int, int]) -> None:
        """Tell a guest why a connection that it asks for is not possible."""
        if connection.request is not None:
            self.emit(icmp.unreachable(connection.path, connection.request, reason))
        connection.drop()

    def connect(self, path: Path, local: int, remote: int, endpoint: Endpoint) -> Connection | None:
        """Ask the guest at the end of `path` for a connection; None where there are too many."""
        return self.tcp.connect(path, local, remote, endpoint)

    # ---- ICMP -------------------------------------------------------------

    def _take_icmp(self, packet: Packet) -> None:
        data = packet.data()
        version = 4 if len(packet.source) == 4 else 6
        if len(data) < 8 or (packet.protocol == ip.ICMP) != (version == 4):
            return
        if not _icmp_fits(packet, data):
            return
        if data[0] == (icmp.ECHO if version == 4 else icmp.ECHO6):
            if packet.destination in self._own or packet.destination == self.link_local:
                self.echo_reply(self._back(packet), data[4:])
            elif addresses.leads_out(packet.destination):
                if self.may_go(packet.destination, 0, "icmp"):
                    self.world.echo(packet, self._back(packet))
                else:
                    self.emit(
                        icmp.unreachable(self._back(packet), packet.original(), icmp.PROHIBITED)
                    )
            return
        found = icmp.parse_too_big(data, version)
        if found is not None:
            self._lower_mtu(*found, version, packet.source)

    def echo_reply(self, path: Path, body: bytes) -> None:
        """Answer an echo along `path`; `body` begins at the identifier."""
        protocol = ip.ICMP if path.overhead == ip.IPV4_HEADER else ip.ICMPV6
        for frame in path.fragments(protocol, icmp.echo_reply(path, body), self._number()):
            self.emit(frame)

    def _lower_mtu(self, mtu: int, quoted: bytes, version: int, sender: bytes) -> None:
        start = (quoted[0] & 15) * 4 if version == 4 else ip.IPV6_HEADER
        if len(quoted) < start + 4 or quoted[9 if version == 4 else 6] != ip.TCP:
            return
        first, last = (12, 16) if version == 4 else (8, 24)
        size = last - first
        source, destination = quoted[first:last], quoted[last : last + size]
        local, remote = (int.from_bytes(quoted[start + n : start + n + 2], "big") for n in (0, 2))
        connection = self.tcp.connections.get((destination, remote, source, local))
        if connection is not None and sender == destination:
            connection.lower_mtu(mtu)

    # ---- time -------------------------------------------------------------

    def flush(self) -> None:
        """Send what was put off to the end of a batch."""
        self.tcp.flush()

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        asked = next(iter(self._asked.values()), None)
        moments = [self.tcp.deadline(), asked.next if asked is not None else None]
        moments.append(self._advertise_at)
        return min((moment for moment in moments if moment is not None), default=None)

    def expire(self) -> None:
        """Do what is due."""
        self.tcp.expire()
        self._reassembler.expire(self.now)
        if self._advertise_at is not None and self._advertise_at <= self.now:
            self._advertise_at = None
            self.advertise()
        while self._asked:
            address, asked = next(iter(self._asked.items()))
            if asked.next > self.now:
                break
            del self._asked[address]
            if asked.count < _ASKS:
                asked.count, asked.next = asked.count + 1, self.now + _ASK_TIME
                self._asked[address] = asked
                self._ask(address)
                continue
            for call in asked.calls:
                call(None)
        self.flush()


class _Asked:
    """An address that is looked for, and who wants to know."""

    __slots__ = ("calls", "count", "next")

    def __init__(self, now: float) -> None:
        self.calls: list[Callable[[Path | None], None]] = []
        self.count = 1
        self.next = now + _ASK_TIME


class _DnsStream:
    """DNS over TCP: each message behind its length, 2 bytes (RFC 7766)."""

    def __init__(self, gateway: Gateway, connection: Connection) -> None:
        self._gateway = gateway
        self._connection = connection
        self._data = b""
        self._waiting = 0
        self._ended = False

    def opened(self) -> None:
        """Questions follow."""

    def receive(self, buffers: list[Buffer], size: int) -> int:
        """Answer the questions that are complete."""
        self._data += b"".join(buffers)
        while len(self._data) >= 2:
            length = int.from_bytes(self._data[:2], "big")
            if length > _MAX_QUERY:
                self._connection.abort()
                break
            if len(self._data) < 2 + length:
                break
            query, self._data = self._data[2 : 2 + length], self._data[2 + length :]
            self._waiting += 1
            self._gateway._resolve(query, True, self._answer)
        return size

    def _answer(self, data: bytes | None, query: bytes) -> None:
        self._waiting -= 1
        if data and self._connection.room >= len(data) + 2:
            self._connection.send(len(data).to_bytes(2, "big") + data)
        self._end()

    def _end(self) -> None:
        if self._ended and not self._waiting:
            self._connection.finish()

    def ended(self) -> None:
        """Finish when all is answered."""
        self._ended = True
        self._end()

    def room(self) -> None:
        """Answers are short."""

    def lost(self) -> None:
        """Answers on their way are dropped by the connection."""


def _icmp_fits(packet: Packet, data: bytes) -> bool:
    if packet.protocol == ip.ICMPV6:
        return packet.checksum_fits()
    return ones_sum(data) == 0xFFFF


def _failure(query: bytes) -> bytes:
    from ringzero.net.stack import dnsmessage

    try:
        return dnsmessage.reply(query, dnsmessage.parse_question(query), dnsmessage.SERVER_FAILURE)
    except DnsFormatError:
        return b""
