"""Real-address and protected mode: segments, gates, stack switches, the way to 64-bit mode.

Expectations are the manual's (Intel SDM vol. 3A, chapters 5, 6 and 9.8.5).
"""

import struct
from dataclasses import replace

import pytest

from ringzero.engine.x86 import PortWrite
from ringzero.errors import StateError
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.state import CpuState, Segment, Table
from tests.isa.guest import (
    CODE,
    DATA,
    FREE,
    GDT,
    GDT_LIMIT,
    HANDLER_SIZE,
    IDT,
    KERNEL_STACK,
    PML4,
    RSP0,
    TSS,
    TSS_SELECTOR,
    USER_CODE,
    USER_STACK,
    Guest,
    assemble,
    gate32,
    segment_descriptor,
)

pytestmark = pytest.mark.engine

CS32, DS32, CS16, DS16, UCS32, UDS32 = 0x08, 0x10, 0x18, 0x20, 0x2B, 0x33
STACK0 = 0x38  # the SS of level 0 in the TSS
HANDLER = 0x60000
GP0 = (13, 0)


class Protected(Guest):
    """A guest in 32-bit protected mode without paging; handlers are HLT, 16 bytes apart."""

    def __init__(self):
        super().__init__()
        for selector, descriptor in (
            (CS32, segment_descriptor(0, 0xFFFFF, 0x9B, 0xC)),
            (DS32, segment_descriptor(0, 0xFFFFF, 0x93, 0xC)),
            (CS16, segment_descriptor(0, 0xFFFF, 0x9B)),
            (DS16, segment_descriptor(0, 0xFFFF, 0x93)),
            (UCS32 & ~3, segment_descriptor(0, 0xFFFFF, 0xFB, 0xC)),
            (UDS32 & ~3, segment_descriptor(0, 0xFFFFF, 0xF3, 0xC)),
            (STACK0, segment_descriptor(0, 0xFFFFF, 0x92, 0xC)),
            (TSS_SELECTOR, segment_descriptor(TSS, 0x67, 0x8B)),
        ):
            self.q(GDT + selector, descriptor)
        self.write(TSS, bytes(0x68))
        self.write(TSS + 4, struct.pack("<II", RSP0, STACK0))
        for vector in range(256):
            self.gate(vector)
            self.write(HANDLER + vector * HANDLER_SIZE, b"\xf4")
        flat = {
            name: Segment(DS32, 0, 0xFFFFFFFF, 0xC93) for name in ("ds", "es", "fs", "gs", "ss")
        }
        self.state = CpuState(
            rip=CODE, cs=Segment(CS32, 0, 0xFFFFFFFF, 0xC9B), **flat,
            tr=Segment(TSS_SELECTOR, TSS, 0x67, 0x8B), ldtr=Segment(),
            gdtr=Table(GDT, GDT_LIMIT), idtr=Table(IDT, 0x7FF), cr0=0x11,
        ).with_gpr(rsp=KERNEL_STACK)  # fmt: skip

    def gate(self, vector, target=None, selector=CS32, kind=0xE, dpl=0):
        target = HANDLER + vector * HANDLER_SIZE if target is None else target
        self.write(IDT + vector * 8, gate32(target, selector, kind, dpl))

    def become_user(self):
        user = Segment(UDS32, 0, 0xFFFFFFFF, 0xCF3)
        self.state = replace(
            self.state, rip=USER_CODE, cs=Segment(UCS32, 0, 0xFFFFFFFF, 0xCFB), ss=user,
            ds=user, es=user, fs=user, gs=user,
        ).with_gpr(rsp=USER_STACK)  # fmt: skip

    def run(self, code=b"", *, mode=32, answers=(), **regs):
        return super().run(code, mode=mode, answers=answers, **regs)

    def stack(self, count, size=4):
        """The words on the stack, from its top."""
        where = self.cpu.regs[x86.RSP]
        return struct.unpack(f"<{count}{'IH'[size == 2]}", self.memory.read(where, size * count))

    @property
    def vector(self):
        """Which handler halted."""
        return (self.cpu.rip - 1 - HANDLER) // HANDLER_SIZE


@pytest.fixture
def guest():
    return Protected()


@pytest.fixture
def user():
    guest = Protected()
    guest.become_user()
    return guest


def test_fault_at_the_same_level(guest):
    guest.run("mov eax, 0x200; mov ds, eax")
    assert guest.vector == 13
    code, eip, cs, eflags = guest.stack(4)
    assert (code, eip, cs, eflags) == (0x200, CODE + 5, CS32, 2 | x86.RF)
    assert guest.cpu.regs[x86.RSP] == KERNEL_STACK - 16


def test_fault_from_user_switches_stacks_by_the_tss(user):
    user.run("stc; hlt")
    assert user.vector == 13
    assert user.stack(6) == (0, USER_CODE + 1, UCS32, 3 | x86.RF, USER_STACK, UDS32)
    assert user.cpu.regs[x86.RSP] == RSP0 - 24
    assert user.cpu.seg[x86.SS].selector == STACK0 and user.cpu.cpl == 0
    # Its descriptor was marked accessed.
    assert user.read_q(GDT + STACK0) >> 40 & 1


def test_16_bit_gate_pushes_words(user):
    user.gate(0x80, dpl=3, kind=7, target=0x100)
    user.write(0x100, b"\xf4")
    user.run("int 0x80")
    assert user.cpu.rip == 0x101
    assert user.stack(5, 2) == (USER_CODE + 2 & 0xFFFF, UCS32, 2, USER_STACK & 0xFFFF, UDS32)


@pytest.mark.parametrize(
    ("selector", "descriptor", "vector", "code"),
    [
        (0, None, 10, 0),
        (0x3B, None, 10, 0x38),  # RPL is not the new CPL
        (UDS32 & ~3, None, 10, UDS32 & ~3),  # DPL
        (CS32, None, 10, CS32),
        (0x200, None, 10, 0x200),
        (FREE, segment_descriptor(0, 0xFFFFF, 0x12, 0xC), 12, FREE),
        (FREE, segment_descriptor(0, 0xFFFFF, 0x90, 0xC), 10, FREE),
    ],
)
def test_stack_segment_of_the_tss_is_checked(guest, selector, descriptor, vector, code):
    """#TS and #SS are served by conforming code at level 3, on the user's stack."""
    if descriptor is not None:
        guest.q(GDT + FREE, descriptor)
    guest.write(TSS + 8, struct.pack("<I", selector))
    guest.q(GDT + FREE + 8, segment_descriptor(0, 0xFFFFF, 0x9F, 0xC))
    for number in (10, 12):
        guest.gate(number, selector=FREE + 8)
        guest.write(HANDLER + number * HANDLER_SIZE, b"\xe6\x80")
    guest.become_user()
    guest.state = replace(guest.state, rflags=0x3002)
    guest.write(USER_CODE, b"\x0f\x0b")
    guest.vcpu.set_state(guest.state)
    # The handler shows itself by OUT 80h.
    assert guest.vcpu.run() == PortWrite(0x80, 1, 0)
    assert guest.cpu.rip == HANDLER + vector * HANDLER_SIZE
    assert guest.cpu.cpl == 3
    assert guest.stack(3) == (code | 1, USER_CODE, UCS32)


def test_iret_to_user_and_back_nulls_inner_data_segments(guest):
    frame = struct.pack("<5I", USER_CODE, UCS32, 0x202, USER_STACK, UDS32)
    guest.write(KERNEL_STACK - 20, frame)
    guest.write(USER_CODE, assemble("mov eax, ds; mov ecx, es; int3", 32))
    guest.gate(3, dpl=3)
    guest.run("mov eax, 0x33; mov es, eax; iretd", rsp=KERNEL_STACK - 20)
    assert guest.vector == 3
    assert (guest.cpu.regs[x86.RAX], guest.cpu.regs[x86.RCX]) == (0, UDS32)
    assert guest.stack(5) == (USER_CODE + 5, UCS32, 0x202, USER_STACK, UDS32)


def test_iret_with_nt_is_refused(guest):
    guest.run("push 0x4002; popfd; iretd")
    assert guest.vector == 13


def call_gate(guest, target, kind=0xC, selector=CS32, dpl=3, count=0):
    low = target & 0xFFFF | selector << 16 | count << 32 | (0x80 | dpl << 5 | kind) << 40
    guest.q(GDT + FREE, low | (target >> 16) << 48)


def test_call_gate_to_an_inner_level_copies_parameters(user):
    call_gate(user, DATA, count=2)
    user.write(DATA, b"\xf4")
    user.write(USER_STACK, struct.pack("<3I", 0x11, 0x22, 0x33))
    user.run(b"\x9a\0\0\0\0" + struct.pack("<H", FREE | 3))
    assert user.cpu.rip == DATA + 1 and user.cpu.cpl == 0
    assert user.stack(6) == (USER_CODE + 7, UCS32, 0x11, 0x22, USER_STACK, UDS32)
    # RETF 8 goes back and releases the parameters on both stacks.
    user.write(DATA, assemble("retf 8", 32))
    user.write(USER_CODE + 7, assemble("int3", 32))
    user.gate(3, dpl=3)
    user.run(b"\x9a\0\0\0\0" + struct.pack("<H", FREE | 3) + b"\xcc")
    assert user.vector == 3
    assert user.stack(5) == (USER_CODE + 8, UCS32, 2, USER_STACK + 8, UDS32)


def test_call_gate_at_the_same_level(guest):
    call_gate(guest, DATA, kind=4, dpl=0)
    guest.write(DATA & 0xFFFF, b"\xf4")
    guest.run(b"\x9a\0\0\0\0" + struct.pack("<H", FREE))
    assert guest.cpu.rip == (DATA & 0xFFFF) + 1
    assert guest.stack(2, 2) == (CODE + 7 & 0xFFFF, CS32)


@pytest.mark.parametrize(
    ("how", "code"),
    [({"dpl": 0}, FREE), ({"kind": 5}, FREE), ({"selector": DS32}, DS32), ({"selector": 0}, 0)],
)
def test_call_gates_that_are_refused(user, how, code):
    call_gate(user, DATA, **how)
    user.run(b"\x9a\0\0\0\0" + struct.pack("<H", FREE | 3))
    assert user.vector == 13 and user.stack(2) == (code, USER_CODE)


def test_jump_through_a_call_gate_may_not_change_the_level(user):
    call_gate(user, DATA)
    user.run(b"\xea\0\0\0\0" + struct.pack("<H", FREE | 3))
    assert user.vector == 13 and user.stack(1) == (CS32,)


def test_call_gate_in_ia32e_mode():
    guest = Guest()
    guest.become_user()
    low = DATA & 0xFFFF | 8 << 16 | 0xEC << 40 | (DATA >> 16) << 48
    guest.write(GDT + FREE, struct.pack("<QQ", low, 0))
    guest.write(DATA, b"\xf4")
    guest.write(USER_CODE + 0x100, struct.pack("<IH", 0, FREE | 3))
    end = guest.run("call fword ptr [rbx]", rbx=USER_CODE + 0x100)
    assert end.vector is None and end.cpu.cpl == 0 and end.cpu.seg[x86.SS].selector == 0
    frame = struct.unpack("<4Q", guest.memory.read(RSP0 - 32, 32))
    assert frame == (USER_CODE + 2, 0x33, USER_STACK, 0x2B)
    # The type field of the second half must be 0.
    guest.q(GDT + FREE + 8, 1 << 40)
    end = guest.run("call fword ptr [rbx]", rbx=USER_CODE + 0x100)
    assert (end.vector, end.code) == (13, FREE)


def test_far_jump_beyond_the_limit(guest):
    guest.run(b"\xea" + struct.pack("<IH", 0x10000, CS16))
    assert guest.vector == 13 and guest.stack(2) == (0, CODE)


@pytest.mark.parametrize(
    ("access", "flags", "limit", "code", "good"),
    [
        (0x93, 0, 0xF, "mov ebx, es:[12]", True),
        (0x93, 0, 0xF, "mov ebx, es:[13]", False),
        (0x93, 0, 0xF, "mov es:[15], bl", True),
        (0x93, 0, 0xF, "mov es:[16], bl", False),
        (0x93, 0, 0xF, "lea ebx, es:[999]", True),
        (0x93, 8, 0xF, "mov ebx, es:[0xfffc]", True),
        (0x93, 8, 0xF, "mov ebx, es:[0xfffd]", False),
        (0x91, 0, 0xF, "mov ebx, es:[0]", True),
        (0x91, 0, 0xF, "mov es:[0], bl", False),
        (0x91, 0, 0xF, "inc dword ptr es:[0]", False),
        (0x9B, 0, 0xF, "mov ebx, es:[0]", True),
        (0x9B, 0, 0xF, "mov es:[0], bl", False),
        (0x97, 4, 0xFFF, "mov ebx, es:[0x1000]", True),
        (0x97, 4, 0xFFF, "mov ebx, es:[0xfff]", False),
        (0x97, 0, 0xFFF, "mov ebx, es:[0xfffd]", False),
        (0x93, 0, 0xF, "mov edi, 8; mov ecx, 4; cld; rep stosw", True),
        (0x93, 0, 0xF, "mov edi, 8; mov ecx, 5; cld; rep stosw", False),
    ],
)
def test_segment_limits_and_rights(guest, access, flags, limit, code, good):
    guest.q(GDT + FREE, segment_descriptor(DATA, limit, access, flags))
    guest.run(f"mov es, eax; {code}; int 0x80", rax=FREE)
    assert guest.vector == (0x80 if good else 13)
    if not good:
        assert guest.stack(1) == (0,)
        assert guest.cpu.fault_vector == 13


def test_null_and_stack_segments(guest):
    guest.run("mov es, eax; mov ebx, es:[4]", rax=0)
    assert guest.vector == 13
    # 16 bytes of stack above ESP: the seventeenth is out of limits.
    guest.q(GDT + FREE, segment_descriptor(0, KERNEL_STACK + 15, 0x93, 4))
    guest.run("mov ss, eax; mov ebx, [esp + 12]; mov ebx, [esp + 13]", rax=FREE)
    assert guest.vector == 12


def test_segment_bases_count(guest):
    guest.q(GDT + FREE, segment_descriptor(DATA, 0xF, 0x93))
    guest.write(DATA, b"0123456789abcdef")
    end = guest.run("mov es, eax; mov ebx, es:[12]; hlt", rax=FREE)
    assert end.reg(x86.RBX) == int.from_bytes(b"cdef", "little")


def test_expand_down_stack_is_checked_by_interrupts(guest):
    # Valid offsets are those above the limit, FFFFh.
    guest.q(GDT + FREE, segment_descriptor(0, 0xF, 0x97, 0xC))
    guest.run("mov ss, eax; int 0x80", rax=FREE)
    assert guest.vector == 0x80
    guest.gate(12, selector=FREE + 8)
    guest.run("mov ss, eax; mov esp, 0x10004; int 0x80", rax=FREE)
    # #SS, then its own delivery fails too, and that of the double fault.
    assert guest.cpu.fault_vector == 12


def test_push_and_pop_of_segments(guest):
    # PUSH CS, SS, DS, ES; POP FS, GS, EDX, ESI.
    code = bytes.fromhex("0e 16 1e 06 0fa1 0fa9 5a 5e")
    end = guest.run(code + assemble("mov eax, gs; hlt", 32))
    assert [end.reg(n) for n in (x86.RAX, x86.RDX, x86.RSI)] == [DS32, DS32, CS32]
    assert end.reg(x86.RSP) == KERNEL_STACK


def test_arpl_and_into(guest):
    end = guest.run("mov eax, 0x10; mov ecx, 3; arpl ax, cx; setz dl; hlt")
    assert end.reg(x86.RAX) == 0x13 and end.reg(x86.RDX) & 0xFF == 1
    guest.run("mov al, 0x7f; inc al; into", rax=0)
    assert guest.vector == 4 and guest.stack(1) == (CODE + 5,)
    assert guest.run("xor al, al; into; hlt").cpu.rip == CODE + 4


# --- real-address mode ---


class Real(Guest):
    """A guest in real-address mode at 0:CODE's low part."""

    def __init__(self):
        super().__init__()
        flat = {name: Segment(0, 0, 0xFFFF, 0x93) for name in ("ds", "es", "fs", "gs", "ss")}
        self.state = CpuState(
            rip=0x7C00, cs=Segment(0, 0, 0xFFFF, 0x9B), **flat, idtr=Table(0x500, 0x3FF)
        ).with_gpr(rsp=0x7000)
        for vector in range(256):
            self.write(0x500 + vector * 4, struct.pack("<HH", vector, 0x6000))
            self.write(0x60000 + vector, b"\xf4")

    def run(self, code=b"", *, mode=16, answers=(), **regs):
        return super().run(code, mode=mode, answers=answers, **regs)

    def stack(self, count):
        return struct.unpack(f"<{count}H", self.memory.read(self.cpu.regs[x86.RSP], 2 * count))


def test_real_mode_interrupt_and_return():
    guest = Real()
    end = guest.run("sti; stc; int 0x21")
    assert end.cpu.seg[x86.CS].selector == 0x6000 and end.cpu.rip == 0x22
    assert guest.stack(3) == (0x7C04, 0, 0x203)
    assert end.cpu.rflags & x86.IF == 0
    guest.write(0x60021, b"\xcf")
    end = guest.run("sti; stc; int 0x21; hlt")
    assert end.cpu.rip == 0x7C05 and end.cpu.rflags & x86.IF and end.reg(x86.RSP) == 0x7000


def test_real_mode_segments_are_shifted():
    guest = Real()
    guest.write(0x12345, b"\x5a")
    guest.write(0x10020, b"\xf4")
    jump = b"\xea\x20\x00\x00\x10"  # JMP 1000:0020
    end = guest.run(assemble("mov ax, 0x1234; mov ds, ax; mov bl, [5]", 16) + jump)
    assert end.reg(x86.RBX) == 0x5A
    assert end.cpu.seg[x86.CS].base == 0x10000 and end.cpu.rip == 0x21


def test_real_mode_far_call_and_return():
    guest = Real()
    guest.write(0x10020, b"\x41\xcb")
    end = guest.run(b"\x9a\x20\x00\x00\x10\xf4")  # CALL 1000:0020
    assert end.reg(x86.RCX) == 1 and end.reg(x86.RSP) == 0x7000


def test_from_reset_to_64_bit_mode():
    """The path of every boot: real, protected, paging with LME, 64-bit code, and user code."""
    guest = Real()
    guest.q(GDT + CS32, segment_descriptor(0, 0xFFFFF, 0x9B, 0xC))
    guest.q(GDT + FREE, segment_descriptor(0, 0xFFFFF, 0x9A, 0xA))
    guest.write(0x6000, struct.pack("<HI", GDT_LIMIT, GDT))
    guest.write(
        CODE,
        assemble(
            f"""
            mov eax, 0x10; mov ds, eax; mov ss, eax; mov esp, {KERNEL_STACK}
            mov eax, cr4; or eax, 0x20; mov cr4, eax; mov eax, {PML4}; mov cr3, eax
            mov ecx, 0xc0000080; rdmsr; or eax, 0x100; wrmsr
            mov eax, cr0; or eax, 0x80000000; mov cr0, eax
            mov ecx, 0xc0000080; rdmsr; mov ebx, eax
            push {FREE}; push {DATA}; retf
            """,
            32,
        ),
    )
    guest.write(DATA, assemble("mov r15, 0x1122334455667788; hlt"))
    end = guest.run(
        f"""
        cli; lgdt [0x6000]; mov eax, cr0; or eax, 1; mov cr0, eax
        .byte 0x66, 0xea; .long {CODE}; .word {CS32}
        """
    )
    assert end.reg(x86.R15) == 0x1122_3344_5566_7788
    assert end.reg(x86.RBX) & 0xFFFF == x86.EFER_LME | x86.EFER_LMA
    assert end.cpu.mode == x86.MODE_64 and end.cpu.seg[x86.CS].selector == FREE


def test_paging_on_with_lme_needs_pae():
    guest = Protected()
    guest.state = replace(guest.state, efer=x86.EFER_LME, cr3=PML4)
    guest.run("mov eax, cr0; or eax, 0x80000000; mov cr0, eax")
    assert guest.vector == 13


def test_leaving_64_bit_mode_through_compatibility_mode():
    guest = Guest()
    low = 0x18 << 32 | DATA
    guest.q(DATA + 0x100, low)
    guest.write(
        DATA,
        assemble("mov eax, cr0; and eax, 0x7fffffff; mov cr0, eax; mov ebx, 7; hlt", 32),
    )
    end = guest.run("jmp fword ptr [rsi]", rsi=DATA + 0x100)
    assert end.vector is None and end.reg(x86.RBX) == 7
    assert end.cpu.efer & x86.EFER_LMA == 0 and end.cpu.efer & x86.EFER_LME
    assert end.cpu.mode == x86.MODE_32


# --- what this engine has not: virtual-8086 mode, hardware task switches ---


def test_iret_to_virtual_8086_mode_is_refused(guest):
    guest.run(f"push {2 | x86.VM:#x}; push {CS32}; push {CODE}; iretd")
    assert guest.vector == 13
    assert guest.stack(2) == (0, CODE + 12)


def test_a_state_in_virtual_8086_mode_is_refused(guest):
    with pytest.raises(StateError, match="virtual-8086"):
        guest.vcpu.set_state(replace(guest.state, rflags=2 | x86.VM))


def test_popf_does_not_enter_virtual_8086_mode(guest):
    end = guest.run(f"push {2 | x86.VM:#x}; popfd; hlt")
    assert end.cpu.rflags & x86.VM == 0


@pytest.mark.parametrize("kind", [0x89, 0x8B, 0x85, 0x81])
@pytest.mark.parametrize("code", ["jmp", "call"])
def test_far_transfers_to_tasks_are_refused(guest, code, kind):
    """To an available and a busy TSS, a task gate and a 16-bit TSS."""
    guest.q(GDT + FREE, segment_descriptor(TSS, 0x67, kind))
    opcode = {"jmp": "ea", "call": "9a"}[code]
    guest.run(bytes.fromhex(opcode + "00000000") + struct.pack("<H", FREE))
    assert guest.vector == 13
    assert guest.stack(2) == (FREE, CODE)


def test_task_gates_of_the_idt_are_refused(guest):
    guest.gate(0x80, kind=5, dpl=3)
    guest.run("int 0x80")
    assert guest.vector == 13
    assert guest.stack(2) == (0x80 * 8 | 2, CODE)


def test_a_return_to_the_task_before_is_refused(guest):
    guest.state = replace(guest.state, rflags=2 | x86.NT)
    guest.run("iretd")
    assert guest.vector == 13
    assert guest.stack(2) == (0, CODE)
