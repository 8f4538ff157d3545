"""One machine under KVM: memory slots, local APICs, doorbells, dirty pages, the clock."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import PAGE_SIZE, GuestMemory
from ringzero.engine.contract import Vm
from ringzero.engine.kvm.state import saved_msrs
from ringzero.engine.kvm.vcpu import KvmVcpu
from ringzero.errors import EngineError, StateError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.x86 import cpuid as x86_cpuid
from ringzero.isa.x86.cpuid import CpuidLeaf
from ringzero.isa.x86.state import MSR_APIC_BASE, MSR_TSC_DEADLINE, CpuState

# Needed once the guest runs, and loaded then.
if TYPE_CHECKING:
    from ringzero.engine.kvm.doorbell import Doorbells
    from ringzero.engine.kvm.messages import Messages
    from ringzero.engine.x86 import LocalApic

# Four pages below the firmware's that Intel CPUs without "unrestricted guest" need; on the
# usual boards nothing else lies there.
TSS_ADDRESS = 0xFFFBD000
IDENTITY_MAP_ADDRESS = 0xFFFBC000
IOAPIC_PINS = 24
MASK_64 = (1 << 64) - 1
# Registers that a board's own local APIC keeps.
APIC_MSRS = (MSR_APIC_BASE, MSR_TSC_DEADLINE)


def _check_dirty_ring(system: kvmfd.KvmSystem, entries: int) -> None:
    entry = ctypes.sizeof(kvm.DirtyGfn)
    least, most = mmap.PAGESIZE // entry, system.check(kvm.CAP_DIRTY_LOG_RING) // entry
    if entries & (entries - 1) or not least <= entries <= most:
        raise EngineError(
            f"a dirty ring of {entries} entries cannot be had",
            hint=f"give a power of two from {least} to {most}"
            if most
            else "this KVM has none: leave dirty_ring out",
        )


class KvmVm(Vm[CpuState]):
    """Implements the contract; made by `KvmEngine.create_vm`."""

    def __init__(
        self,
        system: kvmfd.KvmSystem,
        memory: GuestMemory,
        leaves: Iterable[CpuidLeaf],
        tsc_hz: int,
        apics: bool,
        dirty_ring: int = 0,
        new_vm: Callable[[], kvmfd.KvmFd] | None = None,
    ) -> None:
        if dirty_ring:
            _check_dirty_ring(system, dirty_ring)
        self.system = system
        self.memory = memory
        self.apics = apics
        self.xcrs = bool(system.check(kvm.CAP_XCRS))
        self.fd = (new_vm or system.create_vm)()
        self.msr_indices = saved_msrs(system.msr_indices())
        self._leaves = tuple(leaves)
        self._tsc_hz = tsc_hz
        self._tsc_origin = (0, 0)
        # Which vCPUs had the same counter when they were saved, and what offset each group has.
        self._tsc_groups: tuple[int, ...] = ()
        self._tsc_offsets: dict[int | None, list[int]] = {}
        self._vcpus: list[KvmVcpu] = []
        self._doorbells: Doorbells | None = None
        # Bells are added while the guest runs already, and may be while it is stopped.
        self._closing = threading.Lock()
        self._messages: Messages | None = None
        self.gathered: kvmfd.CoalescedPage | None = None
        self._gatherers: list[tuple[bool, int, int, Callable[[int, int, Sequence[int]], None]]] = []
        self._delivering = threading.Lock()
        self._closed = False
        self._tracking = False
        self.fd.call_wide(kvm.SET_TSS_ADDR, TSS_ADDRESS)
        self.fd.set(kvm.SET_IDENTITY_MAP_ADDR, ctypes.c_uint64(IDENTITY_MAP_ADDRESS))
        if apics:
            self._enable(kvm.CAP_SPLIT_IRQCHIP, IOAPIC_PINS)
            flags = kvm.X2APIC_API_USE_32BIT_IDS | kvm.X2APIC_API_DISABLE_BROADCAST_QUIRK
            self._enable(kvm.CAP_X2APIC_API, flags)
        self._divert_msrs()
        self._dirty_ring_size = dirty_ring * ctypes.sizeof(kvm.DirtyGfn)
        self._dirty_rings: list[kvmfd.DirtyRing] = []
        self._written: set[int] = set()
        self._collecting = threading.Lock()
        if dirty_ring:
            self._enable(kvm.CAP_DIRTY_LOG_RING, self._dirty_ring_size)
        self._map_memory()

    # ---- memory -----------------------------------------------------------

    def _map_memory(self) -> None:
        flags = kvm.MEM_LOG_DIRTY_PAGES if self._tracking else 0
        for slot, region in enumerate(self.memory.mapped):
            self.fd.set(
                kvm.SET_USER_MEMORY_REGION,
                kvm.UserspaceMemoryRegion(
                    slot=slot,
                    flags=flags,
                    guest_phys_addr=region.base,
                    memory_size=region.size,
                    userspace_addr=self.memory.host.address + region.offset,
                ),
            )

    def track_dirty(self, enabled: bool) -> None:
        self._tracking = enabled
        self._map_memory()

    def collect_dirty(self) -> None:
        """Take what the rings hold; where one is full, its vCPU cannot go on before."""
        regions = self.memory.mapped
        with self._collecting:
            for ring in self._dirty_rings:
                for slot, page in ring.collect():
                    self._written.add(regions[slot].base // PAGE_SIZE + page)
            self.fd.call(kvm.RESET_DIRTY_RINGS)

    def take_dirty(self) -> list[int]:
        if not self._tracking:
            raise EngineError("dirty pages were not being tracked")
        if self._dirty_ring_size:
            self.collect_dirty()
            found, self._written = sorted(self._written), set()
            return found
        pages: list[int] = []
        for slot, region in enumerate(self.memory.mapped):
            count = region.size // PAGE_SIZE
            # The kernel writes whole 64-bit words.
            bitmap = (ctypes.c_uint64 * ((count + 63) // 64))()
            self.fd.set(
                kvm.GET_DIRTY_LOG,
                kvm.DirtyLog(slot=slot, dirty_bitmap=ctypes.addressof(bitmap)),
            )
            first = region.base // PAGE_SIZE
            for number, word in enumerate(bitmap):
                while word:
                    lowest = word & -word
                    pages.append(first + 64 * number + lowest.bit_length() - 1)
                    word ^= lowest  # noqa: PLW2901 - takes the bits off one by one
        return pages

    # ---- capabilities -----------------------------------------------------

    def _enable(self, capability: int, argument: int) -> None:
        request = kvm.EnableCap(cap=capability)
        request.args[0] = argument
        self.fd.set(kvm.ENABLE_CAP, request)

    def _divert_msrs(self) -> None:
        """Let registers that KVM does not have come out of `run` instead of faulting."""
        if not self.system.check(kvm.CAP_X86_USER_SPACE_MSR):
            return
        reasons = kvm.MSR_EXIT_REASON_UNKNOWN
        if not self.apics and self.system.check(kvm.CAP_X86_MSR_FILTER):
            reasons |= kvm.MSR_EXIT_REASON_FILTER
            # One clear bit per range: a read or write of its base leaves the guest.
            closed = (ctypes.c_uint8 * 1)(0)
            rules = kvm.MsrFilter()
            for rule, index in zip(rules.ranges, APIC_MSRS, strict=False):
                rule.flags = kvm.MSR_FILTER_READ | kvm.MSR_FILTER_WRITE
                rule.nmsrs, rule.base = 1, index
                rule.bitmap = ctypes.addressof(closed)
            self.fd.set(kvm.X86_SET_MSR_FILTER, rules)
        self._enable(kvm.CAP_X86_USER_SPACE_MSR, reasons)

    # ---- vCPUs ------------------------------------------------------------

    def create_vcpu(self, index: int, interrupts: LocalInterrupts | None) -> KvmVcpu:
        if (interrupts is None) != self.apics:
            raise EngineError("local APICs are kept either by the kernel or by the board")
        # Boards of x86 give their vCPUs local APICs.
        vcpu = KvmVcpu(self, index, cast("LocalApic | None", interrupts))
        vcpu.set_cpuid(x86_cpuid.for_vcpu(self._leaves, index))
        self._vcpus.append(vcpu)
        self._open_ring(vcpu)
        if self._dirty_ring_size:
            self._dirty_rings.append(kvmfd.DirtyRing(vcpu.descriptor, self._dirty_ring_size))
        if index == 0:
            self.follow_tsc(vcpu)
        return vcpu

    @property
    def counter_hz(self) -> int:
        return self._tsc_hz

    def read_counter(self) -> int:
        # Without an ioctl on a vCPU, which would wait for it to leave the guest.
        tsc, then = self._tsc_origin
        return tsc + (time.monotonic_ns() - then) * self._tsc_hz // 1_000_000_000

    def follow_tsc(self, vcpu: KvmVcpu) -> None:
        """Let `read_counter` go on from what `vcpu` shows now."""
        self._tsc_origin = (vcpu.read_tsc(), time.monotonic_ns())

    def common_tsc_offset(self, index: int, wanted: int) -> int:
        """Return the offset of vCPU `index`: that of those with whom it shared one when saved.

        Where the state does not tell, what is less than a second apart was equal: the counters
        of several vCPUs were read one after the other.
        """
        wanted &= MASK_64
        told = index < len(self._tsc_groups)
        group = self._tsc_groups[index] if told else None
        shared = self._tsc_offsets.setdefault(group, [])
        for known in shared:
            apart = min((wanted - known) & MASK_64, (known - wanted) & MASK_64)
            if told or apart < self._tsc_hz:
                return known
        shared.append(wanted)
        return wanted

    # ---- interrupts and notifications -------------------------------------

    def send_message(self, address: int, data: int) -> bool:
        messages = self._messages or self._open_messages()
        return messages is not None and messages.send(address, data)

    def _open_messages(self) -> Messages | None:
        """Return what sends messages, made at the first one; None on a closed machine."""
        from ringzero.engine.kvm.messages import Messages

        with self._closing:
            if self._messages is None and not self._closed:
                irqfds = bool(self.system.check(kvm.CAP_IRQFD))
                self._messages = Messages(self.fd, IOAPIC_PINS, irqfds=irqfds)
            return self._messages

    def add_doorbell(self, address: int, width: int, value: int, ring: Callable[[], None]) -> bool:
        with self._closing:
            if self._closed:
                return False
            if self._doorbells is None:
                from ringzero.engine.kvm.doorbell import Doorbells

                self._doorbells = Doorbells(self.on_fault)
            request = kvm.Ioeventfd(
                datamatch=value,
                addr=address,
                len=width,
                fd=self._doorbells.add(ring),
                flags=kvm.IOEVENTFD_FLAG_DATAMATCH,
            )
            self.fd.set(kvm.IOEVENTFD, request)
        return True

    def gather_writes(
        self,
        port: bool,
        address: int,
        size: int,
        write: Callable[[int, int, Sequence[int]], None],
        *,
        prompt: bool = False,
        then: Callable[[], None] | None = None,
        changes: int | None = None,
        clears: int = 0,
        hold: Callable[[Callable[[int], None]], None] | None = None,
    ) -> bool:
        # A guest that goes on without exits keeps what was gathered for as long as it likes.
        if prompt or then is not None or clears:
            return False
        if not self.system.check(kvm.CAP_COALESCED_PIO if port else kvm.CAP_COALESCED_MMIO):
            return False
        zone = kvm.CoalescedZone(addr=address, size=size, pio=port)
        self.fd.set(kvm.REGISTER_COALESCED_MMIO, zone)
        self._gatherers.append((port, address, address + size, write))
        return True

    def _open_ring(self, vcpu: KvmVcpu) -> None:
        """Find the ring of gathered writes, which every vCPU's mapping shows."""
        offset = self.system.check(kvm.CAP_COALESCED_MMIO)
        if offset and self.gathered is None:
            self.gathered = kvmfd.CoalescedPage(vcpu.descriptor, offset)

    def deliver_gathered(self) -> None:
        """Pass on the gathered writes; returns when those before this moment have arrived."""
        ring = self.gathered
        if ring is None:
            return
        # Whoever comes second waits until the first has passed on what it took.
        with self._delivering:
            for port, address, width, value in ring.drain():
                for of_port, start, end, write in self._gatherers:
                    if of_port == port and start <= address < end:
                        write(address, width, (value,))

    def settle(self) -> None:
        self.deliver_gathered()
        if self._doorbells is not None:
            self._doorbells.settle()

    # ---- state and end ----------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Return the KVM clock in nanoseconds, and for each vCPU the first with the same TSC."""
        offsets = [vcpu.descriptor.get_tsc_offset() for vcpu in self._vcpus]
        return {
            "clock": self.fd.get(kvm.GET_CLOCK, kvm.ClockData).clock,
            "tsc_groups": [offsets.index(offset) for offset in offsets],
        }

    def restore(self, state: Any, elapsed: int = 0) -> None:
        """Set the KVM clock; None (the state of an engine that has none) leaves it."""
        if state is not None:
            clock = state.get("clock") if isinstance(state, dict) else None
            if not isinstance(clock, int) or not 0 <= clock < (1 << 63) - elapsed:
                raise StateError("the saved machine's KVM clock is no number of nanoseconds")
            self.fd.set(kvm.SET_CLOCK, kvm.ClockData(clock=clock + elapsed))
        # The vCPUs are given their states next; they agree on a new offset.
        self._tsc_offsets.clear()
        # States of earlier versions do not tell.
        groups = state.get("tsc_groups", []) if state is not None else []
        if not isinstance(groups, list) or not all(type(group) is int for group in groups):
            raise StateError("the saved machine's groups of time-stamp counters are no numbers")
        self._tsc_groups = tuple(groups)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._doorbells is not None:
            self._doorbells.close()
        if self._messages is not None:
            self._messages.close()
        # It looks at a vCPU's mapping.
        self.gathered = None
        for vcpu in self._vcpus:
            vcpu.close()
        self.fd.close()
