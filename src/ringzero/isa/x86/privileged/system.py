"""Control registers, TLB management, HLT, CPUID, time (Intel SDM vol. 2, each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    ATTR_L,
    ATTR_TYPE,
    CR0_AM,
    CR0_CD,
    CR0_EM,
    CR0_ET,
    CR0_MP,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR0_WP,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PSE,
    CR4_PVI,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_UMIP,
    CR4_VME,
    CS,
    EFER_LMA,
    EFER_LME,
    EXIT_CR8_READ,
    EXIT_CR8_WRITE,
    GP,
    MODE_64,
    RAX,
    RBX,
    RCX,
    RDX,
    TR,
    UD,
    XCR0_AVX,
    Cpu,
    CpuidEntry,
)
from ringzero.isa.x86.privileged.apic import set_task_priority
from ringzero.isa.x86.privileged.descriptors import (
    TSS32_BUSY,
    is_canonical,
    long_mode_active,
    update_mode,
)
from ringzero.isa.x86.privileged.faults import external, raise_gp0, raise_ud
from ringzero.isa.x86.privileged.lookaside import (
    enter_space,
    flush_jump_cache,
    flush_pcid,
    flush_tlb,
    invalidate_page,
)
from ringzero.isa.x86.privileged.msr import guest_tsc
from ringzero.isa.x86.state import XSAVE_BASE_SIZE
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import address_of, native, pointer, select, staged, u8, u16, u32, u64

# Bits of CR0 and CR4 that can be set. Others of CR0's low half are ignored, the rest
# raise #GP (SDM vol. 3A, 2.5).
CR0_BITS = (
    CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE
    | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG
)  # fmt: skip
CR4_BITS = (
    CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE
    | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_UMIP | CR4_FSGSBASE | CR4_PCIDE | CR4_OSXSAVE
    | CR4_SMEP | CR4_SMAP
)  # fmt: skip

# Changes of these make cached translations wrong (SDM vol. 3A, 4.10.4.1).
CR0_TRANSLATION = CR0_PG | CR0_WP | CR0_PE | CR0_EM | CR0_TS
CR4_TRANSLATION = (
    CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_OSFXSR | CR4_OSXSAVE
)

# Bit 63 of a value for CR3 with CR4.PCIDE: keep the translations; it is not stored.
CR3_KEEP = 1 << 63

ANY_SUBLEAF = 0xFFFFFFFF
OSXSAVE_ECX = 1 << 27
MONITOR_ECX = 1 << 3


@native(inline="never")
def write_cr0(cpu: Cpu, value: u64) -> None:
    """MOV to CR0: paging and IA-32e mode begin and end here (SDM vol. 3A, 2.5 and 9.8.5)."""
    old = u64(cpu.cr0)
    if value >> 32 != 0:
        raise_gp0(cpu)
    value = (value & CR0_BITS) | CR0_ET
    if value & (CR0_PG | CR0_PE) == CR0_PG or value & (CR0_NW | CR0_CD) == CR0_NW:
        raise_gp0(cpu)
    efer = u64(cpu.efer)
    if (value & ~old) & CR0_PG != 0 and efer & EFER_LME != 0:
        wide_tss = cpu.seg[TR].attributes & ATTR_TYPE
        if cpu.cr4 & CR4_PAE == 0 or cpu.seg[CS].attributes & ATTR_L != 0:
            raise_gp0(cpu)
        # A busy 16-bit TSS has no place in IA-32e mode.
        if wide_tss & TSS32_BUSY == 3:
            raise_gp0(cpu)
        efer = efer | EFER_LMA
    if (old & ~value) & CR0_PG != 0:
        if cpu.mode == MODE_64 or cpu.cr4 & CR4_PCIDE != 0:
            raise_gp0(cpu)
        efer = efer & ~u64(EFER_LMA)
    cpu.cr0 = value
    cpu.efer = efer
    if (value ^ old) & CR0_TRANSLATION != 0:
        flush_tlb(cpu)
    update_mode(cpu)


@native(inline="never")
def write_cr3(cpu: Cpu, value: u64) -> None:
    """MOV to CR3: bit 63 keeps translations of its PCID with CR4.PCIDE (SDM vol. 3A, 4.10.4.1)."""
    keep = value & CR3_KEEP
    if cpu.cr4 & CR4_PCIDE != 0:
        value = value & ~u64(CR3_KEEP)
    if long_mode_active(cpu) and value & ~(cpu.physical_mask | 0xFFF) != 0:
        raise_gp0(cpu)
    if cpu.cr0 & CR0_PG != 0:
        enter_space(cpu, value, keep)
    cpu.cr3 = value
    cpu.stop_block = 1


@native(inline="never")
def write_cr4(cpu: Cpu, value: u64) -> None:
    """MOV to CR4."""
    old = u64(cpu.cr4)
    if value & ~u64(CR4_BITS) != 0:
        raise_gp0(cpu)
    if long_mode_active(cpu):
        if value & CR4_PAE == 0:
            raise_gp0(cpu)
    elif value & CR4_PCIDE != 0:
        raise_gp0(cpu)
    if (value & ~old) & CR4_PCIDE != 0 and cpu.cr3 & 0xFFF != 0:
        raise_gp0(cpu)
    cpu.cr4 = value
    if (value ^ old) & CR4_TRANSLATION != 0:
        flush_tlb(cpu)
    cpu.stop_block = 1


@native(inline="never")
def write_control(cpu: Cpu, number: u32, value: u64) -> None:
    """MOV to CRn."""
    if number == 0:
        write_cr0(cpu, value)
    elif number == 2:
        cpu.cr2 = value
    elif number == 3:
        write_cr3(cpu, value)
    elif number == 4:
        write_cr4(cpu, value)
    elif number == 8:
        if value & ~u64(0xF) != 0:
            raise_gp0(cpu)
        if cpu.apic.kept != 0:
            set_task_priority(cpu, u32(value) << 4)
        else:
            external(cpu, EXIT_CR8_WRITE, 8, 8, value)
    else:
        raise_ud(cpu)


@native(inline="never")
def read_control(cpu: Cpu, number: u32) -> u64:
    """Return CRn."""
    if number == 0:
        return cpu.cr0
    if number == 2:
        return cpu.cr2
    if number == 3:
        return cpu.cr3
    if number == 4:
        return cpu.cr4
    if number != 8:
        raise_ud(cpu)
    if cpu.apic.kept != 0:
        return u64(cpu.apic.tpr >> 4)
    return external(cpu, EXIT_CR8_READ, 8, 8, 0)


@instruction("0F 20 /r:r : Rq Cq", privileged=True, name="mov")
def mov_from_control(m: Operation) -> None:
    """MOV from a control register."""
    m.write(0, read_control(m.cpu, u32(m.register_number(1))))


@instruction("0F 22 /r:r : Cq Rq", privileged=True, ends=True, name="mov")
def mov_to_control(m: Operation) -> None:
    """MOV to a control register; outside 64-bit mode 32 bits of it."""
    value = m.read(1)
    if not m.long_mode():
        value = value & 0xFFFFFFFF
    write_control(m.cpu, u32(m.register_number(0)), value)
    m.stop_block()


@instruction("0F 06", privileged=True, ends=True)
def clts(m: Operation) -> None:
    """CLTS."""
    m.cpu.cr0 &= ~u64(CR0_TS)
    flush_jump_cache(m.cpu)
    m.stop_block()


@instruction("0F 01 /4 : Ev")
def smsw(m: Operation) -> None:
    """SMSW: 16 bits to memory, the operand size to a register."""
    if (m.cpu.cr4 & CR4_UMIP) != 0 and m.cpu.cpl != 0:
        m.fault(GP, 0)
    if m.memory:
        m.store(u16, m.address(0), u16(m.cpu.cr0))
    else:
        m.write(0, m.T(m.cpu.cr0))


@instruction("0F 01 /6 : Ew", privileged=True, ends=True)
def lmsw(m: Operation) -> None:
    """LMSW: PE, MP, EM and TS; PE can be set but not cleared."""
    value = u64(m.read(0)) & (CR0_PE | CR0_MP | CR0_EM | CR0_TS)
    kept = m.cpu.cr0 & ~u64(CR0_MP | CR0_EM | CR0_TS)
    write_cr0(m.cpu, kept | value)
    m.stop_block()


# --- TLB, caches -------------------------------------------------------------


@instruction("0F 01 /7:m : M", privileged=True, ends=True)
def invlpg(m: Operation) -> None:
    """INVLPG: an address that is not canonical is ignored."""
    invalidate_page(m.cpu, m.address(0, 0))
    m.stop_block()


@native(inline="never")
def invalidate_pcid(cpu: Cpu, kind: u64, low: u64, address: u64) -> None:
    """INVPCID with its descriptor's two halves."""
    if kind > 3 or low & ~u64(0xFFF) != 0:
        raise_gp0(cpu)
    if kind < 2 and low != 0 and cpu.cr4 & CR4_PCIDE == 0:
        raise_gp0(cpu)
    if kind == 0:
        if not is_canonical(address):
            raise_gp0(cpu)
        invalidate_page(cpu, address)
    elif kind == 1:
        flush_pcid(cpu, low)
    else:
        flush_tlb(cpu)


@instruction("66 0F 38 82 /r:m : Gq M", privileged=True, ends=True)
def invpcid(m: Operation) -> None:
    """INVPCID."""
    where = m.address(1)
    kind = m.read(0)
    if not m.long_mode():
        kind = kind & 0xFFFFFFFF
    invalidate_pcid(m.cpu, kind, m.load(u64, where), m.load(u64, where + 8))
    m.stop_block()


@instruction("0F 08", privileged=True)
def invd(m: Operation) -> None:
    """INVD: there are no caches to lose."""


@instruction("0F 09", privileged=True)
def wbinvd(m: Operation) -> None:
    """WBINVD (and WBNOINVD, which is F3 with it)."""


# --- waiting -----------------------------------------------------------------


@instruction("F4", privileged=True, ends=True)
def hlt(m: Operation) -> None:
    """HLT: the run loop sees `halted` when RIP is past the instruction."""
    m.cpu.halted = 1
    m.stop_block()


@native(inline="never")
def require_monitor(cpu: Cpu) -> None:
    """#UD unless CPUID announces MONITOR and MWAIT and CPL is 0 (SDM vol. 2B, MONITOR)."""
    found = find_cpuid(cpu, 1, 0)
    if found == 0 or cpu.cpl != 0 or pointer(CpuidEntry, found).ecx & MONITOR_ECX == 0:
        raise_ud(cpu)


@instruction("NP 0F 01 =C8")
def monitor(m: Operation) -> None:
    """MONITOR: the line at DS:rAX is looked at as a load does; no extension exists."""
    require_monitor(m.cpu)
    if m.get(RCX, u64) != 0:
        m.fault(GP, 0)
    m.load(u8, m.string_address(RAX, u64(0)))


@instruction("NP 0F 01 =C9", ends=True)
def mwait(m: Operation) -> None:
    """MWAIT: waits as HLT does, for an interrupt; a store to the line does not end it."""
    require_monitor(m.cpu)
    if m.get(RCX, u64) != 0:
        m.fault(GP, 0)
    m.cpu.halted = 1
    m.stop_block()


# What KVM answers to a hypercall that it does not know, and to one of user code
# (Linux Documentation/virt/kvm/x86/hypercalls.rst).
KVM_ENOSYS, KVM_EPERM = (-1000 & (1 << 64) - 1), (-1 & (1 << 64) - 1)


@native(inline="never")
def call_hypervisor(cpu: Cpu) -> None:
    """Answer a hypercall: no feature that CPUID offers has one."""
    cpu.regs[RAX] = select(cpu.cpl == 0, u64(KVM_ENOSYS), u64(KVM_EPERM))


@instruction("NP 0F 01 =C1", ends=True)
def vmcall(m: Operation) -> None:
    """VMCALL: the hypercall of Intel's processors, #UD on AMD's."""
    if m.cpu.is_amd != 0:
        m.fault(UD)
    call_hypervisor(m.cpu)


@instruction("NP 0F 01 =D9", ends=True)
def vmmcall(m: Operation) -> None:
    """VMMCALL: the hypercall of AMD's processors, #UD on Intel's."""
    if m.cpu.is_amd == 0:
        m.fault(UD)
    call_hypervisor(m.cpu)


@instruction("0F 0B", ends=True)
def ud2(m: Operation) -> None:
    """UD2."""
    m.fault(UD)


@instruction("0F B9 /r : Gv Ev", ends=True)
def ud1(m: Operation) -> None:
    """UD1."""
    m.fault(UD)


@instruction("0F FF /r : Gv Ev", ends=True)
def ud0(m: Operation) -> None:
    """UD0, with a ModRM byte as on recent processors."""
    m.fault(UD)


# --- CPUID, time -------------------------------------------------------------


@native(inline="never")
def find_cpuid(cpu: Cpu, leaf: u32, subleaf: u32) -> u64:
    """Return the host address of the CpuidEntry for a leaf, or 0."""
    for i in range(u64(cpu.cpuid_count)):
        entry = pointer(CpuidEntry, cpu.cpuid_table + i * CpuidEntry.size)
        if entry.leaf == leaf and (entry.subleaf == subleaf or entry.subleaf == ANY_SUBLEAF):
            return address_of(entry)
    return u64(0)


@native(inline="never")
def highest_leaf(cpu: Cpu, first: u32) -> u32:
    """Return EAX of leaf 0 or 80000000h: the highest leaf of that range."""
    found = find_cpuid(cpu, first, 0)
    if found == 0:
        return u32(0)
    return pointer(CpuidEntry, found).eax


@native(inline="never")
def identify(cpu: Cpu) -> None:
    """CPUID: beyond the ranges the highest basic leaf answers, gaps are 0 (SDM vol. 2A)."""
    leaf = u32(cpu.regs[RAX])
    subleaf = u32(cpu.regs[RCX])
    highest = highest_leaf(cpu, 0)
    beyond = leaf > highest and leaf < 0x40000000
    if leaf >= 0x80000000:
        beyond = leaf > highest_leaf(cpu, 0x80000000)
    if beyond:
        leaf = highest
    eax = u32(0)
    ebx = u32(0)
    ecx = u32(0)
    edx = u32(0)
    found = find_cpuid(cpu, leaf, subleaf)
    if found != 0:
        entry = pointer(CpuidEntry, found)
        eax = entry.eax
        ebx = entry.ebx
        ecx = entry.ecx
        edx = entry.edx
    if leaf == 1:
        # Bits 31:24 of EBX are the initial APIC ID; OSXSAVE mirrors CR4.
        ebx = (ebx & 0xFFFFFF) | (cpu.index << 24)
        ecx = ecx & ~u32(OSXSAVE_ECX)
        if cpu.cr4 & CR4_OSXSAVE != 0:
            ecx = ecx | OSXSAVE_ECX
    elif leaf == 0xD and subleaf == 0 and cpu.xcr0_mask & ~cpu.xcr0 & XCR0_AVX != 0:
        # EBX: the size for what XCR0 enables now; ECX: for all that it can enable.
        ebx = u32(XSAVE_BASE_SIZE)
    elif leaf == 0xB or leaf == 0x1F:
        ecx = (ecx & ~u32(0xFF)) | (subleaf & 0xFF)
        edx = cpu.index
    cpu.regs[RAX] = u64(eax)
    cpu.regs[RBX] = u64(ebx)
    cpu.regs[RCX] = u64(ecx)
    cpu.regs[RDX] = u64(edx)


@instruction("0F A2")
def cpuid(m: Operation) -> None:
    """CPUID."""
    identify(m.cpu)


@staged
def _set_pair(m: Operation, value: Any) -> None:
    m.set(RAX, u32(value))
    m.set(RDX, u32(value >> 32))


@staged
def _check_time_stamp(m: Operation) -> None:
    if (m.cpu.cr4 & CR4_TSD) != 0 and m.cpu.cpl != 0:
        m.fault(GP, 0)


@instruction("0F 31", fast=True)
def rdtsc(m: Operation) -> None:
    """RDTSC: #GP(0) above CPL 0 with CR4.TSD. Loads before it may be later: the guest fences."""
    _check_time_stamp(m)
    _set_pair(m, guest_tsc(m.cpu, ordered=False))


@instruction("0F 01 =F9", fast=True)
def rdtscp(m: Operation) -> None:
    """RDTSCP: behind all earlier loads."""
    _check_time_stamp(m)
    _set_pair(m, guest_tsc(m.cpu))
    m.set(RCX, u32(m.cpu.tsc_aux))


@instruction("0F 33")
def rdpmc(m: Operation) -> None:
    """RDPMC: there are no counters, so every index raises #GP(0)."""
    m.fault(GP, 0)
