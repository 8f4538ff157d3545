"""Who is on the link: ARP (RFC 826), neighbour discovery (RFC 4861), router advertisements.

Hosts are learned from what they say, and asked for where somebody wants one that is not known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.net.stack import addresses, arp, ndp
from ringzero.net.stack.addresses import ANY4, ANY6
from ringzero.net.stack.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, Path
from ringzero.net.stack.subnet import Subnet

# Hosts that are remembered by their addresses; guests can make addresses up.
MAX_NEIGHBOURS = 1024
# For how long, in seconds, hosts are asked who has an address, and for how many at once. They are
# asked again after the first time, then twice as long each time, up to the last: a guest that goes
# on from its memory hears nothing until its device is there, some milliseconds later.
_PATIENCE, _MAX_ASKED = 3.0, 256
_FIRST_ASK, _LAST_ASK = 0.01, 0.1
# RFC 4861 section 6.2.1: how often routers say that they are there, in seconds, at most 1,800.
_ADVERTISE_TIME = 600.0


class Neighbours:
    """The hosts of a link, as its router knows them. `emit` takes frames for guests.

    `moved(address, mac)` hears of one that has another MAC address. `default6` and `domains` are
    what the router says of itself (RFC 4861 section 4.2, RFC 8106).
    """

    def __init__(
        self,
        subnet: Subnet,
        emit: Callable[[Frame], None],
        moved: Callable[[bytes, bytes], None],
        *,
        default6: bool,
        domains: tuple[str, ...],
    ) -> None:
        self._subnet = subnet
        self._emit = emit
        self._moved = moved
        self.default6 = default6
        self.domains = domains
        self.link_local = addresses.link_local(subnet.mac)
        # Whom the router speaks for.
        self.own = frozenset((*subnet.gateways, *subnet.resolvers))
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        # From where somebody spoke last: by IPv4, by IPv6, by an IPv6 address of this link alone.
        self._last: dict[str, bytes] = {}
        self._asked: OrderedDict[bytes, _Asked] = OrderedDict()
        # Nobody is told of the router before somebody has asked.
        self._advertise_at: float | None = None

    def learn(self, address: bytes, mac: bytes) -> None:
        """Hear that a host has an address."""
        if mac[0] & 1 or address in self.own:
            return
        self._last["4" if len(address) == 4 else "link" if _is_local(address) else "6"] = address
        known = self._known
        before = known.get(address)
        if before != mac:
            known[address] = mac
            if before is not None:
                self._moved(address, mac)
            if len(known) > MAX_NEIGHBOURS:
                known.popitem(last=False)
        asked = self._asked.pop(address, None) if self._asked else None
        if asked is not None:
            path = self._path(address, mac)
            for call in asked.calls:
                call(path)

    def likely(self, given: bytes) -> list[bytes]:
        """Return where the host may be that was to have the IPv4 address `given`.

        That is the one it spoke from last, if no other host has `given`; then `given`; then IPv6,
        by which hosts speak that nobody has asked.
        """
        found, last, known = [given], self._last.get("4"), self._known
        if last is not None and last != given and known.get(given) in (None, known.get(last)):
            found.insert(0, last)
        six = self._last.get("6") or self._last.get("link")
        return found if six is None else [*found, six]

    def _path(self, address: bytes, mac: bytes) -> Path:
        subnet = self._subnet
        kind, source = ETHERTYPE_IPV4, subnet.gateway4
        if len(address) == 16:
            kind = ETHERTYPE_IPV6
            source = self.link_local if _is_local(address) else subnet.gateway6
        return Path(mac + subnet.mac + kind, source, address, subnet.mtu)

    def reach(self, address: bytes, call: Callable[[Path | None], None], now: float) -> None:
        """Find a host by its address, and call `call` with the way from the router to it.

        With None, after some seconds, where no host has it.
        """
        mac = self._known.get(address)
        if mac is not None:
            call(self._path(address, mac))
            return
        if not self._subnet.has(address) or len(self._asked) >= _MAX_ASKED:
            call(None)
            return
        asked = self._asked.get(address)
        if asked is None:
            asked = self._asked[address] = _Asked(now)
            self._ask(address)
        asked.calls.append(call)

    def _ask(self, address: bytes) -> None:
        subnet = self._subnet
        if len(address) == 4:
            self._emit(Frame(arp.request(subnet.mac, subnet.gateway4, address)))
        else:
            self._emit(ndp.solicit(subnet.mac, address))

    def take_arp(self, frame: Frame) -> None:
        """Take a frame of ARP."""
        found = arp.parse(frame.data()[ETHERNET_HEADER:])
        if found is None:
            return
        operation, mac, sender, target = found
        if sender != ANY4 and self._subnet.has(sender) and mac == frame.head[6:12]:
            self.learn(sender, mac)
        if operation == arp.REQUEST and target in self.own:
            self._emit(Frame(arp.reply(self._subnet.mac, target, mac, sender)))

    def take_discovery(self, packet: Packet, now: float) -> bool:
        """Take a message of neighbour discovery; False where it is another one."""
        data = packet.data()
        if not data or not ndp.ROUTER_SOLICITATION <= data[0] <= ndp.NEIGHBOUR_ADVERTISEMENT:
            return False
        # RFC 4861 section 6.1, 7.1: nothing that has passed a router counts, nor what is cut off.
        if packet.ttl != 255 or len(data) < 8 or data[1] or not packet.checksum_fits():
            return True
        mac, source = packet.frame.head[6:12], packet.source
        if source != ANY6 and not self._subnet.has(source):
            return True
        if data[0] == ndp.ROUTER_SOLICITATION:
            if source != ANY6:
                self.learn(source, mac)
            self.advertise(now, mac, source)
        elif data[0] in (ndp.NEIGHBOUR_SOLICITATION, ndp.NEIGHBOUR_ADVERTISEMENT):
            found = ndp.solicitation(data)
            if found is None:
                return True
            target, told = found
            own = target in self.own or target == self.link_local
            if data[0] == ndp.NEIGHBOUR_ADVERTISEMENT:
                if self._subnet.has(target) and not own:
                    self.learn(target, told or mac)
                return True
            if source != ANY6:
                self.learn(source, told or mac)
            if own:
                self._emit(ndp.advertise(self._subnet.mac, target, mac, source, router=True))
        return True

    def advertise(self, now: float, mac: bytes | None = None, address: bytes = ANY6) -> None:
        """Tell a host, or all of them, of the router; from then on all are told now and then."""
        subnet = self._subnet
        if self._advertise_at is None:
            self._advertise_at = now + _ADVERTISE_TIME
        if mac is None or address == ANY6:
            address = addresses.ALL_NODES6
            mac = addresses.multicast_mac(address)
        self._emit(
            ndp.router_advertisement(
                *(subnet.mac, self.link_local, mac, address),
                prefix=subnet.prefix6,
                mtu=subnet.mtu,
                resolvers=[subnet.resolver6],
                domains=list(self.domains),
                default=self.default6,
            )
        )

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        if not self._asked:
            return self._advertise_at
        first = min(asked.next for asked in self._asked.values())
        return first if self._advertise_at is None else min(first, self._advertise_at)

    def expire(self, now: float) -> None:
        """Do what is due."""
        if self._advertise_at is not None and self._advertise_at <= now:
            self._advertise_at = None
            self.advertise(now)
        for address, asked in [i for i in self._asked.items() if i[1].next <= now]:
            if now < asked.end:
                asked.wait(now)
                self._ask(address)
                continue
            del self._asked[address]
            for call in asked.calls:
                call(None)


def _is_local(address: bytes) -> bool:
    return address[:2] == b"\xfe\x80"


class _Asked:
    """An address that is looked for, and who wants to know."""

    __slots__ = ("calls", "end", "next", "pause")

    def __init__(self, now: float) -> None:
        self.calls: list[Callable[[Path | None], None]] = []
        self.end = now + _PATIENCE
        self.pause = _FIRST_ASK
        self.next = now + self.pause

    def wait(self, now: float) -> None:
        """Ask again later than after the last time."""
        self.pause = min(2 * self.pause, _LAST_ASK)
        self.next = now + self.pause
