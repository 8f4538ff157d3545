"""Waiting and being interrupted: NMIs, MONITOR and MWAIT (Intel SDM vol. 3A, 6.7 and 8.10)."""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import RAX, RCX
from ringzero.isa.x86.cpuid import CpuidLeaf
from tests.isa.guest import CODE, DATA, Guest

pytestmark = pytest.mark.engine

NMI = 2
HANDLER = 0x14000
LEAVE_HANDLER = bytes.fromhex("ffc1 48cf")  # inc ecx; iretq


@pytest.fixture
def guest():
    return Guest()


@pytest.mark.parametrize("rflags", [2, 2 | x86.IF])
def test_an_nmi_needs_no_interrupt_flag(guest, rflags):
    guest.state = replace(guest.state, rflags=rflags)
    guest.interrupts.raise_nmi()
    result = guest.run("nop; hlt")
    assert (result.vector, result.saved["rip"]) == (NMI, CODE)
    assert not guest.interrupts.nmi


def test_a_second_nmi_waits_for_iret(guest):
    guest.gate(NMI, HANDLER)
    guest.write(HANDLER, LEAVE_HANDLER)
    guest.interrupts.raise_nmi()
    # The handler's first instruction is where the second one comes in: it must wait there.
    guest.vcpu.set_state(replace(guest.state, nmi_masked=True))
    guest.write(CODE, bytes.fromhex("90 90 f4"))
    assert guest.go([]).vector is None
    assert guest.cpu.regs[RCX] == 0
    assert guest.interrupts.nmi
    guest.vcpu.set_state(replace(guest.state, nmi_masked=False))
    assert guest.go([]).vector is None
    assert guest.cpu.regs[RCX] == 1
    assert not guest.interrupts.nmi


def test_an_nmi_ends_hlt_with_interrupts_off(guest):
    guest.gate(NMI, HANDLER)
    guest.write(HANDLER, LEAVE_HANDLER)
    guest.run("cli; hlt; mov eax, 5; hlt", rax=0, rcx=0)
    guest.interrupts.raise_nmi()
    guest.vcpu.wait(5)
    assert guest.go([]).reg(RAX) == 5
    assert guest.cpu.regs[RCX] == 1


def test_an_nmi_waits_behind_mov_ss(guest):
    guest.interrupts.raise_nmi()
    guest.vcpu.kick()
    result = guest.run("mov ss, eax; mov ebx, 1; hlt", rax=0x10)
    assert result.vector == NMI


# --- MONITOR, MWAIT ---


@pytest.fixture
def waiter():
    return Guest(cpuid=[CpuidLeaf(0, None, 1, 0, 0, 0), CpuidLeaf(1, None, 0, 0, 1 << 3, 0)])


def test_mwait_waits_as_hlt_does(waiter):
    result = waiter.run("monitor; mwait; ud2", rax=DATA, rcx=0, rdx=0)
    assert result.vector is None
    assert waiter.cpu.rip == CODE + 6


def test_monitor_reads_its_address(waiter):
    result = waiter.run("monitor", rax=0x200000, rcx=0)
    assert (result.vector, result.code, result.cpu.cr2) == (14, 0, 0x200000)


@pytest.mark.parametrize("code", ["monitor", "mwait"])
def test_extensions_that_do_not_exist(waiter, code):
    assert waiter.run(code, rax=DATA, rcx=1).vector == 13


@pytest.mark.parametrize("code", ["monitor", "mwait"])
def test_user_code_may_not_wait(waiter, code):
    waiter.become_user()
    assert waiter.run(code, rax=DATA, rcx=0).vector == 6


@pytest.mark.parametrize("code", ["monitor", "mwait"])
def test_what_cpuid_does_not_announce_is_undefined(guest, code):
    assert guest.run(code, rax=DATA, rcx=0).vector == 6


# --- STAC, CLAC: here because CPUID says whether they exist ---


@pytest.fixture
def guarded():
    return Guest(cpuid=[CpuidLeaf(0, None, 7, 0, 0, 0), CpuidLeaf(7, 0, 0, 1 << 20, 0, 0)])


def test_the_access_flag_moves_without_smap_enabled(guarded):
    """SDM vol. 2B, STAC: #UD by CPUID and CPL; CR4.SMAP is not looked at."""
    assert guarded.run("stac; hlt").vector is None
    assert guarded.cpu.rflags & x86.AC
    assert guarded.run("clac; hlt").vector is None
    assert not guarded.cpu.rflags & x86.AC


@pytest.mark.parametrize("code", ["stac", "clac"])
def test_the_access_flag_is_the_kernels(guarded, code):
    guarded.become_user()
    assert guarded.run(code).vector == 6


@pytest.mark.parametrize("code", ["stac", "clac"])
def test_without_smap_in_cpuid_there_is_no_access_flag(guest, code):
    assert guest.run(code).vector == 6


# --- #UD ---


def test_unknown_instructions_are_counted_by_their_bytes(guest):
    for _ in range(3):
        assert guest.run(bytes.fromhex("0f0c")).vector == 6
    assert guest.run(bytes.fromhex("66 0f3aff c0 00")).vector == 6
    assert guest.run("ud2").vector == 6
    found = guest.vcpu.statistics()
    assert found["unknown"] == 4
    named = {name: n for name, n in found.items() if name.startswith("unknown ")}
    assert named == {"unknown 0f 0c": 3, "unknown 66 0f 3a ff": 1}


def test_more_kinds_than_there_is_room_for_are_counted_still(guest):
    for byte in range(x86.UNKNOWN_KINDS + 4):
        guest.run(bytes([0x66, 0x0F, 0x3A, 0xC0 + byte, 0xC0, 0]))
    found = guest.vcpu.statistics()
    assert found["unknown"] == x86.UNKNOWN_KINDS + 4
    assert sum(name.startswith("unknown ") for name in found) == x86.UNKNOWN_KINDS
