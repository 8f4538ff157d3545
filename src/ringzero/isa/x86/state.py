"""The architectural state of one x86-64 vCPU, the same plain data for every engine."""

from __future__ import annotations

from ringzero.records import field, record, replace

# Order of `CpuState.gpr`: the register numbers of ModRM and REX.
GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip

# `Segment.attributes`: bits 55:52 and 47:40 of a descriptor, packed as in the VMCB
# (AMD64 APM vol. 2, appendix B).
ATTR_TYPE = 0xF
ATTR_CODE_DATA = 1 << 4
ATTR_DPL_SHIFT = 5
ATTR_PRESENT = 1 << 7
ATTR_AVL = 1 << 8
ATTR_LONG = 1 << 9
ATTR_DB = 1 << 10
ATTR_GRANULARITY = 1 << 11

RFLAGS_RESET = 0x2
CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_PG = 1, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
# ET, NW and CD (SDM vol. 3A, table 10-1).
CR0_RESET = 0x60000010
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE = 1 << 5, 1 << 9, 1 << 10, 1 << 18
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11

MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_TSC_ADJUST = 0x3B
MSR_SYSENTER_CS = 0x174
MSR_SYSENTER_ESP = 0x175
MSR_SYSENTER_EIP = 0x176
MSR_MISC_ENABLE = 0x1A0
MSR_PAT = 0x277
MSR_TSC_DEADLINE = 0x6E0
MSR_STAR = 0xC0000081
MSR_LSTAR = 0xC0000082
MSR_CSTAR = 0xC0000083
MSR_FMASK = 0xC0000084
MSR_KERNEL_GS_BASE = 0xC0000102
MSR_TSC_AUX = 0xC0000103

PAT_RESET = 0x0007040600070406
# IA32_MISC_ENABLE (SDM vol. 4, table 2-2), bit 0: fast strings. Where it is clear, Linux believes
# that REP MOVSB and STOSB are slow, whatever CPUID says, and copies without them.
MISC_ENABLE_RESET = 1

MP_RUNNABLE = "runnable"
MP_UNINITIALIZED = "uninitialized"  # an AP that waits for INIT
MP_INIT_RECEIVED = "init-received"  # waits for SIPI
MP_SIPI_RECEIVED = "sipi-received"
MP_HALTED = "halted"

EVENT_INTERRUPT = "interrupt"
EVENT_NMI = "nmi"
EVENT_EXCEPTION = "exception"
EVENT_SOFTWARE = "software"  # INT n, INT3, INTO in flight

# Bits of `CpuState.interrupt_shadow`.
SHADOW_MOV_SS = 1
SHADOW_STI = 2


@record
class Segment:
    """A segment register with its hidden part; `limit` is in bytes, scaled by G already."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    attributes: int = 0

    @property
    def present(self) -> bool:
        return bool(self.attributes & ATTR_PRESENT)


@record
class Table:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0xFFFF


@record
class PendingEvent:
    """An event whose delivery has begun and must be finished before the next instruction.

    `kind` is one of the `EVENT_` names; `error_code` is None where the vector pushes none.
    """

    kind: str
    vector: int
    error_code: int | None = None


# The x87 and SSE part of an XSAVE area in the standard format after FNINIT:
# FCW 0x37F, MXCSR 0x1F80 at byte 24 (SDM vol. 1, 13.4 and 13.6), a zero header.
XSAVE_LEGACY_SIZE = 512
XSAVE_BASE_SIZE = 576
# The upper halves of the YMM registers follow (13.4.3), where there are any.
AVX_AREA, XSAVE_AVX_SIZE = XSAVE_BASE_SIZE, XSAVE_BASE_SIZE + 16 * 16
XSAVE_RESET = (
    (0x37F).to_bytes(2, "little")
    + bytes(22)
    + (0x1F80).to_bytes(4, "little")
    + bytes(XSAVE_BASE_SIZE - 28)
)

_DATA16 = 0x93  # present, data, read/write, accessed
_CODE16 = 0x9B  # present, code, execute/read, accessed


@record
class CpuState:
    """Everything that one vCPU is; the defaults are the state after RESET (SDM vol. 3A, 10.1.1).

    `xsave` is an XSAVE area in the standard (not compacted) format, header
    included; its XSTATE_BV says which parts are not in their initial state.
    `msrs` holds those that have no field of their own. `lapic` is the 1 KiB
    register page of a local APIC which the engine keeps (registers at their
    MMIO offsets), or None where the board keeps it. `tsc` is the value at the
    moment of saving. `nmi_pending`: an NMI waits; `nmi_masked`: an NMI handler
    has not yet returned.
    """

    gpr: tuple[int, ...] = (0, 0, 0x600) + (0,) * 13  # EDX: family 6 signature
    rip: int = 0xFFF0
    rflags: int = RFLAGS_RESET
    cs: Segment = Segment(0xF000, 0xFFFF0000, 0xFFFF, _CODE16)
    ds: Segment = Segment(0, 0, 0xFFFF, _DATA16)
    es: Segment = Segment(0, 0, 0xFFFF, _DATA16)
    fs: Segment = Segment(0, 0, 0xFFFF, _DATA16)
    gs: Segment = Segment(0, 0, 0xFFFF, _DATA16)
    ss: Segment = Segment(0, 0, 0xFFFF, _DATA16)
    ldtr: Segment = Segment(0, 0, 0xFFFF, 0x82)
    tr: Segment = Segment(0, 0, 0xFFFF, 0x8B)
    gdtr: Table = Table()
    idtr: Table = Table()
    cr0: int = CR0_RESET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    dr0: int = 0
    dr1: int = 0
    dr2: int = 0
    dr3: int = 0
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    xcr0: int = 1
    xsave: bytes = XSAVE_RESET
    msrs: dict[int, int] = field(
        default_factory=lambda: {MSR_PAT: PAT_RESET, MSR_MISC_ENABLE: MISC_ENABLE_RESET}
    )
    tsc: int = 0
    interrupt_shadow: int = 0
    nmi_pending: bool = False
    nmi_masked: bool = False
    pending_event: PendingEvent | None = None
    mp_state: str = MP_RUNNABLE
    lapic: bytes | None = None

    def with_gpr(self, **values: int) -> CpuState:
        """Return a copy with some general registers changed, by name (`rax=1`)."""
        gpr = list(self.gpr)
        for name, value in values.items():
            gpr[GPR_NAMES.index(name)] = value
        return replace(self, gpr=tuple(gpr))


def flat_segment(selector: int, *, code: bool, bits: int = 64, dpl: int = 0) -> Segment:
    """Return a flat 4 GiB segment as boot protocols load it; `bits` is 64, 32 or 16.

    A code segment of 64 bits has L set and D clear; a 16-bit one covers 64 KiB.
    """
    attributes = (_CODE16 if code else _DATA16) | dpl << ATTR_DPL_SHIFT
    if bits == 16:
        return Segment(selector, 0, 0xFFFF, attributes)
    attributes |= ATTR_GRANULARITY
    attributes |= ATTR_LONG if code and bits == 64 else ATTR_DB
    return Segment(selector, 0, 0xFFFFFFFF, attributes)
