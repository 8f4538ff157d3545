"""The process of one network: a switch for its machines, and the router of a user network.

It is started by the first machine that joins, becomes nobody's child, and ends a moment after the
last machine has left. Killed, it is started again by a machine that is still there: each joins
anew, with the ports that it had, and leases are in the network's directory.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ringzero.config.device import NAME
from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import ConflictError, InvalidValueError, NotFoundError, RingzeroError
from ringzero.host import ofdlock
from ringzero.host.process import stand_alone
from ringzero.host.unixsocket import Listener
from ringzero.net.named.description import NamedNetwork
from ringzero.net.named.directory import LOCK, SOCKET, NetworkDirectory
from ringzero.net.named.wire import Decoder, WireError, frame_message, object_message
from ringzero.net.networks.user import DOMAIN, HOST_NAME, UserNetwork, UserOptions
from ringzero.net.proxy.loop import BREATH, EXHAUSTED, GONE, READ, WRITE
from ringzero.net.stack import addresses
from ringzero.net.stack.dns import Names
from ringzero.net.stack.guard import Claims, Guard
from ringzero.net.stack.switch import Switch, SwitchPort
from ringzero.plain import MisfitError, from_plain, to_plain
from ringzero.records import replace

# How long the process stays without a machine, in seconds: at its start, and later on.
_FIRST_WAIT, _LAST_WAIT = 20.0, 2.0
_READ = 256 * 1024
# Bytes for a machine that does not read before frames are dropped.
_OUTBOX = 4 << 20
# Machines and questions at once.
_MAX_LINKS = 1024
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")


class Uplink:
    """The gateway's side of the switch: what a machine's interface is to a user network."""

    def __init__(self, network: UserNetwork, switch: Switch) -> None:
        self._network = network
        self._frames: deque[Frame] = deque()
        self._port = switch.connect(self._take)

    def _take(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._network.wake()

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """As `Port.fetch`."""
        while self._frames and limit > 0:
            handle(self._frames.popleft())
            limit -= 1
        return bool(self._frames)

    def settle(self) -> None:
        """As `Port.settle`; nothing is put off here."""

    def deliver(self, frames: Sequence[Frame]) -> int:
        """As `Port.deliver`; the switch takes all."""
        for frame in frames:
            self._port.receive(frame)
        return len(frames)

    def set_link(self, up: bool) -> None:
        """The switch is always there."""


class Member:
    """One connection: of a machine, once it has said which, or of somebody who asks."""

    def __init__(self, server: Server, link: socket.socket) -> None:
        self._server = server
        self._link = link
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._open, self._interest = True, READ
        self.name = self.mac = self.address = ""
        self.port: SwitchPort | None = None
        self.forwards: list[Forward] = []
        self.dropped = 0
        server.network.loop.watch(link, READ, self._happened)

    def _happened(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if not self._open or not events & (READ | GONE):
            return
        try:
            data = self._link.recv(_READ)
            messages = self._decoder.feed(data)
        except BlockingIOError:
            return
        except (OSError, WireError):
            data = b""
        if not data:
            self.close()
            return
        self._server.switch.now = self._server.network.loop.now
        try:
            self._take(messages)
        except Exception as fault:
            # It joins again.
            self._server.network.gateway.faults.note("a machine's connection", fault)
            self.close()

    def _take(self, messages: list[Frame | dict[str, Any]]) -> None:
        for message in messages:
            if not self._open:
                return
            if isinstance(message, dict):
                self.send(self._server.answer(self, message))
            elif self.port is not None:
                self.port.receive(message)

    def take(self, frame: Frame) -> None:
        """Send a frame to the machine, or drop it."""
        if len(self._outbox) + frame.size > _OUTBOX:
            self.dropped += 1
            return
        self._push(b"".join(frame_message(frame)))

    def send(self, content: dict[str, Any]) -> None:
        """Send an object."""
        self._push(object_message(content))

    def _push(self, data: bytes) -> None:
        waiting = bool(self._outbox)
        self._outbox += data
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        if not self._open:
            return
        try:
            del self._outbox[: self._link.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            # Its end is read soon.
            self._outbox.clear()
        interest = READ | (WRITE if self._outbox else 0)
        if interest != self._interest:
            self._interest = interest
            self._server.network.loop.change(self._link, interest)

    def close(self) -> None:
        """Let go of the machine."""
        if self._open:
            self._open = False
            self._server.network.loop.forget(self._link)
            self._link.close()
            self._server.left(self)


class Server:
    """The network. All of it happens on the loop's thread, but for `start` and `close`."""

    def __init__(self, place: NetworkDirectory, network: NamedNetwork) -> None:
        self._place = place
        self._described = network
        allow = network.allow
        if network.mode == "isolated":
            # The host, where it is open, has a name that stands for the gateway's addresses.
            allow = (HOST_NAME,) if network.host else ()
        self.subnet = network.addresses()
        options = UserOptions(network.host, allow, way_out=network.mode != "isolated")
        self.network = UserNetwork(NetConfig("user"), options, self.subnet)
        self.switch = Switch()
        self.network.port = Uplink(self.network, self.switch)
        self._claims = Claims()
        self.members: dict[Member, None] = {}
        self._leases = place.leases()
        self.ended = threading.Event()
        self.network.on_fault = self._failed
        self._listener = Listener(Path("/proc/self/fd") / str(_pin(place.path)) / SOCKET)
        self._listener.socket.setblocking(False)
        self._name_all()

    def start(self) -> None:
        """Begin."""
        loop = self.network.loop
        loop.watch(self._listener.socket, READ, self._accept)
        loop.at(loop.now + _FIRST_WAIT, self._end_if_alone)
        self.network.start()

    def _failed(self, fault: BaseException) -> None:
        """End, with what happened in the log: a machine starts another process."""
        traceback.print_exception(fault)
        self.ended.set()

    def close(self) -> None:
        """Give everything back; after it the lock may go."""
        self._listener.close()
        self.network.close()

    def _accept(self, events: int) -> None:
        try:
            link, _ = self._listener.socket.accept()
        except OSError as fault:
            if fault.errno in EXHAUSTED:
                # Whoever wants in waits, and nobody spins.
                loop, door = self.network.loop, self._listener.socket
                loop.forget(door)
                loop.at(loop.now + BREATH, lambda: loop.watch(door, READ, self._accept))
            return
        if len(self.members) >= _MAX_LINKS:
            link.close()
            return
        link.setblocking(False)
        self.members[Member(self, link)] = None

    def left(self, member: Member) -> None:
        """Hear that a connection has ended."""
        self.members.pop(member, None)
        if member.port is not None:
            self.switch.disconnect(member.port)
            for forward in member.forwards:
                self.network.unforward(forward)
            member.forwards.clear()
            self._name_all()
        loop = self.network.loop
        loop.at(loop.now + _LAST_WAIT, self._end_if_alone)

    def _end_if_alone(self) -> None:
        if not any(member.port is not None for member in self.members):
            self.ended.set()

    # ---- what is asked ----------------------------------------------------

    def answer(self, member: Member, message: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a message, or the error that it is."""
        number = message.get("id")
        try:
            match message:
                case {"join": dict(who)}:
                    found = self._join(member, who)
                case {"forward": forward}:
                    found = {"port": to_plain(self._forward(member, _forward(forward)))}
                case {"unforward": forward}:
                    self._unforward(member, _forward(forward))
                    found = {}
                case {"end": _}:
                    # What is answered goes out before the loop ends.
                    self._end_if_alone()
                    found = {}
                case {"change": _}:
                    self._described = self._place.network()
                    found = {}
                case {"inspect": _}:
                    found = self._inspect()
                case _:
                    raise InvalidValueError("nothing that a network can do")
        except RingzeroError as fault:
            return {"id": number, "error": fault.to_dict()}
        return {"id": number, "result": found}

    def _join(self, member: Member, who: dict[str, Any]) -> dict[str, Any]:
        name, mac = who.get("name"), who.get("mac")
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise InvalidValueError(f"no machine is called {str(name)[:64]!r}")
        if not (isinstance(mac, str) and _MAC.fullmatch(mac)):
            raise InvalidValueError(f"no interface has the address {str(mac)[:64]!r}")
        ports = who.get("ports")
        wanted = [_forward(port) for port in ports] if isinstance(ports, list) else []
        if member.port is not None:
            raise ConflictError("this machine has joined already")
        address = self._lease(mac, name)
        self._claims.free(addresses.parse(address))
        guard = None
        if self._described.mode != "open":
            net = self.subnet
            reserved = frozenset((net.gateway4, net.resolver4, net.gateway6, net.resolver6))
            own = {addresses.parse(address)}
            guard = Guard(
                *(bytes.fromhex(mac.replace(":", "")), self._claims, own),
                reserved=reserved,
                prefix6=net.prefix6,
                spare=self._spare,
            )
        port = self.switch.connect(member.take, guard)
        member.name, member.mac, member.address = name, mac, address
        try:
            made = self._forward_all(member, wanted, again=who.get("again") is True)
        except RingzeroError:
            for forward in member.forwards:
                self.network.unforward(forward)
            member.forwards.clear()
            self.switch.disconnect(port)
            raise
        member.port = port
        server, key = self.network.gateway.dhcp, bytes.fromhex(mac.replace(":", ""))
        server.fixed[key], server.names[key] = addresses.parse(address), name
        self._name_all()
        return {"address": address, "ports": [to_plain(forward) for forward in made]}

    def _lease(self, mac: str, name: str) -> str:
        """Return the address of a machine: a fixed one, the one that it had, or a free one."""
        fixed = self._described.fixed
        joined = {member.mac: member.address for member in self.members if member.port is not None}
        # What has become another machine's fixed address is nobody's lease any more.
        promised = {address for other, address in fixed.items() if other != mac}
        if mac in fixed:
            address = fixed[mac]
            if address in (other for m, other in joined.items() if m != mac):
                raise ConflictError(
                    f"{address}, the fixed address of {name!r}, is that of a machine that runs",
                    hint="start that one again: it gets another",
                )
        elif mac in self._leases and self._leases[mac]["address"] not in promised:
            address = self._leases[mac]["address"]
        else:
            self._leases.pop(mac, None)
            # A machine that was started again may have another MAC address, and its old name.
            gone = [
                m
                for m, x in self._leases.items()
                if m not in joined and m not in fixed and x["address"] not in promised
            ]
            named = [m for m in gone if self._leases[m].get("name") == name]
            taken = self._given()
            free = (a for a in self._range() if a not in taken and not self._claimed(a))
            found = None if named else next(free, None)
            if found is None and not named and not gone:
                # One that a guest has given itself is taken from it: it cannot keep others out.
                found = next((a for a in self._range() if a not in taken), None)
            if found is None:
                if not named and not gone:
                    raise ConflictError(
                        f"the network {self._described.name!r} has no address left",
                        hint="it can be made with a larger subnet",
                    )
                found = self._leases.pop((named or gone)[0])["address"]
            address = found
        self._leases[mac] = {"address": address, "name": name}
        self._place.write_leases(self._leases)
        return address

    def _given(self) -> set[str]:
        """Return the addresses that are machines' by a lease, of those too that are not here."""
        return {*(x["address"] for x in self._leases.values()), *self._described.fixed.values()}

    def _claimed(self, address: str) -> bool:
        return self._claims.owner(addresses.parse(address)) is not None

    def _spare(self, address: bytes) -> bool:
        """Return whether a machine may give itself an IPv4 address: one that DHCP gave nobody."""
        hosts = ~int.from_bytes(self.subnet.mask4, "big") & 0xFFFFFFFF
        # The subnet's own address and that of all of it are no machine's.
        if int.from_bytes(address, "big") & hosts in (0, hosts) or not self.subnet.has(address):
            return False
        return addresses.text(address) not in self._given()

    def _range(self) -> Sequence[str]:
        first, last = self._described.range4(ipaddress.IPv4Network(self._described.subnet))
        return _Range(int(first), int(last))

    def _forward(self, member: Member, forward: Forward) -> Forward:
        made = self.network.forward(replace(forward, guest=member.address))
        member.forwards.append(made)
        return replace(made, guest="")

    def _forward_all(self, member: Member, ports: list[Forward], *, again: bool) -> list[Forward]:
        """Forward ports; with `again`, those that nobody took while there was no process."""
        made = []
        for forward in ports:
            try:
                made.append(self._forward(member, forward))
            except ConflictError:
                if not again:
                    raise
        return made

    def _unforward(self, member: Member, forward: Forward) -> None:
        meant = replace(forward, guest=member.address)
        if meant not in member.forwards:
            raise NotFoundError(f"no port is forwarded as {forward}")
        member.forwards.remove(meant)
        self.network.unforward(meant)

    def _name_all(self) -> None:
        """Tell the resolver who is here; of machines with one name, the first has it."""
        names, gateway = Names(DOMAIN), self.network.gateway
        if self._described.host:
            names.add(HOST_NAME, [self.subnet.gateway4, self.subnet.gateway6])
        seen = set()
        for member in self.members:
            if member.port is not None and member.name not in seen:
                seen.add(member.name)
                names.add(member.name, [addresses.parse(member.address)])
        gateway.names = gateway.dns.own = names

    def _inspect(self) -> dict[str, Any]:
        joined = [member for member in self.members if member.port is not None]
        return {
            "counters": self.network.counters(),
            "machines": [
                {
                    "name": member.name,
                    "mac": member.mac,
                    "address": member.address,
                    "ports": [to_plain(forward) for forward in member.forwards],
                    "sent": member.port.received,
                    "sent_bytes": member.port.received_bytes,
                    "received": member.port.sent,
                    "received_bytes": member.port.sent_bytes,
                    "dropped": member.dropped,
                    "refused": member.port.refused,
                }
                for member in joined
                if member.port is not None
            ],
        }


class _Range(Sequence[str]):
    """The addresses from `first` to `last`, as text."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._count = first, last - first + 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError
        return str(ipaddress.IPv4Address(self._first + index))


def _forward(data: object) -> Forward:
    try:
        forward: Forward = from_plain(Forward, data)
    except MisfitError as fault:
        raise InvalidValueError(f"no port in {str(data)[:64]!r}: {fault.reason}") from fault
    return forward


def _pin(path: Path) -> int:
    """Return a descriptor of a directory, by which a socket's path is short."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def main(arguments: list[str]) -> int:
    """Run the network whose directory is named, unless another process does."""
    (path,) = arguments
    place = NetworkDirectory(Path(path))
    stand_alone(f"rz-net-{place.name}")
    lock = os.open(place.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not ofdlock.take(lock):
        return 0
    try:
        server = Server(place, place.network())
    except RingzeroError as fault:
        print(f"ringzero: {fault.message}", file=sys.stderr)
        return fault.exit_code
    signal.signal(signal.SIGTERM, lambda *_: server.ended.set())
    server.start()
    server.ended.wait()
    with contextlib.suppress(RingzeroError):
        server.close()
    return 0
