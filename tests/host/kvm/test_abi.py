"""The numbers and structures of host.kvm against those of the kernel's own header.

The tables are what a C compiler prints for <linux/kvm.h> of Linux 6.1 on x86-64.
"""

import ctypes
import os
import signal
import threading

import pytest

from ringzero.errors import HostError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.host.memory import HostMemory

SIZES = {
    "kvm_userspace_memory_region": 32,
    "kvm_regs": 144,
    "kvm_segment": 24,
    "kvm_dtable": 16,
    "kvm_sregs": 312,
    "kvm_xsave": 4096,
    "kvm_xcrs": 392,
    "kvm_msr_entry": 16,
    "kvm_msrs": 8,
    "kvm_cpuid_entry2": 40,
    "kvm_cpuid2": 8,
    "kvm_lapic_state": 1024,
    "kvm_vcpu_events": 64,
    "kvm_debugregs": 128,
    "kvm_mp_state": 4,
    "kvm_guest_debug": 72,
    "kvm_clock_data": 48,
    "kvm_interrupt": 4,
    "kvm_msi": 32,
    "kvm_irqfd": 32,
    "kvm_ioeventfd": 64,
    "kvm_irq_routing_entry": 48,
    "kvm_irq_routing": 8,
    "kvm_enable_cap": 104,
    "kvm_dirty_log": 16,
    "kvm_device_attr": 24,
    "kvm_dirty_gfn": 16,
    "kvm_coalesced_mmio_zone": 16,
    "kvm_coalesced_mmio": 24,
    "kvm_coalesced_mmio_ring": 8,
    "kvm_msr_filter": 392,
    "kvm_msr_filter_range": 24,
    "kvm_run": 2352,
    "kvm_msr_list": 4,
}
NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_GET_DIRTY_LOG": 0x4010AE42,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_REGISTER_COALESCED_MMIO": 0x4010AE67,
    "KVM_UNREGISTER_COALESCED_MMIO": 0x4010AE68,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_SET_CLOCK": 0x4030AE7B,
    "KVM_GET_CLOCK": 0x8030AE7C,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_X86_SET_MSR_FILTER": 0x4188AEC6,
    "KVM_RESET_DIRTY_RINGS": 0xAEC7,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_INTERRUPT": 0x4004AE86,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_NMI": 0xAE9A,
    "KVM_SET_GUEST_DEBUG": 0x4048AE9B,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_SET_TSC_KHZ": 0xAEA2,
    "KVM_GET_TSC_KHZ": 0xAEA3,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_KVMCLOCK_CTRL": 0xAEAD,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
    "KVM_CAP_SPLIT_IRQCHIP": 0x79,
    "KVM_CAP_X2APIC_API": 0x81,
    "KVM_CAP_IMMEDIATE_EXIT": 0x88,
    "KVM_CAP_COALESCED_PIO": 0xA2,
    "KVM_CAP_X86_USER_SPACE_MSR": 0xBC,
    "KVM_CAP_X86_MSR_FILTER": 0xBD,
    "KVM_CAP_DIRTY_LOG_RING": 0xC0,
    "KVM_CAP_ADJUST_CLOCK": 0x27,
    "KVM_CAP_VCPU_EVENTS": 0x29,
    "KVM_CAP_SIGNAL_MSI": 0x4D,
    "KVM_CAP_READONLY_MEM": 0x51,
    "KVM_CAP_MAX_VCPUS": 0x42,
    "KVM_CAP_XSAVE": 0x37,
    "KVM_CAP_XCRS": 0x38,
    "KVM_CAP_DEBUGREGS": 0x32,
    "KVM_CAP_TSC_CONTROL": 0x3C,
    "KVM_CAP_GET_TSC_KHZ": 0x3D,
    "KVM_CAP_SYNC_MMU": 0x10,
    "KVM_CAP_MP_STATE": 0xE,
    "KVM_CAP_IRQFD": 0x20,
    "KVM_CAP_IOEVENTFD": 0x24,
    "KVM_CAP_COALESCED_MMIO": 0xF,
    "KVM_CAP_SET_GUEST_DEBUG": 0x17,
    "KVM_CAP_IRQ_ROUTING": 0x19,
    "KVM_CAP_EXT_CPUID": 0x7,
    "KVM_CAP_NR_VCPUS": 0x9,
    "KVM_CAP_NR_MEMSLOTS": 0xA,
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": 0x25,
    "KVM_DIRTY_LOG_PAGE_OFFSET": 0x40,
    "KVM_EXIT_IOAPIC_EOI": 0x1A,
    "KVM_EXIT_X86_RDMSR": 0x1D,
    "KVM_EXIT_SYSTEM_EVENT": 0x18,
    "KVM_EXIT_INTERNAL_ERROR": 0x11,
    "KVM_EXIT_SET_TPR": 0xB,
    "KVM_EXIT_DIRTY_RING_FULL": 0x1F,
}
OFFSETS = {
    "kvm_run.exit_reason": 8,
    "kvm_run.cr8": 16,
    "kvm_run.io": 32,
    "kvm_run.mmio": 32,
    "kvm_run.mmio.len": 48,
    "kvm_run.msr.index": 44,
    "kvm_run.msr.data": 48,
    "kvm_run.kvm_valid_regs": 288,
    "kvm_run.s": 304,
    "kvm_run.internal.data": 40,
    "kvm_run.debug.arch.pc": 40,
    "kvm_vcpu_events.flags": 20,
    "kvm_vcpu_events.exception_payload": 56,
}

# The header's name where it is not simply ours in snake case.
STRUCTURES = {
    "kvm_cpuid_entry2": kvm.CpuidEntry,
    "kvm_cpuid2": kvm.CpuidHeader,
    "kvm_msrs": kvm.MsrsHeader,
    "kvm_msr_list": kvm.MsrListHeader,
    "kvm_irq_routing": kvm.IrqRoutingHeader,
    "kvm_coalesced_mmio_zone": kvm.CoalescedZone,
    "kvm_coalesced_mmio": kvm.CoalescedEntry,
    "kvm_coalesced_mmio_ring": kvm.CoalescedRing,
}


def structure(name):
    camel = "".join(part.capitalize() for part in name.removeprefix("kvm_").split("_"))
    return STRUCTURES.get(name) or getattr(kvm, camel)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_structures_have_the_size_of_the_header(name, size):
    assert ctypes.sizeof(structure(name)) == size


@pytest.mark.parametrize(("name", "number"), NUMBERS.items())
def test_numbers_are_those_of_the_header(name, number):
    assert getattr(kvm, name.removeprefix("KVM_")) == number


@pytest.mark.parametrize(("path", "offset"), OFFSETS.items())
def test_fields_lie_where_the_header_puts_them(path, offset):
    name, *fields = path.split(".")
    kind, found = structure(name), 0
    if name == "kvm_run" and fields[0] in ("io", "mmio", "msr", "internal", "debug"):
        fields.insert(0, "u")
    for field in fields:
        if field == "arch":  # the header's debug exit has one more level
            continue
        ours = "sync" if (name, field) == ("kvm_run", "s") else field
        found += getattr(kind, ours).offset
        kind = dict(kind._fields_)[ours]
    assert found == offset


def test_a_refused_ioctl_names_the_structure():
    reader, writer = os.pipe()
    try:
        with pytest.raises(HostError, match="pipe") as caught:
            kvmfd.KvmFd(reader, "pipe").get(kvm.GET_REGS, kvm.Regs)
        assert caught.value.context["structure"] == "Regs"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.kvm
class TestOnThisHost:
    def test_msrs_that_the_kernel_lacks_are_left_out(self, kvm_system):
        vm = kvm_system.create_vm()
        vcpu = kvmfd.KvmVcpuFd(kvm_system, vm, 0)
        found = vcpu.get_msrs([0x277, 0xDEADBEEF, 0x174])
        assert found == {0x277: 0x0007040600070406, 0x174: 0}
        assert vcpu.set_msrs({0x174: 8, 0xDEADBEEF: 1, 0x175: 0x1234}) == [0xDEADBEEF]
        assert vcpu.get_msrs([0x174, 0x175]) == {0x174: 8, 0x175: 0x1234}

    def test_a_blocked_signal_ends_run_and_stays_pending(self, kvm_system):
        vm = kvm_system.create_vm()
        # Shadow paging has no pages of its own (ENOSPC) while there is no memory.
        ram = HostMemory("test", 1 << 20)
        region = kvm.UserspaceMemoryRegion(memory_size=ram.size, userspace_addr=ram.address)
        vm.set(kvm.SET_USER_MEMORY_REGION, region)
        vcpu = kvmfd.KvmVcpuFd(kvm_system, vm, 0)
        outcome = []

        def work():
            old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
            vcpu.set_signal_mask({int(number) for number in old})
            signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)
            try:
                vcpu.call(kvm.RUN)
            except InterruptedError:
                outcome.append(signal.sigtimedwait([signal.SIGRTMIN], 0).si_signo)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(20)
        assert outcome == [signal.SIGRTMIN]
