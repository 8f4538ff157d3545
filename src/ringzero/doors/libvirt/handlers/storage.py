"""Storage pools and volumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ringzero.api.values import StoragePoolSummary, VolumeSummary
from ringzero.doors.libvirt.constants import PoolState, VolumeType
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.handlers.streams import ConversationSide, UploadSide, open_stream
from ringzero.doors.libvirt.lists import object_selected
from ringzero.doors.libvirt.session import Call
from ringzero.doors.libvirt.values import PoolHandle, VolumeHandle, uuid_bytes, uuid_text
from ringzero.doors.libvirt.xml import volumes
from ringzero.doors.libvirt.xml.storage import POOL, VOLUME, PermissionsXml, VolumeXml
from ringzero.errors import ConfigError, ConflictError, InvalidValueError, NotFoundError
from ringzero.host.files import open_regular
from ringzero.records import replace

# virStorageVolResizeFlags.
_ALLOCATE, _DELTA, _SHRINK = 1, 2, 4
_DIRECTORY_POOL = "dir"
# Where ISO 9660 has the identifier of its first volume descriptor (ECMA-119 section 8.1).
_ISO_IDENTIFIER, _ISO_IDENTIFIER_AT = b"CD001", 16 * 2048 + 1


# ---- which pools there are ------------------------------------------------------


async def pools(context: Context) -> list[StoragePoolSummary]:
    """Return all pools."""
    found: list[StoragePoolSummary] = await context.act("storage_pools", {})
    return found


async def find(context: Context, handle: PoolHandle) -> StoragePoolSummary:
    """Return the pool that a client means. Raises RefusedError."""
    uuid = uuid_text(handle.uuid)
    for pool in await pools(context):
        if pool["uuid"] == uuid:
            return pool
    raise _no_pool(f"no storage pool with matching uuid '{uuid}' ({handle.name})")


def handle_of(pool: StoragePoolSummary) -> PoolHandle:
    """Return what stands for a pool on the wire."""
    return PoolHandle(pool["name"], uuid_bytes(pool["uuid"]))


@handles("CONNECT_LIST_ALL_STORAGE_POOLS")
async def list_all_pools(context: Context, need_results: int, flags: int) -> Results:
    found = [
        handle_of(pool)
        for pool in await pools(context)
        if object_selected(flags, active=pool["active"], autostart=pool["autostart"])
    ]
    return {"pools": found if need_results else [], "ret": len(found)}


@handles("CONNECT_NUM_OF_STORAGE_POOLS")
async def num_of_pools(context: Context) -> Results:
    return {"num": sum(pool["active"] for pool in await pools(context))}


@handles("CONNECT_LIST_STORAGE_POOLS")
async def list_pools(context: Context, most: int) -> Results:
    names = [pool["name"] for pool in await pools(context) if pool["active"]]
    return {"names": names[: max(0, most)]}


@handles("CONNECT_NUM_OF_DEFINED_STORAGE_POOLS")
async def num_of_defined_pools(context: Context) -> Results:
    return {"num": sum(not pool["active"] for pool in await pools(context))}


@handles("CONNECT_LIST_DEFINED_STORAGE_POOLS")
async def list_defined_pools(context: Context, most: int) -> Results:
    names = [pool["name"] for pool in await pools(context) if not pool["active"]]
    return {"names": names[: max(0, most)]}


@handles("CONNECT_FIND_STORAGE_POOL_SOURCES")
async def find_pool_sources(
    context: Context, type: str, src_spec: str | None, flags: int
) -> Results:
    if type != _DIRECTORY_POOL:
        raise _unsupported(f"pools of type '{type}' are not supported; those of type 'dir' are")
    return {"xml": "<sources/>\n"}


@handles("STORAGE_POOL_LOOKUP_BY_NAME")
async def pool_by_name(context: Context, name: str) -> Results:
    for pool in await pools(context):
        if pool["name"] == name:
            return {"pool": handle_of(pool)}
    raise _no_pool(f"no storage pool with matching name '{name}'")


@handles("STORAGE_POOL_LOOKUP_BY_UUID")
async def pool_by_uuid(context: Context, uuid: bytes) -> Results:
    return {"pool": handle_of(await find(context, PoolHandle("", uuid)))}


@handles("STORAGE_POOL_LOOKUP_BY_VOLUME")
async def pool_by_volume(context: Context, volume: VolumeHandle) -> Results:
    return await pool_by_name(context, volume.pool)


@handles("STORAGE_POOL_LOOKUP_BY_TARGET_PATH")
async def pool_by_path(context: Context, path: str) -> Results:
    for pool in await pools(context):
        if os.path.normpath(pool["path"]) == os.path.normpath(path):
            return {"pool": handle_of(pool)}
    raise _no_pool(f"no storage pool with matching target path '{path}'")


# ---- a pool's life --------------------------------------------------------------


@handles("STORAGE_POOL_DEFINE_XML")
async def define_pool(context: Context, xml: str, flags: int) -> Results:
    return {"pool": handle_of(await _define(context, xml, active=False))}


@handles("STORAGE_POOL_CREATE_XML")
async def create_pool_xml(context: Context, xml: str, flags: int) -> Results:
    return {"pool": handle_of(await _define(context, xml, active=True))}


async def _define(context: Context, xml: str, *, active: bool) -> StoragePoolSummary:
    try:
        wanted = await context.work(POOL.parse, xml)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message, ErrorDomain.STORAGE) from fault
    try:
        definition = volumes.pool_definition(wanted)
    except ConfigError as fault:
        raise _unsupported(f"{fault.message}: {fault.hint}") from fault
    context.warn(f"storage pool {wanted.name}", definition.warnings)
    there = {pool["name"]: pool for pool in await pools(context)}
    old = there.get(definition.fields["name"])
    if active and old is not None and old["active"] and old["path"] != wanted.path:
        text = f"pool '{wanted.name}' already exists with uuid {old['uuid']}"
        raise RefusedError(ErrorCode.OPERATION_FAILED, text, ErrorDomain.STORAGE)
    # One that is active stays so when it is defined again.
    keep = old is not None and old["active"]
    found: StoragePoolSummary = await context.act(
        "define_storage_pool", {**definition.fields, "active": active or keep}
    )
    return found


@handles("STORAGE_POOL_CREATE")
async def create_pool(context: Context, pool: PoolHandle, flags: int) -> Results:
    found = await find(context, pool)
    if found["active"]:
        text = f"storage pool '{found['name']}' is already active"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.STORAGE)
    await context.act("change_storage_pool", {"name": found["name"], "active": True})
    return {}


@handles("STORAGE_POOL_BUILD")
async def build_pool(context: Context, pool: PoolHandle, flags: int) -> Results:
    found = await find(context, pool)

    def build(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    await context.work(build, Path(found["path"]))
    return {}


@handles("STORAGE_POOL_DESTROY")
async def destroy_pool(context: Context, pool: PoolHandle) -> Results:
    found = await find_active(context, pool)
    await context.act("change_storage_pool", {"name": found["name"], "active": False})
    return {}


@handles("STORAGE_POOL_DELETE")
async def delete_pool(context: Context, pool: PoolHandle, flags: int) -> Results:
    found = await find(context, pool)
    if found["active"]:
        text = f"storage pool '{found['name']}' is still active"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.STORAGE)
    try:
        # Where volumes are left, the directory stays.
        await context.work(Path(found["path"]).rmdir)
    except OSError as fault:
        text = f"cannot remove {found['path']}: {fault.strerror}"
        raise RefusedError(ErrorCode.SYSTEM_ERROR, text, ErrorDomain.STORAGE) from fault
    return {}


@handles("STORAGE_POOL_UNDEFINE")
async def undefine_pool(context: Context, pool: PoolHandle) -> Results:
    found = await find(context, pool)
    await context.act("undefine_storage_pool", {"name": found["name"]})
    return {}


@handles("STORAGE_POOL_REFRESH")
async def refresh_pool(context: Context, pool: PoolHandle, flags: int) -> Results:
    # What is there is looked up each time.
    await find_active(context, pool)
    return {}


async def find_active(context: Context, handle: PoolHandle) -> StoragePoolSummary:
    """Return a pool that is active. Raises RefusedError."""
    found = await find(context, handle)
    if not found["active"]:
        text = f"storage pool '{found['name']}' is not active"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.STORAGE)
    return found


# ---- what a pool is -------------------------------------------------------------


@handles("STORAGE_POOL_GET_INFO")
async def pool_info(context: Context, pool: PoolHandle) -> Results:
    found = await find(context, pool)
    state = PoolState.RUNNING if found["active"] else PoolState.INACTIVE
    sizes = ("capacity", "allocation", "available")
    told = {name: found[name] if found["active"] else 0 for name in sizes}  # type: ignore[literal-required]
    return {"state": int(state), **told}


@handles("STORAGE_POOL_GET_XML_DESC")
async def pool_xml(context: Context, pool: PoolHandle, flags: int) -> Results:
    found = await find(context, pool)
    told = replace(
        volumes.pool(found),
        permissions=PermissionsXml(0o700, str(os.geteuid()), str(os.getegid())),
    )
    if not found["active"]:
        told = replace(told, capacity=0, allocation=0, available=0)
    return {"xml": POOL.render(told)}


@handles("STORAGE_POOL_GET_AUTOSTART")
async def pool_autostart(context: Context, pool: PoolHandle) -> Results:
    return {"autostart": int((await find(context, pool))["autostart"])}


@handles("STORAGE_POOL_SET_AUTOSTART")
async def set_pool_autostart(context: Context, pool: PoolHandle, autostart: int) -> Results:
    found = await find(context, pool)
    wanted = {"name": found["name"], "autostart": bool(autostart)}
    await context.act("change_storage_pool", wanted)
    return {}


@handles("STORAGE_POOL_IS_ACTIVE")
async def pool_is_active(context: Context, pool: PoolHandle) -> Results:
    return {"active": int((await find(context, pool))["active"])}


@handles("STORAGE_POOL_IS_PERSISTENT")
async def pool_is_persistent(context: Context, pool: PoolHandle) -> Results:
    await find(context, pool)
    return {"persistent": 1}


# ---- which volumes there are ----------------------------------------------------


@handles("STORAGE_POOL_LIST_ALL_VOLUMES")
async def list_all_volumes(
    context: Context, pool: PoolHandle, need_results: int, flags: int
) -> Results:
    found = [_handle(volume) for volume in await _volumes(context, pool)]
    return {"volumes": found if need_results else [], "ret": len(found)}


@handles("STORAGE_POOL_NUM_OF_VOLUMES")
async def num_of_volumes(context: Context, pool: PoolHandle) -> Results:
    return {"num": len(await _volumes(context, pool))}


@handles("STORAGE_POOL_LIST_VOLUMES")
async def list_volumes(context: Context, pool: PoolHandle, most: int) -> Results:
    names = [volume["name"] for volume in await _volumes(context, pool)]
    return {"names": names[: max(0, most)]}


@handles("STORAGE_VOL_LOOKUP_BY_NAME")
async def volume_by_name(context: Context, pool: PoolHandle, name: str) -> Results:
    for volume in await _volumes(context, pool, name):
        return {"volume": _handle(volume)}
    raise _no_volume(f"no storage vol with matching name '{name}'")


@handles("STORAGE_VOL_LOOKUP_BY_KEY")
async def volume_by_key(context: Context, key: str) -> Results:
    return await volume_by_path(context, key)


@handles("STORAGE_VOL_LOOKUP_BY_PATH")
async def volume_by_path(context: Context, path: str) -> Results:
    wanted = os.path.normpath(path)
    for volume in await context.act("volumes", {"name": Path(wanted).name}):
        if os.path.normpath(volume["path"]) == wanted:
            return {"volume": _handle(volume)}
    raise _no_volume(f"no storage vol with matching path '{path}'")


async def _volumes(
    context: Context, pool: PoolHandle, name: str | None = None
) -> list[VolumeSummary]:
    found = await find_active(context, pool)
    wanted = {"pool": found["name"], "name": name}
    told: list[VolumeSummary] = await context.act("volumes", wanted)
    return told


async def _volume(context: Context, handle: VolumeHandle) -> VolumeSummary:
    """Return the volume that a client means. Raises RefusedError."""
    try:
        wanted = {"pool": handle.pool, "name": handle.name}
        found: list[VolumeSummary] = await context.act("volumes", wanted)
    except (NotFoundError, ConflictError):
        found = []
    for volume in found:
        return volume
    raise _no_volume(f"no storage vol with matching key '{handle.key}'")


# ---- a volume's life ------------------------------------------------------------


@handles("STORAGE_VOL_CREATE_XML")
async def create_volume(context: Context, pool: PoolHandle, xml: str, flags: int) -> Results:
    found = await find_active(context, pool)
    wanted = await _read(context, xml)
    await _refuse_taken(context, found["name"], wanted)
    definition = _definition(context, wanted, found["name"], flags)
    return {"volume": _handle(await context.act("create_volume", definition))}


@handles("STORAGE_VOL_CREATE_XML_FROM")
async def create_volume_from(
    context: Context, pool: PoolHandle, xml: str, clonevol: VolumeHandle, flags: int
) -> Results:
    found = await find_active(context, pool)
    wanted = await _read(context, xml)
    source = await _volume(context, clonevol)
    await _refuse_taken(context, found["name"], wanted)
    sized = replace(wanted, capacity=wanted.capacity or source["capacity"])
    definition = _definition(context, sized, found["name"])
    arguments = {name: definition[name] for name in ("name", "format", "mode", "pool")}
    places = {"source": source["name"], "source_pool": source["pool"]}
    made: VolumeSummary = await context.act("clone_volume", {**arguments, **places})
    if wanted.capacity is not None and wanted.capacity > made["capacity"]:
        bigger = {"name": made["name"], "pool": made["pool"], "capacity": wanted.capacity}
        made = await context.act("resize_volume", bigger)
    return {"volume": _handle(made)}


@handles("STORAGE_VOL_DELETE")
async def delete_volume(context: Context, volume: VolumeHandle, flags: int) -> Results:
    found = await _volume(context, volume)
    wanted = {"name": found["name"], "pool": found["pool"], "force": True}
    await context.act("remove_volume", wanted)
    return {}


@handles("STORAGE_VOL_RESIZE")
async def resize_volume(
    context: Context, volume: VolumeHandle, capacity: int, flags: int
) -> Results:
    found = await _volume(context, volume)
    size = capacity
    if flags & _DELTA:
        size = found["capacity"] + (-capacity if flags & _SHRINK else capacity)
    wanted = {"name": found["name"], "pool": found["pool"], "capacity": max(0, size)}
    await context.act("resize_volume", {**wanted, "shrink": bool(flags & _SHRINK)})
    return {}


@handles("STORAGE_VOL_WIPE")
async def wipe_volume(context: Context, volume: VolumeHandle, flags: int) -> Results:
    found = await _volume(context, volume)
    await context.act("wipe_volume", {"name": found["name"], "pool": found["pool"]})
    return {}


@handles("STORAGE_VOL_WIPE_PATTERN")
async def wipe_volume_pattern(
    context: Context, volume: VolumeHandle, algorithm: int, flags: int
) -> Results:
    if algorithm != 0:
        raise _unsupported("volumes are overwritten by zeros; no other way is supported")
    return await wipe_volume(context, volume, flags)


@handles("STORAGE_VOL_UPLOAD")
async def upload_volume(
    context: Context, call: Call, volume: VolumeHandle, offset: int, length: int, flags: int
) -> Results:
    found = await _volume(context, volume)
    arguments: dict[str, Any] = {"name": found["name"], "pool": found["pool"], "offset": offset}
    if length:
        arguments["length"] = length
    conversation = context.converse("put_volume", arguments)
    open_stream(context, UploadSide(context, call, conversation, length))
    return {}


@handles("STORAGE_VOL_DOWNLOAD")
async def download_volume(
    context: Context, call: Call, volume: VolumeHandle, offset: int, length: int, flags: int
) -> Results:
    found = await _volume(context, volume)
    arguments: dict[str, Any] = {"name": found["name"], "pool": found["pool"], "offset": offset}
    if length:
        arguments["length"] = length
    conversation = context.converse("get_volume", arguments)
    open_stream(context, ConversationSide(context, call, conversation))
    return {}


# ---- what a volume is -----------------------------------------------------------


@handles("STORAGE_VOL_GET_INFO")
async def volume_info(context: Context, volume: VolumeHandle) -> Results:
    found = await _volume(context, volume)
    return {
        "type": int(VolumeType.FILE),
        "capacity": found["capacity"],
        "allocation": found["allocation"],
    }


@handles("STORAGE_VOL_GET_INFO_FLAGS")
async def volume_info_flags(context: Context, volume: VolumeHandle, flags: int) -> Results:
    found = await _volume(context, volume)
    told = await volume_info(context, volume)
    # VIR_STORAGE_VOL_GET_PHYSICAL
    return {
        **told,
        "allocation": found["physical"] if flags & 1 else found["allocation"],
        "flags": flags,
    }


@handles("STORAGE_VOL_GET_PATH")
async def volume_path(context: Context, volume: VolumeHandle) -> Results:
    return {"name": (await _volume(context, volume))["path"]}


@handles("STORAGE_VOL_GET_XML_DESC")
async def volume_xml(context: Context, volume: VolumeHandle, flags: int) -> Results:
    found = await _volume(context, volume)
    iso = found["format"] == "raw" and await context.work(_is_iso, Path(found["path"]))
    return {"xml": VOLUME.render(volumes.volume(found, iso=iso))}


def _is_iso(path: Path) -> bool:
    """Return whether a file has an ISO 9660 file system: the identifier in its first descriptor."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            file.seek(_ISO_IDENTIFIER_AT)
            return file.read(len(_ISO_IDENTIFIER)) == _ISO_IDENTIFIER
    except OSError:
        return False


def _handle(volume: VolumeSummary) -> VolumeHandle:
    return VolumeHandle(volume["pool"], volume["name"], volume["path"])


async def _read(context: Context, xml: str) -> VolumeXml:
    try:
        wanted = await context.work(VOLUME.parse, xml)
    except InvalidValueError as fault:
        raise RefusedError(ErrorCode.XML_ERROR, fault.message, ErrorDomain.STORAGE) from fault
    if not wanted.name:
        text = "a volume needs a <name>"
        raise RefusedError(ErrorCode.XML_ERROR, text, ErrorDomain.STORAGE)
    return wanted


async def _refuse_taken(context: Context, pool: str, wanted: VolumeXml) -> None:
    if await context.act("volumes", {"pool": pool, "name": wanted.name}):
        text = f"storage vol '{wanted.name}' already exists"
        raise RefusedError(ErrorCode.STORAGE_VOL_EXIST, text, ErrorDomain.STORAGE)


def _definition(context: Context, wanted: VolumeXml, pool: str, flags: int = 0) -> dict[str, Any]:
    """Return the arguments of what makes a volume. Raises RefusedError."""
    try:
        definition = volumes.volume_definition(wanted, pool, flags)
    except ConfigError as fault:
        raise _unsupported(f"{fault.message}: {fault.hint}") from fault
    context.warn(f"volume {wanted.name}", definition.warnings)
    return definition.fields


def _no_pool(text: str) -> RefusedError:
    return RefusedError(
        ErrorCode.NO_STORAGE_POOL, f"Storage pool not found: {text}", ErrorDomain.STORAGE
    )


def _no_volume(text: str) -> RefusedError:
    return RefusedError(
        ErrorCode.NO_STORAGE_VOL, f"Storage volume not found: {text}", ErrorDomain.STORAGE
    )


def _unsupported(text: str) -> RefusedError:
    return RefusedError(ErrorCode.CONFIG_UNSUPPORTED, text, ErrorDomain.STORAGE)
