"""SSE and MMX against the host CPU, and what user-mode cases cannot reach."""

import struct
from dataclasses import replace

import pytest

from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import DATA, Guest
from tests.isa.host_comparison import (
    FUZZ,
    cases_of,
    form_of,
    forms_of,
    interpreter,
    mismatches,
    translator,
)
from tests.oracle.native import native_available

pytestmark = pytest.mark.engine
MODULES = ("sse_move", "sse_integer", "sse_float", "sse_string", "mmx", "cache_control")
needs_host = pytest.mark.skipif(not native_available(), reason="needs an x86-64 Linux host")
UNMASKED_DIVIDE = 0x1F80 & ~0x200


@pytest.fixture
def guest():
    return Guest()


@needs_host
@pytest.mark.parametrize("engine", [interpreter, translator])
@pytest.mark.parametrize("mode", [64, 32])
@pytest.mark.parametrize("module", MODULES)
def test_random_cases_end_as_on_the_host(module, mode, engine):
    cases = cases_of(module, mode, seed=mode + FUZZ, per_form=6 * FUZZ)
    assert len(cases) > 2
    wrong = list(mismatches(cases, engine()))
    assert not wrong, f"{len(wrong)} of {len(cases)}, the first:\n{wrong[0]}"


@pytest.mark.parametrize("module", MODULES)
def test_every_form_is_among_the_cases(module):
    reached = {
        id(form_of(case.code, mode)) for mode in (64, 32) for case in cases_of(module, mode, 0, 2)
    }
    missed = [f"{f.mnemonic}: {f.text}" for f in forms_of(module) if id(f) not in reached]
    # CLFLUSHOPT is not in x86-64-v2.
    assert [m for m in missed if "66 0F AE" not in m] == []


def divide_by_zero(guest, control):
    guest.write(DATA, struct.pack("<Idd", control, 0, 0) + bytes(12))
    return guest.run(
        """
        mov rbx, 0x18000
        ldmxcsr [rbx]
        mov eax, 1
        cvtsi2sd xmm1, eax
        xorps xmm2, xmm2
        divsd xmm1, xmm2
        stmxcsr [rbx]
        hlt
        """
    )


def test_masked_division_by_zero_sets_its_flag(guest):
    end = divide_by_zero(guest, 0x1F80)
    assert end.vector is None
    assert int.from_bytes(guest.memory.read(DATA, 4), "little") == 0x1F84


def test_unmasked_exception_leaves_the_destination(guest):
    end = divide_by_zero(guest, UNMASKED_DIVIDE)
    assert end.vector == 19
    assert struct.pack("<d", 1.0) == guest.vcpu.get_state().xsave[176:184]


def test_unmasked_exception_is_undefined_without_osxmmexcpt(guest):
    guest.state = replace(guest.state, cr4=guest.state.cr4 & ~x86.CR4_OSXMMEXCPT)
    assert divide_by_zero(guest, UNMASKED_DIVIDE).vector == 6


@pytest.mark.parametrize(
    ("cr0", "cr4", "vector"),
    [
        (x86.CR0_TS, 0, 7),
        (x86.CR0_EM, 0, 6),
        (0, x86.CR4_OSFXSR, 6),
    ],
)
def test_sse_needs_the_systems_consent(guest, cr0, cr4, vector):
    """Intel SDM vol. 3A, table 14-1."""
    state = guest.state
    guest.state = replace(state, cr0=state.cr0 | cr0, cr4=state.cr4 & ~cr4)
    assert guest.run("addps xmm0, xmm1; hlt").vector == vector


@pytest.mark.parametrize(("cr0", "vector"), [(x86.CR0_TS, 7), (x86.CR0_EM, 6)])
def test_mmx_needs_the_systems_consent(guest, cr0, vector):
    """Intel SDM vol. 3A, table 12-1."""
    guest.state = replace(guest.state, cr0=guest.state.cr0 | cr0)
    assert guest.run("paddb mm0, mm1; hlt").vector == vector


def test_guest_rounding_does_not_reach_the_host(guest):
    guest.write(DATA, struct.pack("<I", 0x7F80))
    assert guest.run("mov ebx, 0x18000; ldmxcsr [rbx]; hlt").vector is None
    assert 1.0 / 3.0 * 3.0 == 1.0


@pytest.mark.parametrize("bit", [16, 17, 31])
def test_mxcsr_has_no_bits_beyond_those_of_its_mask(guest, bit):
    """Bit 17 is AMD's misaligned mode, which CPUID (80000001h, ECX bit 7) does not offer."""
    guest.write(DATA, struct.pack("<I", 0x1F80 | 1 << bit))
    end = guest.run("fxsave [rbx + 0x200]; mov esi, [rbx + 0x21c]; ldmxcsr [rbx]", rbx=DATA)
    assert end.vector == 13 and end.code == 0
    assert end.reg(x86.RSI) == 0xFFFF
