"""What the microVM's process gives up for good, as Firecracker's does.

At its start, while it has one thread: new privileges, root's capabilities but those about files and
networks, programs, device nodes, signals to others. Before its guest's first instruction: the
system calls that no request needs from then on, by what each thread does. Clients name files of
theirs all along, so files stay open to it; who wants less of them has `ringzero-jailer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import HostError
from ringzero.host.jail import confine, landlock
from ringzero.host.jail.confine import Needs
from ringzero.host.jail.landlock import Grant
from ringzero.host.jail.privileges import FILES, NETWORKS
from ringzero.host.jail.roles import Freedom

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.doors.firecracker.logs import Log

# The guest's network of ringzero's own, made of the host's sockets.
_USER = "user"
_FILES = landlock.WRITE | landlock.IOCTL_DEV


def begin(network: str) -> None:
    """Give up what no microVM needs; `network` is what its interfaces are made of."""
    freedom = Freedom(internet=network == _USER)
    grants = (Grant(Path("/"), _FILES),)
    confine.begin(Needs(grants, freedom, capabilities=(*FILES, *NETWORKS)))


def complete(config: MachineConfig, engine: str, log: Log) -> None:
    """Filter system calls from now on: the machine of `config` is about to run on `engine`."""
    freedom = Freedom(
        internet=any(net.network == _USER for net in config.nets),
        # Its connections are Unix sockets of the host's.
        local=any(device.kind == "vsock" for device in config.devices),
        kvm=engine == "kvm",
        trees=True,
    )
    try:
        confine.filter_calls(freedom)
    except HostError as fault:
        log.warn(f"system calls are not filtered: {fault.message}")
