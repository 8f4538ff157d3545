"""The router of a guests' network: neighbours, DHCP, DNS, and the way out by a `World`.

Frames come in by `receive` and go out by `emit`. It does no I/O, and has no
clock: whoever owns it says what time it is, in seconds, and calls `expire`
at `deadline`. After each batch of frames, and of the world's doings, `flush`
sends the acknowledgements that are due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ringzero.core.frames import ETHERNET_HEADER, Frame, ones_sum
from ringzero.net.stack import addresses, dhcp, icmp, ip, udp
from ringzero.net.stack.addresses import ANY4
from ringzero.net.stack.dhcp import DhcpServer, Offer
from ringzero.net.stack.dns import DnsServer, Names
from ringzero.net.stack.dnsservice import DNS_PORT, DnsService, Upstream
from ringzero.net.stack.faults import Faults
from ringzero.net.stack.ip import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Packet,
    Path,
    key_of,
)
from ringzero.net.stack.neighbours import Neighbours
from ringzero.net.stack.policy import Policy
from ringzero.net.stack.subnet import Subnet
from ringzero.net.stack.tcp.connection import Connection
from ringzero.net.stack.tcp.endpoint import Endpoint
from ringzero.net.stack.tcp.table import Tcp
from ringzero.net.stack.udp import Datagram
from ringzero.records import replace


class World(Upstream, Protocol):
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
        self._mac = subnet.mac
        # What guests have sent, in bytes of frames.
        self.received_bytes = 0
        self.world = world
        self.emit = emit
        self._number = number
        self.policy = policy or Policy()
        self.names = names or Names(subnet.domain)
        self.dns = DnsServer(self.names, self.policy, self._is_foreign)
        self.host_open = host_open
        self.domains = self._all_domains(search)
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
        self.faults = Faults()
        self.tcp = Tcp(emit, self._open, number, self.faults)
        # What takes the datagrams of flows that were let out, by `ip.flow_key`; the world's.
        self.flows: dict[bytes, Callable[[bytes, bytes], None]] = {}
        self.neighbours = Neighbours(
            *(subnet, emit, self.tcp.moved), default6=default6, domains=self.domains
        )
        self._own = self.neighbours.own
        self._resolver = DnsService(self.dns, world, lambda: self.tcp.now)
        self._reassembler = ip.Reassembler()

    def _is_foreign(self, address: bytes) -> bool:
        return addresses.leads_out(address) and not self.subnet.has(address)

    def _all_domains(self, search: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*filter(None, (self.subnet.domain,)), *search)))

    def set_search(self, search: tuple[str, ...]) -> None:
        """Tell guests that ask from now on of other domains to search."""
        self.domains = self._all_domains(search)
        self.dhcp.offer = replace(self.dhcp.offer, search=self.domains)
        self.neighbours.domains = self.domains

    # ---- frames -----------------------------------------------------------

    @property
    def now(self) -> float:
        """What time it is, in seconds; set before anything is asked of the gateway."""
        return self.tcp.now

    @now.setter
    def now(self, moment: float) -> None:
        self.tcp.now = moment

    def receive(self, frame: Frame) -> None:
        """Take a frame of a guest. What makes no sense is dropped, and what we fail at."""
        try:
            self._take_frame(frame)
        except Exception as fault:
            self.faults.note("a frame of a guest's", fault)

    def _take_frame(self, frame: Frame) -> None:
        head = frame.head
        self.received_bytes += frame.size
        if len(head) < ETHERNET_HEADER:
            return
        if head[:6] == self._mac:
            # What belongs to something that is up needs no look at anything else.
            key = ip.flow_key(head)
            connection = self.tcp.connections.get(key)
            if connection is not None and self.tcp.take(connection, frame):
                return
            flow = self.flows.get(key)
            if flow is not None and (payload := udp.payload_of(frame)) is not None:
                flow(head, payload)
                return
        elif not head[0] & 1:
            return
        if head[12:14] == ETHERTYPE_ARP:
            self.neighbours.take_arp(frame)
            return
        packet = ip.parse(frame, self._reassembler, self.now)
        if packet is None:
            return
        source = packet.source
        if packet.protocol == ip.TCP and head[:6] == self._mac:
            ports = packet.head[packet.at : packet.at + 4]
            if source + packet.destination + ports in self.tcp.connections:
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
        if (
            protocol == ip.ICMPV6
            and len(source) == 16
            and self.neighbours.take_discovery(packet, self.now)
        ):
            return
        # Nobody speaks for a whole group, and no address of another link comes from here.
        if addresses.is_multicast(source) or not self.subnet.has(source) or source in self._own:
            return
        self.neighbours.learn(source, head[6:12])
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
            back, port = self._back(packet), datagram.source_port
            self._resolver.take(datagram.data(), lambda data: self.send(back, DNS_PORT, port, data))
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
        path = Path(ethernet, self.neighbours.link_local, packet.source, self.subnet.mtu)
        for frame in udp.frames(path, dhcp.SERVER6_PORT, dhcp.CLIENT6_PORT, answer):
            self.emit(frame)

    def send(self, path: Path, source: int, destination: int, data: bytes) -> None:
        """Send a datagram to a guest."""
        for frame in udp.frames(path, source, destination, data, self._number()):
            self.emit(frame)

    def _resolver_only(self, address: bytes) -> bool:
        return address in self.subnet.resolvers

    def may_go(self, address: bytes, port: int, protocol: str) -> bool:
        """Return whether guests may go there. `protocol` is tcp, udp or icmp.

        The gateway's address is the host's: rules must name it, not merely cover it.
        """
        if address in self.subnet.gateways:
            if not self.host_open:
                return False
            return self.policy.allows(address, port, protocol, self.now, exactly=True)
        return self.policy.allows(address, port, protocol, self.now)

    # ---- TCP --------------------------------------------------------------

    def _open(self, connection: Connection) -> None:
        address, port = connection.path.source, connection.local
        if port == DNS_PORT and address in self._own:
            self._resolver.serve(connection)
        elif self._resolver_only(address) or not self.may_go(address, port, "tcp"):
            self.turn_away(connection, icmp.PROHIBITED)
        else:
            self.world.open(connection)

    def turn_away(self, connection: Connection, reason: tuple[int, int]) -> None:
        """Tell a guest why a connection that it asks for is not possible."""
        if connection.request is not None:
            self.emit(icmp.unreachable(connection.path, connection.request, reason))
        connection.drop()

    def reach(self, address: bytes, call: Callable[[Path | None], None]) -> None:
        """Find a guest by its address, and call `call` with the way from the gateway to it.

        With None, after some seconds, where no guest has it.
        """
        self.neighbours.reach(address, call, self.now)

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
            if packet.destination in self._own or packet.destination == self.neighbours.link_local:
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
        connection = self.tcp.connections.get(key_of(destination, remote, source, local))
        if connection is not None and sender == destination:
            connection.lower_mtu(mtu)

    # ---- time -------------------------------------------------------------

    def flush(self) -> None:
        """Send what was put off to the end of a batch."""
        self.tcp.flush()

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        first, second = self.tcp.deadline(), self.neighbours.deadline()
        if first is None or second is None:
            return second if first is None else first
        return min(first, second)

    def expire(self) -> None:
        """Do what is due."""
        self.tcp.expire()
        self._reassembler.expire(self.now)
        self.neighbours.expire(self.now)
        self.flush()


def _icmp_fits(packet: Packet, data: bytes) -> bool:
    if packet.protocol == ip.ICMPV6:
        return packet.checksum_fits()
    return ones_sum(data) == 0xFFFF
