"""Rate limiters of drives and interfaces, and what a running machine counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ringzero.core.buckets import Bucket
from ringzero.doors.firecracker.configuration import Configuration
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    from ringzero.vm.machine import Machine

_MILLISECONDS = 1000


def apply(machine: Machine, configuration: Configuration) -> None:
    """Have a machine that has not run keep to its limiters."""
    for number in range(len(configuration.drives)):
        limit_drive(machine, configuration, number)
    for number in range(len(configuration.nets)):
        limit_net(machine, configuration, number)


def limit_drive(machine: Machine, configuration: Configuration, number: int) -> None:
    """Have a drive keep to its limiter."""
    from ringzero.devices.virtio.kinds.block import Throttle

    limiter = configuration.drives[number].get("rate_limiter")
    requests, size = _bucket(limiter, "ops"), _bucket(limiter, "bandwidth")
    limited = requests is not None or size is not None
    backend: Any = machine.parts.devices.backends[f"disk{number}"]
    backend.throttle(Throttle(requests, size) if limited else None)


def limit_net(machine: Machine, configuration: Configuration, number: int) -> None:
    """Have an interface keep to its limiters."""
    from ringzero.net.limit import Limits

    net = configuration.nets[number]
    sent, received = (
        Limits(_bucket(net.get(name), "bandwidth"), _bucket(net.get(name), "ops"))
        for name in ("tx_rate_limiter", "rx_rate_limiter")
    )
    list(machine.nets)[number].limit(sent, received)


def merged(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a limiter with the buckets of `new` in place of those of `old`."""
    found = {**(old or {}), **(new or {})}
    return found or None


def _bucket(limiter: Mapping[str, Any] | None, name: str) -> Bucket | None:
    """Return a bucket; None where there is none, or one that is off."""
    fields = (limiter or {}).get(name)
    if not fields:
        return None
    bucket = Bucket(
        fields["size"], fields["refill_time"] / _MILLISECONDS, fields.get("one_time_burst", 0)
    )
    try:
        bucket.check()
    except InvalidValueError:
        # A size or a time of 0 switches it off.
        return None
    return bucket


def counters(machine: Machine) -> Mapping[tuple[str, str], int]:
    """Return what a machine has counted, by group and name of the metrics."""
    found: dict[tuple[str, str], int] = {}
    balloon: Any = machine.parts.devices.backends.get("balloon")
    if balloon is not None:
        found.update({("balloon", name): n for name, n in dict(balloon.balloon.counts).items()})
    for backend in machine.nets:
        counted = backend.counters()
        for ours, theirs in (
            ("received", "rx_packets_count"),
            ("received_bytes", "rx_bytes_count"),
            ("sent", "tx_packets_count"),
            ("sent_bytes", "tx_bytes_count"),
        ):
            key = "net", theirs
            found[key] = found.get(key, 0) + counted.get(ours, 0)
    return found
