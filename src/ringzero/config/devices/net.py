"""A network interface, and the network of the host that it is connected to."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ringzero.config.device import (
    DEVICE_CONFIGS,
    MAXIMUM_SOCKET_PATH,
    NAME,
    Addresses,
    DeviceConfig,
)
from ringzero.config.ports import Forward, double_faults, parse_ports
from ringzero.errors import InvalidValueError
from ringzero.records import record, replace
from ringzero.units import parse_size

# Six bytes of which the lowest bit of the first, which makes a group of it, is not set.
_MAC = r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}"
# What IPv4 asks of every link (RFC 791), and what Ethernet calls jumbo frames.
MINIMUM_MTU, MAXIMUM_MTU = 68, 9000
# Networks that ringzero does not route itself: addresses and ports are others' there.
UNROUTED = ("none", "socket", "tap", "bridge", "passt")
# Where others may give addresses.
_FOREIGN = ("tap", "bridge", "passt")
_PATHS = ("socket", "passt")
_SIZES = ("rate", "burst")
# A guest's driver gives each pair 256 buffers, and takes no more than it has processors.
MAXIMUM_QUEUES = 16
_YES_OR_NO = {"yes": True, "no": False}
# How ringzero's own guests set an interface up before they run a command: with the addresses that
# every user network has; by DHCP; by DHCP, and no command waits for it; not at all.
SETUPS = ("static", "dhcp", "later", "none")


@DEVICE_CONFIGS.register("net")
@record
class NetConfig(DeviceConfig):
    """A network interface. `network` is a kind of network (`ringzero.net`), or one's own name.

    `target` is that kind's argument, a path for "socket"; with `listen`, others
    connect there. `mac` None means a random address; `mtu` is in bytes. `host` says whether
    the guest reaches the host; `allow` None lets it go everywhere, else only to these places
    (`ringzero.net.stack.policy.Rule`); `ports` are those of the host that lead to it; `hostname` is
    what others on the network call the machine. `rate` in bytes and `packet_rate` in packets
    bound what passes in a second, each way; `burst` bytes more pass once. `queues` are pairs of
    queues that the guest may use, one for each of as many vCPUs. `setup` is one of SETUPS; None:
    as the network wants it.
    """

    kind = "net"
    spelling = "user|none|NETWORK|socket=PATH[,OPTION...]"
    help = (
        "a network interface: user (the default guest's default: the world by the host's own "
        "sockets), a network by its name, a cable over a Unix socket, or not connected; "
        "options: host=no, allow=PLACE, port=HOST:GUEST, rate=SIZE, mac=, mtu=, queues=, listen "
        "(repeatable)"
    )
    # There was only one, which snapshots know by this name.
    first_has_number = False

    network: str = "none"
    target: str = ""
    listen: bool = False
    mac: str | None = None
    mtu: int = 1500
    host: bool = True
    allow: tuple[str, ...] | None = None
    ports: tuple[Forward, ...] = ()
    hostname: str = ""
    rate: int | None = None
    packet_rate: int | None = None
    burst: int = 0
    queues: int = 1
    setup: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        whole, values = text, dict[str, Any]()
        allow, ports = list[str](), list[Forward]()
        while "," in text:
            head, _, option = text.rpartition(",")
            name, equals, given = option.partition("=")
            if option == "listen":
                values["listen"] = True
            elif option == "restrict":
                values["allow"] = ()
            elif name == "allow" and given:
                allow.insert(0, given)
            elif name == "port" and given:
                ports[:0] = parse_ports(given)
            elif name == "host" and given in _YES_OR_NO:
                values["host"] = _YES_OR_NO[given]
            elif name == "mac" and equals:
                values["mac"] = given.lower()
            elif name in _SIZES and given:
                values[name] = parse_size(given)
            elif name == "packets" and given.isdecimal():
                values["packet_rate"] = int(given)
            elif name == "mtu" and given.isdecimal():
                values["mtu"] = int(given)
            elif name == "queues" and given.isdecimal():
                values["queues"] = int(given)
            else:
                break
            text = head
        network, equals, target = text.partition("=")
        if not network or (equals and not target) or "," in network:
            raise InvalidValueError(
                f"no network in {whole!r}",
                hint="write user, none, a network's name, or socket=PATH, and options behind it: "
                "host=no, restrict, allow=PLACE, port=HOST:GUEST, rate=SIZE, packets=N, "
                "burst=SIZE, mac=ADDRESS, mtu=N, queues=N, listen",
            )
        if allow:
            values["allow"] = tuple(allow)
        return cls(network, target, **values, ports=tuple(ports))

    @property
    def routed(self) -> bool:
        """Whether ringzero itself gives the addresses there, and forwards ports."""
        return self.network not in UNROUTED

    def plugged_instead_of(self, old: NetConfig, machine: str) -> NetConfig:
        """Return what an interface becomes whose network was `old`'s; the guest's side stays.

        `machine` is what it is called where ringzero gives the names.
        """
        name = machine if self.routed else ""
        new = replace(self, mac=old.mac, mtu=old.mtu, queues=old.queues, hostname=name)
        if (new.rate, new.packet_rate) == (None, None):
            new = replace(new, rate=old.rate, packet_rate=old.packet_rate, burst=old.burst)
        return new

    def guest_setup(self, number: int) -> str:
        """Return how ringzero's own guests set the interface up: one of SETUPS."""
        if self.setup is not None:
            return self.setup
        if self.network == "user" and number == 0:
            return "static"
        if self.routed:
            return "dhcp"
        return "later" if self.network in _FOREIGN else "none"

    def stand_in(self, number: int) -> Self | str:
        setup = self.guest_setup(number)
        if setup == "static":
            return type(self)("user", mtu=self.mtu, queues=self.queues, setup=setup)
        # Nobody answers it: it asks when it has its own address, and its network is there.
        return type(self)("none", mtu=self.mtu, queues=self.queues, setup=setup)

    def absolute(self) -> Self:
        if self.network not in _PATHS or not self.target:
            return self
        return replace(self, target=str(Path(self.target).absolute()))

    def faults(self) -> list[str]:
        found = []
        if not isinstance(self.network, str) or not NAME.fullmatch(self.network):
            found.append(f"no network is called {self.network!r}")
        if len(os.fsencode(self.target)) > MAXIMUM_SOCKET_PATH:
            found.append(f"network {self.target}: a socket's path has at most 107 bytes")
        if self.mac is not None and not re.fullmatch(_MAC, self.mac):
            found.append(
                f"{self.mac!r} is no MAC address of an interface: write 02:xx:xx:xx:xx:xx, "
                "whose first byte is even"
            )
        if not MINIMUM_MTU <= self.mtu <= MAXIMUM_MTU:
            found.append(f"an MTU of {self.mtu} is outside {MINIMUM_MTU} to {MAXIMUM_MTU}")
        if self.setup is not None and self.setup not in SETUPS:
            found.append(f"an interface is set up {', '.join(SETUPS)}, not {self.setup!r}")
        if not 1 <= self.queues <= MAXIMUM_QUEUES:
            found.append(f"an interface has 1 to {MAXIMUM_QUEUES} pairs of queues")
        if 0 in (self.rate, self.packet_rate) or self.burst < 0:
            found.append("a rate of nothing: write --net none for no network")
        if self.burst and self.rate is None:
            found.append("burst= goes with rate=")
        found += [fault for forward in self.ports for fault in forward.faults()]
        if not self.routed and (self.ports or self.allow is not None or not self.host):
            found.append(
                f"the network {self.network!r} is not ringzero's to route: ports, allow, restrict "
                "and host=no go with user, or with a network by its name"
            )
        return found

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        macs = Counter(net.mac for net in devices if net.mac is not None)
        ends = Counter(net.target for net in devices if net.listen)
        found = [
            f"two network interfaces have the MAC address {mac}"
            for mac, count in macs.items()
            if count > 1
        ]
        found += [f"two network interfaces listen at {e}" for e, n in ends.items() if n > 1]
        return found + list(double_faults([port for net in devices for port in net.ports]))

    def complete(self, number: int, addresses: Addresses) -> Self:
        mac = self.mac if self.mac is not None else addresses.mac_of(number)
        hostname = addresses.name or self.hostname if self.routed else ""
        if (mac, hostname) == (self.mac, self.hostname):
            return self
        return replace(self, mac=mac, hostname=hostname)

    def renew(self, number: int, addresses: Addresses) -> Self:
        """Return the interface of a copy: its own address and ports, never the listening end."""
        given = addresses.net if number == 0 else None
        ports = tuple(forward.anywhere() for forward in self.ports)
        own = replace(self, mac=None, listen=False, ports=ports)
        net = given if isinstance(given, type(self)) else own
        return net.complete(number, addresses)


def publish(nets: Sequence[NetConfig], ports: Sequence[Forward]) -> list[NetConfig]:
    """Return the interfaces with `ports` forwarded to the first that ringzero routes.

    Without any interface there is one on a user network. Raises InvalidValueError.
    """
    found = list(nets) or [NetConfig("user")]
    for number, net in enumerate(found):
        if net.routed:
            found[number] = replace(net, ports=(*net.ports, *ports))
            return found
    raise InvalidValueError(
        "ports are forwarded by networks that ringzero routes, and this machine is on none",
        hint="add --net user, or a network by its name",
    )
