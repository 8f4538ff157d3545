"""Control registers, MSRs, CPUID, time, TLB and port instructions (Intel SDM vol. 2 and 3A)."""

import struct
from dataclasses import replace

import pytest

from ringzero.engine.x86 import MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import cpuid as models
from ringzero.isa.x86 import msrs
from ringzero.isa.x86.cpuid import CpuidLeaf
from tests.isa.guest import (
    CODE,
    CR0,
    CR4,
    DATA,
    EFER,
    GDT,
    HANDLERS,
    PML4,
    PT,
    TSS,
    TSS_SELECTOR,
    USER_DATA,
    Guest,
    assemble,
    segment_descriptor,
)

pytestmark = pytest.mark.engine

NOT_CANONICAL = 0x8000_0000_0000
GP0 = (13, 0)
ALL_ONES = (1 << 64) - 1


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def user():
    guest = Guest()
    guest.become_user()
    return guest


def fault(end):
    return end.vector, end.code


# --- control registers ---


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("cr0", CR0 | 1 << 32),
        ("cr0", CR0 & ~x86.CR0_PE),  # PG without PE
        ("cr0", CR0 & ~x86.CR0_PG),  # paging off in 64-bit mode
        ("cr0", CR0 | x86.CR0_NW),  # NW without CD
        ("cr3", 1 << 60),
        ("cr3", 1 << 63 | PML4),  # without PCIDE
        ("cr4", CR4 & ~x86.CR4_PAE),
        ("cr4", CR4 | x86.CR4_LA57),
        ("cr4", CR4 | 1 << 13),  # VMXE
        ("cr4", CR4 | 1 << 40),
        ("cr8", 16),
    ],
)
def test_control_register_values_that_are_refused(guest, register, value):
    end = guest.run(f"mov {register}, rax; hlt", rax=value)
    assert fault(end) == GP0 and end.saved["rip"] == CODE
    assert (end.cpu.cr0, end.cpu.cr3, end.cpu.cr4) == (CR0, PML4, CR4)


@pytest.mark.parametrize("code", [b"\x0f\x22\xc8", b"\x0f\x20\xe8", b"\x44\x0f\x22\xc8"])
def test_control_registers_that_do_not_exist(guest, code):
    assert guest.run(code).vector == 6  # CR1, CR5, CR9


def test_control_registers_read_what_was_written(guest):
    end = guest.run("mov cr2, rax; mov rbx, cr2; mov rcx, cr0; mov rdx, cr4; hlt", rax=1 << 63 | 5)
    assert [end.reg(n) for n in (x86.RBX, x86.RCX, x86.RDX)] == [1 << 63 | 5, CR0, CR4]


def test_reserved_low_bits_of_cr0_are_ignored_and_et_is_fixed(guest):
    end = guest.run("mov cr0, rax; hlt", rax=(CR0 & ~x86.CR0_ET) | 1 << 7 | 1 << 20)
    assert end.vector is None and end.cpu.cr0 == CR0


def test_cr8_goes_to_the_local_apic(guest):
    end = guest.run("mov cr8, rax; xor eax, eax; mov rbx, cr8; hlt", rax=9)
    assert end.reg(x86.RBX) == 9 and guest.interrupts.priority == 9 and not end.exits


def test_pcide_needs_a_cr3_without_pcid(guest):
    pcide = CR4 | x86.CR4_PCIDE
    assert guest.run("mov cr4, rax; hlt", rax=pcide).vector is None
    code = "mov cr4, rax; or rbx, 1; mov cr3, rbx; mov rcx, cr3; hlt"
    end = guest.run(code, rax=pcide, rbx=PML4 | 1 << 63)
    # Bit 63 asks for translations to be kept, and is not stored.
    assert end.vector is None and end.reg(x86.RCX) == PML4 | 1
    guest.state = replace(guest.state, cr3=PML4 | 8)
    assert fault(guest.run("mov cr4, rax; hlt", rax=pcide)) == GP0


def test_smsw_lmsw_clts(guest):
    code = "smsw eax; mov ebx, 0xe; lmsw bx; smsw ecx; clts; smsw rdx; smsw word ptr [rsi]; hlt"
    end = guest.run(code, rsi=DATA)
    assert end.reg(x86.RAX) == CR0
    # PE is not cleared; MP, EM, TS are set.
    assert end.reg(x86.RCX) == CR0 | 0xE
    assert end.reg(x86.RDX) == (CR0 | 0xE) & ~x86.CR0_TS
    assert guest.memory.read(DATA, 4) == (end.reg(x86.RDX) & 0xFFFF).to_bytes(4, "little")


@pytest.mark.parametrize("code", ["smsw eax", "sgdt [rsi]", "sidt [rsi]", "sldt eax", "str eax"])
def test_umip(user, code):
    assert user.run(code + "; ud2", rsi=USER_DATA).vector == 6
    user.state = replace(user.state, cr4=CR4 | x86.CR4_UMIP)
    assert fault(user.run(code + "; ud2", rsi=USER_DATA)) == GP0


# --- translations ---


def test_invlpg_makes_a_changed_entry_count(guest):
    # Page DATA is first read, then its entry is pointed to the next page.
    guest.write(DATA, b"\x01")
    guest.write(DATA + 0x1000, b"\x02")
    entry = PT + (DATA >> 12) * 8
    code = "mov al, [rsi]; add qword ptr [rdi], 0x1000; invlpg [rsi]; mov bl, [rsi]; hlt"
    end = guest.run(code, rsi=DATA, rdi=entry)
    assert (end.reg(x86.RAX) & 0xFF, end.reg(x86.RBX) & 0xFF) == (1, 2)


@pytest.mark.parametrize("kind", range(4))
def test_invpcid_flushes(guest, kind):
    guest.write(DATA, b"\x01")
    guest.write(DATA + 0x1000, b"\x02")
    guest.q(DATA + 0x2000, 0)
    guest.q(DATA + 0x2008, DATA)
    entry = PT + (DATA >> 12) * 8
    code = "mov al, [rsi]; add qword ptr [rdi], 0x1000; invpcid rcx, [rdx]; mov bl, [rsi]; hlt"
    end = guest.run(code, rsi=DATA, rdi=entry, rcx=kind, rdx=DATA + 0x2000)
    assert end.vector is None and end.reg(x86.RBX) & 0xFF == 2


@pytest.mark.parametrize(
    ("kind", "low", "address"), [(4, 0, 0), (0, 0x1000, 0), (0, 1, 0), (0, 0, NOT_CANONICAL)]
)
def test_invpcid_refuses(guest, kind, low, address):
    guest.q(DATA, low)
    guest.q(DATA + 8, address)
    assert fault(guest.run("invpcid rcx, [rdx]", rcx=kind, rdx=DATA)) == GP0


def test_invlpg_ignores_an_address_that_is_not_canonical(guest):
    assert guest.run("invlpg [rsi]; hlt", rsi=NOT_CANONICAL).vector is None


def test_write_protect_takes_effect_at_once(guest):
    guest.q(PT + (DATA >> 12) * 8, DATA | 1)
    guest.state = replace(guest.state, cr0=CR0 & ~x86.CR0_WP)
    code = "mov [rsi], al; mov cr0, rbx; mov [rsi], al; hlt"
    end = guest.run(code, rsi=DATA, rbx=CR0)
    assert fault(end) == (14, 3) and end.saved["rip"] == CODE + 5


def test_no_execute_depends_on_efer_nxe(guest):
    guest.q(PT + (DATA >> 12) * 8, DATA | 3 | 1 << 63)
    assert fault(guest.run("mov al, [rsi]; jmp rsi", rsi=DATA)) == (14, 0x11)
    # With NXE off, bit 63 is reserved.
    code = "mov ecx, 0xc0000080; rdmsr; and eax, ~0x800; wrmsr; mov al, [rsi]"
    assert fault(guest.run(code, rsi=DATA)) == (14, 9)


def test_smep_and_smap(guest):
    smap = CR4 | x86.CR4_SMAP | x86.CR4_SMEP
    # The handlers' page is the user's too; here it must not be.
    entry = PT + (HANDLERS >> 12) * 8
    guest.q(entry, guest.read_q(entry) & ~4)
    code = "mov cr4, rbx; stac; mov al, [rsi]; clac; mov al, [rsi]"
    end = guest.run(code, rsi=USER_DATA, rbx=smap)
    assert fault(end) == (14, 1) and end.saved["rip"] == CODE + 11
    assert fault(guest.run("mov cr4, rbx; jmp rsi", rsi=USER_DATA, rbx=smap)) == (14, 0x11)
    assert guest.run("stac").vector == 6


# --- waiting, nothing, undefined ---


def test_hlt_leaves_rip_behind_it(guest):
    assert (end := guest.run("nop; hlt")).cpu.rip == CODE + 2 and end.vector is None


@pytest.mark.parametrize("code", ["wbinvd; invd; hlt", "wbinvd; hlt"])
def test_cache_instructions(guest, code):
    assert guest.run(code).vector is None


@pytest.mark.parametrize("code", ["ud2", b"\x0f\xb9\xc0", b"\x0f\xff\xc0", "vmmcall"])
def test_undefined(guest, code):
    assert guest.run(code).vector == 6


@pytest.mark.parametrize(("vendor", "code"), [(models.INTEL, "vmcall"), (models.AMD, "vmmcall")])
def test_the_vendors_hypercall_is_one_that_nobody_knows(vendor, code):
    guest = with_model(vendor=vendor)
    try:
        end = guest.run(f"{code}; hlt", rax=9)
        assert end.vector is None and end.reg(x86.RAX) == ALL_ONES - 999  # -KVM_ENOSYS
        other = "vmcall" if code == "vmmcall" else "vmmcall"
        assert guest.run(f"{other}; hlt").vector == 6
    finally:
        guest.close()
        Guest.alive.remove(guest)


# --- CPUID, time ---

LEAVES = [
    CpuidLeaf(0, None, 0xD, 1, 2, 3),
    CpuidLeaf(1, None, 0x600, 0xFF00_0800, 0, 7),
    CpuidLeaf(4, 0, 1, 0, 0, 0),
    CpuidLeaf(4, 1, 2, 0, 0, 0),
    CpuidLeaf(0xD, None, 0xAA, 0xBB, 0xCC, 0xDD),
    CpuidLeaf(0x40000000, None, 0x40000001, 4, 5, 6),
    CpuidLeaf(0x80000000, None, 0x80000001, 0, 0, 0),
    CpuidLeaf(0x80000001, None, 9, 9, 9, 9),
]


def cpuid(guest, leaf, subleaf=0):
    end = guest.run("cpuid; hlt", rax=leaf | 5 << 32, rcx=subleaf | 5 << 32)
    return [end.reg(n) for n in (x86.RAX, x86.RBX, x86.RCX, x86.RDX)]


def test_cpuid():
    guest = Guest(LEAVES)
    assert cpuid(guest, 0) == [0xD, 1, 2, 3]
    assert cpuid(guest, 4, 1)[0] == 2 and cpuid(guest, 4, 2) == [0, 0, 0, 0]
    assert cpuid(guest, 3) == [0, 0, 0, 0]
    # Beyond the highest leaf of a range, the highest basic leaf answers.
    assert cpuid(guest, 0xE) == cpuid(guest, 0x80000002) == [0xAA, 0xBB, 0xCC, 0xDD]
    assert cpuid(guest, 0x80000001) == [9, 9, 9, 9]
    assert cpuid(guest, 0x40000000)[1:] == [4, 5, 6] and cpuid(guest, 0x40000010) == [0] * 4
    guest.become_user()
    assert guest.run("cpuid; ud2", rax=0).reg(x86.RDX) == 3


def test_cpuid_osxsave_follows_cr4():
    guest = Guest(LEAVES)
    assert cpuid(guest, 1)[1:3] == [0x0000_0800, 0]
    guest.state = replace(guest.state, cr4=CR4 | x86.CR4_OSXSAVE)
    assert cpuid(guest, 1)[2] == 1 << 27


def test_time_stamp_counter(guest):
    guest.state = replace(guest.state, tsc=10**12, msrs={msrs.IA32_TSC_AUX: 77})
    code = """
        rdtsc; shl rdx, 32; lea rbx, [rax + rdx]; rdtscp; shl rdx, 32; lea rsi, [rax + rdx]
        mov edi, ecx; mov ecx, 0x10; rdmsr; shl rdx, 32; add rax, rdx; hlt
    """
    end = guest.run(code)
    first, second, third = (end.reg(n) for n in (x86.RBX, x86.RSI, x86.RAX))
    assert first < second < third < first + 10**10 and end.reg(x86.RDI) == 77


def test_tsc_can_be_written_and_adjusted(guest):
    code = """
        mov ecx, 0x10; xor eax, eax; xor edx, edx; wrmsr; mov ecx, 0x3b; rdmsr; mov ebx, edx
        mov edx, 0x100; xor eax, eax; wrmsr; mov ecx, 0x10; rdmsr; hlt
    """
    guest.state = replace(guest.state, tsc=5 << 40)
    end = guest.run(code)
    # Writing 0 at 0x500 << 32 and a little lowers the adjustment by as much.
    assert end.reg(x86.RBX) in range((1 << 32) - 0x501, (1 << 32) - 0x4FF)
    assert end.cpu.tsc_adjust == 0x100 << 32


def test_tsd_and_pce(user):
    assert user.run("rdtsc; ud2").vector == 6
    user.state = replace(user.state, cr4=CR4 | x86.CR4_TSD)
    assert fault(user.run("rdtsc")) == GP0 and fault(user.run("rdtscp")) == GP0
    assert fault(user.run("rdpmc")) == GP0


# --- MSRs ---


def wrmsr(guest, index, value, answers=()):
    return guest.run(
        "wrmsr; hlt", rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32, answers=answers
    )


def rdmsr(guest, index, answers=()):
    return guest.run("rdmsr; hlt", rcx=index, rax=1 << 40, rdx=1 << 40, answers=answers)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (msrs.IA32_STAR, 0x1234_5678_9ABC_DEF0),
        (msrs.IA32_LSTAR, 0xFFFF_8000_0000_0000),
        (msrs.IA32_CSTAR, 0x7FFF_FFFF_FFFF),
        (msrs.IA32_FMASK, 0x4700),
        (msrs.IA32_FS_BASE, 0xFFFF_FFFF_8000_0000),
        (msrs.IA32_GS_BASE, 0x1000),
        (msrs.IA32_KERNEL_GS_BASE, 0x2000),
        (msrs.IA32_SYSENTER_CS, 0x10),
        (msrs.IA32_SYSENTER_ESP, 0x3000),
        (msrs.IA32_SYSENTER_EIP, 0x4000),
        (msrs.IA32_TSC_AUX, 5),
        (msrs.IA32_PAT, 0x0007_0406_0007_0405),
        (msrs.IA32_MTRR_DEF_TYPE, 0xC06),
        (msrs.IA32_MISC_ENABLE, 0x850089),
        (msrs.IA32_EFER, EFER & ~x86.EFER_NXE),
    ],
)
def test_msrs_keep_what_is_written(guest, index, value):
    assert wrmsr(guest, index, value).vector is None
    end = guest.run("wrmsr; xor eax, eax; rdmsr; hlt")
    assert end.reg(x86.RDX) << 32 | end.reg(x86.RAX) == value


@pytest.mark.parametrize(
    ("index", "value"),
    [
        *((number, NOT_CANONICAL) for number in msrs.CANONICAL),
        (msrs.IA32_FS_BASE, NOT_CANONICAL),
        (msrs.IA32_GS_BASE, NOT_CANONICAL),
        *((number, 1 << 32) for number in msrs.NARROW),
        (msrs.IA32_EFER, EFER | 1 << 1),
        (msrs.IA32_EFER, EFER & ~x86.EFER_LME),  # under paging
        (msrs.IA32_PAT, 0x0007_0406_0007_0402),
        (msrs.IA32_MTRR_DEF_TYPE, 1 << 20),
        (msrs.IA32_MTRRCAP, 0),
    ],
)
def test_msr_values_that_are_refused(guest, index, value):
    end = wrmsr(guest, index, value)
    assert fault(end) == GP0 and end.saved["rip"] == CODE


def test_lma_is_not_writable(guest):
    end = wrmsr(guest, msrs.IA32_EFER, EFER & ~x86.EFER_LMA)
    assert end.vector is None and end.cpu.efer == EFER


def test_constant_msrs(guest):
    for index, value in msrs.FIXED.items():
        end = rdmsr(guest, index)
        assert end.reg(x86.RDX) << 32 | end.reg(x86.RAX) == value
    assert wrmsr(guest, msrs.IA32_BIOS_SIGN_ID, 0).vector is None


def test_other_msrs_are_asked_for_outside(guest):
    end = rdmsr(guest, 0x1B, (0xFEE0_0900_1234_5678,))
    assert end.exits == [MsrRead(0x1B)]
    assert (end.reg(x86.RAX), end.reg(x86.RDX)) == (0x1234_5678, 0xFEE0_0900)
    end = wrmsr(guest, 0x6E0, 0x1_0000_0002, (0,))
    assert end.exits == [MsrWrite(0x6E0, 0x1_0000_0002)] and end.vector is None


def test_a_refused_msr_is_gp(guest):
    end = rdmsr(guest, 0x1234, (None,))
    assert fault(end) == GP0 and end.saved["rip"] == CODE and end.reg(x86.RAX) == 1 << 40
    assert fault(wrmsr(guest, 0x1234, 0, (None,))) == GP0


# --- ports ---


@pytest.mark.parametrize(
    ("code", "width", "result"),
    [
        ("in al, dx", 1, 0x1111_1111_1111_1178),
        ("in ax, dx", 2, 0x1111_1111_1111_5678),
        ("in eax, dx", 4, 0x1234_5678),
        (b"\x48\xed", 4, 0x1234_5678),
    ],
)
def test_in(guest, code, width, result):
    code = code if isinstance(code, bytes) else assemble(code)
    before = {"rax": 0x1111_1111_1111_1111, "rdx": 0xABCD_0CF8}
    end = guest.run(code + b"\xf4", answers=(0x12345678,), **before)
    assert end.exits == [PortRead(0xCF8, width)] and end.reg(x86.RAX) == result


def test_out_and_immediate_ports(guest):
    code = "out 0xe9, al; out dx, ax; out dx, eax; in al, 0xff; hlt"
    end = guest.run(code, rax=0x12345678, rdx=0x3F8)
    assert end.exits == [
        PortWrite(0xE9, 1, 0x78), PortWrite(0x3F8, 2, 0x5678), PortWrite(0x3F8, 4, 0x12345678),
        PortRead(0xFF, 1),
    ]  # fmt: skip


def test_rep_ins_and_outs(guest):
    end = guest.run("rep insw; hlt", rcx=3, rdi=DATA, rdx=0x1F0, answers=(0x1122, 0x3344, 0x5566))
    assert guest.memory.read(DATA, 8) == bytes.fromhex("2211 4433 6655 0000")
    assert (end.reg(x86.RCX), end.reg(x86.RDI)) == (0, DATA + 6)
    guest.write(DATA, b"abc")
    end = guest.run("std; rep outsb; hlt", rcx=3, rsi=DATA + 2, rdx=0x402)
    assert [e.value for e in end.exits] == [*b"cba"] and end.reg(x86.RSI) == DATA - 1
    assert guest.run("rep insd; hlt", rcx=0).exits == []


def test_rep_ins_reads_no_port_for_memory_that_faults(guest):
    end = guest.run("rep insb", rcx=3, rdi=HANDLERS - 2, rdx=1, answers=(1, 2, 3))
    assert len(end.exits) >= 2
    guest.q(PT + (DATA >> 12) * 8 + 8, 0)
    end = guest.run("rep insb", rcx=3, rdi=DATA + 0xFFF, rdx=1, answers=(1, 2, 3))
    assert fault(end) == (14, 2) and end.cpu.cr2 == DATA + 0x1000
    # The first element is committed, the second did not touch the port.
    assert end.exits == [PortRead(1, 1)] and end.reg(x86.RCX) == 2
    assert end.saved["rip"] == CODE


def test_an_interrupt_comes_between_the_elements_of_rep_outs(guest):
    guest.write(CODE, b"\xf3\x6e\xf4")
    guest.state = guest.state.with_gpr(rcx=3, rsi=DATA, rdx=0x402)
    guest.vcpu.set_state(guest.state)
    assert guest.vcpu.run() == PortWrite(0x402, 1, 0)
    guest.cpu.inject = 0x41 + 1
    end = guest.go([])
    assert end.vector == 0x41 and end.reg(x86.RCX) == 2 and end.saved["rip"] == CODE


def test_ports_need_iopl_or_the_bitmap(user):
    assert fault(user.run("in al, dx", rdx=0x60)) == GP0
    user.state = replace(user.state, rflags=0x3002)
    assert user.run("in al, dx; ud2", rdx=0x60).vector == 6
    # A bitmap for ports 0-0x7F: 0x60 is allowed, 0x61 is not.
    user.state = replace(user.state, rflags=2, tr=replace(user.state.tr, limit=0x68 + 16))
    user.write(TSS + 0x66, (0x68).to_bytes(2, "little") + b"\xff" * 12 + b"\xfe" + b"\xff" * 4)
    assert user.run("in al, dx; ud2", rdx=0x60).vector == 6
    assert fault(user.run("in ax, dx", rdx=0x60)) == GP0
    assert fault(user.run("in al, dx", rdx=0x61)) == GP0
    assert fault(user.run("in al, dx", rdx=0x80)) == GP0  # beyond the map
    assert not user.run("in al, dx", rdx=0x61).exits


# --- RFLAGS ---


def test_popf_by_privilege(guest, user):
    every = 0x3C_7FD7 & ~x86.TF
    end = guest.run("push rax; popfq; pushfq; pop rbx; hlt", rax=every)
    # VIF and VIP do not change; RF and VM become 0.
    assert end.reg(x86.RBX) == every & ~(x86.VIF | x86.VIP | x86.RF | x86.VM)
    end = user.run("push rax; popfq; pushfq; pop rbx; ud2", rax=every)
    assert end.reg(x86.RBX) == (every & ~(x86.VIF | x86.VIP | x86.IOPL | x86.IF)) | 2
    user.state = replace(user.state, rflags=0x3002)
    end = user.run("push rax; popfq; pushfq; pop rbx; ud2", rax=x86.IF)
    assert end.reg(x86.RBX) == 0x3202


def test_popf_of_16_bits(guest):
    end = guest.run(b"\x50\x66\x9d\x9c\x5b\xf4", rax=0xFFFF_FFFF_FFFF_0042 | x86.CF)
    assert end.reg(x86.RBX) == 0x43 and end.reg(x86.RSP) == guest.state.gpr[4] - 6


def test_cli_sti_by_privilege(user):
    assert fault(user.run("cli")) == GP0 and fault(user.run("sti")) == GP0
    user.state = replace(user.state, rflags=0x3202)
    assert user.run("cli; ud2").saved["rflags"] & x86.IF == 0


def test_sti_holds_off_interrupts_for_one_instruction(guest):
    guest.write(CODE, b"\xfb\x90\x90\xf4")
    guest.vcpu.set_state(guest.state)
    guest.interrupts.pending = lambda: True
    guest.interrupts.acknowledge = lambda: 0x50
    guest.vcpu._interrupts_changed()
    end = guest.go([])
    assert end.vector == 0x50 and end.saved["rip"] == CODE + 2


def test_direction(guest):
    end = guest.run("std; pushfq; pop rax; cld; pushfq; pop rbx; hlt")
    assert (end.reg(x86.RAX), end.reg(x86.RBX)) == (0x402, 2)


# --- segments, by hand where Unicorn cannot tell ---


def test_ltr_marks_the_tss_busy(guest):
    guest.q(GDT + TSS_SELECTOR, segment_descriptor(TSS, 0x67, 0x89))
    guest.q(GDT + TSS_SELECTOR + 8, 0xFFFF_8000)
    end = guest.run("ltr ax; str ebx; hlt", rax=TSS_SELECTOR)
    assert guest.read_q(GDT + TSS_SELECTOR) >> 40 & 0xFF == 0x8B
    assert end.cpu.seg[x86.TR].base == 0xFFFF_8000_0000_0000 | TSS
    assert end.reg(x86.RBX) == TSS_SELECTOR
    # A busy one cannot be loaded, nor a null one.
    assert fault(guest.run("ltr ax", rax=TSS_SELECTOR)) == (13, TSS_SELECTOR)
    assert fault(guest.run("ltr ax", rax=0)) == GP0


@pytest.mark.parametrize(("code", "access"), [("ltr ax", 0x89), ("lldt ax", 0x82)])
def test_a_system_segment_has_a_canonical_base(guest, code, access):
    guest.q(GDT + TSS_SELECTOR, segment_descriptor(TSS, 0x67, access))
    guest.q(GDT + TSS_SELECTOR + 8, 0x8000)
    assert fault(guest.run(code, rax=TSS_SELECTOR)) == (13, TSS_SELECTOR)
    # A TSS that was refused is not busy.
    assert guest.read_q(GDT + TSS_SELECTOR) >> 40 & 0xFF == access


def test_null_stack_selector_needs_the_right_rpl(guest):
    assert guest.run("mov ss, eax; hlt", rax=0).vector is None
    assert fault(guest.run("mov ss, eax", rax=1)) == GP0


def test_mov_from_segment_is_16_bits_to_memory(guest):
    guest.write(DATA, b"\xff" * 8)
    # The last one is MOV CX, SS with its 66 prefix, which LLVM leaves out.
    code = assemble("mov [rsi], cs; mov rbx, ds") + b"\x66\x8c\xd1\xf4"
    end = guest.run(code, rsi=DATA, rbx=ALL_ONES, rcx=0xFFFF_FFFF)
    assert guest.memory.read(DATA, 4) == b"\x08\x00\xff\xff"
    assert (end.reg(x86.RBX), end.reg(x86.RCX)) == (0x10, 0xFFFF_0010)


@pytest.mark.parametrize("code", [b"\x8e\xc8", b"\x8e\xf0", b"\x8c\xf8"])
def test_segment_registers_that_do_not_exist(guest, code):
    assert guest.run(code).vector == 6  # MOV CS, MOV segment 6, MOV from segment 7


def test_lgdt_and_sgdt(guest):
    guest.write(DATA, b"\x34\x12" + (0xFFFF_8000_1234_5678).to_bytes(8, "little"))
    code = "lgdt [rsi]; sgdt [rdi]; lidt [rsi]; sidt [rbx]; hlt"
    end = guest.run(code, rsi=DATA, rdi=DATA + 16, rbx=DATA + 32)
    wanted = guest.memory.read(DATA, 10)
    assert guest.memory.read(DATA + 16, 10) == guest.memory.read(DATA + 32, 10) == wanted
    assert end.cpu.gdt_base == end.cpu.idt_base == 0xFFFF_8000_1234_5678
    guest.q(DATA + 2, NOT_CANONICAL)
    assert fault(guest.run("lgdt [rsi]", rsi=DATA)) == GP0


def test_wide_far_pointer(guest):
    guest.q(DATA, 0x1122_3344_5566_7788)
    guest.write(DATA + 8, b"\x10\x00")
    end = guest.run("lgs rax, [rsi]; hlt", rsi=DATA)
    assert end.reg(x86.RAX) == 0x1122_3344_5566_7788 and end.cpu.seg[x86.GS].selector == 0x10


def test_fs_and_gs_bases(user):
    assert user.run("rdfsbase rax").vector == 6
    user.state = replace(user.state, cr4=CR4 | x86.CR4_FSGSBASE)
    code = "wrfsbase rax; wrgsbase eax; rdfsbase rbx; rdgsbase rcx; rdfsbase edx; ud2"
    end = user.run(code, rax=0x7FFF_1234_5678, rdx=ALL_ONES)
    seen = [end.reg(n) for n in (x86.RBX, x86.RCX, x86.RDX)]
    assert seen == [0x7FFF_1234_5678, 0x1234_5678, 0x1234_5678]
    assert fault(user.run("wrgsbase rax", rax=NOT_CANONICAL)) == GP0


def test_loading_a_null_selector_clears_the_base(guest):
    guest.state = replace(guest.state, fs=replace(guest.state.fs, base=0x1234_5000))
    assert guest.run("xor eax, eax; mov fs, eax; hlt").cpu.seg[x86.FS].base == 0


def test_rdrand(guest):
    """Intel SDM vol. 2B, RDRAND: CF tells of success, the other arithmetic flags are 0."""
    code = "rdrand rax; rdrand rbx; rdrand ecx; mov esi, -1; rdrand si; pushfq; pop rdi; hlt"
    end = guest.run(f"stc; mov rcx, -1; {code}", rax=0, rbx=0)
    assert len({end.reg(n) for n in (x86.RAX, x86.RBX)} | {0}) == 3
    assert end.reg(x86.RCX) >> 32 == 0
    assert end.reg(x86.RSI) >> 16 == 0xFFFF
    assert end.reg(x86.RDI) & x86.ARITHMETIC_FLAGS == x86.CF


@pytest.mark.parametrize(("offset", "vector"), [(0, None), (8, 13)])
def test_cmpxchg16b_needs_alignment(guest, offset, vector):
    guest.write(DATA, struct.pack("<4Q", 1, 2, 1, 2))
    end = guest.run(
        "lock cmpxchg16b [rsi]; hlt", rsi=DATA + offset, rax=1, rdx=2, rbx=3, rcx=4
    )  # fmt: skip
    assert end.vector == vector
    if vector is None:
        assert struct.unpack("<2Q", guest.memory.read(DATA, 16)) == (3, 4)


def test_fast_strings_are_on(guest):
    """Linux believes CPUID's ERMS only where IA32_MISC_ENABLE says so too."""
    end = guest.run("rdmsr; hlt", rcx=msrs.IA32_MISC_ENABLE)
    assert end.vector is None and end.reg(x86.RAX) & 1


# --- speculation control ---


def with_model(**options):
    leaves = models.build("x86-64-v2", vcpus=1, tsc_hz=2_000_000_000, **options)
    return Guest(cpuid=list(models.for_vcpu(leaves, 0)))


@pytest.mark.parametrize(
    ("number", "value", "allowed"),
    [(0x48, 0b111, True), (0x48, 1 << 10, True), (0x48, 8, False), (0x49, 1, True),
     (0x49, 2, False), (0x10A, 1, False)],
)  # fmt: skip
def test_speculation_control_is_kept(number, value, allowed):
    guest = with_model()
    try:
        code = "wrmsr; xor eax, eax; mov ecx, 0x48; rdmsr; hlt"
        end = guest.run(code, rax=value, rcx=number, rdx=0)
        assert (end.vector is None) == allowed
        if allowed and number == 0x48:
            assert end.reg(x86.RAX) == value
    finally:
        guest.close()
        Guest.alive.remove(guest)


def test_immunities_are_read_where_cpuid_offers_them():
    for options, there in (({}, True), ({"vendor": models.INTEL, "supported": models.build(
        "x86-64-v2", vcpus=1, tsc_hz=2_000_000_000)}, False)):  # fmt: skip
        guest = with_model(**options)
        try:
            end = guest.run("rdmsr; hlt", rcx=0x10A)
            # RDCL_NO.
            assert (end.vector is None and end.reg(x86.RAX) & 1 == 1) == there
        finally:
            guest.close()
            Guest.alive.remove(guest)


# --- translations of several address spaces ---

KEEP = 1 << 63


def pcid_guest(guest):
    guest.state = replace(guest.state, cr4=CR4 | x86.CR4_PCIDE)
    guest.write(DATA, b"\x01")
    guest.write(DATA + 0x1000, b"\x02")
    return {"rsi": DATA, "rdi": PT + (DATA >> 12) * 8, "r8": PML4 | KEEP, "r9": PML4 | 1 | KEEP}


# Reads the page in PCID 0, points its entry elsewhere in PCID 1, and reads again in PCID 0.
CHANGE = """
    mov al, [rsi]; mov cr3, r9; add qword ptr [rdi], 0x1000
    {forget}
    mov cr3, r8; mov bl, [rsi]; hlt
"""


@pytest.mark.parametrize(
    ("forget", "seen"),
    [
        ("nop", 1),  # kept, as nothing was told of the change
        ("invlpg [rsi]", 2),  # ours reach all spaces, as a global page's must
        ("mov rax, cr4; xor rax, 0x80; mov cr4, rax", 2),
        ("mov r8, rdx", 2),  # PCID 0 again, without the bit that keeps
    ],
)
def test_a_pcid_keeps_its_translations_until_they_are_forgotten(guest, forget, seen):
    registers = pcid_guest(guest)
    end = guest.run(CHANGE.format(forget=forget), **registers, rdx=PML4)
    assert end.vector is None and end.reg(x86.RBX) & 0xFF == seen


@pytest.mark.parametrize(("kind", "pcid", "seen"), [(1, 0, 2), (1, 1, 1), (2, 0, 2), (3, 0, 2)])
def test_invpcid_forgets_the_pcids_that_it_names(guest, kind, pcid, seen):
    registers = pcid_guest(guest)
    guest.write(DATA + 0x2000, pcid.to_bytes(8, "little") + bytes(8))
    code = CHANGE.format(forget="invpcid rcx, [rdx]")
    end = guest.run(code, **registers, rcx=kind, rdx=DATA + 0x2000)
    assert end.vector is None and end.reg(x86.RBX) & 0xFF == seen


def test_more_pcids_than_there_are_tables_for(guest):
    registers = pcid_guest(guest)
    turns = "; ".join(f"mov rax, {PML4 | n | KEEP}; mov cr3, rax; mov bl, [rsi]" for n in range(20))
    end = guest.run(f"{turns}; mov cr3, r8; mov bl, [rsi]; hlt", **registers)
    assert end.vector is None and end.reg(x86.RBX) & 0xFF == 1


def test_code_written_in_another_address_space_is_dropped(guest):
    """PCID 0 loses its write entry when PCID 1 translates the page, and its code when 1 writes."""
    registers = pcid_guest(guest)
    code = """
        mov rcx, 4
        mov cr3, r9
    again:
        mov byte ptr [rsi], 0xb0
        mov byte ptr [rsi + 1], cl
        mov byte ptr [rsi + 2], 0xc3
        mov cr3, r8
        call rsi
        mov cr3, r9
        call rsi
        add bl, al
        dec rcx
        jnz again
        hlt
    """
    end = guest.run(code, **{**registers, "rbx": 0})
    assert end.vector is None and end.reg(x86.RBX) & 0xFF == 4 + 3 + 2 + 1


# --- the soft TLB ---


def test_a_miss_of_translated_code_needs_no_interpreter(guest):
    """Each page of a walk misses once; only what crosses pages is interpreted."""
    code = """
    again:
        mov rdi, rsi; mov rcx, 64
    next:
        mov rax, [rdi]; mov [rdi + 8], rax; lea rsp, [rdi + 0x100]; push rax; pop rbx
        add rdi, 0x1000; dec rcx; jnz next
        hlt
    """
    end = guest.run(code, rsi=DATA)
    assert end.vector is None
    assert end.cpu.count_tlb_misses >= 64
    if guest.entry == "run_translator":
        assert end.cpu.count_slow < 16


def test_a_page_fault_of_translated_code_is_at_its_instruction(guest):
    guest.q(PT + ((DATA + 0x3000) >> 12) * 8, 0)
    code = "mov rcx, 8; next: mov rax, [rsi]; add rsi, 0x1000; dec rcx; jnz next; hlt"
    end = guest.run(code, rsi=DATA)
    assert fault(end) == (14, 0) and end.cpu.cr2 == DATA + 0x3000
    assert end.saved["rip"] == CODE + 7 and end.reg(x86.RCX) == 5


@pytest.mark.parametrize("register", ["rsp", "rbp"])
def test_one_entry_cannot_serve_both_ends_of_an_instruction(guest, register):
    """PUSH of memory whose page shares a TLB entry with the stack's goes on in the interpreter."""
    guest.q(PML4 + 8, guest.read_q(PML4))
    far = 1 << 39
    code = f"mov {register}, rdi; mov rsp, rdi; mov rcx, 20; l: push qword ptr [rsi]; pop rax"
    guest.write(DATA + 0x800, b"\x11" * 8)
    end = guest.run(f"{code}; dec rcx; jnz l; hlt", rsi=DATA + 0x800, rdi=far + DATA + 0x100)
    assert end.vector is None and end.reg(x86.RAX) == 0x1111_1111_1111_1111
