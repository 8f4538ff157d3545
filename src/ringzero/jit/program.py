"""Native functions as a program without a library: code that runs wherever it is loaded.

The guest's own programs are made so (`ringzero.image.guest`). They use no data but at addresses
that they know, and call nobody but each other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ringzero.errors import EngineError
from ringzero.jit.compile.llvm import STRAIGHT, Target, compile_object
from ringzero.jit.compile.module import Module
from ringzero.jit.host.elf import R_PC32, R_PLT32, read_functions
from ringzero.native.functions import NativeFunction

# Any processor of x86-64 runs it. Code that only copies bytes and makes system calls needs no
# vector registers, which a new process would have to be given.
BASELINE = Target("x86-64", "x86-64", "-mmx,-sse,-sse2,-avx,+soft-float")
_ALIGNMENT = 16
# mov rdi, rsp; and rsp, -16; call main
_START = b"\x48\x89\xe7\x48\x83\xe4\xf0\xe8"
_DISPLACEMENT = struct.Struct("<i")


def code(main: NativeFunction[Any, Any], others: Sequence[NativeFunction[Any, Any]] = ()) -> bytes:
    """Return code that begins by calling `main` with the stack pointer that it was started with.

    `main` does not return. `others` are functions that only inline assembly calls, by their names.
    Raises EngineError for a call of what is not there.
    """
    module = Module("program")
    for wanted in (main, *others):
        module.require(wanted)
    compiled = compile_object(module.text(), relocation="static", passes=STRAIGHT, target=BASELINE)
    functions = read_functions(compiled)
    made = bytearray(_START + bytes(_DISPLACEMENT.size))
    places = {}
    for function in functions:
        made += bytes(-len(made) % _ALIGNMENT)
        places[function.name] = len(made)
        made += function.code
    displacements = [(len(_START), main.name, -_DISPLACEMENT.size)]
    for function in functions:
        for found in function.relocations:
            if found.kind not in (R_PC32, R_PLT32) or found.symbol not in places:
                raise EngineError(f"{function.name} needs {found.symbol or 'data'}")
            displacements.append((places[function.name] + found.offset, found.symbol, found.addend))
    for place, symbol, addend in displacements:
        _DISPLACEMENT.pack_into(made, place, places[symbol] + addend - place)
    return bytes(made)
