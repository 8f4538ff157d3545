"""Events: who wants which, and what happens to machines as libvirt's clients know it."""

from __future__ import annotations

from typing import Any

from ringzero.api.values import Event, EventKind, ExitRecord
from ringzero.control.host.client import Host
from ringzero.doors.events import Listener
from ringzero.doors.libvirt import inventory, saves
from ringzero.doors.libvirt.constants import DomainEvent, Lifecycle, ShutoffReason, StoppedDetail
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.values import DomainHandle

_STOPPED = {
    ShutoffReason.SHUTDOWN: StoppedDetail.SHUTDOWN,
    ShutoffReason.DESTROYED: StoppedDetail.DESTROYED,
    ShutoffReason.CRASHED: StoppedDetail.CRASHED,
}
# The details of the other events: added; booted; paused and unpaused by somebody; by the guest.
_PLAIN = {
    EventKind.CREATED: (Lifecycle.DEFINED, 0),
    EventKind.CHANGED: (Lifecycle.DEFINED, 1),
    EventKind.STARTED: (Lifecycle.STARTED, 0),
    EventKind.PAUSED: (Lifecycle.SUSPENDED, 0),
    EventKind.RESUMED: (Lifecycle.RESUMED, 0),
    EventKind.REMOVED: (Lifecycle.UNDEFINED, 0),
    EventKind.RENAMED: (Lifecycle.DEFINED, 2),
}


@handles("CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY")
async def register(context: Context, event_id: int, domain: DomainHandle | None) -> Results:
    await listen(context)
    return {"callback_id": context.session.register("domain", event_id, domain)}


@handles("CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY")
async def deregister(context: Context, callback_id: int) -> Results:
    return _deregister(context, callback_id, "domain")


@handles("CONNECT_NETWORK_EVENT_REGISTER_ANY")
async def register_network(context: Context, event_id: int, network: Any) -> Results:
    return {"callback_id": context.session.register("network", event_id, network)}


@handles("CONNECT_NETWORK_EVENT_DEREGISTER_ANY")
async def deregister_network(context: Context, callback_id: int) -> Results:
    return _deregister(context, callback_id, "network")


@handles("CONNECT_STORAGE_POOL_EVENT_REGISTER_ANY")
async def register_pool(context: Context, event_id: int, pool: Any) -> Results:
    return {"callback_id": context.session.register("pool", event_id, pool)}


@handles("CONNECT_STORAGE_POOL_EVENT_DEREGISTER_ANY")
async def deregister_pool(context: Context, callback_id: int) -> Results:
    return _deregister(context, callback_id, "pool")


@handles("CONNECT_NODE_DEVICE_EVENT_REGISTER_ANY")
async def register_device(context: Context, event_id: int, dev: Any) -> Results:
    return {"callback_id": context.session.register("node_device", event_id, dev)}


@handles("CONNECT_NODE_DEVICE_EVENT_DEREGISTER_ANY")
async def deregister_device(context: Context, callback_id: int) -> Results:
    return _deregister(context, callback_id, "node_device")


@handles("CONNECT_SECRET_EVENT_REGISTER_ANY")
async def register_secret(context: Context, event_id: int, secret: Any) -> Results:
    return {"callback_id": context.session.register("secret", event_id, secret)}


@handles("CONNECT_SECRET_EVENT_DEREGISTER_ANY")
async def deregister_secret(context: Context, callback_id: int) -> Results:
    return _deregister(context, callback_id, "secret")


def _deregister(context: Context, number: int, kind: str) -> Results:
    found = context.session.callbacks.get(number)
    if found is None or found.kind != kind:
        text = f"{kind} event callback {number} not registered"
        raise RefusedError(ErrorCode.INVALID_ARG, text, ErrorDomain.REMOTE)
    context.session.deregister(number)
    return {}


async def listen(context: Context) -> None:
    """Begin to hear what happens to machines, for as long as the connection stands."""
    if not context.listening:
        # Refused where too many listen already.
        listener = context.hear()
        context.listening = True
        found = await context.work(inventory.domains, context.manager.host)
        context.beside(_hear(context, listener, {domain.name: domain for domain in found}))


async def _hear(context: Context, listener: Listener, known: dict[str, Domain]) -> None:
    """Tell what happens; `known` has UUIDs of machines that may be gone when it is told."""
    with listener:
        async for found in listener.events():
            event = found.event
            kind = EventKind(event.kind)
            domain = await context.work(_domain_of, context.manager.host, event.machine)
            before = event.detail.get("from")
            domain = domain or known.get(before or event.machine)
            if domain is None:
                continue
            if before:
                known.pop(before, None)
            known[event.machine] = domain
            if kind is EventKind.REMOVED:
                known.pop(event.machine, None)
            saved = kind is EventKind.ENDED and await context.work(
                saves.is_end, context.manager.host, event.machine
            )
            _tell(context, domain, kind, event, saved=saved)
            context.send()
            await context.drain()
    if listener.lost:
        # It connects again, and looks itself.
        context.leave()


def _domain_of(host: Host, name: str) -> Domain | None:
    try:
        return inventory.by_name(host, name)
    except RefusedError:
        return None


def _tell(context: Context, domain: Domain, kind: EventKind, event: Event, *, saved: bool) -> None:
    if saved:
        lifecycle, detail = Lifecycle.STOPPED, int(StoppedDetail.SAVED)
    elif kind is EventKind.ENDED:
        ended = ExitRecord.from_dict(event.detail.get("exit") or {})
        reason = inventory.shutoff_reason(ended)
        lifecycle, detail = Lifecycle.STOPPED, int(_STOPPED.get(reason, StoppedDetail.SHUTDOWN))
    elif kind is EventKind.STOPPING:
        lifecycle, detail = Lifecycle.SHUTDOWN, 0
    else:
        lifecycle, detail = _PLAIN[kind]
    handle = domain.handle
    for number in context.session.interested("domain", DomainEvent.LIFECYCLE, handle):
        context.session.event(
            "DOMAIN_EVENT_CALLBACK_LIFECYCLE",
            callback_id=number,
            domain=handle,
            event=int(lifecycle),
            detail=int(detail),
        )
