"""Instructions beyond x86-64-v2: against the host's CPU, and what user-mode cases cannot reach."""

import functools
import json
import struct
from dataclasses import replace

import pytest

from ringzero.engine.soft.x86 import native
from ringzero.errors import StateError
from ringzero.host import processor
from ringzero.host.processor import host_features
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import cpuid
from ringzero.isa.x86.architecture import EXTENDED_GUEST
from ringzero.isa.x86.state import AVX_AREA, XSAVE_AVX_SIZE, XSAVE_BASE_SIZE
from tests.isa.guest import DATA, Guest
from tests.isa.host_comparison import FUZZ
from tests.oracle import compare
from tests.oracle.excluded import exclusion
from tests.oracle.extensions import (
    UPPER_IN,
    ExtensionCases,
    comparable_forms,
    extension_forms,
    form_text,
    move_uppers,
)
from tests.oracle.model import CODE_BASE, XM, Case, State, fx_image
from tests.oracle.native import Native, native_available
from tests.oracle.soft import Soft

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
HOST = host_features()
needs_v3 = pytest.mark.skipif(
    bool(cpuid.host_lacks(cpuid.MODELS["x86-64-v3"], HOST)), reason="needs a host of x86-64-v3"
)
needs_host = pytest.mark.skipif(not native_available(), reason="needs an x86-64 Linux host")
MODULES = sorted({f.function.__module__.rpartition(".")[2] for f in extension_forms()})
MASK = (1 << 64) - 1


@functools.cache
def soft(entry):
    executor = Soft(entry, EXTENDED_GUEST)
    executor.vm.code.hot = 0
    return executor


def forms_of(module):
    return [
        form for form in comparable_forms(HOST) if form.function.__module__.endswith("." + module)
    ]


@needs_v3
@needs_host
@pytest.mark.parametrize("entry", ["run_interpreter", "run_translator"])
@pytest.mark.parametrize("mode", [64, 32])
@pytest.mark.parametrize("module", MODULES)
def test_random_cases_end_as_on_the_host(module, mode, entry):
    cases = ExtensionCases(mode + FUZZ)
    pairs = [(f, c) for f in forms_of(module) for c in cases.cases([f], 4 * FUZZ, mode)]
    with Native() as host:
        expected = host.run([case for _, case in pairs])
    wrong = []
    for (form, case), outcome in zip(pairs, expected, strict=True):
        if not compare.comparable(outcome, outcome):
            continue
        got = soft(entry).run([case])[0]
        found = compare.compare(outcome, got, case)
        if found and exclusion(case, outcome, got) is None:
            wrong.append(f"{form.mnemonic} {form.text} | {form_text(case)} in {mode}: {found}")
    assert not wrong, f"{len(wrong)} of {len(pairs)}, the first:\n{wrong[0]}"


@needs_v3
@needs_host
@pytest.mark.parametrize("entry", ["run_interpreter", "run_translator"])
def test_both_lanes_of_a_dot_product_are_multiplied_before_sums_are_made(entry):
    """What is denormal in the upper lane comes before the lower lane's products are inexact."""
    large, denormal = struct.pack("<4f", *[1e30] * 4), struct.pack("<4I", *[1] * 4)
    uppers = ((UPPER_IN + 16, denormal), (UPPER_IN + 32, struct.pack("<4f", *[1.0] * 4)))
    # Denormal operands and inexact results are not masked.
    image = fx_image(mxcsr=0x1F80 & ~0x1100, xmm=[bytes(16), large, large])
    code = bytes.fromhex("c4e37540c2ff")  # vdpps ymm0, ymm1, ymm2, 0xff
    program = move_uppers(0x18, UPPER_IN, 3) + code
    case = Case(program, State.build(rip=CODE_BASE, fxsave=image), uppers, 64, "vdpps")
    with Native() as host:
        (expected,) = host.run([case])
    (got,) = soft(entry).run([case])
    assert compare.compare(expected, got, case) == []
    assert got.vector == XM
    assert got.state.mxcsr & 0x3F == 0x02


def test_forms_are_behind_those_of_the_base_table():
    """An engine is completed with them: nothing of what is compiled before may change."""
    from ringzero.isa.x86.table.instructions import all_forms

    base = all_forms()
    everything = all_forms(extended=True)
    assert everything[: len(base)] == base
    assert len(everything) > len(base) + 600
    assert {form.index for form in everything} == set(range(len(everything)))


# --- a guest with AVX ----------------------------------------------------------


def leaves(model="max"):
    return list(cpuid.for_vcpu(cpuid.build(model, vcpus=1, tsc_hz=10**9, host=HOST), 0))


@pytest.fixture(params=["run_interpreter", "run_translator"])
def guest(request, monkeypatch):
    monkeypatch.setattr(Guest, "entry", request.param)
    made = Guest(cpuid=leaves())
    made.state = replace(made.state, cr4=made.state.cr4 | x86.CR4_OSXSAVE, xcr0=7)
    return made


@needs_v3
@pytest.mark.parametrize(
    ("change", "vector"),
    [
        ({}, None),
        ({"xcr0": 3}, 6),
        ({"xcr0": 1}, 6),
        ({"cr4": ~x86.CR4_OSXSAVE}, 6),
        ({"cr0": x86.CR0_TS}, 7),
        ({"cr4": ~x86.CR4_OSXSAVE, "cr0": x86.CR0_TS}, 6),
        # Of no account, other than for SSE.
        ({"cr0": x86.CR0_EM}, None),
        ({"cr4": ~x86.CR4_OSFXSR}, None),
    ],
)
def test_avx_needs_the_systems_consent(guest, change, vector):
    """Intel SDM vol. 2A, table 2-18."""
    state = guest.state
    guest.state = replace(
        state,
        xcr0=change.get("xcr0", state.xcr0),
        cr4=state.cr4 & change.get("cr4", MASK),
        cr0=state.cr0 | change.get("cr0", 0),
    )
    assert guest.run("vpaddb ymm0, ymm1, ymm2; hlt").vector == vector


@needs_v3
def test_xsetbv_takes_avx_away_from_code_that_is_translated(guest):
    code = """
    mov ecx, 3
    again: vpaddb ymm0, ymm1, ymm2
    dec ecx
    jnz again
    xor ecx, ecx
    xor edx, edx
    mov eax, 3
    xsetbv
    mov ecx, 3
    jmp again
    """
    end = guest.run(code)
    assert end.vector == 6
    assert end.reg(x86.RCX) == 3


@pytest.mark.parametrize(
    ("value", "vector"), [(7, None), (3, None), (1, None), (5, 13), (0, 13), (2, 13), (15, 13)]
)
def test_xcr0_takes_the_components_that_there_are(guest, value, vector):
    """Intel SDM vol. 1, 13.3."""
    assert guest.run("xsetbv; hlt", rax=value, rcx=0, rdx=0).vector == vector


def test_bmi_needs_no_consent(guest):
    guest.state = replace(guest.state, cr4=guest.state.cr4 & ~x86.CR4_OSXSAVE, xcr0=1)
    end = guest.run("andn rax, rbx, rcx; hlt", rbx=0b1100, rcx=0b1010)
    assert end.vector is None
    assert end.reg(x86.RAX) == 0b0010


@pytest.mark.parametrize(
    "code",
    [
        "66 c5 fd fc c1", "f2 c5 fd fc c1", "f3 c5 fd fc c1", "f0 c5 fd fc c1", "48 c5 fd fc c1",
        # VEX.vvvv that names no operand; a map that there is not; PABSB has no third operand.
        "c5 f5 6f c1", "c4 e4 7d fc c1", "c4 e0 7d fc c1", "c4 e2 75 1c c1",
        # VPHMINPOSUW and VZEROUPPER have no length of 256 bits, ANDN none at all.
        "c4 e2 7d 41 c1", "c4 e2 74 f2 c1",
    ],
)  # fmt: skip
def test_prefixes_that_are_undefined(guest, code):
    """Intel SDM vol. 2A, 2.3.2 to 2.3.4."""
    assert guest.run(bytes.fromhex(code) + b"\xf4").vector == 6


def test_sse_leaves_the_upper_half_and_vex_clears_it(guest):
    guest.write(DATA, bytes(range(64)))
    end = guest.run(
        """
        vmovdqu ymm1, [rbx]
        vmovdqu ymm2, [rbx]
        vmovdqu ymm3, [rbx]
        paddb xmm1, xmm1
        vpaddb xmm2, xmm2, xmm2
        vmovups xmm3, xmm3
        hlt
        """,
        rbx=DATA,
    )
    assert end.vector is None
    high = int.from_bytes(bytes(range(16, 32)), "little")
    assert [guest.cpu.ymm_high[n] for n in (1, 2, 3)] == [high, 0, 0]


@pytest.mark.parametrize("code", ["vzeroupper", "vzeroall"])
def test_upper_halves_are_cleared_together(guest, code):
    for n in range(16):
        guest.cpu.xmm[n] = n + 1
        guest.cpu.ymm_high[n] = n + 1
    guest.state = replace(guest.state, xsave=area(low=True))
    end = guest.run(f"{code}; hlt")
    assert end.vector is None
    assert not any(guest.cpu.ymm_high[n] for n in range(16))
    assert all(bool(guest.cpu.xmm[n]) == (code == "vzeroupper") for n in range(16))


# --- saving and restoring --------------------------------------------------------


def area(*, low=False, present=7):
    """An XSAVE area with recognisable registers."""
    made = bytearray(XSAVE_AVX_SIZE)
    made[0:2] = b"\x7f\x03"
    made[24:28] = struct.pack("<I", 0x1F80)
    if low:
        made[160:416] = b"\x11" * 256
    made[XSAVE_BASE_SIZE - 64] = present
    made[AVX_AREA:] = bytes(range(256))
    return bytes(made)


def uppers(guest):
    return b"".join(int(guest.cpu.ymm_high[n]).to_bytes(16, "little") for n in range(16))


def test_xrstor_and_xsave_move_upper_halves(guest):
    guest.write(DATA, area())
    guest.write(DATA + 0x400, bytes(0x400))
    end = guest.run(
        "mov eax, 7; xor edx, edx; xrstor64 [rbx]; xsave64 [rbx + 0x400]; hlt", rbx=DATA
    )
    assert end.vector is None
    assert uppers(guest) == bytes(range(256))
    stored = guest.memory.read(DATA + 0x400, XSAVE_AVX_SIZE)
    assert stored[AVX_AREA:] == bytes(range(256))
    assert stored[512] & 4


@pytest.mark.parametrize(("asked", "present", "kept"), [(4, 3, False), (4, 7, True), (3, 7, False)])
def test_xrstor_initialises_what_the_image_lacks(guest, asked, present, kept):
    """Intel SDM vol. 1, 13.8.1: what is asked for and not there becomes zero."""
    guest.write(DATA, area(present=present))
    end = guest.run("xor edx, edx; xrstor64 [rbx]; hlt", rbx=DATA, rax=asked)
    assert end.vector is None
    assert uppers(guest) == (bytes(range(256)) if kept else bytes(256))


def test_xrstor_refuses_components_that_are_not_enabled(guest):
    guest.state = replace(guest.state, xcr0=3)
    guest.write(DATA, area())
    assert guest.run("xrstor64 [rbx]; hlt", rbx=DATA, rax=3, rdx=0).vector == 13


def test_the_size_of_the_area_follows_xcr0(guest):
    for value, size in ((3, 576), (7, 832)):
        guest.state = replace(guest.state, xcr0=value)
        end = guest.run("cpuid; hlt", rax=0xD, rcx=0)
        assert (end.reg(x86.RAX), end.reg(x86.RBX), end.reg(x86.RCX)) == (7, size, 832)
    end = guest.run("cpuid; hlt", rax=0xD, rcx=2)
    assert (end.reg(x86.RAX), end.reg(x86.RBX)) == (256, 576)


def test_a_saved_state_has_upper_halves_where_there_are_any(guest):
    guest.state = replace(guest.state, xsave=area())
    guest.run("hlt")
    assert guest.vcpu.get_state().xsave[AVX_AREA:] == bytes(range(256))
    # One from before there were any.
    guest.state = replace(guest.state, xsave=area(present=3)[:XSAVE_BASE_SIZE])
    guest.run("hlt")
    assert uppers(guest) == bytes(256)
    with pytest.raises(StateError, match="cut short"):
        guest.vcpu.set_state(replace(guest.state, xsave=area()[:-1]))


def test_a_model_without_avx_refuses_a_state_with_it():
    plain = Guest(cpuid=leaves("x86-64-v2"))
    with pytest.raises(StateError, match="CPU model"):
        plain.vcpu.set_state(replace(plain.state, xsave=area()))
    with pytest.raises(StateError, match="enables unknown"):
        plain.vcpu.set_state(replace(plain.state, xcr0=7))
    assert len(plain.vcpu.get_state().xsave) == XSAVE_BASE_SIZE


# --- single instructions ----------------------------------------------------------


def test_rdseed_and_rdpid(guest):
    guest.state = replace(guest.state, msrs={**guest.state.msrs, 0xC0000103: 0x1234})
    end = guest.run("rdpid rbx; rdseed rax; setc cl; hlt")
    assert end.vector is None
    assert end.reg(x86.RBX) == 0x1234
    assert end.reg(x86.RCX) & 1


def test_a_gather_that_faults_goes_on_where_it_was(guest):
    """Elements in order, each with its mask; #PF for the third of four (vol. 2C, VGATHERDPS)."""
    guest.write(DATA, struct.pack("<4I", 0, 4, 0x7000000, 8) + struct.pack("<4I", 11, 22, 33, 44))
    end = guest.run(
        """
        vmovdqu xmm1, [rbx]
        vpcmpeqd xmm2, xmm2, xmm2
        vpxor xmm0, xmm0, xmm0
        vpgatherdd xmm0, [rbx + xmm1 + 16], xmm2
        hlt
        """,
        rbx=DATA,
    )
    assert end.vector == 14
    assert int(guest.cpu.xmm[0]).to_bytes(16, "little") == struct.pack("<4I", 11, 22, 0, 0)
    assert int(guest.cpu.xmm[2]).to_bytes(16, "little") == struct.pack(
        "<4I", 0, 0, MASK >> 32, MASK >> 32
    )


@pytest.mark.parametrize(
    "code",
    [
        "vpgatherdd xmm0, [rbx + xmm0], xmm2",
        "vpgatherdd xmm0, [rbx + xmm1], xmm0",
        "vpgatherdd xmm0, [rbx + xmm1], xmm1",
    ],
)
def test_a_gathers_registers_must_differ(guest, code):
    names = {
        "vpgatherdd xmm0, [rbx + xmm0], xmm2": "c4 e2 69 90 04 03",
        "vpgatherdd xmm0, [rbx + xmm1], xmm0": "c4 e2 79 90 04 0b",
        "vpgatherdd xmm0, [rbx + xmm1], xmm1": "c4 e2 71 90 04 0b",
    }
    assert guest.run(bytes.fromhex(names[code]) + b"\xf4", rbx=DATA).vector == 6


@pytest.mark.parametrize(
    "code",
    [
        "vmovaps ymm0, [rbx]",
        "vmovdqa [rbx], ymm0",
        "vmovntdq [rbx], ymm0",
        "vmovaps xmm0, [rbx + 8]",
    ],
)
def test_moves_that_must_be_aligned(guest, code):
    assert guest.run(f"{code}; hlt", rbx=DATA + 16).vector == 13
    assert guest.run(f"{code}; hlt", rbx=DATA + 24 if "8]" in code else DATA + 32).vector is None


# --- hosts and models ---------------------------------------------------------------


def test_an_instruction_that_the_host_lacks_is_undefined(monkeypatch):
    """The engine is compiled for all; what this host cannot do it must not try."""
    needs = json.loads(native.native_engine(EXTENDED_GUEST).objects.read("needs.json"))
    assert set(needs.values()) <= set(cpuid.host_needs(cpuid.MODELS["max"])) | {"avx"}
    monkeypatch.setattr(processor, "host_features", lambda: HOST - {"aes", "fma"})
    poor = native.NativeEngine(native.native_engine(EXTENDED_GUEST).objects)
    monkeypatch.setattr("tests.isa.guest.native_engine", lambda guest: poor)
    guest = Guest(cpuid=leaves())
    guest.state = replace(guest.state, cr4=guest.state.cr4 | x86.CR4_OSXSAVE, xcr0=7)
    assert guest.run("aesenc xmm0, xmm1; hlt").vector == 6
    assert guest.run("vfmadd231ps ymm0, ymm1, ymm2; hlt").vector == 6
    assert guest.run("vpaddd ymm0, ymm1, ymm2; hlt").vector is None


# What a program does that looks the feature up first.
USES = {
    "avx": "vaddps ymm0, ymm1, ymm2", "avx2": "vpaddb ymm0, ymm1, ymm2",
    "bmi1": "blsr eax, ebx", "bmi2": "mulx rax, rcx, rbx", "f16c": "vcvtph2ps ymm0, xmm1",
    "fma": "vfmadd231pd ymm0, ymm1, ymm2", "abm": "lzcnt eax, ebx", "movbe": "movbe eax, [rbx]",
    "aes": "aesenc xmm0, xmm1", "clflushopt": "clflushopt [rbx]",
    "clwb": "clwb [rbx]", "pclmulqdq": "pclmulqdq xmm0, xmm1, 1", "rdpid": "rdpid rax",
    "rdseed": "rdseed eax", "sha_ni": "sha256msg1 xmm0, xmm1",
    "vaes": "vaesenc ymm0, ymm1, ymm2", "vpclmulqdq": "vpclmulqdq ymm0, ymm1, ymm2, 1",
}  # fmt: skip


@pytest.mark.parametrize("feature", sorted(cpuid.EXTENSIONS))
def test_what_is_promised_is_there(guest, feature):
    if feature not in cpuid.features_of(leaves()):
        pytest.skip("this host cannot carry it")
    assert guest.run(f"{USES[feature]}; hlt", rbx=DATA).vector is None
