"""A bridge of the host's: the machine is one more port of it, by a tap interface of its own."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

from ringzero.config.devices.net import NetConfig
from ringzero.errors import ConfigError, HostError
from ringzero.net.contract import NETWORKS
from ringzero.net.networks.tap import TapNetwork

# linux/sockios.h and netdevice(7).
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCBRADDIF = 0x8913, 0x8914, 0x89A2
_IFF_UP = 1


@NETWORKS.register("bridge")
class BridgeNetwork(TapNetwork):
    """A tap interface in the bridge `config.target`, which goes away with the machine."""

    def __init__(self, config: NetConfig) -> None:
        bridge = config.target
        if not bridge or "/" in bridge:
            raise ConfigError([f"no bridge is called {bridge!r}"], hint="write bridge=NAME")
        if not Path("/sys/class/net", bridge, "bridge").is_dir():
            raise HostError(
                f"this host has no bridge {bridge}", hint="`ip link show type bridge` lists them"
            )
        super().__init__(config)
        try:
            _join(self.name, bridge)
        except OSError as fault:
            self.close()
            raise HostError(
                f"cannot add {self.name} to the bridge {bridge}: {fault.strerror}",
                hint="it takes root or CAP_NET_ADMIN; a tap in the bridge that was made for this "
                "user does as well: --net tap=NAME",
            ) from fault

    def _tap_name(self) -> str:
        return "rz%d"


def _join(name: str, bridge: str) -> None:
    """Put an interface into a bridge, and bring it up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        index = socket.if_nametoindex(name)
        request = struct.pack("16si20x", os.fsencode(bridge), index)
        fcntl.ioctl(link, _SIOCBRADDIF, request)
        request = fcntl.ioctl(link, _SIOCGIFFLAGS, struct.pack("16s24x", os.fsencode(name)))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(link, _SIOCSIFFLAGS, struct.pack("16sH22x", os.fsencode(name), flags | _IFF_UP))
