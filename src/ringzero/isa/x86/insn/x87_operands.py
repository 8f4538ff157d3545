"""The x87 register stack, its exceptions, and execution on the host's x87.

Values stay in the 80-bit format; every operation is done by the host's own
instruction between slots of memory, with the guest's control word loaded, so
results, rounding and flags are the hardware's. Exceptions are unmasked in the
host exactly where the guest unmasked them: the host reports them at its next
waiting instruction, and flags are read and cleared before there is one.

The host's x87 is idle otherwise: empty stack, clear flags, default control word.

Intel SDM vol. 1, chapter 8.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.insn.sse_operands import check_pending
from ringzero.isa.x86.privileged.alignment import check_alignment
from ringzero.isa.x86.privileged.mmu import probe_range
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import address_of, host_asm, load, native, staged, store, u8, u16, u32, u64

# FSW (SDM vol. 1, section 8.1.3) and FCW (8.1.5): flags and masks have the same bits.
INVALID, DENORMAL, DIVIDE, OVERFLOW, UNDERFLOW, PRECISION = (1 << n for n in range(6))
EXCEPTIONS = 0x3F
STACK_FAULT = 1 << 6
# Error summary and, as its copy, busy.
SUMMARY = 1 << 7 | 1 << 15
C0, C1, C2, C3 = (1 << n for n in (8, 9, 10, 14))
CONDITIONS = C0 | C1 | C2 | C3
# Exceptions that stop an operation before it has a result.
BEFORE = INVALID | DENORMAL | DIVIDE
# Control word after FNINIT, and the host's own.
DEFAULT_FCW = 0x37F

# The "real indefinite" NaN (SDM vol. 1, section 4.8.3.7).
INDEFINITE_MANTISSA, INDEFINITE_EXPONENT = 0xC000_0000_0000_0000, 0xFFFF

# Where operands in memory and results lie in `Cpu.scratch`, as offsets in it.
OPERAND, SECOND = 0, 16
_ROOM = Cpu.offset_of("scratch")
_FCW = Cpu.offset_of("fcw")
# The address of `OPERAND` and `SECOND` in the text given to `run_host`.
AT_OPERAND = f"{_ROOM + OPERAND}($1)"
AT_SECOND = f"{_ROOM + SECOND}($1)"


# --- the stack -------------------------------------------------------------


@staged
def physical(cpu: Cpu, index: Any) -> Any:
    """Return the physical number (u32) of ST(index)."""
    return (cpu.ftop + u32(index)) & 7


@staged
def slot(cpu: Cpu, index: Any) -> Any:
    """Return the host address (u64) of ST(index)."""
    return cpu.fpr.address(physical(cpu, index))


@staged
def is_empty(cpu: Cpu, index: Any) -> Any:
    """Return whether ST(index) is tagged empty."""
    return ((u32(cpu.ftags) >> physical(cpu, index)) & 1) == 0


@staged
def mark(cpu: Cpu, index: Any, *, full: bool) -> None:
    """Tag ST(index) as full or empty."""
    bit = u8(u32(1) << physical(cpu, index))
    cpu.ftags = (cpu.ftags | bit) if full else (cpu.ftags & ~bit)


@staged
def pop(cpu: Cpu) -> None:
    """Mark ST(0) empty and raise TOP."""
    mark(cpu, 0, full=False)
    cpu.ftop = (cpu.ftop + 1) & 7


@staged
def copy_real(to: Any, source: Any) -> None:
    """Copy 80 bits between host addresses."""
    mantissa = load(u64, source)
    exponent = load(u16, source, 8)
    store(u64, to, mantissa)
    store(u16, to, exponent, 8)


@staged
def write_indefinite(to: Any) -> None:
    """Store the real indefinite NaN at a host address."""
    store(u64, to, u64(INDEFINITE_MANTISSA))
    store(u16, to, u16(INDEFINITE_EXPONENT), 8)


@staged
def set_register(cpu: Cpu, index: Any, source: Any) -> None:
    """Give ST(index) the 80 bits at a host address and tag it full."""
    copy_real(slot(cpu, index), source)
    mark(cpu, index, full=True)


@staged
def set_indefinite(cpu: Cpu, index: Any) -> None:
    """Make ST(index) the real indefinite NaN."""
    write_indefinite(slot(cpu, index))
    mark(cpu, index, full=True)


@staged
def push(cpu: Cpu, source: Any) -> None:
    """Lower TOP and give the new ST(0) the 80 bits at a host address."""
    cpu.ftop = (cpu.ftop - 1) & 7
    set_register(cpu, 0, source)


@staged
def push_indefinite(cpu: Cpu) -> None:
    """Lower TOP and make the new ST(0) the real indefinite NaN."""
    cpu.ftop = (cpu.ftop - 1) & 7
    set_indefinite(cpu, 0)


@staged
def room(cpu: Cpu, offset: int = OPERAND) -> Any:
    """Return the host address of `OPERAND` or `SECOND`."""
    return cpu.scratch.address() + offset


# --- exceptions ------------------------------------------------------------


@native
def summarize(cpu: Cpu) -> None:
    """Set or clear the error summary after FSW or FCW changed."""
    fsw = cpu.fsw & ~u16(SUMMARY)
    if (fsw & ~cpu.fcw & EXCEPTIONS) != 0:
        fsw = fsw | SUMMARY
    cpu.fsw = fsw


@staged
def settle(cpu: Cpu, status: Any, conditions: int = C1) -> None:
    """Take exceptions and the given condition codes from the host's status word (u32)."""
    kept = cpu.fsw & ~u16(conditions)
    cpu.fsw = kept | (u16(status) & (EXCEPTIONS | conditions))
    summarize(cpu)


@staged
def unmasked(cpu: Cpu, status: Any, exceptions: int) -> Any:
    """Return whether `status` has one of `exceptions` that the guest has not masked."""
    return (u16(status) & ~cpu.fcw & exceptions) != 0


@native(inline="never")
def stack_fault(cpu: Cpu, overflow: u32) -> None:
    """Report a stack fault: C1 tells overflow (1) from underflow (0)."""
    fsw = (cpu.fsw & ~u16(C1)) | (INVALID | STACK_FAULT)
    if overflow != 0:
        fsw = fsw | C1
    cpu.fsw = fsw
    summarize(cpu)


@staged
def invalid_masked(cpu: Cpu) -> Any:
    """Return whether invalid operations give NaNs instead of exceptions."""
    return (cpu.fcw & INVALID) != 0


@staged
def start(m: Operation) -> None:
    """Begin a waiting instruction: raise #MF if an exception is pending."""
    check_pending(m)


@staged
def note(m: Operation) -> None:
    """Keep the last instruction's pointers; comes after operands were read."""
    cpu, insn = m.cpu, m.insn
    cpu.fpu_ip = cpu.rip
    cpu.fpu_opcode = ((u16(insn.opcode) & 7) << 8) | u16(insn.modrm)
    if m.memory:
        cpu.fpu_dp = m.effective_address(0)


@staged
def stack_index(m: Operation, n: int = 0) -> Any:
    """Return i (u32) of the operand ST(i)."""
    return u32(m.register_number(n)) & 7


@staged
def probe_store(m: Operation, size: int) -> None:
    """Raise the page fault that a store of `size` bytes would; it precedes x87 exceptions."""
    cpu = m.cpu
    where = m.address(0, size)
    check_alignment(cpu, where, min(size, 8), 1)
    probe_range(cpu, where, u64(size), u32(cpu.cpl == 3))


# --- the host --------------------------------------------------------------


def run_host(
    cpu: Any, body: str, after: str, x: Any = None, y: Any = None, *, flags: bool = False
) -> Any:
    """Run x87 instructions on the host; return its status word (u32).

    `body` ends with the one instruction that may raise exceptions. `after`
    stores its results and leaves the stack empty. In both, $1 is the vCPU, $2
    and $3 the host addresses x and y. With `flags`, the result's upper half is
    AH as LAHF gives it after `body`.
    """
    text = "\n".join(
        (
            f"cmpw $${DEFAULT_FCW:#x}, {_FCW}($1)",
            "je 1f",
            f"fldcw {_FCW}($1)",
            "1:",
            body,
            "lahf\nmovzbl %ah, %ecx\nshll $$16, %ecx" if flags else "xorl %ecx, %ecx",
            "xorl %eax, %eax",
            "fnstsw %ax",
            "testb $$0x3f, %al",
            "je 2f",
            "fnclex",
            "2:",
            after,
            f"cmpw $${DEFAULT_FCW:#x}, {_FCW}($1)",
            "je 3f",
            f"movw $${DEFAULT_FCW:#x}, {_ROOM + 48}($1)",
            f"fldcw {_ROOM + 48}($1)",
            "3:",
            "orl %ecx, %eax",
        )
    )
    base = address_of(cpu)
    x = base if x is None else x
    y = base if y is None else y
    clobbers = "~{ecx},~{memory},~{flags},~{fpsr},~{dirflag}"
    return host_asm(u32, text, "=&{eax},r,r,r," + clobbers, base, x, y)
