"""A decoded instruction as text, from the decoder's record and the description of its form."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.state import GPR_NAMES
from ringzero.isa.x86.table.forms import VECTORS
from ringzero.isa.x86.table.instructions import all_forms

_ONES = (1 << 64) - 1
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_BYTE_NAMES = ("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil")
_HIGH_NAMES = ("ah", "ch", "dh", "bh")
_REPEATED = ("movs", "stos", "lods", "cmps", "scas", "ins", "outs")
_REGS = Cpu.offset_of("regs")
_ZERO, _NEXT_RIP = Cpu.offset_of("zero"), Cpu.offset_of("next_rip")


def text_of(insn: Any, address: int) -> str:
    """Return mnemonic and operands of the instruction at linear `address`, destination first.

    `insn` is a view of an `Insn`.
    """
    form = all_forms(extended=True)[insn.form]
    prefix = "lock " * bool(insn.lock)
    if form.mnemonic.startswith(_REPEATED):
        prefix += {0xF2: "repne ", 0xF3: "rep "}.get(insn.rep, "")
    words = [_operand(form, n, insn, address) for n in range(len(form.operands))]
    return f"{prefix}{form.mnemonic} {', '.join(words)}".rstrip()


def _register(number: int, bits: int, byte_place: int) -> str:
    if bits == 8:
        place, high = divmod(byte_place, 8)
        if high:
            return _HIGH_NAMES[place & 3]
        return _BYTE_NAMES[place] if place < 8 else f"r{place}b"
    name = GPR_NAMES[number]
    if number >= 8:
        return name + {64: "", 32: "d", 16: "w"}.get(bits, "")
    return {64: name, 32: f"e{name[1:]}", 16: name[1:]}.get(bits, name)


def _operand(form: Any, n: int, insn: Any, address: int) -> str:
    operand = form.operands[n]
    bits = operand.bits(8 << insn.op_size)
    letter = operand.letter
    if operand.fixed:
        return _register(0, bits, 0) if operand.fixed == "rAX" else operand.fixed.lower()
    if letter in "IJA":
        if letter == "J":
            return f"{(address + insn.length + insn.imm) & _ONES:#x}"
        return f"{insn.imm & ((1 << bits) - 1 if bits else _ONES):#x}"
    if letter == "O":
        return f"[{insn.imm:#x}]"
    if insn.memory and operand.is_modrm_rm:
        return _memory(insn)
    if letter == "S":
        return _SEGMENTS[insn.reg] if insn.reg < len(_SEGMENTS) else f"s{insn.reg}"
    if letter in VECTORS:
        numbers = {"V": insn.reg, "H": insn.vvvv, "L": insn.imm >> 4 & 15}
        return f"{'y' if bits == 256 else 'x'}mm{numbers.get(letter, insn.rm)}"
    if letter in "PQN":
        return f"mm{(insn.reg if letter == 'P' else insn.rm) & 7}"
    if letter in "CD":
        return f"{'cr' if letter == 'C' else 'dr'}{insn.reg}"
    if letter == "B":
        return _register(insn.vvvv, bits, 0)
    by_reg = letter == "G"
    return _register(insn.reg if by_reg else insn.rm, bits, insn.reg8 if by_reg else insn.rm8)


def _memory(insn: Any) -> str:
    parts = []
    if insn.base == _NEXT_RIP:
        parts.append("rip")
    elif insn.base != _ZERO:
        parts.append(GPR_NAMES[(insn.base - _REGS) // 8])
    if insn.index != _ZERO:
        parts.append(f"{GPR_NAMES[(insn.index - _REGS) // 8]}*{1 << insn.scale}")
    disp = insn.disp - (1 << 64) if insn.disp >> 63 else insn.disp
    text = "+".join(parts)
    if disp or not parts:
        text += f"{'-' if disp < 0 else '+' * bool(parts)}{abs(disp):#x}"
    segment = ""
    if insn.segment_override < len(_SEGMENTS):
        segment = f"{_SEGMENTS[insn.segment_override]}:"
    return f"{segment}[{text}]"
