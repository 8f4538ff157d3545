"""A DHCP server for IPv4 (RFC 2131, options of RFC 2132), and stateless DHCPv6 (RFC 8415)."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from ringzero.net.stack.addresses import ANY4, BROADCAST4
from ringzero.net.stack.dnsmessage import encode_name
from ringzero.records import record

SERVER_PORT, CLIENT_PORT = 67, 68
SERVER6_PORT, CLIENT6_PORT = 547, 546
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
_BOOTREQUEST, _BOOTREPLY = 1, 2
_HEADER = struct.Struct(">BBBBIHH4s4s4s4s16s192x")
_COOKIE = b"\x63\x82\x53\x63"
_BROADCAST = 0x8000
# RFC 2132.
PAD, MASK, ROUTER, RESOLVERS, HOST_NAME, DOMAIN, MTU, BROADCAST_ADDRESS = 0, 1, 3, 6, 12, 15, 26, 28
REQUESTED, LEASE_TIME, KIND, SERVER, RENEWAL, REBINDING, CLIENT = 50, 51, 53, 54, 58, 59, 61
SEARCH, END = 119, 255
# RFC 951: relays and some clients drop shorter ones.
_SMALLEST = 300
# RFC 2131 section 2: what every client takes.
_LARGEST = 548
# Leases that have run out are kept while there is room, so that a machine gets its address back.
MAX_LEASES = 4096
# An offer that nobody takes up is another's after this many seconds.
OFFER_TIME = 30.0


@record
class Offer:
    """What the server tells its clients. Addresses are of 4 bytes, times in seconds."""

    server: bytes
    mask: bytes
    router: bytes | None
    resolvers: tuple[bytes, ...]
    domain: str = ""
    search: tuple[str, ...] = ()
    mtu: int = 1500
    lease_time: int = 86400


@record
class Lease:
    """Who has an address, and until when; `end` None means for good."""

    mac: bytes
    address: bytes
    end: float | None
    name: str = ""


def parse_options(data: bytes) -> dict[int, bytes]:
    """Return the options; those that come twice are joined (RFC 3396). Raises ValueError."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            raise ValueError("an option is cut off")
        length = data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : at + 2 + length]
        at += 2 + length
    return found


def pack_options(options: Iterable[tuple[int, bytes]], room: int) -> bytes:
    """Return the options in their order, those left out that do not fit `room` bytes."""
    data = b""
    for kind, value in options:
        # RFC 3396: more than 255 bytes are several options.
        pieces = [value[at : at + 255] for at in range(0, len(value), 255)]
        packed = b"".join(bytes((kind, len(piece))) + piece for piece in pieces)
        if len(data) + len(packed) < room:
            data += packed
    return data + bytes((END,))


class Reply:
    """An answer: `data` is the UDP payload, `address` and `mac` are where it goes."""

    __slots__ = ("address", "data", "mac")

    def __init__(self, data: bytes, address: bytes, mac: bytes) -> None:
        self.data, self.address, self.mac = data, address, mac


class DhcpServer:
    """Gives out the addresses from `first` to `last`, and `fixed` ones by MAC address.

    `names` are host names by MAC address, which clients are told.
    """

    def __init__(
        self,
        offer: Offer,
        first: bytes,
        last: bytes,
        fixed: Mapping[bytes, bytes] | None = None,
        names: Mapping[bytes, str] | None = None,
    ) -> None:
        self.offer = offer
        self._first, self._last = (int.from_bytes(a, "big") for a in (first, last))
        self.fixed = dict(fixed or {})
        self.names = dict(names or {})
        self._leases: OrderedDict[bytes, Lease] = OrderedDict()
        self._owners: dict[bytes, bytes] = {}
        # Addresses that a client found in use.
        self._declined: OrderedDict[bytes, float] = OrderedDict()

    def leases(self, now: float) -> list[Lease]:
        """Return the leases that are good now."""
        return [x for x in self._leases.values() if x.end is None or x.end > now]

    def restore(self, leases: Iterable[Lease]) -> None:
        """Take leases back that another server of this network gave out."""
        for lease in leases:
            self._note(lease)

    def answer(self, data: bytes, now: float) -> Reply | None:
        """Return the answer to a client's message, if it gets one."""
        if len(data) < _HEADER.size + len(_COOKIE):
            return None
        kind, hardware, length, _, transaction, _, flags, client, _, _, relay, chaddr = (
            _HEADER.unpack_from(data)
        )
        if (kind, hardware, length) != (_BOOTREQUEST, 1, 6) or relay != ANY4:
            return None
        if data[_HEADER.size : _HEADER.size + 4] != _COOKIE:
            return None
        try:
            options = parse_options(data[_HEADER.size + 4 :])
        except ValueError:
            return None
        mac = chaddr[:6]
        answer, address = self._decide(options, mac, client, now)
        if answer is None:
            return None
        name = self.names.get(mac, "")
        body = self._body(answer, address, name, options)
        yours = ANY4 if answer == NAK or options.get(KIND) == bytes((INFORM,)) else address
        header = _HEADER.pack(
            *(_BOOTREPLY, 1, 6, 0, transaction, 0, flags, client if answer == ACK else ANY4),
            *(yours, ANY4, ANY4, chaddr),
        )
        packet = (header + _COOKIE + body).ljust(_SMALLEST, b"\0")
        if answer == NAK:
            return Reply(packet, BROADCAST4, b"\xff" * 6)
        if client != ANY4:
            return Reply(packet, client, mac)
        if flags & _BROADCAST:
            return Reply(packet, BROADCAST4, b"\xff" * 6)
        return Reply(packet, address, mac)

    def _decide(
        self, options: Mapping[int, bytes], mac: bytes, client: bytes, now: float
    ) -> tuple[int | None, bytes]:
        """Return the kind of answer and the address; None where there is none."""
        kind = options.get(KIND, b"")
        wanted = options.get(REQUESTED, client)
        server = options.get(SERVER)
        if kind == bytes((DISCOVER,)):
            address = self._choose(mac, wanted, now)
            if address is None:
                return None, ANY4
            held = self._leases.get(mac)
            if held is None or held.address != address or (held.end or now) < now + OFFER_TIME:
                self._note(Lease(mac, address, now + OFFER_TIME, self._name(mac, options)))
            return OFFER, address
        if kind == bytes((REQUEST,)):
            if server is not None and server != self.offer.server:
                return None, ANY4
            if wanted != self._choose(mac, wanted, now):
                return NAK, ANY4
            end = now + self.offer.lease_time
            self._note(Lease(mac, wanted, end, self._name(mac, options)))
            return ACK, wanted
        if kind == bytes((INFORM,)):
            return ACK, client
        if kind == bytes((DECLINE,)):
            self._declined[wanted] = now + self.offer.lease_time
            while len(self._declined) > MAX_LEASES:
                self._declined.popitem(last=False)
            self._forget(mac)
        elif kind == bytes((RELEASE,)):
            lease = self._leases.get(mac)
            if lease is not None and lease.address == client:
                self._note(Lease(mac, client, now, lease.name))
        return None, ANY4

    def _name(self, mac: bytes, options: Mapping[int, bytes]) -> str:
        told = options.get(HOST_NAME, b"")[:63].decode("ascii", "ignore")
        return self.names.get(mac, "".join(c for c in told if c.isalnum() or c in "-."))

    def _choose(self, mac: bytes, wanted: bytes, now: float) -> bytes | None:
        """Return the address for a client: its own, the one it wants, or the next free one."""
        if mac in self.fixed:
            return self.fixed[mac]
        own = self._leases.get(mac)
        if own is not None and self._owners.get(own.address) == mac and self._usable(own.address):
            return own.address
        if self._is_free(wanted, now):
            return wanted
        expired: bytes | None = None
        for number in range(self._first, self._last + 1):
            address = number.to_bytes(4, "big")
            if self._owners.get(address) is None:
                if self._is_free(address, now):
                    return address
            elif expired is None and self._is_free(address, now):
                expired = address
        return expired

    def _usable(self, address: bytes) -> bool:
        return self._first <= int.from_bytes(address, "big") <= self._last

    def _is_free(self, address: bytes, now: float) -> bool:
        if not self._usable(address) or address in self.fixed.values():
            return False
        if self._declined.get(address, now) > now:
            return False
        owner = self._owners.get(address)
        if owner is None:
            return True
        end = self._leases[owner].end
        return end is not None and end <= now

    def _note(self, lease: Lease) -> None:
        self._forget(lease.mac)
        other = self._owners.get(lease.address)
        if other is not None:
            self._forget(other)
        self._leases[lease.mac] = lease
        self._owners[lease.address] = lease.mac
        while len(self._leases) > MAX_LEASES:
            self._forget(next(iter(self._leases)))

    def _forget(self, mac: bytes) -> None:
        lease = self._leases.pop(mac, None)
        if lease is not None and self._owners.get(lease.address) == mac:
            del self._owners[lease.address]

    def _body(self, answer: int, address: bytes, name: str, options: Mapping[int, bytes]) -> bytes:
        offer = self.offer
        found: list[tuple[int, bytes]] = [(KIND, bytes((answer,))), (SERVER, offer.server)]
        client = options.get(CLIENT)
        if client is not None:
            # RFC 6842.
            found.append((CLIENT, client))
        if answer == NAK:
            return pack_options(found, _LARGEST)
        if options.get(KIND) != bytes((INFORM,)):
            found += [
                (LEASE_TIME, offer.lease_time.to_bytes(4, "big")),
                (RENEWAL, (offer.lease_time // 2).to_bytes(4, "big")),
                (REBINDING, (offer.lease_time * 7 // 8).to_bytes(4, "big")),
            ]
        network = int.from_bytes(offer.mask, "big") & int.from_bytes(offer.server, "big")
        broadcast = network | ~int.from_bytes(offer.mask, "big") & 0xFFFFFFFF
        found += [(MASK, offer.mask), (BROADCAST_ADDRESS, broadcast.to_bytes(4, "big"))]
        if offer.router is not None:
            found.append((ROUTER, offer.router))
        if offer.resolvers:
            found.append((RESOLVERS, b"".join(offer.resolvers)))
        found.append((MTU, offer.mtu.to_bytes(2, "big")))
        if name:
            found.append((HOST_NAME, name.encode()))
        if offer.domain:
            found.append((DOMAIN, offer.domain.encode()))
        if offer.search:
            found.append((SEARCH, b"".join(map(encode_name, offer.search))))
        return pack_options(found, _LARGEST - _HEADER.size - len(_COOKIE))


# RFC 8415 section 7.3, 21; RFC 3646.
_REPLY6, _INFORMATION_REQUEST = 7, 11
_CLIENT_ID6, _SERVER_ID6, _RESOLVERS6, _DOMAINS6 = 1, 2, 23, 24


def answer_stateless(
    data: bytes, mac: bytes, resolvers: list[bytes], domains: list[str]
) -> bytes | None:
    """Return the answer to a DHCPv6 information request, which asks for no address."""
    if len(data) < 4 or data[0] != _INFORMATION_REQUEST:
        return None
    found: dict[int, bytes] = {}
    at = 4
    while at + 4 <= len(data):
        kind, length = struct.unpack_from(">HH", data, at)
        if at + 4 + length > len(data):
            return None
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    # A link-layer identifier (section 11.4).
    identity = struct.pack(">HH", 3, 1) + mac
    if found.get(_SERVER_ID6, identity) != identity:
        return None
    options = [(_SERVER_ID6, identity)]
    if _CLIENT_ID6 in found:
        options.insert(0, (_CLIENT_ID6, found[_CLIENT_ID6]))
    if resolvers:
        options.append((_RESOLVERS6, b"".join(resolvers)))
    if domains:
        options.append((_DOMAINS6, b"".join(map(encode_name, domains))))
    body = b"".join(struct.pack(">HH", kind, len(value)) + value for kind, value in options)
    return bytes((_REPLY6,)) + data[1:4] + body
