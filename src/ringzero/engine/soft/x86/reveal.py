"""What the translator makes of guest code, for people: RINGZERO_DEBUG (docs/debug.md).

The translator is native code and tells nobody. So whenever a vCPU comes back
to Python, and once more at the end, the `Revealer` walks the records of
translated blocks and describes those that are new: guest instructions as the
decoder sees them (level 2), the LLVM IR of the stencils and handlers that they
use, each once (level 3), and the block's host code (level 4).
"""

from __future__ import annotations

import bisect
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.code import CodeArenas
from ringzero.engine.soft.x86.insn_text import text_of
from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.host.files import host_error, make_directory
from ringzero.isa.caches import (
    JUMP_EMPTY,
    JUMP_ENTRIES,
    JUMP_NEVER_FIRST,
    JUMP_WAYS,
    NEXT_JUMPS,
    TAG_32,
    CodePage,
)
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.compile.module import Module
from ringzero.jit.tables import Block
from ringzero.jit.x86.assembly import key_of
from ringzero.jit.x86.catalogue import define_key
from ringzero.jit.x86.handlers import define_handler, variants
from ringzero.jit.x86.tables import END_CONDITIONAL, END_JUMP, Translator
from ringzero.native.view import view_of
from ringzero.settings import DEBUG, DEBUG_AT, DEBUG_COUNT, DEBUG_DIR

IR, HOST_CODE = 3, 4
_PAGE = 0x1000
_BYTES_IN_A_ROW = 16
# The tags of empty entries in a jump cache.
_EMPTY = (JUMP_EMPTY, JUMP_NEVER_FIRST)
_MODES = {0: "16-bit", 1: "32-bit", 2: "64-bit"}
_FPU_OFF = 4


@dataclass(frozen=True)
class Wanted:
    """What is to be revealed: `level`, addresses from `first` to `last`, at most `count` blocks."""

    level: int
    first: int
    last: int
    count: int
    directory: Path | None

    @classmethod
    def from_settings(cls) -> Wanted:
        """Return what the environment asks for. Raises InvalidValueError."""
        return cls(DEBUG.get(), *DEBUG_AT.get(), DEBUG_COUNT.get(), DEBUG_DIR.get())


@dataclass(frozen=True)
class Found:
    """One translated block: its guest code's page (by number) and place, mode, host code.

    `stubs` are start and size of the part that lies elsewhere.
    """

    page: int
    physical: int
    linear: int | None
    mode: int
    code: int
    stubs: tuple[int, int]

    @property
    def title(self) -> str:
        """One line that names the block."""
        where = f"{self.linear:#x}" if self.linear is not None else "unknown"
        mode = _MODES.get(self.mode & 3, "?") + (", FPU off" if self.mode & _FPU_OFF else "")
        return f"block at linear {where}, physical {self.physical:#x} ({mode})"


class Revealer:
    """Describes translated blocks of one machine as they appear."""

    def __init__(
        self,
        engine: NativeEngine,
        memory: GuestMemory,
        code: Any,
        arenas: CodeArenas,
        saved_pages: Iterable[int],
        wanted: Wanted,
        stream: TextIO | None = None,
    ) -> None:
        """`code` views the machine's CodeSpace; `saved_pages`: CodePages of earlier runs."""
        self._engine = engine
        self._memory = memory
        self._code = code
        self._arenas = arenas
        self._wanted = wanted
        self._stream = stream
        self._left = wanted.count
        self._seen: set[int] = set()
        self._seen_at = (0, 0)
        # Linear address of each page of RAM with code, by its number, as far as known.
        self._linear: dict[int, int] = {}
        self._shown_ir: set[str] = set()
        if wanted.directory is not None:
            make_directory(wanted.directory)
        # Where host code begins, sorted: a block ends where the next one begins.
        saved: set[int] = set()
        self._starts = sorted(
            block.code for page in saved_pages for block in _blocks_of(page, saved)
        )

    def look(self, cpu: Any) -> None:
        """Describe what was translated since the last look. On the vCPU's thread, outside it."""
        now = (self._code.count_blocks, self._code.count_adopted)
        if self._left <= 0 or now == self._seen_at:
            return
        self._seen_at = now
        found = []
        for number, page in enumerate(self._arenas.words):
            if page:
                found += [(number, block) for block in _blocks_of(page, self._seen)]
        self._starts = sorted({*self._starts, *(block.code for _, block in found)})
        addresses = _linear_addresses(cpu)
        for number, block in found:
            if block.code in addresses:
                self._linear[number] = addresses[block.code] & -_PAGE
        for number, block in sorted(found, key=lambda pair: int(pair[1].code)):
            known = self._linear.get(number)
            linear = None if known is None else known + block.offset
            physical = self._physical(number) + block.offset
            stubs = (block.stubs, block.stubs_size)
            self._consider(cpu, Found(number, physical, linear, block.mode, block.code, stubs))
            if self._left <= 0:
                limit = self._wanted.count
                print(f"ringzero: RINGZERO_DEBUG_COUNT={limit} blocks shown", file=sys.stderr)
                return

    def _physical(self, number: int) -> int:
        """Return the guest-physical address of a page of RAM by its number in the host mapping."""
        offset = number * _PAGE
        region = next(r for r in reversed(self._memory.mapped) if r.offset <= offset)
        return region.base + offset - region.offset

    # --- telling -------------------------------------------------------------

    def _consider(self, cpu: Any, block: Found) -> None:
        """Describe a block if it overlaps the addresses that are wanted."""
        first, last = self._wanted.first, self._wanted.last
        places = [p for p in (block.physical, block.linear) if p is not None]
        if not any(first - _PAGE < place <= last for place in places):
            return
        translator = view_of(Translator, cpu.engine)
        host_page = cpu.ram + block.page * _PAGE
        start = block.physical % _PAGE
        translator.mode = block.mode
        translator.next_page = 0
        count = self._engine.decode_block(
            cpu.address, translator.address, host_page, start, block.mode
        )
        insns = [translator.insns[number] for number in range(count)]
        size = sum(insn.length for insn in insns)
        if any(first < place + size and place <= last for place in places):
            self._left -= 1
            self._tell(block, translator, insns, host_page)

    def _tell(self, block: Found, translator: Any, insns: list[Any], host_page: int) -> None:
        lines = [block.title]
        texts: dict[str, Callable[[], str]] = {}
        base = block.linear if block.linear is not None else block.physical
        for number, insn in enumerate(insns):
            address = base - base % _PAGE + insn.page_offset
            raw = ctypes.string_at(host_page + insn.page_offset, insn.length).hex(" ")
            how, ir = self._how(insn, translator.lowering[number], translator.key[number])
            lines.append(f"  {address:016x}  {raw:<32}  {text_of(insn, address):<40}  ; {how}")
            if ir is not None:
                texts[how] = ir
        if self._wanted.level >= HOST_CODE:
            lines += self._host_code(block)
        self._write(f"{base:016x}-{block.mode}.txt", "\n".join(lines))
        if self._wanted.level >= IR:
            for name, ir in texts.items():
                if name not in self._shown_ir:
                    self._shown_ir.add(name)
                    self._write(f"{name.replace(' ', '-')}.ll", f"; {name}\n{ir()}")

    def _how(self, insn: Any, lowering: int, key: int) -> tuple[str, Callable[[], str] | None]:
        """Return by what an instruction is run, and how to get the IR of that."""
        if lowering == 0:
            form, slot = insn.form, (insn.op_size - 1) * 4 + insn.memory * 2 + insn.lock
            return f"handler {form}.{slot}", lambda: _handler_ir(form, slot)
        if self._engine.lowering(lowering).end in (END_JUMP, END_CONDITIONAL):
            return "jump", None
        return f"stencil {key}", lambda: _stencil_ir(key)

    def _host_code(self, block: Found) -> Iterator[str]:
        index = bisect.bisect_right(self._starts, block.code)
        end = self._starts[index] if index < len(self._starts) else self._code.out
        code = ctypes.string_at(block.code, max(0, end - block.code))
        yield f"  host code at {block.code:#x}, {len(code)} bytes"
        yield from (f"    {line}" for line in disassembled(code, block.code))
        where, size = block.stubs
        yield f"  out of line at {where:#x}, {size} bytes"
        yield from (f"    {line}" for line in disassembled(ctypes.string_at(where, size), where))

    def _write(self, name: str, text: str) -> None:
        directory = self._wanted.directory
        if directory is None:
            print(text, file=self._stream or sys.stderr)
            return
        try:
            (directory / name).write_text(text + "\n")
        except OSError as fault:
            self._left = 0
            raise host_error(fault, "write to RINGZERO_DEBUG_DIR", directory) from fault


def _blocks_of(page: int, seen: set[int]) -> Iterator[Any]:
    """Yield the blocks of a CodePage that are not in `seen`, and enter them there."""
    heads = view_of(CodePage, page).blocks
    for line in range(len(heads)):
        where = heads[line]
        # New blocks stand in front of those that were there.
        while where and where not in seen:
            seen.add(where)
            block = view_of(Block, where)
            yield block
            where = block.next


def _linear_addresses(cpu: Any) -> dict[int, int]:
    """Return linear addresses by host code, from the jump caches."""
    known = {}
    ways = range(0, JUMP_WAYS * NEXT_JUMPS, NEXT_JUMPS)
    for table in (first + way for first in (cpu.jump_user, cpu.jump_kernel) for way in ways):
        words = (ctypes.c_uint64 * (2 * JUMP_ENTRIES)).from_address(table)
        for tag, code in zip(words[::2], words[1::2], strict=True):
            if tag not in _EMPTY:
                known[code] = tag if tag >> 63 else tag & ~TAG_32
    return known


def disassembled(code: bytes, address: int) -> Iterator[str]:
    """Yield host code as lines of assembly where capstone is installed, else in hexadecimal."""
    try:
        import capstone
    except ImportError:
        for start in range(0, len(code), _BYTES_IN_A_ROW):
            yield f"{address + start:x}  {code[start : start + _BYTES_IN_A_ROW].hex(' ')}"
        return
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.skipdata = True
    for where, size, name, operands in engine.disasm_lite(code, address):
        raw = code[where - address :][:size].hex(" ")
        yield f"{where:x}  {raw:<32}  {name} {operands}".rstrip()


def _stencil_ir(key: int) -> str:
    """Return the IR of a stencil: its two versions, the second where no one looks at its flags."""
    module = Module("revealed")
    define_key(module, key, key_of(key))
    return module.text()


def _handler_ir(form: int, slot: int) -> str:
    """Return the IR of the handler that serves a form's decoder slot."""
    module = Module("revealed", home=())
    for variant, slots in variants(all_forms(extended=True)[form]):
        if slot in slots:
            define_handler(module, variant)
    return module.text()
