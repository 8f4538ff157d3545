"""System cases on Unicorn against what the Intel SDM says (vol. 3A chapters 5 and 6)."""

import struct

import pytest

from tests.oracle.assembler import assemble
from tests.oracle.model import BP, GP, PF, SS, UD
from tests.oracle.paging import Controls, access_case
from tests.oracle.unicorn_peer import GDT, PRESENT, USER, WRITABLE, SystemCase, UnicornSystem

CODE, STACK = 0x10000, 0x14000
STAR, GS_BASE, KERNEL_GS_BASE = 0xC000_0081, 0xC000_0101, 0xC000_0102


@pytest.fixture(scope="module")
def system():
    return UnicornSystem()


def run(system, source, msrs=(), gdt=GDT, **gpr):
    """`source` at CODE in supervisor mode, all of the first megabyte mapped for all."""
    tables = access_case((PRESENT | WRITABLE | USER,) * 4, "read", False, Controls()).memory
    memory = [
        *tables,
        (0x4000, struct.pack("<256Q", *(i << 12 | PRESENT | WRITABLE | USER for i in range(256)))),
        (0, struct.pack(f"<{len(gdt)}Q", *gdt)),
        (CODE, assemble(source, 64, CODE)),
    ]
    return system.run_system(
        SystemCase(
            rip=CODE,
            cr3=0x1000,
            memory=tuple(memory),
            gpr={"rsp": STACK, **gpr},
            gdt_limit=8 * len(gdt) - 1,
            msrs=dict(msrs),
        )
    )


def test_hlt_ends_without_an_exception(system):
    outcome = run(system, "mov rax, cr3; hlt")
    assert outcome.vector is None
    assert outcome.gpr[0] == 0x1000
    assert outcome.segments[:2] == (0x08, 0x10)


@pytest.mark.parametrize(
    ("source", "vector", "error"),
    [
        ("mov eax, 0x1238; mov ds, eax", GP, 0x1238),  # beyond the GDT
        ("mov eax, 0x3c; mov ds, eax", GP, 0x3C),  # in an LDT that is not there
        ("mov eax, 0x08; mov ss, eax", GP, 0x08),  # code for a stack
        ("mov eax, 0x2b; mov ss, eax", GP, 0x28),  # DPL is not CPL
        ("mov eax, 0x40; mov ds, eax", 11, 0x40),  # not present: #NP
        ("mov eax, 0x48; mov ss, eax", SS, 0x48),  # not present stack
        ("mov eax, 0x40; ltr ax", GP, 0x40),  # no TSS
        ("ud2", UD, 0),
        ("int3", BP, 0),
        ("mov rax, [0x200000]", PF, 0),
        ("mov ecx, 0x12345; rdmsr; mov rax, cr1", UD, 0),
    ],
)
def test_faults_in_supervisor_mode(system, source, vector, error):
    absent_data, absent_stack = 0x00CF13000000FFFF, 0x00CF13000000FFFF
    outcome = run(system, source, gdt=(*GDT, 0, absent_data, absent_stack))
    assert (outcome.vector, outcome.error_code) == (vector, error)


def test_iretq_to_user_mode_and_its_privileges(system):
    outcome = run(
        system,
        f"push 0x2b; push {STACK - 64}; push 0x202; push 0x33\n"
        "lea rax, [rip + user]; push rax; iretq\n"
        "user: mov eax, 5; cli",
    )
    assert (outcome.vector, outcome.error_code) == (GP, 0)
    assert outcome.segments[:2] == (0x33, 0x2B)
    assert outcome.gpr[0] == 5
    assert outcome.gpr[4] == STACK - 64


def test_iretq_to_a_data_segment_is_refused(system):
    outcome = run(system, f"push 0x2b; push {STACK}; push 2; push 0x2b; push {CODE}; iretq")
    assert (outcome.vector, outcome.error_code) == (GP, 0x28)


def test_sysret_loads_what_the_msrs_say(system):
    """SYSCALL itself is no more than a NOP to Unicorn."""
    outcome = run(
        system,
        "lea rcx, [rip + user]; mov r11d, 0x247; swapgs; sysretq\nuser: cli",
        msrs={STAR: 0x0023_0008 << 32, GS_BASE: 0x1111, KERNEL_GS_BASE: 0x2222},
    )
    assert (outcome.vector, outcome.error_code) == (GP, 0)
    assert outcome.segments[:2] == (0x33, 0x2B)
    assert outcome.rflags == 0x247
    assert outcome.gs_base == 0x2222
