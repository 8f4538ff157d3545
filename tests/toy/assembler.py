"""Programs of the toy ISA from lines of `mnemonic rd, ra, imm`, with labels."""

from __future__ import annotations

import struct

from tests.toy.insn import MNEMONICS


def encode(mnemonic: str, rd: int = 0, ra: int = 0, imm: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("<BBH", MNEMONICS[mnemonic], rd | ra << 4, imm & 0xFFFF)


def assemble(source: str, base: int = 0) -> bytes:
    """Return the program's bytes; a label as an immediate is a distance in instructions."""
    labels: dict[str, int] = {}
    lines: list[list[str]] = []
    for line in source.strip().splitlines():
        text = line.partition("#")[0].strip()
        if text.endswith(":"):
            labels[text[:-1]] = len(lines)
        elif text:
            lines.append(text.replace(",", " ").split())
    code = b""
    for place, (mnemonic, *operands) in enumerate(lines):
        registers = [int(o[1:]) for o in operands if o[0] == "r" and o[1:].isdigit()]
        values = [o for o in operands if not (o[0] == "r" and o[1:].isdigit())]
        imm = 0
        if values:
            name = values[0]
            if name.startswith("@"):
                imm = base + 4 * labels[name[1:]]
            else:
                imm = labels[name] - place if name in labels else int(name, 0)
        rd, ra = (*registers, 0, 0)[:2]
        code += encode(mnemonic, rd, ra, imm)
    return code
