"""What a running machine's description becomes by what was asked of its process.

The process does what it is asked for, and does not write down what the machine is: that is the
host's side's, from what the caller said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ringzero.api.values import PortSummary
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_to_tree
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.records import MachineRecord
from ringzero.errors import RingzeroError
from ringzero.records import replace

Change = Callable[[MachineConfig, Mapping[str, Any], Any], MachineConfig]
_CHANGES: dict[str, Change] = {}


def changes(name: str) -> Callable[[Change], Change]:
    """Return a decorator that binds what an action changes of a description to its name.

    It takes the description, the action's arguments, and what came of it.
    """

    def bind(function: Change) -> Change:
        _CHANGES[name] = function
        return function

    return bind


def amend(where: MachineDirectory, name: str, arguments: Mapping[str, Any], result: Any) -> None:
    """Write down what the action called `name` has changed. Raises ControlError, HostError."""
    change = _CHANGES.get(name)
    if change is None:
        return

    def changed(record: MachineRecord) -> MachineRecord:
        config = change(record.machine_config(), arguments, result)
        return replace(record, config=config_to_tree(config) | {"name": record.name})

    where.amend(changed)


@changes("publish")
def _publish(config: MachineConfig, arguments: Mapping[str, Any], _: Any) -> MachineConfig:
    from ringzero.config.devices import net
    from ringzero.config.ports import parse_ports

    return _with_nets(config, net.publish(config.nets, parse_ports(arguments["ports"])))


@changes("unpublish")
def _unpublish(
    config: MachineConfig, _: Mapping[str, Any], result: Sequence[PortSummary]
) -> MachineConfig:
    from ringzero.config.ports import Forward, without

    nets = list(config.nets)
    for gone in result:
        forward = Forward(**gone)
        nets = [replace(net, ports=without(net.ports, forward)) for net in nets]
    return _with_nets(config, nets)


@changes("connect")
def _connect(config: MachineConfig, arguments: Mapping[str, Any], result: int) -> MachineConfig:
    from ringzero.config.devices.net import NetConfig

    return _plugged(config, result, NetConfig.parse(arguments["network"]))


@changes("disconnect")
def _disconnect(config: MachineConfig, arguments: Mapping[str, Any], _: Any) -> MachineConfig:
    from ringzero.config.devices.net import NetConfig

    return _plugged(config, arguments["interface"], NetConfig("none"))


@changes("share")
def _share(config: MachineConfig, arguments: Mapping[str, Any], _: Any) -> MachineConfig:
    from ringzero.config.devices.share import ShareConfig
    from ringzero.config.shares import with_share

    return with_share(config, ShareConfig.parse(arguments["folder"]).absolute())[0]


@changes("unshare")
def _unshare(config: MachineConfig, arguments: Mapping[str, Any], _: Any) -> MachineConfig:
    from ringzero.config.shares import without_share

    return without_share(config, arguments["target"])[0]


def _plugged(config: MachineConfig, number: int, net: Any) -> MachineConfig:
    nets = list(config.nets)
    if not 0 <= number < len(nets):
        raise RingzeroError(f"the machine's process plugged no interface {number} that it has")
    nets[number] = net.plugged_instead_of(nets[number], config.name)
    return _with_nets(config, nets)


def _with_nets(config: MachineConfig, nets: Sequence[Any]) -> MachineConfig:
    return config.map_devices(lambda n, device: nets[n] if device.kind == "net" else device)
