"""x86 assembly (Intel syntax) to bytes, by LLVM's own assembler."""

from __future__ import annotations

import functools
import struct

import llvmlite.binding as llvm

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SHT_RELA = 4


class AssemblyError(Exception):
    """The text does not assemble to position-fixed bytes."""


@functools.cache
def _target_machine() -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    return target.create_target_machine(features="+sse4.2,+popcnt,+cx16,+fsgsbase")


@functools.cache
def assemble(source: str, mode: int = 64, origin: int | None = None) -> bytes:
    """The bytes of `source`, in mode 64 or 32.

    Branches must stay inside `source`. With `origin` the symbol `ORIGIN` is
    that address and `here` is the first byte: the absolute address of a
    label is `label - here + ORIGIN` in a data directive; code takes it with
    LEA from RIP. A mistake in `source` ends the process with LLVM's message.
    """
    lines = [".intel_syntax noprefix", f".code{mode}", "here:"]
    if origin is not None:
        lines.append(f".set ORIGIN, {origin:#x}")
    lines += source.splitlines()
    quoted = "\n".join(
        'module asm "' + line.replace("\\", "\\5C").replace('"', "\\22") + '"' for line in lines
    )
    module = llvm.parse_assembly('target triple = "x86_64-unknown-linux-gnu"\n' + quoted)
    return _text_section(_target_machine().emit_object(module))


def _text_section(elf: bytes) -> bytes:
    (offset,) = struct.unpack_from("<Q", elf, 40)
    size, count, names_index = struct.unpack_from("<HHH", elf, 58)
    sections = [_SECTION.unpack_from(elf, offset + i * size) for i in range(count)]
    names_at = sections[names_index][4]
    text = b""
    for name, kind, _flags, _addr, at, length, *_ in sections:
        end = elf.index(b"\0", names_at + name)
        label = elf[names_at + name : end].decode()
        if kind == _SHT_RELA and label == ".rela.text":
            raise AssemblyError("the text refers to a symbol outside itself")
        if label == ".text":
            text = elf[at : at + length]
    return text
