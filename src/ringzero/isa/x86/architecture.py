"""x86-64 as a value: what engines, boards and `ringzero.vm` take from this ISA."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ringzero.core.memory import GuestMemory
from ringzero.errors import EngineError
from ringzero.isa.contract import (
    Architecture,
    DebugTarget,
    Identification,
    ProcessorModel,
    check_width,
)
from ringzero.isa.x86 import cpuid
from ringzero.isa.x86.cpuid import CpuidLeaf
from ringzero.isa.x86.state import (
    GPR_NAMES,
    MP_RUNNABLE,
    MP_UNINITIALIZED,
    CpuState,
    Segment,
)
from ringzero.records import record, replace

MASK_64 = (1 << 64) - 1
# The guest of compiled engines that has what CPU models have beyond x86-64-v2.
EXTENDED_GUEST = "x86_64_extended"
# Registers of CpuState that are plain numbers.
_CONTROL_NAMES = tuple(
    name for name, kind in CpuState.__annotations__.items() if kind == "int" and name != "tsc"
)


@record
class CpuidTable(Identification):
    """The leaves of CPUID that a machine's guest sees, or that an engine can give."""

    leaves: tuple[CpuidLeaf, ...]

    @property
    def architecture(self) -> X86:
        return X86_64

    @functools.cached_property
    def features(self) -> frozenset[str]:
        return cpuid.features_of(self.leaves)


@record
class HostProcessor(Identification):
    """What the host's processor has, for an engine that takes the host's own instructions."""

    @property
    def architecture(self) -> X86:
        return X86_64

    @property
    def features(self) -> frozenset[str]:
        from ringzero.host.processor import host_features

        return host_features()


@functools.lru_cache(maxsize=8)
def _identify(model: str, cpus: int, counter_hz: int, bounds: Identification | None) -> CpuidTable:
    """Return the table of a kind of machine; copies of one ask for the same again and again."""
    leaves = bounds.leaves if isinstance(bounds, CpuidTable) else None
    known = cpuid.MODELS.get(model)
    # Looked up where it matters: most machines have the default model.
    asks = known is not None and cpuid.needs_extensions(known.features)
    host = bounds.features if asks and isinstance(bounds, HostProcessor) else None
    found = cpuid.build(model, vcpus=cpus, tsc_hz=counter_hz, supported=leaves, host=host)
    return CpuidTable(found)


class X86(Architecture[CpuState]):
    """Implements the contract; `X86_64` is the only one."""

    name = "x86_64"
    state_type = CpuState
    # The fastest that every host can carry.
    default_model = "x86-64-v2"
    registers = (*GPR_NAMES, *_CONTROL_NAMES)

    def identify(
        self, model: str, *, cpus: int, counter_hz: int, bounds: Identification | None
    ) -> CpuidTable:
        return _identify(model, cpus, counter_hz, bounds)

    def models(self) -> Sequence[ProcessorModel]:
        host = HostProcessor().features
        found = [ProcessorModel(cpuid.HOST, cpuid.SUMMARIES[cpuid.HOST], translated=False)]
        for name, model in reversed(cpuid.MODELS.items()):
            asks, lacks = cpuid.host_needs(model), cpuid.host_lacks(model, host)
            found.append(
                ProcessorModel(
                    *(name, cpuid.SUMMARIES[name], tuple(asks), tuple(lacks)),
                    partial=name == cpuid.MAX,
                )
            )
        return found[::-1]

    def compiled_guest(self, model: str) -> str:
        known = cpuid.MODELS.get(model)
        extended = known is not None and cpuid.needs_extensions(known.features)
        return EXTENDED_GUEST if extended else self.name

    def read_register(self, state: CpuState, name: str) -> int:
        if name in GPR_NAMES:
            return state.gpr[GPR_NAMES.index(name)]
        if name in _CONTROL_NAMES:
            return int(getattr(state, name))
        raise KeyError(name)

    def write_register(self, state: CpuState, name: str, value: int) -> CpuState:
        if name not in self.registers:
            raise KeyError(name)
        check_width(name, value, 64)
        if name in GPR_NAMES:
            return state.with_gpr(**{name: value})
        return replace(state, **{name: value})

    def advance(self, state: CpuState, ticks: int) -> CpuState:
        return replace(state, tsc=state.tsc + ticks & MASK_64)

    def describe(self, state: CpuState, memory: GuestMemory) -> str:
        from ringzero.isa.x86.shutdown import describe

        return describe(state, memory)

    def debug_target(self) -> DebugTarget[CpuState]:
        from ringzero.isa.x86.debugtarget import TARGET

        return TARGET

    def is_offline(self, state: CpuState) -> bool:
        return state.mp_state == MP_UNINITIALIZED

    def with_offline(self, state: CpuState, offline: bool) -> CpuState:
        return replace(state, mp_state=MP_UNINITIALIZED if offline else MP_RUNNABLE)

    def started(self, before: CpuState, entry: int, context: int) -> CpuState:
        # A processor's time-stamp counter goes on across INIT (SDM vol. 3B, 18.17).
        return replace(startup_state(entry), tsc=before.tsc)


def startup_state(vector: int) -> CpuState:
    """Return the state in which a STARTUP message lets a processor begin (SDM vol. 3A, 9.4.4).

    Raises EngineError for a vector that does not name a page below 1 MiB.
    """
    if not 0 <= vector <= 0xFF:
        raise EngineError(f"a STARTUP vector is a page below 1 MiB, not {vector:#x}")
    reset = CpuState()
    code = Segment(vector << 8, vector << 12, 0xFFFF, reset.cs.attributes)
    return replace(reset, cs=code, rip=0)


X86_64 = X86()
