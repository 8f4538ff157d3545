"""x86-64 as the host: how stencils call one another, and how their code is patched.

A stencil is a function in LLVM's preserve_none convention, which passes its first
arguments in ARGUMENT_REGISTERS and saves none (llvm/lib/Target/X86/X86CallingConv.td).
"""

from __future__ import annotations

from typing import Any

from ringzero.jit import tables
from ringzero.jit.host.elf import R_8, R_16, R_32, R_32S, R_64, R_PC32, R_PLT32, Function
from ringzero.native import load, native, staged, store, u8, u16, u32, u64

CONVENTION = "preserve_nonecc"
ARGUMENT_REGISTERS = (
    "r12", "r13", "r14", "r15", "rdi", "rsi", "rdx", "rcx", "r8", "r9", "r11", "rax",
)  # fmt: skip
# How the holes of each kind of relocation are filled.
_KINDS = {
    R_PC32: tables.RELATIVE_32,
    R_PLT32: tables.RELATIVE_32,
    R_32: tables.ABSOLUTE_32,
    R_32S: tables.ABSOLUTE_32,
    R_64: tables.ABSOLUTE_64,
    R_8: tables.ABSOLUTE_8,
    R_16: tables.ABSOLUTE_16,
}
# JMP rel32 and Jcc rel32 (0F 8x), with their lengths (SDM vol. 2, JMP and Jcc).
_JMP_REL32, JUMP_LENGTH = 0xE9, 5
_TWO_BYTE, _JCC_REL32, _JCC_LENGTH = 0x0F, 0x80, 6
_DISPLACEMENT = 4
_LESS = 0xC  # the condition code of JL

# (offset, how it is filled, what with: index into HOLES, addend)
Place = tuple[int, int, int, int]


def trimmed(function: Function) -> tuple[bytes, list[Place]] | None:
    """Return a stencil's code without its last jump to NEXT, and its holes.

    None when it has a relocation that is no hole (a constant in memory).
    """
    code = bytearray(function.code)
    holes: list[Place] = []
    for place in function.relocations:
        if place.symbol not in tables.HOLES or place.kind not in _KINDS:
            return None
        holes.append(
            (place.offset, _KINDS[place.kind], tables.HOLES.index(place.symbol), place.addend)
        )
    last = holes[-1] if holes else (0, 0, 0, 0)
    if last[0] != len(code) - _DISPLACEMENT or code[-JUMP_LENGTH] != _JMP_REL32:
        return bytes(code), holes
    jump = len(code) - JUMP_LENGTH
    if last[2] == tables.NEXT:
        del code[jump:]
        holes.pop()
    elif len(holes) > 1 and _is_conditional(code, jump, holes[-2]):
        # "jcc NEXT; jmp X" becomes "jncc X" that falls through.
        code[jump - _JCC_LENGTH + 1] ^= 1
        holes[-2:] = [(jump - _DISPLACEMENT, *last[1:])]
        del code[jump:]
    return bytes(code), holes


def _is_conditional(code: bytearray, end: int, hole: Place) -> bool:
    """Whether a conditional jump to NEXT, with its displacement in a hole, ends at `end`."""
    start = end - _JCC_LENGTH
    return (
        hole[2] == tables.NEXT
        and hole[0] == end - _DISPLACEMENT
        and code[start] == _TWO_BYTE
        and code[start + 1] & 0xF0 == _JCC_REL32
    )


def condition_hole(code: str, holes: list[Place]) -> int | None:
    """Return where a stencil, in hexadecimal, has the opcode of its one jump to TARGET.

    That must be its last instruction and, as it is compiled, JL; None where it is not.
    """
    targets = [hole for hole in holes if hole[2] == tables.TARGET]
    opcode = bytes((_TWO_BYTE, _JCC_REL32 | _LESS))
    place = len(code) // 2 - _DISPLACEMENT
    if [hole[0] for hole in targets] != [place]:
        return None
    return place - 1 if bytes.fromhex(code)[place - 2 : place] == opcode else None


@native
def fill(site: u64, kind: u8, value: u64) -> None:
    """Fill a hole at a host address with `value`; `kind` is one of tables.RELATIVE_32 ..."""
    if kind == tables.RELATIVE_32:
        store(u32, site, u32(value - site))
    elif kind == tables.ABSOLUTE_32:
        store(u32, site, u32(value))
    elif kind == tables.ABSOLUTE_64:
        store(u64, site, value)
    elif kind == tables.ABSOLUTE_16:
        store(u16, site, u16(value))
    else:
        store(u8, site, u8(value))


@staged
def set_condition(site: Any, code: Any) -> None:
    """Make the conditional jump whose displacement lies at a host address look at `code` (0-15)."""
    store(u8, site - 1, u8(_JCC_REL32 | code))


@staged
def ends_in_jump(site: Any, end: Any) -> Any:
    """Whether code ends in the jump whose displacement lies at a host address."""
    return (end - site == _DISPLACEMENT) & (load(u8, site - 1) == _JMP_REL32)


@staged
def direct(site: Any, target: Any) -> None:
    """Make the jump whose displacement lies at a host address go to `target`."""
    store(u32, site, u32(target - site - _DISPLACEMENT))
