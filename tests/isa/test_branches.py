"""Near branches to where no code can be (Intel SDM vol. 2A, JMP and CALL; vol. 2B, RET).

#GP(0) is raised at the branch, with nothing done; the same goes for the host CPU
(tests/oracle), but its cases are single instructions and not blocks of translated code.
"""

import pytest

from ringzero.isa.x86.cpu import RAX, RSP
from tests.isa.guest import CODE, DATA, KERNEL_STACK, Guest

pytestmark = pytest.mark.engine

NOWHERE = 0x1234_0000_0000_0000
GP0 = (13, 0)


@pytest.fixture
def guest():
    return Guest()


@pytest.mark.parametrize("code", ["jmp rbx", "call rbx", "jmp [rsi]", "call [rsi]"])
def test_jumps_and_calls(guest, code):
    guest.q(DATA, NOWHERE)
    guest.q(KERNEL_STACK - 8, 0x1122334455667788)
    result = guest.run(f"mov eax, 7; {code}; hlt", rbx=NOWHERE, rsi=DATA)
    assert (result.vector, result.code) == GP0
    assert result.saved["rip"] == CODE + 5
    assert result.saved["rsp"] == KERNEL_STACK
    assert result.reg(RAX) == 7


def test_a_call_pushes_nothing(guest):
    guest.state = guest.state.with_gpr(rsp=DATA + 0x100)
    guest.gate(13, ist=1)
    guest.q(DATA + 0xF8, 0x1122334455667788)
    result = guest.run("call rbx", rbx=NOWHERE)
    assert (result.vector, result.code) == GP0
    assert guest.read_q(DATA + 0xF8) == 0x1122334455667788


@pytest.mark.parametrize(("code", "length"), [("ret", 1), ("ret 24", 3)])
def test_returns(guest, code, length):
    guest.gate(13, ist=1)
    result = guest.run(f"push rbx; inc eax; {code}; hlt", rbx=NOWHERE, rax=0)
    assert (result.vector, result.code) == GP0
    assert result.saved["rip"] == CODE + 3
    assert result.saved["rsp"] == KERNEL_STACK - 8
    assert result.reg(RAX) == 1


def test_a_bad_stack_comes_before_a_bad_target(guest):
    guest.gate(12, ist=1)
    guest.gate(14, ist=1)
    assert guest.run("call rbx", rbx=NOWHERE, rsp=NOWHERE).vector == 12
    result = guest.run("call rbx", rbx=NOWHERE, rsp=0x200008)
    assert (result.vector, result.cpu.cr2) == (14, 0x200000)


@pytest.mark.parametrize("target", [(1 << 64) - 1, 0xFFFF_8000_0000_0000, (1 << 64) - 4096])
@pytest.mark.parametrize("code", ["jmp rbx", "push rbx; ret"])
def test_every_canonical_address_may_be_tried(guest, code, target):
    """The last byte of the address space was once taken for an empty entry of a cache."""
    guest.gate(14, ist=1)
    result = guest.run(f"{code}; hlt", rbx=target)
    assert (result.vector, result.cpu.cr2, result.saved["rip"]) == (14, target, target)
    again = guest.run(f"invlpg [rbx]; {code}; hlt", rbx=target)
    assert (again.vector, again.cpu.cr2) == (14, target)


@pytest.mark.parametrize("opcode", ["e9", "e8", "0f 81"])
def test_the_farthest_target(guest, opcode):
    """From the page's start it is more than 2 GiB away, which 32 bits with a sign do not hold."""
    guest.gate(14, ist=1)
    code = bytes.fromhex(opcode) + (0x7FFF_FFFF).to_bytes(4, "little")
    target = CODE + len(code) + 0x7FFF_FFFF
    result = guest.run(code)
    assert (result.vector, result.cpu.cr2, result.saved["rip"]) == (14, target, target)


def test_a_loop_that_ends_in_the_void(guest):
    """Translated and linked code finds the bad target as late as its last round."""
    guest.gate(13, ist=1)
    program = "start: dec rcx; lea rdx, [rip + start]; cmovz rdx, rbx; push rdx; ret"
    result = guest.run(program, rbx=NOWHERE, rcx=1000)
    assert (result.vector, result.code) == GP0
    assert result.cpu.regs[1] == 0
    assert result.saved["rsp"] == KERNEL_STACK - 8
    assert result.saved["rip"] == CODE + len(program_bytes(program)) - 1
    assert result.cpu.regs[RSP] != KERNEL_STACK


def program_bytes(source):
    from tests.isa.guest import assemble

    return assemble(source)
