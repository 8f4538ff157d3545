"""Alignment checking: CR0.AM, RFLAGS.AC and CPL 3 together (Intel SDM vol. 3A, section 6.15).

tests/oracle compares every instruction form under RFLAGS.AC with the host CPU; here is
what surrounds a single instruction.
"""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import RAX, RBX, RSP
from tests.isa.guest import KERNEL_STACK, USER_CODE, USER_CS, USER_DATA, USER_DS, USER_STACK, Guest

pytestmark = pytest.mark.engine

ALIGNMENT_CHECK = (17, 0)


@pytest.fixture
def user():
    guest = Guest()
    guest.become_user()
    guest.state = replace(guest.state, rflags=2 | x86.AC, cr0=guest.state.cr0 | x86.CR0_AM)
    return guest


def ending(result):
    return result.vector, result.code


def test_an_unaligned_load_faults_before_anything_is_done(user):
    result = user.run("mov eax, [rbx + 1]; hlt", rax=5, rbx=USER_DATA)
    assert ending(result) == ALIGNMENT_CHECK
    assert result.saved["rip"] == USER_CODE
    assert result.reg(RAX) == 5


def test_it_comes_before_the_page_fault(user):
    result = user.run("mov [rbx], eax; hlt", rbx=0x200001)
    assert ending(result) == ALIGNMENT_CHECK


def test_aligned_accesses_and_bytes_pass(user):
    user.write(USER_DATA, bytes(range(64)))
    result = user.run("mov eax, [rbx + 4]; mov cl, [rbx + 3]; lock add [rbx + 8], eax; ud2",
                      rbx=USER_DATA)  # fmt: skip
    assert result.vector == 6
    assert result.reg(RAX) == 0x07060504
    assert user.read_q(USER_DATA + 8) == 0x0F0E0D0C_12100E0C


@pytest.mark.parametrize("cleared", ["am", "ac", "cpl"])
def test_all_three_conditions_are_needed(user, cleared):
    if cleared == "am":
        user.state = replace(user.state, cr0=user.state.cr0 & ~x86.CR0_AM)
    elif cleared == "ac":
        user.state = replace(user.state, rflags=2)
    else:
        kernel = Guest()
        kernel.state = replace(kernel.state, rflags=2 | x86.AC, cr0=kernel.state.cr0 | x86.CR0_AM)
        user = kernel
    result = user.run("mov eax, [rbx + 1]; ud2", rbx=USER_DATA)
    assert result.vector == 6


def test_popf_turns_it_on_and_off(user):
    user.state = replace(user.state, rflags=2)
    on = f"pushfq; or dword ptr [rsp], {x86.AC:#x}; popfq"
    off = f"pushfq; and dword ptr [rsp], {~x86.AC & 0xFFFFFFFF:#x}; popfq"
    load = "mov eax, [rbx + 1]"
    program = f"{load}; {on}; {off}; {load}; {on}; inc rsi; {load}"
    result = user.run(program, rbx=USER_DATA, rsi=0)
    assert ending(result) == ALIGNMENT_CHECK
    assert result.reg(6) == 1


def test_handlers_of_the_kernel_are_not_checked_and_iret_resumes_it(user):
    """A handler at CPL 0 uses an unaligned stack; behind IRETQ the program is checked again."""
    handler = 0x14000
    user.gate(3, handler, dpl=3)
    user.write(handler, bytes.fromhex("488b4301 48cf".replace(" ", "")))  # mov rax,[rbx+1]; iretq
    result = user.run("int3; mov eax, [rbx + 2]", rbx=USER_DATA)
    assert ending(result) == ALIGNMENT_CHECK
    assert result.saved["rip"] == USER_CODE + 1


def test_iretq_to_a_program_with_ac_set():
    guest = Guest()
    guest.state = replace(guest.state, cr0=guest.state.cr0 | x86.CR0_AM)
    guest.write(USER_CODE, bytes.fromhex("8b4301"))  # mov eax,[rbx+1]
    result = guest.run(
        f"push {USER_DS}; push {USER_STACK}; push {2 | x86.AC}; push {USER_CS}; push {USER_CODE};"
        "iretq", rbx=USER_DATA, rsp=KERNEL_STACK,
    )  # fmt: skip
    assert ending(result) == ALIGNMENT_CHECK


@pytest.mark.parametrize(
    "code", ["push rax", "pop rax", "call rdi", "ret", "leave", "enter 8, 0", "pushfq"]
)
def test_the_stack(user, code):
    result = user.run(f"{code}; ud2", rsp=USER_STACK + 4, rbp=USER_STACK + 4, rdi=USER_CODE)
    assert ending(result) == ALIGNMENT_CHECK
    assert result.saved["rsp"] == USER_STACK + 4


def test_repeated_strings_stop_at_the_first_element(user):
    result = user.run("rep movsd", rsi=USER_DATA + 2, rdi=USER_DATA + 0x100, rcx=8)
    assert ending(result) == ALIGNMENT_CHECK
    assert result.reg(1) == 8


def test_repeated_strings_that_are_aligned(user):
    user.write(USER_DATA, bytes(range(64)))
    result = user.run("rep movsd; ud2", rsi=USER_DATA, rdi=USER_DATA + 0x100, rcx=16)
    assert result.vector == 6
    assert user.memory.read(USER_DATA + 0x100, 64) == bytes(range(64))


def test_operands_that_must_be_aligned_raise_gp_still(user):
    assert ending(user.run("movaps xmm0, [rbx + 8]", rbx=USER_DATA)) == (13, 0)
    assert ending(user.run("movups xmm0, [rbx + 8]", rbx=USER_DATA)) == ALIGNMENT_CHECK


def test_it_holds_after_the_state_was_taken_and_given_back(user):
    user.run("mov eax, [rbx]; ud2", rbx=USER_DATA)
    state = replace(user.vcpu.get_state(), rip=USER_CODE)
    user.become_user()
    user.state = replace(state, **{n: getattr(user.state, n) for n in ("cs", "ss")},
                         rflags=2 | x86.AC).with_gpr(rsp=USER_STACK)  # fmt: skip
    assert ending(user.run("mov eax, [rbx + 1]", rbx=USER_DATA)) == ALIGNMENT_CHECK


def test_the_user_stack_pointer_is_not_moved(user):
    result = user.run("push qword ptr [rbx + 1]", rbx=USER_DATA)
    assert ending(result) == ALIGNMENT_CHECK
    assert (result.saved["rsp"], result.reg(RBX)) == (USER_STACK, USER_DATA)
    assert result.cpu.regs[RSP] != USER_STACK
