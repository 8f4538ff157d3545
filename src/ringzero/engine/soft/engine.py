"""The software engine as the registry knows it."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path

from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import ENGINES, Availability, Engine, Usability, Vm
from ringzero.engine.soft.native import native_engine
from ringzero.engine.soft.vm import SoftVm
from ringzero.isa.x86.cpuid import CpuidLeaf
from ringzero.settings import CACHE_DIR


@ENGINES.register("soft")
class SoftEngine(Engine):
    """Translates guest code; needs nothing of the host but memory."""

    name = "soft"

    @property
    def tsc_hz(self) -> int:
        return host_tsc_hz()

    def availability(self) -> Availability:
        return Availability(Usability.USABLE, "software translation runs on every x86-64 host")

    def create_vm(
        self, memory: GuestMemory, cpuid: Iterable[CpuidLeaf], *, apics: bool = False
    ) -> Vm:
        return SoftVm(native_engine(), memory, cpuid, self.tsc_hz)


@functools.cache
def host_tsc_hz() -> int:
    """Return the frequency of the host's TSC, measured once per boot of the host."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
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
    # 50 ms against a clock of about 100 ns: an error of a few parts in a million.
    read = native_engine().read_host_tsc
    tsc, then = read(0), time.monotonic_ns()
    time.sleep(0.05)
    tsc, then = read(0) - tsc, time.monotonic_ns() - then
    # Frequencies are round numbers of kHz.
    return round(tsc * 1_000_000 / then) * 1000
