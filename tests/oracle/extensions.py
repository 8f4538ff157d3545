"""Random cases of instructions beyond x86-64-v2, from the forms of ringzero's own table.

A `State` has no upper halves of YMM registers, so a case is a program: it loads them
from the data pages, runs the instruction, and stores them there. A fault in between
must leave everything as it was but for what the case says.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator

from ringzero.isa.x86.table.forms import VEX_MAPS, Form
from ringzero.isa.x86.table.instructions import all_forms
from tests.oracle.model import (
    ARITH_FLAGS,
    CODE_BASE,
    DATA_BASE,
    DATA_SIZE,
    FIXED_FLAGS,
    PAGE,
    RO_BASE,
    Case,
    State,
)
from tests.oracle.operands import Operands

UPPER_IN, UPPER_OUT = DATA_BASE + 0x40, DATA_BASE + 0x140
# Where operands in memory begin: behind those.
_FIRST = DATA_BASE + 0x240
# Their results come from the machine, not from operands.
NOT_COMPARED = ("rdseed", "rdpid", "vmaskmovdqu")


def extension_forms() -> list[Form]:
    """The forms beyond x86-64-v2."""
    count = len(all_forms())
    return all_forms(extended=True)[count:]


def comparable_forms(features: Container[str]) -> list[Form]:
    """Those that a host with such features has, and whose results come from their operands."""
    return [
        form
        for form in extension_forms()
        if form.mnemonic not in NOT_COMPARED and form.attributes.get("needs", "fpu") in features
    ]


def _vex(map_number: int, pp: int, w: int, length: int, vvvv: int, rxb: int) -> bytes:
    """A VEX prefix of three bytes; `rxb` has R, X and B as in a REX prefix."""
    return bytes((0xC4, (rxb ^ 7) << 5 | map_number, w << 7 | (vvvv ^ 15) << 3 | length << 2 | pp))


def move_uppers(opcode: int, base: int, count: int) -> bytes:
    """VINSERTF128 (18) or VEXTRACTF128 (19) of all upper halves, at consecutive addresses."""
    code = b""
    for number in range(count):
        vvvv = number if opcode == 0x18 else 0
        code += _vex(3, 1, 0, 1, vvvv, (number >> 3) << 2)
        # Without base and index: an absolute address in either mode.
        place = (base + 16 * number).to_bytes(4, "little")
        code += bytes((opcode, (number & 7) << 3 | 4, 0x25)) + place + b"\x01"
    return code


class ExtensionCases:
    """Makes cases; the same seed gives the same."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.operands = Operands(self.rng)

    def cases(self, forms: Iterable[Form], per_form: int, mode: int = 64) -> Iterator[Case]:
        """`per_form` cases of every form that is compared."""
        for form in forms:
            if form.mnemonic not in NOT_COMPARED:
                for _ in range(per_form):
                    yield self.case(form, mode)

    def _target(self) -> int:
        rng = self.rng
        kind = rng.random()
        if kind < 0.6:
            return rng.randrange(_FIRST, DATA_BASE + DATA_SIZE - 64, 32)
        if kind < 0.85:
            return rng.randrange(_FIRST, DATA_BASE + DATA_SIZE - 64)
        if kind < 0.93:
            return DATA_BASE + PAGE * rng.randrange(1, 4) - rng.randrange(1, 32)
        if kind < 0.97:
            return RO_BASE + rng.randrange(-32, PAGE)
        return RO_BASE + PAGE - rng.randrange(32)

    def case(self, form: Form, mode: int) -> Case:
        """One case of a form."""
        rng = self.rng
        registers = 16 if mode == 64 else 8
        gpr = self.operands.gprs()
        reg, rm, vvvv = (rng.randrange(registers) for _ in range(3))
        memory = [(UPPER_IN + 16 * n, self.operands.vector()) for n in range(16)]
        if form.digit is not None:
            reg = form.digit
        rxb = (reg >> 3) << 2
        tail = b""
        if form.has_modrm:
            in_memory = form.may_be_memory and (not form.may_be_register or rng.random() < 0.5)
            if in_memory:
                bits, tail = self._memory_operand(form, reg, registers, gpr, memory)
                rxb |= bits
            else:
                rxb |= rm >> 3
                tail = bytes((0xC0 | (reg & 7) << 3 | rm & 7,))
        if any(o.is_immediate or o.letter == "L" for o in form.operands):
            tail += rng.randbytes(1)
        if form.vex is None:
            wide = mode == 64 and rng.random() < 0.5
            prefix = bytes((form.prefix,)) if form.prefix else b""
            rex = bytes((0x40 | wide << 3 | rxb,)) if mode == 64 and (wide or rxb) else b""
            escape = {1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}[form.opcode_map]
            code = prefix + rex + escape + bytes((form.opcode,)) + tail
        else:
            if not form.uses_vvvv:
                vvvv = 0 if rng.random() < 0.97 else vvvv
            pp = (0, 0x66, 0xF3, 0xF2).index(form.prefix or 0)
            width, length = rng.choice(form.vex.widths), rng.choice(form.vex.lengths)
            assert form.opcode_map in VEX_MAPS.values()
            code = _vex(form.opcode_map, pp, width, length, vvvv, rxb)
            code += bytes((form.opcode,)) + tail
        program = (
            move_uppers(0x18, UPPER_IN, registers) + code + move_uppers(0x19, UPPER_OUT, registers)
        )
        flags = FIXED_FLAGS | rng.getrandbits(12) & ARITH_FLAGS
        if mode == 32:
            gpr = [value & 0xFFFFFFFF for value in gpr[:8]] + [0] * 8
        state = State.build(gpr, CODE_BASE, flags, self.operands.fxsave())
        return Case(program, state, tuple(memory), mode, form.mnemonic)

    def _memory_operand(
        self,
        form: Form,
        reg: int,
        registers: int,
        gpr: list[int],
        memory: list[tuple[int, bytes]],
    ) -> tuple[int, bytes]:
        """ModRM and what follows for a target, and the register that leads there."""
        rng = self.rng
        target = self._target()
        base = rng.choice([n for n in range(registers) if n & 7 not in (4, 5)])
        displacement = rng.randrange(-128, 128)
        gpr[base] = target - displacement & (1 << 64) - 1
        for place in (target, target + 16):
            if DATA_BASE <= place <= DATA_BASE + DATA_SIZE - 16 and rng.random() < 0.9:
                memory.append((place, self.operands.vector()))
        last = displacement & 0xFF
        if not form.attributes.get("vsib"):
            return base >> 3, bytes((0x40 | (reg & 7) << 3 | base & 7, last))
        index = rng.randrange(registers)
        # Indices of some size lead somewhere, those of others to a fault.
        sib = rng.randrange(3) << 6 | (index & 7) << 3 | base & 7
        return index >> 3 << 1 | base >> 3, bytes((0x40 | (reg & 7) << 3 | 4, sib, last))


def form_text(case: Case) -> str:
    """The tested instruction's bytes, for messages."""
    count = 16 if case.mode == 64 else 8
    skipped = len(move_uppers(0x18, 0, count))
    return case.code[skipped : len(case.code) - skipped].hex(" ")
