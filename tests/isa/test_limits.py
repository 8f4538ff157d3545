"""Segment limits in 32-bit code, of FS and GS in translated code too (Intel SDM vol. 3A, 5.3)."""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import CODE, DATA, FREE, GDT, KERNEL_STACK, segment_descriptor
from tests.isa.test_protected import Protected

pytestmark = pytest.mark.engine

GP, SS = 13, 12


@pytest.fixture
def guest():
    return Protected()


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("mov eax, [ebx]", GP), ("add [ebx], eax", GP), ("movups xmm0, [ebx]", GP),
        ("lodsd", GP), ("stosd", GP), ("fld qword ptr [ebx]", GP), ("bound eax, [ebx]", GP),
        ("mov eax, [ebp]", SS), ("mov eax, ss:[ebx]", SS), ("mov eax, es:[ebp]", GP),
        ("lds eax, [ebx]", GP), ("jmp [ebx]", GP),
    ],
)  # fmt: skip
def test_no_access_wraps_at_4_gib(guest, code, vector):
    top = 0xFFFFFFFE
    guest.state = replace(guest.state, cr4=x86.CR4_OSFXSR)
    guest.run(f"{code}; hlt", rbx=top, rbp=top, rsi=top, rdi=top)
    assert guest.vector == vector
    assert guest.stack(2) == (0, CODE)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("mov eax, [ebx]", "read"), ("bound ecx, [ebx - 4]", "read"), ("add ecx, [ebx]", "read"),
        ("mov [ebx], ecx", "write"), ("bts dword ptr [ebx], 1", "modify"),
        ("lock inc dword ptr [ebx]", "modify"),
    ],
)  # fmt: skip
def test_linear_addresses_wrap_at_4_gib(guest, code, kind):
    """Where a segment's base brings them there: half of it lies at the top, half at 0."""
    guest.q(GDT + FREE, segment_descriptor(0xFFFF0000, 0xFFFFF, 0x93, 0xC))
    guest.write(0, b"\x01\x02\x03\x04")
    end = guest.run(f"mov ds, edx; {code}; hlt", rdx=FREE, rbx=0xFFFE, rcx=0x7F7F7F7F)
    assert end.vector is None
    seen = {event.address for event in end.exits}
    assert seen <= {0xFFFFFFFA, 0xFFFFFFFE, 0xFFFFFFFF}
    if kind == "write":
        assert guest.memory.read(0, 4) == b"\x7f\x7f\x03\x04"
    elif code.startswith("mov"):
        assert end.reg(x86.RAX) == 0x02010000


@pytest.mark.parametrize("code", ["push eax", "call edi", "pushfd", "enter 0, 0", "pusha"])
def test_pushes_below_the_stack_segment(guest, code):
    # An expand-down stack whose lowest offset is that of the stack pointer.
    limit = (KERNEL_STACK >> 12) - 1
    guest.q(GDT + FREE, segment_descriptor(0, limit, 0x97, 0xC))
    # The handler's own pushes do not fit either: that is a double fault, and then shutdown.
    end = guest.run(f"mov ss, eax; {code}; hlt", rax=FREE, rdi=CODE, rbp=KERNEL_STACK)
    assert end.vector == -1
    assert guest.cpu.fault_vector == SS


@pytest.mark.parametrize("code", ["pop eax", "ret", "popfd", "popa", "leave"])
def test_pops_beyond_the_stack_segment(guest, code):
    guest.q(GDT + FREE, segment_descriptor(0, KERNEL_STACK + 1, 0x93, 4))
    guest.run(f"mov ss, eax; {code}; hlt", rax=FREE, rbp=KERNEL_STACK)
    assert guest.vector == SS
    assert guest.stack(2) == (0, CODE + 2)


@pytest.mark.parametrize("register", ["fs", "gs"])
def test_fs_and_gs_have_their_limits(guest, register):
    guest.q(GDT + FREE, segment_descriptor(DATA, 0xF, 0x93, 4))
    guest.write(DATA, b"0123456789abcdef")
    program = f"mov {register}, eax; mov ecx, {register}:[12]; mov ecx, {register}:[13]; hlt"
    end = guest.run(program, rax=FREE)
    assert guest.vector == GP
    assert end.reg(x86.RCX) == int.from_bytes(b"cdef", "little")


@pytest.mark.parametrize("register", ["fs", "gs"])
def test_fs_and_gs_that_are_null_or_read_only(guest, register):
    guest.run(f"mov {register}, eax; mov ecx, {register}:[12]", rax=0)
    assert guest.vector == GP
    guest.q(GDT + FREE, segment_descriptor(0, 0xFFFFF, 0x91, 0xC))
    program = f"mov {register}, eax; mov ecx, {register}:[{DATA}]; mov {register}:[{DATA}], ecx"
    guest.run(program, rax=FREE)
    assert guest.vector == GP
    assert guest.stack(2)[1] > CODE + 8


def test_a_translation_is_not_used_under_other_limits(guest):
    """The same code runs with a whole FS first, then with a short one."""
    guest.q(GDT + FREE, segment_descriptor(DATA, 0xFFFFF, 0x93, 0xC))
    guest.q(GDT + FREE + 8, segment_descriptor(DATA, 0xF, 0x93, 4))
    program = f"""
        mov esi, 20
    again: mov fs, eax
        call read
        dec esi
        jnz again
        mov eax, {FREE + 8}
        mov esi, 20
        jmp again
    read: mov ecx, fs:[0x100]
        ret
    """
    end = guest.run(program, rax=FREE)
    assert guest.vector == GP
    assert end.reg(x86.RSI) == 20


@pytest.mark.parametrize("offset", [0xFFFFFFF0, 0xFFFFFFFC])
def test_negative_offsets_from_a_whole_fs(guest, offset):
    """What thread-local variables of 32-bit programs are: below the segment's base."""
    guest.q(GDT + FREE, segment_descriptor(DATA + 16, 0xFFFFF, 0x93, 0xC))
    guest.write(DATA, b"0123456789abcdef")
    end = guest.run(f"mov fs, eax; mov ecx, fs:[{offset:#x}]; hlt", rax=FREE)
    at = offset & 0xF
    assert end.reg(x86.RCX) == int.from_bytes(b"0123456789abcdef"[at : at + 4], "little")
    guest.run(f"mov fs, eax; mov ecx, fs:[{0xFFFFFFFD:#x}]; hlt", rax=FREE)
    assert guest.vector == GP


@pytest.mark.parametrize("code", ["jmp edi", "call edi", "push edi; ret", "jmp far_away"])
def test_near_branches_beyond_cs(guest, code):
    guest.q(GDT + FREE, segment_descriptor(0, CODE + 0xFFF, 0x9B, 4))
    program = f"""
        push {FREE}
        push offset inside
        retf
    inside: {code}
        hlt
    .org 0x1100
    far_away: hlt
    """
    if code == "jmp far_away":
        program = program.replace("jmp far_away", ".byte 0xe9; .long 0x2000")
    guest.run(program.replace("offset inside", str(CODE + 8)), rdi=CODE + 0x1000)
    assert guest.vector == GP
    error, eip, cs = guest.stack(3)
    assert (error, cs) == (0, FREE)
    assert eip == CODE + 8 + (code == "push edi; ret")
