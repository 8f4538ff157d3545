"""Single-stepping, breakpoints and the debug registers (Intel SDM vol. 3B, chapter 17)."""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import msrs
from tests.isa.guest import (
    CODE,
    CR4,
    DATA,
    IDT,
    KERNEL_STACK,
    USER_CODE,
    USER_CS,
    Guest,
    assemble,
    gate,
)

pytestmark = pytest.mark.engine

DR6, DR7 = 0xFFFF0FF0, 0x400
BD, BS = 1 << 13, 1 << 14
GD = 1 << 13
EXECUTE, WRITE, PORT, ACCESS = range(4)


@pytest.fixture
def guest():
    return Guest()


def enable(n, kind, length=1):
    """DR7 with breakpoint `n` enabled."""
    code = {1: 0, 2: 1, 8: 2, 4: 3}[length]
    return DR7 | 2 << 2 * n | kind << 16 + 4 * n | code << 18 + 4 * n


def watch(guest, n, address, kind, length=1):
    guest.state = replace(guest.state, **{f"dr{n}": address}, dr7=enable(n, kind, length))


def hits(end):
    return end.cpu.dr[6] & ~DR6


# --- single step ---


def test_trap_after_the_instruction_that_follows_popf(guest):
    end = guest.run("push 0x102; popfq; nop; nop; hlt")
    assert end.vector == 1 and hits(end) == BS
    # PUSH is 5 bytes, POPFQ 1: the trap comes after the NOP at 6.
    assert end.saved["rip"] == CODE + 7
    assert end.saved["rflags"] == 0x102
    assert end.cpu.rflags & x86.TF == 0


def test_clearing_tf_still_traps_once(guest):
    guest.state = replace(guest.state, rflags=0x102)
    end = guest.run("push 2; nop", rsp=KERNEL_STACK)
    assert end.vector == 1 and end.saved["rip"] == CODE + 2
    end = guest.run(b"\x9d\x90\xf4", rsp=KERNEL_STACK - 8)
    assert end.vector == 1 and end.saved["rip"] == CODE + 1


def test_int_n_does_not_trap_and_iret_sets_tf_again(guest):
    guest.write(IDT + 0x80 * 16, gate(DATA))
    guest.write(DATA, assemble("nop; iretq"))
    guest.state = replace(guest.state, rflags=0x102)
    end = guest.run("int 0x80; nop; hlt")
    # The handler runs without TF; the instruction after the INT traps.
    assert end.vector == 1 and end.saved["rip"] == CODE + 3


def test_single_step_trap_waits_for_the_instruction_after_mov_ss(guest):
    guest.state = replace(guest.state, rflags=0x102)
    end = guest.run("mov ss, eax; nop; nop", rax=0x10)
    assert end.vector == 1 and end.saved["rip"] == CODE + 3


def test_fault_with_tf_delivers_the_fault(guest):
    guest.state = replace(guest.state, rflags=0x102)
    end = guest.run("ud2")
    assert end.vector == 6 and end.saved["rflags"] & x86.TF and hits(end) == 0


def test_rep_traps_after_each_iteration_of_ins(guest):
    guest.state = replace(guest.state, rflags=0x102)
    end = guest.run("rep insb; hlt", rcx=2, rdi=DATA, rdx=1, answers=(7,))
    assert end.vector == 1 and end.saved["rip"] == CODE and end.reg(x86.RCX) == 1


@pytest.mark.parametrize(
    "code", ["rep movsb", "rep stosd", "rep lodsw", "repe cmpsb", "repne scasq"]
)
def test_rep_string_instructions_trap_after_each_element(guest, code):
    guest.state = replace(guest.state, rflags=0x102)
    source = f"{code}; hlt"
    end = guest.run(source, rcx=2, rsi=DATA, rdi=DATA + 0x100, rax=1)
    assert end.vector == 1 and end.saved["rip"] == CODE and end.reg(x86.RCX) == 1
    end = guest.run(source, rcx=1)
    assert end.vector == 1 and end.saved["rip"] == CODE + len(assemble(code))
    assert end.reg(x86.RCX) == 0


def test_syscall_with_tf_masked_does_not_trap(guest):
    guest.become_user()
    values = {msrs.IA32_STAR: 0x23 << 48 | 8 << 32, msrs.IA32_LSTAR: CODE, msrs.IA32_FMASK: x86.TF}
    guest.write(CODE, b"\x90\xf4")
    guest.state = replace(guest.state, msrs=values, rflags=0x102)
    end = guest.run("syscall")
    assert end.vector is None and end.reg(x86.R11) & x86.TF


def test_stepping_user_code_through_iret(guest):
    """As a debugger does it: IRET to user code with TF, one instruction, #DB."""
    guest.write(USER_CODE, b"\x90\x90")
    end = guest.run(
        "push 0x2b; push rax; push 0x102; push 0x33; push rbx; iretq", rax=0x90000, rbx=USER_CODE
    )
    assert end.vector == 1 and (end.saved["rip"], end.saved["cs"]) == (USER_CODE + 1, USER_CS)


# --- breakpoints ---


def test_instruction_breakpoint_is_a_fault_and_rf_skips_it(guest):
    watch(guest, 2, CODE + 1, EXECUTE)
    end = guest.run("nop; nop; hlt")
    assert end.vector == 1 and hits(end) == 1 << 2
    assert end.saved["rip"] == CODE + 1 and end.saved["rflags"] & x86.RF == 0
    # The handler sets RF in the frame, IRET goes on, and RF does not last.
    guest.write(DATA, assemble("or dword ptr [rsp + 16], 0x10000; inc ebx; iretq"))
    guest.gate(1, DATA)
    end = guest.run("nop; nop; pushfq; dec ecx; jnz here; hlt", rcx=3, rbx=0)
    assert end.vector is None and end.reg(x86.RBX) == 3
    assert guest.read_q(KERNEL_STACK - 8) & x86.RF == 0


def test_disabled_breakpoint_does_nothing(guest):
    guest.state = replace(guest.state, dr0=CODE + 1, dr7=DR7)
    assert guest.run("nop; nop; hlt").vector is None


@pytest.mark.parametrize(
    ("code", "kind", "length", "hit"),
    [
        ("mov [rsi], al", WRITE, 1, True),
        ("mov al, [rsi]", WRITE, 1, False),
        ("mov al, [rsi]", ACCESS, 1, True),
        ("mov [rsi - 3], eax", WRITE, 1, True),
        ("mov [rsi - 4], eax", WRITE, 1, False),
        ("mov [rsi + 7], al", WRITE, 8, True),
        ("mov [rsi + 8], al", WRITE, 8, False),
        ("mov [rsi + 3], al", ACCESS, 4, True),
        ("mov [rsi + 2], al", ACCESS, 2, False),
        ("inc byte ptr [rsi]", WRITE, 1, True),
        ("lock inc dword ptr [rsi]", WRITE, 4, True),
        ("lea rsp, [rsi + 8]; push rax", WRITE, 8, True),
    ],
)
def test_data_breakpoints_are_traps(guest, code, kind, length, hit):
    watch(guest, 1, DATA + 0x100, kind, length)
    # Touch the page first, so that a cached translation would show.
    source = f"mov cl, [rsi + 0x200]; mov [rsi + 0x200], cl; {code}; nop; hlt"
    end = guest.run(source, rsi=DATA + 0x100)
    if hit:
        assert end.vector == 1 and hits(end) == 1 << 1
        assert end.saved["rip"] == CODE + len(assemble(source)) - 2
    else:
        assert end.vector is None


def test_data_breakpoint_set_by_the_guest_after_the_page_was_used(guest):
    code = "mov [rsi], al; mov dr0, rsi; mov dr7, rdx; mov [rsi], al; hlt"
    end = guest.run(code, rsi=DATA, rdx=enable(0, WRITE))
    assert end.vector == 1 and hits(end) == 1


def test_data_breakpoint_during_mov_ss_waits(guest):
    guest.write(DATA, b"\x10\x00")
    watch(guest, 0, DATA, ACCESS, 2)
    end = guest.run("mov ss, [rsi]; nop; nop; hlt", rsi=DATA)
    assert end.vector == 1 and hits(end) == 1 and end.saved["rip"] == CODE + 3


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        pytest.param("int3", 3, id="int3"),
        pytest.param("int 0x80", 0x80, id="int-n"),
        pytest.param(".byte 0xf1", 1, id="int1"),
    ],
)
def test_data_breakpoint_during_mov_ss_is_met_in_the_handler(guest, code, vector):
    """It comes behind the event that the next instruction asks for (SDM vol. 3A, 6.8.3)."""
    guest.write(DATA, b"\x10\x00")
    first, second = DATA + 0x200, DATA + 0x300
    guest.write(first, assemble("mov rax, dr6; hlt"))
    guest.write(second, assemble("mov rbx, dr6; mov rcx, [rsp]; hlt"))
    guest.gate(vector, first)
    if vector != 1:
        guest.gate(1, second)
    watch(guest, 0, DATA, ACCESS, 2)
    end = guest.run(f"mov ss, [rsi]; {code}; hlt", rsi=DATA)
    assert end.vector is None and hits(end) == 1
    if vector == 1:
        # The trap enters the handler anew, above its frame (each begins at a multiple of 16).
        frames = [guest.read_q(end.reg(x86.RSP) + n) for n in (0, 48)]
        assert frames == [first, CODE + 3]
    else:
        assert end.reg(x86.RCX) == first


def test_a_fault_takes_the_place_of_a_data_breakpoint_during_mov_ss(guest):
    guest.write(DATA, b"\x10\x00")
    watch(guest, 0, DATA, ACCESS, 2)
    end = guest.run("mov ss, [rsi]; ud2", rsi=DATA)
    assert end.vector == 6 and hits(end) == 0


def test_port_breakpoint(guest):
    guest.state = replace(guest.state, cr4=CR4 | x86.CR4_DE)
    watch(guest, 3, 0x61, PORT)
    end = guest.run("in ax, dx; nop; hlt", rdx=0x60, answers=(0,))
    assert end.vector == 1 and hits(end) == 1 << 3 and end.saved["rip"] == CODE + 2


# --- MOV DRn ---


def test_debug_registers_hold_their_fixed_bits(guest):
    code = """
        mov dr6, rax; mov dr7, rax; mov rbx, dr6; mov rcx, dr7
        mov dr3, rdx; mov rsi, dr3; hlt
    """
    end = guest.run(code, rax=0, rdx=0xFFFF_8000_0000_0000)
    assert (end.reg(x86.RBX), end.reg(x86.RCX)) == (DR6, DR7)
    assert end.reg(x86.RSI) == 0xFFFF_8000_0000_0000
    end = guest.run("mov dr6, rax; mov rbx, dr6; hlt", rax=0xFFFF_FFFF)
    assert end.reg(x86.RBX) == 0xFFFF_FFFF & ~(1 << 12)


@pytest.mark.parametrize("register", ["dr6", "dr7"])
def test_upper_half_is_refused(guest, register):
    end = guest.run(f"mov {register}, rax", rax=1 << 32)
    assert (end.vector, end.code) == (13, 0)


def test_dr4_and_dr5_are_aliases_without_de(guest):
    end = guest.run("mov rbx, dr4; mov rcx, dr5; hlt")
    assert (end.reg(x86.RBX), end.reg(x86.RCX)) == (DR6, DR7)
    guest.state = replace(guest.state, cr4=CR4 | x86.CR4_DE)
    assert guest.run("mov rbx, dr4").vector == 6
    assert guest.run(b"\x44\x0f\x21\xc0").vector == 6  # DR8


def test_general_detect(guest):
    guest.state = replace(guest.state, dr7=DR7 | GD)
    end = guest.run("mov rax, dr0; hlt")
    assert end.vector == 1 and hits(end) == BD and end.saved["rip"] == CODE
    assert end.saved["rflags"] & x86.RF and end.cpu.dr[7] & GD == 0


def test_privilege(guest):
    guest.become_user()
    guest.state = replace(guest.state, dr7=DR7 | GD)
    assert guest.run("mov rax, dr0").vector == 13
