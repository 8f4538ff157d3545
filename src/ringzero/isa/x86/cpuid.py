"""What CPUID tells a guest: CPU models as sets of named features, and their leaves.

Layouts: Intel SDM vol. 2A, CPUID; AMD64 APM vol. 3, appendix E; the hypervisor
leaves from Linux Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

from ringzero.errors import HostError, InvalidValueError
from ringzero.records import record, replace

INTEL, AMD = "GenuineIntel", "AuthenticAMD"
KVM_SIGNATURE = "KVMKVMKVM"


@record
class CpuidLeaf:
    """One answer of CPUID; `index` is the subleaf (ECX) or None where ECX is ignored."""

    function: int
    index: int | None
    eax: int
    ebx: int
    ecx: int
    edx: int


# Feature name (as in /proc/cpuinfo) -> leaf, subleaf, register, bit.
FEATURES: dict[str, tuple[int, int | None, str, int]] = {
    "fpu": (1, None, "edx", 0),
    "de": (1, None, "edx", 2),
    "pse": (1, None, "edx", 3),
    "tsc": (1, None, "edx", 4),
    "msr": (1, None, "edx", 5),
    "pae": (1, None, "edx", 6),
    "cx8": (1, None, "edx", 8),
    "apic": (1, None, "edx", 9),
    "sep": (1, None, "edx", 11),
    "pge": (1, None, "edx", 13),
    "cmov": (1, None, "edx", 15),
    "pat": (1, None, "edx", 16),
    "pse36": (1, None, "edx", 17),
    "clflush": (1, None, "edx", 19),
    "mmx": (1, None, "edx", 23),
    "fxsr": (1, None, "edx", 24),
    "sse": (1, None, "edx", 25),
    "sse2": (1, None, "edx", 26),
    "pni": (1, None, "ecx", 0),
    "pclmulqdq": (1, None, "ecx", 1),
    "monitor": (1, None, "ecx", 3),
    "ssse3": (1, None, "ecx", 9),
    "fma": (1, None, "ecx", 12),
    "cx16": (1, None, "ecx", 13),
    "pcid": (1, None, "ecx", 17),
    "sse4_1": (1, None, "ecx", 19),
    "sse4_2": (1, None, "ecx", 20),
    "x2apic": (1, None, "ecx", 21),
    "movbe": (1, None, "ecx", 22),
    "popcnt": (1, None, "ecx", 23),
    "tsc_deadline_timer": (1, None, "ecx", 24),
    "aes": (1, None, "ecx", 25),
    "xsave": (1, None, "ecx", 26),
    "avx": (1, None, "ecx", 28),
    "f16c": (1, None, "ecx", 29),
    "rdrand": (1, None, "ecx", 30),
    "hypervisor": (1, None, "ecx", 31),
    # The APIC timer never stops: without it Linux keeps ticking when idle.
    "arat": (6, None, "eax", 2),
    "fsgsbase": (7, 0, "ebx", 0),
    "bmi1": (7, 0, "ebx", 3),
    "avx2": (7, 0, "ebx", 5),
    "smep": (7, 0, "ebx", 7),
    "bmi2": (7, 0, "ebx", 8),
    "erms": (7, 0, "ebx", 9),
    "invpcid": (7, 0, "ebx", 10),
    "rdseed": (7, 0, "ebx", 18),
    "adx": (7, 0, "ebx", 19),
    "smap": (7, 0, "ebx", 20),
    "clflushopt": (7, 0, "ebx", 23),
    "clwb": (7, 0, "ebx", 24),
    "sha_ni": (7, 0, "ebx", 29),
    "vaes": (7, 0, "ecx", 9),
    "vpclmulqdq": (7, 0, "ecx", 10),
    "rdpid": (7, 0, "ecx", 22),
    "spec_ctrl": (7, 0, "edx", 26),
    "arch_capabilities": (7, 0, "edx", 29),
    "bhi_ctrl": (7, 2, "edx", 4),
    "lahf_lm": (0x80000001, None, "ecx", 0),
    # LZCNT.
    "abm": (0x80000001, None, "ecx", 5),
    "syscall": (0x80000001, None, "edx", 11),
    "nx": (0x80000001, None, "edx", 20),
    "pdpe1gb": (0x80000001, None, "edx", 26),
    "rdtscp": (0x80000001, None, "edx", 27),
    "lm": (0x80000001, None, "edx", 29),
    "invariant_tsc": (0x80000007, None, "edx", 8),
}

# KVM gives these whatever the host's CPU has, and older kernels do not list them.
ALWAYS_EMULATED = frozenset({"hypervisor", "x2apic", "tsc_deadline_timer", "arat"})
# By these a processor says which faults of speculation it has not. They are of the engine that is
# the processor itself; under KVM the host's faults are the guest's.
IMMUNITIES = frozenset({"spec_ctrl", "arch_capabilities", "bhi_ctrl"})
# What x86-64-v3 adds (System V psABI, x86-64 supplement, table 3.1), and what all of it there is
# adds to that; with the features of the host without which the software engine cannot have them.
V3_FEATURES: dict[str, tuple[str, ...]] = {
    "avx": ("avx",),
    "avx2": ("avx", "avx2"),
    "bmi1": (),
    "bmi2": ("bmi2",),
    "f16c": ("f16c",),
    "fma": ("fma",),
    "abm": (),
    "movbe": (),
}
FURTHER_FEATURES: dict[str, tuple[str, ...]] = {
    "aes": ("aes",),
    "clflushopt": (),
    "clwb": (),
    "pclmulqdq": ("pclmulqdq",),
    "rdpid": (),
    "rdseed": (),
    "sha_ni": ("sha_ni",),
    "vaes": ("aes", "avx2"),
    "vpclmulqdq": ("pclmulqdq", "avx2"),
}
EXTENSIONS = V3_FEATURES | FURTHER_FEATURES
# There, but not offered: two carry chains side by side, in flags that are kept in memory, are
# slower than one by ADC, which programs take without it; MWAIT ends with interrupts only, where
# HLT does as well.
NOT_OFFERED = frozenset({"adx", "monitor"})
# Features of the second that are nothing without one of the first.
_NEED_AVX = ("vaes", "vpclmulqdq")
# Bits of leaf 1 EDX that an AMD CPU repeats in leaf 0x80000001 EDX (APM vol. 3, E.4.2).
AMD_REPEATED = 0x0183F3FF

# x87 and SSE: the parts of an XSAVE area that all models have, and its size in bytes.
XSTATE_MASK, XSTATE_SIZE = 3, 576
# AVX: its bit, and the size of its part, which follows them (SDM vol. 1, 13.5.3).
XSTATE_AVX, XSTATE_AVX_SIZE = 4, 256
# Features of the paravirtual interface (leaf 0x40000001 EAX): no delay needed after port I/O,
# the clock by old and by new MSRs (devices.chips.kvmclock), and that it is stable across vCPUs.
PV_FEATURES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24
# And the end of interrupts by a flag in memory, which the software engine's local APIC has.
PV_EOI = 1 << 6
# The local APIC timers of KVM and of devices.lapic count at 1 GHz.
APIC_HZ = 1_000_000_000
VIRTUAL_BITS = 48


@record
class CpuModel:
    """A named set of features; `signatures` gives leaf 1 EAX for each vendor.

    `vendor` None means the host's where that shows through (KVM), else Intel.
    """

    name: str
    features: frozenset[str]
    signatures: dict[str, int]
    brand: str
    vendor: str | None = None


HOST, MAX = "host", "max"

_V2 = CpuModel(
    "x86-64-v2",
    # The table above lists what the software engine implements.
    frozenset(FEATURES) - NOT_OFFERED - IMMUNITIES - frozenset(EXTENSIONS),
    # Intel: family 6, model 26 (Nehalem, the first v2 part). AMD: family 15, model 107,
    # for which Linux tries no model-specific registers.
    {INTEL: 0x000106A3, AMD: 0x00060FB1},
    "ringzero x86-64-v2",
)
_V3 = CpuModel(
    "x86-64-v3",
    _V2.features | frozenset(V3_FEATURES),
    # Intel: family 6, model 60 (Haswell, the first v3 part).
    _V2.signatures | {INTEL: 0x000306C3},
    "ringzero x86-64-v3",
)
MODELS: dict[str, CpuModel] = {
    model.name: model
    for model in (
        _V2,
        # The same on every engine and host that has the features.
        replace(_V2, name="x86-64-v2-intel", vendor=INTEL),
        replace(_V2, name="x86-64-v2-amd", vendor=AMD),
        _V3,
        # All that the engine and the host have; what that is differs from host to host.
        replace(
            _V3,
            name=MAX,
            features=_V3.features | frozenset(FURTHER_FEATURES),
            brand="ringzero max",
        ),
    )
}
# What `--cpu help` says of each.
SUMMARIES = {
    "x86-64-v2": "the default; any x86-64 host can carry it",
    "x86-64-v2-intel": "the same, and alike on every engine and host",
    "x86-64-v2-amd": "the same with AMD's name",
    "x86-64-v3": "AVX2, BMI, FMA",
    MAX: "all that engine and host have: machines of it stay on hosts of one kind",
    HOST: "what KVM offers of the host's own processor",
}


def build(
    model: str,
    *,
    vcpus: int,
    tsc_hz: int,
    supported: Iterable[CpuidLeaf] | None = None,
    vendor: str | None = None,
    physical_bits: int = 40,
    host: frozenset[str] | None = None,
) -> tuple[CpuidLeaf, ...]:
    """Return the leaves of `model` for a machine with `vcpus` CPUs.

    `supported` bounds the features (what KVM can give); the model "host" takes
    all of it and so needs it. The vendor is by default the model's, that of
    `supported`, or Intel. `host` are the features of the host's processor, of which an engine
    that is the processor itself makes use (None: all that there are). What differs from CPU to
    CPU is added by `for_vcpu`. Raises InvalidValueError for an unknown model, HostError for one
    that engine or host cannot have.
    """
    bounds = {(leaf.function, leaf.index): leaf for leaf in supported or ()}
    if model == HOST and bounds:
        leaves = dict(bounds)
    elif model in MODELS:
        known = _within(MODELS[model], bounds, host)
        leaves = _model_leaves(known, bounds, vendor, physical_bits)
    else:
        names = ", ".join([*MODELS, HOST])
        raise InvalidValueError(
            f"no CPU model {model!r} for this engine", hint=f"known: {names} (host: only with KVM)"
        )
    # A model with a vendor is alike on every engine.
    own = supported is None and MODELS[model].vendor is None
    features = PV_FEATURES | (PV_EOI if own else 0)
    for leaf in (*_topology(leaves, vcpus), *_hypervisor(tsc_hz, features)):
        leaves[leaf.function, leaf.index] = leaf
    return tuple(leaves[key] for key in sorted(leaves, key=lambda key: (key[0], key[1] or 0)))


def host_needs(model: CpuModel) -> list[str]:
    """Return the host's features, sorted, that the software engine needs for `model`."""
    return sorted({name for feature in model.features for name in EXTENSIONS.get(feature, ())})


def host_lacks(model: CpuModel, host: frozenset[str]) -> list[str]:
    """Return those of them that `host` has not."""
    return [name for name in host_needs(model) if name not in host]


def _within(
    model: CpuModel, bounds: dict[tuple[int, int | None], CpuidLeaf], host: frozenset[str] | None
) -> CpuModel:
    """Return `model` without what engine or host lack; raises HostError where it promises that."""
    if bounds:
        missing = sorted((model.features & frozenset(EXTENSIONS)) - _present(bounds))
        absent = frozenset(missing)
    else:
        missing = [] if host is None else host_lacks(model, host)
        absent = frozenset(
            name for name, needed in EXTENSIONS.items() if not frozenset(missing).isdisjoint(needed)
        )
    if "avx" in absent:
        absent |= frozenset(_NEED_AVX) | {"avx2", "fma", "f16c"}
    if model.name != MAX and missing:
        raise HostError(
            f"the CPU model {model.name} takes a host with {', '.join(missing)}",
            hint="`--cpu max` takes what this host has, x86-64-v2 is for every host",
        )
    return replace(model, features=model.features - absent)


def needs_extensions(features: Iterable[str]) -> bool:
    """Return whether `features` go beyond what every engine of x86-64-v2 implements."""
    return not frozenset(EXTENSIONS).isdisjoint(features)


def missing_features(model: str, supported: Iterable[CpuidLeaf]) -> list[str]:
    """Return the features of `model` that `supported` lacks, sorted."""
    bounds = {(leaf.function, leaf.index): leaf for leaf in supported}
    return sorted(MODELS[model].features - _present(bounds))


def own_features(model: CpuModel) -> frozenset[str]:
    """Return the features of a model on an engine that is the processor itself.

    Models with a vendor are the same everywhere, so those claim no immunity.
    """
    return model.features | IMMUNITIES if model.vendor is None else model.features


def for_vcpu(leaves: Iterable[CpuidLeaf], index: int) -> tuple[CpuidLeaf, ...]:
    """Return `leaves` as CPU number `index` shows them: with its APIC id."""
    own = []
    for leaf in leaves:
        if leaf.function == 1:
            own.append(replace(leaf, ebx=leaf.ebx & 0x00FFFFFF | (index & 0xFF) << 24))
        elif leaf.function in (0xB, 0x1F):
            own.append(replace(leaf, edx=index))
        else:
            own.append(leaf)
    return tuple(own)


def find(leaves: Iterable[CpuidLeaf], function: int, index: int = 0) -> CpuidLeaf | None:
    """Return the answer to EAX=`function`, ECX=`index`, if there is one."""
    for leaf in leaves:
        if leaf.function == function and leaf.index in (None, index):
            return leaf
    return None


def features_of(leaves: Iterable[CpuidLeaf]) -> frozenset[str]:
    """Return the names of the features that `leaves` show."""
    table = {(leaf.function, leaf.index): leaf for leaf in leaves}
    return frozenset(
        name
        for name, (function, index, register, bit) in FEATURES.items()
        if (leaf := table.get((function, index))) and getattr(leaf, register) >> bit & 1
    )


def vendor_of(leaves: Iterable[CpuidLeaf]) -> str | None:
    """Return the twelve letters of leaf 0, if it is there."""
    leaf = find(leaves, 0)
    return None if leaf is None else _letters(leaf.ebx, leaf.edx, leaf.ecx)


def _present(bounds: dict[tuple[int, int | None], CpuidLeaf]) -> frozenset[str]:
    return features_of(bounds.values()) | ALWAYS_EMULATED


def _letters(*registers: int) -> str:
    return b"".join(value.to_bytes(4, "little") for value in registers).decode("latin-1")


def _words(text: str, size: int) -> list[int]:
    data = text.encode("ascii").ljust(size, b"\0")[:size]
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, size, 4)]


def _model_leaves(
    model: CpuModel,
    bounds: dict[tuple[int, int | None], CpuidLeaf],
    vendor: str | None,
    physical_bits: int,
) -> dict[tuple[int, int | None], CpuidLeaf]:
    vendor = vendor or model.vendor or vendor_of(bounds.values()) or INTEL
    if vendor not in model.signatures:
        vendor = INTEL
    features = model.features & _present(bounds) if bounds else own_features(model)
    addresses = bounds.get((0x80000008, None))
    if addresses is not None:
        physical_bits = min(physical_bits, addresses.eax & 0xFF)
    bits: dict[tuple[int, int | None, str], int] = {}
    for name in features:
        function, index, register, bit = FEATURES[name]
        key = function, index, register
        bits[key] = bits.get(key, 0) | 1 << bit
    leaves: dict[tuple[int, int | None], CpuidLeaf] = {}

    def put(function: int, index: int | None, *registers: int) -> None:
        named = dict(zip(("eax", "ebx", "ecx", "edx"), registers, strict=True))
        for register in named:
            named[register] |= bits.get((function, index, register), 0)
        leaves[function, index] = CpuidLeaf(function, index, **named)

    ebx, edx, ecx = _words(vendor, 12)
    put(0, None, 0x16, ebx, ecx, edx)
    # EBX: CLFLUSH line of 8 quadwords.
    put(1, None, model.signatures[vendor], 8 << 8, 0, 0)
    # Descriptor 0xFF: "see leaf 4"; AL must be 1.
    put(2, None, 0x00FF0001, 0, 0, 0)
    # L1 data and code 32 KiB / 8 ways, L2 1 MiB / 16, L3 16 MiB / 16; lines of 64 bytes.
    # C libraries choose their copy loops by these sizes.
    caches = ((1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024), (3, 3, 16, 16384))
    for index, (kind, level, ways, sets) in enumerate(caches):
        put(4, index, kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0)
    put(4, len(caches), 0, 0, 0, 0)
    put(6, None, 0, 0, 0, 0)
    if "bhi_ctrl" in features:
        # EAX: the highest subleaf.
        put(7, 0, 2, 0, 0, 0)
        put(7, 1, 0, 0, 0, 0)
        put(7, 2, 0, 0, 0, 0)
    else:
        put(7, 0, 0, 0, 0, 0)
    if "xsave" in features:
        mask, size = XSTATE_MASK, XSTATE_SIZE
        if "avx" in features:
            mask, size = mask | XSTATE_AVX, size + XSTATE_AVX_SIZE
        # EBX is for what XCR0 enables: the engine answers it.
        put(0xD, 0, mask, size, size, 0)
        put(0xD, 1, 0, 0, 0, 0)
        if "avx" in features:
            put(0xD, 2, XSTATE_AVX_SIZE, XSTATE_SIZE, 0, 0)
    put(0x80000000, None, 0x80000008, ebx, ecx, edx)
    repeated = leaves[1, None].edx & AMD_REPEATED if vendor == AMD else 0
    put(0x80000001, None, leaves[1, None].eax if vendor == AMD else 0, 0, 0, repeated)
    brand = _words(model.brand, 48)
    for part in range(3):
        put(0x80000002 + part, None, *brand[4 * part : 4 * part + 4])
    # The same caches in AMD's form: L1 size KiB, ways, lines per tag, line; L2 16 ways is
    # code 8; L3 in units of 512 KiB.
    put(0x80000005, None, 0, 0, 0x20080140, 0x20080140)
    put(0x80000006, None, 0, 0, 1024 << 16 | 8 << 12 | 0x140, 32 << 18 | 8 << 12 | 0x140)
    put(0x80000007, None, 0, 0, 0, 0)
    put(0x80000008, None, VIRTUAL_BITS << 8 | physical_bits, 0, 0, 0)
    return leaves


def _topology(leaves: dict[tuple[int, int | None], CpuidLeaf], vcpus: int) -> list[CpuidLeaf]:
    """One package of `vcpus` cores with one thread each."""
    first = leaves[1, None]
    core_bits = (vcpus - 1).bit_length()
    # HTT: EBX 23:16, the number of ids in the package, means something.
    many = 1 << 28 if vcpus > 1 else 0
    ids = min(1 << core_bits, 255)
    changed = [
        replace(
            first,
            ebx=first.ebx & 0x0000FFFF | ids << 16,
            ecx=first.ecx | 1 << 31,
            edx=first.edx & ~(1 << 28) | many,
        ),
        CpuidLeaf(0xB, 0, 0, 1, 1 << 8, 0),
        CpuidLeaf(0xB, 1, core_bits, vcpus, 2 << 8 | 1, 0),
        CpuidLeaf(0xB, 2, 0, 0, 2, 0),
    ]
    for (function, index), leaf in leaves.items():
        if function == 4 and leaf.eax & 0x1F:
            # Bits 31:26: cores of the package; 25:14: threads that share the cache.
            sharers = (1 << core_bits) - 1 if leaf.eax >> 5 & 7 == 3 else 0
            eax = leaf.eax & 0x3FFF | sharers << 14 | min((1 << core_bits) - 1, 63) << 26
            changed.append(replace(leaf, eax=eax))
        elif (function, index) == (0x80000008, None):
            # AMD: ECX 7:0 cores less one, 15:12 width of the id.
            changed.append(replace(leaf, ecx=core_bits << 12 | min(vcpus - 1, 255)))
    if leaves[0, None].eax < 0x16:
        changed.append(replace(leaves[0, None], eax=0x16))
    return changed


def _hypervisor(tsc_hz: int, features: int) -> list[CpuidLeaf]:
    """The clocks (0x15, 0x16) and the paravirtual interface."""
    khz, mhz = tsc_hz // 1000, tsc_hz // 1_000_000
    divisor = gcd(khz, APIC_HZ // 1000)
    denominator, numerator = APIC_HZ // 1000 // divisor, khz // divisor
    # Linux multiplies the crystal's kHz by the numerator in 32 bits: then whole MHz, and
    # above 4.29 GHz nothing ("not enumerated"; the paravirtual clock tells the frequency).
    if not _fits(numerator):
        denominator, numerator = APIC_HZ // 1_000_000, mhz
    crystal = APIC_HZ
    if not _fits(numerator):
        denominator, numerator, crystal = 0, 0, 0
    ebx, ecx, edx = _words(KVM_SIGNATURE, 12)
    return [
        CpuidLeaf(0x15, None, denominator, numerator, crystal, 0),
        CpuidLeaf(0x16, None, mhz, mhz, 100, 0),
        CpuidLeaf(0x40000000, None, 0x40000010, ebx, ecx, edx),
        CpuidLeaf(0x40000001, None, features, 0, 0, 0),
        CpuidLeaf(0x40000010, None, khz, APIC_HZ // 1000, 0, 0),
    ]


def _fits(numerator: int) -> bool:
    return numerator * (APIC_HZ // 1000) < 1 << 32
