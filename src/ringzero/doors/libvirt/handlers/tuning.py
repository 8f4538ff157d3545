"""How a domain is tuned: as the host's scheduler has it. Asked for it is told; set it is not."""

from __future__ import annotations

from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.handlers.domain import facts, find, find_active
from ringzero.doors.libvirt.values import DomainHandle, Parameter

# What virsh shows as "unlimited" (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED), in KiB.
_UNLIMITED = 9_007_199_254_740_991
_MEMORY = ("hard_limit", "soft_limit", "swap_hard_limit")
# A machine's threads are as any other's of the host: 1024 shares are what a cgroup begins with.
_SCHEDULER, _SHARES = "posix", Parameter.of("cpu_shares", 1024)
_EVERYWHERE = b"\xff"


@handles("DOMAIN_GET_MEMORY_PARAMETERS")
async def memory_parameters(
    context: Context, domain: DomainHandle, nparams: int, flags: int
) -> Results:
    await find(context, domain)
    # A client asks twice: how many there are, and for so many.
    told = [Parameter.of(name, _UNLIMITED) for name in _MEMORY[: max(0, nparams)]]
    return {"params": told, "nparams": len(told) if nparams else len(_MEMORY)}


@handles("DOMAIN_GET_BLKIO_PARAMETERS", "DOMAIN_GET_NUMA_PARAMETERS")
async def no_parameters(
    context: Context, domain: DomainHandle, nparams: int, flags: int
) -> Results:
    await find(context, domain)
    return {"params": [], "nparams": 0}


@handles("DOMAIN_GET_BLOCK_IO_TUNE")
async def block_io_tune(
    context: Context, domain: DomainHandle, disk: str | None, nparams: int, flags: int
) -> Results:
    return await no_parameters(context, domain, nparams, flags)


@handles("DOMAIN_GET_INTERFACE_PARAMETERS")
async def interface_parameters(
    context: Context, domain: DomainHandle, device: str, nparams: int, flags: int
) -> Results:
    return await no_parameters(context, domain, nparams, flags)


@handles("DOMAIN_GET_SCHEDULER_TYPE")
async def scheduler_type(context: Context, domain: DomainHandle) -> Results:
    await find(context, domain)
    return {"type": _SCHEDULER, "nparams": 1}


@handles("DOMAIN_GET_SCHEDULER_PARAMETERS")
async def scheduler_parameters(context: Context, domain: DomainHandle, nparams: int) -> Results:
    return await scheduler_parameters_flags(context, domain, nparams, 0)


@handles("DOMAIN_GET_SCHEDULER_PARAMETERS_FLAGS")
async def scheduler_parameters_flags(
    context: Context, domain: DomainHandle, nparams: int, flags: int
) -> Results:
    await find(context, domain)
    return {"params": [_SHARES][: max(0, nparams)]}


@handles("DOMAIN_GET_PERF_EVENTS")
async def perf_events(context: Context, domain: DomainHandle, flags: int) -> Results:
    await find(context, domain)
    return {"params": []}


@handles("DOMAIN_GET_IOTHREAD_INFO")
async def iothread_info(context: Context, domain: DomainHandle, flags: int) -> Results:
    await find(context, domain)
    return {"info": [], "ret": 0}


@handles("DOMAIN_GET_VCPU_PIN_INFO")
async def vcpu_pin_info(
    context: Context, domain: DomainHandle, ncpumaps: int, maplen: int, flags: int
) -> Results:
    _, summary = await facts(context, domain)
    count = min(int(summary["config"].get("cpus", 1)), max(0, ncpumaps))
    return {"cpumaps": _EVERYWHERE * max(0, maplen) * count, "num": count}


@handles("DOMAIN_GET_EMULATOR_PIN_INFO")
async def emulator_pin_info(
    context: Context, domain: DomainHandle, maplen: int, flags: int
) -> Results:
    await find(context, domain)
    return {"cpumaps": _EVERYWHERE * max(0, maplen), "ret": 1}


@handles("DOMAIN_GET_CONTROL_INFO")
async def control_info(context: Context, domain: DomainHandle, flags: int) -> Results:
    await find_active(context, domain)
    # VIR_DOMAIN_CONTROL_OK.
    return {"state": 0, "details": 0, "state_time": 0}


@handles("DOMAIN_GET_DISK_ERRORS")
async def disk_errors(context: Context, domain: DomainHandle, most: int, flags: int) -> Results:
    await find_active(context, domain)
    return {"errors": [], "nerrors": 0}


@handles("DOMAIN_GET_JOB_STATS")
async def job_stats(context: Context, domain: DomainHandle, flags: int) -> Results:
    await find(context, domain)
    # VIR_DOMAIN_JOB_NONE.
    return {"type": 0, "params": []}


@handles("DOMAIN_ABORT_JOB")
async def abort_job(context: Context, domain: DomainHandle) -> Results:
    await find(context, domain)
    text = "Requested operation is not valid: no job is active on the domain"
    raise RefusedError(ErrorCode.OPERATION_INVALID, text)


@handles("DOMAIN_ABORT_JOB_FLAGS")
async def abort_job_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    return await abort_job(context, domain)


@handles("DOMAIN_GET_BLOCK_JOB_INFO")
async def block_job_info(context: Context, domain: DomainHandle, path: str, flags: int) -> Results:
    await find(context, domain)
    return {"found": 0, "type": 0, "bandwidth": 0, "cur": 0, "end": 0}
