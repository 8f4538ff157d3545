"""SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (Intel SDM vol. 2B)."""

from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import msrs
from ringzero.isa.x86.state import Segment
from tests.isa.guest import (
    CODE,
    DATA,
    KERNEL_STACK,
    USER_CODE,
    USER_CS,
    USER_DS,
    USER_STACK,
    Guest,
    assemble,
)

pytestmark = pytest.mark.engine

STAR = 0x23 << 48 | 0x08 << 32
NOT_CANONICAL = 1 << 47


def with_msrs(guest, **values):
    numbers = {
        "star": msrs.IA32_STAR, "lstar": msrs.IA32_LSTAR, "fmask": msrs.IA32_FMASK,
        "cstar": msrs.IA32_CSTAR, "cs": msrs.IA32_SYSENTER_CS,
        "esp": msrs.IA32_SYSENTER_ESP, "eip": msrs.IA32_SYSENTER_EIP,
        "kernel_gs": msrs.IA32_KERNEL_GS_BASE,
    }  # fmt: skip
    known = dict(guest.state.msrs)
    known.update({numbers[name]: value for name, value in values.items()})
    guest.state = replace(guest.state, msrs=known)


@pytest.fixture
def user():
    guest = Guest()
    guest.become_user()
    with_msrs(guest, star=STAR, lstar=CODE, fmask=x86.IF | x86.TF | x86.DF)
    return guest


@pytest.fixture
def kernel():
    guest = Guest()
    with_msrs(guest, star=STAR)
    return guest


def attributes(cpu, number):
    return cpu.seg[number].attributes, cpu.seg[number].limit, cpu.seg[number].base


def test_syscall_enters_the_kernel(user):
    user.write(CODE, b"\xf4")
    user.state = replace(user.state, rflags=0x202 | x86.DF | x86.CF)
    end = user.run("stc; syscall")
    cpu = end.cpu
    assert end.vector is None and cpu.rip == CODE + 1 and cpu.cpl == 0
    assert end.reg(x86.RCX) == USER_CODE + 3
    assert end.reg(x86.R11) == 0x202 | x86.DF | x86.CF
    assert cpu.rflags & (x86.IF | x86.DF) == 0 and cpu.cc_src & x86.CF
    assert cpu.seg[x86.CS].selector == 0x08 and cpu.seg[x86.SS].selector == 0x10
    # Type 11, S, DPL 0, P, L, G; type 3, S, DPL 0, P, B, G; both 4 GiB.
    assert attributes(cpu, x86.CS) == (0xA09B, 0xFFFFFFFF, 0)
    assert attributes(cpu, x86.SS) == (0xC093, 0xFFFFFFFF, 0)
    assert end.reg(x86.RSP) == USER_STACK


def test_system_calls_in_a_loop(user):
    """Code that was translated: what each leaves is what the next one finds."""
    with_msrs(user, kernel_gs=DATA)
    kernel = "swapgs; inc qword ptr gs:[8]; mov gs:[16], r11; swapgs; sysretq"
    user.write(CODE, assemble(kernel))
    user.state = replace(user.state, rflags=0x202 | x86.DF)
    end = user.run(
        """
        mov ebx, 1000; xor edx, edx
        again: cmp ebx, 1001; syscall; adc edx, 0; dec ebx; jnz again
        mov eax, 0x7fffffff; inc eax; syscall; ud2
        """
    )
    assert end.vector == 6 and end.reg(x86.RDX) == 1000, "CF came back each time"
    flags = 0x202 | x86.DF | x86.OF | x86.SF | x86.AF | x86.PF
    assert end.saved["rflags"] == flags | x86.RF and user.read_q(DATA + 16) == flags
    assert (end.saved["cs"], end.saved["ss"], end.saved["rsp"]) == (USER_CS, USER_DS, USER_STACK)
    assert user.read_q(DATA + 8) == 1001


@pytest.mark.parametrize("masked", [True, False])
def test_syscall_closes_user_memory_where_its_mask_has_ac(user, masked):
    with_msrs(user, fmask=x86.IF | (x86.AC if masked else 0))
    user.write(CODE, assemble(f"mov rbx, rsp; mov esp, {KERNEL_STACK}; mov rax, [rbx - 8]; hlt"))
    user.state = replace(user.state, rflags=0x202 | x86.AC, cr4=user.state.cr4 | x86.CR4_SMAP)
    for _ in range(3):
        end = user.run("syscall")
        assert end.vector == (14 if masked else None)


def test_sysret_takes_an_interrupt_that_waits(kernel):
    """IF comes with R11: at the first instruction of the user's code."""
    vector = 0x40
    waiting = [vector] * 3
    kernel.interrupts.pending = lambda: bool(waiting)
    kernel.interrupts.acknowledge = lambda: waiting.pop()
    kernel.write(USER_CODE, b"\x0f\x0b")
    for left in (2, 1, 0):
        kernel.vcpu._interrupts_changed()
        end = kernel.run("sysretq", rcx=USER_CODE, r11=0x202, rsp=USER_STACK)
        assert (end.vector, end.saved["rip"], end.saved["cs"]) == (vector, USER_CODE, USER_CS)
        assert len(waiting) == left
    assert kernel.run("sysretq", rcx=USER_CODE, r11=0x202, rsp=USER_STACK).vector == 6


@pytest.mark.parametrize("flag", [x86.AC, x86.TF])
def test_sysret_to_code_that_is_watched(kernel, flag):
    kernel.state = replace(kernel.state, cr0=kernel.state.cr0 | x86.CR0_AM)
    kernel.write(USER_CODE, assemble("mov rax, [rsp - 7]; ud2"))
    for _ in range(3):
        end = kernel.run("sysretq", rcx=USER_CODE, r11=2 | flag, rsp=USER_STACK)
        assert end.vector == (17 if flag == x86.AC else 1)


def test_syscall_to_an_address_that_is_not_canonical_faults_there(user):
    """WRMSR refuses such a one, a saved state may have it."""
    with_msrs(user, lstar=NOT_CANONICAL)
    end = user.run("syscall")
    assert (end.vector, end.code, end.saved["rip"], end.saved["cs"]) == (13, 0, NOT_CANONICAL, 8)
    assert end.reg(x86.RCX) == USER_CODE + 2


def test_syscall_needs_sce(user):
    user.state = replace(user.state, efer=user.state.efer & ~x86.EFER_SCE)
    assert user.run("syscall").vector == 6


def test_syscall_is_undefined_in_compatibility_mode(user):
    user.state = replace(user.state, cs=Segment(0x23, 0, 0xFFFFFFFF, 0xCFB))
    assert user.run(b"\x0f\x05").vector == 6


def test_sysret_returns_to_64_bit_code(kernel):
    kernel.write(USER_CODE, b"\x0f\x0b")
    end = kernel.run("sysretq", rcx=USER_CODE, r11=0xFFFF_FFFF_FFFF_FFFF & ~x86.TF, rsp=USER_STACK)
    # RF and VM are not loaded; the fault's frame has RF.
    assert end.vector == 6
    assert end.saved == {
        "rip": USER_CODE, "cs": USER_CS, "rflags": 0x3C7FD7 & ~x86.TF | x86.RF, "ss": USER_DS,
        "rsp": USER_STACK,
    }  # fmt: skip


def test_sysret_returns_to_32_bit_code(kernel):
    kernel.write(USER_CODE, b"\x48\x0f\x0b")  # DEC EAX there
    end = kernel.run("sysret", rcx=0x1_0000_0000 | USER_CODE, r11=2, rax=5)
    assert end.vector == 6 and end.reg(x86.RAX) == 4
    assert (end.saved["rip"], end.saved["cs"]) == (USER_CODE + 1, 0x23)


def test_sysret_to_an_address_that_is_not_canonical_faults_in_the_kernel(kernel):
    end = kernel.run("sysretq", rcx=NOT_CANONICAL, r11=2)
    assert (end.vector, end.code, end.saved["cs"]) == (13, 0, 8)


def test_sysret_is_privileged(user):
    assert (e := user.run("sysretq")).vector == 13 and e.code == 0


def test_sysenter_and_sysexit(user):
    with_msrs(user, cs=0x0B, esp=KERNEL_STACK, eip=DATA)
    user.write(DATA, assemble("mov rcx, rsp; mov edx, 0x80100; sysexitq"))
    user.write(USER_CODE + 0x100, b"\x0f\x0b")
    user.state = replace(user.state, rflags=0x202)
    end = user.run("sysenter")
    # SYSEXIT: CS is the MSR's selector + 32 (0x2B), SS + 40, RPL 3; IF stays clear.
    assert end.vector == 6
    assert end.saved == {
        "rip": USER_CODE + 0x100, "cs": 0x2B, "rflags": 2 | x86.RF, "rsp": KERNEL_STACK, "ss": 0x33,
    }  # fmt: skip


def test_sysenter_without_a_selector_is_gp(user):
    with_msrs(user, cs=3)
    assert (e := user.run("sysenter")).vector == 13 and e.code == 0


def test_sysexit_checks(kernel):
    with_msrs(kernel, cs=8)
    assert kernel.run("sysexitq", rcx=NOT_CANONICAL).vector == 13
    assert kernel.run("sysexitq", rcx=0, rdx=NOT_CANONICAL).vector == 13
    kernel.become_user()
    assert kernel.run("sysexitq", rcx=0, rdx=0).vector == 13


def test_swapgs(kernel):
    with_msrs(kernel, kernel_gs=0x1234)
    kernel.state = replace(kernel.state, gs=replace(kernel.state.gs, base=0x5678))
    end = kernel.run("swapgs; hlt")
    assert end.cpu.seg[x86.GS].base == 0x1234 and end.cpu.kernel_gs_base == 0x5678
    kernel.become_user()
    assert kernel.run("swapgs").vector == 13


# --- what AMD's processors do otherwise ---

COMPATIBILITY_CS = 0x20 | 3


@pytest.fixture
def amd(user):
    user.vcpu.cpu.is_amd = 1
    return user


def test_amds_syscall_from_compatibility_mode_goes_to_cstar(amd):
    amd.write(CODE + 0x100, b"\xf4")
    with_msrs(amd, star=STAR, lstar=CODE, cstar=CODE + 0x100, fmask=x86.DF)
    amd.state = replace(amd.state, cs=Segment(COMPATIBILITY_CS, 0, 0xFFFFFFFF, 0xCFB))
    end = amd.run("syscall", mode=32)
    assert end.vector is None and end.cpu.rip == CODE + 0x101
    assert end.reg(x86.RCX) == USER_CODE + 2
    assert end.cpu.mode == x86.MODE_64 and end.cpu.cpl == 0


def test_amds_sysenter_does_not_exist_in_long_mode(amd):
    with_msrs(amd, cs=0x08, esp=KERNEL_STACK, eip=CODE)
    assert amd.run("sysenter").vector == 6
