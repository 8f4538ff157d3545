"""Linux KVM: ioctl numbers and structures; `ringzero.host.kvm.fd` has what takes them.

Names are those of <linux/kvm.h> and Documentation/virt/kvm/api.rst without
their KVM_ prefix. Nothing here knows what a machine is.
"""

from __future__ import annotations

import ctypes
from ctypes import LittleEndianStructure as Struct
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Any

DEVICE = "/dev/kvm"
API_VERSION = 12

# --- ioctl numbers: _IO, _IOR, _IOW, _IOWR of <asm-generic/ioctl.h>, type KVMIO ------------

_KVMIO = 0xAE
_WRITE, _READ = 1, 2


def _io(number: int) -> int:
    return _KVMIO << 8 | number


def _iow(number: int, size: int) -> int:
    return _WRITE << 30 | size << 16 | _io(number)


def _ior(number: int, size: int) -> int:
    return _READ << 30 | size << 16 | _io(number)


def _iowr(number: int, size: int) -> int:
    return (_READ | _WRITE) << 30 | size << 16 | _io(number)


# --- structures ------------------------------------------------------------------------------


class UserspaceMemoryRegion(Struct):
    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


MEM_LOG_DIRTY_PAGES = 1
MEM_READONLY = 2


# The kernel's order, which is not that of the register numbers.
REGS_ORDER = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip


class Regs(Struct):
    _fields_ = [(name, c_uint64) for name in REGS_ORDER]


class Segment(Struct):
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class Dtable(Struct):
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class Sregs(Struct):
    _fields_ = [
        ("cs", Segment),
        ("ds", Segment),
        ("es", Segment),
        ("fs", Segment),
        ("gs", Segment),
        ("ss", Segment),
        ("tr", Segment),
        ("ldt", Segment),
        ("gdt", Dtable),
        ("idt", Dtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class Xsave(Struct):
    _fields_ = [("region", c_uint8 * 4096)]


class Xcr(Struct):
    _fields_ = [("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64)]


class Xcrs(Struct):
    _fields_ = [
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", Xcr * 16),
        ("padding", c_uint64 * 16),
    ]


class MsrEntry(Struct):
    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


class MsrsHeader(Struct):
    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32)]


class MsrListHeader(Struct):
    _fields_ = [("nmsrs", c_uint32)]


class CpuidEntry(Struct):
    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


CPUID_FLAG_SIGNIFCANT_INDEX = 1


class CpuidHeader(Struct):
    _fields_ = [("nent", c_uint32), ("padding", c_uint32)]


class LapicState(Struct):
    _fields_ = [("regs", c_uint8 * 1024)]


class EventException(Struct):
    _fields_ = [
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    ]


class EventInterrupt(Struct):
    _fields_ = [
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("soft", c_uint8),
        ("shadow", c_uint8),
    ]


class EventNmi(Struct):
    _fields_ = [
        ("injected", c_uint8),
        ("pending", c_uint8),
        ("masked", c_uint8),
        ("pad", c_uint8),
    ]


class EventSmi(Struct):
    _fields_ = [
        ("smm", c_uint8),
        ("pending", c_uint8),
        ("smm_inside_nmi", c_uint8),
        ("latched_init", c_uint8),
    ]


class VcpuEvents(Struct):
    _fields_ = [
        ("exception", EventException),
        ("interrupt", EventInterrupt),
        ("nmi", EventNmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", EventSmi),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


VCPUEVENT_VALID_NMI_PENDING = 1
VCPUEVENT_VALID_SIPI_VECTOR = 2
VCPUEVENT_VALID_SHADOW = 4


class Debugregs(Struct):
    _fields_ = [
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    ]


class MpState(Struct):
    _fields_ = [("mp_state", c_uint32)]


MP_STATE_RUNNABLE = 0
MP_STATE_UNINITIALIZED = 1
MP_STATE_INIT_RECEIVED = 2
MP_STATE_HALTED = 3
MP_STATE_SIPI_RECEIVED = 4


class GuestDebug(Struct):
    _fields_ = [("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8)]


GUESTDBG_ENABLE = 1
GUESTDBG_SINGLESTEP = 2
GUESTDBG_USE_SW_BP = 0x10000
GUESTDBG_USE_HW_BP = 0x20000
GUESTDBG_BLOCKIRQ = 0x100000


class ClockData(Struct):
    _fields_ = [
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    ]


class Interrupt(Struct):
    _fields_ = [("irq", c_uint32)]


class Msi(Struct):
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    ]


class Irqfd(Struct):
    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


IRQFD_FLAG_DEASSIGN = 1


class Ioeventfd(Struct):
    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


IOEVENTFD_FLAG_DATAMATCH = 1
IOEVENTFD_FLAG_PIO = 2
IOEVENTFD_FLAG_DEASSIGN = 4


class IrqRoutingMsi(Struct):
    _fields_ = [
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("devid", c_uint32),
    ]


class IrqRoutingIrqchip(Struct):
    _fields_ = [("irqchip", c_uint32), ("pin", c_uint32)]


class _IrqRoutingUnion(ctypes.Union):
    _fields_ = [("irqchip", IrqRoutingIrqchip), ("msi", IrqRoutingMsi), ("pad", c_uint32 * 8)]


class IrqRoutingEntry(Struct):
    _fields_ = [
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("u", _IrqRoutingUnion),
    ]


IRQ_ROUTING_IRQCHIP = 1
IRQ_ROUTING_MSI = 2


class IrqRoutingHeader(Struct):
    _fields_ = [("nr", c_uint32), ("flags", c_uint32)]


class EnableCap(Struct):
    _fields_ = [
        ("cap", c_uint32),
        ("flags", c_uint32),
        ("args", c_uint64 * 4),
        ("pad", c_uint8 * 64),
    ]


class DeviceAttr(Struct):
    _fields_ = [
        ("flags", c_uint32),
        ("group", c_uint32),
        ("attr", c_uint64),
        ("addr", c_uint64),
    ]


# On a vCPU's descriptor: what is added to the host's TSC (Linux 5.16).
VCPU_TSC_CTRL = 0
VCPU_TSC_OFFSET = 0


class DirtyLog(Struct):
    _fields_ = [("slot", c_uint32), ("padding", c_uint32), ("dirty_bitmap", c_uint64)]


class DirtyGfn(Struct):
    _fields_ = [("flags", c_uint32), ("slot", c_uint32), ("offset", c_uint64)]


DIRTY_GFN_F_DIRTY = 1
DIRTY_GFN_F_RESET = 2
DIRTY_LOG_PAGE_OFFSET = 64


class CoalescedZone(Struct):
    _fields_ = [("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32)]


class CoalescedEntry(Struct):
    _fields_ = [
        ("phys_addr", c_uint64),
        ("len", c_uint32),
        ("pio", c_uint32),
        ("data", c_uint8 * 8),
    ]


class CoalescedRing(Struct):
    _fields_ = [("first", c_uint32), ("last", c_uint32)]


class MsrFilterRange(Struct):
    _fields_ = [
        ("flags", c_uint32),
        ("nmsrs", c_uint32),
        ("base", c_uint32),
        ("pad", c_uint32),
        ("bitmap", c_uint64),
    ]


class MsrFilter(Struct):
    _fields_ = [("flags", c_uint32), ("pad", c_uint32), ("ranges", MsrFilterRange * 16)]


MSR_FILTER_READ = 1
MSR_FILTER_WRITE = 2
MSR_EXIT_REASON_INVAL = 1
MSR_EXIT_REASON_UNKNOWN = 2
MSR_EXIT_REASON_FILTER = 4


class SignalMask(Struct):
    # The kernel's sigset_t is 64 bits, not the C library's 1024.
    _fields_ = [("len", c_uint32), ("sigset", c_uint8 * 8)]


class RunIo(Struct):
    _fields_ = [
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    ]


class RunMmio(Struct):
    _fields_ = [
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
    ]


class RunMsr(Struct):
    _fields_ = [
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    ]


class RunInternal(Struct):
    _fields_ = [("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class RunFailEntry(Struct):
    _fields_ = [("reason", c_uint64), ("cpu", c_uint32)]


class RunDebug(Struct):
    _fields_ = [
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    ]


class RunSystemEvent(Struct):
    _fields_ = [("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16)]


class RunEoi(Struct):
    _fields_ = [("vector", c_uint8)]


class _RunUnion(ctypes.Union):
    _fields_ = [
        ("io", RunIo),
        ("mmio", RunMmio),
        ("msr", RunMsr),
        ("internal", RunInternal),
        ("fail_entry", RunFailEntry),
        ("debug", RunDebug),
        ("system_event", RunSystemEvent),
        ("eoi", RunEoi),
        ("padding", c_uint8 * 256),
    ]


class Run(Struct):
    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("u", _RunUnion),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("sync", c_uint8 * 2048),
    ]


EXIT_UNKNOWN = 0
EXIT_IO = 2
EXIT_DEBUG = 4
EXIT_HLT = 5
EXIT_MMIO = 6
EXIT_IRQ_WINDOW_OPEN = 7
EXIT_SHUTDOWN = 8
EXIT_FAIL_ENTRY = 9
EXIT_INTR = 10
EXIT_SET_TPR = 11
EXIT_INTERNAL_ERROR = 17
EXIT_SYSTEM_EVENT = 24
EXIT_IOAPIC_EOI = 26
EXIT_X86_RDMSR = 29
EXIT_X86_WRMSR = 30
EXIT_DIRTY_RING_FULL = 31

EXIT_IO_IN = 0
SYSTEM_EVENT_SHUTDOWN = 1
SYSTEM_EVENT_RESET = 2
SYSTEM_EVENT_CRASH = 3

# --- ioctls ------------------------------------------------------------------------------------

GET_API_VERSION = _io(0x00)
CREATE_VM = _io(0x01)
GET_MSR_INDEX_LIST = _iowr(0x02, ctypes.sizeof(MsrListHeader))
CHECK_EXTENSION = _io(0x03)
GET_VCPU_MMAP_SIZE = _io(0x04)
GET_SUPPORTED_CPUID = _iowr(0x05, ctypes.sizeof(CpuidHeader))

CREATE_VCPU = _io(0x41)
GET_DIRTY_LOG = _iow(0x42, ctypes.sizeof(DirtyLog))
SET_USER_MEMORY_REGION = _iow(0x46, ctypes.sizeof(UserspaceMemoryRegion))
SET_TSS_ADDR = _io(0x47)
SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
REGISTER_COALESCED_MMIO = _iow(0x67, ctypes.sizeof(CoalescedZone))
UNREGISTER_COALESCED_MMIO = _iow(0x68, ctypes.sizeof(CoalescedZone))
SET_GSI_ROUTING = _iow(0x6A, ctypes.sizeof(IrqRoutingHeader))
IRQFD = _iow(0x76, ctypes.sizeof(Irqfd))
IOEVENTFD = _iow(0x79, ctypes.sizeof(Ioeventfd))
SET_CLOCK = _iow(0x7B, ctypes.sizeof(ClockData))
GET_CLOCK = _ior(0x7C, ctypes.sizeof(ClockData))
ENABLE_CAP = _iow(0xA3, ctypes.sizeof(EnableCap))
SIGNAL_MSI = _iow(0xA5, ctypes.sizeof(Msi))
X86_SET_MSR_FILTER = _iow(0xC6, ctypes.sizeof(MsrFilter))
RESET_DIRTY_RINGS = _io(0xC7)

RUN = _io(0x80)
GET_REGS = _ior(0x81, ctypes.sizeof(Regs))
SET_REGS = _iow(0x82, ctypes.sizeof(Regs))
GET_SREGS = _ior(0x83, ctypes.sizeof(Sregs))
SET_SREGS = _iow(0x84, ctypes.sizeof(Sregs))
INTERRUPT = _iow(0x86, ctypes.sizeof(Interrupt))
GET_MSRS = _iowr(0x88, ctypes.sizeof(MsrsHeader))
SET_MSRS = _iow(0x89, ctypes.sizeof(MsrsHeader))
# The size in the number is that of the header, whose `len` counts the set that follows it.
SET_SIGNAL_MASK = _iow(0x8B, 4)
GET_LAPIC = _ior(0x8E, ctypes.sizeof(LapicState))
SET_LAPIC = _iow(0x8F, ctypes.sizeof(LapicState))
SET_CPUID2 = _iow(0x90, ctypes.sizeof(CpuidHeader))
GET_MP_STATE = _ior(0x98, ctypes.sizeof(MpState))
SET_MP_STATE = _iow(0x99, ctypes.sizeof(MpState))
NMI = _io(0x9A)
SET_GUEST_DEBUG = _iow(0x9B, ctypes.sizeof(GuestDebug))
GET_VCPU_EVENTS = _ior(0x9F, ctypes.sizeof(VcpuEvents))
SET_VCPU_EVENTS = _iow(0xA0, ctypes.sizeof(VcpuEvents))
GET_DEBUGREGS = _ior(0xA1, ctypes.sizeof(Debugregs))
SET_DEBUGREGS = _iow(0xA2, ctypes.sizeof(Debugregs))
SET_TSC_KHZ = _io(0xA2)
GET_TSC_KHZ = _io(0xA3)
GET_XSAVE = _ior(0xA4, ctypes.sizeof(Xsave))
SET_XSAVE = _iow(0xA5, ctypes.sizeof(Xsave))
GET_XCRS = _ior(0xA6, ctypes.sizeof(Xcrs))
SET_XCRS = _iow(0xA7, ctypes.sizeof(Xcrs))
KVMCLOCK_CTRL = _io(0xAD)
SET_DEVICE_ATTR = _iow(0xE1, ctypes.sizeof(DeviceAttr))
GET_DEVICE_ATTR = _iow(0xE2, ctypes.sizeof(DeviceAttr))

# --- capabilities ------------------------------------------------------------------------------

CAP_IRQCHIP = 0
CAP_USER_MEMORY = 3
CAP_SET_TSS_ADDR = 4
CAP_EXT_CPUID = 7
CAP_NR_VCPUS = 9
CAP_NR_MEMSLOTS = 10
CAP_MP_STATE = 14
CAP_COALESCED_MMIO = 15
CAP_SYNC_MMU = 16
CAP_SET_GUEST_DEBUG = 23
CAP_IRQ_ROUTING = 25
CAP_IRQFD = 32
CAP_IOEVENTFD = 36
CAP_SET_IDENTITY_MAP_ADDR = 37
CAP_ADJUST_CLOCK = 39
CAP_VCPU_EVENTS = 41
CAP_DEBUGREGS = 50
CAP_XSAVE = 55
CAP_XCRS = 56
CAP_TSC_CONTROL = 60
CAP_GET_TSC_KHZ = 61
CAP_MAX_VCPUS = 66
CAP_SIGNAL_MSI = 77
CAP_READONLY_MEM = 81
CAP_SPLIT_IRQCHIP = 121
CAP_X2APIC_API = 129
CAP_IMMEDIATE_EXIT = 136
CAP_COALESCED_PIO = 162
CAP_X86_USER_SPACE_MSR = 188
CAP_X86_MSR_FILTER = 189
CAP_DIRTY_LOG_RING = 192
CAP_SET_GUEST_DEBUG2 = 195

X2APIC_API_USE_32BIT_IDS = 1
X2APIC_API_DISABLE_BROADCAST_QUIRK = 2

# Without these KVM cannot serve this engine; all are in Linux 5.10 and later.
REQUIRED_CAPS = {
    CAP_USER_MEMORY: "KVM_CAP_USER_MEMORY",
    CAP_EXT_CPUID: "KVM_CAP_EXT_CPUID",
    CAP_SYNC_MMU: "KVM_CAP_SYNC_MMU",
    CAP_MP_STATE: "KVM_CAP_MP_STATE",
    CAP_VCPU_EVENTS: "KVM_CAP_VCPU_EVENTS",
    CAP_IMMEDIATE_EXIT: "KVM_CAP_IMMEDIATE_EXIT",
    CAP_IRQFD: "KVM_CAP_IRQFD",
    CAP_IOEVENTFD: "KVM_CAP_IOEVENTFD",
    CAP_SPLIT_IRQCHIP: "KVM_CAP_SPLIT_IRQCHIP",
    CAP_SIGNAL_MSI: "KVM_CAP_SIGNAL_MSI",
}


def array_of(header: type[Struct], entry: type[Struct], count: int) -> Any:
    """Return a `header` followed by `count` zeroed `entries`, as the kernel's [0] arrays."""
    fields = [("header", header), ("entries", entry * count)]
    return type("Array", (Struct,), {"_fields_": fields})()
