"""The x86-64 vCPU as native code sees it: one struct, reached through one pointer.

Generated code pins the pointer in a host register. Whatever the hot paths
touch comes first, so that its displacement fits a byte.
"""

from __future__ import annotations

from ringzero.isa.caches import (
    JUMP_USED_WORDS,
    JUMP_WAYS,
    JUMPS_SIZE,
    TLB_SIDES,
    TLB_SIZE,
    TLB_USED_WORDS,
)
from ringzero.isa.execution import (
    EXIT_OF_ISA,
    EXTERNAL_LIMIT,
    HOST_BREAKPOINTS,
    REQUEST_OF_ISA,
)
from ringzero.isa.x86.apic import ApicRegisters
from ringzero.native import Struct, field, u8, u16, u32, u64, v128

# GPR numbers (Intel SDM vol. 2, table 3-1).
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)

# Segment register numbers as encoded (SDM vol. 2, section 3.1.1.3), then the two system ones.
ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)

# RFLAGS bits (SDM vol. 1, section 3.4.3).
CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << n for n in (0, 2, 4, 6, 7, 8, 9, 10, 11))
IOPL_SHIFT = 12
IOPL, NT, RF, VM, AC, VIF, VIP, ID = (3 << 12, *(1 << n for n in (14, 16, 17, 18, 19, 20, 21)))
ARITHMETIC_FLAGS = CF | PF | AF | ZF | SF | OF

# CR0, CR4, EFER bits (SDM vol. 3A, section 2.5; AMD APM vol. 2, section 3.1.7).
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE = (1 << n for n in range(6))
CR0_WP, CR0_AM, CR0_NW, CR0_CD, CR0_PG = (1 << n for n in (16, 18, 29, 30, 31))
CR4_VME, CR4_PVI, CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_MCE, CR4_PGE, CR4_PCE, CR4_OSFXSR = (
    1 << n for n in range(10)
)
CR4_OSXMMEXCPT, CR4_UMIP, CR4_LA57 = (1 << n for n in (10, 11, 12))
CR4_FSGSBASE, CR4_PCIDE, CR4_OSXSAVE, CR4_SMEP, CR4_SMAP = (1 << n for n in (16, 17, 18, 20, 21))
# Components of XCR0 (SDM vol. 3A, 2.6): their state is saved by XSAVE, and may be used.
XCR0_X87, XCR0_SSE, XCR0_AVX = 1, 2, 4
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE, EFER_FFXSR = (1 << n for n in (0, 8, 10, 11, 14))
# `Cpu.shadow` after STI: interrupts wait for one instruction more.
SHADOW_STI = 1
# `Cpu.shadow` after a load of SS: interrupts and debug traps wait for one instruction more.
SHADOW_SS = 2

# Exception vectors (SDM vol. 3A, table 6-1).
DE, DB, NMI, BP, OF_TRAP, BR, UD, NM, DOUBLE_FAULT = range(9)
TS, NP, SS_FAULT, GP, PF_FAULT = range(10, 15)
MF, ALIGNMENT, MC, XM = range(16, 20)

# Segment attributes: bits 8-15 and 20-23 of the descriptor's second doubleword,
# moved down by 8 (so: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15).
ATTR_TYPE, ATTR_S, ATTR_DPL_SHIFT, ATTR_P = 0xF, 1 << 4, 5, 1 << 7
ATTR_AVL, ATTR_L, ATTR_DB, ATTR_G = (1 << n for n in (12, 13, 14, 15))

# Bits of `Cpu.limited`.
FS_LIMITED, GS_LIMITED = 1, 2

# `Cpu.mode`: how code is decoded.
MODE_16, MODE_32, MODE_64 = 0, 1, 2

# Why native code returns to Python, beside what every ISA has (`isa.execution`).
(
    EXIT_PORT_READ,
    EXIT_PORT_WRITE,
    EXIT_MSR_READ,
    EXIT_MSR_WRITE,
    EXIT_CR8_WRITE,
    EXIT_CR8_READ,
    EXIT_RANDOM,
    EXIT_NMI,
    EXIT_GATHERED,
) = range(EXIT_OF_ISA, EXIT_OF_ISA + 9)

# The bit of `Cpu.requests` that is x86's.
REQUEST_NMI = REQUEST_OF_ISA

# Address spaces (PCIDs) whose translations are kept side by side: Linux uses six of them in turn.
SPACES = 6
# Behind them one of which kernel tables alone are used: by the kernels of all spaces, for what is
# the same in all of them. A space has own ones as soon as it holds other things (see `own`).
COMMON, ALL_SPACES = SPACES, SPACES + 1
# `AddressSpace.cr3` of one that holds no translations in force.
NO_SPACE = (1 << 64) - 1

# The tables of an address space: TLBs, first all first ways (isa.caches.TLB_SIDES), then the second
# ones; and elsewhere jump caches of user and kernel in the same order.
TLB_TABLES, JUMP_TABLES = 2 * TLB_SIDES, 2 * JUMP_WAYS
TLBS_SIZE, SPACE_JUMPS_SIZE = TLB_TABLES * TLB_SIZE, JUMP_TABLES * JUMPS_SIZE
# Pages with entries in the jump caches, and regions of 2 MiB and of 1 GiB with large pages, are
# noted by as many bits, by the low bits of their numbers: the upper half of all addresses, with a
# kernel's large pages, apart from the lower one, whose pages come and go.
JUMP_PAGES, LARGE_REGIONS, HUGE_REGIONS = 1 << 12, 1 << 7, 1 << 5

# Pages of the upper half that are not global, nor run, which a kernel's TLB holds at once before it
# is emptied with its space: Linux has some of them where its direct mapping was split.
LOCAL_PAGES = 16

# Page walks between two waits that are no work: an idle Linux that wakes makes up to 150.
IDLE_WALKS = 256

# Seconds that a halted vCPU sleeps at once at most, so that their number in ticks has room.
LONGEST_SLEEP = 64

# Decoding may look at this many bytes whatever the length turns out to be.
FETCH_BYTES = 32
# Instructions across two pages that are kept decoded, by the second page's number.
CROSSINGS = 64

# Different unknown instructions that the statistics name; further ones are only counted.
UNKNOWN_KINDS = 16


class UnknownCode(Struct):
    """An encoding that no instruction has, as far as it was decoded, and how often it came."""

    code = field(u64)  # its first 8 bytes
    length = field(u32)  # of prefixes and opcode; 0: the record is free
    count = field(u32)


class Segment(Struct):
    """A segment register with its descriptor cache."""

    base = field(u64)
    limit = field(u32)
    attributes = field(u32)
    selector = field(u32)


class AddressSpace(Struct):
    """What is cached of one address space: its TLBs and jump caches, and which parts are filled.

    Those of a space that is not in force are as they were left; its `cr3` says whether
    they still hold.
    """

    cr3 = field(u64)  # the CR3 that it is for, PCID included; NO_SPACE: none
    tlbs = field(u64)  # host address (see TLBS_SIZE)
    jumps = field(u64)  # the same of the jump caches
    last_used = field(u64)
    # 1: its kernel's tables are in use; 0: the kernel uses the common ones.
    own = field(u32)
    # Something in them is neither of the lower half nor global, or code of it that the kernel ran;
    # but for pages that are noted here, by their guest-virtual addresses.
    local = field(u32)
    local_count = field(u32)
    local_pages = field(u64, LOCAL_PAGES)
    # What was noted since the last flush (see JUMP_PAGES).
    jump_pages = field(u64, 2 * JUMP_PAGES // 64)
    large_pages = field(u64, 2 * LARGE_REGIONS // 64)
    huge_pages = field(u64)
    # Groups of the TLBs' and of the jump caches' tables with entries since then.
    tlb_used = field(u64, TLB_TABLES * TLB_USED_WORDS)
    jump_used = field(u64, JUMP_TABLES * JUMP_USED_WORDS)
    forgotten = field(u32)  # 1 once entries of the jump caches were emptied; Python makes it 0


class Insn(Struct):
    """A decoded instruction, as handlers take it."""

    handler = field(u64)
    imm = field(u64)  # immediate, sign-extended; branch displacement; moffs address
    # Second immediate (ENTER, far pointers: the selector), or the register of VSIB's indices.
    imm2 = field(u64)
    disp = field(u64)  # displacement, sign-extended
    address_mask = field(u64)  # all ones, or 32 or 16 of them
    base = field(u32)  # byte offset in Cpu of the base register (or of `zero`, or `next_rip`)
    index = field(u32)  # byte offset in Cpu of the index register (or of `zero`)
    segment = field(u32)  # byte offset in Cpu of the segment base to add (or of `zero`)
    form = field(u16)
    length = field(u8)
    scale = field(u8)  # shift count of the index
    reg = field(u8)  # ModRM.reg with REX.R
    rm = field(u8)  # ModRM.rm with REX.B, or the register in the opcode
    reg8 = field(u8)  # byte offset in Cpu.regs of the 8-bit register ModRM.reg
    rm8 = field(u8)  # the same for ModRM.rm or the opcode's register
    op_size = field(u8)  # log2 of operand size in bytes: 1, 2, 3
    memory = field(u8)  # 1 when ModRM names memory
    rep = field(u8)  # 0, 0xF2 or 0xF3
    lock = field(u8)
    segment_override = field(u8)  # 0xFF, or a segment number
    modrm = field(u8)
    address_size = field(u8)  # log2 of address size in bytes
    opcode = field(u8)  # last opcode byte
    page_offset = field(u16)  # where in its page it lies (translator only)
    vvvv = field(u8)  # VEX.vvvv, 0 without the prefix


class CrossingInsn(Struct):
    """An instruction that lies in two pages, as it was decoded last."""

    address = field(u64)  # linear; 0: the record is free
    mode = field(u32)
    code = field(u64, FETCH_BYTES // 8)  # its bytes, then zeros
    insn = field(Insn)


class Cpu(Struct):
    """Architectural and engine state of one vCPU."""

    # --- what translated code touches ---
    regs = field(u64, 16)
    zero = field(u64)  # always 0: the base of addresses without one
    cc_dst = field(u64)  # lazy flags, see flags.py
    cc_src = field(u64)
    cc_aux = field(u64)
    cc_op = field(u32)
    cpl = field(u32)
    tlb = field(u64)  # host address of the TlbEntry array for the current privilege
    jump_cache = field(u64)  # host address of the JumpCacheEntry array for it
    page_base = field(u64)  # guest-virtual address of the code page being run
    rip = field(u64)  # of the instruction being run
    next_rip = field(u64)  # of the one after it; handlers of jumps set it
    rflags = field(u64)  # all but the arithmetic flags
    condition = field(u64)  # SETcc's or CMOVcc's, while the temporary has their address
    seg = field(Segment, 8)

    # --- system registers ---
    gdt_base = field(u64)
    idt_base = field(u64)
    gdt_limit = field(u32)
    idt_limit = field(u32)
    cr0 = field(u64)
    cr2 = field(u64)
    cr3 = field(u64)
    cr4 = field(u64)
    efer = field(u64)
    xcr0 = field(u64)
    dr = field(u64, 8)
    star = field(u64)
    lstar = field(u64)
    cstar = field(u64)
    sfmask = field(u64)
    kernel_gs_base = field(u64)
    sysenter_cs = field(u64)
    sysenter_esp = field(u64)
    sysenter_eip = field(u64)
    spec_ctrl = field(u64)
    tsc_aux = field(u64)
    counter_offset = field(u64)  # guest TSC = host TSC + this
    tsc_adjust = field(u64)  # IA32_TSC_ADJUST: the sum of the guest's own changes of its TSC
    deadline = field(u64)  # guest TSC at which the timer fires; all ones: never
    pat = field(u64)
    misc_enable = field(u64)
    mtrr_def_type = field(u64)
    mode = field(u32)  # MODE_16, MODE_32, MODE_64
    # Nonzero when data segments have a base or limit that translated code does not apply.
    segmented = field(u32)
    # FS_LIMITED and GS_LIMITED: the segment is not writable data of 4 GiB.
    limited = field(u32)
    # Blocks interrupts for one instruction after STI, MOV SS, POP SS (SHADOW_STI, SHADOW_SS).
    shadow = field(u32)
    halted = field(u32)
    # Set by handlers after which code must be looked up anew (mode, paging, flags changed).
    stop_block = field(u32)

    # --- x87, SSE ---
    xmm = field(v128, 16)
    fpr = field(v128, 8)  # physical x87 registers, 80 bits each; MMX in the low 64
    mxcsr = field(u32)
    fcw = field(u16)
    fsw = field(u16)  # without TOP, which is `ftop`
    ftop = field(u32)
    ftags = field(u8)  # bit n set: physical register n holds a value (FXSAVE's abridged tags)
    fpu_opcode = field(u16)
    fpu_ip = field(u64)
    fpu_dp = field(u64)

    # --- exceptions ---
    fault_vector = field(u32)
    fault_has_code = field(u32)
    fault_code = field(u64)
    fault_rip = field(u64)  # a trap's saved RIP when it differs from `rip`
    delivering = field(u32)  # vector + 1 while its delivery is under way, else 0
    delivering_class = field(u32)
    nmi_blocked = field(u32)
    debug_pending = field(u64)  # DR6 bits of a #DB to raise after this instruction
    stepping = field(u32)  # RFLAGS.TF was set when this instruction began (see debug.py)

    # --- the outside ---
    requests = field(u32)
    exit_kind = field(u32)
    exit_width = field(u32)
    interrupt_vector = field(u32)
    exit_address = field(u64)
    exit_value = field(u64)
    external_done = field(u32)  # outside accesses of this instruction already answered
    external_cursor = field(u32)
    external_values = field(u64, EXTERNAL_LIMIT)

    # --- memory ---
    ram = field(u64)  # host address of the RAM mapping
    ram_low_end = field(u64)  # guest-physical end of RAM that starts at 0
    ram_high_start = field(u64)  # guest-physical range of RAM above 4 GiB
    ram_high_end = field(u64)
    ram_high_addend = field(u64)  # offset in the mapping of ram_high_start, minus it
    # The tables of the address space in force.
    tlb_user = field(u64)
    tlb_kernel = field(u64)
    tlb_open = field(u64)  # the kernel's while RFLAGS.AC suspends SMAP
    jump_user = field(u64)
    jump_kernel = field(u64)
    # Entries that never match: while every access must have its alignment checked, and from when
    # another thread wants this one to leave translated code until it has (see `apic.notify`).
    tlb_checked = field(u64)
    # Host address of a u64 per RAM page: 0, or the host address of its CodePage.
    code_pages = field(u64)
    # Host address of a byte per RAM page: 1 when saved translations were looked for.
    code_sought = field(u64)
    space = field(u32)  # the number of the one in force
    space_clock = field(u64)
    physical_mask = field(u64)  # valid physical address bits
    cpuid_table = field(u64)  # host address of CpuidEntry records
    cpuid_count = field(u32)
    index = field(u32)
    # What CPUID says, where instructions go by it.
    is_amd = field(u32)
    arch_capabilities = field(u64)  # IA32_ARCH_CAPABILITIES; 0: there is none

    # --- the engine ---
    budget = field(u64)  # instructions left in this slice (signed)
    # Host code that translated code jumps to (see jit.doors), and what it leaves for it.
    enter_code = field(u64)
    exit_code = field(u64)
    slow_code = field(u64)
    generic_code = field(u64)
    seek_code = field(u64)
    status_code = field(u64)  # flags.materialize_status
    resume = field(u64)  # host address to go on at after a slow or generic instruction
    branch_offset = field(u64)  # in-page offset of the branch that found no code, or NO_BRANCH
    slow_offset = field(u64)  # which instruction missed, and how (jit.tables.SLOW_OFFSET_BITS)
    slow_address = field(u64)  # the temporary at that moment
    generic_insn = field(u64)  # host address of the Insn to run by its handler
    # Instructions at RIP after which the arithmetic flags hold again: none of them looks at them,
    # the last one sets them all, and none can fault.
    unsettled = field(u32)
    link_site = field(u64)  # host address of the jump to link to the next block, or 0
    slice = field(u64)  # instructions given to this slice
    engine = field(u64)  # host address of the engine's own struct (jit.x86.tables.Scratch)
    jump_buffer = field(u64, 8)
    leave_code = field(u32)
    single_step = field(u32)  # the host debugger's breakpoints in force
    breakpoints = field(u64, HOST_BREAKPOINTS)  # linear addresses
    # Linear address of the instruction that the debugger was told of: it runs next, unreported.
    reported = field(u64)

    # --- counters (see Vcpu.statistics) ---
    count_instructions = field(u64)
    count_tlb_misses = field(u64)
    count_walks = field(u64)
    count_exits = field(u64)
    count_exceptions = field(u64)
    count_interrupts = field(u64)
    count_unknown = field(u64)
    count_slow = field(u64)
    count_dropped = field(u64)
    unknown = field(UnknownCode, UNKNOWN_KINDS)

    # Decoder tables (see isa.x86.decoder): host addresses.
    opcode_table = field(u64)
    group_table = field(u64)
    form_table = field(u64)
    refuse = field(u32)  # the outside access ends in #GP(0)
    inject = field(u32)  # vector + 1 of an external interrupt that run() delivers first
    fetch_buffer = field(v128, 2)
    crossings = field(CrossingInsn, CROSSINGS)
    ports = field(u64)  # host address of the machine's ports.PortTable, or 0
    irq_status = field(u64)  # and that of its irqstatus.IrqStatusTable
    transmit = field(u64)  # and that of its transmit.TransmitTable

    insn = field(Insn)  # the instruction the interpreter runs
    scratch = field(v128, 64)  # room for semantics that need memory (x87 images)

    # --- the other vCPUs (see isa.exclusive) ---
    exclusive = field(u64)  # host address of the machine's Exclusive
    whereabouts = field(u32)  # OUTSIDE, RUNNING or WAITING
    held = field(u32)  # NOTHING, LOCK or MACHINE

    # --- interrupts (see isa.x86.privileged.apic) ---
    apic = field(ApicRegisters)
    sleeping = field(u32)  # 1 while the thread sleeps, or is about to, for want of requests
    polled = field(u32)  # nanoseconds for which it looks out for them before
    most_polled_alone = field(u32)  # the same at most, where the guest has no other vCPU
    tick_nanoseconds = field(u64)  # of the guest's counter, 32 bits of them fraction
    tick_limit = field(u64)  # ticks in LONGEST_SLEEP seconds
    timespec = field(u64, 2)
    # From so many page walks on, one that has done no work for long is to give the memory of its
    # tables back (NEVER: it keeps them); and 1 when it is.
    rests_from = field(u64)
    resting = field(u32)
    walks_seen = field(u64)  # page walks when it last began to wait
    worked = field(u64)  # the host's counter when it last did after work
    count_halts = field(u64)
    count_ipis = field(u64)

    # --- AVX ---
    ymm_high = field(v128, 16)  # bits 255:128 of the YMM registers, whose low halves are `xmm`
    xcr0_mask = field(u64)  # bits that XCR0 can have

    # --- the largest ---
    spaces = field(AddressSpace, ALL_SPACES)


class CpuidEntry(Struct):
    """One CPUID leaf and what it returns; `subleaf` is all ones where it does not matter."""

    leaf = field(u32)
    subleaf = field(u32)
    eax = field(u32)
    ebx = field(u32)
    ecx = field(u32)
    edx = field(u32)
