"""The API as one table: what can be asked, with which body, before and after the start.

Facts of Firecracker's public API description (1.16), written down once: `bench`, tests and the
page docs/firecracker.md go by it.
"""

from __future__ import annotations

import string

from ringzero.doors.firecracker import faults
from ringzero.doors.firecracker.bodies import (
    Body,
    anything,
    each,
    flag,
    ipv4,
    level,
    mac,
    one_of,
    text,
    texts,
    whole,
)
from ringzero.doors.firecracker.faults import ApiFault
from ringzero.records import record

# The version of the API that is spoken; clients compare it.
API_VERSION = "1.16.0"
# The version of the files that snapshots are.
SNAPSHOT_VERSION = "1.0.0"
# A path's part that names a resource.
ID = "{id}"

_TOKENS = Body({"size": whole(64), "refill_time": whole(64)}, {"one_time_burst": whole(64)})
RATE_LIMITER = Body({}, {"bandwidth": _TOKENS, "ops": _TOKENS})
_HUGE_PAGES = one_of("None", "Transparent", "2M")
_TEMPLATES = one_of("C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None")
_MACHINE = {
    "vcpu_count": whole(8),
    "mem_size_mib": whole(64),
}
_MACHINE_OPTIONS = {
    "smt": flag,
    "cpu_template": _TEMPLATES,
    "track_dirty_pages": flag,
    "huge_pages": _HUGE_PAGES,
}
MACHINE = Body(_MACHINE, _MACHINE_OPTIONS)
MACHINE_UPDATE = Body({}, {**_MACHINE, **_MACHINE_OPTIONS})
BOOT_SOURCE = Body({"kernel_image_path": text}, {"initrd_path": text, "boot_args": text})
DRIVE = Body(
    {"drive_id": text, "is_root_device": flag},
    {
        "partuuid": text,
        "cache_type": one_of("Unsafe", "Writeback"),
        "is_read_only": flag,
        "path_on_host": text,
        "rate_limiter": RATE_LIMITER,
        "io_engine": one_of("Sync", "Async"),
        "socket": text,
    },
)
DRIVE_UPDATE = Body({"drive_id": text}, {"path_on_host": text, "rate_limiter": RATE_LIMITER})
_NET_LIMITS = {"rx_rate_limiter": RATE_LIMITER, "tx_rate_limiter": RATE_LIMITER}
NET = Body(
    {"iface_id": text, "host_dev_name": text},
    {"guest_mac": mac, "mtu": whole(16), **_NET_LIMITS},
)
NET_UPDATE = Body({"iface_id": text}, _NET_LIMITS)
VSOCK = Body({"guest_cid": whole(32), "uds_path": text}, {"vsock_id": text})
ENTROPY = Body({}, {"rate_limiter": RATE_LIMITER})
BALLOON = Body(
    {"amount_mib": whole(32), "deflate_on_oom": flag},
    {
        "stats_polling_interval_s": whole(16),
        "free_page_hinting": flag,
        "free_page_reporting": flag,
    },
)
BALLOON_UPDATE = Body({"amount_mib": whole(32)})
BALLOON_STATISTICS = Body({"stats_polling_interval_s": whole(16)})
HINTING = Body({}, {"acknowledge_on_stop": flag}, open=True)
PMEM = Body(
    {"id": text, "path_on_host": text},
    {"root_device": flag, "read_only": flag, "rate_limiter": RATE_LIMITER},
)
PMEM_UPDATE = Body({"id": text}, {"rate_limiter": RATE_LIMITER})
MEMORY_HOTPLUG = Body(
    {"total_size_mib": whole(32)}, {"block_size_mib": whole(32), "slot_size_mib": whole(32)}
)
MEMORY_UPDATE = Body({"requested_size_mib": whole(32)})
LOGGER = Body(
    {},
    {
        "log_path": text,
        "level": level,
        "show_level": flag,
        "show_log_origin": flag,
        "module": text,
    },
)
METRICS = Body({"metrics_path": text}, {"emit_id": flag, "properties": texts}, open=True)
SERIAL = Body({}, {"serial_out_path": text, "rate_limiter": _TOKENS})
MMDS_CONFIG = Body(
    {"network_interfaces": each(text)},
    {"version": one_of("V1", "V2"), "ipv4_address": ipv4, "imds_compat": flag},
)
ACTION = Body({"action_type": one_of("FlushMetrics", "InstanceStart", "SendCtrlAltDel")})
VM_STATE = Body({"state": one_of("Paused", "Resumed")})
SNAPSHOT_CREATE = Body(
    {"snapshot_path": text, "mem_file_path": text}, {"snapshot_type": one_of("Full", "Diff")}
)
SNAPSHOT_LOAD = Body(
    {"snapshot_path": text},
    {
        "mem_file_path": text,
        "mem_backend": Body({"backend_path": text, "backend_type": one_of("File", "Uffd")}),
        "enable_diff_snapshots": flag,
        "track_dirty_pages": flag,
        "resume_vm": flag,
        "network_overrides": each(Body({"iface_id": text, "host_dev_name": text}, open=True)),
        "vsock_override": Body({"uds_path": text}, open=True),
        "clock_realtime": flag,
        "huge_pages": one_of("Snapshot", "None", "Transparent", "2M"),
    },
)
CPU_CONFIG = Body(
    {},
    {
        "kvm_capabilities": each(text),
        "cpuid_modifiers": each(anything),
        "msr_modifiers": each(anything),
        "reg_modifiers": each(anything),
        "vcpu_features": each(anything),
    },
)


@record
class Operation:
    """One thing that can be asked.

    `name` is what `instance` calls it; `before` and `after` say whether it may be asked before the
    machine has started, and after. `body` None is none; `bare` says that one may be missing.
    `identifier` is the body's field that repeats the identifier in the path. `counter` is its name
    in the metrics.
    """

    method: str
    path: str
    name: str
    body: Body | None = None
    before: bool = False
    after: bool = False
    identifier: str = ""
    counter: str = ""
    bare: bool = False
    free: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The path between its slashes."""
        return tuple(part for part in self.path.split("/") if part)


def _get(path: str, name: str, *, after_only: bool = False, counter: str = "") -> Operation:
    return Operation("GET", path, name, before=not after_only, after=True, counter=counter)


def _early(path: str, name: str, body: Body, counter: str = "") -> Operation:
    return Operation("PUT", path, name, body, before=True, counter=counter)


def _late(path: str, name: str, body: Body | None, counter: str = "") -> Operation:
    return Operation("PATCH", path, name, body, after=True, counter=counter)


OPERATIONS = (
    _get("/", "instance_info", counter="instance_info"),
    _get("/version", "version", counter="vmm_version"),
    _get("/vm/config", "full_config"),
    _get("/machine-config", "machine_config", counter="machine_cfg"),
    _get("/balloon", "balloon"),
    _get("/balloon/statistics", "balloon_statistics", after_only=True),
    _get("/balloon/hinting/status", "hinting_status", after_only=True),
    _get("/mmds", "metadata", counter="mmds"),
    _get("/hotplug/memory", "memory_status", after_only=True, counter="hotplug_memory"),
    Operation("PUT", "/actions", "act", ACTION, before=True, after=True, counter="actions"),
    _early("/machine-config", "set_machine", MACHINE, "machine_cfg"),
    Operation(
        *("PATCH", "/machine-config", "update_machine", MACHINE_UPDATE),
        before=True,
        counter="machine_cfg",
    ),
    _early("/boot-source", "set_boot_source", BOOT_SOURCE, "boot_source"),
    _early("/cpu-config", "set_cpu", CPU_CONFIG, "cpu_cfg"),
    _early("/vsock", "set_vsock", VSOCK, "vsock"),
    _early("/entropy", "set_entropy", ENTROPY),
    _early("/balloon", "set_balloon", BALLOON),
    _early("/serial", "set_serial", SERIAL, "serial"),
    _early("/logger", "set_logger", LOGGER, "logger"),
    _early("/metrics", "set_metrics", METRICS, "metrics"),
    _early("/mmds/config", "set_metadata_config", MMDS_CONFIG, "mmds"),
    _early("/hotplug/memory", "set_memory_hotplug", MEMORY_HOTPLUG, "hotplug_memory"),
    _early("/snapshot/load", "load_snapshot", SNAPSHOT_LOAD),
    Operation(
        *("PUT", "/drives/{id}", "put_drive", DRIVE),
        before=True,
        after=True,
        identifier="drive_id",
        counter="drive",
    ),
    Operation(
        *("PUT", "/network-interfaces/{id}", "put_net", NET),
        before=True,
        after=True,
        identifier="iface_id",
        counter="network",
    ),
    Operation(
        *("PUT", "/pmem/{id}", "put_pmem", PMEM),
        before=True,
        after=True,
        identifier="id",
        counter="pmem",
    ),
    Operation(
        *("PUT", "/mmds", "put_metadata"), before=True, after=True, counter="mmds", free=True
    ),
    Operation("PUT", "/snapshot/create", "create_snapshot", SNAPSHOT_CREATE, after=True),
    Operation(
        *("PATCH", "/mmds", "patch_metadata"), before=True, after=True, counter="mmds", free=True
    ),
    _late("/vm", "set_state", VM_STATE),
    _late("/balloon", "update_balloon", BALLOON_UPDATE),
    _late("/balloon/statistics", "update_balloon_statistics", BALLOON_STATISTICS),
    Operation("PATCH", "/balloon/hinting/start", "start_hinting", HINTING, after=True, bare=True),
    Operation("PATCH", "/balloon/hinting/stop", "stop_hinting", HINTING, after=True, bare=True),
    _late("/hotplug/memory", "update_memory", MEMORY_UPDATE, "hotplug_memory"),
    Operation(
        *("PATCH", "/drives/{id}", "update_drive", DRIVE_UPDATE),
        after=True,
        identifier="drive_id",
        counter="drive",
    ),
    Operation(
        *("PATCH", "/network-interfaces/{id}", "update_net", NET_UPDATE),
        after=True,
        identifier="iface_id",
        counter="network",
    ),
    Operation(
        *("PATCH", "/pmem/{id}", "update_pmem", PMEM_UPDATE),
        after=True,
        identifier="id",
        counter="pmem",
    ),
    Operation("DELETE", "/drives/{id}", "unplug", after=True),
    Operation("DELETE", "/network-interfaces/{id}", "unplug", after=True),
    Operation("DELETE", "/pmem/{id}", "unplug", after=True),
)
_BY_START: dict[tuple[str, str], list[Operation]] = {}
for _one in OPERATIONS:
    _BY_START.setdefault((_one.method, _one.parts[0] if _one.parts else ""), []).append(_one)
_LETTERS = frozenset(string.ascii_letters + string.digits + "_")


def find(method: str, path: str, *, body: bool) -> tuple[Operation, str]:
    """Return what a request asks for, and the identifier in its path, "" where it has none.

    `body` says whether it has one. What stands behind a path is not looked at. Raises ApiFault.
    """
    parts = path.lstrip("/").split("/")
    if parts[-1] == "" and len(parts) > 1:
        parts.pop()
    start, rest = parts[0], parts[1:]
    if body and method in faults.WITH_BODY:
        raise ApiFault(faults.WITH_BODY[method])
    found = _BY_START.get((method, start), [])
    operation = _chosen(method, start, rest, found)
    if not body and method in faults.NO_BODY and (operation is None or not operation.bare):
        raise ApiFault(faults.NO_BODY[method])
    if operation is None:
        raise _none(method, start, rest, found)
    if ID not in operation.parts:
        return operation, ""
    return operation, _identifier(rest)


def _chosen(method: str, start: str, rest: list[str], found: list[Operation]) -> Operation | None:
    """Return the operation with the longest path that `rest` begins with."""
    best: Operation | None = None
    for operation in found:
        wanted = operation.parts[1:]
        fits = ID in wanted or tuple(rest[: len(wanted)]) == wanted
        if fits and (best is None or len(operation.parts) > len(best.parts)):
            best = operation
    # These have paths of their own below them, and no others.
    closed = (method, start) in (("GET", "balloon"), ("PUT", "mmds"))
    if best is not None and closed and len(rest) >= len(best.parts) and len(best.parts) == 1:
        return None
    if method == "PATCH" and start == "balloon" and rest[:1] == ["hinting"]:
        return best if best is not None and len(best.parts) == 3 else None
    return best


def _none(method: str, start: str, rest: list[str], found: list[Operation]) -> ApiFault:
    """Return the fault of a path that is none."""
    if found and start == "snapshot":
        if not rest:
            return ApiFault("Missing snapshot operation type.")
        return faults.invalid_path(method, f"/snapshot/{rest[0]}")
    if found and start in ("balloon", "mmds") and rest:
        below = f"/hinting/{'/'.join(rest[1:2])}" if rest[0] == "hinting" else rest[0]
        return ApiFault(f"Unrecognized {method} request path `{below}`.")
    return faults.invalid_path(method, start)


def _identifier(rest: list[str]) -> str:
    if not rest or not rest[0]:
        raise ApiFault(faults.EMPTY_ID)
    if not set(rest[0]) <= _LETTERS:
        raise ApiFault(faults.INVALID_ID)
    return rest[0]
