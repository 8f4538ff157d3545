"""Model-specific registers: their numbers, and the members of `Cpu` that hold them (SDM vol. 4)."""

from __future__ import annotations

from ringzero.isa.x86.cpu import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE

IA32_TSC = 0x10
IA32_TSC_ADJUST = 0x3B
IA32_SPEC_CTRL = 0x48
IA32_PRED_CMD = 0x49
IA32_BIOS_UPDT_TRIG = 0x79
IA32_BIOS_SIGN_ID = 0x8B
MSR_PLATFORM_INFO = 0xCE
IA32_MTRRCAP = 0xFE
IA32_ARCH_CAPABILITIES = 0x10A
IA32_SYSENTER_CS = 0x174
IA32_SYSENTER_ESP = 0x175
IA32_SYSENTER_EIP = 0x176
IA32_MCG_CAP = 0x179
IA32_MCG_STATUS = 0x17A
IA32_MISC_ENABLE = 0x1A0
IA32_PAT = 0x277
IA32_MTRR_DEF_TYPE = 0x2FF
IA32_EFER = 0xC0000080
IA32_STAR = 0xC0000081
IA32_LSTAR = 0xC0000082
IA32_CSTAR = 0xC0000083
IA32_FMASK = 0xC0000084
IA32_FS_BASE = 0xC0000100
IA32_GS_BASE = 0xC0000101
IA32_KERNEL_GS_BASE = 0xC0000102
IA32_TSC_AUX = 0xC0000103

# IA32_SPEC_CTRL: IBRS, STIBP, SSBD, BHI_DIS_S; IA32_PRED_CMD: IBPB. Guest code runs by look-ups
# that know the privilege level, so there is nothing for them to do.
SPEC_CTRL_BITS = 1 << 10 | 0b111
PRED_CMD_BITS = 1
# IA32_ARCH_CAPABILITIES (SDM vol. 4, table 2-2). An engine that walks page tables in software has
# none of the faults that guests work around: no load goes on past a missing right (RDCL_NO,
# SKIP_L1DFL_VMENTRY), nothing is forwarded from buffers of a processor's (MDS_NO, TAA_NO, the
# three of MMIO, GDS_NO, RFDS_NO), no store is passed (SSB_NO), page sizes may change
# (PSCHANGE_MC_NO), and one write of IBRS serves for good (IBRS_ALL) with indirect branches
# predicted by no history (BHI_NO, PBRSB_NO, ITS_NO).
ARCH_CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))

EFER_BITS = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

# MTRRCAP: write-combining, no variable and no fixed ranges.
MTRR_CAPABILITIES = 0x400
# MTRR_DEF_TYPE: enable (11) and the type (7:0); fixed ranges (10) do not exist.
MTRR_DEF_TYPE_BITS = 0xCFF
# The microcode revision is in the upper half; any that is not 0 will do.
MICROCODE_REVISION = 1 << 32

# Registers whose whole state is one member of Cpu, with no rule for what is written.
PLAIN = {
    IA32_SYSENTER_CS: "sysenter_cs",
    IA32_MISC_ENABLE: "misc_enable",
    IA32_STAR: "star",
}
# Members that take canonical addresses only.
CANONICAL = {
    IA32_SYSENTER_ESP: "sysenter_esp",
    IA32_SYSENTER_EIP: "sysenter_eip",
    IA32_LSTAR: "lstar",
    IA32_CSTAR: "cstar",
    IA32_KERNEL_GS_BASE: "kernel_gs_base",
}
# Members of which only 32 bits exist.
NARROW = {IA32_FMASK: "sfmask", IA32_TSC_AUX: "tsc_aux"}

MEMBERS = {**PLAIN, **CANONICAL, **NARROW, IA32_PAT: "pat", IA32_EFER: "efer"}
MEMBERS[IA32_MTRR_DEF_TYPE] = "mtrr_def_type"
MEMBERS[IA32_TSC_ADJUST] = "tsc_adjust"

FIXED = {
    IA32_MTRRCAP: MTRR_CAPABILITIES,
    IA32_BIOS_SIGN_ID: MICROCODE_REVISION,
    MSR_PLATFORM_INFO: 0,
    IA32_MCG_CAP: 0,
    IA32_MCG_STATUS: 0,
}
# Writes without effect: a microcode update, its revision, machine-check status.
IGNORED = (IA32_BIOS_UPDT_TRIG, IA32_BIOS_SIGN_ID, IA32_MCG_STATUS)
