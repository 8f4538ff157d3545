"""Networks: those by name, which machines join."""

from __future__ import annotations

import ipaddress
from typing import Any

from ringzero.api.values import NetworkSummary
from ringzero.control.host.networks import define_network as define_whole
from ringzero.doors.libvirt.constants import AddressType
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.lists import object_selected
from ringzero.doors.libvirt.values import Lease, NetworkHandle, uuid_bytes, uuid_text
from ringzero.doors.libvirt.xml import network as documents
from ringzero.doors.libvirt.xml.network import NETWORK, NetworkXml
from ringzero.errors import ConfigError, InvalidValueError

# Among a network's notes: the XML that it was defined by.
_SENT = "libvirt"


async def networks(context: Context) -> list[NetworkSummary]:
    """Return all networks."""
    found: list[NetworkSummary] = await context.act("networks", {})
    return found


async def find(context: Context, handle: NetworkHandle) -> NetworkSummary:
    """Return the network that a client means. Raises RefusedError."""
    uuid = uuid_text(handle.uuid)
    for network in await networks(context):
        if network["uuid"] == uuid:
            return network
    raise _no_network(f"no network with matching uuid '{uuid}' ({handle.name})")


def handle_of(network: NetworkSummary) -> NetworkHandle:
    """Return what stands for a network on the wire."""
    return NetworkHandle(network["name"], uuid_bytes(network["uuid"]))


@handles("CONNECT_LIST_ALL_NETWORKS")
async def list_all_networks(context: Context, need_results: int, flags: int) -> Results:
    found = [
        handle_of(network)
        for network in await networks(context)
        if object_selected(flags, active=network["active"], autostart=network["autostart"])
    ]
    return {"networks": found if need_results else [], "ret": len(found)}


@handles("CONNECT_NUM_OF_NETWORKS")
async def num_of_networks(context: Context) -> Results:
    return {"num": sum(network["active"] for network in await networks(context))}


@handles("CONNECT_LIST_NETWORKS")
async def list_networks(context: Context, most: int) -> Results:
    names = [network["name"] for network in await networks(context) if network["active"]]
    return {"names": names[: max(0, most)]}


@handles("CONNECT_NUM_OF_DEFINED_NETWORKS")
async def num_of_defined_networks(context: Context) -> Results:
    return {"num": sum(not network["active"] for network in await networks(context))}


@handles("CONNECT_LIST_DEFINED_NETWORKS")
async def list_defined_networks(context: Context, most: int) -> Results:
    names = [network["name"] for network in await networks(context) if not network["active"]]
    return {"names": names[: max(0, most)]}


@handles("NETWORK_LOOKUP_BY_NAME")
async def network_by_name(context: Context, name: str) -> Results:
    for network in await networks(context):
        if network["name"] == name:
            return {"network": handle_of(network)}
    raise _no_network(f"no network with matching name '{name}'")


@handles("NETWORK_LOOKUP_BY_UUID")
async def network_by_uuid(context: Context, uuid: bytes) -> Results:
    return {"network": handle_of(await find(context, NetworkHandle("", uuid)))}


# ---- a network's life -----------------------------------------------------------


@handles("NETWORK_DEFINE_XML")
async def define_network(context: Context, xml: str) -> Results:
    return {"network": handle_of(await _define(context, xml, active=False))}


@handles("NETWORK_DEFINE_XML_FLAGS")
async def define_network_flags(context: Context, xml: str, flags: int) -> Results:
    return await define_network(context, xml)


@handles("NETWORK_CREATE_XML")
async def create_network_xml(context: Context, xml: str) -> Results:
    return {"network": handle_of(await _define(context, xml, active=True))}


@handles("NETWORK_CREATE_XML_FLAGS")
async def create_network_xml_flags(context: Context, xml: str, flags: int) -> Results:
    return await create_network_xml(context, xml)


async def _define(context: Context, xml: str, *, active: bool) -> NetworkSummary:
    try:
        sent = await context.work(NETWORK.parse, xml)
        wanted = documents.definition(sent)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message, ErrorDomain.NETWORK) from fault
    except ConfigError as fault:
        text = "; ".join(fault.faults)
        raise RefusedError(ErrorCode.CONFIG_UNSUPPORTED, text, ErrorDomain.NETWORK) from fault
    context.warn(f"network {sent.name}", wanted.warnings)
    old = next((n for n in await networks(context) if n["name"] == sent.name), None)
    if old is not None:
        if sent.uuid and sent.uuid != old["uuid"]:
            text = f"network '{sent.name}' already exists with uuid {old['uuid']}"
            raise RefusedError(ErrorCode.OPERATION_FAILED, text, ErrorDomain.NETWORK)
        if old["machines"]:
            text = f"machines are on the network '{sent.name}': it cannot become another"
            raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.NETWORK)
    notes = {
        "active": active or bool(old and old["active"]),
        "uuid": sent.uuid or (old["uuid"] if old is not None else None),
        "metadata": {_SENT: xml},
    }

    def define() -> NetworkSummary:
        return define_whole(wanted.fields, notes, anew=old is not None)

    return await context.work(define, long=True)


@handles("NETWORK_CREATE")
async def create_network(context: Context, network: NetworkHandle) -> Results:
    found = await find(context, network)
    if found["active"]:
        text = f"network is already active: '{found['name']}'"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.NETWORK)
    await context.act("describe_network", {"name": found["name"], "active": True})
    return {}


@handles("NETWORK_DESTROY")
async def destroy_network(context: Context, network: NetworkHandle) -> Results:
    found = await find(context, network)
    if not found["active"]:
        text = f"network '{found['name']}' is not active"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.NETWORK)
    await context.act("describe_network", {"name": found["name"], "active": False})
    return {}


@handles("NETWORK_UNDEFINE")
async def undefine_network(context: Context, network: NetworkHandle) -> Results:
    found = await find(context, network)
    await context.act("remove_network", {"name": found["name"]})
    return {}


# ---- what a network is ----------------------------------------------------------


@handles("NETWORK_GET_XML_DESC")
async def network_xml(context: Context, network: NetworkHandle, flags: int) -> Results:
    found = await find(context, network)
    sent = await sent_of(context, found)
    return {"xml": NETWORK.render(documents.network(found, found["uuid"], sent))}


async def sent_of(context: Context, network: NetworkSummary) -> NetworkXml | None:
    """Return the XML that a client once sent of a network, if one did."""
    if _SENT not in network["metadata"]:
        return None
    try:
        sent: NetworkXml = await context.work(NETWORK.parse, network["metadata"][_SENT])
    except InvalidValueError:
        # Of another version, perhaps: what the network is, is told without it.
        return None
    return sent


def described(name: str, xml: str) -> dict[str, Any]:
    """Return what `describe_network` is given to keep a network's XML."""
    return {"name": name, "metadata": {_SENT: xml}}


@handles("NETWORK_GET_BRIDGE_NAME")
async def bridge_name(context: Context, network: NetworkHandle) -> Results:
    found = await find(context, network)
    return {"name": documents.bridge_name(found, await sent_of(context, found))}


@handles("NETWORK_GET_AUTOSTART")
async def network_autostart(context: Context, network: NetworkHandle) -> Results:
    return {"autostart": int((await find(context, network))["autostart"])}


@handles("NETWORK_SET_AUTOSTART")
async def set_network_autostart(
    context: Context, network: NetworkHandle, autostart: int
) -> Results:
    found = await find(context, network)
    wanted = {"name": found["name"], "autostart": bool(autostart)}
    await context.act("describe_network", wanted)
    return {}


@handles("NETWORK_IS_ACTIVE")
async def network_is_active(context: Context, network: NetworkHandle) -> Results:
    return {"active": int((await find(context, network))["active"])}


@handles("NETWORK_IS_PERSISTENT")
async def network_is_persistent(context: Context, network: NetworkHandle) -> Results:
    await find(context, network)
    return {"persistent": 1}


@handles("NETWORK_GET_DHCP_LEASES")
async def dhcp_leases(
    context: Context, network: NetworkHandle, mac: str | None, need_results: int, flags: int
) -> Results:
    found = await find(context, network)
    bridge = documents.bridge_name(found, await sent_of(context, found))
    length = ipaddress.IPv4Network(found["subnet"]).prefixlen
    # Those that machines have now; a lease of ours ends with the machine.
    there = {member["mac"] for member in found["machines"]}
    leases = [
        Lease(
            interface=bridge,
            expiry=0,
            type=int(AddressType.IPV4),
            mac=address,
            iaid=None,
            address=lease["address"],
            prefix=length,
            hostname=lease.get("name") or None,
            client_id=None,
        )
        for address, lease in found["leases"].items()
        if address in there and mac in (None, address)
    ]
    return {"leases": leases if need_results else [], "ret": len(leases)}


def _no_network(text: str) -> RefusedError:
    return RefusedError(ErrorCode.NO_NETWORK, f"Network not found: {text}", ErrorDomain.NETWORK)
