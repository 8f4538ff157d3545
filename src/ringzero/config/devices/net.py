"""A network interface, and the network of the host that it is connected to."""

from __future__ import annotations

import os
import re
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
from ringzero.errors import InvalidValueError
from ringzero.records import record, replace

# Six bytes of which the lowest bit of the first, which makes a group of it, is not set.
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
# What IPv4 asks of every link (RFC 791), and what Ethernet calls jumbo frames.
MINIMUM_MTU, MAXIMUM_MTU = 68, 9000


@DEVICE_CONFIGS.register("net")
@record
class NetConfig(DeviceConfig):
    """A network interface. `network` is a name in the registry of `ringzero.net`.

    `target` is that network's argument, a path for "socket"; with `listen`, others
    connect there. `mac` None means a random address; `mtu` is in bytes.
    """

    kind = "net"
    spelling = "none|socket=PATH[,listen][,mac=ADDRESS][,mtu=N]"
    help = (
        "a network interface: not connected, or a cable over a Unix socket to another "
        "machine (one of the two listens) or a switch of yours (repeatable)"
    )
    # There was only one, which snapshots know by this name.
    first_has_number = False

    network: str = "none"
    target: str = ""
    listen: bool = False
    mac: str | None = None
    mtu: int = 1500

    @classmethod
    def parse(cls, text: str) -> Self:
        whole, values = text, dict[str, Any]()
        while "," in text:
            head, _, option = text.rpartition(",")
            name, equals, given = option.partition("=")
            if option == "listen":
                values["listen"] = True
            elif name == "mac" and equals:
                values["mac"] = given.lower()
            elif name == "mtu" and given.isdecimal():
                values["mtu"] = int(given)
            else:
                break
            text = head
        network, equals, target = text.partition("=")
        if not network or (equals and not target) or "," in network:
            raise InvalidValueError(
                f"no network in {whole!r}", hint="write none, or socket=PATH[,listen][,mac=ADDRESS]"
            )
        return cls(network, target, **values)

    def absolute(self) -> Self:
        if self.network != "socket":
            return self
        return replace(self, target=str(Path(self.target).absolute()))

    def faults(self) -> list[str]:
        found = []
        if not isinstance(self.network, str) or not NAME.fullmatch(self.network):
            found.append(f"no network is called {self.network!r}")
        if len(os.fsencode(self.target)) > MAXIMUM_SOCKET_PATH:
            found.append(f"network {self.target}: a socket's path has at most 107 bytes")
        if self.mac is not None and not _MAC.fullmatch(self.mac):
            found.append(
                f"{self.mac!r} is no MAC address of an interface: write 02:xx:xx:xx:xx:xx, "
                "whose first byte is even"
            )
        if not MINIMUM_MTU <= self.mtu <= MAXIMUM_MTU:
            found.append(f"an MTU of {self.mtu} is outside {MINIMUM_MTU} to {MAXIMUM_MTU}")
        return found

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        macs = [net.mac for net in devices if net.mac is not None]
        ends = [net.target for net in devices if net.listen]
        twice = dict.fromkeys(mac for mac in macs if macs.count(mac) > 1)
        found = [f"two network interfaces have the MAC address {mac}" for mac in twice]
        twice = dict.fromkeys(end for end in ends if ends.count(end) > 1)
        return found + [f"two network interfaces listen at {end}" for end in twice]

    def complete(self, number: int, addresses: Addresses) -> Self:
        return self if self.mac is not None else replace(self, mac=addresses.mac_of(number))

    def renew(self, number: int, addresses: Addresses) -> Self:
        """Return the interface of a copy: its own address, and never the listening end."""
        given = addresses.net if number == 0 else None
        net = given if isinstance(given, type(self)) else replace(self, mac=None, listen=False)
        return net.complete(number, addresses)
