"""The software engine as the registry knows it."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import ENGINES, Availability, Engine, Interrupts, Usability
from ringzero.errors import EngineError
from ringzero.host.process import boot_id
from ringzero.host.progress import Steps
from ringzero.isa.contract import Architecture, Identification
from ringzero.settings import CACHE_DIR

# `auto` looks at every engine, and what translates code loads with the first machine.
if TYPE_CHECKING:
    from ringzero.engine.soft.contract import SoftVm


@ENGINES.register("soft")
class SoftEngine(Engine):
    """Translates guest code; needs nothing of the host but memory."""

    name = "soft"
    keeps_templates = True

    def prepare(self, steps: Steps, architecture: Architecture[Any], model: str) -> None:
        from ringzero.engine.soft import opened

        opened.prepared(steps, architecture.compiled_guest(model))

    def processor_bounds(self) -> Identification:
        from ringzero.isa.x86.architecture import HostProcessor

        return HostProcessor()

    def code_version(self) -> str:
        from ringzero.engine.soft import opened

        return opened.prepared().key

    def runs(self, architecture: Architecture[Any]) -> bool:
        from ringzero.engine.soft.contract import GUESTS

        return architecture.name in GUESTS

    @property
    def counter_hz(self) -> int:
        return host_tsc_hz()

    def availability(self) -> Availability:
        return Availability(Usability.USABLE, "software translation runs on every x86-64 host")

    def offers(self) -> dict[str, Any]:
        from ringzero.isa.exclusive import MAX_VCPUS
        from ringzero.isa.x86 import cpuid
        from ringzero.isa.x86.architecture import X86_64

        # No frequency: it is measured with compiled code, and this compiles none.
        host = self.processor_bounds().features
        features = sorted(cpuid.own_features(cpuid.MODELS[X86_64.default_model]))
        lacking = {
            name: lacks
            for name, model in cpuid.MODELS.items()
            if (lacks := cpuid.host_lacks(model, host))
        }
        return {
            "local_apics": False,
            "max_vcpus": MAX_VCPUS,
            "cpu_features": features,
            "host_lacks": lacking,
        }

    def create_vm(
        self,
        memory: GuestMemory,
        processors: Identification,
        *,
        interrupts: Interrupts = Interrupts.BOARD,
    ) -> SoftVm[Any]:
        from ringzero.engine.soft.contract import GUESTS

        if interrupts is Interrupts.ENGINE:
            raise EngineError("the software engine takes its interrupt controllers from the board")
        architecture = processors.architecture.name
        if architecture not in GUESTS:
            known = ", ".join(GUESTS.names())
            raise EngineError(
                f"the software engine runs no {architecture} guests", hint=f"it runs: {known}"
            )
        return GUESTS.get(architecture)(memory, processors, self.counter_hz)


@functools.cache
def host_tsc_hz() -> int:
    """Return the frequency of the host's TSC, measured once per boot of the host."""
    boot = boot_id()
    if not boot:
        # Nothing tells one boot from the next: what is in the cache may be another's.
        return _measure_tsc_hz()
    cache = CACHE_DIR.get() / f"tsc-{boot}"
    try:
        return int(cache.read_text())
    except (OSError, ValueError):
        measured = _measure_tsc_hz()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(str(measured))
    except OSError:
        pass  # a host without a writable cache measures at each start
    return measured


def _measure_tsc_hz() -> int:
    from ringzero.engine.soft.x86.native import native_engine

    # 50 ms against a clock of about 100 ns: an error of a few parts in a million.
    read = native_engine().read_host_tsc
    tsc, then = read(0), time.monotonic_ns()
    time.sleep(0.05)
    tsc, then = read(0) - tsc, time.monotonic_ns() - then
    # Frequencies are round numbers of kHz.
    return round(tsc * 1_000_000 / then) * 1000
