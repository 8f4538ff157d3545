"""Whether this host has a KVM that can be used, and the way to make machines with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from ringzero.core.memory import GuestMemory
from ringzero.digest import blake2b
from ringzero.engine.contract import ENGINES, Availability, Engine, Interrupts, Usability
from ringzero.engine.kvm.vm import KvmVm
from ringzero.errors import EngineError, EngineUnavailableError, RingzeroError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.contract import Architecture, Identification
from ringzero.isa.x86.architecture import X86_64, CpuidTable
from ringzero.isa.x86.cpuid import CpuidLeaf

HINT = "--engine soft needs no KVM"


@ENGINES.register("kvm")
class KvmEngine(Engine):
    """Guests run by the host's CPU. Making one opens nothing; `availability` measures.

    Pages that guests write are noted in a bitmap of all their memory, or, with
    `dirty_ring`, in rings of that many entries (a power of two) for each vCPU:
    what they cost grows with what was written, and not with the memory.
    """

    name = "kvm"
    interrupts = (Interrupts.ENGINE, Interrupts.BOARD)
    likes_large_pages = True
    keeps_templates = True
    rank = 10
    device = Path(kvm.DEVICE)

    def __init__(self, *, dirty_ring: int = 0) -> None:
        self._dirty_ring = dirty_ring
        self._system: kvmfd.KvmSystem | None = None
        self._tsc_hz: int | None = None
        # A VM that was made to be asked, and is the next machine's; making one takes the kernel
        # half a millisecond, and taking it down as long again. A list, for its atomic `pop`.
        self._spare: list[kvmfd.KvmFd] = []

    @property
    def system(self) -> kvmfd.KvmSystem:
        """/dev/kvm, opened and checked; raises EngineUnavailableError."""
        if self._system is None:
            self._system = open_system()
        return self._system

    def runs(self, architecture: Architecture[Any]) -> bool:
        return architecture is X86_64

    @property
    def counter_hz(self) -> int:
        if self._tsc_hz is None:
            vm = self.system.create_vm()
            try:
                self._tsc_hz = vm.call(kvm.GET_TSC_KHZ) * 1000
            except OSError:
                # Before Linux 5.18 only vCPUs say it.
                vcpu = kvmfd.KvmVcpuFd(self.system, vm, 0)
                self._tsc_hz = vcpu.call(kvm.GET_TSC_KHZ) * 1000
                vcpu.close()
                vm.close()
            else:
                self._spare.append(vm)
        return self._tsc_hz

    def _new_vm(self) -> kvmfd.KvmFd:
        try:
            return self._spare.pop()
        except IndexError:
            return self.system.create_vm()

    def code_version(self) -> str:
        """Return what tells hosts' processors apart, and what their KVMs keep of them.

        A guest has patched itself for what it has found at its boot. Of CPUID's leaves only that
        which does not name the CPU that happens to answer.
        """
        from ringzero.isa.x86 import cpuid

        bounds = self.processor_bounds()
        signatures = [leaf.eax for leaf in bounds.leaves if leaf.function in (0, 1)]
        vendor = cpuid.vendor_of(bounds.leaves)
        kept = [vendor, *signatures, *sorted(bounds.features), *self.system.msr_indices()]
        return blake2b(repr(kept).encode(), digest_size=16).hexdigest()

    def processor_bounds(self) -> CpuidTable:
        return CpuidTable(
            tuple(
                CpuidLeaf(
                    entry.function,
                    entry.index if entry.flags & kvm.CPUID_FLAG_SIGNIFCANT_INDEX else None,
                    entry.eax,
                    entry.ebx,
                    entry.ecx,
                    entry.edx,
                )
                for entry in self.system.supported_cpuid()
            )
        )

    def availability(self) -> Availability:
        from ringzero.engine.kvm.probe import USEFUL_MIPS, measure_mips

        try:
            mips = measure_mips(self.system)
        except RingzeroError as fault:
            return Availability(Usability.UNUSABLE, fault.message)
        if mips < USEFUL_MIPS:
            return Availability(
                Usability.SLOW,
                f"/dev/kvm runs kernel code at only {mips:.1f} million instructions a second",
            )
        return Availability(
            Usability.USABLE, f"kernel code runs at {mips:.0f} million instructions a second"
        )

    def offers(self) -> dict[str, Any]:
        from ringzero.isa.x86 import cpuid

        system, bounds = self.system, self.processor_bounds()
        return {
            "local_apics": True,
            "tsc_hz": self.counter_hz,
            "vendor": cpuid.vendor_of(bounds.leaves),
            "cpu_features": sorted(bounds.features),
            "missing_features": {
                # Those with a vendor of their own have the features of the one without.
                name: cpuid.missing_features(name, bounds.leaves)
                for name, model in cpuid.MODELS.items()
                if model.vendor is None
            },
            "api_version": system.api_version(),
            "max_vcpus": system.check(kvm.CAP_MAX_VCPUS),
            "memory_slots": system.check(kvm.CAP_NR_MEMSLOTS),
            "gathered_writes": bool(system.check(kvm.CAP_COALESCED_PIO)),
            "dirty_ring": bool(system.check(kvm.CAP_DIRTY_LOG_RING)),
            "msr_exits": bool(system.check(kvm.CAP_X86_USER_SPACE_MSR)),
        }

    def create_vm(
        self,
        memory: GuestMemory,
        processors: Identification,
        *,
        interrupts: Interrupts = Interrupts.BOARD,
    ) -> KvmVm:
        if not isinstance(processors, CpuidTable):
            raise EngineError(
                f"KVM runs {X86_64.name} guests here, not {processors.architecture.name}",
                hint=HINT,
            )
        return KvmVm(
            self.system,
            memory,
            processors.leaves,
            self.counter_hz,
            interrupts is Interrupts.ENGINE,
            self._dirty_ring,
            self._new_vm,
        )


def open_system(path: str = kvm.DEVICE) -> kvmfd.KvmSystem:
    """Open and check /dev/kvm; raises EngineUnavailableError with the reason and a way out."""
    try:
        system = kvmfd.KvmSystem(path)
    except OSError as cause:
        raise EngineUnavailableError(_why_closed(path, cause), hint=HINT, path=path) from cause
    try:
        version = system.api_version()
        missing = [name for number, name in kvm.REQUIRED_CAPS.items() if not system.check(number)]
    except OSError as cause:
        system.close()
        raise EngineUnavailableError(
            f"{path} is not KVM: {cause.strerror}", hint=HINT, path=path
        ) from cause
    if version != kvm.API_VERSION or missing:
        system.close()
        lacks = ", ".join(missing) or f"API version {kvm.API_VERSION}, it has {version}"
        raise EngineUnavailableError(f"this kernel's KVM lacks {lacks}", hint=HINT, path=path)
    return system


def _why_closed(path: str, cause: OSError) -> str:
    """Say in one sentence which permission or part is missing."""
    if cause.errno == errno.ENOENT:
        return f"there is no {path}: no KVM in this kernel, or not given to this container"
    if cause.errno in (errno.EACCES, errno.EPERM):
        return f"{path} may be opened only by {_who_may(path)}"
    if cause.errno in (errno.ENODEV, errno.ENXIO):
        return f"{path} leads to no driver: virtualization is off in the firmware or nested off"
    return f"{path} does not open: {cause.strerror}"


def _who_may(path: str) -> str:
    info = Path(path).stat()
    if not info.st_mode & 0o060:
        return "root (chmod 660 and a group would change that)"
    try:
        import grp

        group = grp.getgrgid(info.st_gid).gr_name
    except (KeyError, ImportError):
        group = str(info.st_gid)
    user = os.environ.get("USER", "you")
    return f"members of group {group!r} (sudo usermod -aG {group} {user}, then log in again)"
