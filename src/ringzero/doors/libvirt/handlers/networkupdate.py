"""Changes of a network that is there: `virsh net-update`."""

from __future__ import annotations

import asyncio

from ringzero.doors.libvirt.constants import Affect
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.handlers.network import described, find, sent_of
from ringzero.doors.libvirt.values import NetworkHandle
from ringzero.doors.libvirt.xml import network as documents
from ringzero.doors.libvirt.xml.network import NETWORK
from ringzero.doors.libvirt.xml.networkupdate import updated
from ringzero.errors import ConfigError, ConflictError, InvalidValueError


class _Turn(asyncio.Lock):
    """Changes come one after the other: each is made of what the one before has left."""


@handles("NETWORK_UPDATE")
async def update_network(
    context: Context,
    network: NetworkHandle,
    command: int,
    section: int,
    parent_index: int,
    xml: str,
    flags: int,
) -> Results:
    async with context.manager.part(_Turn):
        await _update(context, network, command, section, parent_index, xml, flags)
    return {}


async def _update(
    context: Context,
    network: NetworkHandle,
    command: int,
    section: int,
    parent_index: int,
    xml: str,
    flags: int,
) -> None:
    # There is one description: what machines get that join from now on, and after a start.
    found = await find(context, network)
    if flags & Affect.LIVE and not found["active"]:
        text = f"network '{found['name']}' is not active"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.NETWORK)
    before = documents.network(found, found["uuid"], await sent_of(context, found))
    try:
        after = updated(before, command, section, parent_index, xml)
        wanted = documents.definition(after)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message, ErrorDomain.NETWORK) from fault
    except ConflictError as fault:
        text = fault.message
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.NETWORK) from fault
    except ConfigError as fault:
        text = "; ".join(fault.faults)
        raise RefusedError(ErrorCode.CONFIG_UNSUPPORTED, text, ErrorDomain.NETWORK) from fault
    context.warn(f"network {found['name']}", wanted.warnings)
    fields = {"leases": wanted.fields.get("leases", []), "range": wanted.fields.get("range", "")}
    await context.act("update_network", {"name": found["name"], **fields})
    await context.act("describe_network", described(found["name"], NETWORK.render(after)))
