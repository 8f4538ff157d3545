"""A machine's description with another shared folder, or without one."""

from __future__ import annotations

from ringzero.config.devices.share import AUTO, BOTH, ShareConfig, numbers
from ringzero.config.machine import MachineConfig
from ringzero.errors import ConflictError, NotFoundError
from ringzero.records import replace


def with_share(config: MachineConfig, share: ShareConfig) -> tuple[MachineConfig, ShareConfig]:
    """Return the description with a further folder, and that as it is in there.

    Raises ConfigError where there is no room for it, ConflictError for a place that is taken.
    """
    if any(share.target == other.target for other in config.shares):
        raise ConflictError(f"another folder is at {share.target}", hint="take it away first")
    if not config.shares:
        return replace(config, devices=(*config.devices, share)), share
    number = max(numbers(config.shares)) + 1
    share = replace(share, transport=_transport(config, share), number=number)
    # The machine's description checks what there is room for.
    return replace(config, devices=(*_numbered(config).devices, share)), share


def without_share(config: MachineConfig, target: str) -> tuple[MachineConfig, ShareConfig]:
    """Return the description without the folder at `target`, and that. Raises NotFoundError.

    The device stays, and has room for others; no number is given twice, for a guest may still
    believe something of the one that went.
    """
    config = _numbered(config)
    share = _at(config, target)
    last = max(numbers(config.shares))
    rest = [
        device
        for device in config.devices
        if not isinstance(device, ShareConfig) or (device.target and device is not share)
    ]
    if not any(isinstance(device, ShareConfig) and device.number == last for device in rest):
        rest.append(ShareConfig.room(last, share.transport))
    return replace(config, devices=tuple(rest)), share


def _at(config: MachineConfig, target: str) -> ShareConfig:
    shares = [share for share in config.shares if share.target]
    for share in shares:
        if share.target == (target.rstrip("/") or target):
            return share
    places = ", ".join(share.target for share in shares) or "none"
    raise NotFoundError(f"no shared folder is at {target}", hint=f"there are: {places}")


def _transport(config: MachineConfig, share: ShareConfig) -> str:
    """Return what carries the folders of a machine, for one more. Raises ConflictError."""
    present = config.shares[0].transport
    if share.transport not in (AUTO, present) and present != BOTH:
        raise ConflictError(
            f"the machine's shared folders go by {present}", hint="leave transport= out"
        )
    return present


def _numbered(config: MachineConfig) -> MachineConfig:
    """Return the description with a number for every folder, which it keeps from now on."""
    known = iter(numbers(config.shares))
    return config.map_devices(
        lambda _, device: (
            replace(device, number=next(known)) if isinstance(device, ShareConfig) else device
        )
    )
