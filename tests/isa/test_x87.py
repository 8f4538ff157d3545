"""x87 against the host CPU; state instructions; what user-mode cases cannot reach."""

import struct
from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import DATA, USER_DATA, Guest
from tests.isa.host_comparison import (
    FUZZ,
    cases_of,
    form_of,
    forms_of,
    interpreter,
    mismatches,
    run_native,
)
from tests.oracle import compare
from tests.oracle.cases import Generator
from tests.oracle.model import Case
from tests.oracle.native import native_available

pytestmark = pytest.mark.engine
MODULES = ("x87_arithmetic", "x87_move", "x87_control", "fpu_state")
needs_host = pytest.mark.skipif(not native_available(), reason="needs an x86-64 Linux host")
# Encodings that Capstone does not know: aliases, and no-ops of the 8087 and 80287.
ALIASES = ("DC D0", "DC D8", "DE D0", "D9 D8", "DF D0", "DF D8", "DD C8", "DF C8")
NO_OPERATIONS = ("DB E0", "DB E1", "DB E4")
# Components x87 and SSE.
BOTH = 3


@pytest.fixture
def guest():
    guest = Guest()
    guest.state = replace(guest.state, cr4=guest.state.cr4 | x86.CR4_OSXSAVE, xcr0=BOTH)
    return guest


@needs_host
@pytest.mark.parametrize("mode", [64, 32])
@pytest.mark.parametrize("module", MODULES)
def test_random_cases_end_as_on_the_host(module, mode):
    cases = cases_of(module, mode, seed=mode + FUZZ, per_form=15 * FUZZ)
    assert len(cases) > 50
    wrong = list(mismatches(cases, interpreter()))
    assert not wrong, f"{len(wrong)} of {len(cases)}, the first:\n{wrong[0]}"


@needs_host
@pytest.mark.parametrize("code", [*ALIASES, *NO_OPERATIONS])
def test_random_states_of_undocumented_encodings(code):
    first, second = bytes.fromhex(code)
    cases = []
    for n, donor in enumerate(cases_of("x87_arithmetic", 64, 5, 2 * FUZZ)):
        last = second if code in NO_OPERATIONS else second + n % 8
        cases.append(Case(bytes([first, last]), donor.state))
    soft = interpreter()
    for case, expected in zip(cases, run_native(cases), strict=True):
        got = soft.run([case])[0]
        assert not compare.compare(expected, got, case), compare.explain(expected, got, case)


def test_every_form_is_among_the_cases():
    privileged = {"xsave", "xrstor", "xgetbv", "xsetbv"}
    for module in MODULES:
        reached = {
            id(form_of(case.code, mode))
            for mode in (64, 32)
            for case in cases_of(module, mode, 0, 2)
        }
        for form in forms_of(module):
            alias = any(form.text.startswith(a[:2]) for a in (*ALIASES, *NO_OPERATIONS))
            assert id(form) in reached or alias or form.mnemonic in privileged, form.text


# --- deferred exceptions, FWAIT --------------------------------------------

# ZE unmasked, then 1 / 0.
DIVIDE = "fninit; push 0x37b; fldcw [rsp]; fldz; fld1; fdivrp st(1), st; "


def test_unmasked_exception_waits_for_the_next_instruction(guest):
    end = guest.run(DIVIDE + "nop; fnstsw ax; fwait; hlt")
    assert end.vector == 16
    assert end.reg(x86.RAX) & 0x80FF == 0x8084


@pytest.mark.parametrize("quiet", ["fnclex", "fninit", "fnsave [rbx]", "fnstenv [rbx]"])
def test_instructions_that_do_not_wait_clear_the_way(guest, quiet):
    assert guest.run(f"mov ebx, {DATA}; {DIVIDE}; {quiet}; fwait; hlt").vector is None


@pytest.mark.parametrize(
    ("cr0", "vector"), [(x86.CR0_TS, 7), (0, None)], ids=["switched", "present"]
)
def test_wait_looks_at_the_task_switched_flag(guest, cr0, vector):
    guest.state = replace(guest.state, cr0=guest.state.cr0 | cr0)
    assert guest.run("fwait; hlt").vector == vector


def test_wait_ignores_the_task_switched_flag_without_mp(guest):
    guest.state = replace(guest.state, cr0=(guest.state.cr0 | x86.CR0_TS) & ~x86.CR0_MP)
    assert guest.run("fwait; hlt").vector is None


@pytest.mark.parametrize("cr0", [x86.CR0_TS, x86.CR0_EM])
def test_x87_is_not_available_when_the_system_says_so(guest, cr0):
    guest.state = replace(guest.state, cr0=guest.state.cr0 | cr0)
    assert guest.run("fld1; hlt").vector == 7


# --- XSAVE -----------------------------------------------------------------


def image(seed):
    """A 512-byte image with random registers."""
    donor = next(c for c in Generator(seed).cases(_forms(), 1) if not c.state.fsw & 0x80)
    return donor.state.fxsave


def _forms():
    from tests.oracle import encodings

    return [f for f in encodings.enumerate_forms(64) if f.mnemonic == "fld1"]


def save_area(seed, present=BOTH):
    return image(seed) + struct.pack("<Q", present) + bytes(56)


def test_xsave_stores_what_xrstor_loaded(guest):
    area = save_area(1)
    guest.write(DATA, area)
    guest.write(DATA + 0x400, bytes(576))
    end = guest.run("mov eax, 3; xor edx, edx; xrstor64 [rbx]; xsave64 [rcx]; hlt",
                    rbx=DATA, rcx=DATA + 0x400)  # fmt: skip
    assert end.vector is None
    saved = bytearray(guest.memory.read(DATA + 0x400, 576))
    assert struct.unpack_from("<I", saved, 28) == (0xFFFF,)
    saved[28:32] = bytes(4)
    assert saved == area


@pytest.mark.parametrize("component", [1, 2])
def test_xsave_leaves_the_other_component_alone(guest, component):
    guest.write(DATA, save_area(2))
    guest.write(DATA + 0x400, b"\xee" * 512 + bytes(64))
    end = guest.run(
        f"mov eax, 3; xor edx, edx; xrstor64 [rbx]; mov eax, {component}; xsave64 [rcx]; hlt",
        rbx=DATA,
        rcx=DATA + 0x400,
    )
    assert end.vector is None
    saved = guest.memory.read(DATA + 0x400, 576)
    expected = image(2)
    x87, sse = (saved[0:2] + saved[32:160], saved[160:416])
    untouched = b"\xee"
    assert (x87 == expected[0:2] + expected[32:160]) is (component == 1)
    assert (sse == expected[160:416]) is (component == 2)
    assert x87 == untouched * 130 or component == 1
    assert sse == untouched * 256 or component == 2
    assert saved[512:520] == struct.pack("<Q", component)


def test_xrstor_gives_absent_components_their_initial_state(guest):
    guest.write(DATA, save_area(3))
    guest.write(DATA + 0x400, save_area(3, present=0))
    guest.run(
        "mov eax, 3; xor edx, edx; xrstor64 [rbx]; xrstor64 [rcx]; xsave64 [rbx]; hlt",
        rbx=DATA,
        rcx=DATA + 0x400,
    )
    saved = guest.memory.read(DATA, 512)
    assert saved[:5] == b"\x7f\x03\0\0\0"
    assert saved[32:416] == bytes(384)
    # MXCSR comes from memory all the same (SDM vol. 1, section 13.8.1).
    assert saved[24:28] == image(3)[24:28]


@pytest.mark.parametrize(
    ("at", "value"), [(24, 1 << 16), (512, 4), (520, 1), (528, 1)],
    ids=["mxcsr", "component", "compacted", "reserved"],
)  # fmt: skip
def test_xrstor_refuses_a_bad_image(guest, at, value):
    guest.write(DATA, save_area(4))
    guest.write(DATA + at, struct.pack("<Q" if at > 24 else "<I", value))
    end = guest.run("mov eax, 3; xor edx, edx; xrstor64 [rbx]; hlt", rbx=DATA)
    assert (end.vector, end.code) == (13, 0)


def test_xsave_needs_alignment(guest):
    end = guest.run("mov eax, 3; xor edx, edx; xsave64 [rbx]; hlt", rbx=DATA + 16)
    assert (end.vector, end.code) == (13, 0)


@pytest.mark.parametrize("code", ["xsave [rbx]", "xrstor [rbx]", "xgetbv", "xsetbv"])
def test_xsave_family_needs_osxsave(guest, code):
    guest.state = replace(guest.state, cr4=guest.state.cr4 & ~x86.CR4_OSXSAVE)
    assert guest.run(f"{code}; hlt", rbx=DATA, rax=1, rdx=0, rcx=0).vector == 6


@pytest.mark.parametrize(
    ("rcx", "rax", "rdx", "accepted"),
    [(0, 1, 0, True), (0, 3, 0, True), (0, 2, 0, False), (0, 0, 0, False), (0, 7, 0, False),
     (0, 3, 1, False), (1, 3, 0, False)],
)  # fmt: skip
def test_xsetbv_takes_only_what_exists(guest, rcx, rax, rdx, accepted):
    end = guest.run("xsetbv; xor ecx, ecx; xgetbv; hlt", rcx=rcx, rax=rax, rdx=rdx)
    assert end.vector == (None if accepted else 13)
    if accepted:
        assert end.reg(x86.RAX) == rax


def test_xsetbv_is_privileged(guest):
    guest.become_user()
    end = guest.run("xsetbv; hlt", rcx=0, rax=3, rdx=0, rbx=USER_DATA)
    assert (end.vector, end.code) == (13, 0)
