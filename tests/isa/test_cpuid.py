"""CPU models: what the leaves say, read back by the rules of the manuals."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import HostError, InvalidValueError
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86 import cpuid
from ringzero.isa.x86.cpuid import (
    ALWAYS_EMULATED,
    AMD,
    FEATURES,
    IMMUNITIES,
    INTEL,
    MODELS,
    CpuidLeaf,
)
from tests.isa.guest import DATA, Guest

MODEL = "x86-64-v2"
TSC = 2_596_126_000

# What x86-64-v2 means (System V psABI, x86-64 supplement, table 3.1: baseline and v2).
V2 = {
    *("cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"),
    *("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"),
}
# What x86-64-v3 adds (the same table); LZCNT is abm to Linux.
V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
# Bits as Linux numbers them in cpufeatures.h, for a few that are easily confused.
LINUX_BITS = {"pni": (1, "ecx", 0), "x2apic": (1, "ecx", 21), "nx": (0x80000001, "edx", 20)}


def build(**options):
    return cpuid.build(MODEL, **{"vcpus": 1, "tsc_hz": TSC, **options})


def leaf(leaves, function, index=0):
    found = cpuid.find(leaves, function, index)
    assert found is not None
    return found


def test_the_model_keeps_the_promise_of_its_name():
    assert MODELS[MODEL].features >= V2
    assert cpuid.features_of(build()) >= V2
    for name, (function, register, bit) in LINUX_BITS.items():
        assert getattr(leaf(build(), function), register) >> bit & 1, name


def test_the_engine_that_is_the_processor_claims_what_it_is_immune_to():
    """Only there, and only for the model that makes no promise for every host."""
    assert cpuid.features_of(build()) >= IMMUNITIES
    assert not cpuid.features_of(build(supported=build())) & IMMUNITIES
    for name in ("intel", "amd"):
        assert (
            not cpuid.features_of(cpuid.build(f"{MODEL}-{name}", vcpus=1, tsc_hz=TSC)) & IMMUNITIES
        )


def test_the_next_level_keeps_the_promise_of_its_name():
    leaves = cpuid.build("x86-64-v3", vcpus=1, tsc_hz=TSC)
    assert cpuid.features_of(leaves) >= V2 | V3
    # Its XSAVE area has room for the upper halves.
    assert leaf(leaves, 0xD).eax == 7
    assert leaf(leaves, 0xD).ecx == 832
    upper = leaf(leaves, 0xD, 2)
    assert (upper.eax, upper.ebx) == (256, 576)
    assert leaf(build(), 0xD).eax == 3


def test_a_host_without_an_instruction_is_told_at_once():
    rich = frozenset(cpuid.host_needs(MODELS["max"]))
    for name in ("x86-64-v3", "max"):
        assert not cpuid.host_lacks(MODELS[name], rich)
    with pytest.raises(HostError, match="x86-64-v3 takes a host with f16c, fma") as caught:
        cpuid.build("x86-64-v3", vcpus=1, tsc_hz=TSC, host=rich - {"fma", "f16c"})
    assert "--cpu max" in caught.value.hint
    # The default asks for nothing.
    assert cpuid.features_of(cpuid.build(MODEL, vcpus=1, tsc_hz=TSC, host=frozenset())) >= V2


@pytest.mark.parametrize(
    ("lacking", "gone"),
    [
        ({"fma"}, {"fma"}),
        ({"aes"}, {"aes", "vaes"}),
        ({"avx2"}, {"avx2", "vaes", "vpclmulqdq"}),
        ({"avx"}, {"avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq"}),
    ],
)
def test_the_greatest_model_is_what_the_host_can_carry(lacking, gone):
    host = frozenset(cpuid.host_needs(MODELS["max"])) - lacking
    leaves = cpuid.build("max", vcpus=1, tsc_hz=TSC, host=host)
    assert MODELS["max"].features - cpuid.features_of(leaves) == gone
    assert (leaf(leaves, 0xD).eax == 7) == ("avx" not in lacking)


def test_under_kvm_the_kernel_bounds_the_further_models():
    supported = cpuid.build("x86-64-v3", vcpus=1, tsc_hz=TSC)
    assert cpuid.features_of(cpuid.build("max", vcpus=1, tsc_hz=TSC, supported=supported)) >= V3
    poor = [replace(item, ebx=0) if item.function == 7 else item for item in supported]
    with pytest.raises(HostError, match="avx2"):
        cpuid.build("x86-64-v3", vcpus=1, tsc_hz=TSC, supported=poor)


def test_no_two_features_share_a_bit():
    assert len(set(FEATURES.values())) == len(FEATURES)


@given(vendor=st.sampled_from([INTEL, AMD]), vcpus=st.integers(1, 300))
def test_leaves_for_any_vendor_and_number(vendor, vcpus):
    leaves = build(vendor=vendor, vcpus=vcpus)
    assert cpuid.vendor_of(leaves) == vendor
    for item in leaves:
        assert all(0 <= r < 1 << 32 for r in (item.eax, item.ebx, item.ecx, item.edx))
    assert leaf(leaves, 0).eax >= max(i.function for i in leaves if i.function < 0x40000000)
    assert leaf(leaves, 0x80000000).eax == max(i.function for i in leaves)
    # SDM vol. 2A, leaf 0xB: the core level says how many id bits the package takes.
    core = leaf(leaves, 0xB, 1)
    assert core.ebx == vcpus
    assert 1 << core.eax >= vcpus > (1 << core.eax) // 2
    ids = {leaf(cpuid.for_vcpu(leaves, n), 0xB).edx for n in range(vcpus)}
    assert ids == set(range(vcpus))


@pytest.mark.parametrize(("name", "vendor"), [("intel", INTEL), ("amd", AMD)])
def test_a_model_with_a_vendor_is_the_same_wherever_its_features_are(name, vendor):
    model = f"{MODEL}-{name}"
    alone = cpuid.build(model, vcpus=2, tsc_hz=TSC)
    assert cpuid.vendor_of(alone) == vendor
    for host in (INTEL, AMD):
        bounds = build(vendor=host, physical_bits=46)
        assert cpuid.build(model, vcpus=2, tsc_hz=TSC, supported=bounds) == alone


def test_ends_of_interrupts_by_a_flag_are_the_software_engines():
    """Under KVM, and in what is alike on every engine, the guest finds none."""

    def offers(leaves):
        return bool(leaf(leaves, 0x40000001).eax & cpuid.PV_EOI)

    assert offers(build())
    assert not offers(build(supported=build()))
    assert not offers(cpuid.build(f"{MODEL}-intel", vcpus=1, tsc_hz=TSC))


def test_the_initial_apic_id_has_eight_bits():
    for index, expected in ((0, 0), (3, 3), (255, 255), (256, 0)):
        assert leaf(cpuid.for_vcpu(build(vcpus=300), index), 1).ebx >> 24 == expected


@given(khz=st.integers(500_000, 6_000_000))
def test_the_clock_leaves_agree(khz):
    leaves = build(tsc_hz=khz * 1000)
    ratio = leaf(leaves, 0x15)
    # Linux computes in 32 bits (native_calibrate_tsc).
    assert ratio.ecx // 1000 * ratio.ebx < 1 << 32
    if ratio.eax:
        found = ratio.ecx * ratio.ebx / ratio.eax
        assert abs(found - khz * 1000) <= 1_000_000
    else:
        assert khz > 4_294_000
        assert ratio.ebx == ratio.ecx == 0
    assert leaf(leaves, 0x40000010).eax == khz
    assert leaf(leaves, 0x16).eax == khz // 1000


def test_the_brand_string_reads_back():
    words = [leaf(build(), 0x80000002 + n) for n in range(3)]
    text = b"".join(r.to_bytes(4, "little") for w in words for r in (w.eax, w.ebx, w.ecx, w.edx))
    assert text.rstrip(b"\0").decode() == MODELS[MODEL].brand


def test_the_hypervisor_names_itself():
    found = leaf(build(), 0x40000000)
    letters = b"".join(r.to_bytes(4, "little") for r in (found.ebx, found.ecx, found.edx))
    assert letters == b"KVMKVMKVM\0\0\0"
    assert leaf(build(), 0x40000001).eax >> 24 & 1


@given(lacking=st.sets(st.sampled_from(sorted(MODELS[MODEL].features))))
def test_bounds_take_features_away(lacking):
    bounds = []
    for item in build():
        registers = {r: getattr(item, r) for r in ("eax", "ebx", "ecx", "edx")}
        for name in lacking:
            function, index, register, bit = FEATURES[name]
            if (function, index) == (item.function, item.index):
                registers[register] &= ~(1 << bit)
        bounds.append(CpuidLeaf(item.function, item.index, **registers))
    found = cpuid.features_of(build(supported=bounds))
    assert found == MODELS[MODEL].features - (lacking - ALWAYS_EMULATED)
    assert set(cpuid.missing_features(MODEL, bounds)) == lacking - ALWAYS_EMULATED


def test_without_xsave_there_is_no_leaf_for_it():
    bounds = [
        CpuidLeaf(i.function, i.index, i.eax, i.ebx, i.ecx & ~(1 << 26), i.edx)
        if i.function == 1
        else i
        for i in build()
    ]
    assert cpuid.find(build(supported=bounds), 0xD) is None


def test_the_hosts_own_model_needs_a_host():
    with pytest.raises(InvalidValueError, match="host"):
        cpuid.build("host", vcpus=1, tsc_hz=TSC)
    leaves = cpuid.build("host", vcpus=2, tsc_hz=TSC, supported=build(vendor=AMD))
    assert cpuid.vendor_of(leaves) == AMD
    assert leaf(leaves, 0xB, 1).ebx == 2


@pytest.mark.engine
def test_a_guest_sees_the_model_as_it_is_built():
    """Every leaf and subleaf by CPUID; OSXSAVE alone follows CR4 (SDM vol. 2A, CPUID)."""
    leaves = cpuid.for_vcpu(build(), 0)
    guest = Guest(cpuid=list(leaves))
    try:
        for leaf in leaves:
            end = guest.run("cpuid; hlt", rax=leaf.function, rcx=leaf.index or 0)
            seen = tuple(end.reg(n) for n in (x86.RAX, x86.RBX, x86.RCX, x86.RDX))
            ecx = leaf.ecx & ~(1 << 27) if leaf.function == 1 else leaf.ecx
            assert seen == (leaf.eax, leaf.ebx, ecx, leaf.edx), hex(leaf.function)
    finally:
        guest.close()
        Guest.alive.remove(guest)


# What a program does that looks the feature up first: code, and whether it is as promised.
USES = {
    "cx16": "cmpxchg16b [rbx]", "popcnt": "popcnt eax, ebx", "sse4_2": "crc32 eax, bl",
    "sse4_1": "pmulld xmm0, xmm1", "ssse3": "pshufb xmm0, xmm1", "pni": "haddps xmm0, xmm1",
    "rdrand": "rdrand eax", "rdtscp": "rdtscp", "cmov": "cmovz eax, ebx", "cx8": "cmpxchg8b [rbx]",
    "fxsr": "fxsave [rbx]", "mmx": "paddb mm0, mm1", "sse2": "paddb xmm0, xmm1", "tsc": "rdtsc",
    "fsgsbase": "rdfsbase rax", "xsave": "xgetbv", "lahf_lm": "lahf", "clflush": "clflush [rbx]",
    "invpcid": "invpcid rax, [rbx]", "msr": "rdmsr", "smap": "stac",
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("feature", sorted(USES))
def test_what_is_promised_is_there(feature):
    assert feature in MODELS[MODEL].features
    guest = Guest(cpuid=list(cpuid.for_vcpu(build(), 0)))
    try:
        cr4 = guest.state.cr4 | x86.CR4_FSGSBASE | x86.CR4_OSXSAVE | x86.CR4_SMAP
        guest.state = replace(guest.state, cr4=cr4)
        where = {"rax": 0, "rbx": DATA, "rcx": 0x10 if feature == "msr" else 0}
        assert guest.run(f"{USES[feature]}; hlt", **where).vector is None
    finally:
        guest.close()
        Guest.alive.remove(guest)


def test_an_unknown_model():
    with pytest.raises(InvalidValueError, match="no CPU model"):
        cpuid.build("i386", vcpus=1, tsc_hz=TSC)
