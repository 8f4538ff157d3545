"""Managed saves, which a domain's next start goes on from, and files that it is saved to."""

from __future__ import annotations

from ringzero.api.values import Status
from ringzero.doors.libvirt import saves
from ringzero.doors.libvirt.constants import SaveFlags
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.handlers.domain import find, find_active
from ringzero.doors.libvirt.values import DomainHandle


@handles("DOMAIN_MANAGED_SAVE")
async def managed_save(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find_active(context, domain)
    paused = found.status is Status.PAUSED
    if flags & (SaveFlags.RUNNING | SaveFlags.PAUSED):
        paused = bool(flags & SaveFlags.PAUSED)
    await context.work(saves.save, context.manager.host, found, paused, long=True)
    return {}


@handles("DOMAIN_HAS_MANAGED_SAVE_IMAGE")
async def has_managed_save_image(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find(context, domain)
    kept = await context.work(saves.find, context.manager.host, found)
    return {"result": int(kept is not None)}


@handles("DOMAIN_MANAGED_SAVE_REMOVE")
async def managed_save_remove(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find(context, domain)
    await context.work(saves.discard, context.manager.host, found)
    return {}


@handles("DOMAIN_SAVE")
async def save(context: Context, domain: DomainHandle, path: str) -> Results:
    return await save_flags(context, domain, path, None, 0)


@handles("DOMAIN_SAVE_FLAGS")
async def save_flags(
    context: Context, domain: DomainHandle, path: str, dxml: str | None, flags: int
) -> Results:
    _require_no_xml(dxml)
    found = await find_active(context, domain)
    await context.work(saves.save_file, context.manager.host, found, path, long=True)
    return {}


@handles("DOMAIN_RESTORE")
async def restore(context: Context, path: str) -> Results:
    return await restore_flags(context, path, None, 0)


@handles("DOMAIN_RESTORE_FLAGS")
async def restore_flags(context: Context, path: str, dxml: str | None, flags: int) -> Results:
    _require_no_xml(dxml)
    paused = bool(flags & SaveFlags.PAUSED)
    await context.work(saves.restore_file, context.manager.host, path, paused, long=True)
    return {}


def _require_no_xml(document: str | None) -> None:
    if document:
        text = "a domain's XML cannot be changed as it is saved or restored: define it anew after"
        raise RefusedError(ErrorCode.ARGUMENT_UNSUPPORTED, text)
