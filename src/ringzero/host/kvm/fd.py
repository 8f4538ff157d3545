"""File descriptors of Linux KVM, with the calls that need more than a number and a structure.

The structures and numbers are in `ringzero.host.kvm.abi`. Nothing here knows what a machine is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from ctypes import LittleEndianStructure as Struct
from ctypes import c_uint64
from typing import Any

from ringzero.errors import HostError
from ringzero.host.kvm import abi as kvm


class KvmFd:
    """A file descriptor that takes KVM ioctls; closing it is the owner's task."""

    def __init__(self, fd: int, what: str) -> None:
        self.fd = fd
        self.what = what

    def call(self, number: int, argument: int = 0) -> int:
        """Issue an ioctl whose argument is a number; OSError is passed on."""
        return fcntl.ioctl(self.fd, number, argument)

    def call_wide(self, number: int, argument: int) -> None:
        """Issue an ioctl whose number needs 32 bits or more; raises HostError."""
        # fcntl.ioctl takes signed 32-bit numbers only.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ioctl(self.fd, ctypes.c_ulong(number), ctypes.c_ulong(argument)) < 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(f"KVM refused ioctl {number & 0xFF:#x} on the {self.what}: {reason}")

    def pass_struct(self, number: int, argument: Any) -> int:
        """Issue an ioctl on a structure, which the kernel may change; OSError is passed on."""
        return int(fcntl.ioctl(self.fd, number, argument, True))

    def get(self, number: int, kind: type[Struct]) -> Any:
        """Return the structure of `kind` that the kernel fills in; raises HostError."""
        value = kind()
        self.set(number, value)
        return value

    def set(self, number: int, value: Any) -> int:
        """Hand `value` to the kernel; raises HostError."""
        try:
            return int(fcntl.ioctl(self.fd, number, value, True))
        except OSError as cause:
            raise HostError(
                f"KVM refused ioctl {number & 0xFF:#x} on the {self.what}: {cause.strerror}",
                ioctl=hex(number),
                structure=type(value).__name__,
            ) from cause

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class KvmSystem(KvmFd):
    """/dev/kvm itself. Opening raises OSError as the system gave it."""

    def __init__(self, path: str = kvm.DEVICE) -> None:
        super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)

    def api_version(self) -> int:
        return self.call(kvm.GET_API_VERSION)

    def check(self, capability: int) -> int:
        """Return what KVM_CHECK_EXTENSION says: 0 for absent, else a value per capability."""
        return self.call(kvm.CHECK_EXTENSION, capability)

    def supported_cpuid(self) -> list[kvm.CpuidEntry]:
        """Return every CPUID entry that this KVM can give to a guest; raises HostError."""
        # 100 entries are usual; the kernel says E2BIG when there are more.
        for count in (128, 512, 2048):
            table = kvm.array_of(kvm.CpuidHeader, kvm.CpuidEntry, count)
            table.header.nent = count
            try:
                self.pass_struct(kvm.GET_SUPPORTED_CPUID, table)
            except OSError as cause:
                if cause.errno == errno.E2BIG:
                    continue
                raise HostError(f"KVM gives no CPUID table: {cause.strerror}") from cause
            return list(table.entries[: table.header.nent])
        raise HostError("KVM's CPUID table has more than 2048 entries")

    def msr_indices(self) -> list[int]:
        """Return the MSRs whose values make up a vCPU's state; raises HostError."""
        table = kvm.array_of(kvm.MsrListHeader, kvm.Interrupt, 1024)
        table.header.nmsrs = 1024
        self.set(kvm.GET_MSR_INDEX_LIST, table)
        return [entry.irq for entry in table.entries[: table.header.nmsrs]]

    def create_vm(self) -> KvmFd:
        """Return a new VM's descriptor; raises HostError."""
        # KVM_CREATE_VM is interruptible by signals while it allocates (EINTR), seen under load.
        for _ in range(16):
            try:
                return KvmFd(self.call(kvm.CREATE_VM), "VM")
            except InterruptedError:
                continue
            except OSError as cause:
                raise HostError(f"KVM makes no VM: {cause.strerror}") from cause
        raise HostError("KVM makes no VM: interrupted by signals again and again")


class KvmVcpuFd(KvmFd):
    """A vCPU's descriptor with its mapped `kvm_run`; raises HostError when the kernel refuses."""

    def __init__(self, system: KvmSystem, vm: KvmFd, index: int) -> None:
        try:
            super().__init__(vm.call(kvm.CREATE_VCPU, index), f"vCPU {index}")
            self._map = mmap.mmap(self.fd, system.call(kvm.GET_VCPU_MMAP_SIZE))
        except OSError as cause:
            raise HostError(f"KVM makes no vCPU {index}: {cause.strerror}") from cause
        self.run = kvm.Run.from_buffer(self._map)
        self.data = memoryview(self._map)

    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        """Return the values of `indices` as far as the vCPU has those MSRs."""
        values: dict[int, int] = {}
        rest = list(indices)
        while rest:
            table = kvm.array_of(kvm.MsrsHeader, kvm.MsrEntry, len(rest))
            table.header.nmsrs = len(rest)
            for entry, index in zip(table.entries, rest, strict=True):
                entry.index = index
            done = self.set(kvm.GET_MSRS, table)
            values.update((entry.index, entry.data) for entry in table.entries[:done])
            # The kernel stops at the first one that it refuses.
            rest = rest[done + 1 :]
        return values

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        """Set MSRs in order and return the indices that the kernel refused."""
        refused: list[int] = []
        rest = list(values.items())
        while rest:
            table = kvm.array_of(kvm.MsrsHeader, kvm.MsrEntry, len(rest))
            table.header.nmsrs = len(rest)
            for entry, (index, value) in zip(table.entries, rest, strict=True):
                entry.index, entry.data = index, value
            done = self.set(kvm.SET_MSRS, table)
            refused.extend(index for index, _ in rest[done : done + 1])
            rest = rest[done + 1 :]
        return refused

    def get_tsc_offset(self) -> int | None:
        """Return what is added to the host's TSC, modulo 2^64; None where KVM cannot say."""
        value = c_uint64()
        try:
            self.pass_struct(kvm.GET_DEVICE_ATTR, _tsc_offset(value))
        except OSError:
            return None
        return value.value

    def set_tsc_offset(self, offset: int) -> None:
        """Set what is added to the host's TSC, modulo 2^64; raises HostError."""
        value = c_uint64(offset)
        self.set(kvm.SET_DEVICE_ATTR, _tsc_offset(value))

    def set_signal_mask(self, blocked: set[int]) -> None:
        """Block exactly these signals while in KVM_RUN; any other ends it with EINTR."""
        bits = sum(1 << number - 1 for number in blocked)
        mask = kvm.SignalMask(len=8)
        mask.sigset[:] = bits.to_bytes(8, "little")
        self.set(kvm.SET_SIGNAL_MASK, mask)


def _tsc_offset(value: c_uint64) -> kvm.DeviceAttr:
    return kvm.DeviceAttr(
        group=kvm.VCPU_TSC_CTRL, attr=kvm.VCPU_TSC_OFFSET, addr=ctypes.addressof(value)
    )


class DirtyRing:
    """A vCPU's ring of the pages that it wrote, `size` bytes long (api.rst, 8.29)."""

    def __init__(self, vcpu: KvmVcpuFd, size: int) -> None:
        try:
            self._map = mmap.mmap(vcpu.fd, size, offset=kvm.DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE)
        except OSError as cause:
            raise HostError(f"KVM gives no dirty ring: {cause.strerror}") from cause
        count = size // ctypes.sizeof(kvm.DirtyGfn)
        self._entries = (kvm.DirtyGfn * count).from_buffer(self._map)
        self._next = 0

    def collect(self) -> list[tuple[int, int]]:
        """Return (slot, page in the slot) of the pages written; RESET_DIRTY_RINGS then."""
        found = []
        while (entry := self._entries[self._next]).flags & kvm.DIRTY_GFN_F_DIRTY:
            found.append((entry.slot & 0xFFFF, entry.offset))
            entry.flags = kvm.DIRTY_GFN_F_RESET
            self._next = (self._next + 1) % len(self._entries)
        return found


class CoalescedPage:
    """The ring of writes that KVM gathered instead of exiting, seen through a vCPU's mapping.

    `offset_pages` is what KVM_CHECK_EXTENSION(KVM_CAP_COALESCED_MMIO) said.
    """

    def __init__(self, vcpu: KvmVcpuFd, offset_pages: int) -> None:
        start = offset_pages * mmap.PAGESIZE
        page = vcpu.data[start : start + mmap.PAGESIZE]
        count = (mmap.PAGESIZE - ctypes.sizeof(kvm.CoalescedRing)) // ctypes.sizeof(
            kvm.CoalescedEntry
        )
        self._ring = kvm.CoalescedRing.from_buffer(page)
        # `first` and `last` once more: looked at after every exit, and quicker so.
        self._ends = page[: ctypes.sizeof(kvm.CoalescedRing)].cast("I")
        self._entries = (kvm.CoalescedEntry * count).from_buffer(
            page, ctypes.sizeof(kvm.CoalescedRing)
        )

    def waiting(self) -> bool:
        """Return whether there are gathered writes."""
        first, last = self._ends
        return first != last

    def drain(self) -> list[tuple[bool, int, int, int]]:
        """Take the gathered writes: (is it a port, address, width, value), oldest first."""
        writes = []
        while (first := self._ring.first) != self._ring.last:
            entry = self._entries[first % len(self._entries)]
            value = int.from_bytes(bytes(entry.data[: entry.len]), "little")
            writes.append((bool(entry.pio), entry.phys_addr, entry.len, value))
            self._ring.first = (first + 1) % len(self._entries)
        return writes
