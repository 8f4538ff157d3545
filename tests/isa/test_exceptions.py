"""Delivery of exceptions and interrupts in IA-32e mode (Intel SDM vol. 3A, chapter 6).

Expectations are the manual's; the section is named where a rule is not obvious.
"""

import struct

import pytest

from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import (
    CODE,
    DATA,
    FREE,
    GDT,
    HANDLER_SIZE,
    HANDLERS,
    IST,
    KERNEL_CS,
    KERNEL_DS,
    KERNEL_STACK,
    RSP0,
    TSS,
    USER_CODE,
    USER_CS,
    USER_DS,
    USER_STACK,
    Guest,
    assemble,
    gate,
    segment_descriptor,
)

pytestmark = pytest.mark.engine

IF, RF, TF, NT = x86.IF, x86.RF, x86.TF, x86.NT
NOT_PRESENT = 0x10000  # a page whose entry the tests clear


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def user():
    guest = Guest()
    guest.become_user()
    return guest


def handler(vector):
    return HANDLERS + vector * HANDLER_SIZE


def test_fault_from_kernel_pushes_a_whole_frame_on_the_same_stack(guest):
    end = guest.run("nop; ud2", rsp=KERNEL_STACK - 3)
    assert end.vector == 6 and end.code is None
    # The frame is aligned to 16 bytes, RFLAGS is saved with RF set for a fault.
    assert end.saved == {
        "rip": CODE + 1, "cs": KERNEL_CS, "rflags": 2 | RF, "rsp": KERNEL_STACK - 3,
        "ss": KERNEL_DS,
    }  # fmt: skip
    assert end.reg(x86.RSP) == KERNEL_STACK - 16 - 40
    assert end.cpu.seg[x86.SS].selector == KERNEL_DS


def test_fault_from_user_switches_to_rsp0_and_a_null_ss(user):
    end = user.run("nop; nop; hlt")
    assert (end.vector, end.code) == (13, 0)
    assert end.saved == {
        "rip": USER_CODE + 2, "cs": USER_CS, "rflags": 2 | RF, "rsp": USER_STACK, "ss": USER_DS,
    }  # fmt: skip
    assert end.reg(x86.RSP) == RSP0 - 48
    assert end.cpu.seg[x86.SS].selector == 0
    assert end.cpu.cpl == 0 and end.cpu.seg[x86.CS].selector == KERNEL_CS


def test_interrupt_stack_table_is_used_at_any_privilege(guest):
    guest.gate(6, ist=3)
    end = guest.run("ud2")
    assert end.reg(x86.RSP) == IST[2] - 40
    assert end.saved["rsp"] == KERNEL_STACK and end.cpu.seg[x86.SS].selector == KERNEL_DS


@pytest.mark.parametrize(("kind", "left"), [(0xE, 0), (0xF, IF)])
def test_interrupt_gates_clear_if_and_trap_gates_do_not(guest, kind, left):
    guest.gate(6, kind=kind)
    end = guest.run("sti; ud2")
    assert end.saved["rflags"] & IF
    assert end.cpu.rflags & IF == left


def test_delivery_clears_nt_and_rf_and_tf(guest):
    # NT set by POPF; RF in the frame comes from the fault, and is clear in the handler.
    end = guest.run("push 0x4002; popfq; ud2")
    assert end.saved["rflags"] & (NT | RF) == NT | RF
    assert end.cpu.rflags & (NT | RF | TF) == 0


def test_software_interrupt_saves_the_next_rip_and_no_rf(guest):
    end = guest.run("int 0x80")
    assert end.vector == 0x80
    assert (end.saved["rip"], end.saved["rflags"]) == (CODE + 2, 2)


def test_software_interrupts_need_the_gates_privilege(user):
    end = user.run("int 0x80")
    assert (end.vector, end.code) == (13, 0x80 * 8 + 2)
    assert end.saved["rip"] == USER_CODE
    user.gate(0x80, dpl=3)
    assert user.run("int 0x80").vector == 0x80


@pytest.mark.parametrize(("code", "vector"), [("int3", 3), (b"\xf1", 1)])
def test_int3_is_checked_and_int1_is_not(user, code, vector):
    end = user.run(code)
    if vector == 3:
        assert (end.vector, end.code) == (13, 3 * 8 + 2)
        user.gate(3, dpl=3)
        end = user.run(code)
    assert end.vector == vector
    assert end.saved["rip"] == USER_CODE + 1 and end.saved["rflags"] & RF == 0


@pytest.mark.parametrize("kind", [0x5, 0x6, 0x7, 0xC, 0x0, 0x1E])
def test_other_gate_types_are_gp_with_the_idt_bit(guest, kind):
    guest.gate(6, kind=kind)
    end = guest.run("ud2")
    # #UD is benign, so the fault of its delivery is #GP with EXT (6.13).
    assert (end.vector, end.code) == (13, 6 * 8 + 2 + 1)


def test_gate_not_present_is_np(guest):
    guest.gate(6, kind=0x10E)
    assert (e := guest.run("ud2")).vector == 11 and e.code == 6 * 8 + 3
    guest.gate(0x80, kind=0x10E)
    # INT n is not an external event: EXT is clear.
    assert (e := guest.run("int 0x80")).vector == 11 and e.code == 0x80 * 8 + 2


def test_vector_beyond_the_idt_limit(guest):
    guest.run("hlt")
    guest.cpu.idt_limit = 0x80 * 16 + 14
    guest.write(CODE, b"\xcd\x80")
    guest.cpu.rip, guest.cpu.halted = CODE, 0
    end = guest.go([])
    assert (end.vector, end.code) == (13, 0x80 * 8 + 2)


@pytest.mark.parametrize(
    ("selector", "descriptor", "vector", "code"),
    [
        (0, None, 13, 1),
        (3, None, 13, 1),
        (0x200, None, 13, 0x201),
        (KERNEL_DS, None, 13, KERNEL_DS + 1),
        (0x18, None, 13, 0x19),  # 32-bit code
        (FREE, 0x00AF1B000000FFFF, 11, FREE + 1),  # not present
        (FREE, 0x00EF9B000000FFFF, 13, FREE + 1),  # L and D
        (0x30, None, 13, 0x31),  # DPL 3 from CPL 0
    ],
)
def test_code_segment_of_a_gate_is_checked(guest, selector, descriptor, vector, code):
    if descriptor is not None:
        guest.q(GDT + selector, descriptor)
    guest.gate(6, selector=selector)
    end = guest.run("ud2")
    assert (end.vector, end.code) == (vector, code)


def test_conforming_handler_keeps_the_privilege(user):
    user.q(GDT + FREE, 0x00AF9F000000FFFF)
    user.gate(6, selector=FREE)
    end = user.run("ud2")
    assert end.vector == 6
    assert end.cpu.cpl == 3 and end.cpu.seg[x86.CS].selector == FREE | 3
    assert end.reg(x86.RSP) == USER_STACK - 40 and end.saved["ss"] == USER_DS


def test_handler_address_must_be_canonical(guest):
    guest.gate(6, 1 << 47)
    end = guest.run("ud2")
    assert (end.vector, end.code) == (13, 1)


def test_accessed_bit_of_the_handlers_segment_is_set(guest):
    guest.q(GDT + FREE, 0x00AF9A000000FFFF)
    guest.gate(6, selector=FREE)
    assert guest.run("ud2").vector == 6
    assert guest.read_q(GDT + FREE) == 0x00AF9B000000FFFF


def test_tss_too_small_for_the_stack_is_ts(user):
    user.gate(6, ist=7)
    user.run("ud2")
    user.write(USER_CODE, b"\x0f\x0b")
    user.vcpu.set_state(user.state)
    user.cpu.seg[x86.TR].limit = 0x5A
    end = user.go([])
    assert (end.vector, end.code) == (10, 0x40 + 1)


def test_stack_that_is_not_canonical_is_ss(user):
    user.q(TSS + 0x24, 0x8000_0000_0010)
    user.gate(6, ist=1)
    end = user.run("ud2")
    # The frame's top is not canonical; #SS goes to RSP0.
    assert (end.vector, end.code) == (12, 1)
    assert end.reg(x86.RSP) == RSP0 - 48


# --- double and triple faults (tables 6-4 and 6-5) ---


def no_stack(guest, vector):
    """Make the delivery of `vector` raise #PF: its IST stack is not mapped."""
    guest.gate(vector, ist=2)
    guest.q(TSS + 0x2C, 0x300000)


def test_page_fault_while_delivering_gp_is_served_as_page_fault(guest):
    no_stack(guest, 13)
    end = guest.run("mov eax, 0x200; mov ds, eax")
    assert end.vector == 14 and end.cpu.cr2 == 0x300000 - 8 and end.code == 2
    assert end.saved["rip"] == CODE + 5


def test_contributory_while_delivering_contributory_is_a_double_fault(guest):
    guest.gate(13, kind=0x10E)
    end = guest.run("mov eax, 0x200; mov ds, eax")
    assert (end.vector, end.code) == (8, 0)
    assert end.saved["rip"] == CODE + 5


def test_contributory_while_delivering_page_fault_is_a_double_fault(guest):
    guest.gate(14, kind=0x10E)
    end = guest.run("mov eax, [0x300000]")
    assert (end.vector, end.code) == (8, 0)
    assert end.cpu.cr2 == 0x300000


def test_page_fault_while_delivering_page_fault_is_a_double_fault(guest):
    no_stack(guest, 14)
    assert guest.run("mov eax, [0x350000]").vector == 8
    assert guest.cpu.cr2 == 0x300000 - 8


def test_benign_then_contributory_is_served_in_turn(guest):
    no_stack(guest, 6)
    end = guest.run("ud2")
    assert end.vector == 14 and end.saved["rip"] == CODE


def test_divide_error_is_contributory(guest):
    guest.gate(0, kind=0x10E)
    assert guest.run("xor ecx, ecx; div ecx").vector == 8


@pytest.mark.parametrize("how", ["missing", "page"])
def test_fault_of_the_double_fault_shuts_down(guest, how):
    guest.gate(14, kind=0x10E)
    if how == "missing":
        guest.gate(8, kind=0x10E)
    else:
        no_stack(guest, 8)
    assert guest.run("mov eax, [0x300000]").vector == -1
    assert guest.cpu.delivering == 0


def test_double_fault_runs_its_handler_and_can_return(guest):
    guest.gate(13, kind=0x10E)
    guest.gate(8, DATA)
    # POP RBX takes the error code; MOV QWORD [RSP], and IRETQ.
    mend = bytes.fromhex("5b 48c70424") + struct.pack("<I", CODE + 0x40)
    guest.write(DATA, mend + b"\x48\xcf")
    guest.write(CODE + 0x40, b"\xf4")
    end = guest.run("mov eax, 0x200; mov ds, eax", rbx=1)
    assert end.vector is None and end.reg(x86.RBX) == 0


# --- external interrupts ---


def inject(guest, vector, code="nop; hlt"):
    guest.run(code)
    guest.vcpu.set_state(guest.state)
    guest.cpu.inject = vector + 1
    return guest.go([])


def test_external_interrupt_saves_the_next_instruction_without_rf(guest):
    end = inject(guest, 0x41)
    assert end.vector == 0x41
    assert (end.saved["rip"], end.saved["rflags"]) == (CODE, 2)


def test_external_interrupt_ignores_the_gates_privilege(user):
    end = inject(user, 0x41, "nop; hlt")
    assert end.vector == 0x41 and end.saved["cs"] == USER_CS


def test_fault_while_delivering_an_interrupt_has_ext(guest):
    guest.gate(0x41, kind=0x10E)
    end = inject(guest, 0x41)
    assert (end.vector, end.code) == (11, 0x41 * 8 + 3)
    assert end.saved["rip"] == CODE


def test_nmi_is_blocked_until_iret(guest):
    guest.gate(2, DATA)
    guest.write(DATA, b"\x48\xcf")
    end = inject(guest, 2)
    assert end.vector is None and end.cpu.nmi_blocked == 0
    guest.write(DATA, b"\xf4")
    end = inject(guest, 2)
    assert end.cpu.nmi_blocked == 1


# --- returning ---


def test_iret_restores_what_delivery_saved(guest):
    # The handler skips the faulting UD2.
    guest.gate(6, DATA)
    guest.write(DATA, assemble("add qword ptr [rsp], 2; iretq"))
    end = guest.run("stc; sti; ud2; hlt", rsp=KERNEL_STACK - 8)
    assert end.vector is None
    assert end.reg(x86.RSP) == KERNEL_STACK - 8
    assert end.cpu.rflags & (IF | RF) == IF and end.cpu.cc_src & 1


def test_page_fault_reports_error_code_and_address(user):
    assert (e := user.run("mov eax, [0x1000]")).vector == 14 and e.code == 5
    assert user.cpu.cr2 == 0x1000
    assert user.run("mov [0x300000], eax").code == 6
    assert user.run("jmp rax", rax=0x300000).code == 4 | 16


def test_gate_helper_matches_the_manual():
    # Offset 15:0, selector, IST, type and DPL and P, offset 31:16, offset 63:32 (figure 6-8).
    raw = gate(0x1122334455667788, 0x10, 0xE, 3, 5)
    assert raw.hex() == "8877100005ee66554433221100000000"


def test_descriptor_helper_matches_the_manual():
    assert segment_descriptor(0, 0xFFFFF, 0x9B, 0xA) == 0x00AF9B000000FFFF
