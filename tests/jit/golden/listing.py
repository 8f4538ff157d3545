"""Takes a translated block apart again: which stencils it was made of.

The translator keeps no record of that. So the stencils' bytes are looked for in the block,
holes left out, with what is known of each guest instruction as a guide.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import capstone
import llvmlite.binding as llvm

from ringzero.engine.soft.x86.insn_text import text_of
from ringzero.isa.caches import CodePage
from ringzero.jit import tables
from ringzero.jit.compile.llvm import host_identity
from ringzero.jit.host.x86_64 import JUMP_LENGTH
from ringzero.jit.tables import Block, Hole, Stencil
from ringzero.jit.x86.catalogue import Catalogue
from ringzero.jit.x86.glue import glue
from ringzero.jit.x86.tables import (
    END_CALL,
    END_CONDITIONAL,
    END_JUMP,
    HIGH_REGISTERS,
    KEY_MASK,
    MOVABS,
    PINNED_REGISTERS,
)
from ringzero.native.view import StructView, view_of
from tests.oracle.assembler import assemble
from tests.oracle.model import CODE_BASE, Case, State
from tests.oracle.soft import CODE, Soft, translator

HERE = Path(__file__).parent
LISTINGS, COUNTS = HERE / "listings", HERE / "counts.txt"
# Holes whose values are the translator's doing and no addresses: the rest moves with the layout.
TOLD = ("HI", "HN", "HD", "HC", "HO")
WIDTHS = {tables.ABSOLUTE_8: 1, tables.ABSOLUTE_16: 2, tables.ABSOLUTE_64: 8}
# Glue that can stand before an instruction, and behind the last one.
BEFORE = ("ea.", "carry.", "status.", "cond.", "refund", "swap.", "store", "spill.", "fill.")
BEHIND = (
    "refund", "leave", "leave.linked", "unsettled", "slow", "target", "target32", "dispatch64",
    "dispatch32", "goto", "store", *(f"swap.{register}" for register in range(HIGH_REGISTERS)),
    *(f"fill.{register}" for register in range(PINNED_REGISTERS)),
)  # fmt: skip
# Blocks begin at multiples of this many bytes.
ALIGNMENT = 16


@dataclass(frozen=True)
class Piece:
    """A stencil: its bytes, and (offset, width, name) of its holes."""

    name: str
    code: bytes
    holes: tuple[tuple[int, int, str], ...]

    @functools.cached_property
    def fixed(self) -> tuple[tuple[int, bytes], ...]:
        """The stretches of bytes between the holes."""
        at, found = 0, []
        for offset, width, _ in sorted(self.holes):
            found.append((at, self.code[at:offset]))
            at = offset + width
        return (*found, (at, self.code[at:]))

    def stands(self, code: bytes, at: int) -> bool:
        return all(code.startswith(text, at + offset) for offset, text in self.fixed)


@dataclass
class Listing:
    """A block: `pieces` of (guest instruction or -1, stencil, its place); `guest` as text."""

    guest: list[str]
    pieces: list[tuple[int, Piece, int]]
    code: bytes

    def structure(self) -> list[str]:
        """The lines that no version of LLVM changes."""
        return [line for line in self.lines() if not line.startswith("      ")]

    def lines(self) -> list[str]:
        """Every line: guest instructions, stencils below them, host instructions below those."""
        found = []
        shown = None
        for number, piece, at in self.pieces:
            if number != shown:
                shown = number
                places = (*self.guest, "behind it", "out of line")
                found.append(places[number])
            found.append("  " + " ".join([piece.name, *told(piece, self.code[at:])]))
            found += [f"      {text}" for text in host_text(piece.code)]
        return found

    def count(self) -> tuple[int, int, str]:
        """Return how many host instructions and bytes the first instruction became, and how."""
        own = [p for n, p, _ in self.pieces if n == 0 and p.name not in ("head", "refund")]
        names = " + ".join(p.name for p in own)
        return sum(len(host_text(p.code)) for p in own), sum(len(p.code) for p in own), names


def without_jump(piece: Piece) -> Piece:
    """Return a stencil that ends in a jump, without it: what it leads to follows."""
    end = len(piece.code) - JUMP_LENGTH
    holes = tuple(hole for hole in piece.holes if hole[0] < end)
    return Piece(piece.name, piece.code[:end], holes)


def told(piece: Piece, code: bytes) -> list[str]:
    """Return the values in those holes of a stencil that are told."""
    values = {}
    for offset, width, name in piece.holes:
        if name in TOLD:
            values[name] = int.from_bytes(code[offset : offset + width], "little", signed=True)
    return [f"{name}={value:#x}" for name, value in values.items()]


@functools.cache
def host_text(code: bytes) -> tuple[str, ...]:
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    return tuple(f"{name} {rest}".rstrip() for _, _, name, rest in engine.disasm_lite(code, 0))


# Stands for an instruction that is one stencil with the jump behind it.
WAITS = Piece("with the jump", b"", ())


class Stencils:
    """The compiled engine's stencils by name."""

    def __init__(self, machine: Soft) -> None:
        objects = machine.vm.engine.objects
        self._blob = objects.read("blob.bin")
        self._records = ctypes.create_string_buffer(objects.read("stencils.bin"))
        self._holes = ctypes.create_string_buffer(objects.read("holes.bin"))
        self._fused = array("I", objects.read("fused.bin"))
        self.catalogue = Catalogue()
        first = len(self.catalogue.keys) * 2
        self.glue = [self._piece(first + n, name) for n, name in enumerate(glue())]

    def _piece(self, number: int, name: str) -> Piece:
        base = ctypes.addressof(self._records)
        stencil = view_of(Stencil, base + number * Stencil.size)
        holes = []
        for n in range(stencil.first_hole, stencil.first_hole + stencil.holes):
            hole = view_of(Hole, ctypes.addressof(self._holes) + n * Hole.size)
            holes.append((hole.offset, WIDTHS.get(hole.how, 4), tables.HOLES[hole.what]))
        code = self._blob[stencil.code : stencil.code + stencil.length]
        return Piece(name, code, tuple(holes))

    def of_key(self, number: int) -> list[Piece]:
        """Return the two stencils of a key: flags wanted, and dead."""
        key = self.catalogue.keys[number]
        name = f"{key.form.function.__name__}.{key.size}"
        name = " ".join([name, *(binding.tag for binding in key.bindings)])
        pieces = [self._piece(number * 2 + n, name + " dead" * n) for n in range(2)]
        # An instruction that does nothing has no code.
        return [piece for n, piece in enumerate(pieces) if piece.code or n == 0]

    def jumping(self, number: int) -> list[Piece]:
        """Return the stencils of a key with a conditional jump, whose condition is a hole."""
        if number >= len(self.catalogue.keys) or not self._fused[number]:
            return []
        name = self.of_key(number)[0].name
        found = []
        for n, suffix in enumerate((" jcc", " dead jcc")):
            piece = self._piece(self._fused[number] + n, name + suffix)
            condition = len(piece.code) - 5
            found.append(Piece(piece.name, piece.code, ((condition, 1, "condition"), *piece.holes)))
        return found

    def named(self, *names: str) -> list[Piece]:
        """Return glue by the beginnings of names, the longest code first."""
        found = [p for p in self.glue if p.code and p.name.startswith(names)]
        return sorted(found, key=lambda p: (-len(p.code), -sum(len(t) for _, t in p.fixed)))


def blocks_of(page: int) -> Iterator[StructView]:
    """Yield the blocks of a CodePage."""
    for first in view_of(CodePage, page).blocks:
        where = first
        while where:
            block = view_of(Block, where)
            yield block
            where = block.next


class Listings:
    """Translates guest code and takes the blocks apart."""

    def __init__(self) -> None:
        self.machine = translator()
        # Nothing that an earlier run has translated.
        self.machine.vm.code.saved_table = 0
        self.stencils = Stencils(self.machine)
        self._before = self.stencils.named(*BEFORE)
        self._behind = [p for p in self.stencils.named(*BEHIND) if p.name in BEHIND]

    def listing(self, mode: int, source: str) -> Listing:
        """Return the block that begins where the code does; the code is run for that."""
        machine = self.machine
        code = assemble(source, mode)
        state = State.build([CODE_BASE + 0x2000] * 16, CODE_BASE, 0x202)
        machine.run([Case(code, state, (), mode)])
        pages = machine.vm.arenas.words
        first = next(block for block in blocks_of(pages[CODE >> 12]) if block.offset == 0)
        codes = [block.code for page in pages if page for block in blocks_of(page)]
        later = [code for code in codes if code > first.code]
        return self._taken_apart(first, min(later, default=machine.vm.code.out))

    def _taken_apart(self, block: StructView, end: int) -> Listing:
        machine = self.machine
        tr = machine.vcpu.translator
        tr.mode = block.mode
        host_page = machine.cpu.ram + CODE
        count = machine.vm.engine.decode_block(
            machine.vcpu.address, tr.address, host_page, block.offset, block.mode
        )
        guest, mains = [], []
        for number in range(count):
            insn = tr.insns[number]
            raw = ctypes.string_at(host_page + insn.page_offset, insn.length).hex(" ")
            guest.append(f"{raw:<24} {text_of(insn, insn.page_offset)}")
            own = self._mains(tr.lowering[number], tr.key[number])
            if number and machine.vm.engine.lowering(tr.lowering[number]).end == END_CONDITIONAL:
                # The instruction before may wait for its jump, and be one stencil with it.
                own += self.stencils.jumping(tr.key[number - 1])
                mains[-1].insert(0, WAITS)
            mains.append(own)
        code = ctypes.string_at(block.code, end - block.code)
        stubs = ctypes.string_at(block.stubs, block.stubs_size)
        head = self.stencils.named("head")[0]
        assert head.stands(code, 0)
        rest = self._tiles(code, len(head.code), 0, mains)
        away = self._tiles(stubs, 0, 0, [])
        assert rest is not None, f"what is this? {guest}\n" + "\n".join(host_text(code))
        assert away is not None, f"what is this? {guest}\n" + "\n".join(host_text(stubs))
        pieces = [(0, head, 0), *rest]
        pieces += [(len(mains) + 1, piece, at + len(code)) for _, piece, at in away]
        return Listing(guest, pieces, code + stubs)

    def _mains(self, lowering: int, key: int) -> list[Piece]:
        """Return the stencils of which one must stand for a guest instruction."""
        if lowering == 0:
            return self.stencils.named("generic")
        end = self.machine.vm.engine.lowering(lowering).end
        if end == END_JUMP:
            return self.stencils.named("goto", "target")
        if end == END_CONDITIONAL:
            return self.stencils.named("jcc.")
        if key == MOVABS:
            return self.stencils.named("movabs.")
        key &= KEY_MASK
        if end == END_CALL:
            return [*self.stencils.of_key(key), *map(without_jump, self.stencils.of_key(key))]
        return self.stencils.of_key(key)

    def _tiles(
        self, code: bytes, at: int, number: int, mains: list[list[Piece]]
    ) -> list[tuple[int, Piece, int]] | None:
        """Return the stencils from a place on; None when there is no way to the end."""
        if number == len(mains):
            if len(code) in (at, at + -at % ALIGNMENT):
                return []
            choices = [(number, piece) for piece in self._behind]
        else:
            choices = [(number + 1, piece) for piece in mains[number]]
            choices += [(number, piece) for piece in self._before]
        for following, piece in choices:
            if piece.stands(code, at):
                rest = self._tiles(code, at + len(piece.code), following, mains)
                if rest is not None:
                    return [(number, piece, at), *rest]
        return None


def version() -> str:
    """Return what the host code depends on, for the head of a file."""
    major = ".".join(str(n) for n in llvm.llvm_version_info)
    return f"LLVM {major}, {host_identity().split()[1]}"
