"""CLI, STI, PUSHF, POPF, STAC, CLAC: RFLAGS' system bits (Intel SDM vol. 2, each name)."""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import CODE, CR4, KERNEL_STACK, PT, USER_CODE, USER_DATA, Guest, assemble

pytestmark = pytest.mark.engine

VECTOR = 0x40
GP0 = (13, 0)
SEEN = 0x19000


class Device:
    """A local APIC that has one interrupt after another of VECTOR, `left` of them."""

    priority = 0

    def __init__(self, left):
        self.left = left

    def pending(self):
        return self.left > 0

    def acknowledge(self):
        self.left -= 1
        return VECTOR


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def user(guest):
    guest.become_user()
    return guest


def interrupt(guest, count=1):
    """Have so many interrupts wait for a guest."""
    device = Device(count)
    guest.interrupts.pending, guest.interrupts.acknowledge = device.pending, device.acknowledge
    guest.interrupts.wake = guest.vcpu._interrupts_changed
    guest.interrupts.wake()


def fault(end):
    return end.vector, end.code


# --- IF ---


@pytest.mark.parametrize(
    ("code", "behind"),
    [
        ("sti; nop; mov eax, 1", 2),
        ("sti; nop dword ptr [rax + rax]; mov eax, 1", 5),
        ("sti; mov eax, 1; nop", 6),
        ("sti; mov rax, [rsi]; nop", 4),
        ("sti; push rax; nop", 2),
        ("sti; jmp there; nop; there: nop", 4),
        ("sti; hlt; nop", 2),
        ("sti; sti; nop", 2),
        ("sti; cpuid; nop", 3),
        ("push 0x202; popfq; mov eax, 1", 6),
    ],
)
def test_an_interrupt_comes_behind_the_instruction_after_sti_and_behind_popf(guest, code, behind):
    guest.state = replace(guest.state, rflags=2)
    interrupt(guest)
    end = guest.run(f"{code}; hlt", rsi=CODE, rax=0)
    assert end.vector == VECTOR and end.saved["rip"] == CODE + behind


def test_cli_right_behind_sti_keeps_interrupts_off(guest):
    interrupt(guest)
    end = guest.run("mov ecx, 1000; again: sti; cli; dec ecx; jnz again; hlt", rcx=0)
    assert end.vector is None and not end.cpu.rflags & x86.IF


def test_every_interrupt_that_waits_comes_between_sti_and_cli(guest):
    """Each at the end of the NOP, in code that was translated and run before."""
    handler = 0x14000
    guest.gate(VECTOR, handler)
    # Count them by where they came, as 1 + distance from CODE.
    guest.write(handler, assemble("mov rax, [rsp]; inc dword ptr [rax * 4 + r8]; iretq"))
    code = "mov ecx, 300; again: sti; nop; cli; dec ecx; jnz again; hlt"
    guest.run(code, r8=SEEN - 4 * CODE)
    interrupt(guest, 200)
    assert guest.run(code, r8=SEEN - 4 * CODE).vector is None
    seen = {n: guest.memory.read_int(SEEN + 4 * n, 4) for n in range(32)}
    assert {n: count for n, count in seen.items() if count} == {7: 200}


@pytest.mark.parametrize("code", ["cli", "sti"])
def test_the_interrupt_flag_is_guarded_by_iopl(user, code):
    assert fault(user.run(code)) == GP0
    user.state = replace(user.state, rflags=2 | x86.IOPL | (x86.IF if code == "cli" else 0))
    end = user.run(f"{code}; ud2")
    assert end.vector == 6 and bool(end.saved["rflags"] & x86.IF) == (code == "sti")


# --- PUSHF, POPF ---


def test_pushf_has_all_flags_of_a_lazy_operation(guest):
    end = guest.run("mov eax, 0x7fffffff; add eax, 1; pushfq; pop rbx; hlt")
    assert end.reg(x86.RBX) == 2 | x86.OF | x86.SF | x86.AF | x86.PF


@pytest.mark.parametrize(
    "image",
    [
        2,
        0xAD7,
        2 | x86.DF,
        2 | x86.IF,
        2 | x86.NT,
        2 | x86.ID,
        2 | x86.IOPL,
        2 | x86.AC,
        2 | x86.RF,
    ],
)
def test_popf_and_pushf_in_the_kernel(guest, image):
    """Again and again, as in code that was translated; RF is always pushed as 0."""
    code = "mov ecx, 3; again: push rdx; popfq; pushfq; pop rax; dec ecx; jnz again; hlt"
    end = guest.run(code, rdx=image | 2)
    assert end.reg(x86.RAX) == (image | 2) & ~x86.RF


def test_popf_of_user_code_leaves_the_kernels_bits(user):
    user.state = replace(user.state, rflags=2 | x86.IF)
    end = user.run("push rdx; popfq; pushfq; pop rax; ud2", rdx=x86.IOPL | x86.CF | x86.DF)
    assert end.reg(x86.RAX) == 2 | x86.IF | x86.CF | x86.DF


# --- STAC, CLAC ---


@pytest.fixture
def guarded(guest):
    guest.state = replace(guest.state, cr4=CR4 | x86.CR4_SMAP)
    return guest


def test_user_memory_is_open_between_stac_and_clac(guarded):
    guarded.q(USER_DATA, 7)
    end = guarded.run(
        """
        mov ecx, 1000; xor eax, eax
        again: stac; add rax, [rsi]; clac; add rax, [rdi]; dec ecx; jnz again
        mov rbx, [rsi]
        hlt
        """,
        rsi=USER_DATA, rdi=CODE + 0x800,
    )  # fmt: skip
    assert (end.vector, end.cpu.cr2, end.reg(x86.RAX)) == (14, USER_DATA, 7000)
    assert guarded.vcpu.statistics()["walks"] < 20, "each page is found once"


def test_invlpg_forgets_what_was_opened(guarded):
    other = USER_DATA + 0x1000
    guarded.q(USER_DATA, 1)
    guarded.q(other, 2)
    end = guarded.run(
        """
        stac; mov rax, [rsi]; clac
        mov [rdi], rdx; invlpg [rsi]
        stac; mov rbx, [rsi]; hlt
        """,
        rsi=USER_DATA, rdi=PT + (USER_DATA >> 12) * 8, rdx=other | 7,
    )  # fmt: skip
    assert (end.reg(x86.RAX), end.reg(x86.RBX)) == (1, 2)


def test_a_page_with_code_is_written_under_ac_and_its_code_changes(guarded):
    """The write entry of the TLB that AC has is taken back when the page is translated."""
    guarded.write(USER_CODE, b"\xb8\x01\x00\x00\x00\xc3")  # mov eax, 1; ret
    alias = CODE + 0x4000
    guarded.q(PT + (alias >> 12) * 8, USER_CODE | 3)
    end = guarded.run(
        """
        stac; mov byte ptr [rsi + 0x800], 0; clac
        mov ecx, 20; again: call rdi; dec ecx; jnz again
        mov ebx, eax
        stac; mov byte ptr [rsi + 1], 2; clac
        call rdi; hlt
        """,
        rsi=USER_CODE, rdi=alias,
    )  # fmt: skip
    assert (end.reg(x86.RBX), end.reg(x86.RAX)) == (1, 2)


def test_an_interrupt_keeps_user_memory_open_until_clac(guarded):
    """Delivery leaves AC as it is (SDM vol. 3A, 6.12.1.3); the handler closes it."""
    handler = 0x14000
    guarded.gate(3, handler)
    guarded.write(handler, assemble("mov rbx, [rsi]; clac; mov rdx, [rsi]; hlt"))
    guarded.q(USER_DATA, 5)
    end = guarded.run("stac; int3", rsi=USER_DATA)
    assert (end.vector, end.reg(x86.RBX)) == (14, 5)


def test_iret_restores_what_ac_opens(guarded):
    handler = 0x14000
    guarded.gate(3, handler)
    guarded.write(handler, assemble("clac; iretq"))
    guarded.q(USER_DATA, 5)
    end = guarded.run("stac; int3; mov rbx, [rsi]; hlt", rsi=USER_DATA, rsp=KERNEL_STACK)
    assert (end.vector, end.reg(x86.RBX)) == (None, 5)
