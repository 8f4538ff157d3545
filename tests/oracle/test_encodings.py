"""The enumeration covers x86-64-v2 and nothing that must not run natively."""

import pytest

from tests.oracle.encodings import enumerate_forms, names, undefined_forms
from tests.oracle.model import BP, UD

WANTED = names(
    """add adc sbb imul idiv bsf bt xadd cmpxchg16b shld rcr popcnt crc32 cmovnp setle
    bswap movsb scasq enter leave lahf sahf xlatb jrcxz loopne
    fadd fild fbstp fptan fyl2xp1 fprem1 fcmovnu fucompi fisttp fxsave fnstenv
    paddsb psadbw pshufw maskmovq movntq emms
    addps sqrtss cvtpi2ps rsqrtps shufps ldmxcsr
    addsd cvtpd2dq movdq2q pmuludq maskmovdqu
    addsubps haddpd lddqu movshdup pshufb palignr pabsd pmulhrsw
    blendvps dppd insertps mpsadbw pcmpeqq phminposuw pmovzxbq ptest roundsd
    pcmpestri pcmpistrm pcmpgtq"""
)
UNWANTED = names(
    """syscall int in out iretq rdtsc cpuid rdrand xsave wrfsbase vaddps andn tzcnt
    lzcnt aesenc pclmulqdq sha1msg1 movbe adcx extrq wrmsr sgdt verr"""
)
ONLY_64 = names("jrcxz cmpxchg16b scasq")
ONLY_32 = names("aaa aad aam aas daa das into bound pushal popal salc")


@pytest.mark.parametrize("mode", [64, 32])
def test_coverage(mode):
    present = {form.mnemonic for form in enumerate_forms(mode)}
    assert WANTED - (ONLY_64 if mode == 32 else ONLY_32) - present == set()
    assert present & UNWANTED == set()
    assert present & (ONLY_32 if mode == 64 else ONLY_64) == set()
    assert (present >= ONLY_32) == (mode == 32)


def test_operand_sizes_are_different_forms():
    adds = {form.text for form in enumerate_forms(64) if form.opcode == b"\x01"}
    assert {"add dword ptr [rbx], eax", "add qword ptr [rbx], rax", "add ax, ax"} <= adds


@pytest.mark.parametrize("mode", [64, 32])
def test_the_host_knows_nearly_every_form(native, mode):
    """A form that only ever gives #UD would test nothing."""
    from tests.oracle.cases import Generator

    forms = enumerate_forms(mode)
    generator = Generator(1)
    cases = [generator.case(form) for form in forms for _ in range(3)]
    outcomes = native.run(cases)
    refused = {
        form.text
        for i, form in enumerate(forms)
        if all(o.vector == UD for o in outcomes[3 * i : 3 * i + 3])
    }
    assert refused == {"ud2"}
    assert sum(o.vector == BP for o in outcomes) > 0.85 * len(outcomes)


@pytest.mark.parametrize("mode", [64, 32])
def test_undefined_encodings_are_refused_by_the_host(native, mode):
    """Most of them: the rest are extensions newer than Capstone."""
    from tests.oracle.cases import Generator

    forms = undefined_forms(mode)[::20]
    generator = Generator(2)
    outcomes = native.run([generator.case(form) for form in forms])
    assert sum(o.vector == UD for o in outcomes) > 0.95 * len(forms)
