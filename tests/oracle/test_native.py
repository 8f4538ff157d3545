"""The host CPU as an executor: faults, hostile cases, registers, 32-bit code.

The expectations are the Intel SDM's (vol. 3 chapter 6 for vectors and error codes).
"""

import os
import signal

import pytest

from tests.oracle.assembler import assemble
from tests.oracle.cases import Generator, select_forms
from tests.oracle.model import (
    AC,
    BP,
    CODE_BASE,
    CODE_MIDDLE,
    CODE_SIZE,
    CRASHED,
    DATA_BASE,
    DB,
    DE,
    FIXED_FLAGS,
    FLAG_BITS,
    GP,
    INITIAL_DATA,
    MF,
    PF,
    RO_BASE,
    SS,
    SYSCALL,
    TIMED_OUT,
    UD,
    XM,
    Case,
    State,
    fx_image,
)

HOLE = DATA_BASE + len(INITIAL_DATA)


def case(source, mode=64, *, rflags=FIXED_FLAGS, fxsave=None, **gpr):
    gpr.setdefault("rsp", DATA_BASE + 0x1000)
    state = State.build(gpr, rflags=rflags, fxsave=fxsave)
    return Case(assemble(source, mode), state, mode=mode)


def run(native, *arguments, **keywords):
    return native.run([case(*arguments, **keywords)])[0]


def test_every_general_register_goes_in_and_comes_out(native):
    values = [0x0111_1111_1111_1111 * i + 5 for i in range(16)]
    state = State.build(values)
    outcome = native.run([Case(b"\x90", state)])[0]
    assert outcome.vector == BP
    assert outcome.state.gpr == tuple(values)
    assert outcome.state.rip == CODE_MIDDLE + 2


def test_the_fpu_image_goes_in_and_comes_out(native):
    image = fx_image(
        fcw=0xB7F, fsw=0x2A41, ftw=0xA5, mxcsr=0x5FA0,
        st=[bytes([i] * 10) for i in range(8)], xmm=[bytes([i] * 16) for i in range(16)],
    )  # fmt: skip
    outcome = run(native, "nop", fxsave=image)
    assert outcome.state.fxsave == image


def test_flags_go_in_and_come_out(native):
    flags = FIXED_FLAGS | sum(
        FLAG_BITS[n] for n in ("CF", "PF", "AF", "ZF", "SF", "OF", "DF", "ID")
    )
    assert run(native, "nop", rflags=flags).state.rflags == flags


@pytest.mark.parametrize(
    ("source", "vector", "error", "address"),
    [
        ("mov rax, [rbx]", PF, 4, HOLE),
        ("mov [rbx], rax", PF, 6, HOLE),
        ("add [rbx], al", PF, 6, HOLE),
        ("jmp rbx", PF, 0x14, HOLE),
        ("div ecx", DE, 0, 0),
        ("ud2", UD, 0, 0),
        ("hlt", GP, 0, 0),
        ("mov rax, [rdx]", GP, 0, 0),
        ("mov rbp, rdx; mov rax, [rbp]", SS, 0, 0),
        ("movaps xmm0, [rsp + 1]", GP, 0, 0),
        ("cli", GP, 0, 0),
        ("mov rax, cr3", GP, 0, 0),
    ],
)
def test_faults(native, source, vector, error, address):
    outcome = run(native, source, rbx=HOLE, rdx=1 << 62)
    assert (outcome.vector, outcome.error_code, outcome.address) == (vector, error, address)
    if "jmp" not in source and ";" not in source:
        assert outcome.state.rip == CODE_MIDDLE


def test_the_read_only_page_is_present(native):
    outcome = run(native, "mov [rbx], al", rbx=RO_BASE)
    assert (outcome.vector, outcome.error_code, outcome.address) == (PF, 7, RO_BASE)


def test_alignment_check(native):
    outcome = run(native, "mov eax, [rsp + 1]", rflags=FIXED_FLAGS | FLAG_BITS["AC"])
    assert (outcome.vector, outcome.error_code) == (AC, 0)


def test_unmasked_sse_exception(native):
    image = fx_image(mxcsr=0x1D80, xmm=[b"\0\0\x80\x3f"])
    outcome = run(native, "divss xmm0, xmm1", fxsave=image)
    assert outcome.vector == XM
    assert outcome.state.mxcsr == 0x1D84
    assert outcome.state.xmm(0) == image[160:176]


def test_unmasked_x87_exception_waits_for_the_next_instruction(native):
    outcome = run(native, "fld1; fldz; fdivp; nop; fld1", fxsave=fx_image(fcw=0x37B))
    assert outcome.vector == MF
    assert outcome.state.rip == CODE_MIDDLE + len(assemble("fld1; fldz; fdivp; nop"))


def test_a_pending_exception_does_not_harm_the_next_case(native):
    pending = case("fld1; fldz; fdivp", fxsave=fx_image(fcw=0x37B))
    first, second = native.run([pending, case("fld1")])
    assert first.state.fsw & 0x8080 == 0x8080
    assert second.vector == BP


def test_trap_flag_stops_after_one_instruction(native):
    outcome = run(native, "inc eax; inc eax", rflags=FIXED_FLAGS | FLAG_BITS["TF"])
    assert (outcome.vector, outcome.state.gpr[0]) == (DB, 1)


def test_memory_changes_are_seen_and_undone(native):
    store = case("mov [rbx], rax", rax=0x1122334455667788, rbx=DATA_BASE + 0x38)
    look = case("mov rax, [rbx]", rbx=DATA_BASE + 0x38)
    first, second = native.run([store, look])
    ((address, line),) = first.memory
    assert address == DATA_BASE
    assert line == INITIAL_DATA[:0x38] + bytes.fromhex("8877665544332211")
    assert second.memory == ()
    assert second.state.gpr[0].to_bytes(8, "little") == INITIAL_DATA[0x38:0x40]


def test_a_store_across_two_lines_and_into_code(native):
    outcome = run(native, "mov [rbx], rax; mov [rcx], al",
                  rbx=DATA_BASE + 0x3C, rcx=CODE_BASE + CODE_SIZE - 1)  # fmt: skip
    assert [address for address, _ in outcome.memory] == [
        CODE_BASE + CODE_SIZE - 64, DATA_BASE, DATA_BASE + 64,
    ]  # fmt: skip


def test_system_calls_are_caught(native):
    assert run(native, "syscall", rax=60).vector == SYSCALL
    assert run(native, "int 0x80", rax=1).vector == SYSCALL
    assert run(native, "nop").vector == BP


def test_endless_loops_time_out_and_the_batch_goes_on(native):
    outcomes = native.run([case("jmp here"), case("nop"), case("jmp here"), case("nop")])
    assert [o.vector for o in outcomes] == [TIMED_OUT, BP, TIMED_OUT, BP]


@pytest.mark.parametrize("rsp", [0, 1, 8, 1 << 63, (1 << 64) - 1, 0xDEAD_BEEF_CAFE_F00D])
def test_any_stack_pointer_is_survived(native, rsp):
    outcome = run(native, "push rax; pop rax", rsp=rsp)
    assert outcome.vector in (PF, SS)
    assert run(native, "nop", rsp=rsp).state.gpr[4] == rsp


def test_a_killed_child_costs_one_batch_at_most(native):
    native.run([case("nop")])
    os.kill(native._child.pid, signal.SIGKILL)
    outcomes = native.run([case("nop")] * 3)
    assert [o.vector for o in outcomes].count(CRASHED) <= 1
    assert outcomes[-1].vector == BP


def test_compatibility_mode(native):
    outcome = run(native, "inc ebx; push ebx; mov ax, ds; daa", 32, rax=0x1234_9A, rbx=0x7FFF_FFFF)
    assert outcome.vector == BP
    assert outcome.state.gpr[3] == 0x8000_0000
    assert outcome.state.gpr[4] == DATA_BASE + 0x1000 - 4
    assert outcome.state.gpr[8:] == (0,) * 8


def test_segment_bases_in_both_modes(native):
    for mode in (64, 32):
        outcome = run(native, "mov eax, fs:[0]; mov ebx, gs:[4]", mode)
        assert outcome.state.gpr[0] == int.from_bytes(INITIAL_DATA[0x140:0x144], "little")
        assert outcome.state.gpr[3] == int.from_bytes(INITIAL_DATA[0x1184:0x1188], "little")


def test_random_cases_come_out_the_same_twice(native):
    forms = select_forms(64)[::7]
    cases = Generator(3).cases(forms, 3)
    assert native.run(cases) == native.run(cases)


def test_random_bytes_are_survived(native):
    generator = Generator(4)
    cases = [
        Case(generator.rng.randbytes(12), State.build(generator.operands.gprs()))
        for _ in range(3000)
    ]
    outcomes = native.run(cases)
    assert sum(o.vector == CRASHED for o in outcomes) < 30
    assert run(native, "nop").vector == BP
