"""The world by the host's own sockets: a router, DHCP and DNS for one machine, without root.

    10.0.2.2    the gateway; it is also the host (`host.ringzero.internal`): what a guest sends
                there goes to 127.0.0.1, or ::1 where nobody listens there
    10.0.2.3    the resolver, which asks those of the host
    10.0.2.15   the machine

and, for IPv6, fd72:7a00:0:2::2 (the host's ::1), ::3, and what the guest makes
of its MAC address. These are QEMU's addresses, so that habits and scripts go on working.

One thread owns the stack and all sockets. TCP ends here, on both sides: the
guest's connection in `ringzero.net.stack.tcp`, the world's in the host's kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError, InvalidValueError
from ringzero.net.contract import NETWORKS, Network
from ringzero.net.proxy.echo import Echoes
from ringzero.net.proxy.forwards import Forwards
from ringzero.net.proxy.loop import EventLoop
from ringzero.net.proxy.resolver import Resolver
from ringzero.net.proxy.tcp import Relay
from ringzero.net.proxy.udp import UdpFlows
from ringzero.net.stack import addresses, icmp, orphans
from ringzero.net.stack.dns import Names
from ringzero.net.stack.gateway import Gateway
from ringzero.net.stack.ip import Packet, Path
from ringzero.net.stack.policy import Policy, Rule
from ringzero.net.stack.subnet import Subnet
from ringzero.net.stack.tcp.connection import Connection
from ringzero.net.stack.udp import Datagram
from ringzero.records import record

DOMAIN = "ringzero.internal"
HOST_NAME = f"host.{DOMAIN}"
GATEWAY_MAC = bytes.fromhex("525500000202")
# Frames that are fetched before sockets have their turn.
_BATCH = 64
# Bytes of frames that are handled sooner than another thread wakes.
_LITTLE = 4096
# How long the guest is not told that a frame has left, in seconds.
_SETTLE = 0.005
# Frames for the guest beyond which datagrams are dropped: what a queue of Linux holds.
_MAX_OUTBOX = 1000
# How often idle flows are looked for, in seconds.
_SWEEP = 10.0
# Whether an address is this host's own is remembered for so long, in seconds, for so many.
_OWN_TIME, _MAX_OWN = 10.0, 1024
_PATIENCE = 10.0
_OTHER_LOOPBACK = {"127.0.0.1": "::1", "::1": "127.0.0.1"}


@record
class UserOptions:
    """What a user network is asked for.

    `host` says whether guests reach the host. `allow` None lets them go everywhere; else only to
    the places in it (`ringzero.net.stack.policy.Rule`). `forwards` are ports of the host.
    `way_out` says whether guests are told of a route to anywhere.
    """

    host: bool = True
    allow: tuple[str, ...] | None = None
    forwards: tuple[Forward, ...] = ()
    way_out: bool = True


def subnet(mtu: int = 1500) -> Subnet:
    """Return the addresses of a user network."""
    parse = addresses.parse
    return Subnet(
        mac=GATEWAY_MAC,
        gateway4=parse("10.0.2.2"),
        resolver4=parse("10.0.2.3"),
        length4=24,
        first4=parse("10.0.2.15"),
        last4=parse("10.0.2.254"),
        prefix6=parse("fd72:7a00:0:2::"),
        gateway6=parse("fd72:7a00:0:2::2"),
        resolver6=parse("fd72:7a00:0:2::3"),
        mtu=mtu,
        domain=DOMAIN,
    )


@NETWORKS.register("user")
class UserNetwork(Network):
    """The network of one machine. `dropped` counts frames for it that found no room,
    `turned_away` connections for which the host had no descriptors left, `faults` what was
    ended by a fault of ours.

    Without `options` they are those of `config`; `place` has other addresses than `subnet`.
    """

    def __init__(
        self,
        config: NetConfig,
        options: UserOptions | None = None,
        place: Subnet | None = None,
    ) -> None:
        super().__init__(config)
        if config.listen:
            raise ConfigError(["the network 'user' has nobody to listen for"])
        if config.target:
            raise ConfigError(["the network 'user' takes no argument"], hint="write --net user")
        self.options = options or UserOptions(config.host, config.allow, config.ports)
        self.loop = EventLoop("net", self._tell_time, self._round)
        self.relays: dict[Relay, None] = {}
        self._outbox: deque[Frame] = deque()
        self._woken = True
        # Whether little was delivered, and no more than that has come: an answer may follow.
        self._answering = False
        self._settle_at: float | None = None
        self._owns: OrderedDict[bytes, tuple[bool, float]] = OrderedDict()
        self._sweep_at = 0.0
        self.dropped = self.turned_away = 0
        self.subnet = place or subnet(config.mtu)
        here = (self.subnet.gateway4, self.subnet.gateway6) if self.options.host else ()
        self.resolver = Resolver(self.loop, here=here)
        self._search = self.resolver.search
        self.gateway = self._make_gateway()
        self.flows = UdpFlows(self.loop, self.gateway, self._target)
        self._echoes = Echoes(self.loop, self.gateway)
        self._forwards = Forwards(self)
        self._begun = False
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for forward in self.options.forwards:
                self._forwards.open(*self._forwards.bind(forward))
            undo.pop_all()

    def _make_gateway(self) -> Gateway:
        net, options = self.subnet, self.options
        try:
            rules = None if options.allow is None else [Rule.parse(r) for r in options.allow]
        except InvalidValueError as fault:
            raise ConfigError([fault.message], hint=fault.hint) from fault
        policy = Policy(rules)
        names = Names(DOMAIN)
        own = [net.gateway4, net.gateway6]
        if options.host:
            names.add(HOST_NAME, own)
            for address in own:
                policy.learn(HOST_NAME, address, None)
        if self.config.mac is not None:
            mac = bytes.fromhex(self.config.mac.replace(":", ""))
        else:
            mac = b""
        gateway = Gateway(
            net,
            self,
            self._outbox.append,
            _number,
            policy=policy,
            names=names,
            search=self._search,
            default4=options.way_out,
            default6=options.way_out and _has_route(socket.AF_INET6, "2000::1"),
            host_open=options.host,
        )
        gateway.dns.hosts = self.resolver
        if mac:
            gateway.dhcp.fixed[mac] = net.first4
        return gateway

    # ---- Network ----------------------------------------------------------

    def wake(self) -> None:
        self._woken = True
        # An answer goes out on the vCPU's own thread: no other has to wake for it.
        if not self._answering or not self.loop.take_turn():
            self.loop.wake()

    def start(self) -> None:
        self._begun = True
        self.loop.on_fault = self.on_fault
        self.loop.start()
        self.port.set_link(True)

    def close(self) -> None:
        self.loop.close()
        self._let_go()

    def leave(self) -> None:
        self.loop.leave()
        self._let_go()

    def _let_go(self) -> None:
        for relay in list(self.relays):
            relay.close()
        self.flows.close()
        self._echoes.close()
        self.resolver.close()
        self._forwards.close()

    # ---- ports ------------------------------------------------------------

    def forward(self, forward: Forward) -> Forward:
        """Forward a port of the host; return it with the port that it got.

        Raises InvalidValueError, ConflictError, HostError. From any thread.
        """
        bound, link = self._forwards.bind(forward)
        self._on_loop(lambda: self._forwards.open(bound, link))
        return bound

    def unforward(self, forward: Forward) -> None:
        """Forward a port no longer; connections that are up go on. Raises NotFoundError."""
        self._on_loop(lambda: self._forwards.shut(forward))

    def forwards(self) -> list[Forward]:
        """Return the ports that are forwarded."""
        return self._forwards.list()

    def _on_loop(self, call: Callable[[], Any]) -> None:
        """Have the loop's thread call, and wait for it; raises what the call raises."""
        if not self._begun or self.loop.is_own_thread():
            call()
            return
        done = threading.Event()
        faults: list[Exception] = []

        def run() -> None:
            try:
                call()
            except Exception as fault:  # the caller's, on another thread
                faults.append(fault)
            done.set()

        self.loop.call(run)
        done.wait(_PATIENCE)
        if faults:
            raise faults[0]

    def connections(self) -> tuple[bytes, ...]:
        return orphans.pack(list(self.gateway.tcp.connections.values()))

    def inherit(self, connections: tuple[bytes, ...], mac: bytes) -> None:
        own = bytes.fromhex((self.config.mac or "").replace(":", ""))
        # What the guest begins from here on is its own.
        before = list(self.gateway.tcp.connections.values())
        self.loop.call(lambda: self._reset_all(before, connections, [mac, own]))

    def _reset_all(
        self, before: list[Connection], connections: tuple[bytes, ...], macs: list[bytes]
    ) -> None:
        """End connections of another time here, and in the guest those of another machine."""
        for connection in before:
            connection.abort()
            connection.endpoint.lost()

        def reset() -> None:
            for frame in orphans.resets(connections, self.subnet.mac, filter(None, macs)):
                self.gateway.emit(frame)

        for delay in orphans.RESETS:
            self.loop.at(self.loop.now + delay, reset)

    def counters(self) -> dict[str, int]:
        return {
            "connections": len(self.relays),
            "flows": len(self.flows),
            "turned_away": self.turned_away,
            "faults": self.gateway.faults.count,
            "dropped": self.dropped,
        }

    def guest_addresses(self) -> list[bytes]:
        """Return where the machine may be: as DHCP gives it, unless it speaks from elsewhere."""
        return self.gateway.neighbours.likely(self.subnet.first4)

    # ---- rounds -----------------------------------------------------------

    def _tell_time(self, now: float) -> None:
        self.gateway.now = now

    def _round(self) -> float | None:
        """Move frames; called by the loop when sockets have had their turn."""
        gateway, now = self.gateway, self.loop.now
        more, before = False, gateway.received_bytes
        if now >= self._sweep_at:
            self._sweep()
        if self._woken:
            self._woken = False
            more = self.port.fetch(gateway.receive, _BATCH, coalesce=True)
            self.flows.flush()
            self._woken |= more
            if self._settle_at is None and gateway.received_bytes != before:
                self._settle_at = now + _SETTLE
        if self._settle_at is not None and self._settle_at <= now:
            self._settle_at = None
            self.port.settle()
        deadline = gateway.deadline()
        if deadline is not None and deadline <= now:
            gateway.expire()
            deadline = gateway.deadline()
        gateway.flush()
        delivered = self._deliver() if self._outbox else 0
        few = gateway.received_bytes - before <= _LITTLE
        self._answering = few and 0 < delivered <= _LITTLE
        if more:
            return now
        if self._settle_at is None or deadline is None:
            return deadline if self._settle_at is None else self._settle_at
        return min(deadline, self._settle_at)

    def _sweep(self) -> None:
        """Give up idle flows, and follow the host's configuration."""
        self._sweep_at = self.loop.now + _SWEEP
        self.flows.expire()
        self._echoes.expire()
        self.resolver.refresh()
        if self._search != self.resolver.search:
            self._search = self.resolver.search
            self.gateway.set_search(self._search)

    def _deliver(self) -> int:
        """Give the guest what is for it; return how many bytes it took."""
        outbox, size = self._outbox, 0
        for _ in range(self.port.deliver(outbox)):
            size += outbox.popleft().size
        while len(outbox) > _MAX_OUTBOX:
            outbox.pop()
            self.dropped += 1
        return size

    # ---- the world --------------------------------------------------------

    def open(self, connection: Connection) -> None:
        """Connect to the host's world for a guest."""
        address, port = connection.path.source, connection.local
        host = self._target(address)
        if host is None:
            self.turn_away(connection, icmp.PROHIBITED)
        elif address in self.subnet.gateways:
            # A server of this host's may listen on one of the two only, and a guest that knows
            # both addresses tries one only.
            Relay.to_host(self, connection, (host, port), (_OTHER_LOOPBACK[host], port))
        else:
            Relay.to_host(self, connection, (host, port))

    def turn_away(self, connection: Connection, reason: tuple[int, int]) -> None:
        """Tell the guest why a connection cannot be."""
        self.gateway.turn_away(connection, reason)

    def fail(self, relay: Relay, fault: Exception) -> None:
        """End a relay, and its connection, because of a fault of ours."""
        if relay.connection is not None:
            self.gateway.tcp.fail(relay.connection, fault)
        else:
            self.gateway.faults.note("a connection to the guest", fault)
        relay.close()

    def datagram(self, packet: Packet, datagram: Datagram, back: Path) -> None:
        """Send a guest's datagram into the host's world."""
        self.flows.send(packet, datagram, back)

    def echo(self, packet: Packet, back: Path) -> None:
        """Ping for a guest."""
        host = self._target(packet.destination)
        if host is None:
            self.gateway.emit(icmp.unreachable(back, packet.original(), icmp.PROHIBITED))
        else:
            self._echoes.send(packet, back, host)

    def resolve(self, query: bytes, stream: bool, answer: Callable[[bytes | None], None]) -> None:
        """Ask the host's resolvers for a guest."""
        self.resolver.ask(query, stream, answer)

    def _target(self, address: bytes) -> str | None:
        """Return what a guest's address is on the host; None where it may not go there."""
        if address == self.subnet.gateway4:
            return "127.0.0.1"
        if address == self.subnet.gateway6:
            return "::1"
        policy = self.gateway.policy
        if self.options.host and (not policy.restricted or policy.names_address(address)):
            return addresses.text(address)
        # A name that may be asked for says nothing of the host's own addresses.
        return None if self._is_own(address) else addresses.text(address)

    def _is_own(self, address: bytes) -> bool:
        """Return whether an address is this host's: its kernel would send from it to itself."""
        known = self._owns.get(address)
        if known is not None and known[1] > self.loop.now:
            return known[0]
        text, own = addresses.text(address), False
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as fault:
            # A host without IPv6 has no such address; one without descriptors may.
            return fault.errno != errno.EAFNOSUPPORT
        with contextlib.suppress(OSError), probe:
            probe.connect((text, 9))
            own = addresses.parse(str(probe.getsockname()[0])) == address
        self._owns[address] = own, self.loop.now + _OWN_TIME
        while len(self._owns) > _MAX_OWN:
            self._owns.popitem(last=False)
        return own


def _number() -> int:
    return int.from_bytes(os.urandom(4), "big")


def _has_route(family: int, address: str) -> bool:
    """Return whether the host knows a way to an address."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True
