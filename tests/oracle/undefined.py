"""What the Intel SDM (vol. 2) leaves undefined, and what is only approximate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from capstone import x86_const as x86

from tests.oracle.encodings import disassembler, names
from tests.oracle.model import (
    ARITH_FLAGS,
    FLAG_BITS,
    FS_BASE,
    GPR_NAMES,
    GS_BASE,
    RCX,
    Case,
)

CF, PF, AF, ZF, SF, OF = (FLAG_BITS[name] for name in ("CF", "PF", "AF", "ZF", "SF", "OF"))
C0, C1, C2, C3 = 0x100, 0x200, 0x400, 0x4000

_FIXED: Final = {
    **dict.fromkeys(("and", "or", "xor", "test"), AF),
    **dict.fromkeys(("mul", "imul"), SF | ZF | AF | PF),
    **dict.fromkeys(("div", "idiv"), ARITH_FLAGS),
    **dict.fromkeys(("bsf", "bsr"), CF | OF | SF | AF | PF),
    **dict.fromkeys(("bt", "bts", "btr", "btc"), OF | SF | AF | PF),
    **dict.fromkeys(("aaa", "aas"), OF | SF | ZF | PF),
    **dict.fromkeys(("aam", "aad"), OF | AF | CF),
    **dict.fromkeys(("daa", "das"), OF),
    **dict.fromkeys(("andn", "blsr", "blsmsk", "blsi", "bzhi"), AF | PF),
    "bextr": AF | PF | SF,
    **dict.fromkeys(("lzcnt", "tzcnt"), AF | PF | SF | OF),
}
_SHIFTS: Final = frozenset(("shl", "sal", "shr", "sar"))
_ROTATES: Final = frozenset(("rol", "ror", "rcl", "rcr"))
_DOUBLE_SHIFTS: Final = frozenset(("shld", "shrd"))

_LEGACY_PREFIXES: Final = b"\x66\x67\xf0\xf2\xf3\x26\x2e\x36\x3e\x64\x65"

_CONDITION_SETTERS: Final = names(
    """fcom fcomp fcompp fucom fucomp fucompp ficom ficomp ftst fxam fprem fprem1
    fptan fsin fcos fsincos fldenv frstor fnsave fninit fnstenv"""
)
"""x87 instructions that define C0, C2 and C3 (FSIN and its kin only C2)."""
_C2_ONLY: Final = frozenset(("fptan", "fsin", "fcos", "fsincos"))
TRANSCENDENTAL: Final = names("f2xm1 fyl2x fyl2xp1 fpatan fptan fsin fcos fsincos")
APPROXIMATE: Final = names("rcpps rcpss rsqrtps rsqrtss")
_LARGE_OPERANDS: Final = {
    **dict.fromkeys(names("fxsave fxsave64 fxrstor fxrstor64"), 512),
    **dict.fromkeys(names("fnsave frstor"), 108),
    **dict.fromkeys(names("fnstenv fldenv"), 28),
}
"""Bytes of operands of which CPUs touch the parts in different orders: AMD's begin FXSAVE and
FXRSTOR with the last byte."""


@dataclass(slots=True)
class Undefined:
    """What a comparison leaves out.

    `flags` and `fsw` are masks; `registers` are GPR numbers; `memory` are
    (address, length) ranges; a #PF may name any of the first `fault_span` bytes
    of an operand too large for one access; `x87_ulp` and `single_error` are the tolerances
    for results that the manual gives only approximately.
    """

    flags: int = 0
    fsw: int = 0
    registers: set[int] = field(default_factory=set)
    memory: list[tuple[int, int]] = field(default_factory=list)
    fault_span: int = 1
    x87_ulp: int = 0
    single_error: float = 0.0


def undefined_flags(mnemonic: str, size: int = 0, count: int | None = None) -> int:
    """The mask of RFLAGS bits that `mnemonic` leaves undefined.

    Shifts and rotates need the operand `size` in bits and the unmasked `count`.
    """
    fixed = _FIXED.get(mnemonic)
    if fixed is not None:
        return fixed
    if mnemonic not in _SHIFTS | _ROTATES | _DOUBLE_SHIFTS or count is None:
        return 0
    count &= 63 if size == 64 else 31
    if count == 0:
        return 0
    beyond_one = OF if count != 1 else 0
    if mnemonic in _ROTATES:
        return beyond_one
    if mnemonic in _DOUBLE_SHIFTS:
        return ARITH_FLAGS if count > size else AF | beyond_one
    lost = CF if count >= size and mnemonic != "sar" else 0
    return AF | beyond_one | lost


def undefined(case: Case) -> Undefined:
    """What the instruction of a one-instruction case leaves undefined.

    Of a program only the x87 condition codes that nothing has defined: it ends
    with defined flags by construction.
    """
    result = Undefined()
    mnemonic = case.mnemonic
    if not mnemonic:
        result.fsw = C0 | C2 | C3
        return result
    fixed = _FIXED.get(mnemonic)
    if fixed is not None:
        result.flags = fixed
    if mnemonic in _SHIFTS or mnemonic in _ROTATES or mnemonic in _DOUBLE_SHIFTS:
        _shift(case, result)
    elif mnemonic in ("bsf", "bsr", "bswap"):
        _whole_register(case, result)
    elif mnemonic in APPROXIMATE:
        result.single_error = 1.5 * 2**-11  # each of the two may be off by 1.5 * 2^-12
    elif mnemonic in ("fxsave", "fxsave64", "fnsave", "fnstenv"):
        _x87_pointers(case, result)
    result.fault_span = _LARGE_OPERANDS.get(mnemonic, 1)
    if mnemonic[0] == "f" or mnemonic in ("emms", "wait"):
        result.fsw = C0 | C2 | C3
        if mnemonic in _CONDITION_SETTERS:
            result.fsw = C0 | C3 if mnemonic in _C2_ONLY else 0
        if mnemonic in TRANSCENDENTAL:
            result.fsw |= C1
            result.x87_ulp = 1 << 14
    return result


def _instruction(case: Case) -> object | None:
    return next(disassembler(case.mode, detail=True).disasm(case.code, case.state.rip, 1), None)


def _shift(case: Case, result: Undefined) -> None:
    insn = _instruction(case)
    if insn is None:
        return
    operands = insn.operands  # type: ignore[attr-defined]
    size = _operand_size(case, operands[0].size * 8)
    last = operands[-1]
    if last.type == x86.X86_OP_IMM:
        count = last.imm & 0xFF
    elif len(operands) == 1:
        count = 1
    else:
        count = case.state.gpr[RCX] & 0xFF
    result.flags = undefined_flags(case.mnemonic, size, count)
    if case.mnemonic in _DOUBLE_SHIFTS and count & (63 if size == 64 else 31) > size:
        if operands[0].type == x86.X86_OP_REG:
            result.registers.add(_gpr_number(insn, operands[0].reg))
        else:
            result.memory.append((_effective_address(case, insn, operands[0]), size // 8))


def _operand_size(case: Case, shown: int) -> int:
    """Operand size in bits, which Capstone shows wrongly where F2 or F3 follows 66."""
    if shown == 8:
        return 8
    size = 32
    for byte in case.code:
        if byte == 0x66:
            size = 16
        elif case.mode == 64 and byte >> 4 == 4:
            return 64 if byte & 8 else size
        elif byte not in _LEGACY_PREFIXES:
            break
    return size


def _whole_register(case: Case, result: Undefined) -> None:
    """BSF and BSR of zero, BSWAP of 16 bits."""
    insn = _instruction(case)
    if insn is None:
        return
    operands = insn.operands  # type: ignore[attr-defined]
    if case.mnemonic == "bswap" and _operand_size(case, operands[0].size * 8) != 16:
        return
    result.registers.add(_gpr_number(insn, operands[0].reg))


def _x87_pointers(case: Case, result: Undefined) -> None:
    """FOP, FIP, FDP and the reserved fields in a stored environment or image."""
    insn = _instruction(case)
    if insn is None:
        return
    operand = insn.operands[0]  # type: ignore[attr-defined]
    address = _effective_address(case, insn, operand)
    if case.mnemonic.startswith("fxsave"):
        result.memory += [(address + 5, 19), (address + 28, 4), (address + 416, 96)]
        result.memory += [(address + 42 + 16 * i, 6) for i in range(8)]
        if case.mode == 32:
            result.memory.append((address + 288, 128))
    elif b"\x66" in case.code[: -len(insn.opcode)]:  # type: ignore[attr-defined]
        result.memory.append((address + 6, 8))
    else:
        result.memory += [(address + 2, 2), (address + 6, 2), (address + 10, 18)]


_ALIASES: Final = {
    name: number
    for number, names in enumerate(
        (
            "rax eax ax al ah", "rcx ecx cx cl ch", "rdx edx dx dl dh", "rbx ebx bx bl bh",
            "rsp esp sp spl", "rbp ebp bp bpl", "rsi esi si sil", "rdi edi di dil",
            *(f"{r} {r}d {r}w {r}b" for r in GPR_NAMES[8:]),
        )
    )
    for name in names.split()
}  # fmt: skip


def _gpr_number(insn: object, register: int) -> int:
    return _ALIASES[insn.reg_name(register)]  # type: ignore[attr-defined]


def _effective_address(case: Case, insn: object, operand: object) -> int:
    """The linear address of a Capstone memory operand."""
    mem = operand.mem  # type: ignore[attr-defined]
    address = mem.disp
    gpr = case.state.gpr
    for register, scale in ((mem.base, 1), (mem.index, mem.scale)):
        if not register:
            continue
        name = insn.reg_name(register)  # type: ignore[attr-defined]
        if name in ("rip", "eip"):
            address += case.state.rip + insn.size  # type: ignore[attr-defined]
        elif name in _ALIASES:
            address += gpr[_ALIASES[name]] * scale
    address &= (1 << 8 * insn.addr_size) - 1  # type: ignore[attr-defined]
    if mem.segment == x86.X86_REG_FS:
        address += FS_BASE
    elif mem.segment == x86.X86_REG_GS:
        address += GS_BASE
    return address & (1 << case.mode) - 1
