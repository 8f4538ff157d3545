"""What `ringzero info` says of the engines on this host, as plain data."""

from __future__ import annotations

from typing import Any

from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Engine, Usability
from ringzero.errors import RingzeroError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.x86 import cpuid


def engines() -> dict[str, dict[str, Any]]:
    """Return per engine: usability, reason, and what it offers; never raises for a host's sake."""
    return {name: _describe(name) for name in ENGINES.names()}


def chosen() -> str:
    """Return the line that says what `auto` takes here and why."""
    try:
        return select.choose_auto()[1]
    except RingzeroError as fault:
        return f"no engine: {fault.message}"


def _describe(name: str) -> dict[str, Any]:
    try:
        engine = ENGINES.get(name)()
        found = select.judge(engine)
        described: dict[str, Any] = {"usability": found.usability.value, "reason": found.reason}
        if found.usability is not Usability.UNUSABLE:
            described.update(_offers(engine))
    except RingzeroError as fault:
        return {"usability": Usability.UNUSABLE.value, "reason": fault.message}
    return described


def _offers(engine: Engine) -> dict[str, Any]:
    offers: dict[str, Any] = {"local_apics": engine.keeps_apics}
    if engine.keeps_apics:
        # The software engine measures the frequency with compiled code; info compiles none.
        offers["tsc_hz"] = engine.tsc_hz
    bounds = engine.supported_cpuid()
    if bounds is not None:
        offers["vendor"] = cpuid.vendor_of(bounds)
        offers["cpu_features"] = sorted(cpuid.features_of(bounds))
        offers["missing_features"] = {
            # Those with a vendor of their own have the features of the one without.
            name: cpuid.missing_features(name, bounds)
            for name, model in cpuid.MODELS.items()
            if model.vendor is None
        }
    else:
        offers["max_vcpus"] = 1
        offers["cpu_features"] = sorted(cpuid.MODELS["x86-64-v2"].features)
    system = getattr(engine, "system", None)
    if isinstance(system, kvmfd.KvmSystem):
        offers["api_version"] = system.api_version()
        offers["max_vcpus"] = system.check(kvm.CAP_MAX_VCPUS)
        offers["memory_slots"] = system.check(kvm.CAP_NR_MEMSLOTS)
        offers["gathered_writes"] = bool(system.check(kvm.CAP_COALESCED_PIO))
        offers["dirty_ring"] = bool(system.check(kvm.CAP_DIRTY_LOG_RING))
        offers["msr_exits"] = bool(system.check(kvm.CAP_X86_USER_SPACE_MSR))
    return offers
