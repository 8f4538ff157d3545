"""The compiled engine linked once: a file that later processes map, without LLVM.

To load LLVM takes a fifth of a start that resumes, and to link with it a tenth. The objects need
little of a linker: functions that call one another by 32 bits, tables with 64-bit addresses, and
three functions of the C library. So they are laid out here, once, one after the other:

    HEADER      magic, CRC-32 of all behind it, sizes of the parts
    names       JSON: where functions are, and where addresses of the C library's functions belong
    words       offsets, 32 bits each, of what the address that the program got is added to
    program     at a multiple of a page: code and constants, then, on pages of its own, the tables

It may lie at any address, so processes map it where their host likes. What is not understood
here is linked by LLVM as before.
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import json
import mmap
import os
import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from ringzero.errors import RingzeroError
from ringzero.host.memory import PAGE, map_program
from ringzero.host.private import open_private
from ringzero.records import record
from ringzero.settings import CACHE_DIR

# Magic, CRC-32, bytes of names, of words, of code, of tables.
HEADER = struct.Struct("<8sI4xQQQQ")
_MAGIC = b"RZLINK01"
_CHECKED_FROM = 16
# System V ABI, 4.3: the file's header, a section's, a symbol, a relocation with an addend.
_FILE = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_PROGBITS, _SYMBOLS, _RELOCATIONS, _NOBITS = 1, 2, 4, 8
_WRITABLE, _LOADED = 1, 2
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2
# AMD64 supplement, 4.4.1: a 64-bit address; distances of 32 bits.
_R_64, _R_PC32, _R_PLT32 = 1, 2, 4
# jmp [rip + distance]
_JUMP = b"\xff\x25"
_STUB, _WORD = 8, 8
_IMPORTED = ("memcpy", "memmove", "memset")


class Objects(Protocol):
    """A compiled engine on disk (`ringzero.jit.build.EngineObjects`)."""

    @property
    def directory(self) -> Path: ...

    @property
    def key(self) -> str: ...

    @property
    def units(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


class Library(Protocol):
    """An engine that is linked into this process."""

    def address(self, name: str) -> int:
        """Return the host address of a function."""
        ...


class _UnknownError(Exception):
    """Something that only a real linker understands."""


class Linked:
    """A linked engine in this process."""

    def __init__(self, base: int, names: Mapping[str, int]) -> None:
        self._base = base
        self._names = names

    def address(self, name: str) -> int:
        """Return the host address of a function. Raises KeyError."""
        return self._base + self._names[name]


def link(objects: Objects, symbols: Iterable[str]) -> Linked | None:
    """Return the engine, linked into this process; None where that is LLVM's to do."""
    wanted = list(symbols)
    path = CACHE_DIR.get() / "linked" / objects.key
    found = _load(path, wanted)
    if found is not None:
        return found
    try:
        data = _linked([objects.read(f"{unit}.o") for unit in objects.units], wanted)
    except (_UnknownError, struct.error, LookupError):
        return None
    with contextlib.suppress(OSError):
        _keep(path, data)
    return _load(path, wanted)


def _load(path: Path, wanted: Iterable[str]) -> Linked | None:
    """Map the file when it is ours, whole, and has all of the functions."""
    try:
        descriptor = open_private(path)
    except (OSError, RingzeroError):
        return None
    try:
        # Looked at where it lies: to read it copies half a megabyte.
        data = memoryview(mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))
        if len(data) < HEADER.size:
            return None
        magic, crc, names, words, code, tables = HEADER.unpack_from(data)
        begin = _program_at(names, words)
        if (magic, len(data)) != (_MAGIC, begin + code + tables):
            return None
        if binascii.crc32(data[_CHECKED_FROM:]) != crc:
            return None
        told = json.loads(bytes(data[HEADER.size : HEADER.size + names]))
        functions: dict[str, int] = told["functions"]
        if not all(name in functions for name in wanted):
            return None
        base = map_program(descriptor, begin, code, tables)
    except (OSError, ValueError, KeyError, RingzeroError):
        return None
    finally:
        os.close(descriptor)
    offsets = array("I", bytes(data[HEADER.size + names :][:words]))
    slots = (ctypes.c_uint64 * (tables // _WORD)).from_address(base + code)
    for offset in offsets:
        slots[(offset - code) // _WORD] += base
    library = ctypes.CDLL(None)
    for name, offset in told["imports"].items():
        function = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        slots[(offset - code) // _WORD] = function
    return Linked(base, functions)


def _program_at(names: int, words: int) -> int:
    return -(-(HEADER.size + names + words) // PAGE) * PAGE


def _keep(path: Path, data: bytes) -> None:
    """Put the file in its place, and remove those of engines that are gone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- linking ----------------------------------------------------------------------


@record
class _Section:
    kind: int
    flags: int
    data: bytes
    size: int
    link: int
    target: int
    alignment: int


class _Object:
    """One object file: its sections, its symbols, and where its sections are put."""

    def __init__(self, data: bytes) -> None:
        head = _FILE.unpack_from(data)
        if head[0][:6] != b"\x7fELF\2\1" or head[1] != 1:
            raise _UnknownError("no 64-bit object")
        table, count = head[6], head[12]
        self.sections = []
        for number in range(count):
            _, kind, flags, _, start, size, link, info, alignment, _ = _SECTION.unpack_from(
                data, table + number * _SECTION.size
            )
            content = b"" if kind == _NOBITS else data[start : start + size]
            self.sections.append(_Section(kind, flags, content, size, link, info, alignment))
        symbols = next(s for s in self.sections if s.kind == _SYMBOLS)
        names = self.sections[symbols.link].data
        self.symbols = [
            (names[name : names.index(b"\0", name)].decode(), info >> 4, section, value)
            for name, info, _, section, value, _ in _SYMBOL.iter_unpack(symbols.data)
        ]
        # Where in the program each section begins.
        self.places: dict[int, int] = {}

    def loaded(self, *, writable: bool) -> Iterable[tuple[int, _Section]]:
        """Yield number and section of those that belong into the program."""
        for number, section in enumerate(self.sections):
            belongs = section.flags & _LOADED and section.kind in (_PROGBITS, _NOBITS)
            if belongs and section.size and bool(section.flags & _WRITABLE) == writable:
                yield number, section


def _linked(files: Iterable[bytes], wanted: Iterable[str]) -> bytes:
    """Return the file that has the objects in `files` linked. Raises _UnknownError."""
    objects = [_Object(data) for data in files]
    program = bytearray()
    _lay(program, objects, writable=False)
    known = _functions(objects)
    called = {
        name for o in objects for name, _, section, _ in o.symbols if section == _UNDEFINED and name
    }
    imports = sorted(called - known.keys())
    if not set(imports) <= set(_IMPORTED):
        raise _UnknownError(f"nobody has {imports}")
    stubs = len(program)
    program += bytes(_STUB * len(imports))
    program += bytes(-len(program) % PAGE)
    code = len(program)
    _lay(program, objects, writable=True)
    program += bytes(-len(program) % _WORD)
    known = _functions(objects)
    places = {}
    for number, name in enumerate(imports):
        place, stub = len(program), stubs + number * _STUB
        struct.pack_into("<2si", program, stub, _JUMP, place - (stub + len(_JUMP) + 4))
        known[name], places[name] = stub, place
        program += bytes(_WORD)
    words = array("I")
    for item in objects:
        _relocate(program, item, known, words, code)
    program += bytes(-len(program) % PAGE)
    functions = {name: known[name] for name in wanted}
    names = json.dumps({"functions": functions, "imports": places}).encode()
    head = HEADER.pack(_MAGIC, 0, len(names), 4 * len(words), code, len(program) - code)
    rest = (head + names + words.tobytes()).ljust(_program_at(len(names), 4 * len(words)), b"\0")
    data = bytearray(rest + program)
    struct.pack_into("<I", data, len(_MAGIC), binascii.crc32(memoryview(data)[_CHECKED_FROM:]))
    return bytes(data)


def _lay(program: bytearray, objects: Iterable[_Object], *, writable: bool) -> None:
    """Append the sections, and note where they are."""
    for item in objects:
        for number, section in item.loaded(writable=writable):
            program += bytes(-len(program) % max(1, section.alignment))
            item.places[number] = len(program)
            program += section.data.ljust(section.size, b"\0")


def _functions(objects: Iterable[_Object]) -> dict[str, int]:
    """Return where the symbols are that objects show one another, as far as that is known."""
    return {
        name: item.places[section] + value
        for item in objects
        for name, binding, section, value in item.symbols
        if binding and section in item.places
    }


def _relocate(
    program: bytearray, item: _Object, known: Mapping[str, int], words: array[int], code: int
) -> None:
    """Enter addresses and distances into an object's sections."""
    for section in item.sections:
        if section.kind != _RELOCATIONS or section.target not in item.places:
            continue
        start = item.places[section.target]
        for offset, info, addend in _RELOCATION.iter_unpack(section.data):
            name, binding, where, value = item.symbols[info >> 32]
            if where in (_ABSOLUTE, _COMMON):
                raise _UnknownError("an absolute symbol")
            target = known[name] if binding or where == _UNDEFINED else item.places[where] + value
            place, kind = start + offset, info & 0xFFFF_FFFF
            if kind in (_R_PC32, _R_PLT32):
                struct.pack_into("<i", program, place, target + addend - place)
            elif kind == _R_64 and place >= code and place % _WORD == 0:
                struct.pack_into("<Q", program, place, target + addend)
                words.append(place)
            else:
                raise _UnknownError(f"a relocation of type {kind}")
