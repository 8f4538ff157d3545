"""Reads the little of ELF that stencils need: one object's code, functions and relocations.

System V ABI, AMD64 supplement, section 4.4 (relocation types).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ringzero.errors import EngineError

R_64, R_PC32, R_PLT32, R_32, R_32S, R_16, R_8 = 1, 2, 4, 10, 11, 12, 14
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")
_SHT_SYMTAB, _SHT_RELA = 2, 4
_STT_FUNC = 2


@dataclass(frozen=True)
class Relocation:
    """A place in a function to fill: `symbol` is "" when it names no symbol."""

    offset: int
    kind: int
    symbol: str
    addend: int


@dataclass(frozen=True)
class Function:
    """The code of one function and its relocations, offsets from its start."""

    name: str
    code: bytes
    relocations: tuple[Relocation, ...]


def _name(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def read_functions(data: bytes) -> list[Function]:
    """Return the functions in the .text section of an object that LLVM made."""
    header = _HEADER.unpack_from(data)
    if header[0][:4] != b"\x7fELF":
        raise EngineError("not an ELF object")
    start, size, count = header[6], header[11], header[12]
    sections = [_SECTION.unpack_from(data, start + n * size) for n in range(count)]

    def contents(section: tuple[int, ...]) -> bytes:
        return data[section[4] : section[4] + section[5]]

    names = contents(sections[header[13]])
    by_name = {_name(names, s[0]): n for n, s in enumerate(sections)}
    text = by_name[".text"]
    code = contents(sections[text])
    table = next(s for s in sections if s[1] == _SHT_SYMTAB)
    strings = contents(sections[table[6]])
    symbols = list(_SYMBOL.iter_unpack(contents(table)))
    relocations = sorted(
        (offset, info & 0xFFFFFFFF, _name(strings, symbols[info >> 32][0]), addend)
        for s in sections
        if s[1] == _SHT_RELA and s[7] == text
        for offset, info, addend in _RELA.iter_unpack(contents(s))
    )
    functions = sorted(
        (value, length, _name(strings, name))
        for name, info, _, section, value, length in symbols
        if info & 0xF == _STT_FUNC and section == text
    )
    result = []
    at = 0
    for value, length, name in functions:
        mine = []
        while at < len(relocations) and relocations[at][0] < value + length:
            offset, kind, symbol, addend = relocations[at]
            mine.append(Relocation(offset - value, kind, symbol, addend))
            at += 1
        result.append(Function(name, code[value : value + length], tuple(mine)))
    return result
